"""What a model learned from, as its CLAP hears it: by this a sound that is nearly one of those recordings is known for a copy.

MODEL/originals.safetensors
  embedding_ND   float16: unit CLAP embeddings, one for each stretch of a recording that CLAP hears at a time
  limit_N        float32: how near (cosine distance) real recordings of that class come to each other, all but the nearest 1 %,
                 with a MARGIN, and at most FAR

A model has them once `foley originals` has listened to its dataset. Best-of-n then passes over candidates that are nearer than
that, and redraws a clip that has no other. Small sets are learned by heart in part; this keeps the part from being delivered.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from foley_ray.errors import ModelError

ORIGINALS_FILE = "originals.safetensors"
PERCENTILE = 1.0
"""Of the distances between each recording and its nearest other one: the same limit that `foley score` counts copies by."""
FAR, SAME = 0.05, 0.002
"""No near copy is farther, whatever a class says of whose few recordings none is like another; nearer are two names of one."""
MARGIN = 1.25
"""On the limits: they are estimates, and a file of 16 bits is heard a little otherwise than the wave it was written from."""
NEAR_COPY = 1.0
"""Novelty below which a candidate is passed over."""
BLOCK = 1024
"""Rows whose distances are worked out together."""


@dataclass(frozen=True)
class Originals:
    """Embeddings (N, D) of what a model learned from, and each one's limit (N,), a cosine distance above 0."""

    embedding_ND: np.ndarray
    limit_N: np.ndarray

    def novelty(self, embedding_D: np.ndarray) -> float:
        """Distance to the nearest original over its limit: below 1 it is nearer than real recordings are to each other."""
        distance_N = (1 - self.embedding_ND @ embedding_D).clip(min=0)
        return float((distance_N / self.limit_N).min())

    @classmethod
    def of(cls, embedding_ND: np.ndarray, recordings: Sequence[str], classes: Sequence[str]) -> Self:
        """From unit embeddings with the recording and the class of each.

        A class with a single recording is measured by all other classes, and a lone recording by nothing: only what is the same
        then counts as a copy.
        """
        _, recording_N = np.unique(np.asarray(recordings), return_inverse=True)
        class_N = np.asarray(classes)
        nearest_N = np.full(len(embedding_ND), np.inf)
        for kind in np.unique(class_N):
            (rows,) = np.nonzero(class_N == kind)
            for start in range(0, len(rows), BLOCK):
                some = rows[start : start + BLOCK]
                distance_KN = 1 - embedding_ND[some] @ embedding_ND[rows].T
                distance_KN[recording_N[some][:, None] == recording_N[rows]] = np.inf
                nearest_N[some] = distance_KN.min(axis=1)
        known_N = np.isfinite(nearest_N)
        limit_N = np.full(len(nearest_N), np.percentile(nearest_N[known_N], PERCENTILE) if known_N.any() else SAME)
        for kind in np.unique(class_N[known_N]):
            limit_N[class_N == kind] = np.percentile(nearest_N[known_N & (class_N == kind)], PERCENTILE)
        return cls(embedding_ND, (MARGIN * limit_N).clip(SAME, FAR).astype(np.float32))

    @classmethod
    def load(cls, model: Path, digest: str) -> Self:
        """Those of a model folder. Raises ModelError if the file is not the one that foley.json speaks of."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path = model / ORIGINALS_FILE
        try:
            data = path.read_bytes()
            found = load(data)
            embedding_ND = found["embedding_ND"].astype(np.float32)
            originals = cls(embedding_ND / np.linalg.norm(embedding_ND, axis=1, keepdims=True), found["limit_N"])
        except (OSError, KeyError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be read ({error}); make it again with foley originals") from None
        if _digest(data) != digest:
            raise ModelError(f"{path} is not the file that the model was given; make it again with foley originals")
        return originals

    def save(self, model: Path) -> str:
        """Write the file into a model folder, whole or not at all, and return its digest."""
        from safetensors.numpy import save

        from foley_ray.audio.files import replacing

        data = save({"embedding_ND": self.embedding_ND.astype(np.float16), "limit_N": self.limit_N})
        with replacing(model / ORIGINALS_FILE) as temporary:
            temporary.write_bytes(data)
        return _digest(data)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
