"""Which candidate of a clip is the best, and when there need be no other."""

import math

import numpy as np
import pytest

from foley_ray.clip import Candidate, Clip, ClipRequest, candidates_of, ranked, settles, without_waves
from foley_ray.config import ClipSettings

WAVE = np.zeros(4, dtype=np.float32)


def test_scores_rank_and_ties_go_to_the_first() -> None:
    assert [c.index for c in ranked([Candidate(0, 0.1), Candidate(1, 0.5), Candidate(2, 0.5 + 1e-9)])] == [1, 2, 0]


def test_a_near_copy_comes_after_every_other_however_it_scores() -> None:
    found = ranked([Candidate(0, 0.9, novelty=0.4), Candidate(1, 0.2, novelty=3.0), Candidate(2, 0.3)])
    assert [(c.index, c.copied) for c in found] == [(2, False), (1, False), (0, True)]


@pytest.mark.parametrize(
    ("threshold", "best", "settled"),
    [
        (None, Candidate(0, -0.5), True),
        (0.5, Candidate(0, 0.5), True),
        (0.5, Candidate(0, 0.4), False),
        (None, Candidate(0, 0.9, novelty=0.9), False),
        (None, Candidate(0, 0.9, novelty=1.0), True),
    ],
)
def test_a_threshold_missed_and_a_near_copy_ask_for_another_draw(
    threshold: float | None, best: Candidate, settled: bool
) -> None:
    assert settles(ClipSettings(threshold=threshold), best) is settled


def test_a_clip_tells_of_its_best_and_of_all() -> None:
    request = ClipRequest("rain", 1, ClipSettings(threshold=0.5))
    clip = Clip(request, (Candidate(2, 0.4, 0.7, WAVE), Candidate(0, 0.3, 0.2), Candidate(1, 0.1, 0.9)), "doubtful")
    assert (clip.best.index, clip.score, clip.scores, clip.passed) == (2, 0.4, (0.3, 0.1, 0.4), False)
    assert clip.warnings[0] == "doubtful"
    assert "novelty 0.70" in clip.warnings[1]
    assert Clip(request, (Candidate(0, 0.9, 1.2, WAVE),)).warnings == []
    with pytest.raises(ValueError, match="candidate 3 came without its wave"):
        Clip(request, (Candidate(3, 0.5),)).wave_T  # noqa: B018


def test_candidates_come_out_of_a_batch_by_clip_and_only_the_first_keeps_its_wave() -> None:
    batch = {
        "clip_id": ["a", "b", "a"],
        "candidate": [0, 0, 1],
        "score": [0.1, 0.9, 0.5],
        "novelty": [math.nan, 2.0, 3.0],
        "wave": [WAVE] * 3,
    }
    found = candidates_of(batch)
    assert {name: [c.index for c in items] for name, items in found.items()} == {"a": [0, 1], "b": [0]}
    first, second = without_waves(ranked(found["a"]))
    assert (first.index, first.wave_T is WAVE, second.wave_T) == (1, True, None)
