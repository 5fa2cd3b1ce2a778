"""Sounds as vectors to be compared: by CLAP, by the classifier, and as mel pictures at their best time shift.

All take clips of one length (N, T) as recordings.clip prepares them, and none depends on the batch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from foley_ray.audio.likeness import picture, picture_distance
from foley_ray.audio.mel import LogMel
from foley_ray.errors import FoleyError
from foley_ray.spec import AudioSpec
from foley_ray.stages.condition import ConditionStage
from foley_ray.stages.rank import RankStage

MAX_ROWS = 32


class ClapEncoder:
    """A model folder's CLAP. Raises ModelError if it has none."""

    def __init__(self, model: Path):
        self._audio, self._text = RankStage(model, originals=False), ConditionStage(model)

    def sounds(self, wave_NT: np.ndarray) -> np.ndarray:
        """(N, D) unit embeddings."""
        return self._audio.embed(list(wave_NT))

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> np.ndarray:
        """(N, D) unit embeddings, not tuned: those that rank."""
        return self._text.embed(texts).cpu().numpy()


@torch.inference_mode()
def log_mels(wave_NT: np.ndarray, spec: AudioSpec) -> np.ndarray:
    """(N, F, M) natural-log mels."""
    log_mel = LogMel(spec)
    parts = [log_mel(torch.from_numpy(wave_NT[start : start + MAX_ROWS])).numpy() for start in range(0, len(wave_NT), MAX_ROWS)]
    return np.concatenate(parts) if parts else np.zeros((0, spec.mel_frames(spec.clip_samples), spec.mel_bands), np.float32)


def shape_distance(mel_a_NFM: np.ndarray, mel_b_KFM: np.ndarray) -> np.ndarray:
    """(N, K) distances between log-mels at their best time shift, 0 to 1: `likeness.picture_distance` of fine pictures."""
    return picture_distance(picture(mel_a_NFM), picture(mel_b_KFM))


def in_actors(
    make: type, arguments: tuple[Any, ...], columns: dict[str, np.ndarray], batch_rows: int, workers: int
) -> list[dict[str, np.ndarray]]:
    """`make(*arguments)` in a pool of up to `workers` Ray Data actors, applied to all rows; batches in any order.

    The error of ours that an actor raises is raised here again.
    """
    import ray.data

    from foley_ray.data.cluster import ensure_ray, quiet_progress

    ensure_ray()
    quiet_progress()
    rows = [
        dict(zip(columns, values, strict=True))
        for values in zip(*(column.tolist() for column in columns.values()), strict=True)
    ]
    heard = ray.data.from_items(rows).map_batches(
        make,
        fn_constructor_args=arguments,
        batch_size=batch_rows,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        num_cpus=0.8,  # so that on a single core there is room for what feeds it
    )
    try:
        return list(heard.iter_batches(batch_size=None, batch_format="numpy"))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, FoleyError):
            raise cause from None
        raise
