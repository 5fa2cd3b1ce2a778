"""The paper's challenge run: a hundred 4 s clips of each class, chosen as the entry chose them (system.md A.5).

    OUT/generated_audio/CLASS/000.wav   22,050 Hz, 16 bit, what the organisers' scorer reads; the folder names are theirs
    OUT/records/CLASS/000.json          how the clip was made and chosen, written before the clip
    OUT/made_with.json                  models and settings of all of it: a rerun with others is refused, not mixed in
    OUT/report.json                     scores and misses of each class, written last

Differs from the released program where that is defective: redraws end, and nothing is dropped out while scoring.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from foley_ray.audio.files import replacing, write_wav
from foley_ray.audio.wave import fit, resample
from foley_ray.checkpoint import read_info
from foley_ray.clip import OUTPUT_RATE_HZ, ClipRequest
from foley_ray.config import MAX_NOISE, MAX_SEED, ClipSettings, Sampler
from foley_ray.errors import ModelError
from foley_ray.generate import describe
from foley_ray.interchange.foreign import TARGETS_FILE
from foley_ray.interchange.made_with import agree
from foley_ray.jobfile import Job, LocalPath
from foley_ray.pipeline import Pipeline
from foley_ray.settings import Settings
from foley_ray.stages.rank import target_files

DURATION_S = 4.0
CLIPS = "generated_audio"
REPORT_FILE = "report.json"
NOTE_FILE = "made_with.json"
HOW_MUCH = {"out", "publish", "count", "workers", "cpus_per_worker", "gpu", "autoscaled"}
"""Settings that say how many clips are made and where, not what they become."""


class ChallengeClass(Settings):
    """A row of the entry's table."""

    prompt: str = Field(min_length=1)
    model: str
    candidates: int = Field(3, ge=1, le=100)
    guidance: float = Field(2.5, ge=1.0, le=20.0)
    threshold: float | None = Field(None, ge=-1, le=1)
    targets: Literal["text", "model"] | Path = Field(
        "text", description="the prompt; the sounds that came with the model's checkpoint; or a folder of sounds, one per clip"
    )


class ChallengeJob(Job):
    """jobs/dcase2023.py: the challenge's seven classes -> its folder of clips."""

    models: dict[str, LocalPath]
    classes: dict[str, ChallengeClass]
    count: int = Field(100, ge=1, description="clips per class")
    seed: int = Field(0, ge=0, le=MAX_SEED)
    sampler: Sampler = "ddim"
    steps: int = Field(200, ge=1, le=1000)
    eta: float = Field(1.0, ge=0, le=1)
    max_redraws: int = Field(20, ge=0, le=100)
    workers: int = Field(1, ge=1)
    cpus_per_worker: int = Field(1, ge=1)
    gpu: bool = False
    autoscaled: bool = Field(False, description="the cluster adds nodes on demand: wait for them")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, row in self.classes.items():
            if row.model not in self.models:
                raise ValueError(f"class {name} is to be made by model {row.model!r}, but models has {', '.join(self.models)}")
        return self


def check(job: ChallengeJob) -> None:
    """Refuse what would only fail once other classes are made, and note in OUT what the clips are made with.

    Raises ModelError for a model that is none, cannot rank, or has no target sounds where they are asked for; SourceError for
    a folder of targets without sounds; ConfigError if OUT has clips that were made otherwise.
    """
    digests: dict[str, str] = {}
    for name, row in job.classes.items():
        folder = job.models[row.model]
        digests[row.model] = read_info(folder).require_ranker(f"choosing {name}").digest
        if isinstance(row.targets, Path):
            target_files(row.targets)
        elif row.targets == "model" and not (folder / TARGETS_FILE).is_file():
            raise ModelError(
                f"{folder} came without target sounds ({TARGETS_FILE}); import the challenge entry's big checkpoint, or set "
                f"classes.{name}.targets to a folder of sounds"
            )
    settings = job.model_dump(mode="json", exclude=HOW_MUCH | {"models"})
    agree(job.out / NOTE_FILE, {"models": digests, **settings}, begun=any((job.out / CLIPS).glob("*/*.wav")))


def count_made(job: ChallengeJob) -> int:
    """How many of its clips are there."""
    return sum(_clip(job, name, index).is_file() for name in job.classes for index in range(job.count))


