"""One recording -> its checked sound: decoded, mono, at the wanted rate, or a Fault that says why not."""

import io
import os
import re

import numpy as np
import soundfile
import soxr
from pydantic import Field

from foley_ray.data.manifest import Reason
from foley_ray.data.storage import Fault, Place, Storage
from foley_ray.settings import Settings

LOST_SHARE = 0.01  # of the declared samples may be absent: MP3 headers are estimates, editors miscount a few bytes
RATES_HZ = range(1000, 384_001)  # beyond them, and beyond MAX_CHANNELS, a header is believed to be damaged
MAX_CHANNELS = 32
STREAMED = 0x7FFF0000  # a chunk size from here on means "written to a pipe, length unknown"


class SoundRules(Settings):
    """Which sound is good enough."""

    min_duration_s: float = Field(default=0.02, gt=0)
    max_duration_s: float = Field(default=30.0, gt=0)
    silence_dbfs: float = Field(default=-80.0, lt=0, description="a recording whose peak stays below this is silent")


def load_wave(storage: Storage, place: Place, sample_rate_hz: int, rules: SoundRules) -> np.ndarray:
    """int16 (T,): the checked sound of one recording, mono at `sample_rate_hz`. Raises Fault."""
    try:
        with storage.sound(place) as file:
            if file.seek(0, os.SEEK_END) == 0:
                raise Fault(Reason.EMPTY, "the file has no bytes")
            file.seek(0)
            wave, rate_hz = _decode(file, rules)
    except soundfile.LibsndfileError as error:
        unknown = error.code == 1  # SF_ERR_UNRECOGNISED_FORMAT
        raise Fault(Reason.NOT_AUDIO if unknown else Reason.CORRUPT, error.error_string) from None
    except OSError as error:
        raise Fault(Reason.MISSING, f"cannot be read: {error.strerror or error}") from None
    _check_sound(wave, rate_hz, rules)
    if rate_hz != sample_rate_hz:
        wave = soxr.resample(wave, rate_hz, sample_rate_hz, quality="HQ")
    return to_int16(wave)


def _decode(file: io.BytesIO | io.BufferedReader, rules: SoundRules) -> tuple[np.ndarray, int]:
    """(float32 (T,) mono, rate in Hz) of a file whose header has been believed only after a look at it."""
    # A descriptor has no name: by a name *.raw soundfile takes a file for headerless sound and demands its rate.
    opened = file if isinstance(file, io.BytesIO) else file.fileno()
    with soundfile.SoundFile(opened, closefd=False) as sound:
        rate_hz, channels, declared = sound.samplerate, sound.channels, sound.frames
        if rate_hz not in RATES_HZ or not 1 <= channels <= MAX_CHANNELS:
            raise Fault(Reason.CORRUPT, f"header says {rate_hz} Hz, {channels} channels")
        if declared > rules.max_duration_s * rate_hz:
            raise Fault(Reason.TOO_LONG, f"{declared / rate_hz:.2f} s, at most {rules.max_duration_s:g} s are taken")
        if declared == 0:
            raise Fault(Reason.EMPTY, "the file has no samples")
        _check_chunks(sound.extra_info)
        # By blocks, so that many channels never lie in memory at once; not by sound.blocks(), which fills up what a
        # truncated file lacks with uninitialised memory.
        blocks = [np.zeros(0, np.float32)]
        while len(block := sound.read(65536, dtype="float32", always_2d=True)):
            blocks.append(block.mean(axis=1))
    wave = np.concatenate(blocks)
    if len(wave) < declared * (1 - LOST_SHARE):
        raise Fault(Reason.CORRUPT, f"breaks off after {len(wave)} of {declared} samples")
    return wave, rate_hz


def _check_chunks(log: str) -> None:
    """Raise Fault when libsndfile noted that the file ends inside its sound (WAV, AIFF, AU).

    It then reads what is there and says nothing but this line: `data : 44100 (should be 22028)`.
    """
    for size, present in re.findall(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", log, re.MULTILINE):
        if int(present) < int(size) * (1 - LOST_SHARE) and int(size) < STREAMED:
            raise Fault(Reason.CORRUPT, f"breaks off: {present} of {size} bytes of sound")


def _check_sound(wave: np.ndarray, rate_hz: int, rules: SoundRules) -> None:
    duration_s = len(wave) / rate_hz
    if duration_s < rules.min_duration_s:
        raise Fault(Reason.TOO_SHORT, f"{duration_s:.4f} s, at least {rules.min_duration_s:g} s are needed")
    if not np.isfinite(wave).all():
        raise Fault(Reason.NOT_FINITE, f"{np.count_nonzero(~np.isfinite(wave))} of {len(wave)} samples are NaN or infinite")
    peak = float(np.abs(wave).max())
    if peak < 10 ** (rules.silence_dbfs / 20):
        level = f"{20 * np.log10(peak):.1f} dBFS" if peak else "nothing but zeros"
        raise Fault(Reason.SILENT, f"peak {level}, below {rules.silence_dbfs:g} dBFS")


def to_int16(wave: np.ndarray) -> np.ndarray:
    """-1..1 to 16 bits at libsndfile's own scale of 2**15, so that 16-bit sound comes back bit for bit."""
    scaled = wave.astype(np.float64) * 2**15
    over = max(float(scaled.max()) / (2**15 - 1), float(scaled.min()) / -(2**15))
    wave_int16: np.ndarray = np.round(scaled / max(over, 1.0)).astype(np.int16)
    return wave_int16


def to_flac(wave: np.ndarray, sample_rate_hz: int) -> bytes:
    """FLAC bytes of int16 (T,)."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, sample_rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
