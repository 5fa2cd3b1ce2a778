"""A chosen wave made fit for delivery: 48 kHz, trimmed, without clicks, its true peak at a ceiling; and its picture."""

import base64
from itertools import pairwise

import numpy as np
import soxr

from foley_ray.audio.loudness import RATE_HZ, true_peak
from foley_ray.library.plan import Finish

LEAD_S, TAIL_S = 0.005, 0.05
"""Of what is below the trim level this much stays: an attack's foot, a reverb's end."""
PICTURE = 2
"""Version of the form in which `picture` gives it."""
PICTURE_FRAMES, PICTURE_BANDS = 96, 32


def finish(wave_T: np.ndarray, rate_hz: int, settings: Finish, loop: bool = False) -> np.ndarray:
    """(T,) at the model's rate -> (T,) float64 at 48 kHz. A loop keeps its length and its ends, which meet."""
    if loop:
        wave_T = _resample_round(wave_T, rate_hz)
    else:
        wave_T = soxr.resample(np.asarray(wave_T, dtype=np.float64), rate_hz, RATE_HZ, quality="VHQ")
        wave_T = fade(trim(wave_T, settings.trim_db), settings.fade_in_ms, settings.fade_out_ms)
    # sounds may be tiled into loops: the peak is then also that of the seam
    loudest = true_peak(np.tile(wave_T, 2) if loop else wave_T)
    return wave_T * (10 ** (settings.ceiling_dbtp / 20) / loudest) if loudest > 1e-6 else wave_T


def trim(wave_T: np.ndarray, below_peak_db: float | None) -> np.ndarray:
    """Without the ends that are that far below the peak, but for a short lead and tail."""
    if below_peak_db is None or not np.any(wave_T):
        return wave_T
    loud = np.flatnonzero(np.abs(wave_T) > np.abs(wave_T).max() * 10 ** (below_peak_db / 20))
    start, end = loud[0] - round(LEAD_S * RATE_HZ), loud[-1] + 1 + round(TAIL_S * RATE_HZ)
    return wave_T[max(0, start) : end]


def fade(wave_T: np.ndarray, in_ms: float, out_ms: float) -> np.ndarray:
    """Raised-cosine ramps, each at most half of the sound."""
    wave_T = wave_T.copy()
    for ms, end in ((in_ms, wave_T), (out_ms, wave_T[::-1])):
        samples = min(round(ms * RATE_HZ / 1000), len(wave_T) // 2)
        end[:samples] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(samples) / max(samples, 1))
    return wave_T


def _resample_round(wave_T: np.ndarray, rate_hz: int) -> np.ndarray:
    """A loop, resampled as the endless sound that it is; its length becomes the nearest whole number of samples."""
    samples, wanted = len(wave_T), round(len(wave_T) * RATE_HZ / rate_hz)
    three_T = soxr.resample(np.tile(np.asarray(wave_T, dtype=np.float64), 3), samples, wanted, quality="VHQ")
    return np.asarray(three_T[wanted : 2 * wanted])


def picture(wave_T: np.ndarray, loop: bool = False) -> dict[str, str]:
    """Waveform and spectrogram as small as a page of thousands needs them: bytes in base64, frame by frame.

    `peaks`: the highest level of each frame, 255 is full scale. `levels`: bands from 50 Hz to 20 kHz, low to high, 15 is the
    loudest and 0 is 70 dB below it; two in a byte, the lower band in its upper half.
    """
    edges = np.linspace(0, len(wave_T), PICTURE_FRAMES + 1).astype(int)
    peaks = [np.abs(wave_T[a:b]).max(initial=0.0) for a, b in pairwise(edges)]
    size = 2048
    padded = np.pad(wave_T, (size // 2, size // 2), mode="wrap" if loop else "constant")
    frames = np.stack([padded[at : at + size] for at in np.linspace(0, len(wave_T), PICTURE_FRAMES).astype(int)])
    power_FK = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)) ** 2
    bins = np.geomspace(50, 20_000, PICTURE_BANDS + 1) * size / RATE_HZ
    power_FM = np.stack([power_FK[:, int(a) : max(int(b), int(a) + 1)].mean(axis=1) for a, b in pairwise(bins)], axis=1)
    level_FM = 10 * np.log10(np.maximum(power_FM, 1e-12))
    shown_FM = ((level_FM - level_FM.max()) / 70 + 1).clip(0, 1)
    level_FM = np.rint(shown_FM * 15).astype(np.uint8)
    peak_F = np.rint(np.clip(peaks, 0, 1) * 255).astype(np.uint8)
    return {"peaks": _base64(peak_F), "levels": _base64(level_FM[:, ::2] << 4 | level_FM[:, 1::2])}


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()
