from pathlib import Path

import numpy as np
import pytest

from foley_ray.errors import DatasetError
from foley_ray.evaluation.recordings import Recording, clip, clips, read_recordings
from foley_ray.spec import AudioSpec

SPEC = AudioSpec()


def test_all_rows_of_the_wanted_classes_are_read(judged_dataset: Path, recordings: list[Recording]) -> None:
    assert len(recordings) == 100
    rain = read_recordings(judged_dataset, SPEC.model_copy(update={"clip_s": 1.0}), {"rain"})
    assert {row.class_name for row in rain} == {"rain"}
    assert sorted(row.split for row in rain) == ["eval"] * 2 + ["train"] * 8
    assert {row.sha256 for row in rain} == {row.sha256 for row in recordings if row.class_name == "rain"}


def test_what_does_not_fit_is_refused(judged_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no class volcano"):
        read_recordings(judged_dataset, SPEC, ["rain", "volcano"])
    with pytest.raises(DatasetError, match="22050 Hz, the model at 16000 Hz"):
        read_recordings(judged_dataset, AudioSpec(sample_rate_hz=16_000))
    with pytest.raises(DatasetError, match="no dataset at"):
        read_recordings(tmp_path / "nothing", SPEC)


def test_a_clip_is_levelled_and_of_one_length() -> None:
    long_T = 0.01 * np.random.default_rng(0).standard_normal(10 * SPEC.sample_rate_hz).astype(np.float32)
    assert clip(long_T, SPEC).shape == (SPEC.clip_samples,)
    assert np.abs(clip(long_T, SPEC)).max() == pytest.approx(0.5, rel=1e-4)
    half_T = clip(long_T[: 2 * SPEC.sample_rate_hz], SPEC)
    assert half_T[2 * SPEC.sample_rate_hz + 1 :].std() < 1e-6
    assert clips([long_T, long_T[:1000]], SPEC).shape == (2, SPEC.clip_samples)
    assert clips([], SPEC).shape == (0, SPEC.clip_samples)


def test_a_single_event_is_repeated_at_a_walking_pace() -> None:
    step_T = np.zeros(2000, dtype=np.float32)
    step_T[:100] = np.hanning(100)
    clip_T = clip(step_T, SPEC)
    loud = np.abs(clip_T.reshape(-1, 512)).max(axis=1) > 0.3
    assert np.count_nonzero(np.diff(loud.astype(int), prepend=0) == 1) == 7  # whole half seconds of 3.99 s


def test_silence_stays_silent() -> None:
    assert not clip(np.zeros(50_000, np.float32), SPEC).any()
