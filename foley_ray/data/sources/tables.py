"""Reading the tables of a source, CSV, JSON and Parquet, and finding the sound files that their rows mean."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foley_ray.audio.files import AUDIO_SUFFIXES
from foley_ray.data.sources.recording import is_known, stem, words_of
from foley_ray.data.storage import Fault, Storage
from foley_ray.errors import SourceError

PEEKED = 200  # tables whose first bytes are looked at to recognise a layout: the datasets have a dozen at most
HEAD_BYTES = 64 * 2**10

Row = dict[str, Any]


def read_table(storage: Storage, name: str) -> tuple[list[str], list[Row]]:
    """(column names, rows) of a CSV, JSON lines or Parquet file; of Parquet only the columns that are known are read.

    Raises SourceError when the file is not what its suffix says.
    """
    try:
        if name.endswith(".parquet"):
            with storage.open(name) as file:
                parquet = pq.ParquetFile(file)
                names = parquet.schema_arrow.names
                return names, parquet.read(columns=[name for name in names if is_known(name)]).to_pylist()
        content = _content(storage, name)
        if name.endswith(".csv"):
            reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
            return list(reader.fieldnames or ()), list(reader)
        rows = [json.loads(line) for line in content.splitlines() if line.strip()]
        return list(dict.fromkeys(column for row in rows for column in row)), [dict(row) for row in rows]
    except (Fault, OSError, ValueError, TypeError, csv.Error, pa.ArrowException) as error:
        raise _unreadable(storage, name, error) from None


def read_json(storage: Storage, name: str) -> Any:
    """A JSON file. Raises SourceError when it is none."""
    try:
        return json.loads(_content(storage, name))
    except (Fault, OSError, ValueError) as error:
        raise _unreadable(storage, name, error) from None


def csv_headers(storage: Storage) -> Iterator[tuple[str, list[str]]]:
    """(name, column names) of the CSV files of a source."""
    for name in _peeked(storage, ".csv"):
        line = storage.head(name).decode("utf-8-sig", errors="replace").partition("\n")[0]
        yield name, [column.strip() for column in next(csv.reader([line]), [])]


def json_heads(storage: Storage) -> Iterator[tuple[str, str]]:
    """(name, how it begins) of the JSON files of a source."""
    for name in _peeked(storage, ".json"):
        yield name, storage.head(name, HEAD_BYTES).decode(errors="replace")


def is_sound(name: str) -> bool:
    """Whether a file looks like sound by its name."""
    return PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES


class SoundFiles:
    """The sound files of a source by their names: datasets say what a file is called, and people choose the folders."""

    def __init__(self, storage: Storage):
        self.names = [name for name in storage.names if is_sound(name)]
        self.known = frozenset(self.names)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            self._by_stem[stem(PurePosixPath(name).name)].append(name)

    def find(self, called: str, table: str) -> str | None:
        """The file of that name, whatever its suffix, if there is one; `called` may be a path, whose folders do not count.

        Of several the one whose folders share most words with the table's path: train.csv means train/1.wav, not val/1.wav.
        """
        base = PurePosixPath(called).name
        return nearest(self._by_stem.get(stem(base) if is_sound(base) else base, ()), table, base)


def nearest(names: Iterable[str], table: str, called: str = "") -> str | None:
    """Of files that may be meant by a table the one that is, see `SoundFiles.find`."""
    words = set(words_of(table))
    return max(
        names,
        key=lambda name: (len(words & set(words_of(str(PurePosixPath(name).parent)))), name.endswith(called)),
        default=None,
    )


def _peeked(storage: Storage, suffix: str) -> list[str]:
    return [name for name in storage.names if name.lower().endswith(suffix)][:PEEKED]


def _content(storage: Storage, name: str) -> str:
    with storage.open(name) as file:
        return file.read().decode("utf-8-sig")  # -sig: spreadsheets put a byte order mark first


def _unreadable(storage: Storage, name: str, error: Exception) -> SourceError:
    return SourceError(f"cannot read {storage}/{name}: {error.detail if isinstance(error, Fault) else error}")
