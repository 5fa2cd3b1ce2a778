"""What all training tasks share: a model's parts, the frozen ones it needs, and its phases."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from foley_ray.checkpoint import Part
from foley_ray.config import ModelConfig, Task, TrainConfig
from foley_ray.errors import ConfigError
from foley_ray.training.loop import Batch, Phase

Parts = Mapping[Part, Any]


class TrainingTask(ABC):
    """One model's training: the parts it makes, the frozen parts it needs, and its phases."""

    name: ClassVar[Task]
    makes: ClassVar[tuple[Part, ...]]
    needs: ClassVar[tuple[Part, ...]] = ()
    """Parts that must be given; they stay frozen."""
    uses: ClassVar[tuple[Part, ...]] = ()
    """Parts that are used, frozen too, where they are given."""

    def __init__(self, config: ModelConfig, train: TrainConfig, given: Parts):
        """Build from settings and given parts; a given part that the task makes is the warm start."""
        self.config = config
        self.train = train
        self.latent_scale = 1.0
        frozen = (*self.needs, *(name for name in self.uses if name in given))
        self.frozen: dict[Part, Any] = {name: given[name].eval().requires_grad_(False) for name in frozen}
        self.phases: dict[str, Phase] = {}
        if train.sharding != "none" and (self.name not in ("diffusion", "finetune") or train.lora_rank or train.samples_every):
            raise ConfigError(
                f"sharding {train.sharding} is for tasks diffusion and finetune, without lora_rank and samples_every (this is "
                f"{self.name} with lora_rank {train.lora_rank} and samples_every {train.samples_every})"
            )
        if train.gradient_checkpointing and self.name in ("clap", "vocoder"):
            raise ConfigError(f"task {self.name} has no gradient_checkpointing; vae, diffusion and finetune have")
        if train.lora_rank is not None and self.name not in ("diffusion", "finetune"):
            raise ConfigError(f"task {self.name} has no lora_rank; diffusion and finetune have")
        if train.decoder_only and self.name != "vae":
            raise ConfigError(f"task {self.name} has no decoder_only; vae has")
        if train.audio_only and self.name != "clap":
            raise ConfigError(f"task {self.name} has no audio_only; clap has")

    @abstractmethod
    def parts(self) -> dict[Part, nn.Module]:
        """The modules that go into the model folder."""

    def finished(self) -> dict[Part, nn.Module]:
        """The same as they are saved: without what only training needs."""
        return self.parts()

    def to(self, device: torch.device) -> None:
        """Move everything, frozen parts included."""
        for module in (*self.phases.values(), *self.frozen.values()):
            module.to(device)

    def calibrate(self, batch: Batch) -> None:  # noqa: B027 - a hook, which most leave empty
        """Measure what the task needs to know of the data before its first step. Most need nothing."""


class Hidden:
    """A reference that `nn.Module` does not register."""

    def __init__(self, **modules: Any):
        self.__dict__.update(modules)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)
