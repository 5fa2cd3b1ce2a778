"""One clip: what is asked for, which candidates a draw of it has, and what came out. Knows no models and no runtime."""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from foley_ray.columns import CANDIDATE, CLIP_ID, DURATION_S, ETA, GUIDANCE, LOOP, PROMPT, SAMPLER, SEED, STEPS, Batch
from foley_ray.config import ClipSettings

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
class Clip:
    """A finished clip and how it was chosen."""

    request: ClipRequest
    wave_T: np.ndarray
    """float32, within -1..1, at the model's sample rate."""
    candidate: int
    """Index of the winner over all draws."""
    scores: tuple[float, ...]
    """Score of every candidate of every draw."""
    passed: bool
    """False if no candidate reached the threshold within the allowed redraws; this is then the best there was."""
    doubt: str | None = None
    """A warning: the prompt is far from every sound that the model was taught."""

    @property
    def score(self) -> float:
        """The winner's score."""
        return self.scores[self.candidate]

    @property
    def verdict(self) -> str:
        """The winner's score for people; a model whose CLAP does not hear gives none."""
        return "not ranked" if math.isnan(self.score) else f"score {self.score:.3f}"


@dataclass(frozen=True)
class Candidate:
    """One of the sounds that were made for a clip."""

    index: int
    score: float
    wave_T: np.ndarray | None = None
    """None where only the best is wanted and this is not it."""


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Best first; of equal scores the lowest index. Six digits: what differs less is rounding noise of another machine."""
    return sorted(candidates, key=lambda candidate: (-round(candidate.score, 6), candidate.index))


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
                    SAMPLER.name: settings.sampler,
                    ETA.name: settings.eta,
                    DURATION_S.name: settings.duration_s,
                    LOOP.name: settings.loop,
                }
            )
    return {name: [row[name] for row in rows] for name in rows[0]}


def passes(settings: ClipSettings, score: float) -> bool:
    """Whether a clip with this score needs no other draw."""
    return settings.threshold is None or score >= settings.threshold


def must_be_ranked(request: ClipRequest) -> bool:
    """Whether somebody has to listen: to choose a candidate, to hold it against a threshold or against a target sound."""
    return request.settings.candidates > 1 or request.settings.threshold is not None or request.target_D is not None
