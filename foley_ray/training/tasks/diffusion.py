"""Diffusion on latents: pre-training on the sounds' own CLAP embeddings, fine-tuning on those of their captions, tuned."""

import copy
from typing import ClassVar

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

from foley_ray.audio.mel import LogMel
from foley_ray.checkpoint import Part
from foley_ray.config import ModelConfig, Task, TrainConfig
from foley_ray.diffusion.schedule import Schedule
from foley_ray.errors import ConfigError
from foley_ray.models.tuning import Tuning
from foley_ray.models.unet import Denoiser, build_unet
from foley_ray.models.vae import encode
from foley_ray.training import losses
from foley_ray.training.loop import Batch, Losses, Phase
from foley_ray.training.tasks.base import Hidden, Parts, TrainingTask

MOST_CAPTIONS = 65_536
"""Text embeddings kept at hand: 128 MB of them."""


class DiffusionPhase(Phase):
    """Noise a latent to a random level and ask for the noise, or the velocity (system.md A.2; arXiv 2202.00512 for v)."""

    def __init__(self, task: "DiffusionTask"):
        super().__init__()
        self.denoiser = task.denoiser
        self.tuning = task.tuning
        self._hidden = Hidden(task=task)

    def forward(self, batch: Batch, step: int, carry: dict[str, Tensor]) -> Losses:
        """Per-sample squared error, weighted by min-SNR if asked for."""
        task: DiffusionTask = self._hidden.task
        prediction_kind, train, schedule = task.config.diffusion.prediction, task.train, task.schedule
        with torch.no_grad():
            latent = task.latent(batch)
            condition_BD = task.embed(batch)
        if self.tuning is not None:
            condition_BD = self.tuning(condition_BD)
        null_D = task.null(condition_BD.device)
        dropped_B = torch.rand(len(latent), device=latent.device) < train.condition_dropout
        condition_BD = torch.where(dropped_B[:, None], null_D[None], condition_BD)
        timestep_B = torch.randint(0, task.config.diffusion.train_steps, (len(latent),), device=latent.device)
        noise = torch.randn_like(latent)
        noisy = schedule.q_sample(latent, noise, timestep_B)
        target = noise if prediction_kind == "epsilon" else schedule.velocity(latent, noise, timestep_B)
        predicted = self.denoiser(noisy, timestep_B, condition_BD)
        weight_B = None
        if train.snr_gamma is not None:
            abar_B = schedule.alphas_cumprod.to(latent.device)[timestep_B]
            weight_B = losses.min_snr_weight(abar_B, prediction_kind, train.snr_gamma)
        per_sample_B = losses.diffusion_loss(predicted, target, weight_B)
        plain = losses.diffusion_loss(predicted.detach(), target).mean()
        return {"total": per_sample_B.mean(), "mse": plain}


