"""metadata files and class folders: the layouts that people make themselves."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from foley_ray.data.sources.recording import (
    COLUMNS,
    SPLIT_NAMES,
    Recording,
    caption_of,
    class_of,
    describe,
    stem,
    top_split,
    tops_are_splits,
    utf8,
)
from foley_ray.data.sources.tables import is_sound, read_table
from foley_ray.data.storage import Place, Storage
from foley_ray.errors import SourceError

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def find_metadata(storage: Storage) -> list[str]:
    """The metadata file of the folder, else those of its split folders."""
    tops = sorted({name.partition("/")[0] for name in storage.names if "/" in name})
    folders = [f"{top}/" for top in tops if top.lower() in SPLIT_NAMES]
    known = set(storage.names)
    for places in ([""], folders):
        found = ([place + name for name in METADATA_FILES if place + name in known] for place in places)
        if files := [names[0] for names in found if names]:
            return files
    return []


def read_metadata(storage: Storage, files: Sequence[str]) -> list[Recording]:
    """The rows of metadata files, whose paths are relative to the folder that each lies in."""
    recordings = [row for file in files for row in _rows(storage, file)]
    if tops_are_splits([row.source for row in recordings]):
        return [replace(row, split=row.split or top_split(row.source)) for row in recordings]
    return recordings


def find_sounds(storage: Storage) -> list[str]:
    """Every sound file."""
    return [name for name in storage.names if is_sound(name)]


def read_folders(storage: Storage, names: Sequence[str]) -> Iterator[Recording]:
    """Every sound file below; its class is the folder it lies in, unless that is the source or a split folder."""
    split_folders = tops_are_splits(names)
    for name in names:
        source = utf8(name)
        folders = PurePosixPath(source).parts[1 if split_folders else 0 : -1]
        class_name = class_of(folders[-1]) or None if folders else None
        yield Recording(
            place=Place(name),
            source=source,
            captions=(caption_of(class_name),) if class_name else (),
            class_name=class_name,
            split=top_split(source) if split_folders else None,
            recording=stem(source),
        )


def _rows(storage: Storage, file: str) -> Iterator[Recording]:
    columns, rows = read_table(storage, file)
    names = {key: [name for name in known if name in columns] for key, known in COLUMNS.items()}
    numbered = [name for name in columns if name.startswith("caption_")]
    for key, found, needed in (
        ("file", names["file"], ("file",)),
        ("caption", names["caption"] + names["class"] + numbered, ("caption", "class")),
    ):
        if not found:
            known = " or ".join(name for column in needed for name in COLUMNS[column])
            raise SourceError(
                f"{storage}/{file} has no {key} column: name one {known}; it has {', '.join(columns) or 'no columns'}"
            )
    folder = PurePosixPath(file).parent
    for number, row in enumerate(rows, start=1):
        name = utf8(str(row.get(names["file"][0]) or "")).strip()  # unlike a caption's, its inner blanks are kept
        # A row that names no file is looked for under a name that leads a person to the row.
        source = (folder / (name or f"{PurePosixPath(file).name} row {number}")).as_posix()
        yield describe(row, Place(source), source, where=f"{storage}/{file}: row {number}")
