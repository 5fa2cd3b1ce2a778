"""One clip: what is asked for, which candidates a draw of it has, and what came out. Knows no models and no runtime."""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foley_ray.columns import (
    CANDIDATE,
    CLIP_ID,
    DURATION_S,
    ETA,
    GUIDANCE,
    GUIDED_ABOVE,
    GUIDED_BELOW,
    LOOP,
    NOVELTY,
    PROMPT,
    SAMPLER,
    SCORE,
    SEED,
    STEPS,
    WAVE,
    Batch,
)
from foley_ray.config import ClipSettings
from foley_ray.originals import NEAR_COPY

OUTPUT_RATE_HZ = 22_050
"""Rate of the files made of clips, the challenge's; a model of another rate (`large`) is resampled, as the paper does."""


@dataclass(frozen=True)
class ClipRequest:
    """One clip to make. `target_D` replaces the prompt's embedding in ranking (multi-target selection)."""

    prompt: str
    seed: int
    settings: ClipSettings
    target_D: np.ndarray | None = None
    target_name: str | None = None


@dataclass(frozen=True)
class Candidate:
    """One of the sounds that were made for a clip."""

    index: int
    """Among the candidates of all draws."""
    score: float
    novelty: float = math.nan
    """How far it is from what the model learned from (originals.py); NaN where that is not known."""
    wave_T: np.ndarray | None = None
    """float32, within -1..1, at the model's sample rate. None where only the best is wanted and this is not it."""

    @property
    def copied(self) -> bool:
        """Whether it is nearly a recording that the model learned from."""
        return self.novelty < NEAR_COPY


@dataclass(frozen=True)
class Clip:
    """A finished clip: all its candidates, best first; the best has its wave, the others if asked for."""

    request: ClipRequest
    candidates: tuple[Candidate, ...]
    doubt: str | None = None
    """A warning: the prompt is far from every sound that the model was taught."""

    @property
    def best(self) -> Candidate:
        """The one to deliver."""
        return self.candidates[0]

    @property
    def wave_T(self) -> np.ndarray:
        """The best candidate's."""
        if self.best.wave_T is None:
            raise ValueError(f"candidate {self.best.index} came without its wave")
        return self.best.wave_T

    @property
    def score(self) -> float:
        """The best candidate's."""
        return self.best.score

    @property
    def scores(self) -> tuple[float, ...]:
        """Score of every candidate of every draw, in the order of their indices."""
        return tuple(item.score for item in sorted(self.candidates, key=lambda item: item.index))

    @property
    def passed(self) -> bool:
        """Whether the best candidate reached the threshold; if not, only near copies did, or none."""
        return passes(self.request.settings, self.score)

    @property
    def warnings(self) -> list[str]:
        """What to tell who gets this clip."""
        found = [self.doubt] if self.doubt else []
        if self.best.copied:
            found.append(
                f"seed {self.request.seed}: this sound is nearly a recording that the model learned from (novelty "
                f"{self.best.novelty:.2f}, below {NEAR_COPY:g}), and so was every candidate"
            )
        return found

    @property
    def verdict(self) -> str:
        """The best candidate's score for people; a model whose CLAP does not hear gives none."""
        return "not ranked" if math.isnan(self.score) else f"score {self.score:.3f}"


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Best first: what is no near copy, then the higher score, then the lower index.

    Scores count to six digits: what differs less is rounding noise of another machine.
    """
    return sorted(candidates, key=lambda candidate: (candidate.copied, -round(candidate.score, 6), candidate.index))


def without_waves(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same, of which only the first keeps its wave: the others' are not worth their room and their way."""
    return [*candidates[:1], *(replace(candidate, wave_T=None) for candidate in candidates[1:])]


def candidates_of(batch: Batch) -> dict[Any, list[Candidate]]:
    """clip id -> its candidates in a batch that was ranked, in the batch's order."""
    found: dict[Any, list[Candidate]] = {}
    columns = (batch[column.name] for column in (CLIP_ID, CANDIDATE, SCORE, NOVELTY, WAVE))
    for clip_id, index, score, novelty, wave_T in zip(*columns, strict=True):
        found.setdefault(clip_id, []).append(Candidate(int(index), float(score), float(novelty), wave_T))
    return found


def draw_batch(wanted: Iterable[tuple[Hashable, ClipRequest]], draw: int) -> Batch:
    """The rows of one draw of each (clip id, request): draw k of n candidates has the indices kn to kn + n - 1."""
    rows: list[dict[str, Any]] = []
    for clip_id, request in wanted:
        settings = request.settings
        for candidate in range(draw * settings.candidates, (draw + 1) * settings.candidates):
            rows.append(
                {
                    CLIP_ID.name: clip_id,
                    CANDIDATE.name: candidate,
                    PROMPT.name: request.prompt,
                    SEED.name: request.seed,
                    STEPS.name: settings.steps,
                    GUIDANCE.name: settings.guidance,
                    GUIDED_ABOVE.name: settings.guided_above,
                    GUIDED_BELOW.name: settings.guided_below,
                    SAMPLER.name: settings.sampler,
                    ETA.name: settings.eta,
                    DURATION_S.name: settings.duration_s,
                    LOOP.name: settings.loop,
                }
            )
    return {name: [row[name] for row in rows] for name in rows[0]}


def passes(settings: ClipSettings, score: float) -> bool:
    """Whether a score reaches the threshold, if there is one."""
    return settings.threshold is None or score >= settings.threshold


def settles(settings: ClipSettings, best: Candidate) -> bool:
    """Whether a clip with this best candidate needs no other draw."""
    return passes(settings, best.score) and not best.copied


def must_be_ranked(request: ClipRequest) -> bool:
    """Whether somebody has to listen: to choose a candidate, to hold it against a threshold or against a target sound."""
    return request.settings.candidates > 1 or request.settings.threshold is not None or request.target_D is not None
