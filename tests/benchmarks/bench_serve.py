"""The service under load: what sharing UNet calls between requests buys, what the graph costs, overload, scaling, memory.

    python tests/benchmarks/bench_serve.py [--model MODEL] [--what batching,overhead,overload,autoscaling,memory]

batching     the same weights, HTTP and requests of 8 to 40 steps behind one sampling replica that takes one clip at a time,
             behind a plain `@serve.batch` whose batches of whole requests come and go together (baselines.py), and behind the
             step engine
overhead     the graph's four hops, and HTTP, over the pipeline in one process; one request at a time
overload     three times the peak rate offered: the share of peak goodput that is kept, and how soon the rest are refused
autoscaling  running replicas of each deployment under load and after it
memory       what each process holds, over --requests requests

Without --model a tiny one with random weights is made. Numbers are this machine's; the ratios are what to look at.
"""

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch
from baselines import Empty, Probe, Whole
from ray import serve

from foley_ray.checkpoint import ModelInfo, save_model
from foley_ray.clip import ClipRequest, draw_batch
from foley_ray.config import ClipSettings
from foley_ray.data.cluster import ensure_ray
from foley_ray.models.clap import Clap
from foley_ray.models.tuning import Tuning
from foley_ray.models.unet import build_unet
from foley_ray.models.vae import build_vae
from foley_ray.models.vocoder import build_vocoder
from foley_ray.pipeline import Pipeline
from foley_ray.presets import tiny
from foley_ray.serving.app import build_app
from foley_ray.serving.deployments import STAGES
from foley_ray.serving.settings import ServeSettings

PORT = 8765
GENERATE = f"http://127.0.0.1:{PORT}/v1/audio/generate"
WHOLE = f"http://127.0.0.1:{PORT}/whole"
DEPLOYMENTS = ("Ingress", "Condition", "Sample", "Vocode", "Rank")
ONE = {"prompt": "rain", "seed": 1, "duration_s": 1.0, "candidates": 1, "steps": 8}

Body = dict[str, Any]
Answer = tuple[int, float]
"""Status, and seconds until it was there."""


def make_tiny(folder: Path) -> Path:
    """A complete tiny model, random weights."""
    torch.manual_seed(0)
    config = tiny().model
    parts = {
        "clap": Clap(config.clap),
        "tuning": Tuning(config.tuning, config.clap.embed_dim),
        "unet": build_unet(config),
        "vae": build_vae(config),
        "vocoder": build_vocoder(config),
    }
    save_model(folder, ModelInfo(preset="tiny", model=config), parts)
    return folder


def settings(model: Path, pending: int = 10_000, **sample: Any) -> ServeSettings:
    """One replica of each, which asks for no core; `sample` is about sampling."""
    stage = {"num_cpus": 0, "max_replicas": 1}
    given: dict[str, Any] = {"model": model, "ingress": {"max_replicas": 1}, "limits": {"pending_candidates": pending}}
    given |= dict.fromkeys(("condition", "vocode", "rank"), stage)
    given["sample"] = stage | {"max_queued_requests": 10_000} | sample
    return ServeSettings.model_validate(given)


def deploy(app: serve.Application) -> None:
    """Put an application in the place of the one before it, and let it work once."""
    serve.run(app, name="foley", route_prefix="/")
    asyncio.run(closed_loop([ONE] * 8, clients=2))


def mixed(seed: int = 0) -> Iterator[Body]:
    """Clips of 1 s and 8 to 40 steps, without end."""
    steps = random.Random(seed)
    return ({**ONE, "seed": seed, "steps": steps.choice((8, 12, 20, 40))} for seed in count())


async def ask(http: aiohttp.ClientSession, body: Body, url: str = GENERATE) -> Answer:
    """One request."""
    began = time.perf_counter()
    async with http.post(url, json=body) as answer:
        await answer.read()
        return answer.status, time.perf_counter() - began


