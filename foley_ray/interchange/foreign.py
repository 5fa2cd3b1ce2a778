"""What has been read of somebody else's weights, and how it becomes a model folder of ours.

Each reader beside this file fills a `Foreign`: modules, the settings that files state or shapes betray, and what the diffusion
model scales latents by. Several may be put over one another, a whole CLAP over a text tower for one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from foley_ray.audio.files import replacing
from foley_ray.checkpoint import ModelInfo, Part, PartInfo, save_model
from foley_ray.config import ModelConfig
from foley_ray.errors import ModelError
from foley_ray.models.roberta_clap import RobertaClap
from foley_ray.settings import describe

TARGETS_FILE = "targets.safetensors"
"""Beside a model's parts: target sounds that came with its checkpoint."""
SAME_SPACE = 0.999
PROBE = "a dog barks in the rain"


@dataclass(frozen=True)
class Targets:
    """The challenge entry's target sounds: embedding_ND, unit vectors, and the score that each asks for, threshold_N."""

    embedding_ND: torch.Tensor
    threshold_N: torch.Tensor


@dataclass
class Foreign:
    """Parts of somebody else's model. `sections` are sections of ModelConfig by name."""

    format: str
    parts: dict[Part, nn.Module] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)
    latent_scale: float = 1.0
    targets: Targets | None = None

    def with_part(self, name: Part, other: "Foreign") -> "Foreign":
        """The same with `name` taken from `other`. Raises ModelError if there is none, or one that does not fit."""
        if name not in other.parts:
            raise ModelError(f"what was given for the {name} is {other.format}, which has none")
        if name == "clap" and "clap" in self.parts:
            _check_same_text(self.parts["clap"], other.parts["clap"])
        sections = {**self.sections, name: other.sections[name]}
        if name == "vocoder" and "audio" in self.sections:
            _check_same_audio(self.sections["audio"], other.sections["audio"])
        return Foreign(self.format, {**self.parts, name: other.parts[name]}, sections, self.latent_scale, self.targets)


def write_model(
    foreign: Foreign, out: Path, base: ModelConfig, source: str, preset: str, licences: Sequence[str] = ()
) -> ModelInfo:
    """A model folder of what was read; settings that it does not state are those of `base`.

    Raises ModelError if the parts do not fit each other, OutputError if `out` cannot be written.
    """
    unet: Any = foreign.parts.get("unet")
    sections = dict(foreign.sections)
    width = unet.config.projection_class_embeddings_input_dim if unet is not None else base.clap.embed_dim
    sections.setdefault("clap", base.clap.model_copy(update={"embed_dim": width}))
    try:
        model = ModelConfig.model_validate({**dict(base), **sections})
    except ValidationError as error:
        raise ModelError(f"{source} is of no shape that is known here: {describe(error)}") from None
    if unet is not None and width != model.clap.embed_dim:
        raise ModelError(
            f"the unet of {source} takes conditions of {width} values, but the CLAP given makes {model.clap.embed_dim}; give "
            "the CLAP that it was trained with"
        )
    infos: dict[Part, PartInfo] = {}
    for name in foreign.parts:
        trained_with: tuple[Part, ...] = ("clap", "vae") if name == "unet" else ()
        infos[name] = PartInfo(
            digest=f"imported {name}",  # save_model puts the weights' own in its place, here and in made_for
            made_for={other: f"imported {other}" for other in trained_with if other in foreign.parts},
            training={"imported_from": source, "format": foreign.format},
        )
    info = ModelInfo(
        preset=preset,
        model=model,
        latent_scale=foreign.latent_scale,
        parts=infos,
        licences=list(licences) or ["unknown (imported)"],
    )
    info = save_model(out, info, foreign.parts)
    if foreign.targets is not None:
        with replacing(out / TARGETS_FILE) as temporary:
            save_file({"embedding_ND": foreign.targets.embedding_ND, "threshold_N": foreign.targets.threshold_N}, temporary)
    return info


@torch.inference_mode()
def _check_same_text(ours: Any, other: Any) -> None:
    """A CLAP that reads text otherwise than the one a unet was trained with would steer it anywhere."""
    if not (isinstance(ours, RobertaClap) and isinstance(other, RobertaClap)):
        return
    if ours.config.embed_dim == other.config.embed_dim:
        cosine = float((ours.text_embed([PROBE]) * other.text_embed([PROBE])).sum())
        if cosine >= SAME_SPACE:
            return
        seen = f"their embeddings of one text have a cosine of {cosine:.3f}"
    else:
        seen = f"one makes {ours.config.embed_dim} values, the other {other.config.embed_dim}"
    raise ModelError(f"the CLAP given is not the one that this model was made with: {seen}; give the one it was made with")


def _check_same_audio(ours: Any, other: Any) -> None:
    for key in ("sample_rate_hz", "hop_samples", "mel_bands"):
        if getattr(ours, key) != getattr(other, key):
            raise ModelError(f"the vocoder given has {key} {getattr(other, key)}, but the model {getattr(ours, key)}")
