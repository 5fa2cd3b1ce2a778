"""What a model learned from, to the ear and to the eye: by this a sound that is nearly one of those recordings is known.

MODEL/originals.safetensors, a row for each stretch of a recording that CLAP hears at a time
  embedding_ND   float16: unit CLAP embeddings
  limit_N        float32: how near (cosine distance) real recordings of that class come to each other, all but the nearest 1 %,
                 with a MARGIN, and at most FAR
  picture_NFM    uint8: coarse mel pictures (audio/likeness.py), 255 the loudest cell
  seen_limit_N   float32: the same as limit_N for the distance between pictures, at most FAR_SEEN

A model has them once `foley originals` has listened to its dataset. Best-of-n then passes over candidates that are nearer than
either, and redraws a clip that has no other. Small sets are learned by heart in part; this keeps the part from being delivered.
CLAP hears what a sound is and knows a recording pitched or filtered; the picture knows the order of its events, which CLAP
hardly hears: of fifty shots none was a near copy to the one, four to the other.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from foley_ray.audio.likeness import COARSE, MEL_RANGE, picture, picture_distance
from foley_ray.errors import ModelError

ORIGINALS_FILE = "originals.safetensors"
PERCENTILE = 1.0
"""Of the distances between each recording and its nearest other one: the same limit that `foley score` counts copies by."""
FAR, SAME = 0.05, 0.002
"""No near copy is farther, whatever a class says of whose few recordings none is like another; nearer are two names of one."""
FAR_SEEN, SAME_SEEN = 0.1, 0.02
"""The same of pictures. Half of 110 classes have limits beyond 0.2, where two pictures share little but that something ends."""
MARGIN = 1.25
"""On the limits: they are estimates, and a file of 16 bits is heard a little otherwise than the wave it was written from."""
NEAR_COPY = 1.0
"""Novelty below which a candidate is passed over."""
LOOKED_AT = 256
"""Originals nearest by CLAP whose pictures are compared: what looks like one sounds like it, and a large set costs no more."""


@dataclass(frozen=True)
class Originals:
    """Embeddings (N, D) and pictures (N, F, M) of what a model learned from, and each one's limits (N,), distances above 0."""

    embedding_ND: np.ndarray
    limit_N: np.ndarray
    picture_NFM: np.ndarray
    seen_limit_N: np.ndarray

    def novelty(self, embedding_D: np.ndarray, picture_FM: np.ndarray) -> float:
        """Distance to the nearest original over its limit, to ear or eye: below 1, real ones are farther apart."""
        heard_N = (1 - self.embedding_ND @ embedding_D).clip(min=0)
        rows = _least(heard_N, LOOKED_AT)
        seen_N = picture_distance(picture_FM[None], self.picture_NFM[rows])[0]
        return float(min((heard_N / self.limit_N).min(), (seen_N / self.seen_limit_N[rows]).min()))

    @classmethod
    def of(cls, embedding_ND: np.ndarray, picture_NFM: np.ndarray, recordings: Sequence[str], classes: Sequence[str]) -> Self:
        """From unit embeddings and pictures (`seen`) with the recording and the class of each.

        A class with a single recording is measured by all other classes, and a lone recording by nothing: only what is the same
        then counts as a copy.
        """
        _, recording_N = np.unique(np.asarray(recordings), return_inverse=True)
        class_N = np.asarray(classes)
        heard_N, seen_N = np.full((2, len(embedding_ND)), np.inf)
        for kind in np.unique(class_N):
            (members,) = np.nonzero(class_N == kind)
            for row in members:
                others = members[recording_N[members] != recording_N[row]]
                if len(others):
                    distance_K = 1 - embedding_ND[others] @ embedding_ND[row]
                    near = others[_least(distance_K, LOOKED_AT)]
                    heard_N[row] = distance_K.min()
                    seen_N[row] = picture_distance(picture_NFM[row][None], picture_NFM[near]).min()
        return cls(
            embedding_ND, _limits(heard_N, class_N, SAME, FAR), picture_NFM, _limits(seen_N, class_N, SAME_SEEN, FAR_SEEN)
        )

    def joined(self, other: "Originals") -> Self:
        """Both, each row with its own limits: of a model that went on to other recordings."""
        return type(self)(*(np.concatenate([rows, vars(other)[name]]) for name, rows in vars(self).items()))

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
            unit_ND = embedding_ND / np.linalg.norm(embedding_ND, axis=1, keepdims=True)
            originals = cls(unit_ND, found["limit_N"], found["picture_NFM"], found["seen_limit_N"])
        except (OSError, KeyError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be read ({error}); make it again with foley originals") from None
        if _digest(data) != digest:
            raise ModelError(f"{path} is not the file that the model was given; make it again with foley originals")
        return originals

    def save(self, model: Path) -> str:
        """Write the file into a model folder, whole or not at all, and return its digest."""
        from safetensors.numpy import save

        from foley_ray.audio.files import replacing

        data = save(vars(self) | {"embedding_ND": self.embedding_ND.astype(np.float16)})
        with replacing(model / ORIGINALS_FILE) as temporary:
            temporary.write_bytes(data)
        return _digest(data)


def seen(mel_NFM: np.ndarray) -> np.ndarray:
    """Log-mels -> coarse pictures (N, F, M) as they are kept, uint8."""
    return np.asarray((picture(mel_NFM, COARSE) * (255 / MEL_RANGE)).round(), dtype=np.uint8)


def _least(distance_N: np.ndarray, count: int) -> np.ndarray:
    """The rows of the `count` smallest, or all."""
    if len(distance_N) <= count:
        return np.arange(len(distance_N))
    return np.argpartition(distance_N, count)[:count]


def _limits(nearest_N: np.ndarray, class_N: np.ndarray, same: float, far: float) -> np.ndarray:
    """Of each row's class, or of all rows where it has no other recording to be measured by, (N,)."""
    known_N = np.isfinite(nearest_N)
    limit_N = np.full(len(nearest_N), np.percentile(nearest_N[known_N], PERCENTILE) if known_N.any() else same)
    for kind in np.unique(class_N[known_N]):
        limit_N[class_N == kind] = np.percentile(nearest_N[known_N & (class_N == kind)], PERCENTILE)
    return np.asarray((MARGIN * limit_N).clip(same, far), dtype=np.float32)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
