"""Which candidate of each clip is delivered: the gates, then near-duplicates, in plan order over what is stored.

A pure function of the stored draws and the plan: whatever was killed and made again in whichever order, the choice is the same.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foley_ray.clip import Candidate, passes, ranked
from foley_ray.library.plan import Gates, PlannedClip
from foley_ray.library.store import Draw, Store

DIGITS = 6
"""What differs less in a score or a cosine is rounding noise of another machine."""


@dataclass(frozen=True)
class Choice:
    """A clip's fate: a candidate to deliver, or the reason why there is none."""

    clip: PlannedClip
    scores: tuple[float, ...]
    """Of all candidates of all draws."""
    candidate: int
    """The one that is delivered; of a rejected clip its best."""
    embedding_D: np.ndarray
    gate: str | None = None
    """The gate that rejected it: silence, clipped, dc, score or similarity."""
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
    return 1 if clip.settings.threshold is None else 1 + clip.settings.max_redraws


def unsettled(clip: PlannedClip, draws: int, store: Store) -> bool:
    """Whether a clip with that many draws needs another one: the rule of `Pipeline.generate`."""
    if draws in (0, most_draws(clip)):
        return draws == 0
    best = max(float(store.draw(clip.id, draw).score.max()) for draw in range(draws))
    return not passes(clip.settings, best)


def choose(clips: Sequence[PlannedClip], draws: dict[str, int], store: Store) -> list[Choice]:
    """A choice for every clip that has been made, in plan order."""
    delivered: dict[str, list[np.ndarray]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    choices = []
    for clip in clips:
        if clip.id not in draws:
            continue
        found = [store.draw(clip.id, draw) for draw in range(draws[clip.id])]
        choice = _choose_one(clip, found, delivered[clip.catid], names[clip.catid])
        choices.append(choice)
        if choice.gate is None:
            delivered[clip.catid].append(choice.embedding_D)
            names[clip.catid].append(clip.stem)
    return choices


def _choose_one(clip: PlannedClip, draws: Sequence[Draw], delivered: Sequence[np.ndarray], names: Sequence[str]) -> Choice:
    """The best candidate that passes the gates and is unlike all delivered ones; else the best one's reason."""
    candidates = [(draw, row) for draw in draws for row in range(len(draw.candidate))]
    scores = tuple(round(float(draw.score[row]), DIGITS) for draw, row in candidates)
    earlier_KD = np.stack(delivered) if delivered else None
    refusals = []
    for best in ranked(Candidate(index, score) for index, score in enumerate(scores)):
        draw, row = candidates[best.index]
        embedding_D = draw.embedding_ND[row]
        gate, reason = _refused(clip.gates, draw, row, best.score) or _too_similar(clip.gates, embedding_D, earlier_KD, names)
        if gate is None:
            return Choice(clip, scores, best.index, embedding_D)
        refusals.append(Choice(clip, scores, best.index, embedding_D, gate, reason))
    return refusals[0]


def _refused(gates: Gates, draw: Draw, row: int, score: float) -> tuple[str, str] | None:
    peak, clipped, dc = float(draw.peak[row]), float(draw.clipped[row]), float(draw.dc[row])
    if gates.silence_dbfs is not None and peak < 10 ** (gates.silence_dbfs / 20):
        return "silence", f"its peak {20 * np.log10(max(peak, 1e-9)):.1f} dBFS is below {gates.silence_dbfs:g}"
    if gates.clipped is not None and clipped > gates.clipped:
        return "clipped", f"{clipped:.2%} of its samples are at full scale, more than {gates.clipped:.2%}"
    if gates.dc is not None and dc > gates.dc:
        return "dc", f"its mean {dc:.4f} is above {gates.dc:g} of full scale"
    if gates.score is not None and score < gates.score:
        return "score", f"its score {score:.3f} is below {gates.score:g}"
    return None


def _too_similar(
    gates: Gates, embedding_D: np.ndarray, earlier_KD: np.ndarray | None, names: Sequence[str]
) -> tuple[str | None, str]:
    if gates.similarity is None or earlier_KD is None:
        return None, ""
    # elementwise and summed, not a matrix product, whose rounding depends on how many rows it has
    cosine_K = (earlier_KD.astype(np.float64) * embedding_D).sum(axis=1).round(DIGITS)
    nearest = int(cosine_K.argmax())
    if cosine_K[nearest] <= gates.similarity:
        return None, ""
    return "similarity", f"it is like {names[nearest]}: cosine {cosine_K[nearest]:.4f}, above {gates.similarity:g}"
