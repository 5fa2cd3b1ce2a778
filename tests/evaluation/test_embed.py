import numpy as np
from sounds import noise_bursts

from foley_ray.evaluation.embed import log_mels
from foley_ray.evaluation.features import describe
from foley_ray.spec import AudioSpec

SPEC = AudioSpec(clip_s=1.0)


def test_mels_and_features_do_not_depend_on_the_batch() -> None:
    wave_NT = noise_bursts(SPEC.clip_samples, 3, 40)
    together = log_mels(wave_NT, SPEC)
    np.testing.assert_allclose(together[35:36], log_mels(wave_NT[35:36], SPEC), atol=1e-4)
    np.testing.assert_allclose(describe(together, 86.1)[35:36], describe(together[35:36], 86.1), atol=1e-4)


def test_features_do_not_depend_on_the_level_nor_on_faint_noise() -> None:
    wave_NT = noise_bursts(SPEC.clip_samples, 4)
    plain = describe(log_mels(wave_NT, SPEC), 86.1)
    np.testing.assert_allclose(describe(log_mels(0.5 * wave_NT, SPEC), 86.1), plain, atol=0.02)
    # 16-bit rounding on top of digital silence, 90 dB down
    noisy = wave_NT + np.random.default_rng(0).uniform(-1, 1, wave_NT.shape).astype(np.float32) / 65536
    assert np.abs(describe(log_mels(noisy, SPEC), 86.1) - plain).mean() < 0.02


def test_features_are_finite_for_silence() -> None:
    assert np.isfinite(describe(log_mels(np.zeros((1, SPEC.clip_samples), np.float32), SPEC), 86.1)).all()
