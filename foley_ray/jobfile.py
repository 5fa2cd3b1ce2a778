"""What a job is asked to do, as typed settings read from YAML: the same for the command line and for `ray job submit`.

Imports neither torch nor ray. Relative paths are relative to the working directory; a submitted job refuses them.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from foley_ray.config import (
    MAX_SEED,
    USUAL,
    USUAL_AUGMENTATION,
    Augmentation,
    ClipSettings,
    Task,
    TrainConfig,
    TuningConfig,
    override,
)
from foley_ray.errors import ConfigError, FoleyError
from foley_ray.presets import Preset, preset
from foley_ray.settings import Settings, describe

Layout = Literal[
    "auto", "metadata", "fsd50k", "clotho", "audiocaps", "audioset", "wavcaps", "freesound", "folders", "webdataset", "parquet"
]  # fmt: skip
"""How a source may be laid out, in the order in which foley_ray.data.sources tries them."""


def _place(value: Any) -> Any:
    """A URI as it is, anything else as a path: a Path would make s3:/bucket of s3://bucket."""
    return Path(value) if isinstance(value, str) and "://" not in value else value


def _here(value: Any) -> Any:
    if re.match(r"[A-Za-z][\w+.-]+:/", str(value)):
        raise ValueError("a URI, but this must be a folder that all nodes see; `publish` has a copy made at a URI")
    return value


def _uri(value: str) -> str:
    if "://" not in value:
        raise ValueError("not a URI such as s3://bucket/library")
    return value


LocalPath = Annotated[Path, BeforeValidator(_here)]
AnyFolder = Annotated[Path | str, BeforeValidator(_place)]


class Job(Settings):
    """What all jobs have: a folder for what they make."""

    last: ClassVar[str] = ""
    """The file that is written last of all, if there is one: where it is whole, so is the rest."""

    out: LocalPath
    publish: Annotated[str, AfterValidator(_uri)] | None = Field(
        None, description="URI such as s3://bucket/library, where a copy of what was made is kept up to date"
    )


def _autoscaled() -> Any:
    return Field(False, description="the cluster grows by itself: wait for what it lacks now, where else it is refused")


class IngestJob(Job):
    """jobs/ingest.py: recordings -> dataset."""

    last = "dataset.json"
    source: AnyFolder = Field(description="folder, or URI such as s3://bucket/recordings")
    layout: Layout = Field("auto", description="how the source is laid out; auto: the first layout that fits")
    preset: str = Field("default", description="sets the sample rate")
    eval_share: float = Field(0.1, ge=0, le=1, description="share of recordings held out, where the source has no split")
    max_duration_s: float = Field(30.0, gt=0)
    max_bad_share: float = Field(0.5, ge=0, le=1, description="of the recordings may be unusable before the source is refused")
    without: tuple[str, ...] = Field((), description="pass over recordings with these names, as clips/esc10_*")
    overwrite: bool = False


class TrainJob(Job):
    """jobs/train.py: one part of the model, from a dataset."""

    last = "model/foley.json"
    task: Task
    preset: str = "default"
    data: AnyFolder
    init: tuple[LocalPath, ...] = Field((), description="run or model folders that give frozen parts and the warm start")
    settings: dict[str, Any] = Field({}, description="changes to the preset's training settings")
    tuning: TuningConfig | None = Field(None, description="finetune: another form of the tuning layer")
    shippable_only: bool = False
    classes: tuple[str, ...] = Field((), description="learn from rows of these classes alone; empty for all")
    captions: Path | None = Field(None, description="YAML of class: [wordings], drawn instead of the rows' captions")
    workers: int | tuple[int, int] = Field(2, description="how many; or [at least, at most], and the run follows the cluster")
    gpu: bool = False
    autoscaled: bool = _autoscaled()
    max_failures: int = Field(2, ge=0, description="how often dead workers are replaced before the run gives up")

    @model_validator(mode="after")
    def _check(self) -> Self:
        least, most = (self.workers, self.workers) if isinstance(self.workers, int) else self.workers
        if not 1 <= least <= most:
            raise ValueError(f"workers {self.workers} must be at least 1, or [at least, at most]")
        return self

    def resolved(self) -> tuple[Preset, TrainConfig]:
        """The preset with this job's changes. Raises ConfigError naming what does not exist."""
        chosen = preset(self.preset)
        if self.tuning is not None:
            chosen = chosen.model_copy(update={"model": chosen.model.model_copy(update={"tuning": self.tuning})})
        return chosen, override(chosen.training[self.task], self.settings)


class CacheJob(Job):
    """jobs/cache.py: dataset -> latents and embeddings, to train diffusion and finetune on."""

    last = "cache.json"
    preset: str = "default"
    data: AnyFolder
    init: tuple[LocalPath, ...] = Field((), description="run or model folders that give vae and clap")
    classes: tuple[str, ...] = Field((), description="rows of these classes alone; empty for all")
    variants: int = Field(1, ge=1, description="crops of each recording, with `balance` in the mean")
    balance: float = Field(
        0.0, ge=0, le=1, description="0 takes as many crops of each recording, 1 of each class; between: a power"
    )
    augment: bool = Field(False, description="vary each crop as training on the fly does; else only its place varies")
    augmentation: Augmentation = USUAL_AUGMENTATION
    seed: int = 0
    split: Literal["train", "eval"] = "train"
    shippable_only: bool = False
    workers: int = Field(1, ge=1, description="encoders at most; Ray Data starts as many as have work")
    gpu: bool = Field(False, description="one GPU per encoder")
    overwrite: bool = False


