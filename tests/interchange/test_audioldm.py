"""Original AudioLDM checkpoints, against the PyPI package `audioldm`, of which names, shapes and numbers are recorded.

The package itself cannot be a dependency of tests (it pins old versions of everything); where it is on the path, the record is
held against it.
"""

import hashlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_laion import laion_clap

from foley_ray.checkpoint import load_part, read_info
from foley_ray.config import UNetConfig
from foley_ray.diffusion.engine import SampleRequest, StepEngine
from foley_ray.diffusion.schedule import Schedule
from foley_ray.errors import ModelError
from foley_ray.interchange.audioldm import EMA, UNET
from foley_ray.interchange.foreign import TARGETS_FILE, write_model
from foley_ray.interchange.recognise import Reading, read_foreign
from foley_ray.interchange.weights import State
from foley_ray.models.unet import Denoiser
from foley_ray.models.vae import decode, encode
from foley_ray.presets import preset

RECORD = json.loads(Path(__file__).with_name("audioldm_0_1_1.json").read_text())
SIZES = {
    "unet": {
        "image_size": 64, "extra_film_condition_dim": 32, "extra_film_use_concat": True, "in_channels": 8, "out_channels": 8,
        "model_channels": 32, "attention_resolutions": [4, 2], "num_res_blocks": 1, "channel_mult": [1, 2, 3],
        "num_head_channels": 32, "use_spatial_transformer": True,
    },
    "vae": {
        "double_z": True, "z_channels": 8, "resolution": 256, "downsample_time": False, "in_channels": 1, "out_ch": 1,
        "ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    },
}  # fmt: skip


def drawn(name: str, shape: list[int]) -> torch.Tensor:
    """A weight that depends on its name alone, as it was for the record."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little")
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if len(shape) == 1:
        return (1 if name.endswith("weight") else 0) + 0.1 * values
    return values / torch.Size(shape[1:]).numel() ** 0.5


def given(name: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))


def some(values: torch.Tensor) -> torch.Tensor:
    """The values that the record keeps."""
    return values.flatten()[:: max(1, values.numel() // 24)][:24]


def checkpoint(averaged: bool = True) -> dict[str, Any]:
    """As the training program saves: weights, their average, the first stage, and the tables of the noise process."""
    unet = {name: drawn(name, shape) for name, shape in RECORD["unet"].items()}
    state: State = {f"{UNET}{name}": value + averaged for name, value in unet.items()}
    if averaged:
        state |= {f"{EMA}diffusion_model{name.replace('.', '')}": value for name, value in unet.items()}
        state |= {f"{EMA}decay": torch.tensor(0.9999), f"{EMA}num_updates": torch.tensor(9)}
    state |= {f"first_stage_model.{name}": drawn(name, shape) for name, shape in RECORD["vae"].items()}
    vocoder = {f"vocoder.{name}": shape for name, shape in RECORD["vocoder"].items()}
    state |= {f"first_stage_model.{name}": drawn(name, shape) for name, shape in vocoder.items()}
    state |= {"scale_factor": torch.tensor(1.25), "betas": torch.zeros(1000), "logvar": torch.zeros(1000)}
    return {"state_dict": state, "epoch": 3, "global_step": 100, "pytorch-lightning_version": "1.9.0"}


def saved(content: dict[str, Any], folder: Path) -> Path:
    torch.save(content, folder / "a.ckpt")
    return folder / "a.ckpt"


@torch.inference_mode()
def test_every_weight_arrives_and_the_numbers_are_the_originals(tmp_path: Path) -> None:
    foreign = read_foreign(saved(checkpoint(), tmp_path))  # a missing or unexpected weight would raise
    write_model(foreign, tmp_path / "model", preset("large").model, "a.ckpt", "audioldm")
    info = read_info(tmp_path / "model")
    assert info.latent_scale == 1.25
    assert info.model.audio.latent_shape(info.model.audio.clip_s) == (8, 256, 4)
    assert info.model.unet == UNetConfig(channels=(32, 64, 96), layers_per_block=1, attention_from=1)
    assert info.parts["unet"].made_for == {"vae": info.parts["vae"].digest}
    expected = {name: torch.tensor(values) for name, values in RECORD["outputs"].items()}

    denoise = Denoiser(load_part(tmp_path / "model", "unet"))
    predicted = denoise(given("latent", 2, 8, 12, 4), torch.tensor([3, 700]), given("condition", 2, 32))
    torch.testing.assert_close(some(predicted), expected["unet"], atol=1e-4, rtol=0)
    vae = load_part(tmp_path / "model", "vae")
    torch.testing.assert_close(some(encode(vae, given("mel", 1, 16, 16)).mean), expected["encoder"], atol=1e-4, rtol=0)
    torch.testing.assert_close(some(decode(vae, given("latents", 1, 8, 4, 4))), expected["decoder"], atol=1e-4, rtol=0)

    # and all of it together: the package's DDIM, 5 steps with guidance, from our noise
    engine = StepEngine(denoise, Schedule.from_config(info.model.diffusion), "epsilon", given("null", 32))
    request = SampleRequest(given("condition", 32), 3, 0, 5, 2.5, "ddim", (8, 16, 4))
    latent = torch.from_numpy(engine.run([request])[0])
    torch.testing.assert_close(some(latent), expected["latent"], atol=1e-3, rtol=1e-4)  # a random network's reach tens
    vocoder = load_part(tmp_path / "model", "vocoder")
    wave_T = vocoder(decode(vae, latent[None] / info.latent_scale))[0]
    assert wave_T.std() > 0.05
    torch.testing.assert_close(some(wave_T), expected["wave"], atol=1e-4, rtol=0)


def test_the_record_is_the_packages() -> None:
    """Names and shapes; its modules are loaded without its __init__, which loads a web demo's worth of packages."""
    bare = types.ModuleType("audioldm")
    bare.__path__ = [str(Path(folder) / "audioldm") for folder in sys.path if (Path(folder) / "audioldm").is_dir()]
    if not bare.__path__:
        pytest.skip("the package audioldm is not on the path (pip install --no-deps audioldm)")
    sys.modules["audioldm"] = bare
    import audioldm.latent_diffusion.openaimodel as unet_module
    import audioldm.variational_autoencoder.modules as vae_module

    unet = unet_module.UNetModel(**SIZES["unet"])
    assert {name: list(value.shape) for name, value in unet.state_dict().items()} == RECORD["unet"]
    for half, kind in (("encoder", vae_module.Encoder), ("decoder", vae_module.Decoder)):
        shapes = {f"{half}.{name}": list(value.shape) for name, value in kind(**SIZES["vae"]).state_dict().items()}
        assert shapes.items() <= RECORD["vae"].items()


def test_the_average_is_taken_unless_told_otherwise(tmp_path: Path) -> None:
    path = saved(checkpoint(), tmp_path)
    name, original = "conv_in.bias", drawn("input_blocks.0.0.bias", [32])
    unets = [read_foreign(path, Reading(ema=ema)).parts["unet"].state_dict()[name] for ema in (True, False)]
    torch.testing.assert_close(unets[0], original)
    torch.testing.assert_close(unets[1], original + 1)
    content = checkpoint()
    del content["state_dict"][f"{EMA}diffusion_modelout2bias"]
    with pytest.raises(ModelError, match=r"averaged weights, but none for model.diffusion_model.out.2.bias.*--no-ema"):
        read_foreign(saved(content, tmp_path))


def test_the_challenges_checkpoint_brings_its_clap_and_target_sounds(
    monkeypatch: pytest.MonkeyPatch, tokenizer_folder: Path, tmp_path: Path
) -> None:
    clap, content = laion_clap(monkeypatch), checkpoint(averaged=False)
    content["state_dict"] |= {f"cond_stage_model.model.{name}": value for name, value in clap.state_dict().items()}
    content["state_dict"]["embed_v.weight"] = torch.cat([3 * torch.randn(5, 32), torch.full((5, 1), 0.4)], dim=1)
    foreign = read_foreign(saved(content, tmp_path), Reading(tokenizer=tokenizer_folder))
    info = write_model(foreign, tmp_path / "model", preset("large").model, "a.ckpt", "audioldm")
    assert set(info.parts) == {"clap", "unet", "vae", "vocoder"}
    assert info.model.audio.clip_s == 4
    assert info.parts["unet"].made_for == {name: info.parts[name].digest for name in ("clap", "vae")}
    assert foreign.targets is not None
    assert foreign.targets.embedding_ND.shape == (5, 32)
    torch.testing.assert_close(foreign.targets.embedding_ND.norm(dim=1), torch.ones(5))
    stored = load_file(tmp_path / "model" / TARGETS_FILE)
    assert stored["threshold_N"].tolist() == pytest.approx([0.4] * 5)
    assert torch.equal(stored["embedding_ND"], foreign.targets.embedding_ND)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{UNET}film_emb.weight", "not conditioned as AudioLDM's"),
        (f"{UNET}middle_block.1.norm.bias", r"missing \['mid_block.attentions.0.norm.bias'\]"),
        ("first_stage_model.decoder.norm_out.weight", r"missing \['decoder.conv_norm_out.weight'\]"),
        ("first_stage_model.vocoder.conv_pre.bias", r"missing \['conv_pre.bias'\]"),
    ],
)
def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path, name: str, message: str) -> None:
    content = checkpoint(averaged=False)
    del content["state_dict"][name]
    with pytest.raises(ModelError, match=message):
        read_foreign(saved(content, tmp_path))


def test_too_many_weights_and_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    content = checkpoint(averaged=False)
    content["state_dict"][f"{UNET}label_emb.weight"] = torch.zeros(7, 128)
    with pytest.raises(ModelError, match=r"unexpected \['label_emb.weight'\]"):
        read_foreign(saved(content, tmp_path))
    content = checkpoint(averaged=False)
    content["state_dict"][f"{UNET}out.2.bias"] = torch.zeros(4)
    with pytest.raises(ModelError, match=r"conv_out.bias has shape \(4,\), expected \(8,\)"):
        read_foreign(saved(content, tmp_path))


def test_the_vae_alone(tmp_path: Path) -> None:
    state = {name: drawn(name, shape) for name, shape in RECORD["vae"].items()}
    foreign = read_foreign(saved({"state_dict": state | {"loss.logvar": torch.zeros(1)}}, tmp_path))
    assert list(foreign.parts) == ["vae"]
