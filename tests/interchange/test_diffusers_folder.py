import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from foley_ray.checkpoint import assemble, load_part, read_info
from foley_ray.clip import ClipRequest
from foley_ray.config import MAX_NOISE, ClipSettings, TrainConfig
from foley_ray.diffusion.engine import clip_noise
from foley_ray.errors import ModelError, OutputError
from foley_ray.interchange.diffusers_folder import export_diffusers
from foley_ray.interchange.foreign import write_model
from foley_ray.interchange.recognise import read_foreign
from foley_ray.pipeline import Pipeline
from foley_ray.presets import preset
from foley_ray.serving.app import build_app
from foley_ray.serving.settings import ServeSettings
from foley_ray.training.tasks.diffusion import FinetuneTask

DURATION_S = 0.64  # 16 latent frames of 640 samples at 16 kHz: a multiple of the UNet's stride, which diffusers does not pad to
SETTINGS = ClipSettings(
    duration_s=DURATION_S,
    candidates=1,
    steps=7,
    guidance=2.5,
    sampler="ddim",
    eta=0.0,
    guided_above=0.0,
    guided_below=MAX_NOISE,
)


def imported(source: Path, out: Path, clap: Path | None = None) -> Path:
    foreign = read_foreign(source)
    if clap is not None:
        foreign = foreign.with_part("clap", read_foreign(clap))
    write_model(foreign, out, preset("large").model, "test", "audioldm")
    return out


