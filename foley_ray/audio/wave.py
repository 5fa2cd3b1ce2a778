"""Waves on the host: resampling, levels, crops and edges, as pure numpy functions on float32 mono arrays.

Randomness comes in as a generator, so that a caller can tie it to a row or a clip.
"""

import numpy as np
import soxr

TRAINING_PEAK = 0.5
"""Peak of a training wave (system.md A.2): half scale leaves headroom for mixing and for the vocoder's overshoot."""


def to_mono(wave: np.ndarray) -> np.ndarray:
    """(T,) or (T, channels) -> (T,) float32, the mean of the channels."""
    wave = np.asarray(wave, dtype=np.float32)
    return wave if wave.ndim == 1 else wave.mean(axis=1, dtype=np.float32)


def resample(wave_T: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Change the sample rate with soxr's high quality; returns the input itself when the rates agree."""
    if from_hz == to_hz:
        return wave_T
    return np.asarray(soxr.resample(wave_T, from_hz, to_hz, quality="HQ"), dtype=np.float32)


def level(wave_T: np.ndarray, peak: float = TRAINING_PEAK) -> np.ndarray:
    """Remove the mean and scale to a peak, as the parent system does. Silence stays silence."""
    out_T = np.subtract(wave_T, np.mean(wave_T, dtype=np.float32), dtype=np.float32)
    loudest = float(max(np.max(out_T, initial=0.0), -np.min(out_T, initial=0.0)))
    if loudest > 1e-6:
        out_T *= np.float32(peak / loudest)
    return out_T


def fit(wave_T: np.ndarray, samples: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Exactly `samples` long: a crop if longer, zeros around it if shorter. `rng` places it; without one, at the start."""
    offset = int(rng.integers(abs(len(wave_T) - samples) + 1)) if rng is not None else 0
    if len(wave_T) >= samples:
        return wave_T[offset : offset + samples]
    out_T = np.zeros(samples, wave_T.dtype)
    out_T[offset : offset + len(wave_T)] = wave_T
    return out_T


def repeat_to(wave_T: np.ndarray, samples: int) -> np.ndarray:
    """Repeat a short wave until it fills `samples` (LAION-CLAP's repeatpad); a longer one is cut at the end.

    What remains after whole repetitions is zeros, as in laion-clap.
    """
    if len(wave_T) >= samples or len(wave_T) == 0:
        return fit(wave_T, samples)
    return fit(np.tile(wave_T, samples // len(wave_T)), samples)


def change_speed(wave_T: np.ndarray, factor: float) -> np.ndarray:
    """Play faster (factor > 1: shorter and higher) or slower, like tape."""
    if factor == 1.0:
        return wave_T
    return np.asarray(soxr.resample(wave_T, factor, 1.0, quality="MQ"), dtype=np.float32)


def fade_edges(wave_T: np.ndarray, fade_samples: int) -> np.ndarray:
    """Raised-cosine ramps at both ends, so that a clip neither starts nor ends with a click."""
    fade_samples = min(fade_samples, len(wave_T) // 2)
    if fade_samples == 0:
        return wave_T
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.arange(fade_samples, dtype=np.float32) / fade_samples)
    out = wave_T.copy()
    out[:fade_samples] *= ramp
    out[-fade_samples:] *= ramp[::-1]
    return out
