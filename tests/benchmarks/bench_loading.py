"""Recordings into the training loop: `python tests/benchmarks/bench_loading.py [--recordings DIR] [--repeats 3]`.

The named alternative is torch's DataLoader with two workers over the very same files, decoded by soundfile, resampled by soxr
where their rate is another, cropped by the same function. Ours is what a training worker does: Ray Data over the ingested
dataset. Both are drained as fast as they give, alternating; rates are medians. Without --recordings, sounds of 0.3 to 3 s are
generated at 44.1 kHz; ingest is not counted, as it is paid once, but its time is shown. Rows are six reading tasks'
worth: with one task, the second reader that every worker has would never be seen.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset

from foley_ray.audio.wave import resample
from foley_ray.data.augment import training_crop
from foley_ray.data.cluster import ensure_ray, quiet_progress
from foley_ray.data.dataset import Collate, StreamSettings, training_stream
from foley_ray.data.ingest import ingest
from foley_ray.data.procedural import write_recordings
from foley_ray.presets import default

AUDIO = default().model.audio


class Files(Dataset):
    """One crop of a file, drawn at random, for each index."""

    def __init__(self, paths: list[Path], rows: int):
        self.paths, self.rows = paths, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> torch.Tensor:
        rng = np.random.default_rng(index)
        wave_T, rate = soundfile.read(self.paths[rng.integers(len(self.paths))], dtype="float32", always_2d=True)
        wave_T = resample(wave_T.mean(axis=1), rate, AUDIO.sample_rate_hz)
        return torch.from_numpy(training_crop(wave_T, AUDIO.clip_samples, AUDIO.sample_rate_hz, rng, augment=None))


def rate(batches: Iterator[torch.Tensor], warm_up: int = 3) -> float:
    """Rows a second, from the moment that a few batches have come."""
    rows, start = 0, 0.0
    for index, batch in enumerate(batches):
        if index == warm_up:
            start = time.perf_counter()
        elif index > warm_up:
            rows += len(batch)
    return rows / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recordings", type=Path)
    parser.add_argument("--rows", type=int, default=24_576)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ensure_ray()
    quiet_progress()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        recordings = arguments.recordings or write_recordings(place / "recordings", count_per_class=60, sample_rate_hz=44100)
        paths = sorted(path for path in recordings.rglob("*") if path.suffix.lower() in (".wav", ".flac", ".ogg", ".mp3"))
        start = time.perf_counter()
        ingest(recordings, place / "dataset", sample_rate_hz=AUDIO.sample_rate_hz)
        print(f"{len(paths)} files; ingested once in {time.perf_counter() - start:.1f} s")
        stream = training_stream(place / "dataset", StreamSettings(), AUDIO)
        steps = range(arguments.rows // arguments.batch_size)

        def ours() -> Iterator[torch.Tensor]:
            share = stream.share(0, 1, arguments.batch_size, steps)
            for batch in share.iter_torch_batches(batch_size=arguments.batch_size, collate_fn=Collate(), prefetch_batches=2):
                yield batch["wave"]

        def theirs() -> Iterator[torch.Tensor]:
            files = Files(paths, arguments.rows)
            yield from DataLoader(files, batch_size=arguments.batch_size, num_workers=2, prefetch_factor=4)

        rates = {"Ray Data": [], "DataLoader": []}
        for _ in range(arguments.repeats):
            rates["Ray Data"].append(rate(ours()))
            rates["DataLoader"].append(rate(theirs()))
    ray_data, loader = (statistics.median(rates[name]) for name in ("Ray Data", "DataLoader"))
    print(f"DataLoader, 2 workers, soundfile + soxr   {loader:8.0f} rows/s   {[round(value) for value in rates['DataLoader']]}")
    print(f"Ray Data, as a training worker reads      {ray_data:8.0f} rows/s   {[round(value) for value in rates['Ray Data']]}")
    print(f"Ray Data / DataLoader                     {ray_data / loader:8.2f}")


if __name__ == "__main__":
    main()
