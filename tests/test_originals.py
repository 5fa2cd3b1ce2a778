"""What a model knows of the recordings it learned from, and what is done about a near copy."""

from pathlib import Path

import numpy as np
import pytest

from foley_ray.audio.likeness import picture_distance
from foley_ray.errors import ModelError
from foley_ray.originals import FAR, FAR_SEEN, LOOKED_AT, MARGIN, ORIGINALS_FILE, SAME, SAME_SEEN, Originals


def unit(*angles: float) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def pictures(*places: int) -> np.ndarray:
    """An event of three frames in each of which another band sounds, so that none is like another; -1 is silence."""
    picture_NFM = np.zeros((len(places), 40, 10), dtype=np.uint8)
    for picture_FM, place in zip(picture_NFM, places, strict=True):
        if place >= 0:
            picture_FM[5:8, place] = 255
    return picture_NFM


def heard_alone(embedding_ND: np.ndarray, limit_N: np.ndarray) -> Originals:
    """Whose pictures are of silence, which is like nothing."""
    count = len(embedding_ND)
    return Originals(embedding_ND, limit_N, pictures(*[-1] * count), np.full(count, 1e-4, dtype=np.float32))


SILENCE = pictures(-1)[0]


def test_novelty_is_the_distance_to_the_nearest_over_its_own_limit() -> None:
    originals = heard_alone(unit(0.0, 1.5), np.array([0.1, 0.4], dtype=np.float32))
    assert originals.novelty(unit(0.0)[0], SILENCE) == pytest.approx(0, abs=1e-6)
    assert originals.novelty(unit(0.3)[0], SILENCE) == pytest.approx((1 - np.cos(0.3)) / 0.1, rel=1e-4)
    assert originals.novelty(unit(1.0)[0], SILENCE) == pytest.approx((1 - np.cos(0.5)) / 0.4, rel=1e-4)


def test_what_sounds_otherwise_but_looks_the_same_is_no_news() -> None:
    limit_N = np.array([0.1, 0.1], dtype=np.float32)
    originals = Originals(unit(0.0, 1.5), 1e-4 * limit_N, pictures(1, 2), limit_N)
    later = np.roll(pictures(1)[0], 9, axis=0)
    assert originals.novelty(unit(0.7)[0], later) < 0.3  # the silence that fell off the edge counts a little
    both = pictures(1)[0] // 2 + pictures(3)[0] // 2
    assert originals.novelty(unit(0.7)[0], both) == pytest.approx((1 - 0.5**0.5) / 0.1, rel=0.02)
    assert originals.novelty(unit(0.7)[0], pictures(3)[0]) == pytest.approx(1 / 0.1, rel=1e-3)


def test_of_very_many_originals_those_that_sound_nearest_are_looked_at() -> None:
    count = LOOKED_AT + 50
    limit_N = np.full(count, 0.1, dtype=np.float32)
    originals = Originals(unit(*np.linspace(0.5, 1.5, count)), 1e-6 * limit_N, pictures(4, *[5] * (count - 1)), limit_N)
    assert originals.novelty(unit(0.4)[0], pictures(4)[0]) == pytest.approx(0, abs=1e-4)
    assert originals.novelty(unit(1.6)[0], pictures(4)[0]) > 1


