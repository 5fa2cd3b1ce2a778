"""Small real sound files, for tests of what reads them."""

import io

import numpy as np
import soundfile

RATE_HZ = 22050


def tone(rate_hz=RATE_HZ, duration_s=0.5, channels=1, level=0.5, hz=440.0):
    wave = level * np.sin(2 * np.pi * hz * np.arange(round(duration_s * rate_hz)) / rate_hz)
    return np.stack([wave] * channels, axis=1)


def save(file, wave=None, rate_hz=RATE_HZ, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, tone(rate_hz) if wave is None else wave, rate_hz, **options)
    return file


def halve(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return file


def encoded(hz=440.0, kind="FLAC", duration_s=0.2):
    """The bytes of a sound file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(duration_s=duration_s, hz=hz), RATE_HZ, format=kind)
    return buffer.getvalue()


def lay_out(root, files):
    """Write files by name: text, bytes, or for None a sound of its own pitch."""
    for number, (name, content) in enumerate(files.items()):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            soundfile.write(file, tone(duration_s=0.2, hz=200 + 20 * number), RATE_HZ)
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content, encoding="utf-8")
    return root


def noise_bursts(samples, seed, count=4):
    """(N, T): a burst in each wave, of random colour, place and length."""
    rng = np.random.default_rng(seed)
    wave_NT = np.zeros((count, samples), dtype=np.float32)
    for wave_T in wave_NT:
        start, length = rng.integers(2000, 6000), rng.integers(2000, 8000)
        noise = np.convolve(rng.standard_normal(length), rng.standard_normal(int(rng.integers(1, 40))), "same")
        wave_T[start : start + length] = 0.5 * noise / np.abs(noise).max()
    return wave_NT
