"""A folder that is written whole or not at all: it grows as a hidden sibling and takes its place by a rename."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foley_ray.errors import OutputError


@contextmanager
def staging(out: Path, *, index: str, what: str, overwrite: bool) -> Iterator[Path]:
    """An empty folder beside `out` that takes its place when the block ends well and vanishes when it does not.

    A folder that holds the file `index` is a finished `what` ("dataset"). What a killed run left is cleared by the next.
    Raises OutputError when `out` is taken, cannot be written, or is being written by another process.
    """
    folder, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.replaced")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if old.is_dir() and not out.exists():  # killed between the two renames below
            old.rename(out)
        _check_free(out, index, what, overwrite)
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system when this process dies, however it dies
    except OSError:
        os.close(lock)
        raise OutputError(f"another run is writing {what} {out}: wait for it, or choose another folder") from None
    try:
        for leftover in folder.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield folder
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        folder.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # on any way out but success, Ctrl-C included; then it is `out`
        os.close(lock)


def _check_free(out: Path, index: str, what: str, overwrite: bool) -> None:
    """Raise OutputError unless `out` is absent, empty, or a finished one that may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out} is a file: choose a folder")
    if (out / index).is_file():
        if not overwrite:
            raise OutputError(f"{out} is a finished {what} already: choose another folder, or --overwrite it")
    elif any(out.iterdir()):
        raise OutputError(f"{out} has other things in it: choose an empty or new folder")
