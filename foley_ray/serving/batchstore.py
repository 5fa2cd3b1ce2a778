"""Files and batches on disk, in the shapes of OpenAI's API. Knows neither HTTP nor Ray.

    DATA/files/file-ID/content, file.json                an upload, or what a batch made; file.json is written last
    DATA/batches/batch_ID/batch.json                     where the batch stands
    DATA/batches/batch_ID/results/000017.json            outcome of line 17, whole or absent: what is there is never made again;
                                                         removed once the output and the error file of the batch hold it

Names that a user chose are kept inside the JSON; paths are made of our own ids alone.
"""

import json
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from foley_ray.audio.files import replacing
from foley_ray.errors import OutputError
from foley_ray.serving.schemas import BadRequest

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
ENDED: tuple[Status, ...] = ("failed", "completed", "expired", "cancelled")


class FileObject(BaseModel):
    """An uploaded or finished file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class Counts(BaseModel):
    """Lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchObject(BaseModel):
    """A batch, as it is stored and as it is answered."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: dict[str, Any] | None = None
    input_file_id: str
    completion_window: str = "24h"
    status: Status = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    metadata: dict[str, str] | None = None

    def at(self, status: Status, **changes: Any) -> "BatchObject":
        """The same in another state, entered now."""
        stamp = {} if status == "validating" else {f"{status}_at": int(time.time())}
        return self.model_copy(update={"status": status, **stamp, **changes})


class Store:
    """One folder. Any number of processes may read and add; each batch has one that moves it on."""

    def __init__(self, root: Path):
        self.root = root
        try:
            for name in ("files", "batches"):
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot keep files and batches in {root}: {error.strerror or error}; choose another") from None

    # files

    def add_file(self, lines: Iterable[bytes], filename: str, purpose: str, file_id: str | None = None) -> FileObject:
        """Store a file's content, chunk by chunk. Raises OutputError if the disk does not take it."""
        file_id = file_id or f"file-{secrets.token_hex(12)}"
        folder = self.root / "files" / file_id
        with replacing(folder / "content") as temporary, temporary.open("wb") as out:
            for chunk in lines:
                out.write(chunk)
            size = out.tell()
        found = FileObject(id=file_id, bytes=size, created_at=int(time.time()), filename=filename, purpose=purpose)
        _write(folder / "file.json", found.model_dump_json())
        return found

    def file(self, file_id: str) -> FileObject:
        """Raises BadRequest (404) for a file that is not there."""
        return FileObject.model_validate_json(_read(self._place("files", file_id, "file") / "file.json", "file", file_id))

    def content(self, file_id: str) -> Path:
        """Where a file's bytes are. Raises BadRequest (404) for a file that is not there."""
        self.file(file_id)
        return self._place("files", file_id, "file") / "content"

    def files(self) -> list[FileObject]:
        """All files, newest first."""
        found = [FileObject.model_validate_json(path.read_text()) for path in self.root.glob("files/file-*/file.json")]
        return sorted(found, key=lambda item: (-item.created_at, item.id))

    def delete_file(self, file_id: str) -> None:
        """Raises BadRequest for a file that is not there (404), or that a batch still reads from (409)."""
        self.file(file_id)
        for batch in self.batches():
            if batch.input_file_id == file_id and batch.status not in ENDED:
                raise BadRequest(
                    f"file {file_id} is the input of batch {batch.id}, which is {batch.status}: cancel it, or let it end",
                    "file_in_use",
                    "file_id",
                    status=409,
                )
        folder = self._place("files", file_id, "file")
        (folder / "file.json").unlink()  # first: from here on it is not there
        shutil.rmtree(folder)

    # batches

    def add_batch(self, endpoint: str, input_file_id: str, metadata: dict[str, str] | None) -> BatchObject:
        """A batch to be worked on. Raises BadRequest (404) if its input is not there."""
        self.file(input_file_id)
        now = int(time.time())
        batch = BatchObject(
            id=f"batch_{secrets.token_hex(12)}",
            endpoint=endpoint,
            input_file_id=input_file_id,
            created_at=now,
            expires_at=now + 24 * 3600,
            metadata=metadata,
        )
        (self.root / "batches" / batch.id / "results").mkdir(parents=True)
        self.save(batch)
        return batch

    def batch(self, batch_id: str) -> BatchObject:
        """Raises BadRequest (404) for a batch that is not there."""
        return BatchObject.model_validate_json(
            _read(self._place("batches", batch_id, "batch") / "batch.json", "batch", batch_id)
        )

    def batches(self) -> list[BatchObject]:
        """All batches, newest first."""
        found = [BatchObject.model_validate_json(path.read_text()) for path in self.root.glob("batches/batch_*/batch.json")]
        return sorted(found, key=lambda item: (-item.created_at, item.id))

    def save(self, batch: BatchObject) -> None:
        """Write where a batch stands, whole or not at all."""
        _write(self._place("batches", batch.id, "batch") / "batch.json", batch.model_dump_json())

    # lines of a batch

    def lines(self, batch: BatchObject) -> Iterator[str]:
        """The input's lines that hold something. Raises BadRequest if it is not there, or is no UTF-8."""
        with self.content(batch.input_file_id).open(encoding="utf-8-sig") as file:  # Windows marks UTF-8 at its beginning
            try:
                yield from (line for line in file if line.strip())
            except UnicodeDecodeError as error:
                raise BadRequest(
                    f"file {batch.input_file_id} is no UTF-8 text, as its byte 0x{error.object[error.start]:02x} shows; "
                    "save it as UTF-8 (`>` of Windows PowerShell writes UTF-16)",
                    "invalid_encoding",
                    "input_file_id",
                ) from None

    def add_result(self, batch: BatchObject, line: int, outcome: dict[str, Any]) -> None:
        """Keep a line's outcome for good."""
        _write(self._results(batch) / f"{line:06d}.json", json.dumps(outcome))

    def finished_lines(self, batch: BatchObject) -> set[int]:
        """Lines with an outcome."""
        return {int(path.stem) for path in self._results(batch).glob("[0-9]*.json")}

    def results(self, batch: BatchObject, lines: set[int]) -> Iterator[dict[str, Any]]:
        """Outcomes of these lines, in the input's order."""
        for line in sorted(lines):
            yield json.loads((self._results(batch) / f"{line:06d}.json").read_text(encoding="utf-8"))

    def drop_results(self, batch: BatchObject) -> None:
        """Remove the outcomes of a batch that has ended; what resists stays."""
        shutil.rmtree(self._results(batch), ignore_errors=True)

    def _results(self, batch: BatchObject) -> Path:
        return self._place("batches", batch.id, "batch") / "results"

    def _place(self, kind: str, name: str, what: str) -> Path:
        if not re.fullmatch(r"(file-|batch_)[0-9a-f]{24}", name):
            raise _absent(what, name)
        return self.root / kind / name


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _read(path: Path, what: str, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _absent(what, name) from None


def _absent(what: str, name: str) -> BadRequest:
    return BadRequest(f"no {what} {name[:64]!r} here", "not_found", f"{what}_id", status=404)
