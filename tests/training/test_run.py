"""The run folder: which checkpoint counts, and what may not be mixed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from foley_ray.checkpoint import MODEL_FOLDER, PartInfo, read_info, save_model
from foley_ray.config import TrainConfig
from foley_ray.errors import TrainingError
from foley_ray.presets import tiny
from foley_ray.training.loop import Phase, Trainer
from foley_ray.training.run import (
    CHECKPOINTS,
    METRICS_FILE,
    RAY_LIST,
    Run,
    check_run,
    checkpoint_step,
    newest_checkpoint,
    tidy_checkpoints,
    write_run,
)


def checkpoint(out: Path, step: int, attempt: int = 0) -> Path:
    torch.manual_seed(0)
    phase = Phase()
    phase.layer = torch.nn.Linear(3, 1)
    made = Trainer({"model": phase}, phase, TrainConfig(), Accelerator(cpu=True))
    made.step = step
    folder = out / CHECKPOINTS / f"step_{step:07d}_of_2_{attempt}"
    made.save(folder)
    return folder


def test_the_newest_whole_checkpoint_counts(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    older, newer = checkpoint(tmp_path, 5), checkpoint(tmp_path, 20)
    assert newest_checkpoint(tmp_path) == newer
    assert checkpoint_step(newer) == 20
    state = newer / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1  # the same size, one bit another
    state.write_bytes(content)
    assert newest_checkpoint(tmp_path) == older
    (older / "manifest.json").unlink()
    assert newest_checkpoint(tmp_path) is None
    with pytest.raises(TrainingError, match=r"incomplete .*; remove it"):
        checkpoint_step(older)


def test_of_two_attempts_at_a_step_the_later_counts_unless_it_is_torn(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path, 7, attempt=1), checkpoint(tmp_path, 7, attempt=2)
    assert newest_checkpoint(tmp_path) == second
    (second / "state.pt").write_bytes(b"")
    assert newest_checkpoint(tmp_path) == first


def test_before_a_run_goes_on_torn_and_old_checkpoints_make_room(tmp_path: Path) -> None:
    tidy_checkpoints(tmp_path, keep=2)  # a run that has not begun
    made = [checkpoint(tmp_path, step) for step in (1, 2, 3, 4)]
    (made[3] / "state.pt").write_bytes(b"")
    (tmp_path / CHECKPOINTS / "step_0000005_of_2_0").mkdir()
    (tmp_path / CHECKPOINTS / RAY_LIST).write_text("{torn")
    tidy_checkpoints(tmp_path, keep=2)
    assert sorted((tmp_path / CHECKPOINTS).iterdir()) == made[1:3]


def test_a_run_that_lost_its_checkpoints_is_not_started_over(tmp_path: Path, tiny_model: Path) -> None:
    run = Run("vae", tiny(), TrainConfig(steps=100, checkpoint_every=4), tmp_path, tmp_path / "out")
    wanted = {"train": run.train.model_dump(mode="json")}
    write_run(run, wanted)
    metrics = run.out / METRICS_FILE
    assert check_run(run, wanted) is None  # it failed before it had begun
    metrics.write_text('{"step": 2}\n{"step": 4}\n{"ste')
    (checkpoint(run.out, 4) / "state.pt").write_bytes(b"torn")
    assert check_run(run, wanted) is None  # killed while it wrote the first checkpoint: nothing is lost
    metrics.write_text('{"step": 4}\n{"step": 6}\n')
    with pytest.raises(TrainingError, match=r"has trained to step 6, .* no whole checkpoint .*another --out, or delete"):
        check_run(run, wanted)
    checkpoint(run.out, 4, attempt=1)
    assert check_run(run, wanted) is None
    shutil.rmtree(run.out / CHECKPOINTS)
    metrics.unlink()
    trained = {"vae": PartInfo(digest="", training={"step": 8})}
    made = {"vae": tiny_model / "vae"}
    save_model(run.out / MODEL_FOLDER, read_info(tiny_model).model_copy(update={"parts": trained}), made)
    with pytest.raises(TrainingError, match=r"trained to step 8, .* no whole checkpoint"):  # it would replace the model
        check_run(run, wanted)
    enough = replace(run, train=TrainConfig(steps=8, checkpoint_every=4))
    assert check_run(enough, wanted) is not None


def test_elastic_runs_know_their_largest_size(tmp_path: Path) -> None:
    run = Run("vae", tiny(), TrainConfig(), tmp_path, tmp_path / "out", workers=(1, 4))
    assert run.most_workers == 4
