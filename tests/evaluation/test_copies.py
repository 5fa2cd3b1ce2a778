"""A model that is told what it learned from."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from foley_ray.checkpoint import assemble, read_info
from foley_ray.errors import DatasetError, ModelError
from foley_ray.evaluation.copies import note_originals
from foley_ray.evaluation.recordings import Recording
from foley_ray.originals import Originals
from foley_ray.stages.rank import RankStage


def stretches(row: Recording, samples: int) -> int:
    """How many windows hold a recording."""
    return max(1, -(-len(row.wave_T) // samples))


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """Without originals, as `assemble` leaves one."""
    folder = tmp_path / "model"
    assemble([tiny_model], folder)
    return folder


def test_its_recordings_are_known_for_copies_and_change_its_digest(
    model: Path, judged_dataset: Path, recordings: list[Recording]
) -> None:
    before = read_info(model)
    assert before.originals is None
    heard: list[int] = []
    info = note_originals(model, judged_dataset, progress=heard.append)
    assert info == read_info(model)
    assert info.digest != before.digest
    stage = RankStage(model)
    rows = sum(stretches(row, stage.window_samples) for row in recordings if row.split == "train")
    assert (info.originals.rows, heard[-1]) == (rows, rows)
    learned = next(row for row in recordings if row.split == "train" and len(row.wave_T) > 22_050)
    batch = stage({"wave": [learned.wave_T], "target": stage.embed([learned.wave_T]), "clip_id": ["a"]})
    assert batch["novelty"][0] < 1


def test_rows_that_it_did_not_learn_from_are_left_out(model: Path, judged_dataset: Path, recordings: list[Recording]) -> None:
    info = note_originals(model, judged_dataset, classes=["rain", "gunshot"])
    samples = RankStage(model).window_samples
    learned = [row for row in recordings if row.split == "train" and row.class_name in ("rain", "gunshot")]
    assert info.originals.rows == sum(stretches(row, samples) for row in learned)
    with pytest.raises(DatasetError, match="no such rows of split 'train'"):
        note_originals(model, judged_dataset, shippable_only=True, classes=["no such class"])


def test_originals_that_another_clap_heard_are_refused(model: Path, judged_dataset: Path) -> None:
    info = note_originals(model, judged_dataset, classes=["rain"])
    other = info.model_copy(update={"originals": info.originals.model_copy(update={"clap": "0" * 16})})
    (model / "foley.json").write_text(other.model_dump_json())
    with pytest.raises(ModelError, match=r"originals of .* were heard by clap 0000"):
        read_info(model)


def test_a_new_folder_of_the_same_parts_knows_nothing_yet(tiny_model: Path, model: Path) -> None:
    assert read_info(tiny_model).originals
    assert RankStage(model).originals is None


def test_a_dataset_at_another_rate_is_refused(model: Path, judged_dataset: Path, tmp_path: Path) -> None:
    other = shutil.copytree(judged_dataset, tmp_path / "other")
    info = (other / "dataset.json").read_text().replace('"sample_rate_hz": 22050', '"sample_rate_hz": 48000')
    (other / "dataset.json").write_text(info)
    with pytest.raises(DatasetError, match="48000 Hz"):
        note_originals(model, other)


def test_what_is_quiet_in_the_dataset_is_heard_at_the_level_of_training_crops(model: Path, judged_dataset: Path) -> None:
    note_originals(model, judged_dataset, classes=["rain"])
    originals = Originals.load(model, read_info(model).originals.digest)
    np.testing.assert_allclose(np.linalg.norm(originals.embedding_ND, axis=1), 1, atol=1e-2)
