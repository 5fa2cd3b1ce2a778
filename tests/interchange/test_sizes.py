"""The published sizes, counted without holding a weight."""

import pytest
import torch

from foley_ray.config import UNetConfig
from foley_ray.models.unet import build_unet
from foley_ray.models.vae import build_vae
from foley_ray.models.vocoder import build_vocoder
from foley_ray.presets import preset


def millions(module: torch.nn.Module) -> float:
    return sum(weight.numel() for weight in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("width", "head", "expected"),
    [(128, 32, 185), (192, 32, 416), (256, 64, 739)],
    ids=["S", "M", "L"],
)
def test_unets_of_audioldm(width: int, head: int, expected: float) -> None:
    model = preset("large").model
    section = UNetConfig(channels=tuple(width * factor for factor in (1, 2, 3, 5)), head_channels=head)
    with torch.device("meta"):
        unet = build_unet(model.model_copy(update={"unet": section}))
    assert millions(unet) == pytest.approx(expected, abs=1)


def test_presets_are_the_papers() -> None:
    for name, unet_size in (("small", 185), ("large", 416)):
        model = preset(name).model
        with torch.device("meta"):
            assert millions(build_unet(model)) == pytest.approx(unet_size, abs=1)
            assert millions(build_vae(model)) == pytest.approx(55.3, abs=0.5)
            build_vocoder(model)
