"""The challenge run, with the tiny model for both sizes, two classes and few clips and steps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from foley_ray.checkpoint import assemble
from foley_ray.errors import ConfigError, ModelError, SourceError
from foley_ray.interchange.challenge import ChallengeJob, check, count_made, make_share, write_report
from foley_ray.interchange.foreign import TARGETS_FILE
from foley_ray.jobfile import load_job

YAML = Path(__file__).parents[2] / "jobs" / "dcase2023.yaml"
QUICK = ("count=2", "steps=1", "max_redraws=1")


def job_for(small: Path, large: Path, out: Path, *classes: str) -> ChallengeJob:
    whole = load_job(ChallengeJob, YAML, [f"models.small={small}", f"models.large={large}", f"out={out}", *QUICK])
    return whole.model_copy(update={"classes": {name: whole.classes[name] for name in classes}})


def test_the_table_is_the_papers() -> None:
    job = load_job(ChallengeJob, YAML)
    assert list(job.classes) == [
        "dog_bark", "footstep", "gunshot", "keyboard", "moving_motor_vehicle", "rain", "sneeze_cough"
    ]  # fmt: skip
    assert (job.count, job.steps, job.sampler, job.eta) == (100, 200, "ddim", 1.0)
    motor = job.classes["moving_motor_vehicle"]
    assert (motor.model, motor.candidates, motor.guidance, motor.targets) == ("large", 10, 3.0, "model")
    assert [row.threshold for row in job.classes.values()] == [0.30, 0.03, 0.20, 0.15, None, 0.20, 0.20]
    with pytest.raises(ConfigError, match="is to be made by model 'medium', but models has small, large"):
        load_job(ChallengeJob, YAML, ["classes.rain.model=medium"])


def test_clips_of_the_official_form(tiny_model: Path, tmp_path: Path) -> None:
    job = job_for(tiny_model, tiny_model, tmp_path / "out", "dog_bark", "rain")
    check(job)
    assert sorted(make_share(job, 0)) == ["dog_bark/000.wav", "dog_bark/001.wav", "rain/000.wav", "rain/001.wav"]
    for name in job.classes:
        clips = sorted((job.out / "generated_audio" / name).iterdir())
        assert [clip.name for clip in clips] == ["000.wav", "001.wav"]
        for clip in clips:
            info = soundfile.info(clip)
            assert (info.samplerate, info.subtype, info.channels, info.frames) == (22050, "PCM_16", 1, 88200)
    report = write_report(job)
    record = json.loads((job.out / "records" / "dog_bark" / "001.json").read_text())
    assert record["seed"] == 1
    assert (record["settings"]["guided_above"], record["settings"]["guided_below"]) == (0, 1000)  # everywhere, as the entry was
    assert record["settings"] | {"threshold": 0.3, "guidance": 2.5, "candidates": 3} == record["settings"]
    assert len(record["candidate_scores"]) <= 3 * 2  # redraws are bounded
    assert report["dog_bark"]["clips"] == 2

    kept = (job.out / "generated_audio" / "rain" / "000.wav").read_bytes()
    (job.out / "generated_audio" / "rain" / "001.wav").unlink()
    assert count_made(job) == 3
    assert list(make_share(job, 0)) == ["rain/001.wav"]  # only what is missing
    assert (job.out / "generated_audio" / "rain" / "000.wav").read_bytes() == kept


def test_a_rerun_with_other_settings_is_refused_and_with_more_clips_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    job = job_for(tiny_model, tiny_model, tmp_path / "out", "dog_bark").model_copy(update={"count": 1})
    check(job.model_copy(update={"steps": 2}))  # which made nothing
    check(job)
    assert list(make_share(job, 0)) == ["dog_bark/000.wav"]
    check(job.model_copy(update={"count": 2, "workers": 2, "models": {"small": tiny_model}}))
    bark = job.classes["dog_bark"].model_copy(update={"guidance": 3.0})
    with pytest.raises(
        ConfigError, match=r"out was made with other settings: classes.dog_bark.guidance was 2.5, now 3.0; steps"
    ):
        check(job.model_copy(update={"steps": 2, "classes": {"dog_bark": bark}}))
    other = tmp_path / "other"
    assemble([tiny_model], other)  # without originals: it chooses otherwise
    with pytest.raises(ConfigError, match=r"models.small was \w{16}, now \w{16}; choose another folder"):
        check(job.model_copy(update={"models": {"small": other}}))
    (job.out / "made_with.json").unlink()
    with pytest.raises(ConfigError, match=r"what .*out was made with cannot be read"):
        check(job)


def test_each_clip_is_chosen_against_a_target_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    job = job_for(tiny_model, model, tmp_path / "out", "moving_motor_vehicle")
    motor = job.classes["moving_motor_vehicle"].model_copy(update={"candidates": 2})
    job = job.model_copy(update={"classes": {"moving_motor_vehicle": motor}})
    with pytest.raises(ModelError, match=r"came without target sounds .*set classes.moving_motor_vehicle.targets to a folder"):
        check(job)
    lost = job.model_copy(update={"classes": {"rain": motor.model_copy(update={"targets": tmp_path / "lost"})}})
    with pytest.raises(SourceError, match=r"no folder of target sounds at .*lost"):
        check(lost)
    embedding_ND = torch.nn.functional.normalize(torch.randn(2, 32), dim=1)
    save_file({"embedding_ND": embedding_ND, "threshold_N": torch.tensor([-1.0, 1.0])}, model / TARGETS_FILE)
    assert len(list(make_share(job, 0))) == 2
    records = [json.loads((job.out / "records" / "moving_motor_vehicle" / f"00{i}.json").read_text()) for i in range(2)]
    assert [record["target"] for record in records] == ["target 0", "target 1"]
    assert [record["settings"]["threshold"] for record in records] == [-1.0, 1.0]
    assert [len(record["candidate_scores"]) for record in records] == [2, 4]
    assert [record["passed_threshold"] for record in records] == [True, False]
    assert np.isfinite([record["score"] for record in records]).all()