class GenerateJob(Job):
    """jobs/generate.py: prompts -> ranked clips, spread over workers."""

    prompts: tuple[str, ...] = Field((), description="or `prompts_file`, one prompt a line")
    prompts_file: Path | None = None
    model: LocalPath | None = Field(None, description="model folder; the shipped one when absent")
    count: int = Field(1, ge=1, description="clips per prompt")
    seed: int = Field(0, ge=0, le=MAX_SEED)
    clip: ClipSettings = USUAL
    targets: Path | None = Field(None, description="folder of sounds to choose against (multi-target selection)")
    workers: int = Field(1, ge=1)
    cpus_per_worker: int = Field(1, ge=1)
    gpu: bool = False
    autoscaled: bool = _autoscaled()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.prompts) == (self.prompts_file is not None):
            raise ValueError("give prompts or a prompts_file, one of them")
        return self


StageName = Literal["condition", "sample", "vocode", "rank"]
STAGES: tuple[StageName, ...] = get_args(StageName)


class Pool(Settings):
    """The actors of one stage, and what each of them reserves."""

    actors: tuple[int, int] = Field((1, 1), description="at least, at most; Ray Data starts as many as have work")
    cpus: float = Field(0.1, ge=0)
    gpus: float = Field(0.0, ge=0, description="a share lets several actors use one GPU")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 1 <= self.actors[0] <= self.actors[1]:
            raise ValueError(f"actors {list(self.actors)} must be [at least, at most], from 1")
        return self


_SMALL_POOLS: dict[StageName, Pool] = {
    "condition": Pool(),
    "sample": Pool(actors=(1, 64), cpus=0.9),
    "vocode": Pool(actors=(1, 8), cpus=0.3),
    "rank": Pool(actors=(1, 8), cpus=0.2),
}
"""Fit on two cores."""


class LibraryJob(Job):
    """jobs/build_library.py: a plan -> a delivered, catalogued sound library."""

    last = "manifest.json"
    plan: Path
    out: LocalPath = Field(description="library folder; the same folder goes on")
    model: LocalPath | None = Field(None, description="model folder; the shipped one when absent")
    pools: dict[StageName, Pool] = Field({}, description="changes to a stage's actors; what is not named stays as it is")
    autoscaled: bool = _autoscaled()
    group: int = Field(1, ge=1, description="clips per call of a stage; more fill a GPU, and give sounds of their own last bit")
    threads: int = Field(1, ge=1, description="of each actor; another number gives sounds of another last bit")
    retries: int = Field(1, ge=0, description="how often a clip that fails is tried again before it is listed")
    prune: bool = Field(False, description="after a run that left nothing to make, drop candidates of clips that left the plan")

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = {name: pool.model_dump(exclude_unset=True) for name, pool in self.pools.items()}
        pools = {name: usual.model_copy(update=given.get(name)) for name, usual in _SMALL_POOLS.items()}
        object.__setattr__(self, "pools", pools)
        return self


AnySettings = TypeVar("AnySettings", bound=Settings)
AnyJob = TypeVar("AnyJob", bound=Job)


def load_job(kind: type[AnySettings], path: Path, changes: Sequence[str] = ()) -> AnySettings:
    """A job from its YAML file, with key=value changes (dots reach into sections: clip.steps=50).

    Raises ConfigError naming the file, the key, the value seen and the rule.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read job file {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold key: value lines, not a {type(content).__name__}")
    for change in changes:
        key, value = assignment(change)
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{change!r}: {section} is no section of {path}")
        place[last] = value
    return make_job(kind, content, str(path))


def make_job(kind: type[AnySettings], content: dict[str, Any], where: str = "") -> AnySettings:
    """A job from plain values. Raises ConfigError as `load_job` does."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{where}: {describe(error, kind)}" if where else describe(error, kind)) from None


def assignment(text: str) -> tuple[str, Any]:
    """'key=value' with the value read as a YAML scalar, so that 1e-4, true and [0.8, 0.99] mean what they say."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{text!r} is not of the form key=value")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    if isinstance(parsed, str):
        with suppress(ValueError):  # YAML 1.1 takes 1e-4 for a word
            parsed = float(parsed)
    return key.strip(), parsed


def job_main(kind: type[AnyJob], run: Callable[[AnyJob], int | None]) -> None:
    """The body of a job script: `--config FILE [key=value ...]`, errors of ours on one line and exit status 2.

    Otherwise the status is what `run` returns; what it made is published before, if the job asks for that.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True, help="job file, YAML")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="changes to the job file")
    options = parser.parse_args()
    try:
        job = load_job(kind, options.config, options.changes)
        _refuse_lost_paths(job)
        status = published(job, run)
    except FoleyError as error:
        cause = getattr(error, "cause", error)  # what a Ray task raised comes wrapped in its whole traceback
        print(f"error: {' '.join(str(cause).split())}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status)


def published(job: AnyJob, run: Callable[[AnyJob], int | None]) -> int:
    """Run a job and publish what it made; its status. Whether that can be published is looked at before anything is made."""
    if job.publish is None:
        return run(job) or 0
    from foley_ray.data.folder import publish, reach

    reach(job.publish)
    status = run(job) or 0
    print(f"{job.publish}: {publish(job.out, job.publish, job.last)} files copied")
    return status


def _refuse_lost_paths(job: Job) -> None:
    """A submitted job runs in a copy of its working directory that is thrown away: what it wrote there would be lost."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return
    for name, value in job:
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path) and not path.is_absolute() and name not in ("captions", "plan"):
                raise ConfigError(f"{name} = {path}: a submitted job needs absolute paths, on storage that all nodes see")
