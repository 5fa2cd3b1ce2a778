"""Every kind of set: which clips, of which class, in which words."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sounds import encoded, halve, save

from foley_ray.data.manifest import ROW_SCHEMA, DatasetInfo
from foley_ray.errors import DataError, SourceError
from foley_ray.evaluation.sets import find_set, read_place
from foley_ray.library.catalogue import SCHEMA


def write_dataset(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """A small dataset of (class, caption, split)."""
    (folder / "data").mkdir(parents=True)
    columns = dict.fromkeys(ROW_SCHEMA.names, "") | {"duration_s": 0.2, "sample_rate_hz": 22050, "shippable": True}
    found = [
        {**columns, "class": name, "caption": text, "split": split, "audio": encoded(200 + 50 * i), "recording": f"r{i // 2}",
         "other_captions": []}
        for i, (name, text, split) in enumerate(rows)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(found, ROW_SCHEMA), folder / "data" / "part-0.parquet")
    DatasetInfo(
        sample_rate_hz=22050, counts={"train": {}, "eval": {}}, classes=tuple(sorted({row[0] for row in rows})),
        shippable_rows=len(rows), quarantined={}, straddling_recordings=0, hours=0, source="here", digest="d",
    ).save(folder)  # fmt: skip
    return folder


def test_folders_with_what_was_asked_for_beside_some_clips(tmp_path: Path) -> None:
    save(tmp_path / "rain" / "b.wav")
    save(tmp_path / "rain" / "deep" / "a.flac")
    save(tmp_path / "bell" / "c.wav")
    save(tmp_path / "bell" / ".hidden.wav")
    (tmp_path / "rain" / "b.json").write_text(json.dumps({"prompt": "heavy rain"}))
    (tmp_path / "bell" / "c.json").write_text("[broken")
    found = find_set(tmp_path)
    assert {name: [place.name for place in places] for name, places in found.places.items()} == {
        "bell": ["c.wav"], "rain": ["b.wav", "a.flac"],
    }  # fmt: skip
    assert found.texts == {"bell": [()], "rain": [("heavy rain",), ()]}
    assert found.asked({"rain": ["rain", "a shower"]}).texts["rain"] == [("heavy rain",), ("rain", "a shower")]


def test_a_dataset_and_one_half_of_it(tmp_path: Path) -> None:
    rows = [("rain", "it rains", "train"), ("rain", "", "eval"), ("bell", "a bell", "eval"), ("", "no class", "train")]
    where = write_dataset(tmp_path / "d", rows)
    found = find_set(where)
    assert found.texts == {"rain": [("it rains",), ()], "bell": [("a bell",)]}
    assert found.recordings["rain"] == ["r0", "r0"]
    assert set(find_set(where, "eval").places) == {"rain", "bell"}
    assert len(find_set(where, "train").places["rain"]) == 1
    wave_T = read_place(found.places["bell"][0], 44100)
    assert wave_T.shape == (8820,)
    assert np.abs(np.fft.rfft(wave_T)).argmax() * 5 == pytest.approx(300, abs=5)


def test_a_library_by_catid(tmp_path: Path) -> None:
    defaults = {field.name: "" if field.type == pa.string() else 0 for field in SCHEMA}
    row = {**defaults, "file": "RAIN/RAIN_x.wav", "catid": "RAIN", "prompt": "soft rain", "loop": False,
           "passed_threshold": True, "ai_generated": True}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row], SCHEMA), tmp_path / "catalogue.parquet")
    (tmp_path / "manifest.json").write_text("{}")
    save(tmp_path / "RAIN" / "RAIN_x.wav")
    found = find_set(tmp_path)
    assert (found.kind, found.texts) == ("library", {"RAIN": [("soft rain",)]})
    assert found.renamed({"RAIN": "rain"}).places["rain"][0].path.is_file()
    with pytest.raises(DataError, match="no class bell to map"):
        found.renamed({"bell": "rain"})


def test_the_clips_of_a_score(tmp_path: Path) -> None:
    for name in ("dog_bark_000", "dog_bark_001", "dog_bark_002"):
        save(tmp_path / f"{name}.wav")
    (tmp_path / "made.json").write_text(json.dumps({"prompts": {"dog_bark": ["bark", "woof"]}}))
    assert find_set(tmp_path).texts == {"dog_bark": [("bark",), ("woof",), ("bark",)]}
    save(tmp_path / "cat_000.wav")
    with pytest.raises(DataError, match="does not fit the clips"):
        find_set(tmp_path)


def test_two_classes_under_one_name(tmp_path: Path) -> None:
    for name in ("car", "truck", "rain"):
        save(tmp_path / name / "a.wav")
    found = find_set(tmp_path).renamed({"car": "motor", "truck": "motor"})
    assert {name: len(places) for name, places in found.places.items()} == {"motor": 2, "rain": 1}
    assert set(found.only({"rain"}).places) == set(found.only({"rain"}).texts) == {"rain"}


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no folder"):
        find_set(tmp_path / "nothing")
    save(tmp_path / "flat.wav")
    with pytest.raises(SourceError, match="a folder per class"):
        find_set(tmp_path)
    with pytest.raises(DataError, match="no split eval"):
        find_set(tmp_path, "eval")
    broken = halve(save(tmp_path / "rain" / "a.flac"))
    (tmp_path / "rain" / "b.wav").write_bytes(b"RIFF")
    assert len(find_set(tmp_path).places["rain"]) == 2  # found here, and said to be bad by whoever reads them
    with pytest.raises(SourceError, match="cannot read sound file"):
        read_place(find_set(tmp_path).places["rain"][1], 22050)
    assert broken.exists()
