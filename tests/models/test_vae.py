import pytest
import torch

from foley_ray.models.vae import build_vae, decode, encode
from foley_ray.presets import default, small, tiny


@pytest.mark.parametrize("frames", [4, 88, 344])
def test_latent_is_a_quarter_in_time_and_frequency(frames: int) -> None:
    vae = build_vae(tiny().model).eval()
    with torch.inference_mode():
        posterior = encode(vae, torch.randn(2, frames, 80))
        assert posterior.mean.shape == (2, 8, frames // 4, 20)
        assert decode(vae, posterior.mode()).shape == (2, frames, 80)


def test_small_is_the_papers_vae() -> None:
    with torch.device("meta"):
        vae = build_vae(small().model)
    assert round(sum(p.numel() for p in vae.parameters()) / 1e6, 1) == 55.4


def test_default_is_light() -> None:
    assert sum(p.numel() for p in build_vae(default().model).parameters()) < 3e6
