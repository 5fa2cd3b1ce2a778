"""Audio targets of a plan (multi-target selection): which sound each clip is chosen against. Imports neither torch nor ray.

A complex class stays varied when every clip has a target of its own (system.md A.5): clip i of a category is held against
target i, in the order of the files' names or of the dataset's rows. Targets decide which candidate is delivered, not how
candidates are made: another folder of targets makes no sound anew.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf

from foley_ray.audio.files import AUDIO_SUFFIXES, sound_files
from foley_ray.data.manifest import DATA_FOLDER, INFO_FILE, load_info
from foley_ray.errors import ConfigError, SourceError
from foley_ray.library.plan import Plan, PlannedClip

SPLIT = "train"
"""Of a dataset the recordings for training: the others are kept to judge by."""


@dataclass(frozen=True)
class Target:
    """One sound to choose against."""

    name: str
    """For people: its place in the folder, or its source in the dataset."""
    sha256: str
    """Of the bytes."""
    path: Path
    row: int | None = None
    """Of a Parquet file of a dataset."""

    def read(self) -> bytes:
        """The sound file's bytes. Raises SourceError if they are not there any more, or are others."""
        data = _read(self.path, self.row)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise SourceError(f"target sound {self.path} changed while the library was built: build again")
        return data


def find_targets(plan: Plan, clips: Sequence[PlannedClip], folder: Path) -> dict[str, Target]:
    """Clip id -> its target, for clips of categories that have targets; relative places are below `folder`, the plan's.

    Raises ConfigError, naming the category, for a place that is not there, a class that a dataset has not, or fewer targets
    than clips; SourceError for a target that is no sound. All targets that are needed are read: a night must not fail at them.
    """
    found: dict[str, Target] = {}
    for index, category in enumerate(plan.categories):
        members = [clip for clip in clips if clip.category == index]
        if category.targets is None or not members:
            continue
        where = f"categories.{index} ({category.catid}), targets {category.targets}"
        places = _places(category.targets, folder, where)
        if len(places) < len(members):
            raise ConfigError(
                f"{where}: {len(places)} sounds for {len(members)} clips, but each clip needs its own; "
                "add sounds, or ask for fewer clips"
            )
        for clip, (name, path, row) in zip(members, places, strict=False):
            data = _read(path, row)
            _check(data, f"{where}: {name}")
            found[clip.id] = Target(name, hashlib.sha256(data).hexdigest(), path, row)
    return found


def _places(targets: str, folder: Path, where: str) -> list[tuple[str, Path, int | None]]:
    """(name, file, row) of each target."""
    place = folder / targets
    if place.is_dir():
        if (place / INFO_FILE).is_file():
            raise ConfigError(f"{where}: a dataset needs a class, as {targets}:{_classes(place)[0]}")
        paths = sound_files(place)
        if not paths:
            raise ConfigError(f"{where}: no sound files in {place}; targets are {', '.join(sorted(AUDIO_SUFFIXES))} files")
        return [(path.relative_to(place).as_posix(), path, None) for path in paths]
    before, colon, name = targets.rpartition(":")
    dataset = folder / before
    if not colon or not dataset.is_dir():
        raise ConfigError(f"{where}: no folder at {place}; give a folder of sound files, or DATASET:CLASS")
    if name not in _classes(dataset):
        raise ConfigError(f"{where}: {dataset} has no class {name!r}; it has {', '.join(_classes(dataset))}")
    return _rows(dataset, name)


def _classes(dataset: Path) -> tuple[str, ...]:
    return load_info(dataset).classes


def _rows(dataset: Path, name: str) -> list[tuple[str, Path, int | None]]:
    """A class's rows of the training split."""
    found: list[tuple[str, Path, int | None]] = []
    for path in sorted((dataset / DATA_FOLDER).glob("*.parquet")):
        table = pq.read_table(path, columns=["class", "split", "source"])
        for row, line in enumerate(table.to_pylist()):
            if (line["class"], line["split"]) == (name, SPLIT):
                found.append((line["source"], path, row))
    return found


def _read(path: Path, row: int | None) -> bytes:
    try:
        data: bytes = path.read_bytes() if row is None else _audio_column(path)[row].as_py()
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"cannot read target sound {path}: {error}") from None
    return data


@lru_cache(maxsize=2)
def _audio_column(path: Path) -> pa.ChunkedArray:
    return pq.read_table(path, columns=["audio"])["audio"]


def _check(data: bytes, where: str) -> None:
    """A target that cannot be heard is none: CLAP would embed silence as something."""
    try:
        wave, _ = sf.read(io.BytesIO(data), dtype="float32")
    except (OSError, sf.LibsndfileError) as error:
        raise SourceError(f"{where} is no readable sound: {error}") from None
    if not np.isfinite(wave).all() or not np.any(wave):
        raise SourceError(f"{where} has no sound in it: leave it out")
