"""Training through Ray Train: `python tests/benchmarks/bench_training.py [--data DATASET] [--steps 30] [--preset default]`.

Diffusion training, which is where the time of a system goes: on the fly (decode, mel, VAE and CLAP at every step) against a
cache of latents and embeddings; one worker against two; with the share of time in which workers waited for data and the most
memory that a worker held. Rates are medians over the log lines after the first. Weights are random: they change no speed.
What the cache saves is what comes before the UNet, so that is timed by itself as well, in this process.
Without --data, recordings are generated.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from foley_ray.audio.mel import LogMel
from foley_ray.checkpoint import ModelInfo, Part, read_info, save_model
from foley_ray.data.cache import cached_stream
from foley_ray.data.cache import run_job as make_cache
from foley_ray.data.cluster import ensure_ray
from foley_ray.data.dataset import Columns, StreamSettings, TrainingStream, collate, training_stream
from foley_ray.data.ingest import ingest
from foley_ray.data.procedural import write_recordings
from foley_ray.jobfile import CacheJob, TrainJob
from foley_ray.models.clap import Clap
from foley_ray.models.vae import build_vae, encode
from foley_ray.presets import preset
from foley_ray.training.worker import run_job


class Memory(threading.Thread):
    """Watches the training workers of this process's Ray; `peak_mb` is the most that one held at a time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "RayTrainWorker" in " ".join(process.cmdline()):
                        self.peak_mb = max(self.peak_mb, process.memory_info().rss / 2**20)
                except psutil.Error:
                    continue


def measure(job: TrainJob) -> tuple[float, float, float]:
    """Rows a second, share of time waiting for data, most memory of a worker in MB."""
    lines: list[dict[str, float]] = []
    memory = Memory()
    memory.start()
    run_job(job, lines.append)
    memory.done.set()
    memory.join()
    steady = lines[1:]
    return (
        statistics.median(line["samples_per_s"] for line in steady),
        statistics.median(line["data_wait"] for line in steady),
        memory.peak_mb,
    )


def data_alone(place: Path, data: Path, parts: dict[Part, torch.nn.Module], device: str) -> tuple[float, float]:
    """Rows a second, read and brought to what the UNet takes, in batches of 8: on the fly, and from a cache."""
    info = read_info(place / "parts")
    audio = info.model.audio
    vae, clap = parts["vae"].to(device).eval(), parts["clap"].to(device).eval()
    log_mel = LogMel(audio).to(device)

    @torch.inference_mode()
    def fly(batch: Columns) -> None:
        wave_BT = collate(batch)["wave"].to(device)
        encode(vae, log_mel(wave_BT)).mean.cpu()
        clap.audio_embed(wave_BT, audio.sample_rate_hz).cpu()

    def rate(stream: TrainingStream, take: Callable[[Columns], object], steps: int) -> float:
        batches = stream.batches(0, 1, 8, range(steps + 1))
        take(next(batches))
        start = time.perf_counter()
        for batch in batches:
            take(batch)
        return 8 * steps / (time.perf_counter() - start)

    return (
        rate(training_stream(data, StreamSettings(), audio), fly, 8),
        rate(cached_stream(place / "cache", StreamSettings(), audio, info.parts), collate, 400),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--gpu", action="store_true")
    arguments = parser.parse_args()
    ensure_ray()
    model = preset(arguments.preset).model
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = arguments.data
        if data is None:
            data = place / "dataset"
            write_recordings(place / "recordings", count_per_class=20)
            ingest(place / "recordings", data, sample_rate_hz=model.audio.sample_rate_hz)
        torch.manual_seed(0)
        parts = {"clap": Clap(model.clap), "vae": build_vae(model)}
        save_model(place / "parts", ModelInfo(preset=arguments.preset, model=model), parts)
        start = time.perf_counter()
        cache = CacheJob(preset=arguments.preset, data=data, out=place / "cache", init=(place / "parts",), gpu=arguments.gpu)
        rows = make_cache(cache).rows
        cached_s = time.perf_counter() - start
        print(f"cache: {rows} rows in {cached_s:.0f} s, with Ray Data's start")

        fly, cached = data_alone(place, data, parts, "cuda" if arguments.gpu else "cpu")
        print(
            f"data alone: on the fly {fly:.1f} rows/s, cached {cached:.0f} rows/s: {cached / fly:.0f} times as many", flush=True
        )

        def row(name: str, source: Path, workers: int) -> float:
            settings = {"steps": arguments.steps, "log_every": 5, "precision": arguments.precision}
            settings["checkpoint_every"] = arguments.steps
            content = {"task": "diffusion", "preset": arguments.preset, "data": source, "out": place / name.replace(" ", "_")}
            content |= {"init": (place / "parts",), "workers": workers, "gpu": arguments.gpu, "settings": settings}
            rate, wait, memory_mb = measure(TrainJob(**content))
            print(f"{name:24s} {rate:8.2f} rows/s   data wait {wait:4.0%}   {memory_mb:6.0f} MB a worker", flush=True)
            return rate

        fly = row("on the fly, 1 worker", data, 1)
        cached = row("cached, 1 worker", place / "cache", 1)
        two = row("cached, 2 workers", place / "cache", 2)
    print(f"cached / on the fly      {cached / fly:8.2f}   whole steps, of which the UNet's own work is the same")
    print(f"2 workers / 1            {two / cached:8.2f}")


if __name__ == "__main__":
    main()
