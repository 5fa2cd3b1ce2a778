"""A published embedding network with the user's weights: loaded, checked, and told how its clips are to be prepared."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foley_ray.errors import ConfigError, ModelError
from foley_ray.evaluation.panns import Cnn14
from foley_ray.evaluation.spaces import PUBLISHED
from foley_ray.evaluation.vggish import Vggish
from foley_ray.interchange.weights import read_weights
from foley_ray.spec import AudioSpec

NETWORKS: dict[str, type[Vggish | Cnn14]] = {"vggish": Vggish, "panns": Cnn14}
COMPARABLE = (
    "comparable with figures of the same weights, reference, number of clips and preparation; this port was checked by names, "
    "shapes and independent calculations, not with the published weights"
)

# the 16 kHz Cnn14 carries its training sampler's indices: arrays, plain data that torch does not let through by itself
_REBUILD: Any = np.zeros(0).__reduce__()[0]
ARRAYS: list[Any] = [
    (_REBUILD, "numpy.core.multiarray._reconstruct"),
    (_REBUILD, "numpy._core.multiarray._reconstruct"),
    np.ndarray,
]


@dataclass(frozen=True)
class Published:
    """What hears, and how."""

    network: Vggish | Cnn14
    digest: str
    """Of the weights file: the first 16 digits of its SHA-256."""
    spec: AudioSpec
    """Rate and length of the clips it is given: resampled from the sound's own rate, not from CLAP's."""

    @property
    def about(self) -> str:
        """Network and weights, for a report."""
        return f"{self.network.about}; weights {self.digest}"


def load_published(space: str, weights: Path, clip_s: float) -> Published:
    """The network of a space. Nothing in the file is run (weights_only).

    Raises ModelError for a file that is missing, no checkpoint, or of another network; ConfigError for clips too short for it.
    """
    try:
        with torch.serialization.safe_globals(ARRAYS):
            state = read_weights(weights)
        network = NETWORKS[space](state, str(weights))
    except ModelError as error:
        raise ModelError(f"{error}; --space {space} needs {PUBLISHED[space]}") from None
    if clip_s < network.least_s:
        raise ConfigError(f"--seconds {clip_s:g} is too short for --space {space}: give {network.least_s:g} or more")
    rate_hz = network.sample_rate_hz
    # frames of 10 ms, so that a clip is as long as was asked for
    spec = AudioSpec(sample_rate_hz=rate_hz, hop_samples=rate_hz // 100, latent_factor=1, clip_s=clip_s)
    with weights.open("rb") as file:
        return Published(network, hashlib.file_digest(file, "sha256").hexdigest()[:16], spec)
