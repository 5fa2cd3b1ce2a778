"""From a recording to a training crop: level, augmentation, length. Pure numpy; all randomness comes from the caller's rng.

Small sets need it: DCASE's own development set has 5 hours, a studio's folder may have ten files (system.md A.2 lists what the
parent system does: mean and peak normalisation, random crop, zero padding at a random offset, mixing with Beta(5, 5)).
"""

from collections.abc import Callable

import numpy as np

from foley_ray.audio.wave import TRAINING_PEAK, change_speed, fit, level
from foley_ray.config import Augmentation
from foley_ray.data.captions import Manner

SHORT_S = 1.0
"""A recording below this is one event (a key press, a step), of which a clip of its class normally holds several."""

ROOM_DECAY_S = (0.2, 2.5)
"""From a small room's 60 dB of decay to a valley's: a dry shot of 0.4 s says nothing of how shots mostly sound."""
OUTDOORS_DECAY_S = (0.8, 3.0)
OUTDOORS_CUTOFF_HZ = (800.0, 4000.0)
ECHO_S = (0.05, 0.6)
"""From a wall across the street to the edge of the wood."""
SERIES_PACE_S = (0.1, 1.2)
TILT_PIVOT_HZ = 1000.0
TILT_OCTAVES = 3.0
TILT_PADDING = 4096


def training_crop(
    wave_T: np.ndarray,
    samples: int,
    sample_rate_hz: int,
    rng: np.random.Generator,
    augment: Augmentation | None,
    another: Callable[[], np.ndarray] | None = None,
    class_name: str = "",
    manner: Manner = "",
) -> np.ndarray:
    """A recording (T,) as a crop of exactly `samples`, float32, peak 0.5 (lower with augmentation's random gain).

    `another` gives a second recording of the same class, for mixing and for sequences of short events; it is called at most a
    few times, and only with `augment`. `manner` says whether to make a series of this recording or to leave it alone.
    """
    wave_T = level(wave_T)
    if augment:
        wave_T = _vary(wave_T, rng, augment.speed)
        if manner:
            another = None
        if manner == "series":
            wave_T = _even_series(wave_T, samples, sample_rate_hz, rng)
        elif len(wave_T) < SHORT_S * sample_rate_hz and another is not None and rng.random() < 0.75:
            wave_T = _sequence(wave_T, samples, sample_rate_hz, rng, another, augment.speed)
        elif another is not None and rng.random() < augment.mix_share:
            share = np.float32(rng.beta(5, 5))
            other_T = fit(_vary(level(another()), rng, augment.speed), len(wave_T), rng)
            wave_T = share * wave_T + (1 - share) * other_T
        outdoors_share = augment.outdoors.get(class_name)
        if outdoors_share is not None and rng.random() < outdoors_share:
            wave_T = _outdoors(wave_T, sample_rate_hz, rng)[: max(samples, len(wave_T))]  # a crop starts before its echo does
        elif len(wave_T) <= samples and rng.random() < augment.rooms.get(class_name, augment.room_share):
            wave_T = _room(wave_T, sample_rate_hz, rng)
        if augment.tilt_db and rng.random() < 0.5:
            wave_T = _tilt(wave_T, sample_rate_hz, float(rng.uniform(-augment.tilt_db, augment.tilt_db)))
    crop_T = level(fit(wave_T, samples, rng))
    if augment:
        crop_T = crop_T * np.float32(10 ** (-rng.uniform(0, augment.gain_db) / 20))
    return np.ascontiguousarray(crop_T, dtype=np.float32)


def _vary(wave_T: np.ndarray, rng: np.random.Generator, speed: float) -> np.ndarray:
    """Half of the time, another speed (pitch moves along); a random polarity always."""
    if rng.random() < 0.5:
        wave_T = change_speed(wave_T, float(np.exp(rng.uniform(-speed, speed))))
    return wave_T if rng.random() < 0.5 else -wave_T


def _sequence(
    first_T: np.ndarray,
    samples: int,
    sample_rate_hz: int,
    rng: np.random.Generator,
    another: Callable[[], np.ndarray],
    speed: float,
) -> np.ndarray:
    """Short events one after another at a slightly irregular pace: half of the time up to four, otherwise all clip long."""
    out_T = np.zeros(samples, dtype=np.float32)
    sources = [first_T] + [level(another()) for _ in range(int(rng.integers(0, 3)))]
    pace_s = max(float(rng.uniform(0.12, 0.7)), 0.6 * len(first_T) / sample_rate_hz)
    at_s = float(rng.uniform(0.0, 0.4))
    left = int(rng.integers(1, 5)) if rng.random() < 0.5 else samples
    while left and (start := int(at_s * sample_rate_hz)) < samples:
        left -= 1
        event_T = _vary(sources[int(rng.integers(len(sources)))], rng, speed)[: samples - start]
        out_T[start : start + len(event_T)] += event_T * np.float32(rng.uniform(0.4, 1.0))
        at_s += pace_s * float(rng.uniform(0.7, 1.4))
    peak = float(np.max(np.abs(out_T), initial=0.0))
    return out_T * np.float32(TRAINING_PEAK / peak) if peak > 0 else out_T


