"""The stages that make the default model: valid, in an order in which each finds its parts, and with the shipped settings."""

import csv
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foley_ray.checkpoint import PARTS, read_info, shipped_model
from foley_ray.config import TASKS, TrainConfig
from foley_ray.data.ingest import ingest
from foley_ray.data.procedural import MAKERS, write_recordings
from foley_ray.jobfile import CacheJob, TrainJob, load_job
from foley_ray.training.tasks import TASK_CLASSES

JOB = Path(__file__).parents[2] / "jobs" / "default_model"
CACHES = ("cache", "varied")
STOPPED = {"finetune": 1800}
"""Steps at which the shipped weights left a stage before its end, as its file says."""


@pytest.fixture(scope="module")
def stages() -> dict[str, tuple[str, ...]]:
    spec = importlib.util.spec_from_file_location("make_default_model", JOB / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.STAGES


def task_of(stage: str) -> str:
    return {"decoder": "vae", "audio": "clap", "target": "finetune"}.get(stage, stage)


def test_every_stage_finds_the_parts_it_needs(stages) -> None:
    assert set(stages) == {*TASKS, "audio", "decoder", "target", *CACHES}
    made: dict[str, tuple[str, ...]] = dict.fromkeys(CACHES, ())
    for name, earlier in stages.items():
        assert set(earlier) <= set(made), f"{name} comes before what it starts from"
        given = {part for stage in earlier for part in made[stage]}
        if name in CACHES:
            assert given >= {"clap", "vae"}
            continue
        task = TASK_CLASSES[task_of(name)]
        assert given >= set(task.needs), name
        made[name] = task.makes


def test_the_stages_are_jobs_on_recordings_that_may_be_given_away(stages) -> None:
    for name in stages:
        job = load_job(CacheJob if name in CACHES else TrainJob, JOB / "stages" / f"{name}.yaml")
        assert job.shippable_only, name
        if isinstance(job, TrainJob):
            assert (job.task, job.preset) == (task_of(name), "default")
            job.resolved()
            if job.captions:
                assert (JOB / job.captions).is_file()


@pytest.mark.parametrize(
    ("stage", "part"), [("audio", "clap"), ("vocoder", "vocoder"), ("decoder", "vae"), ("finetune", "unet")]
)
def test_the_shipped_parts_were_trained_with_these_settings(stage: str, part: str) -> None:
    wanted = load_job(TrainJob, JOB / "stages" / f"{stage}.yaml").resolved()[1]
    training = read_info(shipped_model()).parts[part].training
    known = TrainConfig.model_validate(training["settings"])  # settings that came later have the values of before
    free = {"checkpoint_every": 1, "log_every": 1}
    assert known.model_copy(update=free) == wanted.model_copy(update=free)
    assert training["step"] == STOPPED.get(stage, wanted.steps)


@pytest.mark.soak
def test_the_script_rehearses_from_a_dataset_to_a_whole_model(tmp_path: Path) -> None:
    """Every stage for real, two steps each; again, it passes over what is finished."""
    names = load_job(TrainJob, JOB / "stages" / "finetune.yaml").classes
    write_recordings(tmp_path / "made", count_per_class=-(-len(names) // len(MAKERS)) + 1)  # equal files would count once
    with (tmp_path / "made" / "metadata.csv").open(encoding="utf-8", newline="") as text:
        *some, last = csv.DictReader(text)
    rows = [{**row, "class": name, "split": "train"} for name, row in zip(names, some, strict=False)]
    (tmp_path / "source").mkdir()
    for number, row in enumerate([*rows, {**last, "class": names[0], "split": "eval"}]):
        shutil.copy(tmp_path / "made" / row["file"], tmp_path / "source" / f"{number}.wav")
        row |= {"file": f"{number}.wav", "recording_key": f"made:{number}"}
    with (tmp_path / "source" / "metadata.csv").open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    ingest(tmp_path / "source", tmp_path / "dataset", sample_rate_hz=22_050)
    command = [sys.executable, str(JOB / "make.py"), "--data", str(tmp_path / "dataset"), "--out", str(tmp_path / "out")]
    for _ in range(2):
        ran = subprocess.run([*command, "--rehearse"], capture_output=True, text=True, timeout=1800, check=False)
        assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    info = read_info(tmp_path / "out" / "model", needs=PARTS)
    assert {name: part.training["step"] for name, part in info.parts.items()} == dict.fromkeys(PARTS, 2)
    assert set(info.sounds) == set(names)
