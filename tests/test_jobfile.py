from pathlib import Path
from typing import get_args

import pytest
import yaml

from foley_ray.config import TASKS
from foley_ray.errors import ConfigError, SourceError
from foley_ray.jobfile import (
    GenerateJob,
    IngestJob,
    Layout,
    LibraryJob,
    Pool,
    TrainJob,
    assignment,
    load_job,
    make_job,
    published,
)
from foley_ray.presets import PRESETS

JOBS = Path(__file__).parents[1] / "jobs"


@pytest.mark.parametrize(("name", "kind"), [("ingest", IngestJob), ("train", TrainJob), ("generate", GenerateJob)])
def test_the_shipped_job_files_are_valid(name: str, kind) -> None:
    assert load_job(kind, JOBS / f"{name}.yaml")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", PRESETS)
def test_there_is_a_job_file_of_every_task_and_size_with_the_presets_own_numbers(size: str, task: str) -> None:
    job = load_job(TrainJob, JOBS / "train" / size / f"{task}.yaml")
    assert (job.task, job.preset) == (task, size)
    free = {"precision": "fp32", "gradient_checkpointing": False, "sharding": "none"}  # what depends on the machine
    found = job.resolved()[1].model_copy(update=free)
    assert found == PRESETS[size]().training[task].model_copy(update=free)


def test_the_papers_numbers_are_in_the_papers_job_files() -> None:
    """system.md A.2 and A.3: rates, batches and steps of the released configs and their parent's."""
    for size in ("small", "large"):
        ldm = load_job(TrainJob, JOBS / "train" / size / "diffusion.yaml").settings
        assert (ldm["lr"], ldm["batch_size"], ldm["steps"], ldm["warmup_steps"]) == (3e-5, 8, 800_000, 2000)
        vae = load_job(TrainJob, JOBS / "train" / size / "vae.yaml").settings
        assert (vae["lr"], vae["batch_size"], vae["adversarial_from"], vae["adversarial_weight"]) == (4.5e-5, 4, 50_001, 0.5)
        vocoder = load_job(TrainJob, JOBS / "train" / size / "vocoder.yaml").settings
        assert (vocoder["lr"], vocoder["batch_size"], vocoder["segment_samples"]) == (2e-4, 16, 8192)


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
        ("task: vae\ndata: d\nout: o\nwrkers: 2", r"wrkers: no such setting \(did you mean: workers\?\)"),
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


def test_the_layouts_offered_are_those_there_are() -> None:
    from foley_ray.data.sources import LAYOUTS

    assert get_args(Layout) == ("auto", *(layout.name for layout in LAYOUTS))
    with pytest.raises(ConfigError, match="'webdataset'"):
        make_job(IngestJob, {"source": "a", "out": "b", "layout": "tar"})


@pytest.mark.parametrize(("source", "kept"), [("s3://bucket/a", "s3://bucket/a"), ("a//b", Path("a/b"))])
def test_a_uri_stays_as_it_is(source: str, kept) -> None:
    assert make_job(IngestJob, {"source": source, "out": "b"}).source == kept
    assert make_job(TrainJob, {"task": "vae", "data": source, "out": "b"}).data == kept


@pytest.mark.parametrize("key", ["out", "model"])
@pytest.mark.parametrize("value", ["s3://bucket/clips", Path("s3://bucket/clips")])
def test_work_is_done_in_folders_and_a_uri_for_one_is_refused(key: str, value) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} = 's3:/+bucket/clips': a URI, but .*`publish` has a copy made"):
        make_job(GenerateJob, {"prompts": ["rain"], "out": "o"} | {key: value})


@pytest.mark.parametrize("given", [{"sample": {"gpus": 1}}, {"sample": Pool(gpus=1)}])
def test_what_is_not_named_of_a_pool_stays_as_it_is(given: dict) -> None:
    content = {"plan": "p", "out": "o"}
    usual, job = make_job(LibraryJob, content).pools, make_job(LibraryJob, content | {"pools": given}).pools
    assert (job["sample"].gpus, job["sample"].cpus, job["sample"].actors) == (1, 0.9, (1, 64))
    assert {**job, "sample": usual["sample"]} == usual
    again = make_job(LibraryJob, make_job(LibraryJob, content | {"pools": given}).model_dump())
    assert again.pools == job


def test_what_a_job_made_is_published_with_its_status(tmp_path: Path, capsys) -> None:
    out, there = tmp_path / "out", tmp_path / "there"

    def run(job: LibraryJob) -> int:
        out.mkdir()
        (out / "manifest.json").write_text("{}")
        return 75

    content = {"plan": "p", "out": out, "publish": there.as_uri()}
    assert published(make_job(LibraryJob, content), run) == 75
    assert capsys.readouterr().out == f"{there.as_uri()}: 1 files copied\n"
    assert (there / "manifest.json").read_text() == "{}"
    with pytest.raises(ConfigError, match=r"^publish = 'bucket/clips': not a URI"):
        make_job(LibraryJob, content | {"publish": "bucket/clips"})
    with pytest.raises(SourceError, match="cannot reach nonsense://x"):
        published(make_job(LibraryJob, content | {"publish": "nonsense://x"}), lambda job: pytest.fail("made something"))
