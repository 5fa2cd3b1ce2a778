"""The stretch of a crop that a VAE or a vocoder learns from."""

import torch
from torch import Tensor

from foley_ray.config import ModelConfig, TrainConfig
from foley_ray.errors import ConfigError


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
