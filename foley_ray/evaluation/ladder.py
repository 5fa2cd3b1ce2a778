"""The stage ladder: real sounds through ever more of the model, so that the stage that loses a sound can be named.

real -> griffin_lim (no learned part: the floor to beat) -> vocoder -> vae_vocoder (vae_griffin_lim without a vocoder) -> the
whole model. Knows the parts of a model folder, not how they are judged.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foley_ray.audio.mel import LogMel, griffin_lim
from foley_ray.checkpoint import load_part, read_info
from foley_ray.models.vae import decode, encode

MAX_ROWS = 8


class Rung:
    """One way to rebuild clips from their log-mels."""

    def __init__(self, name: str, mel: Callable[[Tensor], Tensor] | None, wave: Callable[[Tensor], Tensor], log_mel: LogMel):
        self.name, self._mel, self._wave, self._log_mel = name, mel, wave, log_mel

    @torch.inference_mode()
    def __call__(self, wave_NT: np.ndarray) -> np.ndarray:
        """(N, T) clips of whole latent frames -> the same, rebuilt, within -1..1."""
        rebuilt = []
        for start in range(0, len(wave_NT), MAX_ROWS):
            mel_BFM = self._log_mel(torch.from_numpy(wave_NT[start : start + MAX_ROWS]))
            wave_BT = self._wave(self._mel(mel_BFM) if self._mel else mel_BFM)
            rebuilt.append(wave_BT.clamp(-1, 1).numpy())
        return np.concatenate(rebuilt) if rebuilt else wave_NT


def rungs(model: Path) -> list[Rung]:
    """The rungs between real and whole that a model folder's parts allow; Griffin-Lim always."""
    info = read_info(model)
    spec = info.model.audio
    log_mel = LogMel(spec)

    def invert(mel_BFM: Tensor) -> Tensor:
        return griffin_lim(mel_BFM, spec)

    found = [Rung("griffin_lim", None, invert, log_mel)]
    vocoder = load_part(model, "vocoder") if "vocoder" in info.parts else None
    if vocoder is not None:
        found.append(Rung("vocoder", None, vocoder, log_mel))
    if "vae" in info.parts:
        vae = load_part(model, "vae")

        def through_vae(mel_BFM: Tensor) -> Tensor:
            return decode(vae, encode(vae, mel_BFM).mode())

        name = "vae_griffin_lim" if vocoder is None else "vae_vocoder"
        found.append(Rung(name, through_vae, vocoder or invert, log_mel))
    return found
