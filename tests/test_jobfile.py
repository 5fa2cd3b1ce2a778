from pathlib import Path

import pytest
import yaml

from foley_ray.errors import ConfigError
from foley_ray.jobfile import GenerateJob, IngestJob, TrainJob, assignment, load_job

JOBS = Path(__file__).parents[1] / "jobs"


@pytest.mark.parametrize(("name", "kind"), [("ingest", IngestJob), ("train", TrainJob), ("generate", GenerateJob)])
def test_the_shipped_job_files_are_valid(name: str, kind) -> None:
    assert load_job(kind, JOBS / f"{name}.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr=1e-4", 1e-4),
        ("lr=0.1", 0.1),
        ("steps=5", 5),
        ("augment=true", True),
        ("betas=[0.5, 0.9]", [0.5, 0.9]),
        ("x=a b", "a b"),
    ],
)
def test_values_mean_what_they_say(text: str, value) -> None:
    assert assignment(text)[1] == value


def test_changes_reach_into_sections(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({"prompts": ["rain"], "out": "x"}))
    job = load_job(GenerateJob, file, ["clip.steps=50", "clip.sampler=ddim"])
    assert (job.clip.steps, job.clip.sampler) == (50, "ddim")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("task: [", "cannot read job file"),
        ("- a\n- b", "must hold key: value lines"),
        ("task: paint\ndata: d\nout: o", "task = 'paint'"),
        ("task: vae\ndata: d\nout: o\nstep: 5", "step: no such setting"),
        ("task: vae\nout: o", "data"),
    ],
)
def test_bad_files_say_file_and_key(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_job(TrainJob, file)


def test_settings_are_checked_against_the_preset() -> None:
    job = TrainJob(task="vae", data=Path("d"), out=Path("o"), settings={"lr": 0.5, "speed": 2})
    with pytest.raises(ConfigError, match="speed: no such setting"):
        job.resolved()
