"""A clip longer than CLAP's window is judged by all of itself."""

from pathlib import Path

import numpy as np
import pytest

from foley_ray.stages.rank import RankStage

RATE = 22_050


@pytest.fixture(scope="module")
def rank(tiny_model: Path) -> RankStage:
    return RankStage(tiny_model)


def noise(duration_s: float, seed: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(duration_s * RATE)).astype(np.float32)


def test_the_end_of_a_long_clip_counts(rank: RankStage) -> None:
    tone_T = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    quiet_end, tone_end = (np.concatenate([noise(2.0, 0), end_T]) for end_T in (np.zeros(RATE, np.float32), tone_T))
    first_D, second_D = rank.embed([quiet_end, tone_end])
    assert np.abs(first_D - second_D).max() > 1e-3


@pytest.mark.parametrize("duration_s", [0.4, 1.0, 1.2, 2.5])
def test_embeddings_are_unit_and_none_depends_on_its_batch(rank: RankStage, duration_s: float) -> None:
    waves = [noise(duration_s, 1), noise(3.7, 2), noise(0.5, 3)]
    together_BD = rank.embed(waves)
    np.testing.assert_allclose(np.linalg.norm(together_BD, axis=1), 1, atol=1e-5)
    for wave_T, together_D in zip(waves, together_BD, strict=True):
        np.testing.assert_allclose(rank.embed([wave_T])[0], together_D, atol=1e-5)


def test_how_loud_a_sound_is_does_not_count(rank: RankStage) -> None:
    wave_T = 0.9 * np.random.default_rng(3).standard_normal(20_000).clip(-1, 1).astype(np.float32)
    np.testing.assert_allclose(*rank.embed([wave_T, wave_T / 50]), atol=1e-4)
    assert np.isfinite(rank.embed([np.zeros(20_000, dtype=np.float32)])).all()


def test_near_silence_after_a_sound_is_no_sound_of_its_own(rank: RankStage) -> None:
    generator = np.random.default_rng(4)
    sound_T = 0.5 * generator.standard_normal(rank.window_samples).clip(-1, 1).astype(np.float32)
    hiss_T = 1e-4 * generator.standard_normal(2 * rank.window_samples).astype(np.float32)
    assert len(rank.windows(np.concatenate([sound_T, hiss_T]))) == 1
    assert len(rank.windows(np.concatenate([sound_T, 0.1 * sound_T]))) == 2
    np.testing.assert_allclose(*rank.embed([sound_T, np.concatenate([sound_T, hiss_T])]), atol=1e-4)


def test_whole_windows_of_one_sound_are_that_sound(rank: RankStage) -> None:
    second_T = noise(1.0, 4)
    np.testing.assert_allclose(*rank.embed([second_T, np.tile(second_T, 3)]), atol=1e-5)
