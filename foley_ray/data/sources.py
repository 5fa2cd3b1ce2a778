"""Reading a SOURCE folder into a list of candidate recordings, without opening any audio.

Three layouts are recognised, the first that fits wins:

    metadata file   metadata.csv (or .jsonl, .parquet) with a `file` column of paths relative to it
    audiofolder     Hugging Face's: the same with `file_name`; there may be one such file per split folder (train/, test/)
    class folders   one folder of audio per class, as the DCASE 2023 Task 7 set: DogBark/001.wav -> dog_bark

A metadata file needs a caption or a class column; COLUMNS lists the names understood. Where no column gives the split, and
every folder at the top is named after one (train, test, ...), those folders do: train/dog_bark/001.wav. Beside dog_bark/, a
folder train/ is the sound of a train. Whether the audio exists and is any good is found out while ingesting, row by row.
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foley_ray.audio.files import AUDIO_SUFFIXES
from foley_ray.data.manifest import Split
from foley_ray.errors import SourceError

# What a column may be called, most specific name first. Columns of other names are ignored.
COLUMNS: dict[str, tuple[str, ...]] = {
    "file": ("file", "file_name"),
    "caption": ("caption", "text"),
    "class": ("class", "label"),
    "split": ("split",),
    "licence": ("licence", "license"),
    "author": ("author", "attribution"),
    "recording": ("recording", "recording_key"),
    "shippable": ("shippable",),
}
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train",
    "eval": "eval", "evaluation": "eval", "test": "eval", "valid": "eval", "validation": "eval", "val": "eval", "dev": "eval",
}  # fmt: skip

# Folder names of the DCASE 2023 Task 7 set -> class and prompt of arXiv 2306.10359.
DCASE_CLASSES: dict[str, tuple[str, str]] = {
    "DogBark": ("dog_bark", "a dog bark"),
    "Footstep": ("footstep", "foot steps"),
    "GunShot": ("gunshot", "gun shot"),
    "Keyboard": ("keyboard", "someone using keyboard"),
    "MovingMotorVehicle": ("moving_motor_vehicle", "a moving motor"),
    "Rain": ("rain", "rain"),
    "Sneeze_Cough": ("sneeze_cough", "a man cough"),
}
_PROMPTS = dict(DCASE_CLASSES.values())

_TRUE = frozenset(("yes", "true", "1", "y"))


@dataclass(frozen=True)
class Recording:
    """One candidate row, as the source describes it."""

    path: Path  # may not exist, or lie outside the source folder
    source: str  # the same relative to the source folder, with forward slashes
    caption: str | None
    class_name: str | None  # snake_case
    split: Split | None
    licence: str
    author: str
    recording: str  # rows cut from one recording share it; the path without suffix where the source does not say
    shippable: bool  # only where the source says so


def read_source(source: Path) -> tuple[str, list[Recording]]:
    """(layout in words, recordings in the source's order). Raises SourceError naming what is missing and what to do."""
    if not source.is_dir():
        raise SourceError(f"no folder at {source}: give the folder that holds the recordings")
    if files := _metadata_files(source):
        recordings = [row for file in files for row in _read_metadata(source, file)]
        layout = ", ".join(file.relative_to(source).as_posix() for file in files)
        if _tops_are_splits(row.source for row in recordings):
            recordings = [replace(row, split=row.split or _top_split(row.source)) for row in recordings]
    else:
        recordings = list(_class_folders(source))
        layout = "class folders"
    if not recordings:
        raise SourceError(
            f"no recordings in {source}: looked for {', '.join(METADATA_FILES)} there and in split folders "
            f"(train, test, ...), then for audio files (wav, flac, ogg, mp3, aiff, ...) in one folder per class"
        )
    return layout, recordings


def class_of(name: str) -> str:
    """A class or folder name in snake_case: DogBark -> dog_bark, "Door Knock" -> door_knock; a second pass changes nothing."""
    if name in DCASE_CLASSES:
        return DCASE_CLASSES[name][0]
    words = re.sub(r"([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3_\2\4", name)
    return re.sub(r"[\W_]+", "_", words.lower()).strip("_")


def caption_of(class_name: str) -> str:
    """The caption of a recording that has a class alone: the paper's prompt, or the words of the class."""
    return _PROMPTS.get(class_name, class_name.replace("_", " "))


def _metadata_files(source: Path) -> list[Path]:
    """The metadata file of the folder, else those of its split folders."""
    folders = sorted(folder for folder in source.iterdir() if folder.is_dir() and folder.name.lower() in SPLIT_NAMES)
    for candidates in ([source], folders):
        found = ([folder / name for name in METADATA_FILES if (folder / name).is_file()] for folder in candidates)
        if files := [names[0] for names in found if names]:
            return files
    return []


def _read_metadata(root: Path, file: Path) -> Iterator[Recording]:
    """The rows of one metadata file, whose paths are relative to the folder it lies in."""
    columns, rows = _read_table(file)
    names = {key: next((name for name in known if name in columns), None) for key, known in COLUMNS.items()}
    for key, needed in (("file", ("file",)), ("caption", ("caption", "class"))):
        if not any(names[name] for name in needed):
            known = " or ".join(name for column in needed for name in COLUMNS[column])
            raise SourceError(f"{file} has no {key} column: name one {known}; it has {', '.join(columns) or 'no columns'}")
    folder = file.parent.relative_to(root)
    for number, row in enumerate(rows, start=1):
        cell = {key: _text(row.get(name)) if name else "" for key, name in names.items()}
        name = _utf8(str(row.get(names["file"] or "") or "")).strip()  # unlike a caption's, its inner blanks are kept
        # A row that names no file is looked for under a name that leads a person to the row.
        source = (folder / (name or f"{file.name} row {number}")).as_posix()
        class_name = class_of(cell["class"]) or None
        yield Recording(
            path=root / source,
            source=source,
            caption=cell["caption"] or (caption_of(class_name) if class_name else None),
            class_name=class_name,
            split=_split(cell["split"], f"{file}: row {number}") if cell["split"] else None,
            licence=cell["licence"],
            author=cell["author"],
            recording=cell["recording"] or _stem(source),
            shippable=cell["shippable"].lower() in _TRUE,
        )


def _read_table(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """(column names, rows). Raises SourceError when the file is not what its suffix says."""
    try:
        if file.suffix == ".parquet":
            columns = pq.read_schema(file).names
            known = [name for names in COLUMNS.values() for name in names if name in columns]
            return columns, pq.read_table(file, columns=known).to_pylist()  # others may hold whole sounds
        with file.open(encoding="utf-8-sig", newline="") as text:  # -sig: spreadsheets put a byte order mark first
            if file.suffix == ".csv":
                reader = csv.DictReader(text, strict=True)
                return list(reader.fieldnames or ()), list(reader)
            rows = [json.loads(line) for line in text if line.strip()]
        return list(dict.fromkeys(name for row in rows for name in row)), [dict(row) for row in rows]
    except (OSError, ValueError, TypeError, csv.Error, pa.ArrowException) as error:
        raise SourceError(f"cannot read {file}: {error}") from None


def _text(value: Any) -> str:
    """A cell on one line; empty for what is absent."""
    return "" if value is None else " ".join(_utf8(str(value)).split())


def _utf8(text: str) -> str:
    """The text with a ? for what UTF-8 cannot hold: bytes of old file names, half surrogate pairs in JSON."""
    return text.encode(errors="replace").decode()


def _split(name: str, where: str) -> Split:
    split = SPLIT_NAMES.get(name.lower())
    if split is None:
        raise SourceError(f"{where} has split {name!r}: use train or eval (also understood: {', '.join(SPLIT_NAMES)})")
    return split


def _tops_are_splits(sources: Iterable[str]) -> bool:
    """Whether each path starts with a folder named after a split."""
    return all(_top_split(source) for source in sources)


def _top_split(source: str) -> Split | None:
    top, _, below = source.partition("/")
    return SPLIT_NAMES.get(top.lower()) if below else None


def _stem(source: str) -> str:
    return source.removesuffix(PurePosixPath(source).suffix)


def _class_folders(root: Path) -> Iterator[Recording]:
    """Every audio file below the root; its class is the folder it lies in, unless that is the root or a split folder."""
    paths = list(_audio_files(root))
    split_folders = _tops_are_splits(path.relative_to(root).as_posix() for path in paths)
    for path in paths:
        source = _utf8(path.relative_to(root).as_posix())
        folders = PurePosixPath(source).parts[1 if split_folders else 0 : -1]
        class_name = class_of(folders[-1]) or None if folders else None
        yield Recording(
            path=path,
            source=source,
            caption=caption_of(class_name) if class_name else None,
            class_name=class_name,
            split=_top_split(source) if split_folders else None,
            licence="",
            author="",
            recording=_stem(source),
            shippable=False,
        )


def _audio_files(root: Path) -> Iterator[Path]:
    """Audio files in sorted order, through links to folders, each real folder once (links may form a circle)."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        # Dot files are no recordings: macOS leaves ._name.wav beside name.wav in archives.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__MACOSX")
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES:
                yield Path(folder) / name
