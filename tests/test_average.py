"""Means of trained parts: of what, of which folders, and when there is none."""

from pathlib import Path

import pytest
import torch

from foley_ray.average import average
from foley_ray.checkpoint import ModelInfo, load_part, read_info, save_model
from foley_ray.config import ModelConfig
from foley_ray.errors import ModelError
from foley_ray.models.tuning import Tuning
from foley_ray.models.unet import build_unet
from foley_ray.presets import tiny


def folder(place: Path, seed: int, model: ModelConfig | None = None, latent_scale: float = 1.0) -> Path:
    """A UNet and a tuning layer of random weights."""
    torch.manual_seed(seed)
    model = model or tiny().model
    parts = {"unet": build_unet(model), "tuning": Tuning(model.tuning, model.clap.embed_dim)}
    torch.nn.init.normal_(parts["tuning"].linear.weight)  # it begins as nothing, which all have in common
    save_model(place, ModelInfo(preset="tiny", model=model, latent_scale=latent_scale), parts)
    return place


def test_weights_are_the_mean_of_all_folders(tmp_path: Path) -> None:
    folders = [folder(tmp_path / name, seed) for seed, name in enumerate("abc")]
    info = average(folders, tmp_path / "mean")
    for part in ("unet", "tuning"):
        weights = [load_part(place, part).state_dict() for place in (*folders, tmp_path / "mean")]
        for key, mean in weights[-1].items():
            torch.testing.assert_close(mean, sum(version[key] for version in weights[:-1]) / 3)
        assert info.parts[part].training["mean_of"] == [read_info(place).digest for place in folders]
    assert read_info(tmp_path / "mean") == info


def test_what_is_the_same_or_there_once_is_taken_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    """As a fine-tuned run and the model that it began with: the run has two parts, the model all five."""
    known = read_info(tiny_model)
    run = folder(tmp_path / "run", 7, known.model, known.latent_scale)
    info = average([tiny_model, run], tmp_path / "mean")
    assert {name for name, part in info.parts.items() if "mean_of" in part.training} == {"unet", "tuning"}
    for name in ("clap", "vae", "vocoder"):
        assert info.parts[name].digest == known.parts[name].digest
    assert load_part(tmp_path / "mean", "unet") is not None
    assert known.originals
    assert info.originals is None  # a new folder was never given them


@pytest.mark.parametrize("change", ["widths", "scale"])
def test_what_is_built_differently_has_no_mean(change: str, tmp_path: Path) -> None:
    model = tiny().model
    wide = model.model_copy(update={"unet": model.unet.model_copy(update={"channels": (16, 48)})})
    other = {"widths": {"model": wide}, "scale": {"latent_scale": 2.0}}[change]
    sources = [folder(tmp_path / "a", 0), folder(tmp_path / "b", 1, **other)]
    with pytest.raises(ModelError, match=r"unet of .*b and of .*a are built differently"):
        average(sources, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_parts_of_other_latents_have_no_mean(tmp_path: Path) -> None:
    sources = [folder(tmp_path / "a", 0), folder(tmp_path / "b", 1)]
    info = read_info(sources[1])
    other = info.with_part("unet", info.parts["unet"].model_copy(update={"made_for": {"vae": "another"}}))
    (sources[1] / "foley.json").write_text(other.model_dump_json())
    with pytest.raises(ModelError, match=r"unet of .*b and of .*a were trained with different parts"):
        average(sources, tmp_path / "mean")


def test_one_version_alone_is_no_case_for_a_mean(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", 0)
    with pytest.raises(ModelError, match="nothing to average"):
        average([source, source], tmp_path / "mean")
