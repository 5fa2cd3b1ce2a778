"""A finished folder of ours, a dataset or a cache, on this machine or at a URI: how its files are read, and published there.

A URI is file://, s3://, gs://, abfs:// and what else pyarrow's filesystems know, and through fsspec all that it knows.
Credentials are theirs: from the environment, or in the URI.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pa_fs

from foley_ray.errors import OutputError, SourceError

Folder = Path | str
"""A path, or a URI: as a Path, s3://bucket would become s3:/bucket."""
PUBLISHED = "published.json"
"""What `publish` has put into a folder, so that the next time it removes what is no more, and nothing else."""
PRIVATE = ("ray", "tmp")
"""Folders that are of use only where they were made, as are all whose name begins with a dot."""


def absolute(folder: Folder) -> Folder:
    """The same wherever it is used: workers have another working directory."""
    return folder.resolve() if isinstance(folder, Path) else folder


def connect(address: str) -> tuple[Any, str]:
    """(filesystem, folder in it) of a URI. Raises SourceError where there is none, or no way to get there."""
    filesystem, base = reach(address)
    try:
        found = filesystem.get_file_info(base).type
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"cannot reach {address}: {' '.join(str(error).split())}") from None
    if found != pa_fs.FileType.Directory:
        raise SourceError(f"no folder at {address}: check the bucket and path, and that the credentials may list it")
    return filesystem, base


def has_file(folder: Folder, name: str) -> bool:
    """Whether a folder has such a file. Raises SourceError for a URI that cannot be reached."""
    if isinstance(folder, Path):
        return (folder / name).is_file()
    filesystem, base = connect(folder)
    return bool(filesystem.get_file_info(f"{base}/{name}").type == pa_fs.FileType.File)


def open_file(folder: Folder, name: str) -> pa.NativeFile:
    """A file of a folder, to read and seek in. Raises OSError where it cannot be read."""
    filesystem, base = _at(folder)
    return filesystem.open_input_file(f"{base}/{name}")


def read_text(folder: Folder, name: str) -> str:
    """A file of a folder as UTF-8. Raises OSError where it cannot be read, ValueError where it is no text."""
    with open_file(folder, name) as file:
        return str(file.read().decode())


def parquet_files(folder: Folder, below: str) -> list[str]:
    """Names of the Parquet files directly in a folder's subfolder, sorted; none where there is no such subfolder."""
    filesystem, base = _at(folder)
    infos = filesystem.get_file_info(pa_fs.FileSelector(f"{base}/{below}", allow_not_found=True))
    return sorted(f"{below}/{info.base_name}" for info in infos if info.base_name.endswith(".parquet"))


def publish(folder: Path, address: str, last: str) -> int:
    """Make a URI's folder hold what a finished folder holds; how many files were copied.

    What is there already, of the same size and not older, is not sent again. The file `last` is, after all others: where it is
    whole, so is the rest. What an earlier time put there and is no more is removed; files of anybody else are not touched.
    Raises OutputError where it cannot be written; the same again goes on.
    """
    files = sorted(_to_publish(folder), key=lambda name: (name == last, name))
    copied = 0
    try:
        filesystem, base = reach(address)
        filesystem.create_dir(base, recursive=True)
        there = {info.path: info for info in filesystem.get_file_info(pa_fs.FileSelector(base, recursive=True))}
        known = f"{base}/{PUBLISHED}"
        earlier: list[str] = []
        if known in there:
            with filesystem.open_input_file(known) as file:
                earlier = json.loads(file.read())
        _write(filesystem, known, sorted({*files, *earlier}))  # before anything else: what comes now is ours
        if last and f"{base}/{last}" in there:
            filesystem.delete_file(f"{base}/{last}")  # until it comes again the copy is not whole
        for name in files:
            local, target = folder / name, f"{base}/{name}"
            size, changed_s = local.stat().st_size, local.stat().st_mtime
            old = there.get(target)
            if name != last and old and old.size == size and old.mtime and old.mtime.timestamp() >= changed_s:
                continue
            filesystem.create_dir(target.rpartition("/")[0], recursive=True)
            pa_fs.copy_files(str(local), target, source_filesystem=pa_fs.LocalFileSystem(), destination_filesystem=filesystem)
            copied += 1
        for name in set(earlier) - set(files):
            if f"{base}/{name}" in there:
                filesystem.delete_file(f"{base}/{name}")
        _write(filesystem, known, files)
    except (OSError, ValueError, SourceError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise OutputError(
            f"cannot publish {folder} at {address}: {reason}; what was made is whole, the same again goes on"
        ) from None
    return copied


def _at(folder: Folder) -> tuple[Any, str]:
    return (pa_fs.LocalFileSystem(), str(folder)) if isinstance(folder, Path) else _connected(folder)


def _to_publish(folder: Path) -> list[str]:
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [name.as_posix() for name in names if not any(part.startswith(".") or part in PRIVATE for part in name.parts)]


def _write(filesystem: Any, path: str, value: list[str]) -> None:
    with filesystem.open_output_stream(path) as file:
        file.write(json.dumps(value, indent=0, ensure_ascii=False).encode())


def reach(address: str) -> tuple[Any, str]:
    """(filesystem, path in it) of a URI, whether there is anything or not."""
    try:
        try:
            filesystem, path = pa_fs.FileSystem.from_uri(address)
        except pa.ArrowInvalid:  # a scheme that pyarrow does not know
            from fsspec.core import url_to_fs

            fsspec_filesystem, path = url_to_fs(address)
            filesystem = pa_fs.PyFileSystem(pa_fs.FSSpecHandler(fsspec_filesystem))
        return filesystem, filesystem.normalize_path(path).rstrip("/")
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise SourceError(f"cannot reach {address}: {' '.join(str(error).split())}") from None


_connected = lru_cache(connect)
"""One connection per process and URI: a training run opens thousands of row groups."""
