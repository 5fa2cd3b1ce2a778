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


def to_x0(prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, kind: Prediction) -> Tensor:
    """What a prediction says about x_0; alpha and sigma are shaped to multiply x."""
    if kind == "v":
        return alpha * x - sigma * prediction
    return (x - sigma * prediction) / alpha


@dataclass(frozen=True)
class Level:
    """Where a sampler stands: its alpha and sigma, and the timestep the network is asked at, which has about these."""

    timestep: int
    alpha: float
    sigma: float


def ddim_levels(schedule: Schedule, steps: int) -> list[Level]:
    """steps + 1 levels, noisiest first, as AudioLDM sets it: leading spacing, offset 1, last level at alphas_cumprod[0]."""
    ratio = schedule.train_steps // steps
    timesteps = np.minimum(np.arange(steps)[::-1] * ratio + 1, schedule.train_steps - 1)
    return [*(_level(schedule, int(timestep)) for timestep in timesteps), _level(schedule, 0)]


def dpmpp_levels(schedule: Schedule, steps: int) -> list[Level]:
    """steps + 1 levels, noisiest first: Karras et al. 2022 (arXiv 2206.00364, eq. 5, rho 7), and at the end no noise at all.

    As diffusers sets it with `use_karras_sigmas`: sigma / alpha falls from the last timestep's to the first's, and the network
    is asked at the timestep nearest to each. Evenly spaced timesteps, diffusers' default, would end a path of 20 steps with a
    leap from a sigma of 0.29 to none: what is finer than that, the grain of rain, is averaged away (default_model/TRAINING.md).
    """
    powers = schedule.alphas_cumprod.double().numpy()
    ratios = np.sqrt((1 - powers) / powers)
    rho = 7
    ramp = np.linspace(ratios[-1] ** (1 / rho), ratios[0] ** (1 / rho), steps) ** rho
    timesteps = np.interp(np.log(ramp), np.log(ratios), np.arange(len(ratios))).round()
    alphas = 1 / np.sqrt(1 + ramp**2)
    levels = [
        Level(int(t), float(alpha), float(alpha * ratio)) for t, alpha, ratio in zip(timesteps, alphas, ramp, strict=True)
    ]
    return [*levels, Level(0, 1.0, 0.0)]


def _level(schedule: Schedule, timestep: int) -> Level:
    power = float(schedule.alphas_cumprod[timestep].double())
    return Level(timestep, power**0.5, (1.0 - power) ** 0.5)
