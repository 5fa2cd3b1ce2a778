import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foley_ray.config import USUAL_AUGMENTATION, Augmentation
from foley_ray.data.augment import _room, _tilt, training_crop
from foley_ray.data.captions import Manner

RATE = 22_050
STRONG = Augmentation(speed=0.3, tilt_db=12, mix_share=0.5, room_share=0.5)


def tone(duration_s: float) -> np.ndarray:
    return np.sin(2 * np.pi * 440 * np.arange(int(duration_s * RATE)) / RATE).astype(np.float32)


@given(st.floats(0.02, 3.0), st.integers(0, 2**31), st.sampled_from([None, USUAL_AUGMENTATION, STRONG]))
def test_a_crop_is_exactly_as_long_as_asked_and_within_half_scale(
    duration_s: float, seed: int, augment: Augmentation | None
) -> None:
    crop_T = training_crop(tone(duration_s), 22_528, RATE, np.random.default_rng(seed), augment, lambda: tone(0.3))
    assert crop_T.shape == (22_528,)
    assert crop_T.dtype == np.float32
    assert 0.15 < np.abs(crop_T).max() < 0.55


@pytest.mark.parametrize("augment", [None, USUAL_AUGMENTATION, STRONG], ids=["none", "usual", "strong"])
def test_the_same_generator_gives_the_same_crop(augment: Augmentation | None) -> None:
    first, again, other = (
        training_crop(tone(0.5), 22_528, RATE, np.random.default_rng(seed), augment, lambda: tone(0.2)) for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_without_augmentation_a_short_recording_is_placed_whole() -> None:
    crop_T = training_crop(tone(0.5), 22_528, RATE, np.random.default_rng(0), augment=None)
    assert np.count_nonzero(np.abs(crop_T) > 0.01) > 0.9 * 0.5 * RATE


def test_short_events_become_sequences() -> None:
    """Over many draws, most crops of a 50 ms click hold more than one click."""
    click = tone(0.05)
    events = []
    for seed in range(40):
        crop_T = training_crop(click, 4 * RATE, RATE, np.random.default_rng(seed), USUAL_AUGMENTATION, lambda: click)
        loud = np.abs(crop_T.reshape(-1, RATE // 50)).max(axis=1) > 0.02
        events.append(int(np.count_nonzero(np.diff(loud.astype(int)) == 1)))
    assert np.median(events) >= 3


def test_a_room_follows_the_sound_and_dies_away() -> None:
    click_T = tone(0.1)
    for seed in range(20):
        wet_T = _room(click_T, RATE, np.random.default_rng(seed))
        tail_T = wet_T[len(click_T) :]
        thirds = [float(np.abs(third).max()) for third in np.array_split(tail_T, 3)]
        assert len(tail_T) > 0.15 * RATE
        assert thirds[0] > thirds[1] > thirds[2] > 0


def test_a_class_has_its_own_share_of_rooms() -> None:
    """A click of 0.1 s with a room after it sounds on; without series, speed or mixing it is otherwise as it was."""
    still = Augmentation(speed=0, gain_db=0, mix_share=0, room_share=0, rooms={"gunshot": 1.0})

    def sounding_s(class_name: str, seed: int) -> float:
        crop_T = training_crop(tone(0.1), 4 * RATE, RATE, np.random.default_rng(seed), still, class_name=class_name)
        return float(np.count_nonzero(np.abs(crop_T) > 1e-6)) / RATE

    assert max(sounding_s("footstep", seed) for seed in range(10)) <= 0.1
    assert min(sounding_s("gunshot", seed) for seed in range(10)) > 0.15


def onsets(crop_T: np.ndarray) -> int:
    """How often it gets loud, in steps of 20 ms."""
    loud = np.abs(crop_T[: len(crop_T) // (RATE // 50) * (RATE // 50)].reshape(-1, RATE // 50)).max(axis=1) > 0.1
    return int(np.count_nonzero(np.diff(loud.astype(int), prepend=0) == 1))


def test_a_crop_is_a_series_or_holds_its_recording_once_as_it_is_told() -> None:
    """Whatever its class's usual chances of sequences and mixtures."""
    still = Augmentation(speed=0, gain_db=0, mix_share=1, room_share=0)

    def events(manner: Manner, seed: int) -> int:
        rng = np.random.default_rng(seed)
        return onsets(training_crop(tone(0.05), 4 * RATE, RATE, rng, still, lambda: tone(0.4), "gunshot", manner))

    assert {events("once", seed) for seed in range(20)} == {1}
    series = [events("series", seed) for seed in range(60)]
    assert min(series) >= 2
    assert max(series) > 5


def test_outdoors_a_sound_comes_first_and_a_long_tail_after_it() -> None:
    """A crop never begins in the middle of the echo of what was cut off."""
    outside = Augmentation(speed=0, gain_db=0, mix_share=0, room_share=0, outdoors={"gunshot": 1.0})
    for seed in range(20):
        rng = np.random.default_rng(seed)
        crop_T = training_crop(tone(0.05), 4 * RATE, RATE, rng, outside, class_name="gunshot", manner="series")
        first = int(np.argmax(np.abs(crop_T) > 1e-3))
        assert first < 0.61 * RATE
        assert np.abs(crop_T[first : first + RATE // 20]).max() > 0.05
        assert np.count_nonzero(np.abs(crop_T) > 1e-4) > 0.7 * RATE


def test_a_tilt_is_a_straight_line_over_octaves() -> None:
    noise_T = np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32)
    before, after = (np.abs(np.fft.rfft(wave_T)) for wave_T in (noise_T, _tilt(noise_T, RATE, 6.0)))
    gain_db = 20 * np.log10(after / before)
    at = {hz: gain_db[4 * hz] for hz in (50, 125, 500, 1000, 2000, 4000, 8000, 10_000)}
    assert {hz: round(float(db - at[1000]), 2) for hz, db in at.items()} == pytest.approx(
        {50: -6, 125: -6, 500: -2, 1000: 0, 2000: 2, 4000: 4, 8000: 6, 10_000: 6}, abs=0.2
    )


def test_what_starts_abruptly_does_not_click_at_its_end_when_it_is_tilted() -> None:
    click_T = np.zeros(RATE, np.float32)
    click_T[:100] = np.linspace(1, 0, 100, dtype=np.float32)
    assert np.abs(_tilt(click_T, RATE, 12.0)[-RATE // 4 :]).max() < 0.003


def test_silence_stays_silent_and_finite() -> None:
    crop_T = training_crop(
        np.zeros(1000, np.float32), 22_528, RATE, np.random.default_rng(0), STRONG, lambda: np.zeros(10, np.float32)
    )
    assert np.array_equal(crop_T, np.zeros(22_528, np.float32))
