"""What each model learns from a batch: one task per command, each a handful of phases over real losses.

    clap       sound and text      -> symmetric contrastive loss
    vae        mel                 -> L1 + KL, and from a set step a patch discriminator
    vocoder    mel of a segment    -> mel L1, feature matching, least-squares GAN over periods and scales
    diffusion  latent of a sound   -> noise (or velocity) loss, conditioned on the sound's own CLAP embedding
    finetune   latent of a sound   -> the same, conditioned on its caption's CLAP embedding through the tuning layer

A batch is `data.dataset.collate`'s: wave (B, T) at the model's rate, caption, class_id; or from a cache (data/cache.py) latent
and audio_embedding in place of the wave. Frozen parts are held outside `nn.Module`'s sight, so that neither optimiser nor DDP
nor checkpoints see them.
"""

import copy
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

from foley_ray.audio.mel import LogMel, resolutions
from foley_ray.checkpoint import Part
from foley_ray.config import ModelConfig, Task, TrainConfig
from foley_ray.diffusion.schedule import Schedule
from foley_ray.errors import ConfigError
from foley_ray.models.clap import build_clap
from foley_ray.models.discriminators import PatchDiscriminator, WaveDiscriminator
from foley_ray.models.tuning import Tuning
from foley_ray.models.unet import Denoiser, build_unet
from foley_ray.models.vae import build_vae, decode, encode
from foley_ray.models.vocoder import build_vocoder
from foley_ray.training import losses
from foley_ray.training.loop import Batch, Losses, Phase

Parts = Mapping[Part, Any]

MOST_CAPTIONS = 65_536
"""Text embeddings kept at hand: 128 MB of them."""
REBUILT_SHARE = 0.75
"""Of a vocoder's mels when a VAE is given; the others keep it good for mels of real sound."""


class TrainingTask:
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

    def parts(self) -> dict[Part, nn.Module]:
        """The modules that go into the model folder."""
        raise NotImplementedError

    def finished(self) -> dict[Part, nn.Module]:
        """The same as they are saved: without what only training needs."""
        return self.parts()

    def to(self, device: torch.device) -> None:
        """Move everything, frozen parts included."""
        for module in (*self.phases.values(), *self.frozen.values()):
            module.to(device)

    def calibrate(self, batch: Batch) -> None:
        """Measure what the task needs to know of the data before its first step. Most need nothing."""


class _Hidden:
    """A reference that `nn.Module` does not register."""

    def __init__(self, **modules: Any):
        self.__dict__.update(modules)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


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


class VaePhase(Phase):
    """L1 on the log-mel, KL of the latent, and the discriminator's opinion from `adversarial_from` on."""

    def __init__(self, vae: Any, critic: PatchDiscriminator, log_mel: LogMel, train: TrainConfig, segment_samples: int):
        super().__init__()
        self.vae = vae
        self.log_mel = log_mel
        self.train_config = train
        self.segment_samples = segment_samples
        self._hidden = _Hidden(critic=critic)

    def forward(self, batch: Batch, step: int, carry: dict[str, Tensor]) -> Losses:
        """Carries the real and the reconstructed mel to the discriminator's phase."""
        train = self.train_config
        with torch.no_grad():
            mel_BFM = self.log_mel(loud_segment(batch["wave"], self.segment_samples))
        posterior = encode(self.vae, mel_BFM)
        rebuilt_BFM = decode(self.vae, posterior.sample())
        l1 = losses.l1_loss(rebuilt_BFM, mel_BFM).mean()
        kl = losses.kl_loss(posterior.mean, posterior.logvar).mean()
        total = l1 + train.kl_weight * kl
        found: Losses = {"l1": l1.detach(), "kl": kl.detach()}
        carry["real"], carry["fake"] = mel_BFM[:, None], rebuilt_BFM.detach()[:, None]
        if step >= train.adversarial_from:
            critic = self._hidden.critic.requires_grad_(False)
            adversarial = losses.hinge_generator_loss(critic(rebuilt_BFM[:, None])).mean()
            critic.requires_grad_(True)
            weight = losses.adaptive_weight(l1, adversarial, self.vae.decoder.conv_out.weight)
            total = total + train.adversarial_weight * weight * adversarial
            found |= {"adversarial": adversarial.detach(), "adversarial_weight": weight.detach()}
        return {"total": total, **found}


