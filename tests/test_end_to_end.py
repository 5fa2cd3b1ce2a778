"""The main road under real Ray with two workers: recordings -> dataset -> five trainings -> model -> ranked clips."""

import json
from pathlib import Path

import numpy as np
import pytest

from foley_ray.checkpoint import PARTS, assemble, read_info
from foley_ray.clip import ClipRequest
from foley_ray.config import TASKS, ClipSettings
from foley_ray.data.ingest import ingest
from foley_ray.data.procedural import write_recordings
from foley_ray.demo import INITS
from foley_ray.errors import ConfigError, DatasetError, ModelError, NonFiniteLoss, OutputError
from foley_ray.jobfile import TrainJob
from foley_ray.pipeline import Pipeline
from foley_ray.training.worker import run_job

STEPS = 3


@pytest.fixture(scope="module")
def place(ray_local, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("road")
    write_recordings(folder / "recordings", count_per_class=6)
    info = ingest(folder / "recordings", folder / "dataset", sample_rate_hz=22_050)
    assert info.rows("train") > info.rows("eval") > 0
    return folder


def job(place: Path, task, **changes) -> TrainJob:
    settings = {"steps": STEPS, "log_every": 1, **changes.pop("settings", {})}
    content = {
        "task": task,
        "preset": "tiny",
        "data": place / "dataset",
        "out": place / "runs" / task,
        "init": tuple(place / "runs" / name for name in INITS.get(task, ())),
        "settings": settings,
        "workers": 2,
    }
    return TrainJob(**{**content, **changes})


@pytest.fixture(scope="module")
def runs(place: Path) -> Path:
    for task in TASKS:
        seen: list[dict] = []
        info = run_job(job(place, task), seen.append)
        run = place / "runs" / task
        assert [line["step"] for line in seen] == [1, 2, 3]
        assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == seen
        assert any((run / "tensorboard").iterdir())
        training = next(iter(info.parts.values())).training
        assert (training["task"], training["step"], training["workers"]) == (task, STEPS, 2)
        assert read_info(run / "model") == info
    return place / "runs"


def test_the_parts_become_a_model_that_generates(runs: Path, place: Path) -> None:
    info = assemble([runs / task / "model" for task in TASKS], place / "model")
    assert set(info.parts) == set(PARTS)
    assert info.latent_scale != 1.0
    assert info.parts["unet"].made_for == {name: info.parts[name].digest for name in ("clap", "vae")}
    request = ClipRequest("a dog bark", 7, ClipSettings(duration_s=1.0, candidates=2, steps=3))
    clip = next(Pipeline(place / "model").generate([request]))
    assert clip.wave_T.shape == (22_050,)
    assert np.isfinite(clip.wave_T).all()


def test_a_finished_run_is_not_run_again(runs: Path, place: Path) -> None:
    before = (runs / "vae" / "metrics.jsonl").stat().st_mtime_ns
    info = run_job(job(place, "vae"))
    assert info == read_info(runs / "vae" / "model")
    assert (runs / "vae" / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.soak  # test_faults.py goes on from checkpoints every day
def test_more_steps_go_on_from_the_checkpoint(runs: Path, place: Path) -> None:
    seen: list[dict] = []
    run_job(job(place, "vae", settings={"steps": STEPS + 2}), seen.append)
    assert [line["step"] for line in seen] == [4, 5]
    lines = (runs / "vae" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]


def test_other_settings_do_not_mix_into_a_run(runs: Path, place: Path) -> None:
    with pytest.raises(ConfigError, match=r"with other settings: train\.lr was 0\.001, now 0\.5"):
        run_job(job(place, "clap", settings={"lr": 0.5}))


@pytest.mark.soak  # test_loop.py explodes every day, without Ray
def test_a_loss_that_explodes_ends_the_run_with_its_name(place: Path) -> None:
    settings = {"steps": 20, "lr": 1e12, "clip_grad_norm": 1e30, "checkpoint_every": 100, "warmup_steps": 0}
    with pytest.raises(NonFiniteLoss, match=r"generator (loss|gradient) is not finite at step"):
        run_job(job(place, "vae", out=place / "runs" / "nan", settings=settings))
    assert not (place / "runs" / "nan" / "model").exists()


@pytest.mark.soak
def test_a_nan_after_a_checkpoint_leaves_the_run_unfinished(place: Path) -> None:
    """Step 1 is sound and saved; the warm-up's second step is a million times too long and blows the weights up."""
    settings = {"steps": 20, "lr": 1e12, "clip_grad_norm": 1e30, "checkpoint_every": 1, "warmup_steps": 10**6}
    late = job(place, "vae", out=place / "runs" / "late", settings=settings)
    with pytest.raises(NonFiniteLoss, match="not finite at step"):
        run_job(late)
    assert list((place / "runs" / "late" / "ray").glob("step_*"))
    assert not (place / "runs" / "late" / "model").exists()


def test_fewer_steps_than_there_are_is_refused(runs: Path, place: Path) -> None:
    with pytest.raises(ConfigError, match="has already trained 3 steps, more than 2"):
        run_job(job(place, "clap", settings={"steps": 2}))


def test_more_workers_than_cores_can_carry_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="99 workers are too many for 2 cores"):
        run_job(job(place, "vae", workers=99, out=tmp_path / "many"))
    with pytest.raises(ConfigError, match="need a GPU each, but Ray sees 0"):
        run_job(job(place, "vae", gpu=True, out=tmp_path / "gpu"))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_work_is_refused_before_any_worker_starts(place: Path, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="needs a trained clap"):
        run_job(job(place, "diffusion", init=(), out=tmp_path / "a"))
    with pytest.raises(ModelError, match=r"was made with other settings .* than preset default"):
        run_job(job(place, "diffusion", init=(tiny_model,), preset="default", out=tmp_path / "b"))
    with pytest.raises(DatasetError, match="no dataset at"):
        run_job(job(place, "vae", data=tmp_path / "nothing", out=tmp_path / "c"))
    with pytest.raises(ConfigError, match="segment_samples 100000 exceeds"):
        run_job(job(place, "vae", out=tmp_path / "d", settings={"segment_samples": 100_000}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(OutputError, match="exists and is no training run"):
        run_job(job(place, "vae", out=tmp_path / "mine"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
