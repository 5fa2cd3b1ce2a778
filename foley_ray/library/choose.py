"""Which candidate of each clip is delivered: the gates, then near-duplicates, in plan order over what is stored.

A pure function of the stored draws, the plan and its targets: whatever was killed and made again in whichever order, the
choice is the same. Scores are those that the candidates were stored with, cosines to the prompt; a clip with a target sound is
scored here, against it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foley_ray.clip import Candidate, passes, ranked, settles
from foley_ray.library.plan import Gates, PlannedClip
from foley_ray.library.store import Draw, Store

DIGITS = 6
"""What differs less in a score or a cosine is rounding noise of another machine."""
ROWS = 256
"""Embeddings of delivered clips that are kept in one piece."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A clip's fate: a candidate to deliver, or the reason why there is none."""

    clip: PlannedClip
    scores: tuple[float, ...]
    """Of all candidates of all draws."""
    candidate: int
    """The one that is delivered; of a rejected clip its best."""
    novelty: float
    """Of the candidate (originals.py); NaN where the model does not know it."""
    gate: str | None = None
    """The gate that rejected it: silence, clipped, dc, score, novelty or similarity."""
    reason: str = ""

    @property
    def score(self) -> float:
        """Of the candidate."""
        return self.scores[self.candidate]

    @property
    def passed(self) -> bool:
        """Whether the candidate reached the clip's threshold."""
        return passes(self.clip.settings, self.score)


def most_draws(clip: PlannedClip) -> int:
    """How many draws of a clip there can be."""
    return 1 + clip.settings.max_redraws


def unsettled(clip: PlannedClip, draws: int, store: Store, target_D: np.ndarray | None = None) -> bool:
    """Whether a clip with that many draws needs another one: the rule of `Pipeline.generate`."""
    if draws in (0, most_draws(clip)):
        return draws == 0
    return not any(_settles(clip, store.draw(clip.id, draw), target_D) for draw in range(draws))


def choose(
    clips: Sequence[PlannedClip], draws: dict[str, int], store: Store, targets: Mapping[str, np.ndarray] | None = None
) -> list[Choice]:
    """A choice for every clip that has been made, in plan order; `targets` are embeddings (D,) by clip id."""
    earlier: dict[str, _Delivered] = defaultdict(_Delivered)
    choices = []
    for clip in clips:
        if clip.id not in draws:
            continue
        target_D = (targets or {}).get(clip.id)
        found = _until_settled(clip, draws[clip.id], store, target_D)
        choices.append(_choose_one(clip, found, earlier[clip.catid], target_D))
    return choices


def _until_settled(clip: PlannedClip, draws: int, store: Store, target_D: np.ndarray | None) -> list[Draw]:
    """The draws that an unbroken run would have made: with other targets there may once have been more."""
    found = []
    for draw in range(draws):
        found.append(store.draw(clip.id, draw))
        if _settles(clip, found[-1], target_D):
            break
    return found


def _settles(clip: PlannedClip, draw: Draw, target_D: np.ndarray | None) -> bool:
    best = ranked(_candidates([draw], target_D))[0]
    if clip.gates.novelty is None:  # near copies may be delivered, where there is nothing else
        return passes(clip.settings, best.score)
    return settles(clip.settings, best)


def _scores(draw: Draw, target_D: np.ndarray | None) -> list[float]:
    """Of a draw's candidates, against the prompt or a target sound (D,)."""
    score_N = draw.score.astype(np.float64) if target_D is None else _cosine(draw.embedding_ND, target_D)
    return [round(float(score), DIGITS) for score in score_N]


def _candidates(draws: Sequence[Draw], target_D: np.ndarray | None) -> list[Candidate]:
    """Of all these draws, in their order, without waves."""
    heard = [pair for draw in draws for pair in zip(_scores(draw, target_D), draw.novelty.round(DIGITS).tolist(), strict=True)]
    return [Candidate(index, score, novelty) for index, (score, novelty) in enumerate(heard)]


