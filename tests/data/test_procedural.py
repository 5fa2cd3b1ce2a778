import numpy as np
import pytest
import soundfile

from foley_ray.data.procedural import MAKERS, write_recordings
from foley_ray.data.sources import DCASE_CLASSES, read_source
from foley_ray.errors import OutputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("procedural"), count_per_class=3)


def test_the_folder_is_a_source(folder):
    layout, rows = read_source(folder)
    assert layout == "metadata: metadata.csv"
    assert len(rows) == 3 * len(MAKERS)
    assert {row.class_name for row in rows} >= {name for name, _ in DCASE_CLASSES.values()}
    assert {(row.licence, row.author, row.shippable) for row in rows} == {("CC0 1.0", "foley_ray procedural", True)}
    assert [row.split for row in rows[:3]] == ["train", "eval", "train"]
    assert len({row.recording for row in rows}) == len(rows)


def test_sounds_are_short_audible_and_all_different(folder):
    seen = set()
    for row in read_source(folder)[1]:
        wave, rate_hz = soundfile.read(folder / row.place.name)
        assert rate_hz == 22050
        assert 0.3 <= len(wave) / rate_hz <= 3
        assert 0.19 < np.abs(wave).max() < 0.91, row.source
        assert abs(wave[0]) < 1e-3
        seen.add(wave.tobytes())
    assert len(seen) == 3 * len(MAKERS)


def test_the_same_seed_gives_the_same_bytes_whatever_the_count(folder, tmp_path):
    again = write_recordings(tmp_path / "again", count_per_class=1)
    other = write_recordings(tmp_path / "other", count_per_class=1, seed=1)
    for name in MAKERS:
        file = f"clips/{name}/0000.wav"
        assert (again / file).read_bytes() == (folder / file).read_bytes()
        assert (other / file).read_bytes() != (folder / file).read_bytes()


@pytest.mark.parametrize("rate_hz", [8000, 48000])
def test_other_rates(tmp_path, rate_hz):
    write_recordings(tmp_path, count_per_class=1, sample_rate_hz=rate_hz)
    for row in read_source(tmp_path)[1]:
        wave, found_hz = soundfile.read(tmp_path / row.place.name)
        assert found_hz == rate_hz
        assert np.isfinite(wave).all()


def test_a_file_in_the_way_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write recordings to"):
        write_recordings(tmp_path / "file", count_per_class=1)
