"""Works batches off, line by line, beside interactive requests. One replica: each batch has one process that moves it on.

Whatever stops it (a crash, a restart, a new version), it looks at the disk when it comes back and does what has no outcome yet.
"""

import asyncio
import json
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray.serve.handle import DeploymentHandle

from foley_ray.checkpoint import read_info, shipped_model
from foley_ray.errors import OutputError, Overloaded, Unavailable
from foley_ray.serving.batchstore import ENDED, BatchObject, Counts, Status, Store
from foley_ray.serving.generation import Generation
from foley_ray.serving.graph import Graph
from foley_ray.serving.guard import answer
from foley_ray.serving.schemas import BadRequest, GenerateBody, error_body
from foley_ray.serving.settings import ServeSettings
from foley_ray.settings import describe

MAX_ERRORS = 100
PATIENCE_S = 60.0
UNMADE: dict[str, str] = {
    "cancelled": "the batch was cancelled before this line was made",
    "expired": "the batch's time was over before this line was made; send it again in a new batch",
}
log = logging.getLogger("ray.serve")


class Line(BaseModel):
    """A line of a batch's input file."""

    model_config = ConfigDict(extra="forbid")

    custom_id: str = Field(min_length=1, max_length=512)
    method: str
    url: str
    body: dict[str, Any]


