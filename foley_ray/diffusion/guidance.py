"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598), for rows of which only some are guided, in some steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from foley_ray.diffusion.schedule import Level


def is_guided(scale: float) -> bool:
    """Whether a second, unconditional prediction is needed: at scale 1 it would cancel out."""
    return scale != 1.0


def scale_at(level: Level, scale: float, above: float, below: float) -> float:
    """The scale in a limited interval of noise levels, sigma over alpha; 1 outside it (arXiv 2404.07724).

    Where there is much noise, guidance drives every candidate to the same outline, and where there is little it does nothing.
    """
    return scale if above <= level.sigma / level.alpha <= below else 1.0


def guided_rows(scale_B: Sequence[float]) -> list[int]:
    """Indices of the rows that need a second, unconditional prediction."""
    return [row for row, scale in enumerate(scale_B) if is_guided(scale)]


def combine(conditional: Tensor, unconditional: Tensor, scale_B: Tensor) -> Tensor:
    """Eq. 6 in the parent system's form, uncond + scale (cond - uncond), per row: two (B, ...), and (B,) scales."""
    scale = scale_B.reshape(-1, *(1,) * (conditional.ndim - 1))
    return torch.lerp(unconditional, conditional, scale)
