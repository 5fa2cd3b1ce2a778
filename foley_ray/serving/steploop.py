"""One thread that steps the engine, and coroutines that wait for their candidates. Has never heard of Ray.

Candidates join and leave between steps: `sample` submits its own and waits; cancelled, it takes them out again before the next
step. A candidate that fails ends its own request alone.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Hashable, Mapping

import numpy as np

from foley_ray.diffusion.engine import Finished, SampleRequest, StepEngine
from foley_ray.errors import FoleyError, ReplicaLost


class StepLoop:
    """Owns an engine and the thread that steps it. `failure` is set once the device is lost, and nothing works after that.

    `on_step(duration_s, candidates)` is told of each call of the denoiser, and of (0, 0) when there is nothing left to do.
    """

    def __init__(self, engine: StepEngine, on_step: Callable[[float, int], None] = lambda duration_s, candidates: None):
        self.engine = engine
        self.on_step = on_step
        self.failure: BaseException | None = None
        self.steps = 0
        """Calls of the denoiser so far."""
        self._waiting: dict[Hashable, asyncio.Future[np.ndarray]] = {}  # touched on the event loop alone
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)
        self._thread.start()

    async def sample(self, requests: Mapping[Hashable, SampleRequest]) -> list[np.ndarray]:
        """Latents (C, W, H) in order. Raises PromptError, GenerationError, or ReplicaLost when the engine is broken."""
        self._loop = asyncio.get_running_loop()
        if self.failure is not None:
            raise ReplicaLost(f"this replica's device was lost: {self.failure}")
        futures = []
        try:
            for key, request in requests.items():
                self._waiting[key] = self._loop.create_future()
                futures.append(self._waiting[key])
                self.engine.submit(key, request)
            self._work.set()
            return list(await asyncio.gather(*futures))
        finally:
            for key in requests:
                self._waiting.pop(key, None)
                self.engine.cancel(key)

    def close(self) -> None:
        """Stop stepping; the thread ends after the step under way."""
        self._stopped = True
        self._work.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopped:
                if not len(self.engine):
                    self.on_step(0.0, 0)
                    self._work.wait()
                    self._work.clear()
                    continue
                started, candidates = time.perf_counter(), len(self.engine)
                finished = self.engine.step()
                self.steps += 1
                self.on_step(time.perf_counter() - started, candidates)
                if finished and self._loop is not None:
                    self._loop.call_soon_threadsafe(self._deliver, finished)
        except BaseException as error:  # whatever it is, waiting for this thread would be waiting for ever
            self.failure = error
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._fail_all)

    def _deliver(self, finished: list[Finished]) -> None:
        for item in finished:
            future = self._waiting.get(item.key)
            if future is None or future.done():
                continue
            if item.latent is not None:
                future.set_result(item.latent.cpu().numpy())
            else:
                future.set_exception(item.error or FoleyError("the engine finished a candidate without a latent"))

    def _fail_all(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ReplicaLost(f"this replica's device was lost: {self.failure}"))
