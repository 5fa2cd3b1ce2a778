"""Files read back by a reader that is not ours."""

import io

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from wavinfo import WavInfoReader

from foley_ray.audio.loudness import RATE_HZ, Loudness, measure
from foley_ray.library.broadcast import Description, encode, quantise
from foley_ray.library.ucs import lookup

WAVE_T = (0.5 * np.sin(np.arange(RATE_HZ // 2 + 1) / 10)).astype(np.float32)  # an odd number of bytes


def about(**changes) -> Description:
    given = {
        "clip_id": "0123456789abcdef",
        "ucs": lookup("ANMLDog"),
        "fx_name": "Dog Bark 01",
        "library": "Dogs & Co",
        "creator": "FRAY",
        "source": "DOGS",
        "date": "2026-11-20",
        "time": "12:00:00",
        "prompt": "a dog's <bark> in a café",
        "keywords": ("dog", "bark"),
        "provenance": {"SEED": "7", "MODEL": "feedbeef"},
    }
    return Description(**{**given, **changes})


def test_a_wav_is_read_back_whole(tmp_path) -> None:
    loudness = measure(WAVE_T)
    path = tmp_path / "a.wav"
    path.write_bytes(encode(WAVE_T, "wav", about(), loudness))
    found = WavInfoReader(str(path))
    assert (found.fmt.sample_rate, found.fmt.bits_per_sample, found.fmt.channel_count) == (48_000, 24, 1)
    assert found.data.frame_count == len(WAVE_T)
    bext = found.bext
    assert bext.version == 2
    assert bext.description == "a dog's <bark> in a cafe. AI-generated (foley_ray, model feedbeef)."
    assert bext.originator.startswith("foley_ray ")
    assert bext.originator_ref == "FOLEYRAY0123456789abcdef"
    assert (bext.originator_date, bext.originator_time, bext.time_reference) == ("2026-11-20", "12:00:00", 0)
    assert bext.loudness_value == loudness.integrated_lufs
    assert bext.max_true_peak == loudness.true_peak_dbtp
    assert bext.max_momentary_loudness == loudness.max_momentary_lufs
    assert bext.max_shortterm_loudness == bext.loudness_range == 327.67  # 0x7FFF: not measured
    assert bext.coding_history.startswith("A=PCM,F=48000,W=24,M=mono,T=foley_ray")
    assert found.ixml.project == "Dogs & Co"
    document = path.read_bytes().split(b"iXML")[1][4:].split(b"data")[0].rstrip(b"\0")
    fields = {item.tag: item.text for item in etree.fromstring(document).find("USER")}
    assert fields["PROMPT"] == "a dog's <bark> in a café"
    assert (fields["SEED"], fields["MODEL"], fields["AI_GENERATED"]) == ("7", "feedbeef", "AI-generated")
    assert (fields["CATID"], fields["CATEGORY"], fields["SUBCATEGORY"]) == ("ANMLDog", "ANIMALS", "DOG")
    assert fields["KEYWORDS"] == "dog, bark"


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_the_samples_are_the_24_bits_that_were_meant(kind) -> None:
    wave_T = np.concatenate([WAVE_T, [1.0, -1.0, 2**-23, -(2**-23), 0.0]])
    data = encode(wave_T, kind, about(), measure(WAVE_T))
    samples, rate = sf.read(io.BytesIO(data), dtype="int32")
    assert rate == RATE_HZ
    np.testing.assert_array_equal(samples >> 8, quantise(wave_T))
    assert sf.info(io.BytesIO(data)).subtype == "PCM_24"
    assert data == encode(wave_T, kind, about(), measure(WAVE_T))


def test_flac_tags_say_the_same() -> None:
    with sf.SoundFile(io.BytesIO(encode(WAVE_T, "flac", about(), measure(WAVE_T)))) as sound:
        assert sound.title == "ANMLDog Dog Bark 01"
        assert sound.date == "2026-11-20"
        assert etree.fromstring(sound.comment.encode()).findtext("USER/SEED") == "7"


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=400), st.text(max_size=40))
def test_no_text_breaks_a_file(tmp_path_factory, prompt: str, keyword: str) -> None:
    path = tmp_path_factory.mktemp("any") / "a.wav"
    path.write_bytes(encode(WAVE_T[:480], "wav", about(prompt=prompt, keywords=(keyword,)), Loudness(None, None, None, None)))
    found = WavInfoReader(str(path))
    assert found.bext.loudness_value == 327.67
    assert found.ixml.project == "Dogs & Co"
    assert len(sf.read(path)[0]) == 480
