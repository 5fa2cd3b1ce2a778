import json
import os
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foley_ray.data.sources import DCASE_CLASSES, caption_of, class_of, read_source
from foley_ray.data.sources.tables import read_table
from foley_ray.data.storage import Place, Storage
from foley_ray.errors import ConfigError, SourceError


def touch(root, *files):
    """Empty files: sources never open audio."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def write(file, *lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows(root):
    return read_source(root)[1]


# ---------------------------------------------------------------------------------------------------------- metadata.csv


def test_every_column_of_a_metadata_file_is_read(tmp_path):
    write(
        tmp_path / "metadata.csv",
        "file,class,caption,licence,split,attribution,recording_key,shippable,note",
        "clips/a.wav,dog_bark,  two\t barks ,CC0 1.0,eval,Ann,fs:1,yes,x",
        "clips/b.wav,rain,,CC BY-NC 3.0,train,Bob,fs:2,no,",
    )
    layout, (first, second) = read_source(tmp_path)
    assert layout == "metadata: metadata.csv"
    assert first.place == Place("clips/a.wav")
    assert (first.source, first.caption, first.class_name, first.split) == ("clips/a.wav", "two barks", "dog_bark", "eval")
    assert (first.licence, first.author, first.recording, first.shippable) == ("CC0 1.0", "Ann", "fs:1", True)
    assert (second.caption, second.shippable) == ("rain", False)  # the class stands in for the caption


def test_what_a_metadata_file_leaves_out_has_a_cautious_default(tmp_path):
    write(tmp_path / "metadata.csv", "file,caption", "a.b/c.wav,wind in a chimney")
    (row,) = rows(tmp_path)
    assert (row.class_name, row.split, row.licence, row.author, row.shippable) == (None, None, "", "", False)
    assert row.recording == "a.b/c"


def test_a_row_without_caption_and_class_is_kept_for_the_quarantine(tmp_path):
    write(tmp_path / "metadata.csv", "file,caption,class", "a.wav,,")
    assert rows(tmp_path)[0].caption is None


def test_a_row_without_a_file_says_which_row_it_is(tmp_path):
    write(tmp_path / "metadata.csv", "file,caption", "a.wav,a", ",b")
    assert rows(tmp_path)[1].source == "metadata.csv row 2"


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    (tmp_path / "metadata.csv").write_text("file,caption\na.wav,a\n", encoding="utf-8-sig")
    assert rows(tmp_path)[0].source == "a.wav"


def test_file_names_keep_their_blanks_and_odd_bytes_do_no_harm(tmp_path):
    write(tmp_path / "metadata.jsonl", r'{"file": "a  b.wav", "caption": "half a pair \ud800"}')
    assert [(row.source, row.caption) for row in rows(tmp_path)] == [("a  b.wav", "half a pair ?")]
    other = tmp_path / "other"
    touch(other, os.fsdecode(b"Rain/caf\xe9.wav"))
    (row,) = rows(other)
    assert row.source == "Rain/caf?.wav"
    assert (other / row.place.name).exists()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("caption,class,path", "no file column: name one file or file_name; it has caption, class, path"),
        ("file,title", "no caption column: name one caption or text or captions or class or label .*; it has file, title"),
    ],
)
def test_a_missing_column_is_named_with_those_present(tmp_path, header, message):
    write(tmp_path / "metadata.csv", header, "a,b,c")
    with pytest.raises(SourceError, match=message):
        read_source(tmp_path)


def test_an_unknown_split_is_refused_with_its_row(tmp_path):
    write(tmp_path / "metadata.csv", "file,caption,split", "a.wav,a,train", "b.wav,b,fold3")
    with pytest.raises(SourceError, match="row 2 has split 'fold3': use train or eval"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("licence", "stated", "name", "shippable"),
    [
        ("http://creativecommons.org/licenses/by/3.0/", "", "CC BY 3.0", True),
        ("CC BY-NC 3.0", "", "CC BY-NC 3.0", False),
        ("CC BY-NC 3.0", "yes", "CC BY-NC 3.0", False),  # a slip: the licence says otherwise
        ("our own", "yes", "our own", True),
        ("our own", "", "our own", False),
        ("CC0 1.0", "no", "CC0 1.0", False),
    ],
)
def test_a_licence_allows_what_it_allows(tmp_path, licence, stated, name, shippable):
    write(tmp_path / "metadata.csv", "file,caption,license,shippable", f"a.wav,a,{licence},{stated}")
    assert [(row.licence, row.shippable) for row in rows(tmp_path)] == [(name, shippable)]


def test_several_captions_are_those_of_one_recording(tmp_path):
    write(
        tmp_path / "metadata.jsonl",
        '{"file": "a.wav", "captions": ["one", "two", "one"], "caption_2": "four", "caption_1": "three"}',
    )
    assert [row.captions for row in rows(tmp_path)] == [("one", "two", "three", "four")]


@pytest.mark.parametrize(
    ("columns", "captions"),
    [
        ({"caption_1": "one", "caption_2": "two"}, ("one", "two")),
        (
            {"caption": "one", "other_captions": ["two"], "caption_10": "four", "caption_9": "three"},
            ("one", "two", "three", "four"),
        ),
    ],
)
def test_several_captions_in_parquet_are_read_as_anywhere_else(tmp_path, columns, captions):
    table = pa.Table.from_pylist([{"file_name": "a.wav", "caption_lang": "en", "wave": b"a whole sound", **columns}])
    pq.write_table(table, tmp_path / "metadata.parquet")
    assert [row.captions for row in rows(tmp_path)] == [captions]
    assert not {"caption_lang", "wave"} & read_table(Storage(tmp_path), "metadata.parquet")[1][0].keys()


# ------------------------------------------------------------------------------------------------------------ audiofolder


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_audiofolder_metadata_of_each_kind(tmp_path, kind):
    file, items = (
        tmp_path / f"metadata.{kind}",
        [{"file_name": "a.wav", "text": "a bang"}, {"file_name": "b.wav", "text": "hiss"}],
    )
    if kind == "csv":
        write(file, "file_name,text", *(f"{item['file_name']},{item['text']}" for item in items))
    elif kind == "jsonl":
        write(file, *map(json.dumps, items))
    else:
        pq.write_table(pa.Table.from_pylist(items), file)
    assert [(row.source, row.caption) for row in rows(tmp_path)] == [("a.wav", "a bang"), ("b.wav", "hiss")]


def test_split_folders_with_metadata_of_their_own(tmp_path):
    write(tmp_path / "test" / "metadata.csv", "file_name,label", "a.wav,Door Knock")
    write(tmp_path / "train" / "metadata.jsonl", '{"file_name": "b.wav", "caption": "b"}')
    layout, found = read_source(tmp_path)
    assert layout == "metadata: test/metadata.csv, train/metadata.jsonl"
    assert [(row.source, row.class_name, row.split) for row in found] == [
        ("test/a.wav", "door_knock", "eval"),
        ("train/b.wav", None, "train"),
    ]


def test_split_folders_named_by_one_metadata_file(tmp_path):
    write(tmp_path / "metadata.csv", "file_name,text", "train/a.wav,a", "validation/b.wav,b")
    assert [row.split for row in rows(tmp_path)] == ["train", "eval"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", b'{"file_name": "a.wav"'),
        ("metadata.jsonl", b'"a.wav"\n'),
        ("metadata.jsonl", b"3\n"),
        ("metadata.csv", b"file,caption\n\xff\xfe,a\n"),
        ("metadata.csv", b'file,caption\na.wav,"no end\n'),
        ("metadata.parquet", b"no parquet"),
    ],
)
def test_a_metadata_file_that_cannot_be_parsed_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"cannot read .*{name}"):
        read_source(tmp_path)


# ---------------------------------------------------------------------------------------------------------- class folders


def test_the_dcase_set(tmp_path):
    touch(tmp_path, *(f"DCASEFoleySoundSynthesisDevSet/{name}/00{n}.wav" for name in DCASE_CLASSES for n in (2, 1)))
    layout, found = read_source(tmp_path)
    assert layout == "class folders"
    assert [(row.class_name, row.caption) for row in found[::2]] == list(DCASE_CLASSES.values())
    assert found[0].source == "DCASEFoleySoundSynthesisDevSet/DogBark/001.wav"
    assert {row.split for row in found} == {None}


def test_suffixes_in_any_case_and_nothing_but_audio(tmp_path):
    touch(
        tmp_path, "Rain/a.WAV", "Rain/b.Flac", "Rain/c.mp3", "Rain/notes.txt", "Rain/._a.wav", "__MACOSX/Rain/a.wav", ".x/y.wav"
    )
    assert [row.source for row in rows(tmp_path)] == ["Rain/a.WAV", "Rain/b.Flac", "Rain/c.mp3"]


def test_split_folders_above_class_folders(tmp_path):
    touch(tmp_path, "train/Rain/a.wav", "test/Rain/b.wav", "test/c.wav")
    assert [(row.source, row.class_name, row.split) for row in rows(tmp_path)] == [
        ("test/c.wav", None, "eval"),
        ("test/Rain/b.wav", "rain", "eval"),
        ("train/Rain/a.wav", "rain", "train"),
    ]


def test_a_train_among_other_sounds_is_a_train(tmp_path):
    touch(tmp_path, "train/a.wav", "rain/b.wav")
    assert [(row.class_name, row.split) for row in rows(tmp_path)] == [("rain", None), ("train", None)]


def test_linked_folders_are_followed_once(tmp_path):
    touch(tmp_path, "real/rain/a.wav")
    (tmp_path / "real" / "circle").symlink_to(tmp_path / "real")
    assert [row.source for row in rows(tmp_path)] == ["real/rain/a.wav"]


def test_loose_files_have_no_class(tmp_path):
    touch(tmp_path, "a.wav")
    assert rows(tmp_path)[0].caption is None


def test_an_empty_or_absent_folder_lists_what_was_looked_for(tmp_path):
    with pytest.raises(SourceError, match=r"looked for metadata\.csv, .* one folder per class .*; it has no files"):
        read_source(tmp_path)
    with pytest.raises(SourceError, match="no folder at"):
        read_source(tmp_path / "nowhere")


def test_sounds_that_no_row_names_are_told_of(tmp_path, caplog):
    touch(tmp_path, "a.wav", "b.wav", "notes.txt")
    write(tmp_path / "metadata.csv", "file,caption", "a.wav,a")
    assert len(rows(tmp_path)) == 1
    assert "1 sound files of" in caplog.text
    assert "(b.wav, ...) and left out; `--layout folders` takes them all" in caplog.text
    assert [row.source for row in read_source(tmp_path, "folders")[1]] == ["a.wav", "b.wav"]


def test_a_layout_that_does_not_exist_lists_those_that_do(tmp_path):
    with pytest.raises(ConfigError, match=r"no layout 'tar'; choose one of: auto, metadata, .*, folders, webdataset, parquet"):
        read_source(tmp_path, "tar")


# ------------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DogBark", "dog_bark"),
        ("GunShot", "gunshot"),
        ("Sneeze_Cough", "sneeze_cough"),
        ("MovingMotorVehicle", "moving_motor_vehicle"),
        ("Door Knock", "door_knock"),
        ("HTTPServer2Go", "http_server2_go"),
        ("éclair-Äpfel", "éclair_äpfel"),
        ("--", ""),
    ],
)
def test_class_names(name, expected):
    assert class_of(name) == expected


@settings(deadline=None)
@given(st.text())
def test_a_class_name_is_stable_and_clean(name):
    once = class_of(name)
    assert class_of(once) == once
    assert re.fullmatch(r"([^\W_]+(_[^\W_]+)*)?", once)


@settings(deadline=None)
@given(st.lists(st.from_regex(r"[A-Z][a-z]{1,6}", fullmatch=True), min_size=1, max_size=4))
def test_words_survive_the_way_into_a_class_and_a_caption(words):
    name = class_of("".join(words))
    assert name == class_of(" ".join(words)) == class_of("_".join(words)) or "".join(words) in DCASE_CLASSES
    if "".join(words) not in DCASE_CLASSES and name not in dict(DCASE_CLASSES.values()):
        assert caption_of(name) == " ".join(words).lower()
