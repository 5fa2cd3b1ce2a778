import numpy as np
import pytest

from foley_ray.evaluation.embed import log_mels, shape_distance
from foley_ray.evaluation.features import describe
from foley_ray.spec import AudioSpec

SPEC = AudioSpec(clip_s=1.0)


def sounds(seed: int, count: int = 4) -> np.ndarray:
    """Noise bursts of random colour, place and length."""
    rng = np.random.default_rng(seed)
    wave_NT = np.zeros((count, SPEC.clip_samples), dtype=np.float32)
    for wave_T in wave_NT:
        start, length = rng.integers(2000, 6000), rng.integers(2000, 8000)
        noise = np.convolve(rng.standard_normal(length), rng.standard_normal(int(rng.integers(1, 40))), "same")
        wave_T[start : start + length] = 0.5 * noise / np.abs(noise).max()
    return wave_NT


def test_a_shifted_quieter_copy_is_found_and_others_are_not() -> None:
    wave_NT = sounds(0)
    copies_NT = 0.3 * np.roll(wave_NT, 8 * 256, axis=1)
    distance_NN = shape_distance(log_mels(copies_NT, SPEC), log_mels(wave_NT, SPEC))
    assert (distance_NN.argmin(axis=1) == np.arange(4)).all()
    assert np.diag(distance_NN).max() < 0.07  # eight of 86 frames fell off the edge
    assert np.median(distance_NN[~np.eye(4, dtype=bool)]) > 0.1


def test_shape_distance_agrees_with_shifting_by_hand() -> None:
    a_NFM, b_KFM = log_mels(sounds(1, 2), SPEC), log_mels(sounds(2, 3), SPEC)

    def thin(mel_FM: np.ndarray) -> np.ndarray:
        small = mel_FM[: len(mel_FM) // 2 * 2].reshape(-1, 2, 40, 2).mean(axis=(1, 3))
        above = (small - small.max() + 7).clip(min=0)
        above -= above.mean(axis=0)
        return above / np.linalg.norm(above)

    for i, a_FM in enumerate(a_NFM):
        for j, b_FM in enumerate(b_KFM):
            a, b = thin(a_FM), thin(b_FM)
            frames = len(a)
            best = max(
                (a[max(0, s) : frames + min(0, s)] * b[max(0, -s) : frames - max(0, s)]).sum()
                for s in range(1 - frames, frames)
            )
            assert shape_distance(a_NFM, b_KFM)[i, j] == pytest.approx(1 - best, abs=1e-5)


def test_mels_and_features_do_not_depend_on_the_batch() -> None:
    wave_NT = sounds(3, 40)
    together = log_mels(wave_NT, SPEC)
    np.testing.assert_allclose(together[35:36], log_mels(wave_NT[35:36], SPEC), atol=1e-4)
    np.testing.assert_allclose(describe(together, 86.1)[35:36], describe(together[35:36], 86.1), atol=1e-4)


def test_features_do_not_depend_on_the_level_nor_on_faint_noise() -> None:
    wave_NT = sounds(4)
    plain = describe(log_mels(wave_NT, SPEC), 86.1)
    np.testing.assert_allclose(describe(log_mels(0.5 * wave_NT, SPEC), 86.1), plain, atol=0.02)
    # 16-bit rounding on top of digital silence, 90 dB down
    noisy = wave_NT + np.random.default_rng(0).uniform(-1, 1, wave_NT.shape).astype(np.float32) / 65536
    assert np.abs(describe(log_mels(noisy, SPEC), 86.1) - plain).mean() < 0.02


def test_features_are_finite_for_silence() -> None:
    assert np.isfinite(describe(log_mels(np.zeros((1, SPEC.clip_samples), np.float32), SPEC), 86.1)).all()
