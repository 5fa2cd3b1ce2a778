"""HiFi-GAN generator files: names, weight norm and rates as its authors' program saves them (jik876/hifi-gan)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from foley_ray.checkpoint import load_part, read_info
from foley_ray.errors import ModelError
from foley_ray.interchange.foreign import write_model
from foley_ray.interchange.recognise import read_foreign
from foley_ray.interchange.weights import State
from foley_ray.presets import preset


class Generator(nn.Module):
    """HiFi-GAN's generator (arXiv 2010.05646, figure 1), written from the paper for this test; weight norm everywhere."""

    def __init__(self, bands: int, width: int, rates: list[int], kernels: list[int]):
        super().__init__()
        normed = parametrizations.weight_norm
        self.conv_pre = normed(nn.Conv1d(bands, width, 7, padding=3))
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for level, (rate, kernel) in enumerate(zip(rates, kernels, strict=True)):
            before, after = width >> level, width >> (level + 1)
            self.ups.append(normed(nn.ConvTranspose1d(before, after, kernel, rate, padding=(kernel - rate) // 2)))
            for size in (3, 7, 11):
                block = nn.Module()
                for name, dilations in (("convs1", (1, 3, 5)), ("convs2", (1, 1, 1))):
                    convs = [nn.Conv1d(after, after, size, dilation=d, padding=(size - 1) * d // 2) for d in dilations]
                    setattr(block, name, nn.ModuleList(normed(conv) for conv in convs))
                self.resblocks.append(block)
        self.conv_post = normed(nn.Conv1d(width >> len(rates), 1, 7, padding=3))

    def forward(self, mel_BMF: torch.Tensor) -> torch.Tensor:
        x = self.conv_pre(mel_BMF)
        for level, up in enumerate(self.ups):
            x = up(nn.functional.leaky_relu(x, 0.1))
            mixed = torch.zeros_like(x)
            for block in self.resblocks[3 * level : 3 * level + 3]:
                y = x
                for one, two in zip(block.convs1, block.convs2, strict=True):
                    y = y + two(nn.functional.leaky_relu(one(nn.functional.leaky_relu(y, 0.1)), 0.1))
                mixed = mixed + y
            x = mixed / 3
        return torch.tanh(self.conv_post(nn.functional.leaky_relu(x)))


def authors_names(generator: nn.Module) -> State:
    """torch's older names of weight norm, which the published files have."""
    new = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = generator.state_dict()
    for old, older in new.items():
        state = {name.replace(old, older): value for name, value in state.items()}
    return state


PUBLISHED = {16000: ([5, 4, 2, 2, 2], [16, 16, 8, 4, 4]), 22050: ([8, 8, 2, 2], [16, 16, 4, 4])}


def generator(rate: int = 16000) -> Generator:
    torch.manual_seed(rate)
    found = Generator(16, 32, *PUBLISHED[rate])
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if name.endswith("original0"):
                weight.mul_(1 + torch.rand_like(weight))  # a length of its own, so that not folding it shows
    return found.eval()


@pytest.mark.parametrize("rate", [16000, 22050])
@pytest.mark.parametrize("names", [authors_names, nn.Module.state_dict], ids=["old names", "new names"])
def test_the_same_wave_as_the_generator(rate: int, names: Any, tmp_path: Path) -> None:
    theirs = generator(rate)
    torch.save({"generator": names(theirs)}, tmp_path / "g_01080000")
    foreign = read_foreign(tmp_path / "g_01080000")
    write_model(foreign, tmp_path / "model", preset("small").model, "g_01080000", "small")
    info = read_info(tmp_path / "model")
    assert (info.model.audio.sample_rate_hz, info.model.audio.hop_samples) == (rate, 160 if rate == 16000 else 256)
    ours, mel_BFM = load_part(tmp_path / "model", "vocoder"), torch.randn(2, 9, 16)
    with torch.inference_mode():
        wave_BT = ours(mel_BFM)
        reference_BT = theirs(mel_BFM.transpose(1, 2))[:, 0]
    assert reference_BT.std() > 5e-3
    torch.testing.assert_close(wave_BT, reference_BT[:, : wave_BT.shape[1]], atol=1e-5, rtol=0)
    assert wave_BT.shape[1] == 9 * info.model.audio.hop_samples


def test_rates_that_shapes_do_not_tell_come_from_the_config_beside(tmp_path: Path) -> None:
    odd = Generator(16, 8, [4, 4], [8, 8])
    torch.save({"generator": authors_names(odd)}, tmp_path / "g.pth")
    with pytest.raises(ModelError, match=r"kernels \[8, 8\].*config.json"):
        read_foreign(tmp_path / "g.pth")
    (tmp_path / "config.json").write_text(json.dumps({"upsample_rates": [4, 4], "sampling_rate": 24000, "resblock": "1"}))
    assert read_foreign(tmp_path / "g.pth").sections["audio"].sample_rate_hz == 24000
    (tmp_path / "config.json").write_text(json.dumps({"resblock": "2"}))
    with pytest.raises(ModelError, match="resblock 2"):
        read_foreign(tmp_path / "g.pth")


def test_what_is_no_such_generator_is_refused(tmp_path: Path) -> None:
    state, path = authors_names(generator()), tmp_path / "g.pth"
    lacking = {
        "conv_post.weight_g": "damaged weight norm",
        "resblocks.2.convs1.0.bias": r"missing \['resblocks.2.convs1.0.bias'\]",
        "ups.1.weight_v": "no ups.1.weight",
    }
    for name, message in lacking.items():
        torch.save({"generator": {key: value for key, value in state.items() if key != name}}, path)
        with pytest.raises(ModelError, match=message):
            read_foreign(path)
    torch.save({"generator": {key.replace("convs1", "convs"): value for key, value in state.items()}}, path)
    with pytest.raises(ModelError, match="small residual blocks"):
        read_foreign(path)
