"""Sounds as vectors to be compared: by CLAP, by the classifier, and as mel pictures at their best time shift.

All take clips of one length (N, T) as recordings.clip prepares them, and none depends on the batch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.fft import irfft, next_fast_len, rfft

from foley_ray.audio.mel import LogMel
from foley_ray.errors import FoleyError
from foley_ray.spec import AudioSpec
from foley_ray.stages.condition import ConditionStage
from foley_ray.stages.rank import RankStage

MAX_ROWS = 32
MEL_RANGE = 7.0
"""What lies more than 61 dB below the loudest cell of a clip counts as silence: padding, noise floors, 16 bit."""
MEL_POOL = 2
"""Frames and bands that mel pictures are thinned by before they are shifted against each other."""


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
    """(N, K) distances between mel pictures, 0 (the same but for its level) to 1 (nothing in common).

    1 less the highest correlation over all time shifts of what comes and goes in each band: pictures floored 61 dB below their
    loudest cell, less each band's mean. A copy is found wherever in the clip it starts (what is cut off at the edge counts
    against it), a steady colour alone is no likeness, and silence matches nothing.
    """
    a_NFM, b_KFM = _unit_pictures(mel_a_NFM), _unit_pictures(mel_b_KFM)
    frames = next_fast_len(a_NFM.shape[1] + b_KFM.shape[1], real=True)  # room for every shift without wrapping round
    a_NQM, b_KQM = rfft(a_NFM, frames, axis=1), rfft(b_KFM, frames, axis=1)
    best_NK = np.empty((len(a_NFM), len(b_KFM)), dtype=np.float32)
    for row, a_QM in enumerate(a_NQM):
        cross_KQ = np.einsum("qm,kqm->kq", a_QM, b_KQM.conj(), optimize=True)
        best_NK[row] = irfft(cross_KQ, frames, axis=1).max(axis=1)
    return (1 - best_NK).clip(min=0)


def _unit_pictures(mel_NFM: np.ndarray) -> np.ndarray:
    count, frames, bands = mel_NFM.shape
    frames, bands = frames // MEL_POOL, bands // MEL_POOL
    blocks = mel_NFM[:, : frames * MEL_POOL, : bands * MEL_POOL].reshape(count, frames, MEL_POOL, bands, MEL_POOL)
    thin_NFM = blocks.mean(axis=(2, 4), dtype=np.float32)
    above_NFM = (thin_NFM - thin_NFM.max(axis=(1, 2), keepdims=True, initial=-np.inf) + MEL_RANGE).clip(min=0)
    above_NFM -= above_NFM.mean(axis=1, keepdims=True)
    unit_NFM: np.ndarray = above_NFM / np.linalg.norm(above_NFM, axis=(1, 2), keepdims=True).clip(min=1e-9)
    return unit_NFM


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