def _cosine(embedding_ND: np.ndarray, other_D: np.ndarray) -> np.ndarray:
    # elementwise and summed, not a matrix product, whose rounding depends on how many rows it has
    return np.asarray((embedding_ND.astype(np.float64) * other_D).sum(axis=1))


class _Delivered:
    """Embeddings and names of what is delivered of a CatID."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.parts: list[np.ndarray] = []
        """(ROWS, D) each; the last has room for more."""

    def add(self, embedding_D: np.ndarray, name: str) -> None:
        row = len(self.names) % ROWS
        if row == 0:
            self.parts.append(np.zeros((ROWS, len(embedding_D)), dtype=np.float32))
        self.parts[-1][row] = embedding_D
        self.names.append(name)

    def nearest(self, embedding_D: np.ndarray) -> tuple[float, str]:
        """Highest cosine, and whose it is; of equal ones the first."""
        if not self.names:
            return -1.0, ""
        # tells which ones are worth the exact sum
        rough_K = np.concatenate([part_KD @ embedding_D for part_KD in self.parts])[: len(self.names)]
        near = np.flatnonzero(rough_K >= rough_K.max() - 1e-4)
        cosine_K = _cosine(np.stack([self.parts[row // ROWS][row % ROWS] for row in near]), embedding_D).round(DIGITS)
        best = int(cosine_K.argmax())
        return float(cosine_K[best]), self.names[near[best]]


def _choose_one(clip: PlannedClip, draws: Sequence[Draw], earlier: _Delivered, target_D: np.ndarray | None) -> Choice:
    """The best candidate that passes the gates and is unlike all delivered ones, which it joins; else the best one's reason."""
    stored = [(draw, row) for draw in draws for row in range(len(draw.candidate))]
    candidates = _candidates(draws, target_D)
    scores = tuple(candidate.score for candidate in candidates)
    refusals = []
    for best in ranked(candidates):
        draw, row = stored[best.index]
        embedding_D = draw.embedding_ND[row]
        gate, reason = _refused(clip.gates, draw, row, best) or _too_similar(clip.gates, embedding_D, earlier)
        if gate is None:
            earlier.add(embedding_D, clip.stem)
            return Choice(clip, scores, best.index, best.novelty)
        refusals.append(Choice(clip, scores, best.index, best.novelty, gate, reason))
    return refusals[0]


def _refused(gates: Gates, draw: Draw, row: int, candidate: Candidate) -> tuple[str, str] | None:
    peak, clipped, dc = float(draw.peak[row]), float(draw.clipped[row]), float(draw.dc[row])
    if gates.silence_dbfs is not None and peak < 10 ** (gates.silence_dbfs / 20):
        return "silence", f"its peak {20 * np.log10(max(peak, 1e-9)):.1f} dBFS is below {gates.silence_dbfs:g}"
    if gates.clipped is not None and clipped > gates.clipped:
        return "clipped", f"{clipped:.2%} of its samples are at full scale, more than {gates.clipped:.2%}"
    if gates.dc is not None and dc > gates.dc:
        return "dc", f"its mean {dc:.4f} is above {gates.dc:g} of full scale"
    if gates.score is not None and candidate.score < gates.score:
        return "score", f"its score {candidate.score:.3f} is below {gates.score:g}"
    if gates.novelty is not None and candidate.novelty < gates.novelty:
        near = f"novelty {candidate.novelty:.2f}, below {gates.novelty:g}"
        return "novelty", f"it is nearly a recording that the model learned from: {near}"
    return None


def _too_similar(gates: Gates, embedding_D: np.ndarray, earlier: _Delivered) -> tuple[str | None, str]:
    if gates.similarity is None:
        return None, ""
    cosine, name = earlier.nearest(embedding_D)
    if not name or cosine <= gates.similarity:
        return None, ""
    return "similarity", f"it is like {name}: cosine {cosine:.4f}, above {gates.similarity:g}"
