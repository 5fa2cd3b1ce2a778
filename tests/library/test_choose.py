"""The gates and the near-duplicates, on stored draws of made-up sounds."""

from pathlib import Path

import numpy as np
import pytest

from foley_ray.config import ClipSettings
from foley_ray.library.choose import Choice, choose, unsettled
from foley_ray.library.plan import Gates, PlannedClip
from foley_ray.library.store import Store


def clip(index: int, catid: str = "RAIN", **changes) -> PlannedClip:
    gates = changes.pop("gates", Gates(similarity=None))
    settings = ClipSettings(candidates=2, **changes)
    return PlannedClip(f"{index:016x}", catid, f"{catid}_Rain {index:02d}_C_S", "rain", index, settings, gates, ())


def unit(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path / "library")
    with store.locked():
        yield store


def save(
    store: Store,
    one: PlannedClip,
    waves: list[np.ndarray],
    scores: list[float],
    angles: list[float],
    draw: int = 0,
    novelty: tuple[float, float] = (np.nan, np.nan),
) -> None:
    batch = {
        "candidate": [2 * draw, 2 * draw + 1],
        "score": scores,
        "audio_embedding": [unit(a) for a in angles],
        "novelty": list(novelty),
        "wave": waves,
    }
    store.save_draw(one.id, draw, batch)


def sound(peak: float = 0.5, dc: float = 0.0) -> np.ndarray:
    return (peak * np.sin(np.arange(1000)) + dc).astype(np.float32)


def test_a_target_sound_decides_instead_of_the_prompt(store: Store) -> None:
    one, two = clip(0, threshold=0.95, max_redraws=1), clip(1)
    for each in (one, two):
        save(store, each, [sound(), sound()], [0.99, 0.1], [0, 1])
    targets = {one.id: unit(0.9), two.id: unit(2.0)}
    assert not unsettled(one, 1, store)
    assert not unsettled(one, 1, store, targets[one.id])
    first, second = choose([one, two], store.draws(), store, targets)
    assert (first.candidate, first.passed) == (1, True)
    assert first.scores == tuple(round(float(np.cos(0.9 - angle)), 6) for angle in (0, 1))
    assert (second.candidate, second.scores[1]) == (1, round(float(np.cos(1)), 6))
    assert unsettled(one, 1, store, unit(2.0))


def test_draws_that_other_targets_once_asked_for_count_no_more(store: Store) -> None:
    one = clip(0, threshold=0.95, max_redraws=1)
    save(store, one, [sound(), sound()], [0.5, 0.5], [0, 1])
    save(store, one, [sound(), sound()], [0.5, 0.5], [0.9, 2], draw=1)
    (found,) = choose([one], store.draws(), store, {one.id: unit(0.95)})
    assert (found.candidate, len(found.scores)) == (1, 2)  # 2 would be nearer, but an unbroken run never made it
    (found,) = choose([one], store.draws(), store, {one.id: unit(2)})
    assert (found.candidate, len(found.scores)) == (3, 4)


def test_among_many_the_nearest_is_found_as_by_the_slow_way(store: Store) -> None:
    rng = np.random.default_rng(0)
    clips = [clip(index, gates=Gates(similarity=0.9999)) for index in range(150)]
    angles = rng.uniform(0, 2 * np.pi, len(clips))
    for one, angle in zip(clips, angles, strict=True):
        save(store, one, [sound(), sound()], [0.9, 0.9], [angle, angle])
    kept: list[int] = []
    for choice, index in zip(chosen(store, *clips), range(len(clips)), strict=True):
        cosines = [round(float((unit(angles[index]).astype(np.float64) * unit(angles[other])).sum()), 6) for other in kept]
        if cosines and max(cosines) > 0.9999:
            assert f"like {clips[kept[cosines.index(max(cosines))]].stem}:" in choice.reason
        else:
            assert choice.gate is None
            kept.append(index)
    assert 64 < len(kept) < len(clips)


def chosen(store: Store, *clips: PlannedClip) -> list[Choice]:
    return choose(clips, store.draws(), store)


