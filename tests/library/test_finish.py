"""Delivered sound: trimmed, without clicks, at the ceiling; loops that meet."""

import numpy as np
import pytest

from foley_ray.audio.loudness import RATE_HZ, true_peak
from foley_ray.library.finish import PICTURE_BANDS, PICTURE_FRAMES, finish, picture
from foley_ray.library.plan import Finish


def burst(rate_hz: int = 22_050) -> np.ndarray:
    """Half a second of noise in the middle of two."""
    wave_T = np.zeros(2 * rate_hz, dtype=np.float32)
    wave_T[rate_hz // 2 : rate_hz] = 0.3 * np.random.default_rng(0).uniform(-1, 1, rate_hz - rate_hz // 2)
    return wave_T


@pytest.mark.parametrize("ceiling_dbtp", [-1.0, -6.0])
def test_the_true_peak_is_at_the_ceiling(ceiling_dbtp: float) -> None:
    wave_T = finish(burst(), 22_050, Finish(ceiling_dbtp=ceiling_dbtp))
    assert 20 * np.log10(true_peak(wave_T)) == pytest.approx(ceiling_dbtp, abs=0.01)


def test_silence_goes_the_sound_stays_and_its_ends_are_at_rest() -> None:
    wave_T = finish(burst(), 22_050, Finish())
    assert 0.5 <= len(wave_T) / RATE_HZ <= 0.58
    assert abs(wave_T[0]) < 1e-6
    assert abs(wave_T[-1]) < 1e-6
    untrimmed_T = finish(burst(), 22_050, Finish(trim_db=None))
    assert len(untrimmed_T) == 2 * RATE_HZ
    np.testing.assert_array_equal(finish(np.zeros(22_050, np.float32), 22_050, Finish()), np.zeros(RATE_HZ))


def test_a_sound_that_is_cut_off_fades_without_a_click() -> None:
    wave_T = finish(np.full(22_050, 0.5, np.float32), 22_050, Finish(fade_in_ms=5, fade_out_ms=5))
    assert np.abs(np.diff(wave_T)).max() < 0.02
    assert abs(wave_T[0]) < 1e-6
    assert abs(wave_T[-1]) < 1e-6


def test_a_resampled_loop_has_no_seam() -> None:
    """Whole periods of sines: at 48 kHz the wave must go on over the end as smoothly as anywhere."""
    samples = 22 * 1024
    phase_T = 2 * np.pi * np.arange(samples) / samples
    wave_T = (0.3 * np.sin(100 * phase_T) + 0.2 * np.sin(1711 * phase_T + 1)).astype(np.float32)
    out_T = finish(wave_T, 22_050, Finish(), loop=True)
    assert len(out_T) == round(samples * RATE_HZ / 22_050)
    bend_T = np.abs(np.diff(np.tile(out_T, 2), n=2))
    assert bend_T[len(out_T) - 50 : len(out_T) + 50].max() <= 1.001 * bend_T[: len(out_T) - 2].max()
    fine_T = 2 * np.pi * np.arange(len(out_T)) / len(out_T)
    ideal_T = 0.3 * np.sin(100 * fine_T) + 0.2 * np.sin(1711 * fine_T + 1)
    gain = float(out_T @ ideal_T / (ideal_T @ ideal_T))
    np.testing.assert_allclose(out_T, gain * ideal_T, atol=1e-3)


def test_a_picture_has_a_byte_a_frame_and_half_a_byte_a_cell() -> None:
    import base64

    shown = {name: base64.b64decode(text) for name, text in picture(burst(RATE_HZ).astype(np.float64)).items()}
    assert len(shown["peaks"]) == PICTURE_FRAMES
    assert len(shown["levels"]) == PICTURE_FRAMES * PICTURE_BANDS // 2
    pairs_FM = np.frombuffer(shown["levels"], np.uint8).reshape(PICTURE_FRAMES, PICTURE_BANDS // 2)
    levels_FM = np.stack([pairs_FM >> 4, pairs_FM & 15], axis=2).reshape(PICTURE_FRAMES, PICTURE_BANDS)
    assert levels_FM.max() == 15
    assert levels_FM[:10].max() == 0
