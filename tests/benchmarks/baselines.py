"""What bench_serve.py measures the service against, as deployments. Knows nothing of how it is measured."""

import asyncio
import base64
import time
from pathlib import Path
from typing import Any

import torch
from fastapi import Request
from ray import serve
from ray.serve.handle import DeploymentHandle

from foley_ray.audio.encode import Encoding, encode
from foley_ray.audio.wave import resample
from foley_ray.clip import OUTPUT_RATE_HZ, Clip, ClipRequest, draw_batch
from foley_ray.columns import Batch
from foley_ray.pipeline import GROUP_CLIPS, Pipeline
from foley_ray.serving.graph import Graph
from foley_ray.serving.schemas import GenerateBody
from foley_ray.serving.settings import Limits, ServeSettings


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000)
class Whole:
    """The plain way: whole requests in batches, all four stages in one replica; the next batch waits until the last is done.

    Kinder to it than padding all to the longest: within a batch, whoever has made its steps costs nothing more.
    """

    def __init__(self, model: Path):
        torch.set_num_threads(1)
        self.pipeline = Pipeline(model)

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = GenerateBody.model_validate(await request.json())
        clip: Clip = await self.together(ClipRequest(body.prompt, body.seed or 0, body.settings(Limits())))
        data = await asyncio.to_thread(self.encoded, clip, Encoding(body.format))
        return {"score": clip.scores, "audio": base64.b64encode(data).decode()}

    @serve.batch(max_batch_size=GROUP_CLIPS, batch_wait_timeout_s=0.01)
    async def together(self, requests: list[ClipRequest]) -> list[Clip]:
        return await asyncio.to_thread(lambda: list(self.pipeline.generate(requests)))

    def encoded(self, clip: Clip, encoding: Encoding) -> bytes:
        wave_T = resample(clip.wave_T, self.pipeline.info.model.audio.sample_rate_hz, OUTPUT_RATE_HZ)
        return encode(wave_T, OUTPUT_RATE_HZ, encoding)


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Empty:
    """A stage that does nothing: what is left of a hop is Serve's own."""

    async def __call__(self, batch: Batch) -> Batch:
        return batch


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Probe:
    """Stands where the ingress stands, without HTTP, and measures its own calls of the graph, in seconds."""

    def __init__(
        self,
        args: ServeSettings,
        condition: DeploymentHandle,
        sample: DeploymentHandle,
        vocode: DeploymentHandle,
        rank: DeploymentHandle,
        empty: list[DeploymentHandle],
    ):
        self.calls = Graph(args, condition, sample, vocode, rank)
        self.stages = empty

    async def graph(self, clip: ClipRequest, times: int) -> list[float]:
        took = []
        for _ in range(times):
            began = time.perf_counter()
            await self.calls.clips([clip])
            took.append(time.perf_counter() - began)
        return took

    async def empty(self, clip: ClipRequest, times: int) -> list[float]:
        """The same calls, one after the other, through stages that do nothing."""
        took = []
        for _ in range(times):
            began = time.perf_counter()
            passed: Any = draw_batch([("probe", clip)], 0)
            for stage in self.stages:
                passed = await stage.remote(passed)
            took.append(time.perf_counter() - began)
        return took

    async def hops(self, clip: ClipRequest, times: int) -> list[list[float]]:
        """Of each stage by itself, with its way there and back."""
        took = []
        for _ in range(times):
            batch, row = draw_batch([("probe", clip)], 0), []
            for name in ("condition", "sample", "vocode", "rank"):
                more = (False,) if name == "rank" else ()
                began = time.perf_counter()
                batch = await getattr(self.calls, name).remote(batch, *more)
                row.append(time.perf_counter() - began)
                batch = batch[0] if name == "condition" else batch
            took.append(row)
        return took
