"""One step of each sampler as a pure function, in paper order. They see the network only through its x_0 prediction.

A step goes from level `s` (noisier) to level `t`. Nothing is remembered here: what a multistep method needs of earlier steps
comes in as an argument.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from foley_ray.config import Sampler
from foley_ray.diffusion.schedule import Level, Schedule, ddim_levels, dpmpp_levels

Earlier = tuple[Tensor, Level]
"""The x_0 prediction of the step before, and the level it was made at."""


def ddim_step(
    x: Tensor, x0: Tensor, s: Level, t: Level, earlier: Earlier | None = None, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12 and 16); eta 0 is deterministic, 1 has DDPM's variance.

    `noise` (shape of x) is needed for eta above 0. A one-step method: `earlier` is not looked at.
    """
    eps = (x - s.alpha * x0) / s.sigma
    std = 0.0
    if eta > 0:
        std = eta * (t.sigma / s.sigma) * math.sqrt(max(1 - (s.alpha / t.alpha) ** 2, 0.0))
    mean = t.alpha * x0 + math.sqrt(max(t.sigma**2 - std**2, 0.0)) * eps
    if std == 0.0:
        return mean
    if noise is None:
        raise ValueError(f"ddim with eta {eta} needs noise")
    return mean + std * noise


def dpmpp_2m_step(
    x: Tensor, x0: Tensor, s: Level, t: Level, earlier: Earlier | None = None, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2) for eta 0, the paper's SDE-DPM-Solver++(2M) for eta 1.

    An eta in between shares out the noise as k-diffusion does; above 0, `noise` (shape of x) is needed. Without `earlier` the
    step is first order; one that ends at no noise at all (where lambda is infinite) is what the network says.
    """
    if t.sigma == 0.0:
        return x0
    h = _log_snr(t) - _log_snr(s)
    data = x0
    if earlier is not None:
        x0_before, r = earlier
        ratio = (_log_snr(s) - _log_snr(r)) / h
        data = x0 + (x0 - x0_before) / (2 * ratio)
    mean = (t.sigma / s.sigma) * math.exp(-eta * h) * x - t.alpha * math.expm1(-(1 + eta) * h) * data
    if eta == 0.0:
        return mean
    if noise is None:
        raise ValueError(f"dpmpp-2m with eta {eta} needs noise")
    return mean + t.sigma * math.sqrt(-math.expm1(-2 * eta * h)) * noise


def _log_snr(level: Level) -> float:
    """lambda of the paper: half the log signal-to-noise ratio."""
    return math.log(level.alpha / level.sigma)


class Step(Protocol):
    """What all steps look like: x (..., C, W, H) and what the network says x_0 is at level s -> x at level t."""

    def __call__(
        self,
        x: Tensor,
        x0: Tensor,
        s: Level,
        t: Level,
        earlier: Earlier | None = None,
        eta: float = 0.0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """One step from s to t."""


class Method(NamedTuple):
    """A sampler: where it stops on its way, and how it gets from one stop to the next."""

    levels: Callable[[Schedule, int], list[Level]]
    step: Step


METHODS: dict[Sampler, Method] = {
    "ddim": Method(ddim_levels, ddim_step),
    "dpmpp-2m": Method(dpmpp_levels, dpmpp_2m_step),
}
