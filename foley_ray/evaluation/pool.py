"""A stored pool of candidates per class, made once and resampled by every question asked of it (jobs/experiments/).

    POOL/pool.json       what it was made with; another model or other settings are refused, not mixed in
    POOL/dog_bark.npz    the class's candidates: waves, CLAP embeddings, scores; whole or absent, so that a rerun goes on

Knows the stages, not the questions. Shapes: N candidates of one class, P of its prompts, T samples, D embedding values.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field

from foley_ray.audio.files import replacing
from foley_ray.checkpoint import PARTS, read_info, shipped_model
from foley_ray.clip import ClipRequest, draw_batch
from foley_ray.columns import AUDIO_EMBEDDING, CANDIDATE, CONDITION, SCORE, TARGET, WAVE
from foley_ray.config import MAX_SEED, USUAL, ClipSettings
from foley_ray.errors import DataError, OutputError
from foley_ray.jobfile import Job, LocalPath
from foley_ray.stages.condition import ConditionStage
from foley_ray.stages.rank import RankStage
from foley_ray.stages.sample import SampleStage
from foley_ray.stages.vocode import VocodeStage

POOL_FILE = "pool.json"
PCM = 32767


class PoolJob(Job):
    """jobs/experiments/candidates.py: prompts -> candidates, all of them kept."""

    model: LocalPath | None = Field(None, description="model folder; the shipped one when absent")
    prompts: dict[str, tuple[str, ...]] = Field(min_length=1, description="class: [wordings]")
    candidates: int = Field(10, ge=1, le=100, description="of each wording")
    seed: int = Field(0, ge=0, le=MAX_SEED // 2, description="of each class's first wording; the next ones count up from it")
    clip: ClipSettings = USUAL
    tuning: bool = Field(True, description="false: condition on CLAP's own text embedding, around the tuning layer")


def make_pool(job: PoolJob, progress: Callable[[str], None] = print) -> None:
    """Make the classes that are missing. Raises ModelError for an incomplete model, OutputError for a pool of other things."""
    model = job.model or shipped_model()
    info = read_info(model, needs=[name for name in PARTS if name != "tuning"])
    made_with = {
        "model": info.digest,
        "sample_rate_hz": info.model.audio.sample_rate_hz,
        **job.model_dump(mode="json", exclude={"model", "out", "publish"}),
    }
    note = job.out / POOL_FILE
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != made_with:
        raise OutputError(f"{job.out} holds candidates of another model or other settings; choose another folder")
    if not note.is_file():
        if job.out.exists() and (not job.out.is_dir() or any(job.out.iterdir())):
            raise OutputError(f"{job.out} exists and is no pool; choose another folder, nothing there was touched")
        with replacing(note) as temporary:
            temporary.write_text(json.dumps(made_with, indent=1) + "\n", encoding="utf-8")
    missing = [name for name in job.prompts if not _file(job.out, name).is_file()]
    if not missing:
        return
    condition, sample = ConditionStage(model), SampleStage(model)
    vocode, rank = VocodeStage(model), RankStage(model)
    settings = job.clip.model_copy(update={"candidates": job.candidates, "threshold": None})
    for count, name in enumerate(missing, start=1):
        # a seed for each wording: of equal noise the same candidate would win for all of them
        requests = [(index, ClipRequest(text, job.seed + index, settings)) for index, text in enumerate(job.prompts[name])]
        batch = condition(draw_batch(requests, 0))
        if not job.tuning:
            batch[CONDITION.name] = batch[TARGET.name]
        batch = rank(vocode(sample(batch)))
        waves = np.stack(list(batch[WAVE.name]))
        with replacing(_file(job.out, name)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                wave_NT=np.round(waves * PCM).astype(np.int16),
                audio_ND=np.stack(list(batch[AUDIO_EMBEDDING.name])),
                text_ND=np.stack(list(batch[TARGET.name])),
                score_N=np.asarray(batch[SCORE.name], dtype=np.float64),
                prompt_N=np.repeat(np.arange(len(requests)), job.candidates),
                candidate_N=np.asarray(batch[CANDIDATE.name]),
            )
        progress(f"{name}: {len(waves)} candidates ({count} of {len(missing)} classes)")


@dataclass(frozen=True)
class Candidates:
    """All candidates of one class."""

    prompts: tuple[str, ...]
    wave_NT: np.ndarray
    """float32, within -1..1, at the pool's rate."""
    audio_ND: np.ndarray
    """Unit CLAP embeddings of the waves, and `text_ND` those of their prompts."""
    text_ND: np.ndarray
    score_N: np.ndarray
    prompt_N: np.ndarray
    """Which prompt each was made for."""

    def drawn(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(P, count) rows: `count` different candidates of each prompt."""
        return np.stack(
            [rng.permutation(np.flatnonzero(self.prompt_N == prompt))[:count] for prompt in range(len(self.prompts))]
        )

    def best(self, rows_PK: np.ndarray, score_N: np.ndarray | None = None) -> np.ndarray:
        """(P,) the highest score of each row of candidates; the first of equal ones."""
        score_N = self.score_N if score_N is None else score_N
        picked_P: np.ndarray = rows_PK[np.arange(len(rows_PK)), score_N[rows_PK].argmax(axis=1)]
        return picked_P


@dataclass(frozen=True)
class Pool:
    """A finished pool."""

    model: str
    """Digest of the model that made it."""
    sample_rate_hz: int
    classes: dict[str, Candidates]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises DataError if there is no pool, or some of its classes are missing or damaged."""
        try:
            note = json.loads((folder / POOL_FILE).read_text(encoding="utf-8"))
            classes = {}
            for name, prompts in note["prompts"].items():
                with np.load(_file(folder, name), allow_pickle=False) as arrays:
                    found = {key: arrays[key] for key in ("audio_ND", "text_ND", "score_N", "prompt_N")}
                    classes[name] = Candidates(tuple(prompts), arrays["wave_NT"].astype(np.float32) / PCM, **found)
            return cls(note["model"], note["sample_rate_hz"], classes)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"no whole pool in {folder} ({error}); make it with jobs/experiments/candidates.py") from None


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npz"
