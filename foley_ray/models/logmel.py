"""The front-end of laion-clap's audio towers: torchlibrosa's two layers, on torch's own FFT and torchaudio's mel filters.

torchlibrosa computes them as convolutions whose matrices librosa makes, and importing librosa (with numba, for a window and a
filter bank) took a second of every start. The numbers are the same (tests/models/test_logmel.py), and nothing of these layers
is in a state dict: all of it follows from the settings. Arguments that laion-clap's towers set always alike are not read.
"""

from typing import Any

import torch
import torchaudio
from torch import Tensor, nn


class Spectrogram(nn.Module):
    """Waves (B, T) -> power spectra (B, 1, frames, n_fft // 2 + 1), centred, Hann window; torchlibrosa.stft.Spectrogram."""

    window: Tensor

    def __init__(self, n_fft: int, hop_length: int, win_length: int, pad_mode: str, **always: Any):
        super().__init__()
        self.n_fft, self.hop_length, self.pad_mode = n_fft, hop_length, pad_mode
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Power spectra of the whole batch."""
        spectrum_BFN = torch.stft(
            wave_BT, self.n_fft, self.hop_length, window=self.window, pad_mode=self.pad_mode, return_complex=True
        )
        power_BFN = spectrum_BFN.real.square() + spectrum_BFN.imag.square()
        return power_BFN.transpose(1, 2)[:, None]


class LogmelFilterBank(nn.Module):
    """Power spectra (..., n_fft // 2 + 1) -> mel bands (..., n_mels) in dB, none below `amin`; Slaney's scale and area."""

    filters_FM: Tensor

    def __init__(self, sr: int, n_fft: int, n_mels: int, fmin: float, fmax: float, amin: float, **always: Any):
        super().__init__()
        filters_FM = torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, fmin, fmax, n_mels, sr, "slaney", "slaney")
        self.amin = amin
        self.register_buffer("filters_FM", filters_FM, persistent=False)

    def forward(self, power: Tensor) -> Tensor:
        """Mel bands of power spectra."""
        return 10 * (power @ self.filters_FM).clamp(min=self.amin).log10()
