"""Clotho and WavCaps: sounds of Freesound and others, with captions written for them."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from foley_ray.data.manifest import Reason, Split
from foley_ray.data.sources.licences import licence_of
from foley_ray.data.sources.recording import Recording, captions_in, stem, text, words_of
from foley_ray.data.sources.tables import Row, SoundFiles, csv_headers, json_heads, read_json, read_table
from foley_ray.data.storage import Fault, Place, Storage
from foley_ray.errors import SourceError

_WAVCAPS = re.compile(r'\s*\{(?=.*"data"\s*:\s*\[\s*\{)(?=.*"caption(_1)?"\s*:)(?=.*"(id|audio)"\s*:)', re.DOTALL)
WAVCAPS_LICENCE = "academic use only (WavCaps)"
_SPLITS: dict[str, Split] = {"development": "train", "validation": "eval", "evaluation": "eval"}  # of Clotho's tables


def find_clotho(storage: Storage) -> list[str]:
    """Tables with a file name and numbered captions."""
    return [name for name, columns in csv_headers(storage) if {"file_name", "caption_1"} <= set(columns)]


def read_clotho(storage: Storage, files: Sequence[str]) -> Iterator[Recording]:
    """A recording per sound, with its five captions; author and licence from the metadata table of the same split."""
    sounds = SoundFiles(storage)
    known = _clotho_metadata(storage)
    for file in files:
        part = next((word for word in words_of(PurePosixPath(file).name) if word in _SPLITS), "")
        for number, row in enumerate(read_table(storage, file)[1], start=1):
            called = text(row["file_name"])
            name = sounds.find(str(row["file_name"] or "").strip(), file)
            about = known.get((part, called), {})
            licence = licence_of(text(about.get("license")))
            sound_id = text(about.get("sound_id"))
            source = name or called or f"{file} row {number}"
            yield Recording(
                place=Place(source),
                source=source,
                captions=captions_in(row),
                split=_SPLITS.get(part),
                licence=licence.name,
                author=text(about.get("manufacturer")),
                recording=f"freesound:{sound_id}" if sound_id.isdigit() else stem(source),
                shippable=bool(licence.shippable),
                fault=None if name else (Reason.MISSING, f"no sound file is called {called!r}, of {file}"),
            )


def find_wavcaps(storage: Storage) -> list[str]:
    """JSON files of the form of WavCaps."""
    return [name for name, head in json_heads(storage) if _WAVCAPS.match(head)]


def read_wavcaps(storage: Storage, files: Sequence[str]) -> Iterator[Recording]:
    """A recording per entry, found by its id (1234, YxxxxxxxxxxX.wav, NHU05051099) whatever its suffix.

    WavCaps states no licence per sound, and academic use for all.
    """
    sounds = SoundFiles(storage)
    for file in files:
        for number, entry in enumerate(_entries(storage, file), start=1):
            called = [text(entry.get(key)) for key in ("id", "audio", "wav") if entry.get(key)]
            name = next(filter(None, (sounds.find(key, file) for key in called)), None)
            source = name or f"{file} entry {number}"
            yield Recording(
                place=Place(source),
                source=source,
                captions=captions_in(entry),
                licence=WAVCAPS_LICENCE,
                author=text(entry.get("author")),
                recording=stem(source),
                fault=None if name else (Reason.MISSING, f"no sound file is called {' or '.join(called) or 'so'}, of {file}"),
            )


def _clotho_metadata(storage: Storage) -> dict[tuple[str, str], Row]:
    """{(split, file name): row} of the metadata tables, which are not UTF-8 and not all separated by commas."""
    known: dict[tuple[str, str], Row] = {}
    for file in storage.names:
        if found := re.fullmatch(r"clotho_metadata_(\w+)\.csv", PurePosixPath(file).name):
            try:
                with storage.open(file) as content:
                    lines = content.read()
            except (Fault, OSError) as error:
                raise SourceError(f"cannot read {storage}/{file}: {error}") from None
            try:
                words = lines.decode("utf-8-sig")
            except UnicodeDecodeError:
                words = lines.decode("latin-1")
            separator = ";" if words.partition("\n")[0].count(";") > 2 else ","
            for row in csv.DictReader(io.StringIO(words, newline=""), delimiter=separator):
                known[found[1], text(row.get("file_name"))] = row
    return known


def _entries(storage: Storage, file: str) -> list[Row]:
    content = read_json(storage, file)
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise SourceError(f'{storage}/{file} is not of the form of WavCaps: {{"data": [{{"id": ..., "caption": ...}}]}}')
    return [entry if isinstance(entry, dict) else {} for entry in entries]
