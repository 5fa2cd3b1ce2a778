"""What Prometheus is told beside Serve's own figures (queues, replicas, latency of each deployment). Ray prefixes ray_.

foley_stage_seconds, foley_stage_batch_requests    condition, vocode, rank: one call, and how many clips it served
foley_sample_step_seconds, _steps, _candidates     one call of the denoiser; calls; candidates that shared the last one
foley_clip_seconds, foley_clip_score               of each finished clip, redraws included
foley_redraws, foley_retries, foley_refused        draws beyond the first; draws repeated after a lost replica; answers 429
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ray.util.metrics import Counter, Gauge, Histogram

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]
REQUESTS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
SCORES = [0.1 * tenth for tenth in range(1, 10)]


class StageMetrics:
    """Of one batching stage."""

    def __init__(self, stage: str):
        self._seconds = Histogram("foley_stage_seconds", "one call of a stage", boundaries=SECONDS, tag_keys=("stage",))
        self._requests = Histogram("foley_stage_batch_requests", "clips in a call", boundaries=REQUESTS, tag_keys=("stage",))
        self._tags = {"stage": stage}

    @contextmanager
    def call(self, requests: int) -> Iterator[None]:
        """Measure the call inside the block."""
        started = time.perf_counter()
        yield
        self._seconds.observe(time.perf_counter() - started, self._tags)
        self._requests.observe(requests, self._tags)


class SampleMetrics:
    """Of the step engine."""

    def __init__(self) -> None:
        self._seconds = Histogram("foley_sample_step_seconds", "one call of the denoiser", boundaries=SECONDS)
        self._steps = Counter("foley_sample_steps", "calls of the denoiser")
        self._candidates = Gauge("foley_sample_candidates", "candidates that shared the last call")

    def step(self, duration_s: float, candidates: int) -> None:
        """One call was made, or with no candidates none, since nobody waits any more."""
        self._candidates.set(candidates)
        if candidates:
            self._seconds.observe(duration_s)
            self._steps.inc()


class ClipMetrics:
    """Of whole clips, seen from the ingress."""

    def __init__(self) -> None:
        self._seconds = Histogram("foley_clip_seconds", "from request to ranked clip", boundaries=SECONDS)
        self._score = Histogram("foley_clip_score", "CLAP score of the best candidate", boundaries=SCORES)
        self.redraws = Counter("foley_redraws", "draws made because none reached the threshold, or all were near copies")
        self.retries = Counter("foley_retries", "draws begun again after a replica was lost")
        self.refused = Counter("foley_refused", "requests answered 429 because too much was waiting")

    def finished(self, duration_s: float, score: float) -> None:
        """A clip is ready."""
        self._seconds.observe(duration_s)
        self._score.observe(score)