class PatchPhase(Phase):
    """Hinge loss of the mel patch discriminator."""

    def __init__(self, critic: PatchDiscriminator, starts_at: int):
        super().__init__()
        self.critic = critic
        self.starts_at = starts_at

    def forward(self, batch: Batch, step: int, carry: dict[str, Tensor]) -> Losses:
        """Judges what the VAE's phase carried over."""
        return {"total": losses.hinge_discriminator_loss(self.critic(carry["real"]), self.critic(carry["fake"])).mean()}


class VaeTask(TrainingTask):
    """The mel VAE (system.md A.2)."""

    name = "vae"
    makes = ("vae",)

    def __init__(self, config: ModelConfig, train: TrainConfig, given: Parts):
        super().__init__(config, train, given)
        self.vae = given.get("vae") or build_vae(config)
        if train.decoder_only:
            if "vae" not in given:
                raise ConfigError("decoder_only trains the decoder of a VAE that is there: give it with --init")
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        if train.gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()
        critic = PatchDiscriminator()
        self.phases = {
            "generator": VaePhase(self.vae.train(), critic, LogMel(config.audio), train, segment_length(config, train)),
            "discriminator": PatchPhase(critic, train.adversarial_from),
        }

    def parts(self) -> dict[Part, nn.Module]:
        """The VAE; the discriminator has done its work."""
        return {"vae": self.vae}


class VocoderPhase(Phase):
    """HiFi-GAN's generator loss (arXiv 2010.05646, eq. 5): adversarial + feature matching + mel L1 (at several windows)."""

    def __init__(self, vocoder: Any, critic: WaveDiscriminator, config: ModelConfig, train: TrainConfig, vae: Any = None):
        super().__init__()
        self.vocoder = vocoder
        self.log_mel = LogMel(config.audio)
        self.mels = resolutions(config.audio)
        self.train_config = train
        self.segment_samples = segment_length(config, train)
        self._hidden = _Hidden(critic=critic, vae=vae)

    def forward(self, batch: Batch, step: int, carry: dict[str, Tensor]) -> Losses:
        """Carries the real and the vocoded segment to the discriminators' phase."""
        train = self.train_config
        real_BT = loud_segment(batch["wave"], self.segment_samples)
        with torch.no_grad():
            mel_BFM = self._heard(self.log_mel(real_BT))
        fake_BT = self.vocoder(mel_BFM)
        mel_l1 = losses.mel_loss(fake_BT, real_BT, self.mels).mean()
        total = train.mel_weight * mel_l1
        found: Losses = {"mel_l1": mel_l1.detach()}
        carry["real"], carry["fake"] = real_BT, fake_BT.detach()
        if step >= train.adversarial_from:
            critic = self._hidden.critic.requires_grad_(False)
            with torch.no_grad():
                _, real_maps = critic(real_BT)
            verdicts, fake_maps = critic(fake_BT)
            critic.requires_grad_(True)
            adversarial = losses.lsgan_generator_loss(verdicts).mean()
            features = losses.feature_matching_loss(real_maps, fake_maps).mean()
            total = total + train.adversarial_weight * adversarial + train.feature_weight * features
            found |= {"adversarial": adversarial.detach(), "features": features.detach()}
        return {"total": total, **found}

    def _heard(self, mel_BFM: Tensor) -> Tensor:
        """The mels that the vocoder is given: with a VAE, most of them as the VAE rebuilds them."""
        vae = self._hidden.vae
        if vae is None:
            return mel_BFM
        rebuilt_BFM = decode(vae, encode(vae, mel_BFM).sample())
        chosen_B = torch.rand(len(mel_BFM), device=mel_BFM.device) < REBUILT_SHARE
        return torch.where(chosen_B[:, None, None], rebuilt_BFM.to(mel_BFM), mel_BFM)


