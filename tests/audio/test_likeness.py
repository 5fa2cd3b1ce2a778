"""Mel pictures at their best time shift."""

import numpy as np
import pytest
import torch
from sounds import noise_bursts

from foley_ray.audio.likeness import COARSE, FINE, MEL_RANGE, picture, picture_distance
from foley_ray.audio.mel import LogMel
from foley_ray.spec import AudioSpec

SPEC = AudioSpec(clip_s=1.0)


def log_mels(wave_NT: np.ndarray) -> np.ndarray:
    return LogMel(SPEC)(torch.from_numpy(wave_NT.astype(np.float32))).numpy()


def test_a_shifted_quieter_copy_is_found_and_others_are_not() -> None:
    wave_NT = noise_bursts(SPEC.clip_samples, 0)
    copies_NT = 0.3 * np.roll(wave_NT, 8 * 256, axis=1)
    distance_NN = picture_distance(picture(log_mels(copies_NT)), picture(log_mels(wave_NT)))
    assert (distance_NN.argmin(axis=1) == np.arange(4)).all()
    assert np.diag(distance_NN).max() < 0.07  # eight of 86 frames fell off the edge
    assert np.median(distance_NN[~np.eye(4, dtype=bool)]) > 0.1


def test_the_distance_agrees_with_shifting_by_hand() -> None:
    a_NFM, b_KFM = log_mels(noise_bursts(SPEC.clip_samples, 1, 2)), log_mels(noise_bursts(SPEC.clip_samples, 2, 3))
    found_NK = picture_distance(picture(a_NFM), picture(b_KFM))

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
            assert found_NK[i, j] == pytest.approx(1 - best, abs=1e-5)


def test_silence_and_a_steady_tone_are_like_nothing_not_even_themselves() -> None:
    turn_T = 2 * np.pi * 1000 / SPEC.sample_rate_hz * np.arange(SPEC.clip_samples)
    steady_NT = np.stack([np.zeros(SPEC.clip_samples), 0.5 * np.sin(turn_T)])
    pictures = picture(log_mels(steady_NT))[:, 8:-8]  # without the edges, where the tone begins and ends
    distance_NN = picture_distance(pictures, pictures)
    assert distance_NN[0].min() == 1
    assert distance_NN[1, 0] == 1


def test_a_picture_is_floored_below_its_loudest_cell_whatever_its_level() -> None:
    wave_NT = noise_bursts(SPEC.clip_samples, 3)
    loud_NFM = picture(log_mels(wave_NT))
    assert loud_NFM.max(axis=(1, 2)) == pytest.approx(MEL_RANGE)
    assert loud_NFM.min() == 0
    assert np.mean(np.abs(picture(log_mels(0.5 * wave_NT)) - loud_NFM) < 0.05) > 0.98  # others touch the mels' own floor


def test_coarse_pictures_tell_what_happens_when_at_a_quarter_of_the_size() -> None:
    spec = SPEC.model_copy(update={"clip_s": 4.0})
    rng = np.random.default_rng(5)
    wave_NT = np.zeros((3, spec.clip_samples), dtype=np.float32)
    for wave_T in wave_NT:
        for start in rng.integers(0, spec.clip_samples - 3000, 6):  # six knocks each, at other times
            wave_T[start : start + 3000] += rng.standard_normal(3000) * np.exp(-np.arange(3000) / 600)
    fine, coarse = (picture(log_mels(wave_NT), pool) for pool in (FINE, COARSE))
    assert 3.9 < fine.size / coarse.size < 4.1
    shifted = picture(log_mels(np.roll(wave_NT, 4096, axis=1)), COARSE)
    distance_NN = picture_distance(shifted, coarse)
    assert (distance_NN.argmin(axis=1) == np.arange(3)).all()
    assert np.diag(distance_NN).max() < 0.1 < distance_NN[~np.eye(3, dtype=bool)].min()
