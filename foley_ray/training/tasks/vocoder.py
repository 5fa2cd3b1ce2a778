"""The vocoder: mel L1, feature matching and a least-squares GAN over periods and scales."""

from typing import Any

import torch
from torch import Tensor, nn

from foley_ray.audio.mel import LogMel, resolutions
from foley_ray.checkpoint import Part
from foley_ray.config import ModelConfig, TrainConfig
from foley_ray.models.discriminators import WaveDiscriminator
from foley_ray.models.vae import decode, encode
from foley_ray.models.vocoder import build_vocoder
from foley_ray.training import losses
from foley_ray.training.loop import Batch, Losses, Phase
from foley_ray.training.tasks.base import Hidden, Parts, TrainingTask
from foley_ray.training.tasks.segments import loud_segment, segment_length

REBUILT_SHARE = 0.75
"""Of a vocoder's mels when a VAE is given; the others keep it good for mels of real sound."""


class VocoderPhase(Phase):
    """HiFi-GAN's generator loss (arXiv 2010.05646, eq. 5): adversarial + feature matching + mel L1 (at several windows)."""

    def __init__(self, vocoder: Any, critic: WaveDiscriminator, config: ModelConfig, train: TrainConfig, vae: Any = None):
        super().__init__()
        self.vocoder = vocoder
        self.log_mel = LogMel(config.audio)
        self.mels = resolutions(config.audio)
        self.train_config = train
        self.segment_samples = segment_length(config, train)
        self._hidden = Hidden(critic=critic, vae=vae)

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
