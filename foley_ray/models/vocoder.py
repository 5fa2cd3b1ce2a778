"""mel -> wave: HiFi-GAN (transformers' class), or a network at frame rate with an inverse-STFT head (Vocos family).

Both kinds have one face: `vocoder(log_mel_BFM)` gives wave_BT with T = F * hop exactly; `save_pretrained(folder)` writes
config.json and safetensors; `apply_weight_norm()` readies them for training. Shapes: B rows, T samples, F mel frames,
M mel bands, C channels, K frequency bins, N samples of one frame.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
import torchaudio
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig
from transformers.utils.logging import disable_progress_bar

from foley_ray.audio.mel import MEL_FLOOR
from foley_ray.config import ModelConfig
from foley_ray.errors import ModelError
from foley_ray.spec import AudioSpec

AUDIO_KEYS = ("sample_rate_hz", "mel_bands", "fmin_hz", "fmax_hz", "hop_samples", "n_fft", "win_samples")
MATCHES = 8
MATCH_RATE = 1.5  # over-relaxed: 8 rounds reach what 15 would at 1; from 2.5 on it diverges
MAX_MAGNITUDE = 100.0  # Vocos' clamp: an early, wild prediction must not become an infinite gradient


class HifiGan(SpeechT5HifiGan):  # type: ignore[misc]
    """HiFi-GAN (arXiv 2010.05646) as transformers has it, the vocoder class of published AudioLDM folders.

    Differs in three points: the wave is exactly F * hop samples (an upsampling whose kernel and rate differ by an odd number,
    as in the 16 kHz model, appends a few); weight norm can be removed again (transformers 5 applies parametrizations but
    removes hooks, which raises); and what is saved is always the plain weights, whatever the training form.
    """

    def forward(self, log_mel_BFM: Tensor) -> Tensor:
        """log_mel_BFM -> wave_BT within -1..1."""
        wave_BT: Tensor = super().forward(log_mel_BFM)
        return wave_BT[:, : log_mel_BFM.shape[1] * math.prod(self.config.upsample_rates)]

    def remove_weight_norm(self) -> None:
        """Fold direction and length back into plain weights. Does nothing when there is no weight norm."""
        for module in self.modules():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write config.json and model.safetensors, plain weights under the names that transformers expects."""
        disable_progress_bar()  # transformers' own, over the files of weights
        state = self.state_dict()
        for name, module in self.named_modules():
            if parametrize.is_parametrized(module, "weight"):
                for key in ("original0", "original1"):
                    del state[f"{name}.parametrizations.weight.{key}"]
                state[f"{name}.weight"] = module.weight.detach()
        super().save_pretrained(save_directory, state_dict=state, **kwargs)


class ConvNextBlock(nn.Module):
    """One residual block of Vocos: convolution over time per channel, then an inverted bottleneck per frame."""

    def __init__(self, channels: int, layer_scale: float) -> None:
        super().__init__()
        self.time = nn.Conv1d(channels, channels, kernel_size=7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 3 * channels)
        self.contract = nn.Linear(3 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, hidden_BCF: Tensor) -> Tensor:
        """hidden_BCF -> hidden_BCF."""
        hidden_BFC = self.norm(self.time(hidden_BCF).transpose(1, 2))
        change_BFC: Tensor = self.scale * self.contract(nnf.gelu(self.expand(hidden_BFC)))
        return change_BFC.transpose(1, 2) + hidden_BCF


class IstftVocoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Vocos (arXiv 2306.00814): ConvNeXt blocks at frame rate predict a spectrum, the inverse STFT does the rest.

    All learned work happens once per frame instead of once per sample, which is what makes it many times cheaper than
    HiFi-GAN. Two things are not Vocos': the network only corrects the magnitudes that the mel already shows (`_prior`), and it
    adds to its own spectrum, bin by bin, filtered white noise (as DDSP does, arXiv 2001.04643), since most of foley is noise,
    whose phase nothing can predict. In eval mode the noise is always the same, so a mel always gives the same wave, whatever
    the batch; and what the wave's own mel then differs from the one asked for is made good (`_matched`).

    2026-11-24, `default`: at its 20th step its multi-resolution mel loss was 0.44, where Vocos' plain head had 0.76 after 1,600
    larger ones. But after 4,500 steps a classifier of real sounds still took Griffin-Lim's inversions for what they are more
    often (89 % against 77 %), and they are nearer in mel L1 (0.09 against 0.15).
    2026-11-28, `_matched`, the same weights, 46 held-out clips: mel L1 0.136 -> 0.070 (Griffin-Lim 0.072), multi-resolution
    loss 0.163 -> 0.140 (0.436); class accuracy, mean of 7 classes, 67 -> 75 % (73 %, real clips 76 %), behind the VAE 65 ->
    70 % (70 %). It doubles the vocoder's time. 16 rounds would give mel L1 0.057.

    Raises ModelError when neighbouring frames overlap by less than half: they could not be added up evenly.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_rate_hz: int = 22050,
        n_fft: int = 1024,
        win_samples: int = 1024,
        hop_samples: int = 256,
        mel_bands: int = 80,
        fmin_hz: float = 0.0,
        fmax_hz: float = 8000.0,
        channels: int = 512,
        layers: int = 8,
    ) -> None:
        super().__init__()
        if 2 * hop_samples > win_samples:
            raise ModelError(f"an istft vocoder needs hop_samples <= win_samples / 2, not {hop_samples} with {win_samples}")
        self.n_fft = n_fft
        self.hop = hop_samples
        self.embed = nn.Conv1d(mel_bands, channels, kernel_size=7, padding=3)
        self.norm_in = nn.LayerNorm(channels, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNextBlock(channels, 1 / layers) for _ in range(layers))
        self.norm_out = nn.LayerNorm(channels, eps=1e-6)
        bins = n_fft // 2 + 1
        self.head = nn.Linear(channels, 3 * bins)
        # a shorter window sits in the middle of its frame, as torch.stft puts it
        window_N = torch.hann_window(win_samples)
        space = n_fft - win_samples
        self.register_buffer("window", nnf.pad(window_N, (space // 2, space - space // 2)), persistent=False)
        filters_KM = torchaudio.functional.melscale_fbanks(
            bins, fmin_hz, fmax_hz, mel_bands, sample_rate_hz, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("filters", filters_KM, persistent=False)
        self.register_buffer("band_gain", filters_KM.sum(dim=0).clamp(min=1e-8).log(), persistent=False)
        self.register_buffer("spread", _between_bands(filters_KM), persistent=False)
        self.apply(self._initialise)
        # noise alone is a fair first guess of foley: begin there, the network's own spectrum 26 dB below
        with torch.no_grad():
            self.head.bias[:bins] = -3.0

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            assert module.bias is not None
            nn.init.zeros_(module.bias)

    def apply_weight_norm(self) -> None:
        """Nothing: its layer norms do that work. Here so that both kinds train alike."""

    def remove_weight_norm(self) -> None:
        """Nothing, likewise."""

    def forward(self, log_mel_BFM: Tensor) -> Tensor:
        """log_mel_BFM -> wave_BT."""
        hidden_BCF = self.embed(log_mel_BFM.transpose(1, 2))
        hidden_BCF = self.norm_in(hidden_BCF.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            hidden_BCF = block(hidden_BCF)
        with torch.autocast(hidden_BCF.device.type, enabled=False):  # in bfloat16 phases would be off by 1 %
            head_BFK = self.head(self.norm_out(hidden_BCF.transpose(1, 2).to(self.head.weight.dtype)))
            tone_BFK, phase_BFK, noise_BFK = head_BFK.float().chunk(3, dim=2)  # no FFT in half precision
            prior_BFK = self._prior(log_mel_BFM.float())
            spectrum_BFK = torch.polar((prior_BFK + tone_BFK).exp().clamp(max=MAX_MAGNITUDE), phase_BFK)
            noise_level_BFK = (prior_BFK + noise_BFK).exp().clamp(max=MAX_MAGNITUDE)
            spectrum_BFK = spectrum_BFK + noise_level_BFK * self._white(len(log_mel_BFM), log_mel_BFM.shape[1])
            wave_BT = self._overlap_add(torch.fft.irfft(spectrum_BFK, n=self.n_fft, dim=2))
            return wave_BT if self.training else self._matched(wave_BT, log_mel_BFM.float())

    def _prior(self, log_mel_BFM: Tensor) -> Tensor:
        """Log-magnitudes (B, F, K) that the mel shows; a bin above the last band is as loud as that band."""
        prior_BFK: Tensor = (log_mel_BFM - self.band_gain.float()) @ self.spread.float()
        return prior_BFK

    def _matched(self, wave_BT: Tensor, log_mel_BFM: Tensor) -> Tensor:
        """The wave with each band of each frame brought, in a few rounds, to the level that the mel asks for; phases stay.

        Analysis by synthesis, as Griffin-Lim does it for phases: overlapping frames pull at one another, hence the rounds.
        """
        left = (self.n_fft - self.hop) // 2
        right = self.n_fft - self.hop - left
        if wave_BT.shape[1] <= right:  # too short to mirror, as LogMel does
            return wave_BT
        for _ in range(MATCHES):
            padded_BT = nnf.pad(wave_BT[:, None], (left, right), mode="reflect")[:, 0]
            spectrum_BFK = torch.fft.rfft(padded_BT.unfold(1, self.n_fft, self.hop) * self.window.float(), dim=2)
            found_BFM = (spectrum_BFK.abs() @ self.filters.float()).clamp(min=MEL_FLOOR).log()
            gain_BFK = (MATCH_RATE * (log_mel_BFM - found_BFM).clamp(-3, 3)) @ self.spread.float()
            wave_BT = self._overlap_add(torch.fft.irfft(spectrum_BFK * gain_BFK.exp(), n=self.n_fft, dim=2))
        return wave_BT

    def _white(self, rows: int, frames: int) -> Tensor:
        """The spectrum (B, F, K) of white noise at unit power: drawn anew in training, otherwise (1, F, K), always the same."""
        samples = (frames - 1) * self.hop + self.n_fft
        if self.training:
            noise_BT = torch.randn(rows, samples, device=self.window.device)
        else:
            noise_BT = torch.randn(1, samples, generator=torch.Generator().manual_seed(0)).to(self.window.device)
        window_N = self.window.float()
        framed_BFN = noise_BT.unfold(1, self.n_fft, self.hop) * (window_N / window_N.square().sum().sqrt())
        white_BFK: Tensor = torch.fft.rfft(framed_BFN, dim=2)
        return white_BFK

    def _overlap_add(self, frames_BFN: Tensor) -> Tensor:
        """Inverse STFT with the padding of LogMel ("same"): frame f is centred on sample (f + 1/2) * hop.

        torch.istft has only frames centred on f * hop, which gives one frame too many.
        """
        frames = frames_BFN.shape[1]
        start = (self.n_fft - self.hop) // 2
        keep = slice(start, start + frames * self.hop)
        wave_BT: Tensor = self._add((frames_BFN * self.window).transpose(1, 2))[:, keep]
        weight_1T = self._add((self.window**2)[None, :, None].expand(1, -1, frames))[:, keep]
        return wave_BT / weight_1T

    def _add(self, frames_BNF: Tensor) -> Tensor:
        """Frames laid one hop after another and added up: wave_BT, with the padding still on."""
        samples = (frames_BNF.shape[2] - 1) * self.hop + self.n_fft
        return nnf.fold(frames_BNF, (1, samples), kernel_size=(1, self.n_fft), stride=(1, self.hop))[:, 0, 0]


def _between_bands(filters_KM: Tensor) -> Tensor:
    """(M, K): how much of each band's level a bin takes, linear between the bands' centres, constant beyond the outer ones."""
    bins, bands = filters_KM.shape
    bin_K = torch.arange(bins, dtype=torch.float32)
    centre_M = (filters_KM * bin_K[:, None]).sum(dim=0) / filters_KM.sum(dim=0).clamp(min=1e-8)
    right_K = torch.searchsorted(centre_M.contiguous(), bin_K).clamp(1, bands - 1)
    left_M = centre_M[right_K - 1]
    share_K = ((bin_K - left_M) / (centre_M[right_K] - left_M).clamp(min=1e-8)).clamp(0, 1)
    spread_MK = torch.zeros(bands, bins)
    spread_MK[right_K - 1, torch.arange(bins)] = 1 - share_K
    spread_MK[right_K, torch.arange(bins)] = share_K
    return spread_MK


def build_vocoder(config: ModelConfig) -> HifiGan | IstftVocoder:
    """A vocoder of that configuration with fresh weights, plain (without weight norm)."""
    audio, vocoder = config.audio, config.vocoder
    if vocoder.kind == "istft":
        istft: IstftVocoder = IstftVocoder(
            sample_rate_hz=audio.sample_rate_hz,
            n_fft=audio.n_fft,
            win_samples=audio.win_samples,
            hop_samples=audio.hop_samples,
            mel_bands=audio.mel_bands,
            fmin_hz=audio.fmin_hz,
            fmax_hz=audio.fmax_hz,
            channels=vocoder.channels,
            layers=vocoder.layers,
        )
        return istft
    hifigan: HifiGan = HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=audio.mel_bands,
            sampling_rate=audio.sample_rate_hz,
            upsample_initial_channel=vocoder.channels,
            upsample_rates=list(vocoder.upsample_rates),
            upsample_kernel_sizes=list(vocoder.upsample_kernels),
            resblock_kernel_sizes=list(vocoder.resblock_kernels),
            resblock_dilation_sizes=[[1, 3, 5] for _ in vocoder.resblock_kernels],
            normalize_before=False,
        )
    )
    # transformers draws all weights from N(0, 0.01): the wave starts at 1e-6, below the mel floor, where the mel loss has no
    # gradient, and stays there. The original names the same N(0, 0.01), but weight norm undoes it: torch's own is what it used.
    for module in hifigan.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            module.reset_parameters()
    return hifigan


def load_vocoder(folder: Path, audio: AudioSpec | None = None, safetensors: bool = True) -> HifiGan | IstftVocoder:
    """The vocoder saved in that folder (ours, or the vocoder/ of a published AudioLDM folder), ready for inference.

    Raises ModelError when config.json or the safetensors are missing, of an unknown kind, incomplete or do not fit each
    other, or when the vocoder does not speak `audio`. Never downloads, never unpickles; `safetensors` False (at an import) also
    takes a .bin of weights alone.
    """
    try:
        stored = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} is no vocoder folder: config.json cannot be read ({error})") from None
    disable_progress_bar()  # transformers' own, over the weights
    kind: Any
    if stored.get("model_type") == "speecht5_hifigan":
        kind = HifiGan
    elif stored.get("_class_name") == "IstftVocoder":
        kind = IstftVocoder
    else:
        raise ModelError(
            f"{folder}/config.json is of no known vocoder (model_type {stored.get('model_type')!r}, _class_name "
            f"{stored.get('_class_name')!r}); expected speecht5_hifigan or IstftVocoder"
        )
    try:
        loaded = kind.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True if safetensors else None, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the vocoder in {folder} cannot be loaded: {error}") from error
    vocoder: HifiGan | IstftVocoder = loaded[0].eval()
    report: dict[str, Any] = loaded[1]
    # both libraries fill what a file lacks with random numbers; mean and scale matter only where they are used
    missing = set(report["missing_keys"]) - (set() if stored.get("normalize_before") else {"mean", "scale"})
    if missing or report["unexpected_keys"]:
        raise ModelError(
            f"the weights in {folder} do not fit its config.json: missing {sorted(missing)[:4]}, "
            f"unexpected {sorted(report['unexpected_keys'])[:4]}"
        )
    if audio is not None:
        _check_fit(vocoder, audio, folder)
    return vocoder


def _check_fit(vocoder: HifiGan | IstftVocoder, audio: AudioSpec, folder: Path) -> None:
    config = vocoder.config
    if isinstance(vocoder, HifiGan):
        hop = math.prod(config.upsample_rates)
        seen = {"sample_rate_hz": config.sampling_rate, "mel_bands": config.model_in_dim, "hop_samples": hop}
    else:
        seen = {key: config[key] for key in AUDIO_KEYS}
    wrong = [f"{key} is {value}, not {getattr(audio, key)}" for key, value in seen.items() if value != getattr(audio, key)]
    if wrong:
        raise ModelError(f"the vocoder in {folder} does not fit the model's audio: {'; '.join(wrong)}")
