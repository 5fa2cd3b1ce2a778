"""diffusers' AudioLDM folders, in and out.

unet/ vae/ vocoder/          the networks that a model folder of ours has too, under the same names and in the same form
text_encoder/ tokenizer/     CLAP's text tower alone; a folder may have the whole ClapModel
scheduler/ model_index.json  the noise process, and the table of parts
"""

import json
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers import __version__ as diffusers_version
from diffusers.utils.logging import disable_progress_bar
from pydantic import ValidationError
from safetensors import SafetensorError
from transformers import ClapTextModelWithProjection

from foley_ray.checkpoint import ModelInfo, Part, load_part, read_info
from foley_ray.config import DiffusionConfig, RobertaClapConfig, UNetConfig, VaeConfig, VocoderConfig
from foley_ray.errors import ModelError, OutputError
from foley_ray.interchange.foreign import Foreign
from foley_ray.models.roberta_clap import RobertaClap
from foley_ray.models.vocoder import HifiGan, load_vocoder
from foley_ray.settings import describe
from foley_ray.spec import AudioSpec

INDEX_FILE = "model_index.json"
PIPELINE = "AudioLDMPipeline"
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


def read_diffusers(folder: Path) -> Foreign:
    """The parts of an AudioLDM folder. Raises ModelError for another pipeline, and for parts that lack weights."""
    index = _json(folder / INDEX_FILE)
    if index.get("_class_name") != PIPELINE:
        raise ModelError(f"{folder} is a {index.get('_class_name')}, not an {PIPELINE}: an architecture unknown here")
    unet, vae = _network(folder, "unet", UNet2DConditionModel), _network(folder, "vae", AutoencoderKL)
    vocoder = _vocoder(folder / "vocoder")
    clap = RobertaClap.from_pretrained(folder / "text_encoder", folder / "tokenizer", safetensors=False)
    try:
        sections: dict[str, Any] = {
            "audio": audio_of(vocoder, vae, unet),
            "clap": clap.config,
            "unet": unet_section(unet.config),
            "vae": vae_section(vae.config),
            "vocoder": vocoder_section(vocoder),
            "diffusion": _diffusion(_json(folder / "scheduler" / "scheduler_config.json"), folder),
        }
    except ValidationError as error:
        raise ModelError(f"{folder} has settings that are not known here: {describe(error)}") from None
    parts: dict[Part, Any] = {"clap": clap, "unet": unet, "vae": vae, "vocoder": vocoder}
    return Foreign("diffusers AudioLDM", parts, sections, latent_scale=float(vae.config.scaling_factor))


def audio_of(vocoder: HifiGan, vae: Any = None, unet: Any = None) -> AudioSpec:
    """How sound is measured: the vocoder states most of it, the Fourier settings are those of all published ones."""
    config = vocoder.config
    hop = 1
    for rate in config.upsample_rates:
        hop *= rate
    known: dict[str, Any] = {
        "sample_rate_hz": config.sampling_rate,
        "hop_samples": hop,
        "mel_bands": config.model_in_dim,
        "fmax_hz": min(8000.0, config.sampling_rate / 2),
    }
    if vae is not None:
        known |= {"latent_channels": vae.config.latent_channels, "latent_factor": 2 ** (len(vae.config.block_out_channels) - 1)}
    if unet is not None and isinstance(unet.config.sample_size, int):
        known["clip_s"] = unet.config.sample_size * hop * known["latent_factor"] / config.sampling_rate
    return AudioSpec(**known)


