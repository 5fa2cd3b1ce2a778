"""The mel VAE: L1 and KL, and from a set step a patch discriminator."""

from typing import Any

import torch
from torch import Tensor, nn

from foley_ray.audio.mel import LogMel
from foley_ray.checkpoint import Part
from foley_ray.config import ModelConfig, TrainConfig
from foley_ray.errors import ConfigError
from foley_ray.models.discriminators import PatchDiscriminator
from foley_ray.models.vae import build_vae, decode, encode
from foley_ray.training import losses
from foley_ray.training.loop import Batch, Losses, Phase
from foley_ray.training.tasks.base import Hidden, Parts, TrainingTask
from foley_ray.training.tasks.segments import loud_segment, segment_length


class VaePhase(Phase):
    """L1 on the log-mel, KL of the latent, and the discriminator's opinion from `adversarial_from` on."""

    def __init__(self, vae: Any, critic: PatchDiscriminator, log_mel: LogMel, train: TrainConfig, segment_samples: int):
        super().__init__()
        self.vae = vae
        self.log_mel = log_mel
        self.train_config = train
        self.segment_samples = segment_samples
        self._hidden = Hidden(critic=critic)

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
