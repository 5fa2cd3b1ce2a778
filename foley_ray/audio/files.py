"""Sound files on disk: read any that libsndfile knows, write WAV whole or not at all, and name files safely."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
import soundfile as sf

from foley_ray.audio.wave import resample, to_mono
from foley_ray.errors import OutputError, SourceError

AUDIO_SUFFIXES = frozenset(
    (
        ".wav", ".wave", ".w64", ".rf64", ".bwf", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au",
        ".snd", ".caf", ".m4a", ".mp4", ".aac", ".wma", ".ape",
    )
)  # fmt: skip
"""What looks like sound by its name. libsndfile does not read the last few: found by reading and said, not passed over."""


def sound_files(folder: Path) -> list[Path]:
    """The sounds in a folder and those below it, in name order, without what is hidden."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def read_wave(path: Path, sample_rate_hz: int) -> np.ndarray:
    """A whole file as mono float32 (T,) at that rate. Raises SourceError if it is no readable sound."""
    try:
        wave, rate = sf.read(path, dtype="float32", always_2d=False)
    except (OSError, sf.LibsndfileError) as error:
        raise SourceError(f"cannot read sound file {path}: {error}") from None
    return resample(to_mono(wave), rate, sample_rate_hz)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` on success, removed on any failure.

    Raises OutputError if the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another place or free it") from error
    finally:
        with suppress(OSError):  # renamed already, or never there
            temporary.unlink()


def write_wav(path: Path, wave_T: np.ndarray, sample_rate_hz: int) -> None:
    """Mono 16-bit WAV, clipped to -1..1, complete or absent."""
    with replacing(path) as temporary:
        sf.write(temporary, np.clip(wave_T, -1.0, 1.0), sample_rate_hz, subtype="PCM_16", format="WAV")


def slug(text: str, max_chars: int = 40) -> str:
    """A prompt as part of a file name: lower-case ASCII letters, digits and single underscores, never empty."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:max_chars].rstrip("_")
    return name or "sound"