def session() -> aiohttp.ClientSession:
    """With as many connections as it takes."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(600))


async def closed_loop(bodies: list[Body], clients: int, url: str = GENERATE) -> tuple[float, list[float]]:
    """Clients that each ask again when answered: clips per second, and each one's latency."""
    waiting, latencies = iter(bodies), []

    async def client(http: aiohttp.ClientSession) -> None:
        for body in waiting:
            status, took = await ask(http, body, url)
            assert status == 200, status
            latencies.append(took)

    began = time.perf_counter()
    async with session() as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return len(bodies) / (time.perf_counter() - began), latencies


async def open_loop(bodies: Iterator[Body], rate: float, duration_s: float) -> tuple[float, list[Answer]]:
    """Requests at a rate, whatever becomes of them: clips per second until the last one is there, and all answers."""
    tasks: list[asyncio.Task[Answer]] = []
    async with session() as http:
        began = time.perf_counter()
        while (due := len(tasks) / rate) < duration_s:
            await asyncio.sleep(began + due - time.perf_counter())
            tasks.append(asyncio.create_task(ask(http, next(bodies))))
        answers = await asyncio.gather(*tasks)
    good = [number / rate + took for number, (status, took) in enumerate(answers) if status == 200]
    return len(good) / max(good), answers


def spread(values: list[float]) -> str:
    """Median and 95th percentile."""
    if len(values) < 2:
        return f"{len(values)} of them"
    return f"p50 {statistics.median(values):7.3f} s   p95 {statistics.quantiles(values, n=20)[-1]:7.3f} s"


def batching(model: Path, requests: int, clients: int, rounds: int = 3) -> None:
    """Step-level batching, whole requests in batches, one at a time: in turns, so that all see the same machine."""
    deploy(build_app(settings(model)))
    serve.run(Whole.bind(model), name="whole", route_prefix="/whole")
    ways = {"one at a time": (GENERATE, 1), "whole requests": (WHOLE, clients), "step by step": (GENERATE, clients)}
    bodies = mixed()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    latencies: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):  # the first is for warming up: every batch size once
        some = [next(bodies) for _ in range(requests)]
        for name, (url, each) in ways.items():
            before = cpu_s()
            rate, took = asyncio.run(closed_loop(some, each, url))
            if round_:
                rates[name].append(rate)
                spent[name].append((sum(cpu_s().values()) - sum(before.values())) / requests)
                latencies[name] += took
    print(f"\n{rounds} times {requests} requests of 8 to 40 steps from {clients} clients, 1 candidate of 1 s each, one sampler")
    for name in ways:
        rate, cpu_ms = statistics.median(rates[name]), 1e3 * statistics.median(spent[name])
        print(f"  {name:14}  {rate:6.2f} clips/s   {cpu_ms:5.0f} ms CPU a clip   {spread(latencies[name])}")
    for name in ("one at a time", "whole requests"):
        ratios = [mine / theirs for mine, theirs in zip(rates["step by step"], rates[name], strict=True)]
        print(f"  step by step / {name}: {statistics.median(ratios):.2f} times the clips per second")
    one, full = (denoiser_s(model, candidates) for candidates in (1, 8))
    print(
        f"  the denoiser's own ceiling: {1e3 * one:.1f} ms CPU a step of one, {1e3 * full:.1f} each of eight: {one / full:.2f}"
    )
    serve.delete("whole")
    serve.delete("foley")


def denoiser_s(model: Path, candidates: int) -> float:
    """CPU time of a step, for each of so many candidates that share it."""
    torch.set_num_threads(1)
    pipeline = Pipeline(model)
    clip = ClipRequest("rain", 1, ClipSettings(duration_s=1.0, candidates=candidates, steps=20))
    requests = pipeline.sample.requests(pipeline.condition(draw_batch([("clip", clip)], 0)))
    times = []
    for key, request in enumerate(requests):
        pipeline.sample.engine.submit(key, request)
    while len(pipeline.sample.engine):
        began = time.process_time()
        pipeline.sample.engine.step()
        times.append((time.process_time() - began) / candidates)
    return statistics.median(times)


