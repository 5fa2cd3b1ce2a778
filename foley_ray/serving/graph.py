"""A clip's way through the four deployments, as seen by who asks for it: draws, retries, timeouts, progress.

    condition -> sample -> vocode -> rank

The batch goes from replica to replica as a parcel, of which only the address passes here; the ranked candidates come back.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from uuid import uuid4

from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RaySystemError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from foley_ray.clip import Candidate, Clip, ClipRequest, draw_batch, ranked, settles, without_waves
from foley_ray.errors import FoleyError, Overloaded, ReplicaLost, TimedOut, Unavailable
from foley_ray.serving.metrics import ClipMetrics
from foley_ray.serving.settings import ServeSettings

LOST = (RayActorError, ObjectLostError, WorkerCrashedError, RaySystemError, ReplicaUnavailableError)
"""What Ray raises when a process or a node died with the work: nobody's fault, so the work is done again."""

PROGRESS_EVERY_S = 0.25
RETRY_AFTER_S = 0.5

OnProgress = Callable[[int, int], None]
"""Called with steps done and steps wanted of the current draw."""

Draw = tuple[list[Candidate], str | None]
"""A draw's candidates, best first, and what is doubtful about the prompt."""


class Graph:
    """Handles of the four deployments, and what is under way in them."""

    def __init__(
        self,
        settings: ServeSettings,
        condition: DeploymentHandle,
        sample: DeploymentHandle,
        vocode: DeploymentHandle,
        rank: DeploymentHandle,
        request_s: float | None = None,
    ):
        """`request_s` is what a request may take; with none, it may take as long as it does."""
        self.settings = settings
        self.request_s = request_s
        self.condition = condition
        self.sample = sample
        self.vocode = vocode
        self.rank = rank
        self.pending_candidates = 0
        self.metrics = ClipMetrics()
        self._progress = _Progress(sample)
        self._started = False

    async def require_started(self) -> None:
        """Raise Unavailable until each stage has had a replica, but for those that may have none. Later losses are retried."""
        if self._started:
            return
        applications = (await asyncio.to_thread(serve.status)).applications
        missing = []
        for name in ("condition", "sample", "vocode", "rank"):
            handle: DeploymentHandle = getattr(self, name)
            found = applications[handle.app_name].deployments.get(handle.deployment_name)
            if getattr(self.settings, name).min_replicas and not (found and found.replica_states.get("RUNNING")):
                missing.append(name)
        if missing:
            raise Unavailable(f"starting: no replica yet of {', '.join(missing)}")
        self._started = True

    async def clips(
        self, requests: list[ClipRequest], keep_all: bool = False, on_progress: OnProgress | None = None
    ) -> list[Clip]:
        """The clips in order, made side by side; cancelled together, and failing together with the first that fails.

        Raises PromptError, GenerationError, Overloaded, ReplicaLost when retries did not help, TimedOut.
        """
        counts = [(0, request.settings.steps * request.settings.candidates) for request in requests]

        def tell(index: int, done: int, wanted: int) -> None:
            if on_progress is not None:
                counts[index] = (done, wanted)
                on_progress(sum(done for done, _ in counts), sum(wanted for _, wanted in counts))

        with self._admitted(sum(request.settings.candidates for request in requests)):
            try:
                async with asyncio.timeout(self.request_s), asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._clip(request, keep_all, partial(tell, index) if on_progress else None))
                        for index, request in enumerate(requests)
                    ]
            except TimeoutError:
                batches = ", or use /v1/batches" if self.settings.data else ""
                raise TimedOut(
                    f"not finished within {self.request_s:g} s, the service's limit; ask for fewer candidates or steps{batches}"
                ) from None
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    @contextmanager
    def _admitted(self, candidates: int) -> Iterator[None]:
        """Count the work in, or refuse it now rather than let it wait longer than anybody listens."""
        limit = self.settings.limits.pending_candidates
        if self.pending_candidates and self.pending_candidates + candidates > limit:
            self.metrics.refused.inc()
            raise Overloaded(
                f"{self.pending_candidates} candidates are under way or waiting, and {limit} is the limit; try again shortly",
                retry_after_s=2,
            )
        self.pending_candidates += candidates
        try:
            yield
        finally:
            self.pending_candidates -= candidates

    async def _clip(self, request: ClipRequest, keep_all: bool, on_progress: OnProgress | None) -> Clip:
        """Draw candidates; draw again, with the next candidate indices, while the best one does not settle it."""
        candidates: list[Candidate] = []
        doubt: str | None = None
        started = time.monotonic()
        for draw in range(request.settings.max_redraws + 1):
            if draw:
                self.metrics.redraws.inc()
            drawn, doubt = await self._draw(request, draw, keep_all, on_progress)
            candidates = ranked([*candidates, *drawn])
            if not keep_all:  # the best of an earlier draw may have been beaten
                candidates = without_waves(candidates)
            if settles(request.settings, candidates[0]):
                break
        self.metrics.finished(time.monotonic() - started, candidates[0].score)
        return Clip(request, tuple(candidates), doubt)

    async def _draw(self, request: ClipRequest, draw: int, keep_all: bool, on_progress: OnProgress | None) -> Draw:
        """One draw; begun again when a replica dies with it, also if its successor takes a while to come.

        The seed is in the rows, so it becomes the same sound.
        """
        deaths, give_up = 0, time.monotonic() + self.settings.recovery_s
        while True:
            try:
                return await self._draw_once(request, draw, keep_all, on_progress)
            except ReplicaLost:
                deaths, give_up = deaths + 1, time.monotonic() + self.settings.recovery_s
                if deaths > self.settings.retries:
                    raise
                self.metrics.retries.inc()
            except Unavailable:
                if time.monotonic() > give_up:
                    raise
            await asyncio.sleep(RETRY_AFTER_S)

    async def _draw_once(self, request: ClipRequest, draw: int, keep_all: bool, on_progress: OnProgress | None) -> Draw:
        clip_id = uuid4().hex
        with self._progress.watched(clip_id, on_progress):
            parcel, doubt = await _answer(self.condition.remote(draw_batch([(clip_id, request)], draw)))
            parcel = await _answer(self.sample.remote(parcel))
            parcel = await _answer(self.vocode.remote(parcel))
            candidates: list[Candidate] = await _answer(self.rank.remote(parcel, keep_all))
        return candidates, doubt


