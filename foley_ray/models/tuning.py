"""Embedding tuning: the trainable layer between CLAP's text embedding and the diffusion model (the paper's key idea).

The paper's text, figure and code disagree on the layer's form (system.md A.4), so two forms are offered, both starting as
the identity so that fine-tuning begins exactly where pre-training ended:

- linear: e + W e + b, shared by all prompts, W and b zero at first;
- per_class: e + r[class], a residual per known class, chosen by the nearest class anchor (the class's own text embedding).
"""

import json
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foley_ray.config import TuningConfig
from foley_ray.errors import ModelError


class Tuning(nn.Module):
    """Text embedding (B, D) -> condition (B, D) of unit length, as CLAP's own embeddings are."""

    def __init__(self, config: TuningConfig, embed_dim: int):
        super().__init__()
        self.config = config
        self.embed_dim = embed_dim
        if config.kind == "linear":
            self.linear = nn.Linear(embed_dim, embed_dim)
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        elif config.kind == "per_class":
            if not config.classes:
                raise ModelError("tuning kind per_class needs its class names; train it on a dataset with classes")
            self.residual_KD = nn.Parameter(torch.zeros(len(config.classes), embed_dim))
            self.register_buffer("anchor_KD", torch.zeros(len(config.classes), embed_dim))

    def set_anchors(self, anchor_KD: Tensor) -> None:
        """Give each class its text embedding, by which a prompt finds its residual (per_class only)."""
        self.get_buffer("anchor_KD").copy_(anchor_KD)

    def forward(self, text_BD: Tensor) -> Tensor:
        """(B, D) unit text embeddings -> (B, D) unit conditions."""
        if self.config.kind == "linear":
            text_BD = text_BD + self.linear(text_BD)
        elif self.config.kind == "per_class":
            nearest_B = (text_BD @ self.get_buffer("anchor_KD").T).argmax(dim=1)
            text_BD = text_BD + self.residual_KD[nearest_B]
        return nn.functional.normalize(text_BD, dim=-1)

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"embed_dim": self.embed_dim, **self.config.model_dump(mode="json")}
        (folder / "config.json").write_text(json.dumps(settings, indent=1))
        save_file(self.state_dict(), folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Read what `save_pretrained` wrote."""
        settings = json.loads((folder / "config.json").read_text())
        embed_dim = settings.pop("embed_dim")
        tuning = cls(TuningConfig.model_validate(settings), embed_dim)
        tuning.load_state_dict(load_file(folder / "model.safetensors"))
        return tuning
