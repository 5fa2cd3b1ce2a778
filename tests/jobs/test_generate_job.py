"""jobs/generate.py: stopped and submitted again it makes only what is missing."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from sounds import save, tone

from foley_ray.config import ClipSettings
from foley_ray.errors import ModelError
from foley_ray.jobfile import GenerateJob

SCRIPT = Path(__file__).parents[2] / "jobs" / "generate.py"
FAST = ClipSettings(duration_s=0.5, steps=1, candidates=2)


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> GenerateJob:
    for index in range(2):
        save(tmp_path / "targets" / f"{index}.wav", tone(hz=200 * (index + 1)))
    prompts = ("a dog bark", "rain")
    return GenerateJob(
        prompts=prompts,
        count=2,
        seed=7,
        clip=FAST,
        model=tiny_model,
        targets=tmp_path / "targets",
        out=tmp_path / "out",
        workers=2,
    )


def test_a_stopped_job_goes_on(script: SimpleNamespace, job: GenerateJob, capsys: pytest.CaptureFixture[str]) -> None:
    stopped = script.share_of(job, 0)
    first = Path(next(stopped))
    stopped.close()
    files = {path: path.stat().st_mtime_ns for path in job.out.iterdir()}
    rest = [Path(name) for share in range(2) for name in script.share_of(job, share)]
    assert [path.stem for path in rest] == ["002_rain_seed7", "001_a_dog_bark_seed8", "003_rain_seed8"]
    assert first.stem == "000_a_dog_bark_seed7"
    assert {path: path.stat().st_mtime_ns for path in files} == files
    script.main(job)  # all are there: neither Ray nor a model is started
    assert capsys.readouterr().out == "4 of 4 clips are there\n"
    shorter = job.model_copy(update={"clip": FAST.model_copy(update={"steps": 2})})
    assert len(list(script.share_of(shorter, 1))) == 2, "clips of other settings were taken for these"


def test_other_workers_make_what_is_missing(ray_local, script: SimpleNamespace, job: GenerateJob, capsys) -> None:
    list(script.share_of(job, 1))
    script.main(job.model_copy(update={"workers": 1}))
    told, *made = capsys.readouterr().out.splitlines()
    assert told == "2 of 4 clips are there"
    assert sorted(Path(name).stem for name in made) == ["000_a_dog_bark_seed7", "002_rain_seed7"]
    assert len(list(job.out.glob("*.json"))) == 4


def test_a_model_that_is_none_is_found_before_anything_is_started(script: SimpleNamespace, job: GenerateJob) -> None:
    with pytest.raises(ModelError, match="no model folder at"):
        script.main(job.model_copy(update={"model": job.out / "none"}))
