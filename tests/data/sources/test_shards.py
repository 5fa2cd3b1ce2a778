"""WebDataset tar shards and Parquet with sound, made by the libraries that people make them with."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from sounds import encoded, lay_out

from foley_ray.data.manifest import Reason
from foley_ray.data.sources import read_source
from foley_ray.data.sources.shards import MAX_TEXT_BYTES
from foley_ray.data.storage import Fault, Storage


def sounds_of(root):
    """[(row, its bytes)] of a source."""
    storage = Storage(root)
    return [(row, None if row.fault else storage.sound(row.place).read()) for row in read_source(storage)[1]]


def add(tar, name, content=b"", **about):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in about.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(content))


def test_shards_of_the_webdataset_library(tmp_path):
    waves = [encoded(300 + 100 * n, kind) for n, kind in enumerate(("FLAC", "WAV", "OGG"))]
    with webdataset.TarWriter(str(tmp_path / "train-000000.tar")) as shard:
        shard.write({"__key__": "a/dog", "flac": waves[0], "json": {"text": ["a bark", "woof"], "license": "CC0"}})
        shard.write({"__key__": "a/rain", "wav": waves[1], "txt": "rain falls", "cls": "Heavy Rain"})
        shard.write({"__key__": "a/wind", "ogg": waves[2], "cls": 7, "json": {"caption": "wind", "username": "Ann"}})
    rows, contents = zip(*sounds_of(tmp_path), strict=True)
    assert list(contents) == waves
    assert [row.source for row in rows] == [f"train-000000.tar/a/{name}" for name in ("dog.flac", "rain.wav", "wind.ogg")]
    dog, rain, wind = rows
    assert (dog.captions, dog.licence, dog.shippable, dog.split) == (("a bark", "woof"), "CC0 1.0", True, "train")
    assert (rain.captions, rain.class_name, rain.recording) == (("rain falls",), "heavy_rain", "train-000000.tar/a/rain")
    assert (wind.captions, wind.class_name, wind.author, wind.shippable) == (("wind",), None, "Ann", False)


def test_hostile_members_do_no_harm(tmp_path):
    secret = tmp_path / "secret.wav"
    secret.write_bytes(encoded(999))
    source = tmp_path / "source"
    source.mkdir()
    with tarfile.open(source / "a.tar", "w") as tar:
        add(tar, "../../up.flac", encoded(300))
        add(tar, "../../up.txt", b"up")
        add(tar, "/etc/absolute.flac", encoded(400))
        add(tar, "link.flac", type=tarfile.SYMTYPE, linkname=str(secret))
        add(tar, "hard.flac", type=tarfile.LNKTYPE, linkname="../secret.wav")
        add(tar, "pipe.flac", type=tarfile.FIFOTYPE)
        add(tar, "folder.flac", type=tarfile.DIRTYPE)
        add(tar, "__meta__.json", b"{}")
        add(tar, "README", b"no sample")
        add(tar, "lonely.json", b"{}")
        add(tar, "odd.flac", encoded(500))
        add(tar, "odd.json", b'{"caption": ')
        add(tar, "long.flac", encoded(600))
        add(tar, "long.txt", b"x" * (MAX_TEXT_BYTES + 1))
    found = {row.source.removeprefix("a.tar/"): (row, content) for row, content in sounds_of(source)}
    assert found["../../up.flac"][1] == encoded(300)
    assert found["../../up.flac"][0].caption == "up"
    assert found["/etc/absolute.flac"][1] == encoded(400)
    for name in ("link.flac", "hard.flac", "pipe.flac", "folder.flac"):
        assert found[name][0].fault == (Reason.MISSING, "a link or other thing in the archive, not a file")
    assert found["lonely"][0].fault == (Reason.MISSING, "no sound among its members: json")
    assert found["odd.flac"][0].fault[0] == Reason.CORRUPT
    assert found["long.flac"][0].captions == ()
    assert len(found) == 9
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "secret.wav", "source"]  # nothing was unpacked


def test_a_shard_that_breaks_off_gives_what_comes_before(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in range(3):
            add(tar, f"{n}.txt", b"a tone")
            add(tar, f"{n}.wav", encoded(300 + n, "WAV", duration_s=1))
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[: len(content) // 2])
    lay_out(tmp_path, {"b.tar": "no tar at all " * 99})
    storage = Storage(tmp_path)
    first, second, *rest = read_source(storage)[1]
    assert len(storage.sound(first.place).read()) == first.place.size
    with pytest.raises(Fault, match="breaks off"):
        storage.sound(second.place)
    assert [(row.source, row.fault[0]) for row in rest] == [("a.tar", Reason.CORRUPT), ("b.tar", Reason.CORRUPT)]


def parquet(file, sounds, **columns):
    struct = pa.array([{"bytes": sound, "path": f"{n}.wav"} for n, sound in enumerate(sounds)])
    table = pa.table({"audio": struct, **columns})
    features = {"label": {"names": ["dog", "Heavy Rain"], "_type": "ClassLabel"}, "audio": {"_type": "Audio"}}
    features |= {"tags": [{"dtype": "string", "_type": "Value"}]}  # a list of strings
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=3)


def test_parquet_of_hugging_face(tmp_path):
    waves = [encoded(300 + 10 * n) for n in range(8)]
    parquet(tmp_path / "data/train-00000-of-00002.parquet", waves[:7], label=[0, 1, 0, 1, -1, None, 9])
    parquet(tmp_path / "data/test-00001-of-00002.parquet", waves[7:], label=[1], text=["it pours"], license=["CC BY 4.0"])
    lay_out(tmp_path, {"data/broken.parquet": "no Parquet"})
    rows, contents = zip(*sounds_of(tmp_path), strict=True)
    broken, test, *train = rows
    assert contents == (None, waves[7], *waves[:7])
    assert (broken.source, broken.fault[0]) == ("data/broken.parquet", Reason.CORRUPT)
    assert (test.caption, test.class_name, test.split, test.licence) == ("it pours", "heavy_rain", "eval", "CC BY 4.0")
    assert test.source == "data/test-00001-of-00002.parquet/0.wav"
    assert [row.class_name for row in train] == ["dog", "heavy_rain", "dog", "heavy_rain", None, None, None]
    assert {row.split for row in train} == {"train"}


def test_cells_are_found_in_any_order(tmp_path):
    waves = [encoded(300 + 10 * n) for n in range(8)]
    parquet(tmp_path / "a.parquet", waves, text=["x"] * 8)
    storage = Storage(tmp_path)
    places = [row.place for row in read_source(storage)[1]]
    for n in (5, 6, 1, 7, 0, 0, 3):
        assert storage.sound(places[n]).read() == waves[n]


def test_a_plain_binary_column_and_missing_bytes(tmp_path):
    table = pa.table({"thumb": [b"png", b"png"], "flac": [encoded(300), None], "caption": ["a tone", "none"]})
    table = table.append_column("other_captions", [[["a beep"], None]])  # as our own datasets have them
    pq.write_table(table, tmp_path / "a.parquet")
    storage = Storage(tmp_path)
    first, second = read_source(storage)[1]
    assert (first.source, first.captions) == ("a.parquet/row 1", ("a tone", "a beep"))
    assert storage.sound(first.place).read() == encoded(300)
    with pytest.raises(Fault) as caught:
        storage.sound(second.place)
    assert caught.value.reason == Reason.EMPTY


def test_audioset_as_hugging_face_has_it_names_all_labels(tmp_path):
    table = pa.table({"audio": [{"bytes": encoded(300), "path": "x.flac"}], "human_labels": [["Bark", "Dog"]]})
    pq.write_table(table, tmp_path / "a.parquet")
    (row,) = read_source(tmp_path)[1]
    assert (row.class_name, row.caption) == ("bark", "bark, dog")
