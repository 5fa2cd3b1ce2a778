"""Sets of sounds to be compared, wherever they lie: which clips there are, of which class, asked for in which words.

A set is a folder of one folder per class, a dataset of `foley ingest`, a library of `foley library build`, or the clips of
`foley score`. Lists places, reads no sound until asked; knows no models. A place pickles, so a worker elsewhere can read it.
"""

import io
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf

from foley_ray.audio.files import AUDIO_SUFFIXES, read_wave
from foley_ray.audio.wave import resample, to_mono
from foley_ray.data.manifest import DATA_FOLDER, INFO_FILE, Split, load_info
from foley_ray.errors import DataError, SourceError
from foley_ray.evaluation.made import MADE_FILE
from foley_ray.library.catalogue import MANIFEST, PARQUET


class Place(NamedTuple):
    """Where one sound lies: a file, or a row of a Parquet file of a dataset."""

    path: Path
    row: int | None = None

    @property
    def name(self) -> str:
        """For a person."""
        return self.path.name if self.row is None else f"{self.path.name} row {self.row}"


@dataclass(frozen=True)
class ClipSet:
    """The clips of a set, class by class; the columns of a class are equally long."""

    kind: str
    """folders, dataset, library or score."""
    where: Path
    places: dict[str, list[Place]]
    texts: dict[str, list[tuple[str, ...]]]
    """What each clip was asked for or is described by, in one wording or several; an empty tuple where nobody said."""
    recordings: dict[str, list[str]]
    """Clips cut from one recording share it."""
    note: str = ""

    def only(self, classes: Collection[str]) -> "ClipSet":
        """The set without its other classes."""
        kept = [name for name in self.places if name in classes]
        return replace(
            self,
            places={name: self.places[name] for name in kept},
            texts={name: self.texts[name] for name in kept},
            recordings={name: self.recordings[name] for name in kept},
        )

    def renamed(self, names: Mapping[str, str]) -> "ClipSet":
        """Classes by other names; two that come to bear one name are one class. Raises DataError for a name not there."""
        strange = sorted(set(names) - set(self.places))
        if strange:
            raise DataError(f"{self.where} has no class {', '.join(strange)} to map; it has {', '.join(self.places)}")
        places, texts, recordings = ({} for _ in range(3))  # type: ignore[var-annotated]
        for name in self.places:
            to = names.get(name, name)
            places[to] = places.get(to, []) + self.places[name]
            texts[to] = texts.get(to, []) + self.texts[name]
            recordings[to] = recordings.get(to, []) + self.recordings[name]
        return replace(self, places=places, texts=texts, recordings=recordings)

    def asked(self, wordings: Mapping[str, Sequence[str]]) -> "ClipSet":
        """The set with a class's wordings for all of its clips that came without words of their own."""
        texts = {
            name: [text or tuple(wordings.get(name, ())) for text in self.texts[name]] for name in self.texts
        }  # fmt: skip
        return replace(self, texts=texts)


def find_set(where: Path, split: Split | None = None) -> ClipSet:
    """The set in a folder; `split` keeps to one half of a dataset.

    Raises SourceError where there is no folder or no sound, DataError for a dataset or library that cannot be read.
    """
    if not where.is_dir():
        raise SourceError(f"no folder {where}: give folders per class, a dataset of `foley ingest`, or a library")
    if (where / INFO_FILE).is_file():
        return _dataset(where, split)
    if split is not None:
        raise DataError(f"{where} is no dataset of `foley ingest`, so it has no split {split}")
    if (where / MANIFEST).is_file() and (where / PARQUET).is_file():
        return _library(where)
    if (where / MADE_FILE).is_file():
        return _scored(where)
    return _folders(where)


def read_place(place: Place, sample_rate_hz: int) -> np.ndarray:
    """The whole sound as mono float32 (T,) at that rate. Raises SourceError if it cannot be read."""
    if place.row is None:
        return read_wave(place.path, sample_rate_hz)
    try:
        wave, rate = sf.read(io.BytesIO(_audio_column(place.path)[place.row].as_py()), dtype="float32")
    except (OSError, pa.ArrowException, sf.LibsndfileError) as error:
        raise SourceError(f"cannot read {place.name}: {error}") from None
    return resample(to_mono(wave), rate, sample_rate_hz)


@lru_cache(maxsize=2)
def _audio_column(path: Path) -> pa.ChunkedArray:
    return pq.read_table(path, columns=["audio"])["audio"]


def _gather(kind: str, where: Path, rows: Sequence[tuple[str, Place, tuple[str, ...], str]], note: str = "") -> ClipSet:
    places: dict[str, list[Place]] = {}
    texts: dict[str, list[tuple[str, ...]]] = {}
    recordings: dict[str, list[str]] = {}
    for name, place, text, recording in rows:
        places.setdefault(name, []).append(place)
        texts.setdefault(name, []).append(text)
        recordings.setdefault(name, []).append(recording)
    if not places:
        raise SourceError(f"no sounds in {where}: it needs a folder per class with sound files in it")
    return ClipSet(kind, where, places, texts, recordings, note)


def _folders(where: Path) -> ClipSet:
    """CLASS/**/sound.wav; a sidecar sound.json of `foley generate` says what was asked for."""
    rows = []
    for folder in sorted(path for path in where.iterdir() if path.is_dir() and not path.name.startswith(".")):
        for path in sorted(folder.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(where).parts)
            if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file() and not hidden:
                rows.append((folder.name, Place(path), _sidecar(path), str(path)))
    return _gather("folders", where, rows)


def _sidecar(path: Path) -> tuple[str, ...]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        prompt = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["prompt"]
        if isinstance(prompt, str) and prompt.strip():
            return (prompt,)
    return ()


def _dataset(where: Path, split: Split | None) -> ClipSet:
    load_info(where)  # says what is wrong with an unfinished one
    rows = []
    try:
        for path in sorted((where / DATA_FOLDER).glob("*.parquet")):
            table = pq.read_table(path, columns=["class", "caption", "split", "recording"])
            for row, found in enumerate(table.to_pylist()):
                if found["class"] and split in (None, found["split"]):
                    text = (found["caption"],) if found["caption"] else ()
                    rows.append((found["class"], Place(path, row), text, found["recording"]))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"dataset {where} is damaged ({error}); ingest again") from None
    return _gather("dataset", where, rows, f"split {split}" if split else "splits train and eval")


def _library(where: Path) -> ClipSet:
    """Classes are CatIDs."""
    try:
        table = pq.read_table(where / PARQUET, columns=["file", "catid", "prompt"])
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"library {where} cannot be read ({error}); build it again") from None
    rows = [
        (found["catid"], Place(where / found["file"]), (found["prompt"],), found["file"]) for found in table.to_pylist()
    ]  # fmt: skip
    return _gather("library", where, rows)


def _scored(where: Path) -> ClipSet:
    """class_007.wav as `foley score` writes them, with made.json."""
    try:
        prompts: dict[str, list[str]] = json.loads((where / MADE_FILE).read_text(encoding="utf-8"))["prompts"]
        rows = []
        for path in sorted(where.glob("*.wav")):
            name, _, number = path.stem.rpartition("_")
            rows.append((name, Place(path), (prompts[name][int(number) % len(prompts[name])],), str(path)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where / MADE_FILE} does not fit the clips beside it ({error})") from None
    return _gather("score", where, rows)
