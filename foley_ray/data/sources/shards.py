"""WebDataset and Parquet: sounds packed in large files, which are read where they lie and never unpacked."""

import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foley_ray.data.manifest import Reason
from foley_ray.data.sources.recording import COLUMNS, Recording, captions_in, describe, is_known, split_in, text
from foley_ray.data.sources.tables import Row, is_sound
from foley_ray.data.storage import Fault, Place, Storage

READERS = 8  # shards whose tables of contents are read at a time: a remote one is many short waits
MAX_TEXT_BYTES = 2**20  # of a member that describes a sound
SOUND_COLUMNS = ("audio", "wav", "flac", "mp3", "ogg", "sound", "bytes", "content", "data")


def find_webdataset(storage: Storage) -> list[str]:
    """Tar files."""
    return [name for name in storage.names if name.lower().endswith(".tar")]


def read_webdataset(storage: Storage, files: Sequence[str]) -> Iterator[Recording]:
    """A recording per sound in the shards; dog.flac is described by dog.json, dog.txt and dog.cls.

    A shard that breaks off gives what comes before, and one faulty row for the rest.
    """
    with ThreadPoolExecutor(READERS) as pool:
        for recordings in pool.map(partial(_shard, storage), files):
            yield from recordings


def find_parquet(storage: Storage) -> list[str]:
    """Parquet files with a column of sounds, and those that cannot be read."""
    names = [name for name in storage.names if name.lower().endswith(".parquet")]
    with ThreadPoolExecutor(READERS) as pool:
        columns = list(pool.map(partial(_sound_column_of, storage), names))
    # None: no Parquet file at all; only beside others is it a broken shard
    return [name for name, column in zip(names, columns, strict=True) if column != ""] if any(columns) else []


def read_parquet(storage: Storage, files: Sequence[str]) -> Iterator[Recording]:
    """A recording per row. Numbers of classes mean the names that Hugging Face's datasets leaves in the schema."""
    with ThreadPoolExecutor(READERS) as pool:
        for recordings in pool.map(partial(_rows, storage), files):
            yield from recordings


# -------------------------------------------------------------------------------------------------------------- WebDataset


