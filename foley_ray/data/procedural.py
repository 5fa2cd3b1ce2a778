"""Procedural foley: recordings made of numpy alone, to try the whole system without downloading anything.

Each maker draws one sound from a random generator: float64 (T,), any level, 0.3 to 3 s. They are caricatures that differ from
class to class as the real sounds do (noise, clicks, decaying modes, pulse trains), which is what tests and a first run need.
"""

import csv
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from foley_ray.data.sources import caption_of
from foley_ray.errors import OutputError

Maker = Callable[[np.random.Generator, int], np.ndarray]

MIN_S, MAX_S = 0.3, 3.0
EVAL_EVERY = 5  # the second of every five recordings of a class goes to eval
AUTHOR, LICENCE = "foley_ray procedural", "CC0 1.0"


def write_recordings(folder: Path, *, count_per_class: int, sample_rate_hz: int = 22050, seed: int = 0) -> Path:
    """Write `count_per_class` WAV files of every class and a metadata.csv, ready for `ingest`; returns `folder`.

    A recording depends on (seed, class, number) alone, so asking for more leaves the first ones as they were. Raises
    OutputError when `folder` cannot be written.
    """
    rows = []
    try:
        for name, maker in MAKERS.items():
            (folder / "clips" / name).mkdir(parents=True, exist_ok=True)
            for number in range(count_per_class):
                wave = _recording(maker, np.random.default_rng([seed, zlib.crc32(name.encode()), number]), sample_rate_hz)
                file = f"clips/{name}/{number:04d}.wav"
                soundfile.write(folder / file, wave, sample_rate_hz, subtype="PCM_16")
                rows.append(
                    {
                        "file": file,
                        "class": name,
                        "caption": caption_of(name),
                        "licence": LICENCE,
                        "split": "eval" if number % EVAL_EVERY == 1 else "train",
                        "duration_s": f"{len(wave) / sample_rate_hz:.3f}",
                        "attribution": AUTHOR,
                        "recording_key": f"procedural:{seed}:{name}:{number}",
                        "sample_rate": sample_rate_hz,
                        "shippable": "yes",
                    }
                )
        with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as text:
            writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["file", "class"])
            writer.writeheader()
            writer.writerows(rows)
    except (OSError, soundfile.SoundFileError) as error:
        raise OutputError(f"cannot write recordings to {folder}: {error}") from None
    return folder