@pytest.fixture(scope="module")
def model(audioldm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imported(audioldm_folder, tmp_path_factory.mktemp("imported") / "model")


def theirs(folder: Path, eta: float = 0.0, guidance: float = 2.5, seed: int = 3) -> np.ndarray:
    """What diffusers' own pipeline makes of our noise."""
    from diffusers import AudioLDMPipeline

    pipe = AudioLDMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    frames, bands = round(DURATION_S * 16000 / 640), pipe.vocoder.config.model_in_dim // 4
    audio: np.ndarray = pipe(
        "a dog bark",
        audio_length_in_s=DURATION_S,
        num_inference_steps=SETTINGS.steps,
        guidance_scale=guidance,
        latents=clip_noise(seed, 0, -1, (8, frames, bands))[None],
        eta=eta,
    ).audios[0]
    return audio


def ours(model: Path, guidance: float = 2.5, seed: int = 3) -> np.ndarray:
    settings = SETTINGS.model_copy(update={"guidance": guidance})
    return next(Pipeline(model).generate([ClipRequest("a dog bark", seed, settings)])).wave_T


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_same_wave_as_diffusers_own_pipeline(audioldm_folder: Path, model: Path, guidance: float) -> None:
    wave_T, reference_T = ours(model, guidance), theirs(audioldm_folder, guidance=guidance)
    assert len(wave_T) == len(reference_T) == round(DURATION_S * 16000)
    assert 0.05 < reference_T.std() < 0.7
    inside = slice(80, -80)  # ours fades in and out over 5 ms
    np.testing.assert_allclose(wave_T[inside], reference_T[inside], atol=1e-4)


def test_the_condition_and_the_noise_are_heard(audioldm_folder: Path) -> None:
    plain_T = theirs(audioldm_folder)  # or equal waves would say little
    assert np.abs(plain_T - theirs(audioldm_folder, guidance=1.0)).max() > 1e-2
    assert np.abs(plain_T - theirs(audioldm_folder, seed=4)).max() > 1e-1


def test_what_the_folder_says_becomes_settings(model: Path) -> None:
    info = read_info(model)
    audio = info.model.audio
    assert (audio.sample_rate_hz, audio.hop_samples, audio.mel_bands) == (16000, 160, 16)
    assert audio.latent_shape(10.24) == (8, 256, 4)
    assert audio.clip_s == pytest.approx(8 * 640 / 16000)
    assert info.latent_scale == pytest.approx(0.9227914214134216)
    assert info.model.unet.heads == 8
    assert info.parts["unet"].made_for == {name: info.parts[name].digest for name in ("clap", "vae")}
    assert not list(model.rglob("*.bin"))


def test_a_text_tower_alone_says_so_when_ranking_is_asked(model: Path) -> None:
    pipeline = Pipeline(model)
    three = SETTINGS.model_copy(update={"candidates": 3})
    with pytest.raises(ModelError, match=r"cannot choose among candidates.*text tower alone.*--clap"):
        pipeline.check([ClipRequest("a dog bark", 3, three)])
    with pytest.raises(ModelError, match=r"cannot embed sound.*text tower alone"):
        next(pipeline.generate([ClipRequest("a dog bark", 3, three)]))
    with pytest.raises(ModelError, match=r"cannot serve.*text tower alone"):
        build_app(ServeSettings(model=model))
    pipeline.check([ClipRequest("a dog bark", 3, SETTINGS)])


def test_at_half_precision_it_is_still_itself(model: Path, tmp_path: Path) -> None:
    assemble([model], tmp_path / "half", half=True)
    difference_T = ours(tmp_path / "half") - ours(model)
    assert 0 < np.abs(difference_T).mean() < 0.02


def test_unconverted_it_says_how_to_convert_it(audioldm_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"folder of diffusers'; convert it once: foley import"):
        Pipeline(audioldm_folder)


def test_with_its_whole_clap_it_ranks_and_sounds_the_same(
    audioldm_folder: Path, clap_folder: Path, model: Path, tmp_path: Path
) -> None:
    whole = imported(audioldm_folder, tmp_path / "whole", clap_folder)
    clip = next(Pipeline(whole).generate([ClipRequest("a dog bark", 3, SETTINGS.model_copy(update={"candidates": 2}))]))
    assert len(clip.scores) == 2
    np.testing.assert_allclose(ours(whole), ours(model), atol=1e-5)


def test_another_clap_than_the_models_own_is_refused(audioldm_folder: Path, clap_folder: Path, tmp_path: Path) -> None:
    from transformers import ClapModel

    other = tmp_path / "other"
    shutil.copytree(clap_folder, other)
    torch.manual_seed(9)
    ClapModel(ClapModel.from_pretrained(clap_folder).config).save_pretrained(other)
    with pytest.raises(ModelError, match="not the one that this model was made with"):
        imported(audioldm_folder, tmp_path / "out", other)


def test_there_and_back(audioldm_folder: Path, model: Path, clap_folder: Path, tmp_path: Path) -> None:
    for source in (model, imported(audioldm_folder, tmp_path / "whole", clap_folder)):
        out = tmp_path / f"diffusers_{source.name}"
        written = export_diffusers(source, out)
        assert "model_index.json" in written
        np.testing.assert_allclose(theirs(out), theirs(audioldm_folder), atol=1e-5)
    again = imported(out, tmp_path / "again")
    for part in ("unet", "vae", "vocoder"):
        assert read_info(again).parts[part].digest == read_info(model).parts[part].digest


def test_parts_alone_load_in_diffusers(tiny_model: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    with pytest.raises(ModelError, match=r"reads text as CLIP does.*kind istft.*tuning layer.*--parts"):
        export_diffusers(tiny_model, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    out = tmp_path / "parts"
    assert export_diffusers(tiny_model, out, parts_only=True) == ["unet", "vae", "scheduler"]
    unet, own = UNet2DConditionModel.from_pretrained(out, subfolder="unet"), load_part(tiny_model, "unet")
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in unet.state_dict().items())
    assert AutoencoderKL.from_pretrained(out, subfolder="vae").config.scaling_factor == 0.7
    assert DDIMScheduler.from_pretrained(out, subfolder="scheduler").config.beta_schedule == "scaled_linear"
    with pytest.raises(OutputError, match="exists"):
        export_diffusers(tiny_model, out, parts_only=True)


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_an_imported_model_learns_from_sound_and_caption(model: Path, lora_rank: int | None) -> None:
    info = read_info(model)
    parts = {name: load_part(model, name) for name in ("clap", "vae", "unet")}
    settings = TrainConfig(lora_rank=lora_rank, lr=1e-3)
    task = FinetuneTask(info.model, settings, parts)
    task.latent_scale = info.latent_scale
    phase = task.phases["model"].train()
    torch.manual_seed(0)
    batch = {"wave": 0.1 * torch.randn(2, info.model.audio.clip_samples), "caption": ["rain", "a dog bark"]}
    before = {name: value.clone() for name, value in task.parts()["unet"].state_dict().items()}
    optimiser = torch.optim.SGD([weight for weight in phase.parameters() if weight.requires_grad], lr=0.1)
    loss = phase(batch, 0, {})["total"]
    loss.backward()
    optimiser.step()
    assert loss.isfinite()
    finished = task.finished()
    assert set(finished) == {"unet", "tuning"}
    changed = {name for name, value in finished["unet"].state_dict().items() if not torch.equal(value, before.get(name, value))}
    if lora_rank:
        assert changed <= {name for name in before if "attn" in name}
    else:
        assert "conv_in.weight" in changed
    assert parts["clap"].training is False


def spoil(folder: Path, part: str, **changes: object) -> None:
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("scheduler", {"beta_schedule": "linear"}, "beta_schedule linear"),
        ("unet", {"attention_head_dim": [2, 4, 2]}, "neither equally many nor equally wide"),
        ("text_encoder", {"model_type": "bert"}, "model_type 'bert'"),
        ("vocoder", {"model_type": "bert"}, "no known vocoder"),
        ("vae", {"block_out_channels": [8, 16, 32]}, r"vae of .* cannot be loaded"),
    ],
)
def test_wrong_settings_are_refused(audioldm_folder: Path, tmp_path: Path, part: str, changes: dict, message: str) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(audioldm_folder, folder)
    spoil(folder, part, **changes)
    with pytest.raises(ModelError, match=message):
        read_foreign(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "vocoder", "text_encoder"])
