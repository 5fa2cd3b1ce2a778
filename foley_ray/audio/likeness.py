"""How alike two sounds look: their mel pictures at the best time shift.

Shapes: N and K pictures, F frames, M bands. A picture holds nepers above a floor that lies MEL_RANGE below its loudest cell.
"""

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

MEL_RANGE = 7.0
"""What lies more than 61 dB below the loudest cell of a clip counts as silence: padding, noise floors, 16 bit."""
FINE, COARSE = 2, 4
"""Frames and bands that are averaged: to measure by, and to keep and look through many by."""


def picture(mel_NFM: np.ndarray, pool: int = FINE) -> np.ndarray:
    """Log-mels -> pictures (N, F // pool, M // pool)."""
    count, frames, bands = mel_NFM.shape
    frames, bands = frames // pool, bands // pool
    blocks = mel_NFM[:, : frames * pool, : bands * pool].reshape(count, frames, pool, bands, pool)
    thin_NFM = blocks.mean(axis=(2, 4), dtype=np.float32)
    above_NFM: np.ndarray = (thin_NFM - thin_NFM.max(axis=(1, 2), keepdims=True, initial=-np.inf) + MEL_RANGE).clip(min=0)
    return above_NFM


def picture_distance(a_NFM: np.ndarray, b_KFM: np.ndarray) -> np.ndarray:
    """(N, K) distances between pictures, 0 (the same but for its level) to 1 (nothing in common).

    1 less the highest correlation over all time shifts of what comes and goes in each band: pictures less each band's mean. A
    copy is found wherever in the clip it starts (what is cut off at the edge counts against it), a steady colour alone is no
    likeness, and silence matches nothing.
    """
    a_NFM, b_KFM = _unit(a_NFM), _unit(b_KFM)
    frames = next_fast_len(a_NFM.shape[1] + b_KFM.shape[1], real=True)  # room for every shift without wrapping round
    a_NQM, b_KQM = rfft(a_NFM, frames, axis=1), rfft(b_KFM, frames, axis=1)
    best_NK = np.empty((len(a_NFM), len(b_KFM)), dtype=np.float32)
    for row, a_QM in enumerate(a_NQM):
        cross_KQ = np.einsum("qm,kqm->kq", a_QM, b_KQM.conj(), optimize=True)
        best_NK[row] = irfft(cross_KQ, frames, axis=1).max(axis=1)
    return (1 - best_NK).clip(min=0)


def _unit(above_NFM: np.ndarray) -> np.ndarray:
    above_NFM = above_NFM.astype(np.float32)
    moving_NFM = above_NFM - above_NFM.mean(axis=1, keepdims=True)
    unit_NFM: np.ndarray = moving_NFM / np.linalg.norm(moving_NFM, axis=(1, 2), keepdims=True).clip(min=1e-9)
    return unit_NFM