def _shard(storage: Storage, shard: str) -> list[Recording]:
    samples: dict[str, dict[str, tarfile.TarInfo]] = defaultdict(dict)
    recordings: list[Recording] = []
    texts: dict[str, bytes] = {}
    broken: str | None = None
    try:
        with storage.open(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            try:
                for member in tar:
                    if found := re.fullmatch(r"((?:.*/)?[^/.]+)\.([^/]+)", member.name):
                        samples[found[1]][found[2].lower()] = member
                        if member.isreg() and found[2].lower() in ("json", "txt", "cls") and member.size <= MAX_TEXT_BYTES:
                            texts[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
            except (tarfile.TarError, OSError, EOFError, ValueError) as error:
                broken = f"breaks off after {len(samples)} samples: {error}"
    except (Fault, tarfile.TarError, OSError, EOFError, ValueError) as error:
        broken = f"cannot be read: {error.detail if isinstance(error, Fault) else error}"
    for key, members in samples.items():
        if not PurePosixPath(key).name.startswith("__"):  # WebDataset's own notes
            recordings += _sample(shard, key, members, texts)
    if broken:
        recordings.append(Recording(Place(shard), shard, fault=(Reason.CORRUPT, broken)))
    return recordings


def _sample(shard: str, key: str, members: dict[str, tarfile.TarInfo], texts: dict[str, bytes]) -> Iterator[Recording]:
    """The sound of one sample, or sounds: dog.close.wav and dog.far.wav share what is said of dog."""
    sounds = {extension: member for extension, member in members.items() if is_sound(f"x.{extension}")}
    row, fault = _described(members, texts)
    if not sounds:
        fault = (Reason.MISSING, f"no sound among its members: {', '.join(sorted(members))}")
        yield Recording(Place(shard), f"{shard}/{key}", fault=fault)
    for member in sounds.values():
        if not member.isreg() or member.issparse():
            fault = (Reason.MISSING, "a link or other thing in the archive, not a file")
        place = Place(shard, member.offset_data, member.size)
        source = f"{shard}/{member.name}"
        yield describe(row, place, source, split=split_in(shard), recording=f"{shard}/{key}", fault=fault)


def _described(members: dict[str, tarfile.TarInfo], texts: dict[str, bytes]) -> tuple[Row, tuple[Reason, str] | None]:
    """(row of COLUMNS, fault) from the members that describe a sample."""
    said = {
        name: texts.get(members[name].name, b"").decode(errors="replace") for name in ("json", "txt", "cls") if name in members
    }
    row: Any = {}
    try:
        row = json.loads(said["json"]) if "json" in said else {}
    except ValueError as error:
        return {}, (Reason.CORRUPT, f"its .json cannot be read: {error}")
    row = {str(key): value for key, value in row.items()} if isinstance(row, dict) else {}
    if not captions_in(row) and "txt" in said:
        row["caption"] = said["txt"]
    if "cls" in said:
        row.setdefault("class", said["cls"])
    return _without_numbers(row), None


# ----------------------------------------------------------------------------------------------------------------- Parquet


def _sound_column(schema: pa.Schema) -> str:
    """The column with the bytes of sounds, or nothing: audio.bytes of Hugging Face, else a binary one, by name if several."""
    structs: list[str] = [
        field.name for field in schema if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    binary: list[str] = [
        field.name for field in schema if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    ]
    for found, end in ((structs, ".bytes"), (binary, "")):
        if names := sorted(found, key=lambda name: (name not in SOUND_COLUMNS, found.index(name))):
            return names[0] + end
    return ""


def _sound_column_of(storage: Storage, name: str) -> str | None:
    try:
        with storage.open(name) as file:
            return _sound_column(pq.read_schema(file))
    except (Fault, OSError, pa.ArrowException):
        return None


def _rows(storage: Storage, name: str) -> list[Recording]:
    recordings: list[Recording] = []
    try:
        with storage.open(name) as file:
            parquet = pq.ParquetFile(file)
            schema = parquet.schema_arrow
            column = _sound_column(schema)
            struct = column.removesuffix(".bytes") if column.endswith(".bytes") else ""
            columns = [name for name in schema.names if is_known(name)]
            if struct and schema.field(struct).type.get_field_index("path") >= 0:
                columns.append(f"{struct}.path")
            for batch in parquet.iter_batches(columns=columns):
                for row in _named(batch, schema):
                    number = len(recordings)
                    called = (row.pop(struct, None) or {}).get("path") if struct else None
                    source = f"{name}/{text(called) or f'row {number + 1}'}"
                    place = Place(name, number, column=column)
                    recordings.append(describe(_without_numbers(row), place, source, split=split_in(name)))
    except (Fault, OSError, pa.ArrowException) as error:
        detail = f"cannot be read after row {len(recordings)}: {error.detail if isinstance(error, Fault) else error}"
        recordings.append(Recording(Place(name), name, fault=(Reason.CORRUPT, detail)))
    return recordings


def _named(batch: pa.RecordBatch, schema: pa.Schema) -> Iterator[Row]:
    """The rows, with the names of classes for their numbers."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about.get("info", {}).get("features", {})
        kinds = {column: feature for column, feature in features.items() if isinstance(feature, dict)}  # of lists: a list
        names = {column: feature["names"] for column, feature in kinds.items() if feature.get("_type") == "ClassLabel"}
    except (ValueError, AttributeError, TypeError, KeyError):
        names = {}
    for row in batch.to_pylist():
        for column in names.keys() & row.keys():
            number = row[column]
            row[column] = names[column][number] if isinstance(number, int) and 0 <= number < len(names[column]) else None
        yield row


def _without_numbers(row: Row) -> Row:
    """The row, less a class that is but a number: nobody knows what it means."""
    return {key: value for key, value in row.items() if not (key in COLUMNS["class"] and text(value).lstrip("-").isdigit())}
