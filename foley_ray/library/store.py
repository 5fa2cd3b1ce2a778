"""What a library keeps beside its delivered files, in LIBRARY/.foley, so that no sound is made twice.

    lock               held by the run that builds
    made/ab/ID-0.npz   the candidates of a clip's draw 0: waves, scores, embeddings; whole or absent
    targets/CLAP-SHA.npy   what CLAP hears in a target sound
    receipts/ID.json   what was delivered of a clip, made of what
    history.jsonl      one line a run

Deleting the folder costs nothing but the time to make the sounds again.
"""

import fcntl
import io
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np

from foley_ray.columns import AUDIO_EMBEDDING, CANDIDATE, NOVELTY, SCORE, WAVE, Batch
from foley_ray.errors import OutputError

FOLDER = ".foley"
FULL_SCALE = 0.999
"""From here on a sample counts as clipped."""


@dataclass(frozen=True)
class Draw:
    """One draw of a clip; of its N candidates everything but the waves."""

    candidate: np.ndarray
    """(N,) indices among all of the clip's candidates."""
    score: np.ndarray
    embedding_ND: np.ndarray
    """Unit CLAP embeddings."""
    novelty: np.ndarray
    peak: np.ndarray
    clipped: np.ndarray
    """(N,) share of samples at full scale."""
    dc: np.ndarray

    @classmethod
    def fields(cls, batch: Batch) -> dict[str, np.ndarray]:
        """A ranked batch of one clip as arrays to store."""
        wave_NT = np.stack(list(batch[WAVE.name])).astype(np.float32)
        return {
            "candidate": np.asarray(batch[CANDIDATE.name], dtype=np.int64),
            "score": np.asarray(batch[SCORE.name], dtype=np.float32),
            "embedding_ND": np.stack(list(batch[AUDIO_EMBEDDING.name])).astype(np.float32),
            "novelty": np.asarray(batch[NOVELTY.name], dtype=np.float64),
            "peak": np.abs(wave_NT).max(axis=1),
            "clipped": (np.abs(wave_NT) >= FULL_SCALE).mean(axis=1),
            "dc": np.abs(wave_NT.mean(axis=1, dtype=np.float64)),
            "wave_NT": wave_NT,
        }

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises OutputError for a file that was damaged after it was written."""
        with _undamaged(path), np.load(path, allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Raise OutputError for all that numpy raises of a file that was cut off, emptied or overwritten."""
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise OutputError(f"{path} is damaged ({error}): delete it and build again") from None