async def _answer(response: DeploymentResponse[Any]) -> Any:
    """What the replica answers; who stops waiting for it takes the work back. Raises what went wrong, as `named` tells it."""
    try:
        return await response
    except BaseException as error:
        with suppress(Exception):  # a response that has failed raises its error here once more
            response.cancel()
        if isinstance(error, Exception):
            raise named(error) from error
        raise


class _Progress:
    """Asks the sampling replicas how far they are, as long as somebody wants to know."""

    def __init__(self, sample: DeploymentHandle):
        self.sample = sample
        self.watchers: dict[str, OnProgress] = {}
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def watched(self, clip_id: str, on_progress: OnProgress | None) -> Iterator[None]:
        """Within this block `on_progress` is told about the clip."""
        if on_progress is None:
            yield
            return
        self.watchers[clip_id] = on_progress
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        try:
            yield
        finally:
            del self.watchers[clip_id]

    async def _poll(self) -> None:
        while self.watchers:
            try:
                answers = await self.sample.broadcast("progress").results_async(timeout_s=5, return_exceptions=True)
            except Exception:  # progress is a courtesy: the clip itself says what is wrong
                answers = []
            for answer in answers:
                if isinstance(answer, dict):
                    for clip_id, (done, wanted) in answer.items():
                        if clip_id in self.watchers:
                            self.watchers[clip_id](done, wanted)
            await asyncio.sleep(PROGRESS_EVERY_S)


def named(error: BaseException) -> BaseException:
    """What happened, out of what Ray makes of it: an error of ours as it was raised, else a lost replica, else the error."""
    causes = list(_causes(error))
    for cause in reversed(causes):  # Ray's copies carry a whole traceback as their text; the innermost is the one we raised
        if isinstance(cause, FoleyError):
            return cause
    for cause in causes:
        if isinstance(cause, BackPressureError):
            return Overloaded("too many requests are waiting; try again shortly", retry_after_s=2)
        if isinstance(cause, DeploymentUnavailableError):
            return Unavailable("a part of the service has no replica at the moment; try again shortly")
    for cause in causes:
        if isinstance(cause, LOST):
            return ReplicaLost("a replica died while it worked on this, also after retries; try again shortly")
    return error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it: by Ray's `cause`, as the only argument of a copy that Ray made, or by `__cause__`."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        inner = (getattr(error, "cause", None), *error.args[:1])
        error = next((item for item in inner if isinstance(item, BaseException)), error.__cause__)