class DiffusionTask(TrainingTask):
    """Pre-training: the latent diffusion model conditioned on CLAP *audio* embeddings, so that it needs no captions."""

    name: ClassVar[Task] = "diffusion"
    makes: ClassVar[tuple[Part, ...]] = ("unet",)
    needs = ("clap", "vae")

    def __init__(self, config: ModelConfig, train: TrainConfig, given: Parts):
        super().__init__(config, train, given)
        unet = given.get("unet") or build_unet(config)
        if train.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if train.lora_rank is not None:
            if "unet" not in given:
                raise ConfigError("lora_rank adapts a trained unet, and none is given; give its run with --init")
            adapt(unet, train.lora_rank, train.lora_alpha)
        self.denoiser = Denoiser(unet).train()
        self.tuning = self._tuning(given)
        self.schedule = Schedule.from_config(config.diffusion)
        self.log_mel = LogMel(config.audio)
        self._null: Tensor | None = None
        self.phases = {"model": DiffusionPhase(self)}

    def _tuning(self, given: Parts) -> Tuning | None:
        return None

    def parts(self) -> dict[Part, nn.Module]:
        """The UNet, and the tuning layer where there is one."""
        found: dict[Part, nn.Module] = {"unet": self.denoiser.unet}
        return found if self.tuning is None else {**found, "tuning": self.tuning}

    def finished(self) -> dict[Part, nn.Module]:
        """With LoRA, the UNet with its adapters merged into its weights: a model like any other."""
        if self.train.lora_rank is None:
            return self.parts()
        merged = copy.deepcopy(self.denoiser.unet)
        merged.fuse_lora()
        merged.unload_lora()
        return {**self.parts(), "unet": merged}

    def to(self, device: torch.device) -> None:
        """Move everything, frozen parts included."""
        super().to(device)
        self.log_mel.to(device)

    def latent(self, batch: Batch) -> Tensor:
        """A sample of each row's latent (B, C, W, H), scaled to unit spread: the cached one, or encoded now."""
        if "latent" in batch:
            cached: Tensor = batch["latent"]
            return cached * self.latent_scale
        latent: Tensor = encode(self.frozen["vae"], self.log_mel(batch["wave"])).sample()
        return latent * self.latent_scale

    def embed(self, batch: Batch) -> Tensor:
        """(B, D) the CLAP embedding that conditions each row."""
        if "audio_embedding" in batch:
            cached: Tensor = batch["audio_embedding"]
            return cached
        embedding_BD: Tensor = self.frozen["clap"].audio_embed(batch["wave"], self.config.audio.sample_rate_hz)
        return embedding_BD

    def null(self, device: torch.device) -> Tensor:
        """(D,) what the unconditional rows see: the embedding of the empty text, in training as in sampling."""
        if self._null is None:
            with torch.no_grad():
                self._null = self.frozen["clap"].text_embed([""])[0]
        return self._null.to(device)

    def calibrate(self, batch: Batch) -> None:
        """Scale latents by one over the spread of the first batch (`scale_by_std`, system.md A.2), averaged over workers."""
        if self.latent_scale != 1.0:
            return  # a warm start knows the scale that its weights were trained at
        with torch.no_grad():
            spread = self.latent(batch).std().reshape(1)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(spread)
            spread /= torch.distributed.get_world_size()
        self.latent_scale = 1.0 / float(spread)


class FinetuneTask(DiffusionTask):
    """Fine-tuning: conditioned on the caption's text embedding through the tuning layer, with CLAP frozen (the paper's key)."""

    name: ClassVar[Task] = "finetune"
    makes: ClassVar[tuple[Part, ...]] = ("unet", "tuning")
    needs = ("clap", "vae")

    def __init__(self, config: ModelConfig, train: TrainConfig, given: Parts):
        super().__init__(config, train, given)
        self._embedded: dict[str, Tensor] = {}

    def _tuning(self, given: Parts) -> Tuning | None:
        tuning = given.get("tuning")
        if tuning is None or tuning.config != self.config.tuning:
            tuning = Tuning(self.config.tuning, self.config.clap.embed_dim)
            if self.config.tuning.kind == "per_class":
                with torch.no_grad():
                    names = [name.replace("_", " ") for name in self.config.tuning.classes]
                    tuning.set_anchors(self.frozen["clap"].text_embed(names))
        # without parameters there is nothing to train, and DDP would have nothing to hold
        return tuning.train() if self.config.tuning.kind != "none" else None

    def embed(self, batch: Batch) -> Tensor:
        """(B, D) the caption's text embedding. Captions repeat, so each is embedded once, and alone: the same in any batch."""
        if len(self._embedded) > MOST_CAPTIONS:
            self._embedded.clear()
        for caption in batch["caption"]:
            if caption not in self._embedded:
                self._embedded[caption] = self.frozen["clap"].text_embed([caption], cut=True)[0]
        return torch.stack([self._embedded[caption] for caption in batch["caption"]])


def adapt(unet: UNet2DConditionModel, rank: int, alpha: float) -> None:
    """Freeze a UNet and put trainable low-rank adapters beside its attention's projections (arXiv 2106.09685)."""
    unet.requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=targets))
