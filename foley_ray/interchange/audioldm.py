"""The original AudioLDM checkpoints (.ckpt) and the challenge entry's two, which are laid out alike (system.md A.2, A.3).

model.diffusion_model.*      the UNet, as trained
model_ema.*                  its moving average, the dots taken out of the names
first_stage_model.*          the VAE, and under vocoder.* the HiFi-GAN
cond_stage_model.model.*     LAION-CLAP
scale_factor                 what latents are multiplied by
embed_v.weight               of the challenge's big model: 100 target sounds, 512 values and a threshold each
"""

import re
from pathlib import Path
from typing import Any

import torch

from foley_ray.checkpoint import Part
from foley_ray.config import ModelConfig, UNetConfig, VaeConfig
from foley_ray.errors import ModelError
from foley_ray.interchange.diffusers_folder import audio_of, vocoder_section
from foley_ray.interchange.foreign import Foreign, Targets
from foley_ray.interchange.hifigan import vocoder_of
from foley_ray.interchange.laion import is_laion, read_laion
from foley_ray.interchange.weights import State, fill, strip
from foley_ray.models.unet import build_unet
from foley_ray.models.vae import build_vae
from foley_ray.spec import AudioSpec

UNET, EMA, VAE, CLAP = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model."
VAE_MARK = "decoder.mid.block_1.conv1.weight"
WIDE, NARROW_HEAD, WIDE_HEAD = 256, 32, 64
"""The published heads are 32 wide, and 64 in AudioLDM-L with its 256 channels: shapes do not tell."""

CHALLENGE_RATE_HZ = 22050

RESBLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def is_audioldm(state: State) -> bool:
    """Whether these are a latent diffusion checkpoint's names."""
    return any(name.startswith(UNET) for name in state)


def is_vae(state: State) -> bool:
    """Whether these are the VAE's names alone, with or without the prefix that they have in a whole checkpoint."""
    return VAE_MARK in state or VAE + VAE_MARK in state


def read_audioldm(
    state: State, what: str, tokenizer: Path | None = None, ema: bool = True, head_channels: int | None = None
) -> Foreign:
    """Everything in the checkpoint. Raises ModelError for weights that are missing, too many, or of another architecture."""
    first = strip(state, VAE)
    vocoder = vocoder_of(strip(first, "vocoder."), f"the vocoder of {what}")
    vae, vae_section = _vae(first, f"the VAE of {what}")
    raw = averaged(state, what) if ema and any(name.startswith(EMA) for name in state) else strip(state, UNET)
    targets = _targets(state)
    # shapes do not tell the length of a training crop either; the challenge's models are those at 22,050 Hz or with targets
    challenge = targets is not None or vocoder.config.sampling_rate == CHALLENGE_RATE_HZ
    audio = audio_of(vocoder, vae).model_copy(update={"clip_s": 4.0 if challenge else 10.24})
    unet, unet_section = _unet(raw, audio, f"the unet of {what}", head_channels)
    clap = read_laion(strip(state, CLAP), tokenizer, f"the CLAP of {what}") if is_laion(state) else None
    parts: dict[Part, Any] = {"unet": unet, "vae": vae, "vocoder": vocoder}
    sections: dict[str, Any] = {
        "audio": audio,
        "unet": unet_section,
        "vae": vae_section,
        "vocoder": vocoder_section(vocoder),
        "diffusion": ModelConfig().diffusion,  # the published one
    }
    if clap is not None:
        parts["clap"], sections["clap"] = clap, clap.config
    scale = float(state["scale_factor"]) if "scale_factor" in state else 1.0
    return Foreign("AudioLDM checkpoint", parts, sections, scale, targets)


def read_vae(state: State, what: str) -> Foreign:
    """A checkpoint of the VAE alone."""
    vae, section = _vae(strip(state, VAE) or state, what)
    return Foreign("AudioLDM VAE", {"vae": vae}, {"vae": section})


def averaged(state: State, what: str) -> State:
    """The UNet's moving average under its own names. Raises ModelError where a weight has none."""
    found: State = {}
    for name in state:
        if name.startswith(UNET):
            flat = EMA + name.removeprefix("model.").replace(".", "")
            if flat not in state:
                raise ModelError(f"{what} has averaged weights, but none for {name}; take the others with --no-ema")
            found[name.removeprefix(UNET)] = state[flat]
    return found


def _unet(state: State, audio: AudioSpec, what: str, head_channels: int | None) -> tuple[Any, UNetConfig]:
    if "film_emb.weight" not in state:
        raise ModelError(f"{what} is not conditioned as AudioLDM's is (it has no film_emb)")
    blocks = _unet_blocks(state, what)
    width = state["input_blocks.0.0.weight"].shape[0]
    heads = head_channels or (WIDE_HEAD if width >= WIDE else NARROW_HEAD)
    section = UNetConfig(
        channels=tuple(level["width"] for level in blocks),
        layers_per_block=blocks[0]["layers"],
        attention_from=sum(not level["attends"] for level in blocks),
        head_channels=heads,
    )
    clap = ModelConfig().clap.model_copy(update={"embed_dim": state["film_emb.weight"].shape[1]})
    unet = build_unet(ModelConfig.model_construct(audio=audio, unet=section, clap=clap))
    fill(unet, _renamed_unet(state, blocks), what)
    return unet, section


