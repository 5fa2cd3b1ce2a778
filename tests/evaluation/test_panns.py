"""Cnn14 from official names against a second forward pass, on random weights; the published ones cannot be had here."""

import librosa
import numpy as np
import pytest
import torch
from torch.nn import functional

from foley_ray.evaluation.panns import Cnn14

State = dict[str, torch.Tensor]


def sounds(rate_hz: int, count: int = 2) -> np.ndarray:
    """Half a second of noise, each clip of its own colour."""
    wave_BT = np.random.default_rng(0).standard_normal((count, rate_hz // 2))
    for colour, wave_T in enumerate(wave_BT, start=1):
        wave_T[:] = 0.3 * np.convolve(wave_T, np.ones(colour) / colour, "same")
    return wave_BT.astype(np.float32)


def slow_embedding(wave_T: np.ndarray, state: State, rate_hz: int, fmax_hz: int) -> np.ndarray:
    """(2048,) by librosa's mel and the paper's layers, one by one."""
    mel_MF = librosa.feature.melspectrogram(
        y=wave_T, sr=rate_hz, n_fft=rate_hz * 32 // 1000, hop_length=rate_hz // 100, n_mels=64, fmin=50, fmax=fmax_hz,
        pad_mode="reflect",
    )  # fmt: skip
    x = torch.tensor(librosa.power_to_db(mel_MF, ref=1.0, amin=1e-10, top_db=None).T, dtype=torch.float32)[None, None]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, variance, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, mean, variance, weight, bias)

    x = norm(x.transpose(1, 3), "bn0").transpose(1, 3)
    for block in range(1, 7):
        for layer in (1, 2):
            weight = state[f"conv_block{block}.conv{layer}.weight"].contiguous()
            x = norm(functional.conv2d(x, weight, padding=1), f"conv_block{block}.bn{layer}").clamp(min=0)
        x = functional.avg_pool2d(x, 2) if block < 6 else x
    over_time = x.mean(dim=3)
    both = over_time.amax(dim=2) + over_time.mean(dim=2)
    return (both @ state["fc1.weight"].T + state["fc1.bias"]).clamp(min=0)[0].numpy()


@pytest.mark.parametrize(("rate_hz", "fmax_hz"), [(32000, 14000), (16000, 8000)])
def test_embeddings_agree_with_a_slow_forward_pass(cnn14_states: dict[int, State], rate_hz: int, fmax_hz: int) -> None:
    net = Cnn14(cnn14_states[rate_hz], "random weights")
    assert net.sample_rate_hz == rate_hz
    wave_BT = sounds(rate_hz)
    found = net.sounds(wave_BT)
    assert found.shape == (2, 1, 2048)
    assert 0.1 < (found > 0).mean() < 0.9
    for clip, wave_T in enumerate(wave_BT):
        expected = slow_embedding(wave_T, cnn14_states[rate_hz], rate_hz, fmax_hz)
        np.testing.assert_allclose(found[clip, 0], expected, rtol=1e-2, atol=1e-3 * expected.max())


def test_a_clip_does_not_depend_on_its_batch(cnn14_states: dict[int, State]) -> None:
    net = Cnn14(cnn14_states[16000], "random weights")
    wave_BT = sounds(16000, count=5)  # more than go through at once
    together = net.sounds(wave_BT)
    np.testing.assert_allclose(net.sounds(wave_BT[3:4])[0], together[3], atol=1e-4 * together.max())
    assert not np.allclose(together[3], together[4], atol=1e-2 * together.max())


def test_counters_of_training_may_be_missing(cnn14_states: dict[int, State]) -> None:
    state = {name: value for name, value in cnn14_states[16000].items() if not name.endswith("num_batches_tracked")}
    assert Cnn14(state, "random weights").sample_rate_hz == 16000