class BatchRunner:
    """The deployment. It takes orders from the ingress and remembers nothing that is not on disk."""

    def __init__(
        self,
        settings: ServeSettings,
        condition: DeploymentHandle,
        sample: DeploymentHandle,
        vocode: DeploymentHandle,
        rank: DeploymentHandle,
    ):
        assert settings.data is not None, "built only where there is a data folder"
        self.settings = settings
        self.store = Store(settings.data)
        graph = Graph(settings, condition, sample, vocode, rank)  # a line may take what the batch has left
        self.generation = Generation(graph, read_info(settings.model or shipped_model()), settings.limits)
        self.slots = asyncio.Semaphore(settings.batch_concurrency)
        self.running: dict[str, asyncio.Task[None]] = {}
        self.ending: set[str] = set()
        for batch in reversed(self.store.batches()):
            if batch.status in ENDED:
                self.store.drop_results(batch)  # where that was all that was left to do
            else:
                self._start(batch)

    async def run(self, batch_id: str) -> None:
        """Begin a batch that has been stored."""
        batch = self.store.batch(batch_id)
        if batch_id not in self.running and batch.status not in ENDED:
            self._start(batch)

    async def cancel(self, batch_id: str) -> BatchObject:
        """Lines under way leave at the next step; what is finished is kept and handed out. Raises BadRequest."""
        batch = self.store.batch(batch_id)
        if batch.status == "cancelling":
            return batch
        if batch.status in ENDED or batch_id in self.ending:
            status = batch.status if batch.status in ENDED else "ending"
            raise BadRequest(f"batch {batch_id} is {status} already and cannot be cancelled", "not_running", "batch_id", 409)
        batch = batch.at("cancelling")
        self.store.save(batch)
        if task := self.running.get(batch_id):
            task.cancel()
            await asyncio.wait({task})
        self._start(batch)
        return batch

    def _start(self, batch: BatchObject) -> None:
        task = asyncio.get_running_loop().create_task(self._work(batch.id, batch.expires_at))
        self.running[batch.id] = task
        task.add_done_callback(lambda _: self.running.get(batch.id) is task and self.running.pop(batch.id))

    async def _work(self, batch_id: str, expires_at: int) -> None:
        """From wherever the batch stands to its end. Nothing else moves it on, so it comes there whatever goes wrong."""
        pause_s = 1.0
        while True:
            try:
                try:
                    await self._advance(batch_id)
                except Exception as error:
                    if isinstance(error, OSError | OutputError) and time.time() < expires_at:
                        raise
                    await self._fail(batch_id, error)
                return
            except (OSError, OutputError) as error:  # a full disk, say, which could not take the end of the batch either
                log.warning("batch %s is tried again in %g s: %s", batch_id, pause_s, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PATIENCE_S)

    async def _advance(self, batch_id: str) -> None:
        """Validate, generate, finish: what of it is still to be done."""
        batch = self.store.batch(batch_id)
        if batch.status in ENDED:
            return
        if batch.status == "validating":
            total, errors = await asyncio.to_thread(self._validate, batch)
            if errors:
                await self._end(batch_id, "failed", errors)
                return
            batch = batch.at("in_progress", request_counts=Counts(total=total))
            self.store.save(batch)
        end: Status = "cancelled" if batch.status == "cancelling" else "completed"
        if batch.status == "in_progress" and not await self._generate_in_time(batch):
            end = "expired"
        await self._end(batch_id, end)

    async def _fail(self, batch_id: str, error: Exception) -> None:
        """End a batch that cannot go on; what it made is handed out."""
        said = json.loads(bytes(answer(error, batch_id).body))["error"]
        errors = [{"code": said["code"], "message": said["message"], "param": said["param"], "line": None}]
        try:
            await self._end(batch_id, "failed", errors)
        except ValueError as torn:  # an outcome that a power failure left half written
            log.error("batch %s cannot hand out what it made", batch_id, exc_info=torn)
            self.store.save(_failed(self.store.batch(batch_id), errors))

    async def _generate_in_time(self, batch: BatchObject) -> bool:
        """False where the batch's time is over first."""
        left_s = batch.expires_at - time.time()
        if left_s <= 0:
            return False
        try:
            async with asyncio.timeout(left_s) as limit:
                await self._generate(batch)
        except TimeoutError:
            if not limit.expired():  # the disk's, not ours
                raise
            return False
        return True

    async def _end(self, batch_id: str, end: Status, errors: Sequence[dict[str, Any]] = ()) -> None:
        """Finish in a thread, which cannot be stopped: meanwhile the batch is not cancelled, or two would write it."""
        self.ending.add(batch_id)
        try:
            await asyncio.to_thread(self._finish, batch_id, end, errors)
        finally:
            self.ending.discard(batch_id)

    def _validate(self, batch: BatchObject) -> tuple[int, list[dict[str, Any]]]:
        """Check every line's form before any is made: how many lines there are, and what is wrong where. Raises BadRequest."""
        errors, seen, total = list[dict[str, Any]](), set[str](), 0
        for number, text in enumerate(self.store.lines(batch), start=1):
            total = number
            problem = _problem(text, batch.endpoint, seen)
            if problem is None and number > self.settings.limits.batch_lines:
                problem = ("too_many_lines", f"more than {self.settings.limits.batch_lines} lines, this service's limit")
            if problem is not None:
                errors.append({"code": problem[0], "message": problem[1], "param": None, "line": number})
                if len(errors) == MAX_ERRORS or problem[0] == "too_many_lines":
                    break
        if not total:
            errors.append({"code": "empty_file", "message": "the input file holds no line", "param": None, "line": None})
        return total, errors

    async def _generate(self, batch: BatchObject) -> None:
        """Make what has no outcome yet. Raises BadRequest where the input is not what it was, OutputError for a disk."""
        finished = self.store.finished_lines(batch)
        try:
            async with asyncio.TaskGroup() as group:
                for number, text in enumerate(self.store.lines(batch)):
                    if number not in finished:
                        line = Line.model_validate_json(text)
                        await self.slots.acquire()
                        task = group.create_task(self._line(batch, number, line))
                        task.add_done_callback(lambda _: self.slots.release())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _line(self, batch: BatchObject, number: int, line: Line) -> None:
        request_id = f"{batch.id}-{number}"
        try:
            body = GenerateBody.model_validate(line.body)
            if body.stream or body.response != "json":
                raise BadRequest("a batch line cannot stream, and its response is 'json'", param="body")
            made = await self._patiently(body, request_id)
            status, content = 200, made.model_dump(mode="json")
        except ValidationError as error:
            status, content = 422, error_body(describe(error), "invalid_request_error", "invalid_body", "body")
        except Exception as error:  # this line's own failure, whatever it is
            refusal = answer(error, request_id)
            status, content = refusal.status_code, json.loads(bytes(refusal.body))
        outcome = {
            "id": f"batch_req_{batch.id}_{number}",
            "custom_id": line.custom_id,
            "response": {"status_code": status, "request_id": request_id, "body": content},
            "error": None,
        }
        await asyncio.to_thread(self.store.add_result, batch, number, outcome)
        self._count(batch, status)

    async def _patiently(self, body: GenerateBody, request_id: str) -> Any:
        """A batch has time: it gives way while the service is full or has no replica."""
        pause_s = 1.0
        while True:
            try:
                return await self.generation.native(body, request_id)
            except (Overloaded, Unavailable):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PATIENCE_S)

    def _count(self, batch: BatchObject, status: int) -> None:
        current = self.store.batch(batch.id)
        name = "completed" if status == 200 else "failed"
        counts = current.request_counts
        counts = counts.model_copy(update={name: getattr(counts, name) + 1})
        self.store.save(current.model_copy(update={"request_counts": counts}))

    def _finish(self, batch_id: str, end: Status, errors: Sequence[dict[str, Any]]) -> None:
        """Put outcomes together into the output and the error file. Their ids follow from the batch's: again is the same."""
        batch = self.store.batch(batch_id)
        if end == "completed":
            self.store.save(batch := batch.at("finalizing"))
        finished = self.store.finished_lines(batch)  # read once: what a thread still writes must not fall between the two
        counts = {True: 0, False: 0}
        unmade = 0

        def outcomes(good: bool) -> Iterator[bytes]:
            nonlocal unmade
            for outcome in self.store.results(batch, finished):
                if (outcome["response"]["status_code"] == 200) == good:
                    counts[good] += 1
                    yield json.dumps(outcome).encode() + b"\n"
            if not good and end in UNMADE and batch.in_progress_at:  # before that nobody has checked the lines
                for number, text in enumerate(self.store.lines(batch)):
                    if number not in finished:
                        unmade += 1
                        yield json.dumps(_unmade(batch, number, text, end)).encode() + b"\n"

        ids: dict[str, str | None] = {}
        for name, good, letter in (("output_file_id", True, "0"), ("error_file_id", False, "e")):
            file_id = f"file-{batch.id.removeprefix('batch_')[:-1]}{letter}"
            self.store.add_file(outcomes(good), f"{batch.id}_{name.split('_')[0]}.jsonl", "batch_output", file_id)
            kept = counts[good] or (unmade and not good)
            ids[name] = file_id if kept else None
            if not kept:
                self.store.delete_file(file_id)
        total = batch.request_counts.total
        found = Counts(total=total, completed=counts[True], failed=counts[False])
        batch = batch.model_copy(update={"request_counts": found, **ids})
        self.store.save(_failed(batch, errors) if errors else batch.at(end))
        self.store.drop_results(batch)


def _failed(batch: BatchObject, errors: Sequence[dict[str, Any]]) -> BatchObject:
    return batch.at("failed", errors={"object": "list", "data": list(errors)})


def _unmade(batch: BatchObject, number: int, text: str, end: Status) -> dict[str, Any]:
    """The row of a line that the batch ended without, as OpenAI's error files have it."""
    return {
        "id": f"batch_req_{batch.id}_{number}",
        "custom_id": Line.model_validate_json(text).custom_id,
        "response": None,
        "error": {"code": f"batch_{end}", "message": UNMADE[end]},
    }


def _problem(text: str, endpoint: str, seen: set[str]) -> tuple[str, str] | None:
    """(code, message) of what is wrong with a line's form; its id joins `seen`."""
    try:
        line = Line.model_validate_json(text)
    except ValidationError as error:
        return "invalid_json_line", describe(error)
    if line.method != "POST" or line.url != endpoint:
        return "mismatched_endpoint", f"{line.method} {line.url[:80]}: the batch is for POST {endpoint}"
    if line.custom_id in seen:
        return "duplicate_custom_id", f"custom_id {line.custom_id[:80]!r} is there twice"
    seen.add(line.custom_id)
    return None