def overhead(model: Path, requests: int = 15, rounds: int = 4) -> None:
    """The graph and the service against the pipeline in this process."""
    torch.set_num_threads(1)  # as a replica without cores of its own
    clip = ClipRequest("rain", 1, ClipSettings(duration_s=1.0, candidates=1, steps=8))
    args = settings(model)
    handles = {
        name: serve.deployment(kind, name=kind.__name__, **getattr(args, name).options()).bind(args)
        for name, kind in STAGES.items()
    }
    empty = [Empty.options(name=f"Empty{number}").bind() for number in range(len(STAGES))]
    probe = serve.run(Probe.bind(args, **handles, empty=empty), name="probe", route_prefix=None)
    pipeline = Pipeline(model)

    def inside() -> float:
        began = time.perf_counter()
        list(pipeline.generate([clip]))
        return time.perf_counter() - began

    alone, graph, empties = [], [], []
    for round_ in range(rounds + 1):  # in turns, so that both see the same machine; the first is for warming up
        found = (
            [inside() for _ in range(requests)],
            *(call.remote(clip, requests).result() for call in (probe.graph, probe.empty)),
        )
        if round_:
            alone, graph, empties = alone + found[0], graph + found[1], empties + found[2]
    stages = [min(times) for times in zip(*probe.hops.remote(clip, requests).result(), strict=True)]
    serve.delete("probe")
    deploy(build_app(args))
    _, served = asyncio.run(closed_loop([ONE] * requests * 2, clients=1))
    print(f"\none request at a time: p50 of {requests * rounds}, and the least disturbed of them, in ms")
    for name, times in {
        "pipeline in one process": alone,
        "graph, from a replica": graph,
        "service, over HTTP": served,
        "four hops that do nothing": empties,
    }.items():
        print(f"  {name:26}{1e3 * statistics.median(times):8.1f}{1e3 * min(times):8.1f}")
    extra = [1e3 * (measure(graph) - measure(alone)) for measure in (statistics.median, min)]
    print(f"  four hops                 {extra[0]:8.1f}{extra[1]:8.1f}")
    print(
        "  each hop alone, at best: " + "  ".join(f"{name} {1e3 * took:.1f}" for name, took in zip(STAGES, stages, strict=True))
    )
    serve.delete("foley")


def overload(model: Path, requests: int, clients: int, factor: float = 3.0, rounds: int = 2) -> None:
    """The peak, then three times as many requests as that, in turns."""
    deploy(build_app(settings(model, pending=clients)))
    bodies = mixed()
    peaks, kept, answers = [], [], list[Answer]()
    for _ in range(rounds):
        peaks.append(asyncio.run(closed_loop([next(bodies) for _ in range(requests)], clients))[0])
        rate, found = asyncio.run(open_loop(bodies, factor * peaks[-1], requests / peaks[-1]))
        kept.append(rate)
        answers += found
    good = [took for status, took in answers if status == 200]
    refused = [took for status, took in answers if status == 429]
    others = len(answers) - len(good) - len(refused)
    print(f"\npeak with {clients} under way, then {factor:g} times that offered for as long; {rounds} rounds")
    print(f"  {len(answers)} requests: {len(good)} answered 200, {len(refused)} answered 429, {others} otherwise")
    print("  peak    " + "".join(f"{rate:7.2f}" for rate in peaks) + f" clips/s   200: {spread(good)}")
    shares = [f"{rate / peak:.0%}" for rate, peak in zip(kept, peaks, strict=True)]
    print("  goodput " + "".join(f"{rate:7.2f}" for rate in kept) + f" clips/s: {', '.join(shares)} of the peak")
    print(f"  429: {spread(refused)}")
    serve.delete("foley")


def replicas() -> dict[str, int]:
    """Running replicas of each deployment."""
    deployments = serve.status().applications["foley"].deployments
    return {name: deployments[name].replica_states.get("RUNNING", 0) for name in DEPLOYMENTS}


