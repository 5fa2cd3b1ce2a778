import sys

import pytest
import torch

from foley_ray.config import ClapConfig
from foley_ray.errors import PromptError
from foley_ray.models.clap import Clap, tokenize
from foley_ray.presets import tiny


@pytest.fixture(scope="module")
def clap() -> Clap:
    torch.manual_seed(0)
    return Clap(tiny().model.clap).eval()


def test_the_package_itself_was_not_imported() -> None:
    tokenize(["rain"])
    assert "laion_clap" not in sys.modules  # its __init__ asks the model hub for tokenizers


def test_embeddings_are_unit_vectors_in_one_space(clap: Clap) -> None:
    wave_BT = torch.randn(2, 22_050)
    audio_BD, text_BD, scale = clap(wave_BT, ["a dog bark", "rain"], 22_050)
    assert audio_BD.shape == text_BD.shape == (2, 32)
    torch.testing.assert_close(audio_BD.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(text_BD.norm(dim=1), torch.ones(2))
    assert 1 < float(scale.detach()) <= 100


def test_texts_have_a_real_vocabulary() -> None:
    tokens = tokenize(["a dog bark", "a dog bar", "xylophone"])
    assert int(tokens.max()) == 49_407
    assert len({tuple(row.tolist()) for row in tokens}) == 3


def test_an_over_long_prompt_is_refused_with_its_length() -> None:
    tokenize(["bark " * 75])
    cut = tokenize(["bark " * 80], cut=True)  # a caption of the training data
    assert cut.shape == (1, 77)
    assert int(cut[0, -1]) == 49_407
    with pytest.raises(PromptError, match="prompt has 80 tokens, more than 75"):
        tokenize(["bark " * 80])


@pytest.mark.parametrize("samples", [100, 11_025, 22_050, 50_000])
def test_sound_of_any_length_fills_the_window(clap: Clap, samples: int) -> None:
    assert clap.audio_embed(torch.randn(1, samples), 22_050).isfinite().all()


def test_other_rates_are_resampled(clap: Clap) -> None:
    time_s = torch.arange(44_100) / 44_100
    tone = torch.sin(2 * torch.pi * 440 * time_s)[None]
    half = torch.sin(2 * torch.pi * 440 * torch.arange(22_050) / 22_050)[None]
    with torch.inference_mode():
        assert float((clap.audio_embed(tone, 44_100) * clap.audio_embed(half, 22_050)).sum()) > 0.99


def test_scoring_is_deterministic_although_training_drops_out(clap: Clap) -> None:
    wave_BT = torch.randn(1, 22_050)
    assert torch.equal(clap.audio_embed(wave_BT, 22_050), clap.audio_embed(wave_BT, 22_050))


def test_every_trainable_weight_gets_a_gradient(clap: Clap) -> None:
    clap.train()
    audio_BD, text_BD, scale = clap(torch.randn(2, 22_050), ["a", "b"], 22_050)
    ((audio_BD * text_BD).sum() * scale).backward()
    missing = [name for name, weight in clap.named_parameters() if weight.requires_grad and weight.grad is None]
    clap.eval().zero_grad()
    assert missing == []


def test_full_width_cnn6_is_laions_own() -> None:
    weights = {
        name: tuple(p.shape)
        for name, p in Clap(ClapConfig(text_width=8, text_heads=1, text_layers=1)).net.audio_branch.named_parameters()
    }
    assert weights["conv_block4.conv1.weight"] == (512, 256, 5, 5)
    assert weights["fc1.weight"] == (512, 512)
