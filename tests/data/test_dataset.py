from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foley_ray.config import tiny
from foley_ray.data.dataset import StreamSettings, collate, epoch_order, row_rng, training_stream
from foley_ray.data.ingest import ingest
from foley_ray.data.manifest import load_info
from foley_ray.data.procedural import write_recordings
from foley_ray.errors import DatasetError
from foley_ray.spec import AudioSpec

SPEC = tiny().model.audio


@pytest.fixture(scope="module")
def dataset(ray_local, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_recordings(folder / "recordings", count_per_class=5)
    ingest(folder / "recordings", folder / "dataset", sample_rate_hz=SPEC.sample_rate_hz)
    return folder / "dataset"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(0, 9), st.integers(0, 9))
def test_an_epoch_without_balance_is_a_permutation(ids: list[int], seed: int, epoch: int) -> None:
    order = epoch_order(np.array(ids), seed, epoch, 0, balance=0)
    assert sorted(order) == list(range(len(ids)))


@given(st.lists(st.integers(0, 4), min_size=5, max_size=300), st.integers(0, 99))
def test_full_balance_draws_every_class_equally_often(ids: list[int], seed: int) -> None:
    class_ids = np.array(ids)
    order = epoch_order(class_ids, seed, 0, 0, balance=1)
    drawn = Counter(class_ids[order].tolist())
    share = len(ids) / len(set(ids))
    # systematic sampling in a shuffled row order: each row meets its expectation to one draw
    rows = Counter(order.tolist())
    for row, class_id in enumerate(ids):
        expected = share / ids.count(class_id)
        assert expected - 1 <= rows[row] <= expected + 1
    assert abs(sum(drawn.values()) - len(ids)) <= 1


def test_epochs_and_seeds_differ_and_repeat() -> None:
    ids = np.zeros(50, int)
    assert np.array_equal(epoch_order(ids, 1, 2, 0, 0), epoch_order(ids, 1, 2, 0, 0))
    assert not np.array_equal(epoch_order(ids, 1, 2, 0, 0), epoch_order(ids, 1, 3, 0, 0))
    assert not np.array_equal(epoch_order(ids, 1, 2, 0, 0), epoch_order(ids, 2, 2, 0, 0))


def test_a_rows_randomness_depends_on_everything_that_names_the_draw() -> None:
    keys = [(0, 0, 0, "ab" * 32), (1, 0, 0, "ab" * 32), (0, 1, 0, "ab" * 32), (0, 0, 1, "ab" * 32), (0, 0, 0, "cd" * 32)]
    values = [float(row_rng(*key).random()) for key in keys]
    assert len(set(values)) == len(keys)
    assert float(row_rng(*keys[0]).random()) == values[0]


def test_the_stream_yields_whole_epochs_of_the_train_split(dataset: Path) -> None:
    train = load_info(dataset).rows("train")
    rows = training_stream(dataset, StreamSettings(), SPEC, rows=train + 1).take_all()
    assert len(rows) == 2 * train
    assert Counter(row["epoch"] for row in rows) == {0: train, 1: train}
    assert len({row["sha256"] for row in rows}) == train
    assert {row["wave"].shape for row in rows} == {(SPEC.clip_samples,)}


@pytest.mark.parametrize("into", [0, 7])
def test_a_resumed_stream_goes_on_at_its_row(dataset: Path, into: int) -> None:
    train = load_info(dataset).rows("train")
    settings = StreamSettings(augment=True)
    whole, rest = (
        sorted((row["epoch"], row["sha256"], row["wave"].tobytes()) for row in training_stream(*request).take_all())
        for request in ((dataset, settings, SPEC, 2 * train), (dataset, settings, SPEC, train - into, train + into))
    )
    assert len(rest) == train - into
    assert {row[0] for row in rest} == {1}
    assert set(rest) <= set(whole)


def test_the_same_seed_gives_the_same_rows_and_samples(dataset: Path) -> None:
    settings = StreamSettings(seed=3, augment=True, balance=0.5)
    first, again = (
        {(row["epoch"], row["sha256"], row["wave"].tobytes()) for row in training_stream(dataset, settings, SPEC, 1).take_all()}
        for _ in range(2)
    )
    assert first == again


def test_wordings_replace_captions_of_their_class_alone(dataset: Path) -> None:
    settings = StreamSettings(captions={"rain": ("pouring", "a downpour")}, caption_share=1.0)
    classes = load_info(dataset).classes
    for row in training_stream(dataset, settings, SPEC, 1).take_all():
        reworded = row["caption"] in ("pouring", "a downpour")
        assert reworded == (classes[row["class_id"]] == "rain")


def test_collate_gives_float_waves_and_plain_lists(dataset: Path) -> None:
    block = training_stream(dataset, StreamSettings(), SPEC, 1).take_batch(4, batch_format="numpy")
    batch = collate(block)
    assert batch["wave"].shape == (4, SPEC.clip_samples)
    assert 0.4 < float(batch["wave"].abs().amax(dim=1).min()) <= 1.0
    assert all(isinstance(text, str) for text in batch["caption"])


def test_datasets_that_do_not_fit_say_why(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is at 22050 Hz but the model works at 16000 Hz"):
        training_stream(dataset, StreamSettings(), AudioSpec(sample_rate_hz=16_000), 1)
    with pytest.raises(DatasetError, match="no rows with split 'other'"):
        training_stream(dataset, StreamSettings(split="other"), SPEC, 1)
    with pytest.raises(DatasetError, match="no dataset at"):
        training_stream(tmp_path / "nothing", StreamSettings(), SPEC, 1)
