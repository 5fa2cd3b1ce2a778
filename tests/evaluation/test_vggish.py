"""VGGish's port against a second calculation of each part, on random weights; the published ones cannot be had here."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from foley_ray.evaluation.vggish import Vggish

RATE_HZ = 16000


def sounds(seed: int, seconds: float, count: int = 2) -> np.ndarray:
    """Noise that swells, at various levels."""
    wave_BT = np.random.default_rng(seed).standard_normal((count, round(seconds * RATE_HZ)))
    level_B1 = np.linspace(0.02, 0.4, count)[:, None]
    return (level_B1 * wave_BT * np.linspace(0.1, 1, wave_BT.shape[1])).clip(-1, 1).astype(np.float32)


def slow_log_mel(wave_T: np.ndarray) -> np.ndarray:
    """(F, 64), frame by frame and band by band, in float64: triangles on HTK's mel scale."""

    def mel(hz: float) -> float:
        return 2595 * np.log10(1 + hz / 700)

    edges = np.linspace(mel(125), mel(7500), 66)
    weights = np.zeros((257, 64))
    for k in range(257):
        at = mel(k * RATE_HZ / 512)
        for band in range(64):
            low, centre, high = edges[band : band + 3]
            weights[k, band] = max(0.0, min((at - low) / (centre - low), (high - at) / (high - centre)))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    starts = range(0, len(wave_T) - 400 + 1, 160)
    spectrum = [np.abs(np.fft.rfft(wave_T[start : start + 400].astype(np.float64) * window, 512)) for start in starts]
    return np.log(np.array(spectrum) @ weights + 0.01)


@pytest.fixture(scope="module")
def net(vggish_state: dict[str, torch.Tensor]) -> Vggish:
    return Vggish(vggish_state, "random weights")


def test_log_mel_agrees_with_a_slow_one(net: Vggish) -> None:
    wave_BT = sounds(0, 0.975)
    found = net.log_mel(torch.from_numpy(wave_BT)).numpy()
    assert found.shape == (2, 96, 64)  # 15,600 samples: 1 + (15600 - 400) / 160
    np.testing.assert_allclose(found, [slow_log_mel(wave_T) for wave_T in wave_BT], atol=2e-4)


@pytest.mark.parametrize(("seconds", "count"), [(1.0, 1), (1.49, 1), (1.5, 2), (4.0, 7)])
def test_patches_are_those_of_whole_seconds_each_half_second(net: Vggish, seconds: float, count: int) -> None:
    wave_BT = sounds(1, seconds)
    found = net.patches(torch.from_numpy(wave_BT)).numpy()
    assert found.shape == (2, count, 96, 64)
    scaled_BT = wave_BT / np.maximum(0.1, wave_BT.max(axis=1, keepdims=True))
    for clip, scaled_T in enumerate(scaled_BT):
        for patch in {0, count - 1}:
            second_T = scaled_T[patch * RATE_HZ // 2 :][:RATE_HZ]
            assert len(second_T) == RATE_HZ
            np.testing.assert_allclose(found[clip, patch], slow_log_mel(second_T)[:96], atol=2e-4)


def test_layers_come_in_the_order_of_the_names(net: Vggish, vggish_state: dict[str, torch.Tensor]) -> None:
    patch_NFM = net.patches(torch.from_numpy(sounds(2, 1.5)))[:, -1]
    x = patch_NFM[:, None]
    for index, pooled in ((0, True), (3, True), (6, False), (8, True), (11, False), (13, True)):
        weight, bias = vggish_state[f"features.{index}.weight"], vggish_state[f"features.{index}.bias"]
        x = functional.conv2d(x, weight.contiguous(), bias, padding=1).clamp(min=0)
        x = functional.max_pool2d(x, 2) if pooled else x
    assert x.shape == (2, 512, 6, 4)
    flat = np.transpose(x.numpy(), (0, 2, 3, 1)).reshape(2, 6 * 4 * 512)  # time, band, channel
    for index in (0, 2, 4):
        flat = flat @ vggish_state[f"embeddings.{index}.weight"].numpy().T + vggish_state[f"embeddings.{index}.bias"].numpy()
        flat = flat.clip(min=0) if index < 4 else flat
    assert (flat < 0).any()  # no ReLU at the end
    with torch.inference_mode():
        np.testing.assert_allclose(net(patch_NFM).numpy(), flat, rtol=1e-3, atol=1e-3 * np.abs(flat).max())


def test_a_clip_does_not_depend_on_its_batch(net: Vggish) -> None:
    wave_BT = sounds(3, 2.0, count=12)  # 36 patches: more than go through at once
    together = net.sounds(wave_BT)
    assert together.shape == (12, 3, 128)
    alone = net.sounds(wave_BT[10:11])
    np.testing.assert_allclose(alone[0], together[10], atol=1e-4 * np.abs(together).max())
    assert np.isfinite(net.sounds(np.zeros((1, RATE_HZ), np.float32))).all()
