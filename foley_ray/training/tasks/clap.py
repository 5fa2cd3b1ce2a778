"""CLAP: sound and text -> the symmetric contrastive loss."""

import zlib

import torch
from torch import Tensor, nn

from foley_ray.checkpoint import Part
from foley_ray.config import ModelConfig, TrainConfig
from foley_ray.errors import ConfigError
from foley_ray.models.clap import build_clap
from foley_ray.training import losses
from foley_ray.training.loop import Batch, Losses, Phase
from foley_ray.training.tasks.base import Parts, TrainingTask


class ClapPhase(Phase):
    """Symmetric contrastive loss; rows of the same class (or, without classes, of the same caption) are positives."""

    def __init__(self, clap: nn.Module, sample_rate_hz: int):
        super().__init__()
        self.clap = clap
        self.sample_rate_hz = sample_rate_hz

    def forward(self, batch: Batch, step: int, carry: dict[str, Tensor]) -> Losses:
        """Loss over the batches of all workers together: negatives are what contrastive learning lives on."""
        audio_BD, text_BD, scale = self.clap(batch["wave"], batch["caption"], self.sample_rate_hz)
        class_B = batch["class_id"].clone()
        for row, caption in enumerate(batch["caption"]):
            if class_B[row] < 0:  # a source without classes: equal captions are the same thing, on every rank
                class_B[row] = -1 - zlib.crc32(caption.encode())
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # every rank computes the same loss over all rows; the gather's backward sums over ranks and DDP averages
            from torch.distributed.nn.functional import all_gather

            audio_BD, text_BD, class_B = (torch.cat(all_gather(item)) for item in (audio_BD, text_BD, class_B))
        positives_BB = class_B[:, None] == class_B[None]
        total = losses.contrastive_loss(audio_BD, text_BD, scale, positives_BB).mean()
        similarity_BB = audio_BD @ text_BD.T
        hits = positives_BB.gather(1, similarity_BB.argmax(dim=1, keepdim=True)).float().mean()
        return {"total": total, "accuracy": hits.detach(), "scale": scale.detach()}


class ClapTask(TrainingTask):
    """CLAP from scratch (or from a given one) on the dataset's own captions."""

    name = "clap"
    makes = ("clap",)

    def __init__(self, config: ModelConfig, train: TrainConfig, given: Parts):
        super().__init__(config, train, given)
        self.clap = given.get("clap") or build_clap(config.clap)
        self.config = config.model_copy(update={"clap": self.clap.config})  # an imported one's is not the preset's
        if train.audio_only:
            if "clap" not in given:
                raise ConfigError("audio_only trains the audio tower of a CLAP that is there: give it with --init")
            for name, weight in self.clap.named_parameters():
                if not name.startswith("net.audio_"):
                    weight.requires_grad_(False)
        self.phases = {"model": ClapPhase(self.clap.train(), config.audio.sample_rate_hz)}

    def parts(self) -> dict[Part, nn.Module]:
        """CLAP."""
        return {"clap": self.clap}