def test_truncated_weights_are_refused(audioldm_folder: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(audioldm_folder, folder)
    path = next((folder / part).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        read_foreign(folder)


def test_older_folders_of_bin_files(audioldm_folder: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(audioldm_folder, folder)
    for part in ("unet", "vae", "vocoder", "text_encoder"):
        path = next((folder / part).glob("*.safetensors"))
        name = "pytorch_model.bin" if path.name == "model.safetensors" else path.with_suffix(".bin").name
        torch.save(load_file(path), path.with_name(name))
        path.unlink()
    digests = {name: part.digest for name, part in read_info(imported(folder, tmp_path / "model")).parts.items()}
    assert digests == {name: part.digest for name, part in read_info(model).parts.items()}
    path = folder / "vae" / "diffusion_pytorch_model.bin"  # attention as diffusers named it when AudioLDM was published
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = torch.load(path)
    for new, old in older.items():
        state = {name.replace(f"attentions.0.{new}", f"attentions.0.{old}"): value for name, value in state.items()}
    assert any("query" in name for name in state)
    torch.save(state, path)
    assert read_info(imported(folder, tmp_path / "older")).parts["vae"].digest == digests["vae"]
    torch.save({"conv_in.weight": print}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"unet of .* cannot be loaded"):
        read_foreign(folder)


def test_other_folders_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model folder of ours already"):
        read_foreign(tiny_model)
    with pytest.raises(ModelError, match="no file or folder"):
        read_foreign(tmp_path / "typo")
    with pytest.raises(ModelError, match=r"it holds: nothing"):
        read_foreign(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ModelError, match="StableDiffusionPipeline, not an AudioLDMPipeline"):
        read_foreign(tmp_path)


def test_a_hub_id_without_a_network_says_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"cvssp/no-such-model is not here.*download it"):
        read_foreign("cvssp/no-such-model")
