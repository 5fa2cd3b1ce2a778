"""Where the recordings of a source lie, and how to get at their bytes. Knows no layout and nothing about sound.

A source is a folder on this machine or a URI (folder.py says of which kinds).

Names are relative to the source with forward slashes, and come from other people's tables: one that leads out of the source
is refused, on this machine after links have been followed. What lies within an archive is never unpacked, only read.
"""

import io
import os
import posixpath
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from foley_ray.data.folder import connect
from foley_ray.data.manifest import Reason
from foley_ray.errors import SourceError

MAX_BYTES = 256 * 2**20
"""Of one recording that must be held in memory, which is all but plain files here: 30 s of the widest studio sound fit."""
CELLS = 4  # of a Parquet file with sound are held at a time


class Fault(Exception):
    """Why one recording cannot be used."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Place(NamedTuple):
    """Where the bytes of one recording are."""

    name: str
    """Of the file, relative to the source."""
    start: int = 0
    """Their first byte in an archive; in a Parquet file the row."""
    size: int = -1
    """How many bytes; -1: the whole file, or the whole cell."""
    column: str = ""
    """Of a Parquet file."""


class Storage:
    """The files of one source. Pickles as its address alone, so that each Ray task opens its own."""

    def __init__(self, source: str | Path):
        """Raises SourceError when there is no such folder, or no way to get there."""
        address = str(source)
        if urlsplit(address).scheme == "file":
            address = unquote(urlsplit(address).path)
        self.address = address
        self.folder = None if "://" in address else Path(address).resolve()
        self._filesystem: Any = None
        if self.folder is None:
            self._filesystem, self._base = connect(address)
        elif not self.folder.is_dir():
            raise SourceError(f"no folder at {address}: give the folder that holds the recordings, or a URI such as s3://...")
        self._cells: _Cells | None = None
        self._heads: dict[tuple[str, int], bytes] = {}

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (str(self.folder or self.address),)

    def __str__(self) -> str:
        return str(self.folder or self.address)

    @cached_property
    def names(self) -> list[str]:
        """Every file below, sorted folder by folder, without dot files. Raises SourceError when the listing fails."""
        return list(_walk(self.folder)) if self.folder else _listed(self._filesystem, self._base, self.address)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self._check(name)
        except Fault:
            return False
        return True

    def head(self, name: str, size: int = 4096) -> bytes:
        """The first bytes of a file; none of one that cannot be read. Kept: each layout wants a look."""
        if (name, size) not in self._heads:
            try:
                with self.open(name) as file:
                    self._heads[name, size] = file.read(size)
            except (Fault, OSError):
                self._heads[name, size] = b""
        return self._heads[name, size]

    def open(self, name: str) -> BinaryIO:
        """A file, to read and seek in. Raises Fault or OSError."""
        self._check(name)
        if self.folder:
            return (self.folder / name).open("rb")
        file: BinaryIO = self._filesystem.open_input_file(self._full(name))
        return file

    def sound(self, place: Place) -> io.BytesIO | io.BufferedReader:
        """The bytes of one recording: a plain file here as it is, anything else in memory. Raises Fault or OSError."""
        if place.column:
            return io.BytesIO(self._cell(place))
        if self.folder and place.size < 0:
            _check_path(self.folder / place.name, self.folder)
            return (self.folder / place.name).open("rb")
        with self.open(place.name) as file:
            size = place.size if place.size >= 0 else file.seek(0, os.SEEK_END)
            _check_size(size)
            file.seek(place.start)
            content = file.read(size)
        if len(content) < size:
            raise Fault(Reason.CORRUPT, f"breaks off: {len(content)} of {size} bytes")
        return io.BytesIO(content)

    def _cell(self, place: Place) -> bytes:
        if self._cells is None or not self._cells.ahead(place):
            self._cells = _Cells(self.open(place.name), place)
        return self._cells.read(place.start)

    def _check(self, name: str) -> None:
        """Raise Fault unless the name is that of a regular file below the source, links followed."""
        if self.folder:
            _check_path(self.folder / name, self.folder)
        elif self._filesystem.get_file_info(self._full(name)).type != pa_fs.FileType.File:
            raise Fault(Reason.MISSING, "no such file")

    def _full(self, name: str) -> str:
        """A name as the filesystem knows it."""
        plain = posixpath.normpath(name)
        if plain.startswith(("/", "../")) or plain == ".." or "\\" in name or "\0" in name:
            raise Fault(Reason.OUTSIDE, f"leads out of the source, to {name}")
        return f"{self._base}/{plain}"


class _Cells:
    """One column of one Parquet file, read forwards, a few rows at a time: a row group may hold more than memory does."""

    def __init__(self, file: BinaryIO, place: Place):
        self.name, self.column, self._bytes = place.name, place.column, file
        try:
            self._file = pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
            group, first = 0, 0
            while (rows := self._file.metadata.row_group(group).num_rows) <= place.start - first:
                group, first = group + 1, first + rows
        except (pa.ArrowException, OSError, IndexError) as error:
            raise Fault(Reason.CORRUPT, f"the Parquet file cannot be read: {error}") from None
        groups = range(group, self._file.metadata.num_row_groups)
        self._batches = self._file.iter_batches(batch_size=CELLS, row_groups=groups, columns=[self.column])
        self._batch, self._first = pa.record_batch({}), first

    def __del__(self) -> None:
        self._bytes.close()

    def ahead(self, place: Place) -> bool:
        """Whether reading on comes to that cell."""
        same = (place.name, place.column) == (self.name, self.column)
        return same and self._first <= place.start

    def read(self, row: int) -> bytes:
        try:
            while row >= self._first + self._batch.num_rows:
                self._first += self._batch.num_rows
                self._batch = next(self._batches)
            cell = self._batch.column(0)[row - self._first]
            value = (
                cell.as_py() if pa.types.is_binary(cell.type) or pa.types.is_large_binary(cell.type) else cell["bytes"].as_py()
            )
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise Fault(Reason.CORRUPT, f"the Parquet file breaks off: {error}") from None
        if value is None:
            raise Fault(Reason.EMPTY, f"no bytes in column {self.column}")
        _check_size(len(value))
        return bytes(value)


def _listed(filesystem: Any, base: str, address: str) -> list[str]:
    try:
        infos = filesystem.get_file_info(pa_fs.FileSelector(base, recursive=True))
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"cannot list {address}: {error}") from None
    paths = (
        info.path.lstrip("/").removeprefix(base.lstrip("/")).lstrip("/") for info in infos if info.type == pa_fs.FileType.File
    )
    shown = (path for path in paths if not any(map(_hidden, path.split("/"))))
    return sorted(shown, key=lambda path: (path.split("/")[:-1], path))  # as _walk has them


def _walk(folder: Path) -> Iterator[str]:
    """Files in sorted order, through links to folders, each real folder once (links may form a circle)."""
    seen: set[str] = set()
    for place, subfolders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
        below = Path(place).relative_to(folder)
        yield from ((below / name).as_posix() for name in sorted(files) if not _hidden(name))


def _hidden(name: str) -> bool:
    """Dot files are no recordings: macOS leaves ._name.wav beside name.wav in archives."""
    return name.startswith(".") or name == "__MACOSX"


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise Fault(Reason.TOO_LARGE, f"{size} bytes, at most {MAX_BYTES} are taken")


def _check_path(path: Path, root: Path) -> None:
    """Raise Fault unless the path is a regular file below the root, links followed."""
    try:
        real = path.resolve()
        inside = real.is_relative_to(root)
        regular = inside and real.is_file()  # a pipe would be waited for without end
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name with a NUL in it
        raise Fault(Reason.MISSING, f"no such file ({error})") from None
    if not inside:
        raise Fault(Reason.OUTSIDE, f"leads out of the source folder, to {real}")
    if not regular:
        raise Fault(Reason.MISSING, "no such file")
