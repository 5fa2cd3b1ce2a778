"""What the classifier hears: a few hundred numbers that describe a clip's log-mel, whatever its level and wherever it starts.

Sound-texture statistics in the manner of McDermott and Simoncelli (2011), with cepstra, onsets and the shape of the loudest
event. Plain numpy. Shapes: B clips, F frames, M mel bands, A frames' activity, G groups of bands, Q modulation frequencies.
"""

from itertools import pairwise

import numpy as np
from scipy.fft import dct, rfft, rfftfreq

RANGE = 7.0
"""Nepers (61 dB) below the loudest cell all is silence: paddings, noise floors and 16 bit must not tell clips apart."""
ACTIVE = 3.5
"""Frames less than this far (30 dB) below the loudest frame count as sounding."""
MODULATION_HZ = (0.3, 0.7, 1.2, 2.0, 3.0, 4.5, 7.0, 10.0, 15.0, 22.0, 32.0, 43.1)
AROUND_PEAK = (-6, -3, -1, 0, 2, 4, 8, 16, 32)
"""Frames before and after the loudest one: attack and decay."""


def describe(log_mel_BFM: np.ndarray, frame_hz: float) -> np.ndarray:
    """(B, D) of natural-log mel magnitudes, D a function of M alone (912 for 80 bands; M a multiple of 20)."""
    mel_BFM = log_mel_BFM.astype(np.float32)
    mel_BFM = np.maximum(mel_BFM - mel_BFM.max(axis=(1, 2), keepdims=True), -RANGE)
    count, _, bands = mel_BFM.shape
    level_BF = np.log(np.exp(2 * mel_BFM).mean(axis=2)) / 2
    active_BF = (level_BF > level_BF.max(axis=1, keepdims=True) - ACTIVE).astype(np.float32)
    weight_BF = active_BF / active_BF.sum(axis=1, keepdims=True)
    cepstrum_BFM = dct(mel_BFM, axis=2, norm="ortho")
    change_BFM = np.diff(mel_BFM, axis=1)
    twenty_BFG = mel_BFM.reshape(count, -1, 20, bands // 20).mean(axis=3)
    groups = [
        *_mean_and_spread(mel_BFM, weight_BF),
        *_mean_and_spread(cepstrum_BFM[:, :, :24], weight_BF),
        np.einsum("bfm,bf->bm", np.abs(change_BFM), weight_BF[:, 1:]),
        np.maximum(change_BFM, 0).max(axis=1),
        np.quantile(twenty_BFG, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1).transpose(1, 0, 2),
        *_modulation(mel_BFM, level_BF, frame_hz),
        np.log(np.einsum("bfm,bf->bm", np.abs(cepstrum_BFM), weight_BF) + 1e-3)[:, 2:],
        _envelope(level_BF, active_BF),
        *_around_peak(twenty_BFG, level_BF),
    ]
    feature_BD: np.ndarray = np.concatenate([group.reshape(count, -1) for group in groups], axis=1).astype(np.float32)
    return feature_BD


def _mean_and_spread(values_BFX: np.ndarray, weight_BF: np.ndarray) -> list[np.ndarray]:
    """Over the sounding frames."""
    mean_BX = np.einsum("bfx,bf->bx", values_BFX, weight_BF)
    variance_BX = np.einsum("bfx,bf->bx", (values_BFX - mean_BX[:, None]) ** 2, weight_BF)
    return [mean_BX, np.sqrt(variance_BX + 1e-6)]


def _modulation(mel_BFM: np.ndarray, level_BF: np.ndarray, frame_hz: float) -> list[np.ndarray]:
    """How fast ten groups of bands and the whole come and go, and how much they do so together."""
    count, frames, bands = mel_BFM.shape
    tenth_BFG = mel_BFM.reshape(count, frames, 10, bands // 10).mean(axis=3)
    envelope_BFG = np.concatenate([tenth_BFG, level_BF[:, :, None]], axis=2)
    envelope_BFG = envelope_BFG - envelope_BFG.mean(axis=1, keepdims=True)
    size = max(512, frames)
    power_BQG = np.abs(rfft(envelope_BFG * np.hanning(frames)[None, :, None], size, axis=1)) ** 2
    hz_Q = rfftfreq(size, 1 / frame_hz)
    spectrum = []
    for low, high in pairwise(MODULATION_HZ):
        spectrum.append(np.log(power_BQG[:, (hz_Q >= low) & (hz_Q < high)].mean(axis=1) + 1e-3))
    unit_BFG = envelope_BFG / np.sqrt((envelope_BFG**2).mean(axis=1, keepdims=True) + 1e-4)
    together_BGG = unit_BFG.transpose(0, 2, 1) @ unit_BFG / frames
    return [np.stack(spectrum, axis=1), together_BGG[:, *np.triu_indices(together_BGG.shape[1], 1)]]


def _envelope(level_BF: np.ndarray, active_BF: np.ndarray) -> np.ndarray:
    """The level over time in ten numbers: how much of the clip sounds, how even, how sudden."""
    below_BF = level_BF - level_BF.max(axis=1, keepdims=True)
    change_BF = np.diff(level_BF, axis=1)
    steady = [np.quantile(below_BF, q, axis=1) for q in (0.1, 0.5, 0.9)]
    sudden = [change_BF.max(axis=1), change_BF.min(axis=1), (change_BF > 1).sum(axis=1) / 10, np.abs(change_BF).mean(axis=1)]
    return np.stack([active_BF.mean(axis=1), level_BF.std(axis=1), below_BF.mean(axis=1), *sudden, *steady], axis=1)


def _around_peak(twenty_BFG: np.ndarray, level_BF: np.ndarray) -> list[np.ndarray]:
    peak_B = level_BF.argmax(axis=1)
    rows_B = np.arange(len(peak_B))
    return [twenty_BFG[rows_B, np.clip(peak_B + offset, 0, level_BF.shape[1] - 1)] for offset in AROUND_PEAK]
