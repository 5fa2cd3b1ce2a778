import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foley_ray.config import Augmentation
from foley_ray.data import dataset as stream_module
from foley_ray.data import ingest as ingest_module
from foley_ray.data.dataset import (
    Drawing,
    StreamSettings,
    TrainingStream,
    collate,
    draws_per_row,
    epoch_order,
    row_rng,
    training_stream,
)
from foley_ray.data.ingest import ingest
from foley_ray.data.manifest import load_info
from foley_ray.data.procedural import write_recordings
from foley_ray.errors import DatasetError
from foley_ray.presets import tiny
from foley_ray.spec import AudioSpec

SPEC = tiny().model.audio


@pytest.fixture(scope="module")
def dataset(ray_local, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_recordings(folder / "recordings", count_per_class=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "FILE_ROWS", 4)  # several files, so that there can be several windows
        ingest(folder / "recordings", folder / "dataset", sample_rate_hz=SPEC.sample_rate_hz)
    return folder / "dataset"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(0, 9), st.integers(0, 9))
def test_an_epoch_without_balance_is_a_permutation(ids: list[int], seed: int, epoch: int) -> None:
    order = epoch_order(Drawing(0, draws_per_row(np.array(ids), 0), len(ids)), seed, epoch)
    assert sorted(order) == list(range(len(ids)))


@given(st.lists(st.integers(0, 4), min_size=5, max_size=300), st.integers(0, 99))
def test_full_balance_draws_every_class_equally_often(ids: list[int], seed: int) -> None:
    class_ids = np.array(ids)
    order = epoch_order(Drawing(0, draws_per_row(class_ids, 1), len(ids)), seed, 0)
    drawn = Counter(class_ids[order].tolist())
    share = len(ids) / len(set(ids))
    # systematic sampling in a shuffled row order: each row meets its expectation to one draw
    rows = Counter(order.tolist())
    for row, class_id in enumerate(ids):
        expected = share / ids.count(class_id)
        assert expected - 1 <= rows[row] <= expected + 1
    assert abs(sum(drawn.values()) - len(ids)) <= 1


def test_epochs_and_seeds_differ_and_repeat() -> None:
    drawing = Drawing(0, np.ones(50), 50)
    assert np.array_equal(epoch_order(drawing, 1, 2), epoch_order(drawing, 1, 2))
    assert not np.array_equal(epoch_order(drawing, 1, 2), epoch_order(drawing, 1, 3))
    assert not np.array_equal(epoch_order(drawing, 1, 2), epoch_order(drawing, 2, 2))
    assert not np.array_equal(epoch_order(drawing, 1, 2), epoch_order(drawing._replace(window=1), 1, 2))


def test_a_rows_randomness_depends_on_everything_that_names_the_draw() -> None:
    keys = [(0, 0, 0, "ab" * 32), (1, 0, 0, "ab" * 32), (0, 1, 0, "ab" * 32), (0, 0, 1, "ab" * 32), (0, 0, 0, "cd" * 32)]
    values = [float(row_rng(*key).random()) for key in keys]
    assert len(set(values)) == len(keys)
    assert float(row_rng(*keys[0]).random()) == values[0]


def rows_of(
    stream: TrainingStream, rank: int = 0, world: int = 1, steps: range = range(10), batch_rows: int = 4
) -> list[tuple]:
    """(epoch, id, samples) of each row, in order."""
    return [
        (int(epoch), str(sha256), wave.tobytes())
        for batch in stream.batches(rank, world, batch_rows, steps)
        for epoch, sha256, wave in zip(batch["epoch"], batch["sha256"], batch["wave"], strict=True)
    ]


def test_the_stream_yields_whole_epochs_of_the_train_split(dataset: Path) -> None:
    train = load_info(dataset).rows("train")
    stream = training_stream(dataset, StreamSettings(), SPEC)
    rows = list(stream.batches(0, 1, 1, range(2 * train)))
    assert [int(batch["epoch"][0]) for batch in rows] == [0] * train + [1] * train
    assert [int(batch["row"][0]) for batch in rows] == list(range(2 * train))
    for epoch in (0, 1):
        assert len({str(batch["sha256"][0]) for batch in rows if batch["epoch"][0] == epoch}) == train
    assert {batch["wave"].shape for batch in rows} == {(1, SPEC.clip_samples)}


