"""The service under load: what sharing UNet calls between requests buys, what the graph costs, and how sampling scales.

    python tests/benchmarks/bench_serve.py [--model MODEL] [--requests 48] [--clients 12] [--what batching,overhead,scaling]

Same weights, same HTTP, same run; only how many clips one sampling replica may have under way differs:

    one at a time    max_ongoing_requests 1: a clip waits until the one before it is done
    step by step     max_ongoing_requests 16: clips of 8 to 40 steps join and leave the engine between steps

Without --model a tiny one with random weights is made. Numbers are this machine's; the ratios are what to look at.
"""

import argparse
import random
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch
from ray import serve

from foley_ray.checkpoint import ModelInfo, save_model
from foley_ray.clip import ClipRequest
from foley_ray.config import ClipSettings, tiny
from foley_ray.data.cluster import ensure_ray
from foley_ray.models.clap import Clap
from foley_ray.models.tuning import Tuning
from foley_ray.models.unet import build_unet
from foley_ray.models.vae import build_vae
from foley_ray.models.vocoder import build_vocoder
from foley_ray.pipeline import Pipeline
from foley_ray.serving.app import build_app
from foley_ray.serving.settings import ServeSettings

ADDRESS = "http://127.0.0.1:8765"
STAGES = ("Ingress", "Condition", "Sample", "Vocode", "Rank")
HTTP = httpx.Client(timeout=600, limits=httpx.Limits(max_connections=None))
Seconds = list[float]


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


def deploy(model: Path, **sample: Any) -> None:
    """(Re)deploy the service with these settings of the sampling stage."""
    stage = {"num_cpus": 0, "max_replicas": 1}
    settings = {"model": model, "ingress": {"max_replicas": 1}, "limits": {"pending_candidates": 10_000}}
    settings |= dict.fromkeys(("condition", "vocode", "rank"), stage)
    settings["sample"] = {"num_cpus": 0, "max_replicas": 1, "max_queued_requests": 10_000} | sample
    serve.run(build_app(ServeSettings.model_validate(settings)), name="foley", route_prefix="/")
    ask({"prompt": "warm up", "duration_s": 1.0, "steps": 2, "candidates": 1})


def ask(body: dict[str, Any]) -> float:
    """One request; returns how long it took."""
    began = time.perf_counter()
    HTTP.post(f"{ADDRESS}/v1/audio/generate", json=body).raise_for_status()
    return time.perf_counter() - began


def load(requests: int, clients: int) -> tuple[float, Seconds]:
    """Mixed requests from clients that each ask again when answered: clips per second, and each one's latency."""
    steps = random.Random(0)
    bodies = [
        {"prompt": "rain", "seed": seed, "duration_s": 1.0, "candidates": 1, "steps": steps.choice((8, 12, 20, 40))}
        for seed in range(requests)
    ]
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        latencies = list(pool.map(ask, bodies))
    return requests / (time.perf_counter() - began), latencies


def batching(model: Path, requests: int, clients: int) -> None:
    """Step-level batching against one request at a time."""
    rates = {}
    print(f"\n{requests} requests of 8 to 40 steps from {clients} clients, 1 candidate of 1 s each, one sampling replica")
    for name, ongoing in (("one at a time", 1), ("step by step", 16)):
        deploy(model, max_ongoing_requests=ongoing)
        load(clients, clients)  # every batch size once
        rates[name], latencies = load(requests, clients)
        p50, p95 = statistics.median(latencies), statistics.quantiles(latencies, n=20)[-1]
        print(f"  {name:14}  {rates[name]:6.2f} clips/s   latency p50 {p50:6.2f} s   p95 {p95:6.2f} s")
    print(f"  step by step / one at a time: {rates['step by step'] / rates['one at a time']:.2f} times the clips per second")


def overhead(model: Path, requests: int) -> None:
    """The service against the pipeline in this process, one request at a time: what HTTP and four hops cost."""
    deploy(model)
    wish = {"prompt": "rain", "seed": 1, "duration_s": 1.0, "candidates": 1, "steps": 8}
    served = statistics.median([ask(wish) for _ in range(requests)])
    pipeline = Pipeline(model)
    clip = ClipRequest("rain", 1, ClipSettings(duration_s=1.0, candidates=1, steps=8))
    direct = []
    for _ in range(requests):
        began = time.perf_counter()
        list(pipeline.generate([clip]))
        direct.append(time.perf_counter() - began)
    inside = statistics.median(direct)
    print(f"\none request at a time, p50: service {served * 1e3:.1f} ms, pipeline in one process {inside * 1e3:.1f} ms")
    print(f"  HTTP and four hops: {(served - inside) * 1e3:.1f} ms")


def replicas() -> dict[str, int]:
    """Running replicas of each deployment."""
    deployments = serve.status().applications["foley"].deployments
    return {name: deployments[name].replica_states.get("RUNNING", 0) for name in STAGES}


def scaling(model: Path, load_s: float = 60.0, after_s: float = 60.0) -> None:
    """Sampling replicas under load and after it, beside the other deployments'."""
    deploy(
        model, max_replicas=3, target_ongoing_requests=2, upscale_delay_s=2, downscale_delay_s=5, look_back_period_s=4,
        max_ongoing_requests=4,
    )  # fmt: skip
    stop = threading.Event()

    def client(seed: int) -> None:
        while not stop.is_set():
            ask({"prompt": "rain", "seed": seed, "duration_s": 1.0, "candidates": 2, "steps": 60})

    print("\nrunning replicas: load of 8 clients, then none")
    print(f"  {'seconds':>8}  " + "".join(f"{name:>11}" for name in STAGES))
    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in clients:
        thread.start()
    began, shown = time.monotonic(), {}
    while (passed := time.monotonic() - began) < load_s + after_s:
        if passed > load_s:
            stop.set()
        if (now := replicas()) != shown:
            shown = now
            state = "load" if passed <= load_s else "idle"
            print(f"  {passed:5.0f} {state}" + "".join(f"{now[name]:>11}" for name in STAGES), flush=True)
        if passed > load_s and now["Sample"] == 1:
            break
        time.sleep(0.5)
    for thread in clients:
        thread.join()


def main() -> None:
    """Parse, start, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--what", default="batching,overhead,scaling")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or make_tiny(Path(folder) / "tiny")
        ensure_ray(num_cpus=4)
        serve.start(http_options={"host": "127.0.0.1", "port": int(ADDRESS.rsplit(":")[-1])})
        if "batching" in options.what:
            batching(model, options.requests, options.clients)
        if "overhead" in options.what:
            overhead(model, options.requests)
        if "scaling" in options.what:
            scaling(model)
        serve.shutdown()


if __name__ == "__main__":
    main()
