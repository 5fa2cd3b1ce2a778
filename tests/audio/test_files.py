from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from foley_ray.audio.files import read_wave, replacing, slug, write_wav
from foley_ray.errors import OutputError, SourceError


@given(st.text(max_size=80))
def test_a_slug_is_safe_in_any_file_system(text: str) -> None:
    name = slug(text)
    assert 0 < len(name) <= 40
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
    assert not name.startswith("_")
    assert not name.endswith("_")


def test_slugs_read_like_the_prompt() -> None:
    assert slug("A dog -- barking (twice)!") == "a_dog_barking_twice"
    assert slug("雨") == "sound"


def test_read_gives_mono_at_the_rate_asked(tmp_path: Path) -> None:
    stereo = np.stack([np.full(48_000, 0.5), np.full(48_000, -0.1)], axis=1)
    sf.write(tmp_path / "s.flac", stereo, 48_000)
    wave_T = read_wave(tmp_path / "s.flac", 22_050)
    assert wave_T.shape == (22_050,)
    assert wave_T[5000:-5000].mean() == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize("name", ["absent.wav", "text.wav"])
def test_what_is_no_sound_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.wav").write_text("not a sound")
    with pytest.raises(SourceError, match=name):
        read_wave(tmp_path / name, 22_050)


def interrupted(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt


def test_write_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.wav"
    write_wav(path, np.array([2.0, -2.0, 0.25], np.float32), 22_050)
    assert np.allclose(sf.read(path)[0], [1, -1, 0.25], atol=1e-4)
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert np.allclose(sf.read(path)[0], [1, -1, 0.25], atol=1e-4)
    assert [item.name for item in path.parent.iterdir()] == ["a.wav"]


def test_an_unwritable_place_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_wav(tmp_path / "file" / "a.wav", np.zeros(3, np.float32), 22_050)
