"""What a model knows of the recordings it learned from, and what is done about a near copy."""

from pathlib import Path

import numpy as np
import pytest

from foley_ray.errors import ModelError
from foley_ray.originals import FAR, MARGIN, ORIGINALS_FILE, SAME, Originals


def unit(*angles: float) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_novelty_is_the_distance_to_the_nearest_over_its_own_limit() -> None:
    originals = Originals(unit(0.0, 1.5), np.array([0.1, 0.4], dtype=np.float32))
    assert originals.novelty(unit(0.0)[0]) == pytest.approx(0, abs=1e-6)
    assert originals.novelty(unit(0.3)[0]) == pytest.approx((1 - np.cos(0.3)) / 0.1, rel=1e-4)
    assert originals.novelty(unit(1.0)[0]) == pytest.approx((1 - np.cos(0.5)) / 0.4, rel=1e-4)


def test_a_limit_is_how_near_recordings_of_a_class_come_to_each_other() -> None:
    # two windows of one recording are no two witnesses, another class neither
    embedding_ND = unit(0.0, 0.01, 0.2, 1.0, 1.1, 1.5)
    originals = Originals.of(embedding_ND, ["a", "a", "b", "c", "d", "e"], ["bark", "bark", "bark", "rain", "rain", "lone"])
    bark = np.percentile(1 - np.cos([0.2, 0.19, 0.19]), 1)
    rain = 1 - np.cos(0.1)
    everywhere = np.percentile(1 - np.cos([0.2, 0.19, 0.19, 0.1, 0.1]), 1)
    np.testing.assert_allclose(originals.limit_N, np.multiply(MARGIN, [bark] * 3 + [rain] * 2 + [everywhere]), rtol=1e-2)


def test_recordings_that_are_all_unlike_make_no_copy_of_what_is_far() -> None:
    originals = Originals.of(unit(0.0, 1.5), ["a", "b"], ["bark", "bark"])
    assert originals.novelty(unit(0.6)[0]) == pytest.approx((1 - np.cos(0.6)) / FAR, rel=1e-3)


def test_recordings_that_are_there_twice_switch_nothing_off(tmp_path: Path) -> None:
    originals = Originals.of(unit(0.0, 0.0), ["a", "b"], ["bark", "bark"])
    again = Originals.load(tmp_path, originals.save(tmp_path))
    assert 0 <= again.novelty(unit(0.0)[0]) < 0.5
    assert again.novelty(unit(1.0)[0]) > 100


@pytest.mark.parametrize("classes", [["bark"], ["bark", "rain"]])
def test_of_recordings_that_have_no_other_to_be_measured_by_only_the_same_is_a_copy(classes: list[str]) -> None:
    originals = Originals.of(unit(*range(len(classes))), list("ab")[: len(classes)], classes)
    np.testing.assert_allclose(originals.limit_N, MARGIN * SAME)


def test_what_is_saved_is_read_again_and_another_file_is_not(tmp_path: Path) -> None:
    originals = Originals.of(unit(0.0, 0.5, 1.0), ["a", "b", "c"], [""] * 3)
    digest = originals.save(tmp_path)
    again = Originals.load(tmp_path, digest)
    np.testing.assert_allclose(again.embedding_ND, originals.embedding_ND, atol=1e-3)
    np.testing.assert_array_equal(again.limit_N, originals.limit_N)
    with pytest.raises(ModelError, match="is not the file"):
        Originals.load(tmp_path, "0" * 16)
    (tmp_path / ORIGINALS_FILE).write_bytes(b"no")
    with pytest.raises(ModelError, match="cannot be read"):
        Originals.load(tmp_path, digest)
    with pytest.raises(ModelError, match="cannot be read"):
        Originals.load(tmp_path / "elsewhere", digest)