def _unet_blocks(state: State, what: str) -> list[dict[str, Any]]:
    """Of each level: its width, residual blocks and whether it attends, read off the downward path."""
    levels: list[dict[str, Any]] = [{"width": 0, "layers": 0, "attends": False}]
    index = 1
    while any(name.startswith(f"input_blocks.{index}.") for name in state):
        block = f"input_blocks.{index}"
        if f"{block}.0.op.weight" in state:
            levels.append({"width": 0, "layers": 0, "attends": False})
        elif f"{block}.0.in_layers.2.weight" in state:
            level = levels[-1]
            level["width"] = state[f"{block}.0.in_layers.2.weight"].shape[0]
            level["layers"] += 1
            level["attends"] |= f"{block}.1.proj_in.weight" in state
        else:
            raise ModelError(f"{what} has {block}, which is neither a residual block nor a downsampling")
        index += 1
    if len({level["layers"] for level in levels}) > 1 or not levels[0]["layers"]:
        raise ModelError(f"{what} has levels of {[level['layers'] for level in levels]} residual blocks, not equally many")
    return levels


def _renamed_unet(state: State, levels: list[dict[str, Any]]) -> State:
    """The same weights under diffusers' names."""
    places = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "film_emb": "class_embedding",
        "input_blocks.0.0": "conv_in",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    index, last, layers = 1, len(levels) - 1, levels[0]["layers"]
    for level in range(len(levels)):
        for layer in range(layers):
            places[f"input_blocks.{index}.0"] = f"down_blocks.{level}.resnets.{layer}"
            places[f"input_blocks.{index}.1"] = f"down_blocks.{level}.attentions.{layer}"
            index += 1
        if level < last:
            places[f"input_blocks.{index}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            index += 1
    index = 0
    for up, level in enumerate(reversed(levels)):
        for layer in range(layers + 1):
            places[f"output_blocks.{index}.0"] = f"up_blocks.{up}.resnets.{layer}"
            places[f"output_blocks.{index}.1"] = f"up_blocks.{up}.attentions.{layer}"
            if up < last and layer == layers:
                place = 2 if level["attends"] else 1
                places[f"output_blocks.{index}.{place}.conv"] = f"up_blocks.{up}.upsamplers.0.conv"
            index += 1
    return _moved(state, places, RESBLOCK)


def _vae(state: State, what: str) -> tuple[Any, VaeConfig]:
    own = {name: value for name, value in state.items() if re.match(r"(encoder|decoder|quant_conv|post_quant_conv)\.", name)}
    if VAE_MARK not in own:
        raise ModelError(f"{what} is not there: no {VAE_MARK}")
    levels = 1 + max(int(match.group(1)) for name in own if (match := re.match(r"encoder\.down\.(\d+)\.", name)))
    layers = 1 + max(int(match.group(1)) for name in own if (match := re.match(r"encoder\.down\.0\.block\.(\d+)\.", name)))
    section = VaeConfig(
        channels=tuple(own[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)),
        layers_per_block=layers,
        mid_attention="encoder.mid.attn_1.q.weight" in own,
    )
    audio = AudioSpec(latent_channels=own["post_quant_conv.weight"].shape[1], latent_factor=2 ** (levels - 1))
    vae = build_vae(ModelConfig.model_construct(audio=audio, vae=section))
    places = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        places |= {f"{half}.{end}": f"{half}.{end}" for end in ("conv_in", "conv_out")} | {
            f"{half}.norm_out": f"{half}.conv_norm_out",
            f"{half}.mid.block_1": f"{half}.mid_block.resnets.0",
            f"{half}.mid.block_2": f"{half}.mid_block.resnets.1",
        }
        places |= {f"{half}.mid.attn_1.{old}": f"{half}.mid_block.attentions.0.{new}" for old, new in VAE_ATTENTION.items()}
    for level in range(levels):
        up = levels - 1 - level  # the original counts both halves from the picture's size down
        for layer in range(layers + 1):
            places[f"encoder.down.{level}.block.{layer}"] = f"encoder.down_blocks.{level}.resnets.{layer}"
            places[f"decoder.up.{level}.block.{layer}"] = f"decoder.up_blocks.{up}.resnets.{layer}"
        places[f"encoder.down.{level}.downsample.conv"] = f"encoder.down_blocks.{level}.downsamplers.0.conv"
        places[f"decoder.up.{level}.upsample.conv"] = f"decoder.up_blocks.{up}.upsamplers.0.conv"
    renamed = _moved(own, places, {"nin_shortcut": "conv_shortcut"})
    for name, value in renamed.items():
        if ".attentions." in name and value.ndim == 4:  # the original's 1 x 1 convolutions are diffusers' linear layers
            renamed[name] = value[:, :, 0, 0]
    fill(vae, renamed, what)
    return vae, section


def _moved(state: State, places: dict[str, str], inner: dict[str, str]) -> State:
    """Each name's longest known beginning replaced, and within it the names of a residual block; others stay as they are."""
    found: State = {}
    for name, value in state.items():
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            place = places.get(".".join(parts[:length]))
            if place is not None:
                rest = ".".join(parts[length:])
                for old, new in inner.items():
                    if rest.startswith(old + "."):
                        rest = new + rest.removeprefix(old)
                name = f"{place}.{rest}"
                break
        found[name] = value
    return found


def _targets(state: State) -> Targets | None:
    """The challenge's big model's target sounds: in each row an embedding, and after it the score that it asks for."""
    rows = state.get("embed_v.weight")
    if rows is None:
        return None
    embedding_ND = torch.nn.functional.normalize(rows[:, :-1].float(), dim=-1)
    return Targets(embedding_ND.contiguous(), rows[:, -1].float().contiguous())
