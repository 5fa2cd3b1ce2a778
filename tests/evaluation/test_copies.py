"""A model that is told what it learned from."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from foley_ray.checkpoint import assemble, read_info, read_originals
from foley_ray.cli import app
from foley_ray.errors import DatasetError, ModelError
from foley_ray.evaluation.copies import note_originals
from foley_ray.evaluation.recordings import Recording
from foley_ray.originals import Originals
from foley_ray.stages.rank import RankStage


def stretches(row: Recording, samples: int) -> int:
    """How many half-overlapping windows hold a recording, at most: nearly silent ones do not count."""
    return 1 if len(row.wave_T) <= samples else 1 + -(-(len(row.wave_T) - samples) // (samples // 2))


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
    learned = [row for row in recordings if row.split == "train"]
    assert len(learned) <= info.originals.rows <= sum(stretches(row, stage.window_samples) for row in learned)
    assert info.originals.rows == heard[-1]
    learned = next(row for row in recordings if row.split == "train" and len(row.wave_T) > 22_050)
    batch = stage({"wave": [learned.wave_T], "target": stage.embed([learned.wave_T]), "clip_id": ["a"]})
    assert batch["novelty"][0] < 1


def test_rows_that_it_did_not_learn_from_are_left_out(model: Path, judged_dataset: Path, recordings: list[Recording]) -> None:
    info = note_originals(model, judged_dataset, classes=["rain", "gunshot"])
    samples = RankStage(model).window_samples
    learned = [row for row in recordings if row.split == "train" and row.class_name in ("rain", "gunshot")]
    assert len(learned) <= info.originals.rows <= sum(stretches(row, samples) for row in learned)
    with pytest.raises(DatasetError, match=r"has no class dog_brak \(did you mean: dog_bark"):
        note_originals(model, judged_dataset, classes=["rain", "dog_brak"])


def test_a_model_that_went_on_still_knows_what_it_had_learned_before(model: Path, judged_dataset: Path) -> None:
    before = note_originals(model, judged_dataset, classes=["rain"])
    rain = read_originals(model, before)
    alone = note_originals(model, judged_dataset, classes=["gunshot"])
    both = note_originals(model, judged_dataset, classes=["gunshot"], earlier=rain)
    assert both.originals.rows == before.originals.rows + alone.originals.rows
    originals = RankStage(model).originals
    for row in range(before.originals.rows):
        assert originals.novelty(rain.embedding_ND[row], rain.picture_NFM[row]) < 0.5


def test_a_dataset_of_held_out_rows_alone_has_nothing_to_learn_from(model: Path, judged_dataset: Path, tmp_path: Path) -> None:
    other = shutil.copytree(judged_dataset, tmp_path / "held")
    for path in (other / "data").glob("*.parquet"):
        table = pq.read_table(path)
        held = pa.array(["eval"] * len(table), pa.string())
        pq.write_table(table.set_column(table.schema.get_field_index("split"), table.schema.field("split"), held), path)
    with pytest.raises(DatasetError, match="no such rows of split 'train'"):
        note_originals(model, other)


def test_originals_that_another_clap_heard_are_refused_and_can_be_made_again(model: Path, judged_dataset: Path) -> None:
    info = note_originals(model, judged_dataset, classes=["rain"])
    other = info.model_copy(update={"originals": info.originals.model_copy(update={"clap": "0" * 16})})
    (model / "foley.json").write_text(other.model_dump_json())
    with pytest.raises(ModelError, match=r"originals of .* were heard by clap 0000"):
        RankStage(model)
    assert note_originals(model, judged_dataset, classes=["rain"]) == info
    (model / "originals.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="make it again with foley originals"):
        RankStage(model)
    runner = CliRunner()
    told = runner.invoke(app, ["originals", str(model), "--data", str(judged_dataset), "--class", "rain"])
    assert told.exit_code == 0, told.output
    assert f"model {info.digest} knows {info.originals.rows} stretches" in " ".join(told.output.split())
    assert RankStage(model).originals is not None


def test_a_long_clip_is_as_new_as_its_least_new_stretch(model: Path, judged_dataset: Path, recordings: list[Recording]) -> None:
    note_originals(model, judged_dataset)
    stage = RankStage(model)
    learned = next(r.wave_T for r in recordings if r.split == "train" and len(r.wave_T) >= stage.window_samples)
    copied = learned[: stage.window_samples]
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, stage.window_samples).astype(np.float32)
    long = np.concatenate([noise, copied])
    target = stage.embed([long])
    novelty = stage({"wave": [long], "target": target, "clip_id": ["a"]})["novelty"][0]
    picture_FM = stage.pictures(stage.windows(copied))[0]
    assert novelty == pytest.approx(stage.originals.novelty(stage.embed([copied])[0], picture_FM), abs=1e-2)
    assert novelty < 1


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
