"""Models that differ in one thing, really trained and asked: who is compared with whom, and what is refused before training."""

import json
import runpy
from pathlib import Path

import pytest

from foley_ray.config import ClipSettings, TuningConfig
from foley_ray.data.cache import run_job as make_cache
from foley_ray.data.ingest import ingest
from foley_ray.data.procedural import write_recordings
from foley_ray.errors import ConfigError
from foley_ray.evaluation.arms import Arm, ArmsJob, compare
from foley_ray.evaluation.classifier import train_classifier
from foley_ray.evaluation.recordings import read_recordings
from foley_ray.jobfile import CacheJob
from foley_ray.presets import tiny

SPEC = tiny().model.audio
PROMPTS = {"dog_bark": ("a dog bark", "woof"), "rain": ("rain", "heavy rain")}
JOB = Path(__file__).parents[2] / "jobs" / "experiments" / "trained.py"


@pytest.fixture(scope="module")
def job(ray_local, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ArmsJob:
    place = tmp_path_factory.mktemp("arms")
    write_recordings(place / "recordings", count_per_class=6)
    info = ingest(place / "recordings", place / "dataset", sample_rate_hz=SPEC.sample_rate_hz)
    recordings = read_recordings(place / "dataset", SPEC)
    judge = train_classifier(recordings, SPEC, tuple(PROMPTS), info.digest, copies=1, epochs=20, progress=lambda _: None)
    judge.save(place / "judge")
    make_cache(CacheJob(preset="tiny", data=place / "dataset", out=place / "cache", init=(tiny_model,)))
    return ArmsJob(
        out=place / "out", preset="tiny", model=tiny_model, cache=place / "cache", data=place / "dataset",
        classifier=place / "judge", classes=tuple(PROMPTS), prompts=PROMPTS, candidates=3, best_of=2, draws=4,
        clip=ClipSettings(steps=2, duration_s=SPEC.clip_s), settings={"steps": 3, "batch_size": 2, "log_every": 1},
        arms={"narrow": Arm(unet={"channels": [8, 8]}), "untuned": Arm(tuning=TuningConfig(kind="none"))},
    )  # fmt: skip


def test_arms_are_trained_and_asked_and_a_rerun_repeats_nothing(job: ArmsJob, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(JOB))["main"]
    main(job)
    said = capsys.readouterr().out
    answer = json.loads((job.out / "out.json").read_text())
    rows = {row["arm"]: row for row in answer["rows"]}
    assert list(rows) == ["narrow", "untuned"]
    assert rows["narrow"]["UNet, million"] < rows["untuned"]["UNet, million"]
    assert all(row["s a clip"] > 0 and row["loss"] > 0 for row in rows.values())
    assert "narrow  finetune  step 3" in said
    assert (job.out / "out.png").stat().st_size > 5000
    pools = [json.loads((job.out / name / "pool" / "pool.json").read_text()) for name in rows]
    assert len({pool.pop("model") for pool in pools}) == 2
    assert pools[0] == pools[1]  # the same prompts, noise and sampling

    main(job)
    said = capsys.readouterr().out
    assert "step" not in said
    assert "candidates (" not in said
    again = {row["arm"]: row for row in json.loads((job.out / "out.json").read_text())["rows"]}
    for name, row in rows.items():
        assert again[name] | {"s a clip": 0} == row | {"s a clip": 0}


@pytest.mark.soak
def test_with_pretraining_the_arms_data_are_for_that_and_all_are_finetuned_alike(job: ArmsJob, tmp_path: Path) -> None:
    arms = {"all": Arm(), "less": Arm(data=tmp_path / "less")}
    chosen = job.model_copy(update={"out": tmp_path / "out", "arms": arms, "pretraining": {"steps": 2, "batch_size": 2}})
    make_cache(CacheJob(preset="tiny", data=job.data, out=tmp_path / "less", init=(job.model,), classes=("rain",)))
    rows = compare(chosen, print)
    assert [row["arm"] for row in rows] == ["all", "less"]
    runs = {(name, stage): json.loads((tmp_path / "out" / name / stage / "run.json").read_text())
            for name in arms for stage in ("before", "run")}  # fmt: skip
    assert {run["task"] for (_, stage), run in runs.items() if stage == "before"} == {"diffusion"}
    assert runs["all", "before"]["dataset"] == runs["all", "run"]["dataset"] == runs["less", "run"]["dataset"]
    assert runs["less", "before"]["dataset"] != runs["all", "before"]["dataset"]
    assert runs["less", "before"]["classes"] == []
    begun_from = {name: runs[name, "run"]["init"]["unet"] for name in arms}  # what was pretrained, each arm its own
    assert len(set(begun_from.values())) == 2


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        (Arm(unet={"chanels": [8, 8]}), "arms.wrong.unet: chanels: no such setting"),
        (Arm(settings={"lr": -1}), "lr = -1: Input should be greater than 0"),
    ],
)
def test_a_wrong_arm_is_refused_before_the_first_is_trained(job: ArmsJob, tmp_path: Path, arm: Arm, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compare(job.model_copy(update={"out": tmp_path / "out", "arms": {"whole": Arm(), "wrong": arm}}), print)
    assert not (tmp_path / "out").exists()


def test_more_cannot_be_drawn_than_there_are(job: ArmsJob) -> None:
    with pytest.raises(ValueError, match="best_of 4 is more than the 3 candidates that there are"):
        ArmsJob.model_validate(job.model_dump() | {"best_of": 4})