@pytest.mark.parametrize(
    ("bad", "gate", "reason"),
    [
        (sound(0.001), "silence", "its peak -60.0 dBFS is below -50"),
        (sound(1.5).clip(-1, 1), "clipped", "of its samples are at full scale, more than 0.10%"),
        (sound(0.5, 0.1), "dc", "its mean 0.1"),
    ],
)
def test_a_bad_candidate_gives_way_to_a_good_one_and_two_bad_ones_reject_the_clip(
    bad: np.ndarray, gate: str, reason: str, store: Store
) -> None:
    one, two = clip(0), clip(1)
    save(store, one, [bad, sound()], [0.9, 0.1], [0, 1])
    save(store, two, [bad, bad], [0.9, 0.1], [0, 1])
    first, second = chosen(store, one, two)
    assert (first.candidate, first.gate) == (1, None)
    assert (second.candidate, second.gate) == (0, gate)
    assert reason in second.reason


def test_a_low_score_is_rejected(store: Store) -> None:
    one = clip(0, gates=Gates(score=0.5))
    save(store, one, [sound(), sound()], [0.3, 0.4], [0, 1])
    assert chosen(store, one)[0].reason == "its score 0.400 is below 0.5"


def test_a_near_copy_of_a_recording_gives_way_and_two_reject_the_clip_unless_the_plan_wants_them(store: Store) -> None:
    one, two = clip(0), clip(1, max_redraws=0)
    three = clip(2, max_redraws=0, gates=Gates(similarity=None, novelty=None))
    save(store, one, [sound(), sound()], [0.9, 0.1], [0, 1], novelty=(0.5, 1.5))
    for each in (two, three):
        save(store, each, [sound(), sound()], [0.9, 0.1], [0, 1], novelty=(0.5, 0.7))
    first, second, third = chosen(store, one, two, three)
    assert (first.candidate, first.novelty, first.gate) == (1, 1.5, None)
    assert (second.candidate, second.gate) == (0, "novelty")
    assert second.reason == "it is nearly a recording that the model learned from: novelty 0.50, below 1"
    assert (third.candidate, third.gate) == (0, None)


def test_two_near_copies_ask_for_another_draw(store: Store) -> None:
    one = clip(0, max_redraws=1)
    save(store, one, [sound(), sound()], [0.9, 0.1], [0, 1], novelty=(0.5, 0.7))
    assert unsettled(one, 1, store)
    wanted = clip(0, max_redraws=1, gates=Gates(similarity=None, novelty=None))
    assert not unsettled(wanted, 1, store)
    save(store, one, [sound(), sound()], [0.2, 0.1], [0, 1], draw=1, novelty=(2.0, 3.0))
    assert not unsettled(one, 2, store)
    assert chosen(store, one)[0].candidate == 2


def test_of_near_duplicates_the_first_in_plan_order_stays_and_the_next_takes_another_candidate(store: Store) -> None:
    clips = [clip(index, gates=Gates(similarity=0.99)) for index in range(3)] + [clip(3, "ANMLDog")]
    for one in reversed(clips):  # whichever was made first
        save(store, one, [sound(), sound()], [0.9, 0.8], [0, 1])
    first, second, third, other = chosen(store, *clips)
    assert [first.candidate, second.candidate, third.gate, other.candidate] == [0, 1, "similarity", 0]
    assert third.reason == "it is like RAIN_Rain 00_C_S: cosine 1.0000, above 0.99"


def test_scores_that_differ_by_rounding_noise_are_equal_and_the_lowest_index_wins(store: Store) -> None:
    one = clip(0)
    save(store, one, [sound(), sound()], [0.5, 0.5 + 1e-7], [0, 1])
    assert chosen(store, one)[0].candidate == 0


def test_redraws_follow_the_threshold_and_the_best_of_all_draws_is_chosen(store: Store) -> None:
    one = clip(0, threshold=0.8, max_redraws=1)
    assert unsettled(one, 0, store)
    save(store, one, [sound(), sound()], [0.7, 0.6], [0, 1])
    assert unsettled(one, 1, store)
    save(store, one, [sound(), sound()], [0.5, 0.75], [0, 1], draw=1)
    assert not unsettled(one, 2, store)
    found = chosen(store, one)[0]
    assert (found.candidate, found.passed, found.scores) == (3, False, (0.7, 0.6, 0.5, 0.75))
    np.testing.assert_array_equal(store.wave(one.id, 3, 2), sound())
