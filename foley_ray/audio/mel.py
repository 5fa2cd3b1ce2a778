"""wave -> log-mel picture, and Griffin-Lim back, the yardstick that every vocoder must beat.

Shapes: B rows, T samples, F mel frames (time), M mel bands. Knows tensors, not files.
"""

import math

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from foley_ray.spec import AudioSpec

MEL_FLOOR = 1e-5
LOG_MEL_MIN = math.log(MEL_FLOOR)  # -11.51: what digital silence becomes
LOG_MEL_MAX = 2.5  # about what full-scale noise or a full-scale sine reaches at n_fft 1024; a colour limit, not a clamp


class LogMel(nn.Module):
    """wave_BT (within -1..1) -> log_mel_BFM, natural logarithm of the mel magnitude, F = T // hop exactly.

    The recipe of HiFi-GAN and Tacotron 2, on which the published vocoders and VAEs were trained: reflect-padded frames, Hann
    window, magnitude (not power), Slaney filters, floor of 1e-5. Differentiable; float32 even under autocast. Time comes
    before mel, so that log_mel_BFM[:, None] is the VAE's picture in the paper's (time, frequency) order.
    """

    def __init__(self, audio: AudioSpec) -> None:
        super().__init__()
        self.hop = audio.hop_samples
        self.bands = audio.mel_bands
        # n_fft - hop samples in all: one frame for each whole hop
        self.left = (audio.n_fft - audio.hop_samples) // 2
        self.right = audio.n_fft - audio.hop_samples - self.left
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate=audio.sample_rate_hz,
            n_fft=audio.n_fft,
            win_length=audio.win_samples,
            hop_length=audio.hop_samples,
            f_min=audio.fmin_hz,
            f_max=audio.fmax_hz,
            n_mels=audio.mel_bands,
            power=1.0,
            center=False,
            norm="slaney",
            mel_scale="slaney",
        )

    def forward(self, wave_BT: Tensor) -> Tensor:
        """wave_BT -> log_mel_BFM; a wave shorter than one hop has no frame."""
        samples = wave_BT.shape[1]
        if samples < self.hop:
            return wave_BT.new_zeros(wave_BT.shape[0], 0, self.bands, dtype=torch.float32)
        # reflection needs more samples than it mirrors: a shorter wave is followed by silence first, cut off again below
        silence = max(0, self.right + 1 - samples)
        padded_BT = F.pad(F.pad(wave_BT.float(), (0, silence))[:, None], (self.left, self.right), mode="reflect")[:, 0]
        with torch.autocast(wave_BT.device.type, enabled=False):  # in bfloat16 each band would be off by up to 0.4 %
            mel_BMF: Tensor = self.mel(padded_BT[:, : self.left + samples + self.right])
        return mel_BMF.clamp(min=MEL_FLOOR).log().transpose(1, 2)


def resolutions(audio: AudioSpec, n_ffts: tuple[int, ...] = (512, 1024, 2048)) -> nn.ModuleList:
    """LogMels for a vocoder's mel loss: several window lengths, bands in proportion, up to half the sample rate.

    HiFi-GAN, too, measures its loss over the whole band although its input ends at 8 kHz: what the input does not show, the
    vocoder must learn to fill in. Hop is a quarter window.
    """
    specs = (
        audio.model_copy(
            update={
                "n_fft": n_fft,
                "win_samples": n_fft,
                "hop_samples": n_fft // 4,
                "mel_bands": 80 * n_fft // 1024,
                "fmin_hz": 0.0,
                "fmax_hz": audio.sample_rate_hz / 2,
            }
        )
        for n_fft in n_ffts
    )
    return nn.ModuleList(LogMel(spec) for spec in specs)


def griffin_lim(log_mel_BFM: Tensor, audio: AudioSpec, iterations: int = 32) -> Tensor:
    """log_mel_BFM -> wave_BT, T = F * hop, without any learned part: mel inverted by least squares, phase by Griffin-Lim.

    The same input gives the same wave: the random first phases are drawn from a fixed seed, the caller's generator untouched.
    """
    filters_KM = LogMel(audio).mel.mel_scale.fb.to(log_mel_BFM)
    magnitude_BFK = (log_mel_BFM.exp() @ torch.linalg.pinv(filters_KM)).clamp(min=0)
    # Griffin-Lim's frame i is centred on sample i * hop, ours half a hop later: one more frame at each end, half a hop cut off
    magnitude_BKF = F.pad(magnitude_BFK.transpose(1, 2), (1, 1), mode="replicate")
    invert = torchaudio.transforms.GriffinLim(
        n_fft=audio.n_fft,
        n_iter=iterations,
        win_length=audio.win_samples,
        hop_length=audio.hop_samples,
        power=1.0,
    ).to(log_mel_BFM.device)
    with torch.random.fork_rng(devices=[log_mel_BFM.device] if log_mel_BFM.is_cuda else []):
        torch.manual_seed(0)
        wave_BT: Tensor = invert(magnitude_BKF)
    start = audio.hop_samples // 2
    return wave_BT[:, start : start + log_mel_BFM.shape[1] * audio.hop_samples]
