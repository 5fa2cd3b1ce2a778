"""A wave as the bytes of a sound file in memory: WAV, FLAC, Ogg Vorbis, MP3, Opus and headerless PCM, all by libsndfile.

A format is named `codec`, `codec_rate` or `codec_rate_kbps`, as in wav, pcm_16000 or mp3_44100_128.
"""

import io
import re
from typing import NamedTuple, Self

import numpy as np
import soundfile as sf

from foley_ray.audio.wave import resample
from foley_ray.errors import PromptError

RATES_HZ = (8000, 16000, 22050, 24000, 32000, 44100, 48000)


class _Codec(NamedTuple):
    container: str
    subtype: str
    media_type: str
    suffix: str
    default_kbps: int | None = None
    rates_hz: tuple[int, ...] = RATES_HZ


CODECS = {
    "wav": _Codec("WAV", "PCM_16", "audio/wav", "wav"),
    "flac": _Codec("FLAC", "PCM_16", "audio/flac", "flac"),
    "ogg": _Codec("OGG", "VORBIS", "audio/ogg", "ogg"),
    "mp3": _Codec("MP3", "MPEG_LAYER_III", "audio/mpeg", "mp3", 128),
    "opus": _Codec("OGG", "OPUS", "audio/ogg", "opus", 96, (8000, 16000, 24000, 48000)),
    "pcm": _Codec("RAW", "PCM_16", "audio/pcm", "pcm"),
    "ulaw": _Codec("RAW", "ULAW", "audio/basic", "ulaw", rates_hz=(8000,)),
    "alaw": _Codec("RAW", "ALAW", "audio/x-alaw-basic", "alaw", rates_hz=(8000,)),
}


class Encoding(NamedTuple):
    """How to write a wave. `sample_rate_hz` None keeps the wave's own."""

    codec: str
    sample_rate_hz: int | None = None
    kbps: int | None = None

    @classmethod
    def parse(cls, name: str) -> Self:
        """Raises PromptError for a format that does not exist, naming those that do."""
        match = re.fullmatch(r"([a-z0-9]+?)(?:_(\d{4,6}))?(?:_(\d{2,3}))?", name)
        codec = CODECS.get(match[1]) if match else None
        if match is None or codec is None:
            raise PromptError(f"unknown audio format {name!r}; formats are {', '.join(CODECS)}, or such as mp3_44100_128")
        rate, kbps = (int(part) if part else None for part in match.group(2, 3))
        if rate is not None and rate not in codec.rates_hz:
            raise PromptError(f"format {name!r}: {match[1]} has the sample rates {', '.join(map(str, codec.rates_hz))}")
        if kbps is not None and (codec.default_kbps is None or not 32 <= kbps <= 320):
            raise PromptError(f"format {name!r}: only mp3 and opus have a bit rate, from 32 to 320 kbit/s")
        return cls(match[1], rate, kbps)

    @property
    def media_type(self) -> str:
        """As in Content-Type."""
        return CODECS[self.codec].media_type

    @property
    def suffix(self) -> str:
        """Of a file name, without the dot."""
        return CODECS[self.codec].suffix


def encode(wave_T: np.ndarray, sample_rate_hz: int, encoding: Encoding) -> bytes:
    """A mono wave within -1..1 as a whole file of 16-bit samples, or the codec's nearest; resampled where it must be."""
    codec = CODECS[encoding.codec]
    rate = encoding.sample_rate_hz or (sample_rate_hz if sample_rate_hz in codec.rates_hz else max(codec.rates_hz))
    kbps = encoding.kbps or codec.default_kbps
    data = np.clip(resample(wave_T, sample_rate_hz, rate), -1.0, 1.0)
    level = None if kbps is None else _compression_level(encoding.codec, rate, kbps)
    mode = "CONSTANT" if encoding.codec == "mp3" else None
    file = io.BytesIO()
    sf.write(
        file, data, rate, format=codec.container, subtype=codec.subtype, compression_level=level, bitrate_mode=mode,
    )  # fmt: skip
    return file.getvalue()


def _compression_level(codec: str, rate_hz: int, kbps: int) -> float:
    """libsndfile takes a share, 0 to 1, of the way from the codec's highest bit rate to its lowest."""
    if codec == "opus":
        highest, lowest = 256, 6
    else:  # MPEG 1, 2 and 2.5
        highest, lowest = (320, 32) if rate_hz >= 32000 else (160, 8) if rate_hz >= 16000 else (64, 8)
    return min(max((highest - kbps) / (highest - lowest), 0.0), 0.99)  # 1.0 itself is refused
