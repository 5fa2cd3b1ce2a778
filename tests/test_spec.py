import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from foley_ray.presets import large, small
from foley_ray.spec import MAX_DURATION_S, MIN_DURATION_S, AudioSpec


def test_four_seconds_are_the_papers_numbers() -> None:
    spec = small().model.audio
    assert spec.samples(4.0) == 88_200
    assert spec.latent_shape(4.0) == (8, 86, 20)
    assert spec.clip_samples == 86 * 1024
    assert spec.mel_frames(spec.clip_samples) == 344
    assert large().model.audio.latent_shape(4.0) == (8, 100, 16)


@given(st.floats(MIN_DURATION_S, MAX_DURATION_S), st.sampled_from([small, large]))
def test_latent_covers_the_clip_but_for_less_than_one_hop(duration_s: float, preset) -> None:
    spec = preset().model.audio
    generated = spec.latent_frames(duration_s) * spec.latent_samples
    missing = spec.samples(duration_s) - generated
    assert missing < spec.hop_samples
    assert -missing < spec.latent_samples
    assert spec.mel_frames(generated) == spec.latent_frames(duration_s) * spec.latent_factor


@given(st.integers(1, 10_000_000))
def test_samples_and_seconds_are_inverse(samples: int) -> None:
    spec = AudioSpec()
    assert spec.samples(spec.seconds(samples)) == samples


@pytest.mark.parametrize(
    ("changes", "rule"),
    [({"fmax_hz": 12_000}, "half the sample rate"), ({"win_samples": 2048}, "above n_fft"), ({"mel_bands": 81}, "multiple")],
)
def test_contradictions_are_refused(changes: dict, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        AudioSpec(**changes)