def make_share(job: ChallengeJob, share: int) -> Iterator[str]:
    """Make every workers-th clip that is not there yet; yields the name of each as it is written."""
    for size, folder in job.models.items():
        wanted = [(name, index) for name, row in job.classes.items() if row.model == size for index in range(job.count)]
        missing = [(name, index) for name, index in wanted[share :: job.workers] if not _clip(job, name, index).is_file()]
        if not missing:
            continue
        pipeline = Pipeline(folder, "cuda" if job.gpu else "cpu")
        targets = {name: _targets(job.classes[name], folder, pipeline) for name in dict(missing)}
        requests = [_request(job, name, index, targets[name]) for name, index in missing]
        pipeline.check(requests)
        for (name, index), clip in zip(missing, pipeline.generate(requests), strict=True):
            path = _clip(job, name, index)
            record = job.out / "records" / name / f"{path.stem}.json"
            with replacing(record) as temporary:
                temporary.write_text(json.dumps(describe(clip, pipeline.info), indent=1, ensure_ascii=False) + "\n")
            wave_T = resample(clip.wave_T, pipeline.info.model.audio.sample_rate_hz, OUTPUT_RATE_HZ)
            write_wav(path, fit(wave_T, round(DURATION_S * OUTPUT_RATE_HZ)), OUTPUT_RATE_HZ)
            yield f"{name}/{path.name}"


def write_report(job: ChallengeJob) -> dict[str, Any]:
    """OUT/report.json: of each class the mean score, and the clips that stayed below their threshold."""
    report: dict[str, Any] = {}
    for name in job.classes:
        records = list(_records(job, name))
        report[name] = {
            "clips": len(records),
            "mean_score": round(float(np.mean([record["score"] for record in records])), 4),
            "candidates_drawn": sum(len(record["candidate_scores"]) for record in records),
            "below_threshold": [index for index, record in enumerate(records) if not record["passed_threshold"]],
            "models": sorted({record["model"]["digest"] for record in records}),
        }
    with replacing(job.out / REPORT_FILE) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _records(job: ChallengeJob, name: str) -> Iterator[dict[str, Any]]:
    for index in range(job.count):
        yield json.loads((job.out / "records" / name / f"{index:03d}.json").read_text())


def _clip(job: ChallengeJob, name: str, index: int) -> Path:
    return job.out / CLIPS / name / f"{index:03d}.wav"


def _request(job: ChallengeJob, name: str, index: int, targets: tuple[np.ndarray, np.ndarray] | None) -> ClipRequest:
    """Clip i has seed + i; with targets it is chosen against target i, and has that target's threshold."""
    row = job.classes[name]
    threshold, target_D, target_name = row.threshold, None, None
    if targets is not None:
        embedding_ND, threshold_N = targets
        chosen = index % len(embedding_ND)
        target_D, target_name = embedding_ND[chosen], f"target {chosen}"
        if not np.isnan(threshold_N[chosen]):
            threshold = float(np.clip(threshold_N[chosen], -1, 1))
    settings = ClipSettings(
        duration_s=DURATION_S,
        candidates=row.candidates,
        steps=job.steps,
        guidance=row.guidance,
        guided_above=0.0,  # at every step, as the entry was
        guided_below=MAX_NOISE,
        sampler=job.sampler,
        eta=job.eta,
        threshold=threshold,
        max_redraws=job.max_redraws,
    )
    return ClipRequest(row.prompt, (job.seed + index) % (MAX_SEED + 1), settings, target_D, target_name)


def _targets(row: ChallengeClass, model: Path, pipeline: Pipeline) -> tuple[np.ndarray, np.ndarray] | None:
    """Embeddings (N, D) and thresholds (N,) of the class's target sounds; NaN where the table's threshold holds."""
    if row.targets == "text":
        return None
    if isinstance(row.targets, Path):
        _, embedding_ND = pipeline.rank.embed_folder(row.targets)
        return embedding_ND, np.full(len(embedding_ND), np.nan)
    from safetensors.numpy import load_file

    stored = load_file(model / TARGETS_FILE)
    return stored["embedding_ND"], stored["threshold_N"]
