"""Latents longer than the network is asked to see at once, and latents whose end leads into their beginning.

At every step overlapping windows are predicted side by side and blended (MultiDiffusion, Bar-Tal et al. 2023, arXiv
2302.08113), so that neighbours agree long before there is any sound. A loop is a circle: its windows go round it, and where
they begin moves from step to step, so that no place is ever the seam for long.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

OVERLAP = 0.25
"""Share of a window that its neighbour covers too."""
GOLDEN = 0.6180339887
"""Turning a circle by this share of it again and again spreads the starts most evenly."""


def cover(width: int, window: int, loop: bool, step: int) -> list[Tensor]:
    """The frames (of `width`) that each window shows at a step, in order; every frame is in at least one."""
    size = min(width, window)
    if loop:
        count = 1 if width <= window else math.ceil(width / (window - _overlap(window)))
        turn = round((step * GOLDEN) % 1 * width)
        starts = [turn + round(index * width / count) for index in range(count)]
    else:
        count = 1 if width <= window else math.ceil((width - _overlap(window)) / (window - _overlap(window)))
        starts = [round(index * (width - size) / max(count - 1, 1)) for index in range(count)]
    return [(start + torch.arange(size)) % width for start in starts]


def count_windows(width: int, window: int, loop: bool) -> int:
    """How many windows `cover` takes."""
    return len(cover(width, window, loop, 0))


def blend(parts: Sequence[Tensor], frames: Sequence[Tensor], width: int) -> Tensor:
    """Windows (C, W, H) and their frames -> (C, width, H): where windows overlap, one fades into the other."""
    if len(parts) == 1:
        out = torch.empty_like(parts[0])
        out[:, frames[0].to(out.device)] = parts[0]
        return out
    size = parts[0].shape[1]
    place_W = torch.arange(size, device=parts[0].device)
    weight_W = torch.minimum(place_W + 1, size - place_W).clamp(max=_overlap(size)).to(parts[0].dtype)
    out = parts[0].new_zeros(parts[0].shape[0], width, parts[0].shape[2])
    total_W = out.new_zeros(width)
    for part, index in zip(parts, frames, strict=True):
        index_W = index.to(out.device)
        out[:, index_W] += part * weight_W[:, None]
        total_W[index_W] += weight_W
    return out / total_W[:, None]


def _overlap(window: int) -> int:
    return max(1, round(window * OVERLAP))
