import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foley_ray.data.manifest import FORMAT_VERSION, DatasetInfo, Reason, load_info, rows_digest, split_of
from foley_ray.errors import DatasetError, OutputError

INFO = DatasetInfo(
    sample_rate_hz=22050,
    counts={"train": {"rain": 3, "dog_bark": 1}, "eval": {"rain": 2}},
    classes=("dog_bark", "rain"),
    shippable_rows=4,
    quarantined={Reason.SILENT: 2},
    straddling_recordings=0,
    hours=0.5,
    source="/sounds (metadata.csv)",
    digest="ab",
)


def test_info_comes_back_as_saved(tmp_path):
    INFO.save(tmp_path)
    assert load_info(tmp_path) == INFO
    assert [file.name for file in tmp_path.iterdir()] == ["dataset.json"]
    assert json.loads((tmp_path / "dataset.json").read_text())["quarantined"] == {"silent": 2}


def test_rows_are_counted_per_split():
    assert (INFO.rows(), INFO.rows("train"), INFO.rows("eval")) == (6, 4, 2)


def test_saving_into_no_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="gone"):
        INFO.save(tmp_path / "gone")


def write(folder, text):
    (folder / "dataset.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "format version None"),
        ('{"format_version": 99}', f"format version 99, this foley_ray reads {FORMAT_VERSION}"),
        (INFO.model_dump_json().replace('"hours":0.5', '"hours":-1'), "hours = -1"),
        (INFO.model_dump_json().replace('"hours"', '"days"'), "days: no such setting"),
    ],
)
def test_a_damaged_summary_is_refused_on_one_line(tmp_path, text, message):
    with pytest.raises(DatasetError, match=message) as caught:
        load_info(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_no_folder_and_an_unfinished_folder_are_told_apart(tmp_path):
    with pytest.raises(DatasetError, match="no dataset at"):
        load_info(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="ingest never finished"):
        load_info(tmp_path)


ROWS = st.lists(st.tuples(st.text(), st.text(), st.text(), st.sampled_from(("train", "eval"))))


@given(ROWS, st.randoms(use_true_random=False))
def test_the_digest_knows_no_order(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert rows_digest(shuffled) == rows_digest(rows)


@given(ROWS, ROWS)
def test_the_digest_tells_rows_apart(one, other):
    assert (rows_digest(one) == rows_digest(other)) == (sorted(one) == sorted(other))


@given(st.text(st.characters()), st.floats(0, 1), st.integers())
def test_a_recording_has_one_split(recording, eval_share, seed):
    split = split_of(recording, eval_share=eval_share, seed=seed)
    assert split == split_of(recording, eval_share=eval_share, seed=seed)
    if eval_share in (0, 1):
        assert split == ("eval" if eval_share else "train")


@given(st.text(), st.floats(0, 1), st.floats(0, 1), st.integers())
def test_a_larger_share_only_adds_to_eval(recording, one, other, seed):
    if split_of(recording, eval_share=min(one, other), seed=seed) == "eval":
        assert split_of(recording, eval_share=max(one, other), seed=seed) == "eval"


@given(st.floats(0, 1), st.integers(0, 100))
def test_the_share_is_met_over_many_recordings(eval_share, seed):
    held_out = sum(split_of(f"r{number}", eval_share=eval_share, seed=seed) == "eval" for number in range(500))
    assert abs(held_out / 500 - eval_share) < 0.12  # five standard deviations of a fair draw


def test_another_seed_is_another_draw():
    draws = {tuple(split_of(f"r{n}", eval_share=0.5, seed=seed) for n in range(64)) for seed in range(8)}
    assert len(draws) == 8
