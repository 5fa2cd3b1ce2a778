"""Models that differ in one thing each, trained alike and asked alike by jobs/experiments/trained.py.

OUT/given/          the parts that all arms share: vae, vocoder, clap
OUT/ARM/before/     pre-training, if the job asks for it; like the next it goes on where it was stopped
OUT/ARM/run/        training
OUT/ARM/model/      the arm as a whole model
OUT/ARM/pool/       its candidates, of the same prompts and noise as every other's
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from foley_ray.checkpoint import Part, assemble, load_part, read_info, save_model, shipped_model
from foley_ray.clip import ClipRequest
from foley_ray.config import MAX_SEED, USUAL, ClipSettings, TuningConfig, UNetConfig, override
from foley_ray.data.captions import read_captions
from foley_ray.errors import ConfigError
from foley_ray.evaluation.pool import PoolJob, make_pool
from foley_ray.evaluation.question import judged, resampled
from foley_ray.jobfile import Job, LocalPath
from foley_ray.pipeline import Pipeline
from foley_ray.presets import Preset, preset
from foley_ray.settings import Settings, describe
from foley_ray.training.progress import progress_line
from foley_ray.training.run import Run
from foley_ray.training.worker import train

GIVEN: tuple[Part, ...] = ("vae", "vocoder", "clap")
TIMED = 3


class Arm(Settings):
    """What is different in one arm."""

    unet: dict[str, Any] = Field({}, description="changes to the preset's UNet, such as channels: [16, 32, 48, 80]")
    tuning: TuningConfig | None = None
    settings: dict[str, Any] = Field({}, description="changes to the training settings of all arms")
    data: Path | None = Field(None, description="another cache to pre-train on (without pre-training: to train on)")


class ArmsJob(Job):
    """jobs/experiments/trained.py: each arm from scratch, on the same rows in the same order."""

    preset: str = "default"
    model: LocalPath | None = Field(None, description="gives vae, vocoder and clap; the shipped one when absent")
    cache: Path = Field(description="of `foley cache`, by those parts")
    data: Path = Field(description="dataset of real recordings")
    classifier: Path = Field(description="classifier folder of `foley score`, trained on that dataset")
    captions: Path | None = None
    shippable_only: bool = False
    classes: tuple[str, ...] = Field((), description="learn from these alone; empty for all")
    settings: dict[str, Any] = Field({}, description="changes to the preset's settings of finetune, for all arms")
    pretraining: dict[str, Any] | None = Field(
        None,
        description="changes to the preset's settings of diffusion, which then comes first, on all classes of an arm's data",
    )
    arms: dict[str, Arm] = Field(min_length=2)
    prompts: dict[str, tuple[str, ...]] = Field(min_length=1, description="class: [wordings]")
    candidates: int = Field(6, ge=1, le=100, description="of each wording")
    best_of: int = Field(3, ge=1, description="of these are drawn, and the best is asked for")
    clip: ClipSettings = USUAL
    workers: int = Field(1, ge=1)
    gpu: bool = False
    draws: int = Field(50, ge=1)
    seed: int = Field(0, ge=0, le=MAX_SEED)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.best_of > self.candidates:
            raise ValueError(f"best_of {self.best_of} is more than the {self.candidates} candidates that there are")
        return self


def compare(job: ArmsJob, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each arm. Raises ConfigError for an arm that cannot be, and what training and pools raise."""
    runs = {name: _runs(job, name, arm) for name, arm in job.arms.items()}  # a wrong arm fails before the first is trained
    given = _given(job)
    rows = []
    for name, stages in runs.items():
        for run in stages:
            train(run, lambda metrics, name=name, task=run.task: say(f"{name}  {task}  {progress_line(metrics)}"))  # type: ignore[misc]
        model = job.out / name / "model"
        if not model.exists():
            assemble([given, run.out / "model"], model)
        pool = PoolJob(out=job.out / name / "pool", model=model, prompts=job.prompts, candidates=job.candidates, clip=job.clip)
        make_pool(pool, lambda line, name=name: say(f"{name}  {line}"))  # type: ignore[misc]
        classes = judged(pool.out, job.data, job.classifier)

        def draw(rng: np.random.Generator, classes: dict = classes) -> dict[str, np.ndarray]:
            return {n: found.candidates.best(found.candidates.drawn(job.best_of, rng)) for n, found in classes.items()}

        parameters = sum(weight.numel() for weight in load_part(model, "unet").parameters())
        rows.append(
            {
                "arm": name,
                "UNet, million": round(parameters / 1e6, 2),
                "loss": _loss(run.out),
                "s a clip": _pace(model, job),
                **resampled(draw, classes, job.draws, job.seed),
            }
        )
    return rows


def _given(job: ArmsJob) -> Path:
    source = job.model or shipped_model()
    info = read_info(source, needs=GIVEN)
    folder = job.out / "given"
    if not folder.exists():
        parts = {name: info.parts[name] for name in GIVEN}
        save_model(folder, info.model_copy(update={"parts": parts, "sounds": {}}), {name: source / name for name in GIVEN})
    return folder.resolve()


def _runs(job: ArmsJob, name: str, arm: Arm) -> list[Run]:
    """One after the other: pre-training if it is asked for, and training."""
    base = preset(job.preset)
    try:
        unet = UNetConfig.model_validate({**base.model.unet.model_dump(), **arm.unet})
    except ValidationError as error:
        raise ConfigError(f"arms.{name}.unet: {describe(error, UNetConfig)}") from None
    model = base.model.model_copy(update={"unet": unet, "tuning": arm.tuning or base.model.tuning})
    settings = {"finetune": override(base.training["finetune"], {**job.settings, **arm.settings})}
    own = (arm.data or job.cache).absolute()
    if job.pretraining is not None:
        settings["diffusion"] = override(base.training["diffusion"], job.pretraining)
    folder = (job.out / name).resolve()
    last = Run(
        task="finetune",
        preset=Preset(name=base.name, model=model, training=settings),
        train=settings["finetune"],
        dataset=own if job.pretraining is None else job.cache.absolute(),
        out=folder / "run",
        init=((job.out / "given").resolve(),),
        shippable_only=job.shippable_only,
        classes=job.classes,
        captions=read_captions(job.captions) if job.captions else {},
        workers=job.workers,
        use_gpu=job.gpu,
    )
    if job.pretraining is None:
        return [last]
    before = replace(
        last, task="diffusion", train=settings["diffusion"], dataset=own, out=folder / "before", classes=(), captions={}
    )
    return [before, replace(last, init=(*last.init, before.out))]


def _loss(run: Path) -> float:
    """The mean of the last tenth of what was logged: single steps scatter."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return statistics.fmean(float(json.loads(line)["mse"]) for line in lines[-max(1, len(lines) // 10) :])


def _pace(model: Path, job: ArmsJob) -> float:
    """Seconds that one clip takes in this process, median of a few, models loaded."""
    pipeline, took_s = Pipeline(model), []
    prompt = next(iter(job.prompts.values()))[0]
    settings = job.clip.model_copy(update={"candidates": job.best_of})
    for seed in range(TIMED + 1):
        start = time.perf_counter()
        list(pipeline.generate([ClipRequest(prompt, seed, settings)]))
        took_s.append(time.perf_counter() - start)
    return statistics.median(took_s[1:])