def autoscaling(model: Path, load_s: float = 60.0, after_s: float = 90.0) -> None:
    """Sampling replicas under load and after it, beside the other deployments', which may grow as well."""
    scaling = {"upscale_delay_s": 2, "downscale_delay_s": 5, "look_back_period_s": 4}
    stages = {name: {"num_cpus": 0, "max_replicas": 2, **scaling} for name in STAGES}
    stages["sample"] |= {"target_ongoing_requests": 2, "max_ongoing_requests": 4}
    deploy(build_app(ServeSettings.model_validate({"model": model, "ingress": {"max_replicas": 1}, **stages})))
    print("\nrunning replicas: load of 6 clients, then none; each stage may have two")
    print(f"  {'seconds':>12} " + "".join(f"{name:>11}" for name in DEPLOYMENTS))
    began, most = time.monotonic(), dict.fromkeys(DEPLOYMENTS, 0)

    async def client(http: aiohttp.ClientSession, seed: int) -> None:
        while time.monotonic() < began + load_s and most["Sample"] < 2:
            await ask(http, {**ONE, "seed": seed, "candidates": 2, "steps": 60})

    async def watch() -> None:
        shown: dict[str, int] = {}
        loaded = True
        while (passed := time.monotonic() - began) < load_s + after_s:
            if (now := await asyncio.to_thread(replicas)) != shown:
                shown = now
                print(
                    f"  {passed:7.0f} {'load' if loaded else 'idle'} " + "".join(f"{now[name]:>11}" for name in DEPLOYMENTS),
                    flush=True,
                )
            most.update({name: max(most[name], now[name]) for name in DEPLOYMENTS})
            loaded = loaded and passed < load_s and most["Sample"] < 2
            if not loaded and now["Sample"] == 1:
                return
            await asyncio.sleep(0.5)

    async def play() -> None:
        async with session() as http:
            await asyncio.gather(watch(), *(client(http, seed) for seed in range(6)))

    asyncio.run(play())
    print(f"  at most: {most}; afterwards: {replicas()}")
    serve.delete("foley")


def processes() -> Iterator[tuple[str, Path]]:
    """Name and folder in /proc of each process of Serve."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may have ended
            name = (process / "cmdline").read_text().split("\0")[0].split(".")[0].strip().removeprefix("ray::")
            if name.startswith(("ServeReplica:", "ServeController", "ProxyActor")):
                yield name.rpartition(":")[2], process


def held() -> dict[str, float]:
    """MiB of its own that each process of Serve holds."""
    text = {name: (process / "status").read_text() for name, process in processes()}
    return {name: int(status.split("RssAnon:")[1].split()[0]) / 1024 for name, status in text.items()}


def cpu_s() -> dict[str, float]:
    """Seconds of CPU that each process of Serve has had."""
    fields = {name: (process / "stat").read_text().rpartition(")")[2].split() for name, process in processes()}
    return {name: (int(found[11]) + int(found[12])) / os.sysconf("SC_CLK_TCK") for name, found in fields.items()}


def memory(model: Path, requests: int, clients: int) -> None:
    """Over many small requests. The slope is that of the second half: the first fills pools and caches."""
    deploy(build_app(settings(model)))
    points, rounds = [held()], 20
    print(f"\nmemory over {requests} requests, MiB that each process holds of its own (RssAnon)")
    for round_ in range(1, rounds + 1):
        asyncio.run(closed_loop([{**ONE, "duration_s": 0.5, "steps": 1}] * (requests // rounds), clients))
        points.append(held())
        if round_ % 5 == 0:
            print(
                f"  {requests * round_ // rounds:6}  "
                + "  ".join(f"{name} {mib:.0f}" for name, mib in sorted(points[-1].items()))
            )
    thousands = np.arange(rounds // 2, rounds + 1) * (requests // rounds) / 1000
    for name in sorted(points[0]):
        slope = np.polyfit(thousands, [point[name] for point in points[rounds // 2 :]], 1)[0]
        print(f"  {name:16}{slope:+6.1f} MiB per 1,000 requests")
    serve.delete("foley")


def main() -> None:
    """Parse, start, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--what", default="batching,overhead,overload,autoscaling")
    options = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 measures whatever else runs here
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or make_tiny(Path(folder) / "tiny")
        ensure_ray(num_cpus=4)
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        if "batching" in options.what:
            batching(model, options.requests, options.clients)
        if "overhead" in options.what:
            overhead(model)
        if "overload" in options.what:
            overload(model, options.requests, options.clients)
        if "autoscaling" in options.what:
            autoscaling(model)
        if "memory" in options.what:
            memory(model, max(2000, options.requests), options.clients)
        serve.shutdown()


if __name__ == "__main__":
    main()