def test_a_limit_is_how_near_recordings_of_a_class_come_to_each_other() -> None:
    # two windows of one recording are no two witnesses, another class neither
    embedding_ND = unit(0.0, 0.01, 0.2, 1.0, 1.1, 1.5)
    recordings, classes = ["a", "a", "b", "c", "d", "e"], ["bark", "bark", "bark", "rain", "rain", "lone"]
    half = pictures(1) // 2 + pictures(2) // 2
    picture_NFM = np.concatenate([pictures(1, 1), half, pictures(3), pictures(3) // 16 + pictures(4), pictures(5)])
    originals = Originals.of(embedding_ND, picture_NFM, recordings, classes)
    bark = np.percentile(1 - np.cos([0.2, 0.19, 0.19]), 1)
    rain = 1 - np.cos(0.1)
    everywhere = np.percentile(1 - np.cos([0.2, 0.19, 0.19, 0.1, 0.1]), 1)
    np.testing.assert_allclose(originals.limit_N, np.multiply(MARGIN, [bark] * 3 + [rain] * 2 + [everywhere]), rtol=1e-2)
    np.testing.assert_allclose(originals.seen_limit_N, FAR_SEEN)  # all are far apart: 0.3 and more


def test_pictures_that_are_alike_lower_the_limit_of_their_class() -> None:
    alike = np.concatenate([pictures(1), pictures(1) // 8 * 7 + pictures(2) // 4])
    apart = float(picture_distance(alike[:1], alike[1:])[0, 0])
    assert SAME_SEEN < MARGIN * apart < FAR_SEEN
    originals = Originals.of(unit(0.0, 1.5, 0.7), np.concatenate([alike, pictures(4)]), list("abc"), ["click", "click", "x"])
    np.testing.assert_allclose(originals.seen_limit_N, MARGIN * apart, rtol=1e-4)


def test_recordings_that_are_all_unlike_make_no_copy_of_what_is_far() -> None:
    originals = Originals.of(unit(0.0, 1.5), pictures(1, 2), ["a", "b"], ["bark", "bark"])
    assert originals.novelty(unit(0.6)[0], SILENCE) == pytest.approx(min((1 - np.cos(0.6)) / FAR, 1 / FAR_SEEN), rel=1e-3)


def test_recordings_that_are_there_twice_switch_nothing_off(tmp_path: Path) -> None:
    originals = Originals.of(unit(0.0, 0.0), pictures(1, 1), ["a", "b"], ["bark", "bark"])
    again = Originals.load(tmp_path, originals.save(tmp_path))
    assert 0 <= again.novelty(unit(0.0)[0], SILENCE) < 0.5
    assert 0 <= again.novelty(unit(1.0)[0], pictures(1)[0]) < 0.5
    assert again.novelty(unit(1.0)[0], pictures(2)[0]) > 40


@pytest.mark.parametrize("classes", [["bark"], ["bark", "rain"]])
def test_of_recordings_that_have_no_other_to_be_measured_by_only_the_same_is_a_copy(classes: list[str]) -> None:
    count = len(classes)
    originals = Originals.of(unit(*range(count)), pictures(*range(count)), list("ab")[:count], classes)
    np.testing.assert_allclose(originals.limit_N, MARGIN * SAME)
    np.testing.assert_allclose(originals.seen_limit_N, MARGIN * SAME_SEEN)


def test_joined_ones_know_what_either_knew_by_its_own_limits(tmp_path: Path) -> None:
    old = heard_alone(unit(0.0), np.array([0.1], dtype=np.float32))
    new = Originals(unit(1.5), np.array([0.4], dtype=np.float32), pictures(1), np.array([0.1], dtype=np.float32))
    both = old.joined(new)
    for angle in (0.3, 1.0, 1.5):
        apart = min(old.novelty(unit(angle)[0], SILENCE), new.novelty(unit(angle)[0], SILENCE))
        assert both.novelty(unit(angle)[0], SILENCE) == pytest.approx(apart)
    assert both.novelty(unit(0.7)[0], pictures(1)[0]) == pytest.approx(0, abs=1e-4)
    assert len(Originals.load(tmp_path, both.save(tmp_path)).limit_N) == 2


def test_what_is_saved_is_read_again_and_another_file_is_not(tmp_path: Path) -> None:
    originals = Originals.of(unit(0.0, 0.5, 1.0), pictures(1, 2, 3), ["a", "b", "c"], [""] * 3)
    digest = originals.save(tmp_path)
    again = Originals.load(tmp_path, digest)
    np.testing.assert_allclose(again.embedding_ND, originals.embedding_ND, atol=1e-3)
    for name in ("limit_N", "picture_NFM", "seen_limit_N"):
        np.testing.assert_array_equal(getattr(again, name), getattr(originals, name))
    with pytest.raises(ModelError, match="is not the file"):
        Originals.load(tmp_path, "0" * 16)
    (tmp_path / ORIGINALS_FILE).write_bytes(b"no")
    with pytest.raises(ModelError, match="cannot be read"):
        Originals.load(tmp_path, digest)
    with pytest.raises(ModelError, match="cannot be read"):
        Originals.load(tmp_path / "elsewhere", digest)
