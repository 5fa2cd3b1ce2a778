"""The noise process: how much signal and noise a timestep holds, and how the forms of a prediction convert.

Variance preserving (Ho et al. 2020, arXiv 2006.11239): x_t = alpha_t x_0 + sigma_t eps with alpha^2 + sigma^2 = 1. This is the
one home of these conversions, for training and for sampling.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from foley_ray.config import DiffusionConfig
from foley_ray.errors import PromptError

Prediction = Literal["epsilon", "v"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """alphas_cumprod: (train_steps,) float32, the share of signal power at each timestep."""

    alphas_cumprod: Tensor

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> Self:
        """Scaled-linear betas: linear in their square root, from beta_start to beta_end (LDM, system.md A.2)."""
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.train_steps, dtype=torch.float32) ** 2
        return cls(torch.cumprod(1.0 - betas, dim=0))

    @property
    def train_steps(self) -> int:
        """Number of timesteps of training, 1000."""
        return len(self.alphas_cumprod)

    def levels(self, timestep_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of each row's timestep, shaped to multiply `like` (B, ...).

        Never below float32: bfloat16 would round the first timesteps' signal power to 1, and so their noise to none.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        power = self.alphas_cumprod.to(like.device, dtype)[timestep_B].reshape(-1, *(1,) * (like.ndim - 1))
        return power.sqrt(), (1.0 - power).sqrt()

    def q_sample(self, x0: Tensor, noise: Tensor, timestep_B: Tensor) -> Tensor:
        """The forward process: x_0 (B, ...) noised to each row's timestep."""
        alpha, sigma = self.levels(timestep_B, x0)
        return alpha * x0 + sigma * noise

    def velocity(self, x0: Tensor, noise: Tensor, timestep_B: Tensor) -> Tensor:
        """The target of v-prediction, alpha eps - sigma x_0 (Salimans & Ho 2022, arXiv 2202.00512)."""
        alpha, sigma = self.levels(timestep_B, x0)
        return alpha * noise - sigma * x0

    def to_x0(self, prediction: Tensor, x: Tensor, timestep_B: Tensor, kind: Prediction) -> Tensor:
        """What a prediction says about x_0."""
        alpha, sigma = self.levels(timestep_B, x)
        if kind == "v":
            return alpha * x - sigma * prediction
        return (x - sigma * prediction) / alpha


@dataclass(frozen=True)
class Level:
    """Where a sampler stands: the timestep the network is asked at, and its alpha and sigma."""

    timestep: int
    alpha: float
    sigma: float


def ddim_levels(schedule: Schedule, steps: int) -> list[Level]:
    """steps + 1 levels, noisiest first, as AudioLDM sets it: leading spacing, offset 1, last level at alphas_cumprod[0]."""
    ratio = schedule.train_steps // steps
    timesteps = np.minimum(np.arange(steps)[::-1] * ratio + 1, schedule.train_steps - 1)
    return [*(_level(schedule, int(timestep)) for timestep in timesteps), _level(schedule, 0)]


def dpmpp_levels(schedule: Schedule, steps: int) -> list[Level]:
    """steps + 1 levels, noisiest first: evenly spaced timesteps, and at the end no noise at all.

    Raises PromptError for as many steps as timesteps: two levels would coincide, and the method divides by their distance.
    """
    last = schedule.train_steps - 1
    if steps > last:
        raise PromptError(f"steps {steps} are too many for dpmpp-2m; it takes at most {last}")
    timesteps = np.linspace(0, last, steps + 1).round()[::-1][:-1]
    return [*(_level(schedule, int(timestep)) for timestep in timesteps), Level(0, 1.0, 0.0)]


def _level(schedule: Schedule, timestep: int) -> Level:
    power = float(schedule.alphas_cumprod[timestep].double())
    return Level(timestep, power**0.5, (1.0 - power) ** 0.5)
