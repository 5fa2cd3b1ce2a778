"""latent -> mel -> wave: the VAE's decoder, the vocoder, and the exact length that was asked for."""

from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from foley_ray.audio.wave import fade_edges, fit
from foley_ray.checkpoint import load_part, read_info
from foley_ray.columns import DURATION_S, LATENT, LOOP, WAVE, Batch, ragged, require
from foley_ray.models.vae import decode

FADE_S = 0.005
"""A clip ends within a few milliseconds of where the latent does: a ramp this short is unheard but leaves no click."""

LOOP_CONTEXT = 16
"""Latent frames of its other end that a loop is decoded with on either side, and that are cut off again."""


class VocodeStage:
    """Latents of one length go through the decoder together."""

    requires = (LATENT, DURATION_S)
    provides = (WAVE,)

    def __init__(self, model: Path, device: str = "cpu", max_rows: int = 8):
        info = read_info(model, needs=("vae", "vocoder"))
        self.spec = info.model.audio
        self.latent_scale = info.latent_scale
        self.device = torch.device(device)
        self.max_rows = max_rows
        self.vae = load_part(model, "vae").to(self.device)
        self.vocoder = load_part(model, "vocoder").to(self.device)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Batch:
        """Adds waves (T,) within -1..1, exactly `duration_s` long, or for a loop the whole latent frames of it."""
        rows = require(batch, self.requires, "vocode")
        loops = list(batch.get(LOOP.name, [False] * rows))
        latents = [
            _round(latent, LOOP_CONTEXT) if loop else latent for latent, loop in zip(batch[LATENT.name], loops, strict=True)
        ]
        waves: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * rows
        by_length = sorted(range(rows), key=lambda row: latents[row].shape)
        for _, group in groupby(by_length, key=lambda row: latents[row].shape):
            members = list(group)
            for start in range(0, len(members), self.max_rows):
                chosen = members[start : start + self.max_rows]
                wave_BT = self.decode(torch.from_numpy(np.stack([latents[row] for row in chosen])))
                for row, wave_T in zip(chosen, wave_BT.cpu().numpy(), strict=True):
                    duration_s = float(batch[DURATION_S.name][row])
                    wave_T = np.clip(wave_T, -1.0, 1.0)
                    if loops[row]:
                        waves[row] = _close(wave_T, self.spec.loop_samples(duration_s), self.spec.latent_samples)
                        continue
                    samples = self.spec.samples(duration_s)
                    waves[row] = fit(fade_edges(wave_T[:samples], round(FADE_S * self.spec.sample_rate_hz)), samples)
        return {**batch, WAVE.name: ragged(waves)}

    def decode(self, latent_BCWH: torch.Tensor) -> torch.Tensor:
        """(B, C, W, H) in the diffusion model's scale -> wave (B, T) of whole latent frames."""
        wave_BT: torch.Tensor = self.vocoder(decode(self.vae, latent_BCWH.to(self.device) / self.latent_scale))
        return wave_BT


def _close(wave_T: np.ndarray, samples: int, frame_samples: int) -> np.ndarray:
    """The `samples` between a loop's contexts, beginning as the sound goes on after its end.

    The context after the end is the beginning once more, but not to the sample: a vocoder's noise is another there. So the
    first latent frame fades from the one into the other.
    """
    start = LOOP_CONTEXT * frame_samples
    loop_T = wave_T[start : start + samples].copy()
    onward_T = wave_T[start + samples : start + samples + frame_samples]
    fade_T = np.linspace(0.0, 1.0, frame_samples, endpoint=False, dtype=np.float32)
    loop_T[:frame_samples] = fade_T * loop_T[:frame_samples] + (1 - fade_T) * onward_T
    return loop_T


def _round(latent_CWH: np.ndarray, context: int) -> np.ndarray:
    """A circular latent with `context` frames of it repeated on either side."""
    return latent_CWH[:, np.arange(-context, latent_CWH.shape[1] + context) % latent_CWH.shape[1]]
