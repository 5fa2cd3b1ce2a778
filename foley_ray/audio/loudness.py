"""Loudness after ITU-R BS.1770-4 and EBU Tech 3341, of mono sound at 48 kHz, and the true peak.

A mono file is one channel of weight 1: a full-scale 997 Hz sine has -3.01 LUFS.
"""

from typing import NamedTuple

import numpy as np
import soxr
from scipy.signal import lfilter

RATE_HZ = 48_000
STEP_SAMPLES = RATE_HZ // 10
"""Windows start every 100 ms: momentary ones are 400 ms long, short-term ones 3 s."""

# BS.1770-4, tables 1 and 2: the head as a sphere (high shelf), then the low-frequency curve (high pass), at 48 kHz
_SHELF = ([1.53512485958697, -2.69169618940638, 1.19839281085285], [1.0, -1.69065929318241, 0.73248077421585])
_HIGH_PASS = ([1.0, -2.0, 1.0], [1.0, -1.99004745483398, 0.99007225036621])


class Loudness(NamedTuple):
    """None where the sound is too short or too quiet to have one."""

    integrated_lufs: float | None
    max_momentary_lufs: float | None
    max_short_term_lufs: float | None
    true_peak_dbtp: float | None


def measure(wave_T: np.ndarray) -> Loudness:
    """Of a mono wave at 48 kHz; a value needs a whole window (400 ms; 3 s for short-term)."""
    weighted_T = lfilter(*_HIGH_PASS, lfilter(*_SHELF, np.asarray(wave_T, dtype=np.float64)))
    steps = len(weighted_T) // STEP_SAMPLES
    power_S = np.square(weighted_T[: steps * STEP_SAMPLES]).reshape(steps, STEP_SAMPLES).mean(axis=1)
    momentary = _windows(power_S, 4)
    return Loudness(
        _rounded(_gated(momentary)),
        _rounded(max(_lufs(momentary), default=-np.inf)),
        _rounded(max(_lufs(_windows(power_S, 30)), default=-np.inf)),
        _rounded(20 * np.log10(max(true_peak(wave_T), 1e-12))) if np.any(wave_T) else None,
    )


def true_peak(wave_T: np.ndarray) -> float:
    """The highest level between the samples too: 4 times oversampled, as BS.1770-4 asks of 48 kHz."""
    if len(wave_T) == 0:
        return 0.0
    quiet = np.zeros(64)  # the resampler's ends: a wave that starts at full level rings
    fine = soxr.resample(np.concatenate([quiet, np.asarray(wave_T, dtype=np.float64), quiet]), 1, 4, quality="HQ")
    return float(max(np.abs(fine).max(), np.abs(wave_T).max()))


def _windows(power_S: np.ndarray, steps: int) -> np.ndarray:
    if len(power_S) < steps:
        return np.zeros(0)
    return np.convolve(power_S, np.full(steps, 1 / steps), mode="valid")


def _lufs(power: np.ndarray) -> np.ndarray:
    return np.asarray(-0.691 + 10 * np.log10(np.maximum(power, 1e-20)))


def _gated(power: np.ndarray) -> float:
    """Windows above -70 LUFS, and of those the ones less than 10 LU below their mean."""
    heard = power[_lufs(power) > -70]
    if len(heard):
        heard = heard[_lufs(heard) > _lufs(heard.mean()) - 10]
    return float(_lufs(heard.mean())) if len(heard) else -np.inf


def _rounded(value: float) -> float | None:
    return round(float(value), 2) if value > -100 else None