def _recording(maker: Maker, rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """One sound at a level between -14 and -1 dBFS, faded over 3 ms so that it neither starts nor ends with a click."""
    wave = maker(rng, rate_hz)
    fade = np.minimum(1.0, np.arange(len(wave)) / (0.003 * rate_hz))
    wave = wave * fade * fade[::-1]
    level: np.ndarray = wave / np.abs(wave).max() * rng.uniform(0.2, 0.9)
    return level


# ------------------------------------------------------------------------------------------------- what sounds are made of


def noise(rng: np.random.Generator, samples: int, rate_hz: int, low_hz: float, high_hz: float) -> np.ndarray:
    """(samples,): noise between two frequencies, with soft edges of half an octave."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    freqs_hz = np.maximum(np.fft.rfftfreq(samples, 1 / rate_hz), 1.0)
    octaves = np.maximum(np.log2(low_hz / freqs_hz), np.log2(freqs_hz / high_hz))
    return np.fft.irfft(spectrum * np.clip(1 - 2 * octaves, 0, 1), samples)


def ring(rng: np.random.Generator, samples: int, rate_hz: int, modes_hz: np.ndarray, decay_s: float) -> np.ndarray:
    """(samples,): decaying resonances, the high ones dying sooner: what a struck body does."""
    time_s = np.arange(samples) / rate_hz
    wave = np.zeros(samples)
    for mode_hz in modes_hz[modes_hz < 0.45 * rate_hz]:
        decay = decay_s * (modes_hz[0] / mode_hz) ** 0.5
        wave += rng.uniform(0.3, 1) * np.sin(2 * np.pi * (mode_hz * time_s + rng.random())) * np.exp(-time_s / decay)
    return wave


def burst(rng: np.random.Generator, rate_hz: int, low_hz: float, high_hz: float, decay_s: float) -> np.ndarray:
    """(6 decays,): noise that dies away."""
    samples = max(16, int(6 * decay_s * rate_hz))
    wave = noise(rng, samples, rate_hz, low_hz, high_hz)
    wave *= np.exp(-np.arange(samples) / (decay_s * rate_hz))
    return wave


def place(wave: np.ndarray, part: np.ndarray, at: int) -> None:
    """Add `part` to `wave` from sample `at` on, in place; what reaches past the end is lost."""
    room = wave[at : at + len(part)]
    room += part[: len(room)]


def _silence(rng: np.random.Generator, rate_hz: int, shortest_s: float = MIN_S, longest_s: float = MAX_S) -> np.ndarray:
    """(T,): zeros of a random duration, to place things in."""
    return np.zeros(int(rng.uniform(shortest_s, longest_s) * rate_hz))


# ----------------------------------------------------------------------------------------------------------- the classes


def dog_bark(rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """One to four chirps that fall in pitch, harmonics shaped by a mouth that opens, with some breath."""
    wave = _silence(rng, rate_hz, 0.5, 2.0)
    pitch_hz, formant_hz, at = rng.uniform(250, 600), rng.uniform(700, 1500), 0
    while at < len(wave):
        samples = int(rng.uniform(0.12, 0.25) * rate_hz)
        position = np.linspace(0, 1, samples)
        phase = np.cumsum(pitch_hz * (1.3 - 0.6 * position) * (1 + 0.3 * np.sin(np.pi * position))) / rate_hz
        bark = sum(
            np.exp(-(((number * pitch_hz - formant_hz) / 900) ** 2)) * np.sin(2 * np.pi * number * phase)
            for number in range(1, int(0.4 * rate_hz / pitch_hz))
        )
        breath = noise(rng, samples, rate_hz, formant_hz, 2.5 * formant_hz)
        place(wave, (bark + 0.3 * breath) * np.sin(np.pi * position**0.6), at)
        at += samples + int(rng.uniform(0.1, 0.5) * rate_hz)
    return wave


def footstep(rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """Steps in a walking rhythm, each a low heel and, after it, a softer and brighter toe."""
    wave = _silence(rng, rate_hz, 0.6)
    period, bright = rng.uniform(0.35, 0.7), rng.uniform(800, 4000)
    for step_s in np.arange(0.02, len(wave) / rate_hz - 0.1, period):
        at = int((step_s + rng.uniform(0, 0.03)) * rate_hz)
        place(wave, burst(rng, rate_hz, 60, 300, 0.03) * rng.uniform(0.8, 1.2), at)
        place(wave, burst(rng, rate_hz, bright / 2, bright, 0.02) * rng.uniform(0.2, 0.5), at + int(0.08 * rate_hz))
    return wave


def gunshot(rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """A crack, a boom, and the echo of the place."""
    wave = _silence(rng, rate_hz, 0.8)
    place(wave, 3 * burst(rng, rate_hz, 500, 9000, rng.uniform(0.005, 0.02)), 0)
    place(wave, 2 * burst(rng, rate_hz, 40, 400, rng.uniform(0.05, 0.15)), 0)
    place(wave, 0.4 * burst(rng, rate_hz, 100, 2000, rng.uniform(0.2, 0.5)), int(rng.uniform(0.02, 0.1) * rate_hz))
    return wave


def keyboard(rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """Key presses at a typist's pace: a click as the key goes down, a weaker one as it comes up."""
    wave = _silence(rng, rate_hz, 0.5)
    body_hz, at_s = rng.uniform(1500, 3500), 0.01
    while at_s < len(wave) / rate_hz:
        at = int(at_s * rate_hz)
        place(wave, burst(rng, rate_hz, body_hz / 2, 2 * body_hz, 0.006) * rng.uniform(0.6, 1), at)
        place(wave, burst(rng, rate_hz, body_hz, 2.5 * body_hz, 0.004) * 0.4, at + int(rng.uniform(0.05, 0.09) * rate_hz))
        at_s += rng.uniform(0.09, 0.35)
    return wave


def moving_motor_vehicle(rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """A pulse train whose rate drifts with the revs, through an exhaust, over road noise; louder as it passes."""
    wave = _silence(rng, rate_hz, 1.0)
    position = np.linspace(0, 1, len(wave))
    firing_hz = rng.uniform(30, 110) * (1 + rng.uniform(-0.4, 0.4) * position + 0.02 * np.sin(2 * np.pi * 3 * position))
    phase = np.cumsum(firing_hz) / rate_hz
    pulses = np.exp(-((phase % 1.0) * rng.uniform(4, 12)))
    exhaust = np.convolve(pulses - pulses.mean(), burst(rng, rate_hz, 80, 900, 0.01), mode="same")
    road = noise(rng, len(wave), rate_hz, 100, rng.uniform(600, 2000))
    passing = 0.3 + np.exp(-(((position - rng.random()) / 0.3) ** 2))
    wave += (exhaust / exhaust.std() + 0.4 * road / road.std()) * passing
    return wave


def rain(rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """A hiss and, on top of it, drops."""
    wave = _silence(rng, rate_hz, 1.0)
    hiss = noise(rng, len(wave), rate_hz, rng.uniform(500, 1500), rng.uniform(5000, 9000))
    drops = rng.poisson(rng.uniform(20, 150) * len(wave) / rate_hz)
    for at in rng.integers(0, len(wave), drops):
        place(wave, burst(rng, rate_hz, 1000, 7000, rng.uniform(0.002, 0.006)) * rng.exponential(), int(at))
    wave += hiss / hiss.std() * rng.uniform(0.2, 0.6)
    return wave


def sneeze_cough(rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """One to three puffs through a throat: a sharp start, a formant or two, a long breathy end."""
    wave = _silence(rng, rate_hz, 0.4, 1.5)
    throat_hz, at = rng.uniform(400, 900), 0
    while at < len(wave):
        place(wave, burst(rng, rate_hz, throat_hz / 2, 1.5 * throat_hz, rng.uniform(0.04, 0.08)), at)
        place(wave, 0.6 * burst(rng, rate_hz, 2 * throat_hz, 5 * throat_hz, rng.uniform(0.03, 0.1)), at)
        at += int(rng.uniform(0.25, 0.6) * rate_hz)
    return wave


def bell(rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """A church bell's partials (hum, prime, tierce, quint, nominal, ...) on a long decay."""
    modes_hz = rng.uniform(250, 900) * np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.51, 3.0, 4.1])
    return ring(rng, int(rng.uniform(1.0, MAX_S) * rate_hz), rate_hz, modes_hz, rng.uniform(0.4, 1.0))


def door_knock(rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """Two to five raps on wood."""
    wave = _silence(rng, rate_hz, 0.6, 1.6)
    modes_hz = rng.uniform(110, 220) * np.array([1.0, 1.7, 2.6, 3.9])
    period = len(wave) / int(rng.integers(2, 6))
    for at in np.arange(0, len(wave) - 1, period):
        place(wave, ring(rng, int(0.25 * rate_hz), rate_hz, modes_hz, 0.04), int(at))
        place(wave, 3 * burst(rng, rate_hz, 300, 3000, 0.004), int(at))
    return wave


def glass_clink(rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """High inharmonic modes on a short decay."""
    modes_hz = np.sort(rng.uniform(1800, min(9000, 0.44 * rate_hz), 6))
    return ring(rng, int(rng.uniform(MIN_S, 1.0) * rate_hz), rate_hz, modes_hz, rng.uniform(0.06, 0.2))


MAKERS: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        dog_bark, footstep, gunshot, keyboard, moving_motor_vehicle, rain, sneeze_cough, bell, door_knock, glass_clink,
    )
}  # fmt: skip