def unet_section(config: Any) -> UNetConfig:
    """Our words for a UNet's config. Raises ModelError if it is no AudioLDM's."""
    down, widths = list(config["down_block_types"]), list(config["block_out_channels"])
    plain = down.count("DownBlock2D")
    wanted = {
        "class_embed_type": "simple_projection",
        "class_embeddings_concat": True,
        "down_block_types": ["DownBlock2D"] * plain + ["CrossAttnDownBlock2D"] * (len(down) - plain),
    }
    for key, value in wanted.items():
        seen = list(config[key]) if isinstance(config[key], list | tuple) else config[key]
        if seen != value:
            raise ModelError(f"this unet is no AudioLDM's: {key} is {seen}, not {value}")
    heads = config.get("num_attention_heads") or config["attention_head_dim"]  # diffusers' names mean the same number of heads
    known = {
        "channels": tuple(widths),
        "layers_per_block": config["layers_per_block"],
        "attention_from": plain,
        "norm_groups": config["norm_num_groups"],
    }
    if isinstance(heads, int):
        return UNetConfig(**known, heads=heads, head_channels=1)
    each = {width // count for width, count in zip(widths, heads, strict=True)}
    if len(each) > 1:
        raise ModelError(f"this unet's heads {list(heads)} are neither equally many nor equally wide at its widths {widths}")
    return UNetConfig(**known, head_channels=each.pop())


def vae_section(config: Any) -> VaeConfig:
    """Our words for a VAE's config. Raises ModelError if it does not read mel pictures."""
    if (config["in_channels"], config["out_channels"]) != (1, 1):
        raise ModelError(f"this vae reads {config['in_channels']} channels, not a mel picture's one")
    return VaeConfig(
        channels=tuple(config["block_out_channels"]),
        layers_per_block=config["layers_per_block"],
        norm_groups=config["norm_num_groups"],
        mid_attention=config.get("mid_block_add_attention", True),
    )


def vocoder_section(vocoder: HifiGan) -> VocoderConfig:
    """Our words for a HiFi-GAN's config."""
    config = vocoder.config
    return VocoderConfig(
        channels=config.upsample_initial_channel,
        upsample_rates=tuple(config.upsample_rates),
        upsample_kernels=tuple(config.upsample_kernel_sizes),
        resblock_kernels=tuple(config.resblock_kernel_sizes),
    )


def export_diffusers(model: Path, out: Path, parts_only: bool = False) -> list[str]:
    """Write what diffusers' AudioLDMPipeline loads and runs; returns the names of what was written.

    Raises ModelError naming all that stands in the way. With `parts_only` just the networks that diffusers and transformers
    know, each to be loaded by itself. The folder is whole or absent; OutputError if it cannot be written.
    """
    info = read_info(model)
    obstacles = _obstacles(info)
    if obstacles and not parts_only:
        raise ModelError(
            f"{model} cannot become an {PIPELINE}: {'; '.join(obstacles)}. --parts writes those of its networks that diffusers "
            "can load one by one"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists; choose another place, nothing there was touched")
    kept: list[Part] = [name for name in ("unet", "vae") if name in info.parts]
    if "vocoder" in info.parts and info.model.vocoder.kind == "hifigan":
        kept.append("vocoder")
    if not kept:
        raise ModelError(f"{model} has no network that diffusers knows")
    temporary = out.with_name(f".{out.name}.{uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        for name in kept:
            shutil.copytree(model / name, temporary / name)
        if "vocoder" in kept:
            _set_json(temporary / "vocoder" / "config.json", architectures=["SpeechT5HifiGan"])
        shutil.copytree(model / "scheduler", temporary / "scheduler")
        written = [*kept, "scheduler"]
        if not parts_only:
            tokenizer = _write_text_tower(load_part(model, "clap"), temporary)
            index = {
                "_class_name": PIPELINE,
                "_diffusers_version": diffusers_version,
                "scheduler": ["diffusers", "DDIMScheduler"],
                "text_encoder": ["transformers", "ClapTextModelWithProjection"],
                "tokenizer": ["transformers", tokenizer],
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
                "vocoder": ["transformers", "SpeechT5HifiGan"],
            }
            (temporary / INDEX_FILE).write_text(json.dumps(index, indent=1))
            written += ["text_encoder", "tokenizer", INDEX_FILE]
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}; choose another place") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written


def _obstacles(info: ModelInfo) -> list[str]:
    """Why AudioLDMPipeline cannot make of a model what we make of it."""
    found = []
    model = info.model
    missing = [name for name in ("clap", "unet", "vae", "vocoder") if name not in info.parts]
    if missing:
        found.append(f"it lacks {', '.join(missing)}")
    if not isinstance(model.clap, RobertaClapConfig):
        found.append("its CLAP reads text as CLIP does, the pipeline's as RoBERTa does")
    if model.vocoder.kind != "hifigan":
        found.append(f"its vocoder is of the kind {model.vocoder.kind}, the pipeline's is a HiFi-GAN")
    if "tuning" in info.parts:
        found.append("the pipeline has no place for its tuning layer (fine-tune with --tuning none)")
    stride = 2 ** (len(model.unet.channels) - 1)
    if model.audio.latent_bands % stride:
        found.append(
            f"its {model.audio.latent_bands} latent bands are no multiple of {stride}, which the pipeline does not pad"
        )
    return found


def _write_text_tower(clap: RobertaClap, folder: Path) -> str:
    """text_encoder/ and tokenizer/; returns the tokenizer's class."""
    tower = clap.net
    if clap.config.hears:
        tower = ClapTextModelWithProjection(clap.net.config.text_config)
        tower.text_model.load_state_dict(clap.net.text_model.state_dict())
        tower.text_projection.load_state_dict(clap.net.text_projection.state_dict())
    tower.save_pretrained(folder / "text_encoder")
    clap.tokenizer.model_max_length = clap.most_tokens  # the pipeline pads each text to it
    clap.tokenizer.save_pretrained(folder / "tokenizer")
    return type(clap.tokenizer).__name__


def _network(folder: Path, name: str, kind: Any) -> Any:
    """A network of diffusers' in float32, from safetensors or a .bin of weights alone."""
    disable_progress_bar()
    try:
        network, report = kind.from_pretrained(
            folder / name, torch_dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{name} of {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    if report["missing_keys"] or report["unexpected_keys"]:  # diffusers fills what a file lacks with random numbers
        raise ModelError(
            f"{name} of {folder} does not fit its config.json: missing {sorted(report['missing_keys'])[:3]}, unexpected "
            f"{sorted(report['unexpected_keys'])[:3]}"
        )
    return network.eval()


def _vocoder(folder: Path) -> HifiGan:
    loaded = load_vocoder(folder, safetensors=False)
    if not isinstance(loaded, HifiGan):
        raise ModelError(f"{folder} is no HiFi-GAN")
    return loaded


def _diffusion(scheduler: dict[str, Any], folder: Path) -> DiffusionConfig:
    """The noise process of any of diffusers' schedulers. Raises ModelError for one that no sampler here knows."""
    schedule, kind = scheduler.get("beta_schedule", "linear"), scheduler.get("prediction_type", "epsilon")
    if schedule != "scaled_linear" or kind not in PREDICTIONS or scheduler.get("rescale_betas_zero_snr"):
        raise ModelError(
            f"the scheduler of {folder} has beta_schedule {schedule} and prediction_type {kind}; known are scaled_linear with "
            f"{' or '.join(PREDICTIONS)}"
        )
    return DiffusionConfig.model_validate(
        {
            "train_steps": scheduler["num_train_timesteps"],
            "beta_start": scheduler["beta_start"],
            "beta_end": scheduler["beta_end"],
            "prediction": PREDICTIONS[kind],
        }
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from None
    return content


def _set_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(_json(path) | values, indent=1))