@pytest.mark.parametrize("window_rows", [1, 1000])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_workers_share_every_epoch_and_read_nothing_twice(dataset: Path, monkeypatch, window_rows: int, world: int) -> None:
    """With windows enough each worker reads its own; with a single one they take turns at its batches."""
    monkeypatch.setattr(stream_module, "WINDOW_ROWS", window_rows)
    stream = training_stream(dataset, StreamSettings(), SPEC)
    assert (len(stream.sizes) > 5) == (window_rows == 1)
    steps = 3 * stream.rows_per_epoch // world
    drawn = [row[:2] for rank in range(world) for row in rows_of(stream, rank, world, range(steps), batch_rows=1)]
    for epoch in range(2):  # the third may be under way
        rows = [sha256 for its, sha256 in drawn if its == epoch]
        assert len(rows) == len(set(rows)), "a row was read twice in one epoch"
        assert len(rows) >= stream.rows_per_epoch - world * max(stream.sizes) * (epoch == 1)


def test_every_window_of_a_set_sorted_by_class_holds_something_of_all_of_it(dataset: Path, monkeypatch) -> None:
    """Windows of neighbouring rows would hold a class or two each, and whole batches of one class teach CLAP nothing."""
    train = load_info(dataset).rows("train")
    monkeypatch.setattr(stream_module, "WINDOW_ROWS", train // 2)
    stream = training_stream(dataset, StreamSettings(), SPEC)
    assert len(stream.sizes) >= 2
    held = [set(stream._window(index).names) for index in range(len(stream.sizes))]
    # files of four rows, classes of five: windows of neighbours would hold four or five of the ten classes
    assert min(map(len, held)) >= 6, held


def test_windows_of_long_recordings_hold_fewer_rows(dataset: Path, monkeypatch) -> None:
    monkeypatch.setattr(stream_module, "WINDOW_BYTES", 300_000)
    assert len(training_stream(dataset, StreamSettings(), SPEC).sizes) > 2


@pytest.mark.parametrize("window_rows", [8, 1000])
def test_classes_are_balanced_over_the_whole_set_not_window_by_window(dataset: Path, monkeypatch, window_rows: int) -> None:
    monkeypatch.setattr(stream_module, "WINDOW_ROWS", window_rows)
    stream = training_stream(dataset, StreamSettings(balance=1.0), SPEC)
    epochs = 8
    drawn = Counter(
        int(class_id)
        for batch in stream.batches(0, 1, 1, range(epochs * stream.rows_per_epoch))
        for class_id in batch["class_id"]
    )
    expected = epochs * stream.rows_per_epoch / len(stream.present)
    assert len(drawn) == len(stream.present)
    # a window draws whole rows: half a row off in each window of each epoch is the most
    assert max(abs(count / expected - 1) for count in drawn.values()) < 0.15, drawn


@given(st.integers(0, 40), st.integers(1, 3), st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_a_resumed_stream_is_the_tail_of_the_unbroken_one(dataset: Path, stop: int, world: int, batch_rows: int) -> None:
    stream = training_stream(dataset, StreamSettings(augment=True, balance=0.5), SPEC)
    for rank in range(world):
        tail = rows_of(stream, rank, world, range(stop, stop + 3), batch_rows)
        assert tail == rows_of(stream, rank, world, range(max(stop - 5, 0), stop + 3), batch_rows)[-3 * batch_rows :]


def test_ray_data_hands_over_exactly_these_rows_in_order(dataset: Path) -> None:
    stream = training_stream(dataset, StreamSettings(augment=True), SPEC)
    rows = stream.share(1, 2, 3, range(2, 9)).take_all()
    assert [(row["epoch"], row["sha256"], row["wave"].tobytes()) for row in rows] == rows_of(stream, 1, 2, range(2, 9), 3)
    assert stream.share(1, 2, 3, range(9, 9)).take_all() == []


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(dataset: Path) -> None:
    first, again, other = (
        rows_of(training_stream(dataset, StreamSettings(seed=seed, augment=True), SPEC)) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_wordings_replace_captions_of_their_class_alone(dataset: Path) -> None:
    settings = StreamSettings(captions={"rain": ("pouring", "a downpour")}, caption_share=1.0)
    stream = training_stream(dataset, settings, SPEC)
    seen = set()
    for batch in stream.batches(0, 1, 1, range(stream.rows_per_epoch)):
        reworded = str(batch["caption"][0]) in ("pouring", "a downpour")
        rain = stream.classes[int(batch["class_id"][0])] == "rain"
        assert reworded == rain
        seen.add(rain)
    assert seen == {True, False}


def test_wordings_of_series_are_kept_for_series(dataset: Path) -> None:
    captions = {"rain": ("rain",), "rain/series": ("showers",), "rain/once": ("a shower",)}
    augmentation = Augmentation(series={"rain": 0.5})
    settings = StreamSettings(captions=captions, caption_share=1.0, augment=True, augmentation=augmentation)
    stream = training_stream(dataset, settings, SPEC)
    [batch] = stream.batches(0, 1, 6 * stream.rows_per_epoch, range(1))
    rain = batch["class_id"] == stream.classes.index("rain")
    found = set(zip(batch["manner"][rain].tolist(), batch["caption"][rain].tolist(), strict=True))
    assert found == {("series", "rain"), ("series", "showers"), ("once", "rain"), ("once", "a shower")}
    assert set(batch["manner"][~rain]) == {""}


def test_each_of_a_sounds_captions_is_drawn(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy(dataset / "dataset.json", tmp_path)
    for file in (dataset / "data").iterdir():
        table = pq.read_table(file)
        others = [[f"{caption} again"] if caption == "rain" else [] for caption in table["caption"].to_pylist()]
        column = table.schema.get_field_index("other_captions")
        table = table.set_column(column, "other_captions", pa.array(others, pa.list_(pa.string())))
        pq.write_table(table, tmp_path / "data" / file.name)
    stream, plain = (training_stream(folder, StreamSettings(), SPEC) for folder in (tmp_path, dataset))
    seen = Counter()
    steps = range(5 * stream.rows_per_epoch)
    for batch, other in zip(stream.batches(0, 1, 1, steps), plain.batches(0, 1, 1, steps), strict=True):
        assert np.array_equal(batch["wave"], other["wave"])  # captions are drawn after the crop
        caption = str(batch["caption"][0])
        assert caption.removesuffix(" again") == str(other["caption"][0])
        seen[caption] += 1
    assert seen["rain"] > 3
    assert seen["rain again"] > 3


def test_datasets_of_before_there_were_other_captions_are_read(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy(dataset / "dataset.json", tmp_path)
    for file in (dataset / "data").iterdir():
        pq.write_table(pq.read_table(file).drop_columns("other_captions"), tmp_path / "data" / file.name)
    old, new = (training_stream(folder, StreamSettings(augment=True), SPEC) for folder in (tmp_path, dataset))
    assert rows_of(old) == rows_of(new)


def test_collate_gives_float_waves_and_plain_lists(dataset: Path) -> None:
    batch = collate(next(training_stream(dataset, StreamSettings(), SPEC).batches(0, 1, 4, range(1))))
    assert batch["wave"].shape == (4, SPEC.clip_samples)
    assert 0.4 < float(batch["wave"].abs().amax(dim=1).min()) <= 1.0
    assert all(isinstance(text, str) for text in batch["caption"])


def test_datasets_that_do_not_fit_say_why(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is at 22050 Hz but the model works at 16000 Hz"):
        training_stream(dataset, StreamSettings(), AudioSpec(sample_rate_hz=16_000))
    with pytest.raises(DatasetError, match="no rows with split 'other'"):
        training_stream(dataset, StreamSettings(split="other"), SPEC)
    with pytest.raises(DatasetError, match="no dataset at"):
        training_stream(tmp_path / "nothing", StreamSettings(), SPEC)


def test_only_the_classes_asked_for_are_drawn(dataset: Path) -> None:
    names = load_info(dataset).classes
    wanted = (names[0], names[3])
    stream = training_stream(dataset, StreamSettings(only_classes=wanted), SPEC)
    (batch,) = stream.batches(0, 1, stream.rows_per_epoch, range(1))
    assert {stream.classes[index] for index in batch["class_id"]} == set(wanted)
    assert stream.rows_per_epoch == sum(load_info(dataset).counts["train"][name] for name in wanted)
    with pytest.raises(DatasetError, match=rf"no class '{names[0]}s' among its {len(names)}; did you mean: {names[0]}"):
        training_stream(dataset, StreamSettings(only_classes=(f"{names[0]}s",)), SPEC)
    with pytest.raises(DatasetError, match=rf"no class '{names[0]}s' among its"):
        training_stream(dataset, StreamSettings(augmentation=Augmentation(series={f"{names[0]}s": 0.5})), SPEC)


def test_a_dataset_at_a_uri_is_read_as_one_here(dataset: Path) -> None:
    here, there = (training_stream(place, StreamSettings(augment=True), SPEC) for place in (dataset, dataset.as_uri()))
    assert rows_of(there) == rows_of(here)
    [batch] = there.share(0, 1, 4, range(1)).take_batch(1)["wave"]  # by a task of Ray Data, which connects anew
    assert batch.tobytes() == next(here.batches(0, 1, 4, range(1)))["wave"][0].tobytes()
