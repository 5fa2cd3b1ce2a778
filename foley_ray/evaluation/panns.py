"""PANNs' Cnn14 (arXiv 1912.10211): a sound as the 2048 values behind its first fully connected layer and a ReLU.

The network is laion-clap's copy of it, which without fusion computes the same `embedding` as qiuqiangkong/audioset_tagging_cnn
(what it adds for CLAP, a fine-grained embedding, goes unused) and keeps its names, so the official `model` dictionaries load
strictly. The size of the Fourier matrices in the file says at which rate the network hears:

- Cnn14_mAP=0.431.pth: 32 kHz, windows of 1024 every 320 samples, 50 to 14,000 Hz; SHA-256 0dc499e40e9761ef..., as others pin it
- Cnn14_16k_mAP=0.438.pth: 16 kHz, windows of 512 every 160 samples, 50 to 8,000 Hz; e2ee543a27919542... This is the one of
  gudgud96/frechet-audio-distance and audioldm_eval.

Siblings such as Cnn14_DecisionLevelMax have the same names and shapes: only the digest in the report tells them apart. One
embedding a clip, whatever its length, so FAD pools clips. Clips come at the peak that all clips here have; the originals take
them as they are. Held to names, shapes and an independent forward pass here, never to the published weights.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from foley_ray.errors import ModelError
from foley_ray.interchange.weights import State, fill
from foley_ray.models.laion import FRONT_END, laion

FOURIER = "spectrogram_extractor.stft.conv_real.weight"
RATES_HZ = {1024: 32000, 512: 16000}
"""By the length of the Fourier window."""
FMAX_HZ = {32000: 14000, 16000: 8000}
MAX_CLIPS = 4


class Cnn14(nn.Module):
    """Clips at 32 or 16 kHz -> one embedding a clip. Raises ModelError if the weights are not Cnn14's, naming what differs."""

    least_s = 0.5

    def __init__(self, state: State, what: str):
        super().__init__()
        if FOURIER not in state:
            raise ModelError(f"{what} is no Cnn14: missing {FOURIER}")
        window = state[FOURIER].shape[-1]
        if window not in RATES_HZ:
            raise ModelError(f"{what} hears through a window of {window} samples, and {sorted(RATES_HZ)} are known here")
        self.sample_rate_hz = RATES_HZ[window]
        self.about = f"PANNs' Cnn14 at {self.sample_rate_hz // 1000} kHz, 2048 values after fc1 and ReLU, one embedding a clip"
        self.net: Any = laion().pann_model.Cnn14(
            sample_rate=self.sample_rate_hz,
            window_size=window,
            hop_size=self.sample_rate_hz // 100,
            mel_bins=64,
            fmin=50,
            fmax=FMAX_HZ[self.sample_rate_hz],
            classes_num=527,
        )
        learned = {name: value for name, value in state.items() if not name.startswith(FRONT_END)}
        fill(self.net, learned, what, computed=("num_batches_tracked",))

    @torch.inference_mode()
    def sounds(self, wave_BT: np.ndarray) -> np.ndarray:
        """(B, 1, 2048) of clips of one length, 0.5 s or more."""
        parts = torch.from_numpy(wave_BT).split(MAX_CLIPS)
        return torch.cat([self.net({"waveform": part_BT})["embedding"] for part_BT in parts])[:, None].numpy()
