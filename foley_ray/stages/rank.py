"""wave -> score and novelty: the cosine between each candidate's CLAP audio embedding and its target, and how new it is."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from foley_ray.audio.files import AUDIO_SUFFIXES, read_wave, sound_files
from foley_ray.audio.wave import level, repeat_to
from foley_ray.checkpoint import load_part, read_info
from foley_ray.columns import AUDIO_EMBEDDING, CLIP_ID, NOVELTY, SCORE, TARGET, WAVE, Batch, require
from foley_ray.config import ClapConfig
from foley_ray.errors import SourceError
from foley_ray.originals import Originals

MAX_ROWS = 16
"""Windows in one pass of the audio tower: what fits into memory whatever the number of candidates."""


class RankStage:
    """Scores every candidate; nothing is random here, and the condition dropout of training does not exist (system.md A.5)."""

    requires = (WAVE, TARGET)
    provides = (AUDIO_EMBEDDING, SCORE, NOVELTY)

    def __init__(self, model: Path, device: str = "cpu"):
        info = read_info(model, needs=("clap",))
        self.device = torch.device(device)
        self.sample_rate_hz = info.model.audio.sample_rate_hz
        self.window_samples = round(info.model.clap.window_s * self.sample_rate_hz)
        self.clap = load_part(model, "clap").to(self.device)
        self.prepare = level if isinstance(info.model.clap, ClapConfig) else np.asarray
        """What was trained here heard crops of one peak, and takes quiet for another sound; published ones hear waves as is."""
        self.info = info
        self.originals = Originals.load(model, info.originals.digest) if info.originals else None

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Batch:
        """Adds embeddings, scores and novelty; all are NaN for a clip's only candidate where CLAP has no audio tower."""
        require(batch, self.requires, "rank")
        if not self.info.can_rank and len(set(batch[CLIP_ID.name])) == len(batch[CLIP_ID.name]):
            unheard = np.full((len(batch[WAVE.name]), self.clap.config.embed_dim), np.nan, dtype=np.float32)
            return {**batch, AUDIO_EMBEDDING.name: unheard, SCORE.name: unheard[:, 0], NOVELTY.name: unheard[:, 0]}
        embedding_BD = self.embed(list(batch[WAVE.name]))
        target_BD = np.stack(list(batch[TARGET.name])) if len(embedding_BD) else embedding_BD
        return {
            **batch,
            AUDIO_EMBEDDING.name: embedding_BD,
            SCORE.name: (embedding_BD * target_BD).sum(axis=1),
            NOVELTY.name: np.array([self._novelty(embedding_D) for embedding_D in embedding_BD], dtype=np.float64),
        }

    def _novelty(self, embedding_D: np.ndarray) -> float:
        return float("nan") if self.originals is None else self.originals.novelty(embedding_D)

    @torch.inference_mode()
    def embed(self, waves: Sequence[np.ndarray]) -> np.ndarray:
        """(B, D) unit CLAP embeddings of waves (T,) of any length at the model's rate.

        CLAP hears one window; of a longer wave it hears several, evenly spaced over all of it, and the mean counts. Each is
        brought to the level of training crops, so that how loud a sound is does not count.
        """
        if not waves:
            return np.zeros((0, self.clap.config.embed_dim), dtype=np.float32)
        # windows of all waves, so that clips of different durations share a batch
        heard = [windows(wave_T, self.window_samples) for wave_T in waves]
        window_NT = np.stack([self.prepare(window_T) for window_T in np.concatenate(heard).astype(np.float32)])
        embedded = []
        for start in range(0, len(window_NT), MAX_ROWS):
            wave_BT = torch.from_numpy(window_NT[start : start + MAX_ROWS]).to(self.device)
            embedded.append(self.clap.audio_embed(wave_BT, self.sample_rate_hz).cpu().numpy())
        each_BND = np.split(np.concatenate(embedded), np.cumsum([len(window) for window in heard])[:-1])
        return np.stack([each_ND[0] if len(each_ND) == 1 else _unit(each_ND.mean(axis=0)) for each_ND in each_BND])

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


def windows(wave_T: np.ndarray, samples: int) -> np.ndarray:
    """What CLAP hears of a wave at a time, (N, samples): as few as hold it all; a shorter one is repeated to fill one."""
    if len(wave_T) <= samples:
        return repeat_to(wave_T, samples)[None]
    starts = np.linspace(0, len(wave_T) - samples, -(-len(wave_T) // samples)).round().astype(int)
    return np.stack([wave_T[start : start + samples] for start in starts])


def _unit(vector_D: np.ndarray) -> np.ndarray:
    return np.asarray(vector_D / np.linalg.norm(vector_D), dtype=np.float32)
