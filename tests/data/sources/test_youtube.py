"""AudioSet and AudioCaps, in the form of the published tables."""

import json

import pytest
from sounds import lay_out

from foley_ray.data.manifest import Reason
from foley_ray.data.sources import read_source
from foley_ray.errors import SourceError

SEGMENTS = """# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=3, num_segs=3, num_unique_labels=4, num_positive_labels=6
# YTID, start_seconds, end_seconds, positive_labels
-0RWZT-miFs, 420.000, 430.000, "/m/0jbk,/m/0bt9lr,/m/05tny_"
YvfY_TJq7n_, 0.000, 10.000, "/m/06mb1"
b0RFKhbpFJA, 30.000, 40.000, "/m/09x0r,/m/unknown"
"""
LABELS = """index,mid,display_name
0,/m/09x0r,"Speech"
72,/m/0jbk,"Animal"
74,/m/0bt9lr,"Dog"
75,/m/05tny_,"Bark"
288,/m/06mb1,"Rain, heavy"
"""
ONTOLOGY = [
    {"id": "/m/0jbk", "name": "Animal", "child_ids": ["/m/0bt9lr"]},
    {"id": "/m/0bt9lr", "name": "Dog", "child_ids": ["/m/05tny_"]},
    {"id": "/m/05tny_", "name": "Bark", "child_ids": []},
    {"id": "/m/06mb1", "name": "Rain, heavy", "child_ids": []},
    {"id": "/m/09x0r", "name": "Speech", "child_ids": []},
]


def rows(root, layout="auto"):
    return read_source(root, layout)[1]


@pytest.mark.parametrize(
    "names",
    [
        ("Y-0RWZT-miFs.wav", "YYvfY_TJq7n_.wav", "Yb0RFKhbpFJA.wav"),
        ("-0RWZT-miFs.flac", "YvfY_TJq7n_.flac", "b0RFKhbpFJA.flac"),
        ("-0RWZT-miFs_420.000_430.000.wav", "YvfY_TJq7n__0.000_10.000.wav", "b0RFKhbpFJA_30.000_40.000.wav"),
        ("Animal/-0RWZT-miFs_420.0-430.0.ogg", "Rain/YvfY_TJq7n__0.0-10.0.ogg", "Speech/b0RFKhbpFJA_30.0-40.0.ogg"),
        ("-0RWZT-miFs_420000_430000.flac", "YvfY_TJq7n__0_10000.flac", "b0RFKhbpFJA_30000_40000.flac"),
        ("-0RWZT-miFs_420.wav", "YvfY_TJq7n__0.wav", "b0RFKhbpFJA_30.wav"),
    ],
)
def test_audioset_however_its_files_are_called(tmp_path, names):
    lay_out(
        tmp_path, {"csv/balanced_train_segments.csv": SEGMENTS, "csv/class_labels_indices.csv": LABELS} | dict.fromkeys(names)
    )
    layout, found = read_source(tmp_path)
    assert layout == "audioset: csv/balanced_train_segments.csv"
    assert [row.place.name for row in found] == list(names)
    assert [(row.caption, row.class_name) for row in found] == [
        ("animal, dog, bark", "animal"),
        ("rain, heavy", "rain_heavy"),
        ("speech", "speech"),  # what has no name is left out
    ]
    assert {(row.split, row.licence, row.shippable, row.fault) for row in found} == {("train", "", False, None)}
    assert found[0].recording == "youtube:-0RWZT-miFs"


def test_the_ontology_names_labels_and_leaves_out_the_broader_ones(tmp_path):
    lay_out(tmp_path, {"eval_segments.csv": SEGMENTS, "ontology.json": json.dumps(ONTOLOGY), "Y-0RWZT-miFs.wav": None})
    first = rows(tmp_path)[0]
    assert (first.caption, first.class_name, first.split) == ("bark", "bark", "eval")


def test_a_video_that_is_gone_is_a_faulty_row(tmp_path):
    lay_out(tmp_path, {"eval_segments.csv": SEGMENTS, "class_labels_indices.csv": LABELS, "Y-0RWZT-miFs.wav": None})
    _, gone, _ = rows(tmp_path)
    assert gone.fault == (Reason.MISSING, "no sound file is named after video YvfY_TJq7n_ from 0.000 s, of eval_segments.csv")
    assert gone.source == "YvfY_TJq7n__0.000"


def test_another_cut_of_the_video_is_not_the_segment(tmp_path):
    lay_out(tmp_path, {"s.csv": SEGMENTS, "class_labels_indices.csv": LABELS, "-0RWZT-miFs_90.0-100.0.wav": None})
    assert rows(tmp_path)[0].fault


def test_labels_without_names_say_what_to_add(tmp_path):
    lay_out(tmp_path, {"eval_segments.csv": SEGMENTS})
    with pytest.raises(SourceError, match=r"add class_labels_indices\.csv or ontology\.json"):
        rows(tmp_path)
    lay_out(tmp_path, {"ontology.json": '{"no": "list"}'})
    with pytest.raises(SourceError, match="not AudioSet's ontology"):
        rows(tmp_path)


AUDIOCAPS = """audiocap_id,youtube_id,start_time,caption
91139,r1nicOVtvkQ,130,A woman talks nearby as water pours
58146,UDGBjjwyaqE,20,"Multiple clanging, and clanking sounds"
58147,UDGBjjwyaqE,20,Metal clanks
"""


@pytest.mark.parametrize(
    "names",
    [
        ("test/91139.wav", "test/58146.wav"),
        ("audio/r1nicOVtvkQ_130.flac", "audio/UDGBjjwyaqE_20.flac"),
        ("Yr1nicOVtvkQ.wav", "YUDGBjjwyaqE.wav"),
        ("r1nicOVtvkQ_130_140.wav", "UDGBjjwyaqE_20_30.wav"),
    ],
)
def test_audiocaps_has_all_captions_of_a_segment_in_one_row(tmp_path, names):
    lay_out(tmp_path, {"dataset/test.csv": AUDIOCAPS} | dict.fromkeys(names))
    layout, found = read_source(tmp_path)
    assert layout == "audiocaps: dataset/test.csv"
    assert [(row.place.name, row.captions, row.split) for row in found] == [
        (names[0], ("A woman talks nearby as water pours",), "eval"),
        (names[1], ("Multiple clanging, and clanking sounds", "Metal clanks"), "eval"),
    ]
    assert {row.class_name for row in found} == {None}


def test_audiocaps_looks_into_the_folder_of_the_tables_split(tmp_path):
    lay_out(tmp_path, {"train.csv": AUDIOCAPS, "test/91139.wav": None, "train/91139.wav": None})
    assert rows(tmp_path)[0].place.name == "train/91139.wav"
