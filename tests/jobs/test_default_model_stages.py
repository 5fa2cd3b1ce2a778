"""The stages that make the default model: valid, in an order in which each finds its parts, and with the shipped settings."""

import importlib.util
from pathlib import Path

import pytest

from foley_ray.checkpoint import read_info, shipped_model
from foley_ray.config import TASKS
from foley_ray.jobfile import CacheJob, TrainJob, load_job
from foley_ray.training.tasks import TASK_CLASSES

JOB = Path(__file__).parents[2] / "jobs" / "default_model"


@pytest.fixture(scope="module")
def stages() -> dict[str, tuple[str, ...]]:
    spec = importlib.util.spec_from_file_location("make_default_model", JOB / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.STAGES


def task_of(stage: str) -> str:
    return "vae" if stage == "decoder" else stage


def test_every_stage_finds_the_parts_it_needs(stages) -> None:
    assert set(stages) == {*TASKS, "cache", "decoder"}
    made: dict[str, tuple[str, ...]] = {"cache": ()}
    for name, earlier in stages.items():
        assert set(earlier) <= set(made), f"{name} comes before what it starts from"
        given = {part for stage in earlier for part in made[stage]}
        if name == "cache":
            assert given >= {"clap", "vae"}
            continue
        task = TASK_CLASSES[task_of(name)]
        assert given >= set(task.needs), name
        made[name] = task.makes


def test_the_stages_are_jobs_on_recordings_that_may_be_given_away(stages) -> None:
    for name in stages:
        job = load_job(CacheJob if name == "cache" else TrainJob, JOB / "stages" / f"{name}.yaml")
        assert job.shippable_only, name
        if isinstance(job, TrainJob):
            assert (job.task, job.preset) == (task_of(name), "default")
            job.resolved()
            if job.captions:
                assert (JOB / job.captions).is_file()


@pytest.mark.parametrize(
    ("stage", "part"), [("clap", "clap"), ("vocoder", "vocoder"), ("decoder", "vae"), ("finetune", "unet")]
)
def test_the_shipped_parts_were_trained_with_these_settings(stage: str, part: str) -> None:
    wanted = load_job(TrainJob, JOB / "stages" / f"{stage}.yaml").resolved()[1].model_dump(mode="json")
    training = read_info(shipped_model()).parts[part].training
    free = {"checkpoint_every", "log_every"}
    known = training["settings"]
    assert {key: known[key] for key in known.keys() - free} == {key: wanted[key] for key in known.keys() - free}
    assert training["step"] == wanted["steps"]
