import pytest
import torch

from foley_ray.models.unet import Denoiser, build_unet
from foley_ray.presets import default, large, small, tiny


@pytest.mark.parametrize(("preset", "millions"), [(small, 185.04), (large, 415.95), (default, 11.20)])
def test_sizes_are_the_published_ones(preset, millions: float) -> None:
    with torch.device("meta"):
        unet = build_unet(preset().model)
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("first", [0, 1, 2])
def test_attention_starts_at_the_level_asked_for(first: int) -> None:
    model = tiny().model
    unet = build_unet(model.model_copy(update={"unet": model.unet.model_copy(update={"attention_from": first})}))
    down = [hasattr(block, "attentions") for block in unet.down_blocks]
    up = [hasattr(block, "attentions") for block in unet.up_blocks]
    assert down == [level >= first for level in range(2)]
    assert up == down[::-1]


@pytest.mark.parametrize(("width", "height"), [(86, 20), (7, 5), (8, 8), (23, 20)])
def test_latents_of_any_size_come_back_at_that_size(width: int, height: int) -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(build_unet(tiny().model)).eval()
    x = torch.randn(2, 8, width, height)
    with torch.inference_mode():
        assert denoiser(x, torch.tensor([3, 900]), torch.randn(2, 32)).shape == x.shape


def test_padding_is_zeros_on_both_sides() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(build_unet(default().model)).eval()
    seen = []
    denoiser.unet.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        denoiser(torch.ones(1, 8, 86, 20), torch.tensor([0]), torch.randn(1, 512))
    (padded,) = seen
    assert padded.shape[-2:] == (88, 24)
    assert float(padded[0, 0, 1:87, 2:22].min()) == 1.0
    assert float(padded[0, 0].sum()) == 86 * 20


def test_condition_and_time_both_reach_the_output() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(build_unet(tiny().model)).eval()
    x, condition = torch.randn(1, 8, 8, 8), torch.randn(1, 32)
    with torch.inference_mode():
        base = denoiser(x, torch.tensor([10]), condition)
        assert not torch.allclose(base, denoiser(x, torch.tensor([900]), condition))
        assert not torch.allclose(base, denoiser(x, torch.tensor([10]), -condition))