class WaveCriticPhase(Phase):
    """Least-squares loss of the discriminators over periods, scales and spectrograms."""

    def __init__(self, critic: WaveDiscriminator, starts_at: int):
        super().__init__()
        self.critic = critic
        self.starts_at = starts_at

    def forward(self, batch: Batch, step: int, carry: dict[str, Tensor]) -> Losses:
        """Judges what the vocoder's phase carried over."""
        real, _ = self.critic(carry["real"])
        fake, _ = self.critic(carry["fake"])
        return {"total": losses.lsgan_discriminator_loss(real, fake).mean()}


class VocoderTask(TrainingTask):
    """The vocoder, whichever kind the preset names, on mels of real sound.

    Given the VAE that it will work behind, it also learns to put back the grain that the VAE smooths away (as HiFi-GAN is
    fine-tuned on its acoustic model's mels, arXiv 2010.05646, 4.4).
    """

    name = "vocoder"
    makes = ("vocoder",)
    uses = ("vae",)

    def __init__(self, config: ModelConfig, train: TrainConfig, given: Parts):
        super().__init__(config, train, given)
        self.vocoder = given.get("vocoder") or build_vocoder(config)
        self.vocoder.apply_weight_norm()
        critic = WaveDiscriminator(train.critic_channels, config.vocoder.kind)
        self.phases = {
            "generator": VocoderPhase(self.vocoder.train(), critic, config, train, self.frozen.get("vae")),
            "discriminator": WaveCriticPhase(critic, train.adversarial_from),
        }

    def parts(self) -> dict[Part, nn.Module]:
        """The vocoder; the discriminators have done their work."""
        return {"vocoder": self.vocoder}


class DiffusionPhase(Phase):
    """Noise a latent to a random level and ask for the noise, or the velocity (system.md A.2; arXiv 2202.00512 for v)."""

    def __init__(self, task: "DiffusionTask"):
        super().__init__()
        self.denoiser = task.denoiser
        self.tuning = task.tuning
        self._hidden = _Hidden(task=task)

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


TASK_CLASSES: dict[Task, type[TrainingTask]] = {
    task.name: task for task in (ClapTask, VaeTask, VocoderTask, DiffusionTask, FinetuneTask)
}


def adapt(unet: UNet2DConditionModel, rank: int, alpha: float) -> None:
    """Freeze a UNet and put trainable low-rank adapters beside its attention's projections (arXiv 2106.09685)."""
    unet.requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=targets))


def segment_length(config: ModelConfig, train: TrainConfig) -> int:
    """Samples of a training segment, in whole latent frames. Raises ConfigError if it is longer than the crop."""
    if train.segment_samples is None:
        return config.audio.clip_samples
    if train.segment_samples > config.audio.clip_samples:
        raise ConfigError(f"segment_samples {train.segment_samples} exceeds the training crop of {config.audio.clip_samples}")
    return train.segment_samples // config.audio.latent_samples * config.audio.latent_samples


def loud_segment(wave_BT: Tensor, samples: int, tries: int = 3) -> Tensor:
    """A random segment of each row, the loudest of a few draws: foley is mostly silence, from which a vocoder learns little."""
    rows, length = wave_BT.shape
    start_BK = torch.randint(0, length - samples + 1, (rows, tries), device=wave_BT.device)
    index_BKT = start_BK[..., None] + torch.arange(samples, device=wave_BT.device)
    drawn_BKT = wave_BT[:, None].expand(-1, tries, -1).gather(2, index_BKT)
    loudest_B = drawn_BKT.square().mean(dim=2).argmax(dim=1)
    return drawn_BKT[torch.arange(rows, device=wave_BT.device), loudest_B]
