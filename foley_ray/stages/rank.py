"""wave -> score and novelty: the cosine between each candidate's CLAP audio embedding and its target, and how new it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foley_ray.audio.files import AUDIO_SUFFIXES, read_wave, sound_files
from foley_ray.audio.mel import LogMel
from foley_ray.audio.wave import level, repeat_to
from foley_ray.checkpoint import load_part, read_info, read_originals
from foley_ray.columns import AUDIO_EMBEDDING, CLIP_ID, NOVELTY, SCORE, TARGET, WAVE, Batch, require
from foley_ray.config import ClapConfig
from foley_ray.errors import SourceError
from foley_ray.originals import seen

MAX_ROWS = 16
"""Windows in one pass of the audio tower: what fits into memory whatever the number of candidates."""
QUIET_DB = -40.0
"""A window whose peak is so far below that of the loudest one is nearly silent."""


class RankStage:
    """Scores every candidate; nothing is random here, and the condition dropout of training does not exist (system.md A.5)."""

    requires = (WAVE, TARGET)
    provides = (AUDIO_EMBEDDING, SCORE, NOVELTY)

    def __init__(self, model: Path, device: str = "cpu", originals: bool = True, clap: Any = None):
        """`originals` off is for who only wants to hear: what the model learned from is not read, and novelty is NaN.

        `clap` is the model's, if it is loaded already.
        """
        info = read_info(model, needs=("clap",))
        self.device = torch.device(device)
        self.sample_rate_hz = info.model.audio.sample_rate_hz
        self.window_samples = round(info.model.clap.window_s * self.sample_rate_hz)
        self.clap = (clap or load_part(model, "clap")).to(self.device)
        self.levels = isinstance(info.model.clap, ClapConfig)
        """What was trained here heard crops of one peak, and takes quiet for another sound; published ones hear waves as is."""
        self.log_mel = LogMel(info.model.audio).to(self.device)
        self.info = info
        self.originals = read_originals(model, info) if originals else None

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Batch:
        """Adds embeddings, scores and novelty; all are NaN for a clip's only candidate where CLAP has no audio tower."""
        require(batch, self.requires, "rank")
        if not self.info.can_rank and len(set(batch[CLIP_ID.name])) == len(batch[CLIP_ID.name]):
            unheard = np.full((len(batch[WAVE.name]), self.clap.config.embed_dim), np.nan, dtype=np.float32)
            return {**batch, AUDIO_EMBEDDING.name: unheard, SCORE.name: unheard[:, 0], NOVELTY.name: unheard[:, 0]}
        windows = [self.windows(wave_T) for wave_T in batch[WAVE.name]]
        heard = self._hear(windows)
        embedding_BD = self._together(heard)
        target_BD = np.stack(list(batch[TARGET.name])) if len(embedding_BD) else embedding_BD
        return {
            **batch,
            AUDIO_EMBEDDING.name: embedding_BD,
            SCORE.name: (embedding_BD * target_BD).sum(axis=1),
            NOVELTY.name: np.array(list(map(self._novelty, windows, heard)), dtype=np.float64),
        }

    def _novelty(self, window_NT: np.ndarray, embedding_ND: np.ndarray) -> float:
        """Of the least new stretch: who copies four seconds of ten has copied."""
        if self.originals is None:
            return float("nan")
        return min(map(self.originals.novelty, embedding_ND, self.pictures(window_NT)))

    @torch.inference_mode()
    def pictures(self, window_NT: np.ndarray) -> np.ndarray:
        """What is kept of originals beside their embeddings, of windows: (N, F, M)."""
        return seen(self.log_mel(torch.from_numpy(window_NT).to(self.device)).cpu().numpy())

    def embed(self, waves: Sequence[np.ndarray]) -> np.ndarray:
        """(B, D) unit CLAP embeddings of waves (T,) of any length at the model's rate: of several windows the mean counts."""
        return self._together(self._hear([self.windows(wave_T) for wave_T in waves]))

    def windows(self, wave_T: np.ndarray) -> np.ndarray:
        """What CLAP hears of a wave at a time, (N, samples): as few windows as hold it; a shorter wave is repeated to fill one.

        Each is brought to the level of training crops, so that how loud a sound is does not count; near silence beside
        something louder is left out, which would be a loud hiss then.
        """
        window_NT = _cut(wave_T, self.window_samples).astype(np.float32)
        if not self.levels:
            return window_NT
        return np.stack([level(window_T) for window_T in audible(window_NT)])

    @torch.inference_mode()
    def _hear(self, windows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Of each wave's windows (N, T) the embeddings (N, D)."""
        if not windows:
            return []
        window_NT = np.concatenate(windows)  # of all waves, so that clips of different durations share a batch
        embedded = []
        for start in range(0, len(window_NT), MAX_ROWS):
            wave_BT = torch.from_numpy(window_NT[start : start + MAX_ROWS]).to(self.device)
            embedded.append(self.clap.audio_embed(wave_BT, self.sample_rate_hz).cpu().numpy())
        return np.split(np.concatenate(embedded), np.cumsum([len(window_NT) for window_NT in windows])[:-1])

    def _together(self, heard: Sequence[np.ndarray]) -> np.ndarray:
        """(B, D) from the windows' (N, D) of each wave."""
        if not heard:
            return np.zeros((0, self.clap.config.embed_dim), dtype=np.float32)
        return np.stack([each_ND[0] if len(each_ND) == 1 else _unit(each_ND.mean(axis=0)) for each_ND in heard])

    def embed_folder(self, folder: Path) -> tuple[list[Path], np.ndarray]:
        """Target sounds for multi-target selection: the folder's files in name order, and their embeddings (N, D).

        Raises SourceError if there is no readable sound.
        """
        paths = target_files(folder)
        return paths, self.embed([read_wave(path, self.sample_rate_hz) for path in paths])


def target_files(folder: Path) -> list[Path]:
    """A folder's sounds in name order. Raises SourceError if there is no such folder, or none in it."""
    if not folder.is_dir():
        raise SourceError(f"no folder of target sounds at {folder}; give a folder with WAV or FLAC files")
    paths = sound_files(folder)
    if not paths:
        raise SourceError(f"no sound files in {folder}; targets are {', '.join(sorted(AUDIO_SUFFIXES))} files")
    return paths


def audible(window_NT: np.ndarray) -> np.ndarray:
    """The windows of a wave but for those that are nearly silent beside its loudest."""
    peak_N = np.abs(window_NT).max(axis=1)
    return np.asarray(window_NT[peak_N >= peak_N.max() * 10 ** (QUIET_DB / 20)])


def _cut(wave_T: np.ndarray, samples: int) -> np.ndarray:
    if len(wave_T) <= samples:
        return repeat_to(wave_T, samples)[None]
    starts = np.linspace(0, len(wave_T) - samples, -(-len(wave_T) // samples)).round().astype(int)
    return np.stack([wave_T[start : start + samples] for start in starts])


def _unit(vector_D: np.ndarray) -> np.ndarray:
    return np.asarray(vector_D / np.linalg.norm(vector_D), dtype=np.float32)
