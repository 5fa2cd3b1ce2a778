"""Folders at URIs: what is published there, and read from there as if it were here."""

import os
from pathlib import Path

import pytest

from foley_ray.data.folder import PUBLISHED, has_file, open_file, parquet_files, publish, read_text
from foley_ray.errors import OutputError, SourceError


@pytest.fixture
def made(tmp_path: Path) -> Path:
    for name in ("manifest.json", "Animals/a dog.wav", "Rain/ä.wav", ".foley/lock", "ray/step_1/state.pt"):
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / name).write_text(name)
    return tmp_path / "made"


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_what_users_see_is_published_and_kept_up_to_date(made: Path, tmp_path: Path) -> None:
    there = tmp_path / "bucket" / "library"
    assert publish(made, there.as_uri(), "manifest.json") == 3
    first = contents(there)
    assert set(first) == {"manifest.json", "Animals/a dog.wav", "Rain/ä.wav", PUBLISHED}
    assert publish(made, there.as_uri(), "manifest.json") == 1  # the manifest, always

    (there / "somebody else's.txt").write_text("mine")
    (made / "Rain/ä.wav").unlink()
    (made / "Animals/a dog.wav").write_text("another")
    newer = (there / "Animals/a dog.wav").stat().st_mtime + 10
    os.utime(made / "Animals/a dog.wav", (newer, newer))
    assert publish(made, there.as_uri(), "manifest.json") == 2
    assert {name: text for name, text in contents(there).items() if name != PUBLISHED} == {
        "manifest.json": "manifest.json", "Animals/a dog.wav": "another", "somebody else's.txt": "mine",
    }  # fmt: skip


def test_a_file_system_of_fsspec(made: Path) -> None:
    assert publish(made, "memory://library", "manifest.json") == 3
    assert read_text("memory://library", "Rain/ä.wav") == "Rain/ä.wav"
    assert has_file("memory://library", "manifest.json")
    assert not has_file("memory://library", "none.json")


def test_the_last_file_is_not_there_before_the_others(made: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "Rain/ä.wav").mkdir(parents=True)  # no file can take this place
    with pytest.raises(OutputError, match=r"cannot publish .*made at file://.*the same again goes on") as caught:
        publish(made, there.as_uri(), "manifest.json")
    assert "\n" not in str(caught.value)
    assert not (there / "manifest.json").exists()
    (there / "Rain/ä.wav").rmdir()
    publish(made, there.as_uri(), "manifest.json")
    assert set(contents(there)) == {"manifest.json", "Animals/a dog.wav", "Rain/ä.wav", PUBLISHED}


def test_files_are_read_as_if_they_were_here(made: Path) -> None:
    for name in ("b.parquet", "a.parquet", "c.partial"):
        (made / "data").mkdir(exist_ok=True)
        (made / "data" / name).write_text(name)
    for folder in (made, made.as_uri()):
        assert parquet_files(folder, "data") == ["data/a.parquet", "data/b.parquet"]
        assert parquet_files(folder, "nothing") == []
        assert has_file(folder, "manifest.json")
        assert read_text(folder, "manifest.json") == "manifest.json"
        with pytest.raises(FileNotFoundError):
            open_file(folder, "none")


def test_what_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no folder at file://"):
        has_file((tmp_path / "none").as_uri(), "dataset.json")
    with pytest.raises(SourceError, match="cannot reach nonsense://x"):
        has_file("nonsense://x", "dataset.json")
    with pytest.raises(OutputError, match=r"cannot publish .*cannot reach nonsense://x"):
        publish(tmp_path, "nonsense://x", "")
