"""Against the numbers that BS.1770-4 and EBU Tech 3341 give for their test signals."""

import numpy as np
import pytest

from foley_ray.audio.loudness import RATE_HZ, measure, true_peak


def sine(frequency_hz: float, level_dbfs: float, duration_s: float, phase: float = 0.0) -> np.ndarray:
    time_T = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    return 10 ** (level_dbfs / 20) * np.sin(2 * np.pi * frequency_hz * time_T + phase)


def test_a_full_scale_sine_is_at_minus_3_01() -> None:
    found = measure(sine(997, 0, 5))
    assert found.integrated_lufs == pytest.approx(-3.01, abs=0.02)
    assert found.max_momentary_lufs == pytest.approx(-3.01, abs=0.02)
    assert found.max_short_term_lufs == pytest.approx(-3.01, abs=0.02)
    assert found.true_peak_dbtp == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [  # EBU Tech 3341, cases 1 to 4: those are stereo, one channel is 3.01 LU below
        ([(-23, 20)], -23),
        ([(-33, 20)], -33),
        ([(-36, 10), (-23, 60), (-36, 10)], -23),
        ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23),
    ],
)
def test_the_gate_of_ebu_tech_3341(parts: list[tuple[float, float]], expected: float) -> None:
    wave_T = np.concatenate([sine(1000, level, seconds) for level, seconds in parts])
    assert measure(wave_T).integrated_lufs == pytest.approx(expected - 3.01, abs=0.1)


def test_a_peak_between_the_samples_is_found() -> None:
    """EBU Tech 3341, case 16: a quarter of the rate, at 45 degrees, shows 3 dB too little at the samples."""
    wave_T = sine(RATE_HZ / 4, -6, 1, phase=np.pi / 4)
    fade = np.clip(np.arange(len(wave_T)) / 480, 0, 1)
    assert np.abs(wave_T).max() == pytest.approx(10 ** (-9.01 / 20), rel=1e-3)
    assert 20 * np.log10(true_peak(wave_T * fade * fade[::-1])) == pytest.approx(-6, abs=0.3)


def test_what_is_too_short_or_silent_has_no_loudness() -> None:
    found = measure(sine(1000, -6, 0.3))
    assert (found.integrated_lufs, found.max_momentary_lufs, found.max_short_term_lufs) == (None, None, None)
    assert found.true_peak_dbtp == pytest.approx(-6, abs=0.05)
    assert measure(sine(1000, -6, 1)).max_short_term_lufs is None
    assert measure(np.zeros(RATE_HZ)) == (None, None, None, None)
    assert measure(np.zeros(0)) == (None, None, None, None)