class Store:
    """The hidden folder of one library; made by `locked`, read by anybody."""

    def __init__(self, library: Path):
        self.library = library
        self.root = library / FOLDER

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the library for writing; what a killed run was in the middle of is cleared.

        Raises OutputError when another run holds it, or the folder holds something else, or cannot be written or locked.
        """
        try:
            if self.library.exists() and not self.root.is_dir() and (not self.library.is_dir() or any(self.library.iterdir())):
                raise OutputError(f"{self.library} has other things in it: choose an empty or new folder")
            for name in ("made", "receipts"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputError(f"cannot write {self.library}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system when this process dies, however it dies
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                raise OutputError(f"another run is building {self.library}: wait for it, or choose another folder") from None
            raise OutputError(
                f"cannot lock {self.library}: {error.strerror}; choose a folder on a file system that has locks"
            ) from None
        try:
            shutil.rmtree(self.root / "tmp", ignore_errors=True)
            (self.root / "tmp").mkdir()
            yield
        except OSError as error:
            raise OutputError(f"cannot write {error.filename or self.library}: {error.strerror or error}") from error
        finally:
            os.close(lock)

    def put(self, path: Path, data: bytes | Iterable[bytes]) -> None:
        """Write a file of the library, from its bytes or the parts of them, whole or not at all, also if the power goes."""
        with self.writing(path) as file:
            file.writelines([data] if isinstance(data, bytes) else data)

    @contextmanager
    def writing(self, path: Path) -> Iterator[BinaryIO]:
        """`put` for who writes into an open file."""
        temporary = self.root / "tmp" / uuid4().hex
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def save_draw(self, clip_id: str, draw: int, batch: Batch) -> None:
        """Keep a ranked batch of one clip."""
        file = io.BytesIO()
        np.savez(file, **Draw.fields(batch))
        self.put(self._draw_path(clip_id, draw), file.getvalue())

    def draw(self, clip_id: str, draw: int) -> Draw:
        """Raises OutputError if it is damaged."""
        return Draw.load(self._draw_path(clip_id, draw))

    def wave(self, clip_id: str, candidate: int, candidates: int) -> np.ndarray:
        """(T,) at the model's rate; `candidates` is how many a draw has. Raises OutputError if the draw is damaged."""
        draw, row = divmod(candidate, candidates)
        path = self._draw_path(clip_id, draw)
        with _undamaged(path), np.load(path, allow_pickle=False) as arrays:
            wave_T: np.ndarray = arrays["wave_NT"][row]
        return wave_T

    def heard(self, clip_id: str, candidate: int, candidates: int) -> np.ndarray:
        """The embedding (D,) of what `wave` gives."""
        draw, row = divmod(candidate, candidates)
        embedding_D: np.ndarray = self.draw(clip_id, draw).embedding_ND[row]
        return embedding_D

    def draws(self) -> dict[str, int]:
        """Clip id -> how many draws of it there are, without a gap from the first."""
        found = {path.stem for path in (self.root / "made").glob("*/*.npz")}
        counts: dict[str, int] = {}
        for clip_id in {name.rpartition("-")[0] for name in found}:
            draw = 0
            while f"{clip_id}-{draw}" in found:
                draw += 1
            counts[clip_id] = draw
        return counts

    def embedding(self, name: str) -> np.ndarray | None:
        """(D,) of a target sound, if it was heard. Raises OutputError if it is damaged."""
        path = self.root / "targets" / f"{name}.npy"
        if not path.exists():
            return None
        with _undamaged(path):
            found: np.ndarray = np.load(path, allow_pickle=False)
        return found

    def save_embedding(self, name: str, embedding_D: np.ndarray) -> None:
        """Keep what was heard in a target sound."""
        file = io.BytesIO()
        np.save(file, embedding_D)
        self.put(self.root / "targets" / f"{name}.npy", file.getvalue())

    def prune(self, clips: Collection[str], targets: Collection[str], dry: bool = False) -> tuple[int, int]:
        """Remove the draws of all clips but these ids, and the embeddings of all target sounds but these digests.

        Returns the number of files and of bytes. To be called by who holds the lock; what is delivered stays.
        """
        old = [path for path in (self.root / "made").glob("*/*.npz") if path.stem.rpartition("-")[0] not in clips]
        old += [path for path in (self.root / "targets").glob("*.npy") if path.stem.rpartition("-")[2] not in targets]
        size = sum(path.stat().st_size for path in old)
        if not dry:
            # last draw first: a run that is killed here leaves no draw without those before it
            for path in sorted(old, key=lambda path: path.name, reverse=True):
                path.unlink()
        return len(old), size

    def receipt(self, clip_id: str) -> dict[str, Any] | None:
        """What was delivered of a clip, if anything was."""
        with suppress(OSError, ValueError):
            receipt: dict[str, Any] = json.loads((self.root / "receipts" / f"{clip_id}.json").read_text(encoding="utf-8"))
            return receipt
        return None

    def receipts(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """All of them, with their files."""
        for path in sorted((self.root / "receipts").glob("*.json")):
            if (receipt := self.receipt(path.stem)) is not None:
                yield path, receipt

    def save_receipt(self, clip_id: str, receipt: dict[str, Any]) -> None:
        """Written after the files it speaks of."""
        self.put(self.root / "receipts" / f"{clip_id}.json", json.dumps(receipt, ensure_ascii=False).encode())

    def history(self) -> list[dict[str, Any]]:
        """The runs so far, oldest first."""
        try:
            lines = (self.root / "history.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        runs = []
        for line in lines:
            with suppress(ValueError):  # a line that a killed run did not finish
                runs.append(json.loads(line))
        return runs

    def remember(self, run: dict[str, Any]) -> None:
        """Add a run to the history."""
        with (self.root / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")

    def _draw_path(self, clip_id: str, draw: int) -> Path:
        return self.root / "made" / clip_id[:2] / f"{clip_id}-{draw}.npz"
