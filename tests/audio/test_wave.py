import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foley_ray.audio.wave import change_speed, fade_edges, fit, level, repeat_to, resample, to_mono

WAVES = st.integers(1, 3000).map(lambda n: np.random.default_rng(n).uniform(-1, 1, n).astype(np.float32))


@given(WAVES, st.integers(1, 5000), st.integers(0, 9))
def test_fit_is_exact_and_keeps_what_fits(wave_T: np.ndarray, samples: int, seed: int) -> None:
    fitted = fit(wave_T, samples, np.random.default_rng(seed))
    assert len(fitted) == samples
    if samples >= len(wave_T):
        assert np.isclose(fitted.sum(), wave_T.sum(), atol=1e-3)
    assert np.array_equal(fit(wave_T, samples)[: len(wave_T)], wave_T[:samples])


@given(WAVES, st.integers(1, 9000))
def test_repeat_fills_with_whole_repetitions(wave_T: np.ndarray, samples: int) -> None:
    repeated = repeat_to(wave_T, samples)
    assert len(repeated) == samples
    whole = samples // len(wave_T)
    for k in range(whole):
        assert np.array_equal(repeated[k * len(wave_T) : (k + 1) * len(wave_T)], wave_T)
    if whole:
        assert not repeated[whole * len(wave_T) :].any()


def test_repeat_is_laion_claps_repeatpad() -> None:
    """The rule of laion_clap's get_audio_features: repeat int(max / length) times, then zeros."""
    wave_T = np.arange(1, 8, dtype=np.float32)
    theirs = np.zeros(30, np.float32)
    theirs[: 7 * (30 // 7)] = np.tile(wave_T, 30 // 7)
    assert np.array_equal(repeat_to(wave_T, 30), theirs)


def test_level_sets_mean_and_peak_and_leaves_silence() -> None:
    wave_T = level(np.array([1.0, 2.0, 3.0], np.float32))
    assert np.allclose(wave_T, [-0.5, 0, 0.5])
    assert not level(np.zeros(4, np.float32)).any()


def test_mono_is_the_mean_of_the_channels() -> None:
    assert np.allclose(to_mono(np.array([[1.0, 3.0], [0.0, -2.0]])), [2, -1])


def test_resampling_keeps_a_tone() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(48_000) / 48_000).astype(np.float32)
    down = resample(tone, 48_000, 22_050)
    assert len(down) == 22_050
    assert int(np.abs(np.fft.rfft(down)).argmax()) == 1000
    assert resample(tone, 48_000, 48_000) is tone


def test_faster_is_shorter_and_higher() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(22_050) / 22_050).astype(np.float32)
    fast = change_speed(tone, 1.25)
    assert len(fast) == pytest.approx(22_050 / 1.25, abs=2)
    assert np.abs(np.fft.rfft(fast)).argmax() / len(fast) * 22_050 == pytest.approx(1250, abs=3)


@given(st.integers(1, 500), st.integers(0, 400))
def test_faded_ends_are_silent_and_the_middle_is_untouched(samples: int, fade: int) -> None:
    wave_T = np.ones(samples, np.float32)
    faded = fade_edges(wave_T, fade)
    assert len(faded) == samples
    assert wave_T.min() == 1
    if 0 < fade <= samples // 2:
        assert abs(faded[0]) < 1e-6
        assert abs(faded[-1]) < 1e-6
        assert np.array_equal(faded[fade : samples - fade], wave_T[fade : samples - fade])
