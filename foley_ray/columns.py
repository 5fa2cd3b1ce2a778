"""What crosses a stage boundary: the names, types, shapes and units of batch columns.

A batch is a dict of equally long columns, one row per *candidate* (a clip request with n candidates is n rows that share
`clip_id`). Arrays of differing length ride in object columns, so clips of any duration may share a batch. This is the form
in which Ray Data hands over batches, and it pickles without any framework's tensors.

Shape letters everywhere in the package: B rows, T samples, F mel frames (time), M mel bands, C channels, W latent frames
(time), H latent bands, D embedding values.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Batch = dict[str, Any]


class Column(NamedTuple):
    """One column: its name in the batch and what a row of it holds."""

    name: str
    meaning: str


CLIP_ID = Column("clip_id", "str: the request's clip this candidate belongs to")
CANDIDATE = Column("candidate", "int: index among the clip's candidates; draws its noise together with the seed")
PROMPT = Column("prompt", "str: what the sound should be")
SEED = Column("seed", "int: the clip's seed")
STEPS = Column("steps", "int: sampling steps")
GUIDANCE = Column("guidance", "float: classifier-free guidance scale; 1 means none")
GUIDED_ABOVE = Column("guided_above", "float: lowest noise level (sigma over alpha) at which guidance works")
GUIDED_BELOW = Column("guided_below", "float: highest noise level at which it does")
SAMPLER = Column("sampler", "str: ddim or dpmpp-2m")
ETA = Column("eta", "float: noise put back at each step, 0 to 1")
DURATION_S = Column("duration_s", "float: seconds of sound wanted")
LOOP = Column("loop", "bool: the end leads into the beginning; may be absent, which means no")
CONDITION = Column("condition", "float32 (D,): tuned text embedding that steers the diffusion model")
TARGET = Column("target", "float32 (D,): unit CLAP embedding (of the text, or of a target sound) that ranks candidates")
LATENT = Column("latent", "float32 (C, W, H): sampled latent, in the diffusion model's scale")
WAVE = Column("wave", "float32 (T,): sound at the model's rate, within -1..1")
SCORE = Column("score", "float: cosine between the wave's CLAP embedding and the target")
NOVELTY = Column(
    "novelty",
    "float: distance to the nearest recording that the model learned from, by CLAP or by picture; below 1 it is nearer than "
    "real recordings are to each other, a near copy (originals.py); NaN where the model does not know its recordings",
)
AUDIO_EMBEDDING = Column("audio_embedding", "float32 (D,): unit CLAP embedding of the wave")


def require(batch: Mapping[str, Any], columns: Iterable[Column], stage: str) -> int:
    """Check that a batch has these columns, all equally long; returns the number of rows.

    Raises ValueError (a programmer's error) that names the stage, what is missing and what was there.
    """
    missing = [column.name for column in columns if column.name not in batch]
    if missing:
        raise ValueError(f"stage {stage} needs columns {missing}, but the batch has {sorted(batch)}")
    lengths = {name: len(values) for name, values in batch.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"stage {stage} got columns of differing length: {lengths}")
    return next(iter(lengths.values()), 0)


def ragged(rows: Iterable[np.ndarray]) -> np.ndarray:
    """Arrays of any shapes as one object column (numpy would otherwise stack or refuse them)."""
    rows = list(rows)
    column = np.empty(len(rows), dtype=object)
    for index, row in enumerate(rows):
        column[index] = row
    return column


def join(batches: Sequence[Batch]) -> Batch:
    """Batches with the same columns as one, in their order."""
    return {name: [row for batch in batches for row in batch[name]] for name in batches[0]}


def split(batch: Batch, rows: Iterable[int]) -> list[Batch]:
    """The inverse of `join`: consecutive batches of that many rows each."""
    parts, start = [], 0
    for count in rows:
        parts.append({name: values[start : start + count] for name, values in batch.items()})
        start += count
    return parts
