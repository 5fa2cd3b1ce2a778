import io

import numpy as np
import pytest
import soundfile as sf

from foley_ray.audio.encode import CODECS, Encoding, encode
from foley_ray.errors import PromptError

RATE = 22_050
TONE_T = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "mp3", "opus", "mp3_44100_128", "wav_48000", "opus_48000_64"])
def test_a_second_of_440_hz_is_one_in_every_container(name: str) -> None:
    encoding = Encoding.parse(name)
    wave, rate = sf.read(io.BytesIO(encode(TONE_T, RATE, encoding)))
    assert rate == (encoding.sample_rate_hz or (48_000 if name == "opus" else RATE))
    assert len(wave) == pytest.approx(rate, abs=0.1 * rate)  # mp3 pads
    spectrum = np.abs(np.fft.rfft(wave[: rate // 2]))
    assert spectrum.argmax() * 2 == pytest.approx(440, abs=4)
    assert np.abs(wave).max() == pytest.approx(0.5, abs=0.05)


def test_without_a_header_the_bytes_are_the_samples() -> None:
    assert len(encode(TONE_T, RATE, Encoding.parse("pcm_16000"))) == 2 * 16_000
    assert len(encode(TONE_T, RATE, Encoding.parse("ulaw_8000"))) == 8_000
    samples = np.frombuffer(encode(TONE_T, RATE, Encoding.parse("pcm")), "<i2")
    np.testing.assert_allclose(samples / 32768, TONE_T, atol=1e-4)


@pytest.mark.parametrize(("name", "kbps"), [("mp3_44100_192", 192), ("mp3_44100_32", 32), ("mp3_22050_32", 32), ("mp3", 128)])
def test_an_mp3_has_the_bit_rate_that_was_asked_for(name: str, kbps: int) -> None:
    noise_T = np.random.default_rng(0).normal(0, 0.1, 10 * RATE).astype(np.float32)
    assert len(encode(noise_T, RATE, Encoding.parse(name))) * 8 / 10 / 1000 == pytest.approx(kbps, rel=0.05)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("aac", "unknown audio format 'aac'; formats are wav, flac, ogg, mp3"),
        ("mp3_12345", "mp3 has the sample rates 8000, 16000"),
        ("pcm_16000_128", "only mp3 and opus have a bit rate"),
        ("mp3_44100_999", "from 32 to 320"),
        ("../wav", "unknown audio format"),
    ],
)
def test_a_format_that_does_not_exist_is_named(name: str, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        Encoding.parse(name)


def test_every_codec_says_what_it_is() -> None:
    assert {Encoding(codec).media_type.split("/")[0] for codec in CODECS} == {"audio"}
    assert Encoding("opus").suffix == "opus"