def _even_series(event_T: np.ndarray, samples: int, sample_rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Two to eight times the same event, as a gun or a clock repeats it: an even pace, from a burst's to a step's."""
    out_T = np.zeros(samples, dtype=np.float32)
    pace_s = float(np.exp(rng.uniform(*np.log(SERIES_PACE_S))))
    at_s = float(rng.uniform(0.0, 0.6))
    for _ in range(int(rng.integers(2, 9))):
        if (start := int(at_s * sample_rate_hz)) >= samples:
            break
        heard_T = event_T[: samples - start]
        out_T[start : start + len(heard_T)] += heard_T * np.float32(rng.uniform(0.7, 1.0))
        at_s += pace_s * float(rng.uniform(0.85, 1.15))
    return level(out_T)


def _outdoors(wave_T: np.ndarray, sample_rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """A recording as heard across open ground, so longer: a long dark tail, 0 to 12 dB below it, and up to three echoes."""
    import scipy.signal

    tail_T = _decaying_noise(float(rng.uniform(*OUTDOORS_DECAY_S)), sample_rate_hz, rng)
    cutoff_hz = float(np.exp(rng.uniform(*np.log(OUTDOORS_CUTOFF_HZ))))
    tail_T = scipy.signal.lfilter(*scipy.signal.butter(1, cutoff_hz, fs=sample_rate_hz), tail_T)
    loudest = float(np.abs(tail_T).max())
    for _ in range(int(rng.integers(0, 4))):
        echo_s = rng.uniform(*ECHO_S)
        tail_T[int(echo_s * sample_rate_hz)] += rng.choice([-1, 1]) * rng.uniform(0.6, 2.4) * loudest
    return _with_tail(wave_T, tail_T, below_db=rng.uniform(0, 12))


def _room(wave_T: np.ndarray, sample_rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """A recording with a room's tail after it, so longer: noise that decays and darkens, 0 to 20 dB below the sound itself."""
    import scipy.signal  # a second, which every process of a run that augments nothing would wait for

    tail_T = _decaying_noise(float(np.exp(rng.uniform(*np.log(ROOM_DECAY_S)))), sample_rate_hz, rng)
    dullness = rng.uniform(0.0, 0.8)  # one-pole low-pass
    tail_T = scipy.signal.lfilter([1 - dullness], [1, -dullness], tail_T)
    return _with_tail(wave_T, tail_T, below_db=rng.uniform(0, 20))


def _decaying_noise(decay_s: float, sample_rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """White noise that falls by 60 dB in `decay_s`, and ends there."""
    length = int(decay_s * sample_rate_hz)
    return rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)


def _with_tail(wave_T: np.ndarray, tail_T: np.ndarray, below_db: float) -> np.ndarray:
    """A recording and its echo by an impulse response (K,), in all so much quieter than itself: K - 1 samples longer."""
    import scipy.signal

    tail_T = tail_T * (10 ** (-below_db / 20) / max(float(np.linalg.norm(tail_T)), 1e-9))
    wet_T = scipy.signal.fftconvolve(wave_T, tail_T).astype(np.float32)
    wet_T[: len(wave_T)] += wave_T
    return level(wet_T)


def _tilt(wave_T: np.ndarray, sample_rate_hz: int, tilt_db: float) -> np.ndarray:
    """Another microphone or distance: a straight line over octaves, 0 dB at 1 kHz, level beyond three octaves either way."""
    length = len(wave_T) + TILT_PADDING  # a transform is a circle: without, what starts abruptly would click at its end
    hz = np.fft.rfftfreq(length, 1 / sample_rate_hz)
    octaves = np.clip(np.log2(np.maximum(hz, 1.0) / TILT_PIVOT_HZ), -TILT_OCTAVES, TILT_OCTAVES)
    spectrum = np.fft.rfft(wave_T, length) * 10 ** (tilt_db * octaves / TILT_OCTAVES / 20)
    return level(np.fft.irfft(spectrum, length)[: len(wave_T)].astype(np.float32))
