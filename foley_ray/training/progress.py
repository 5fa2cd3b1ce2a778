"""What a run tells while it runs: a line a log step for people, metrics.jsonl and TensorBoard for programs and curves."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from foley_ray.audio.files import replacing
from foley_ray.training.loop import Batch
from foley_ray.training.run import METRICS_FILE
from foley_ray.training.samples import Sample


def progress_line(metrics: Mapping[str, float]) -> str:
    """One log step for a person: losses, rate, data wait, time left."""
    rates = {"step", "samples_per_s", "data_wait", "left_s", "lr"}
    losses = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name not in rates)
    left_min, left_s = divmod(round(metrics["left_s"]), 60)
    return (
        f"step {metrics['step']:.0f}  {losses}  {metrics['samples_per_s']:.1f} samples/s  "
        f"data wait {metrics['data_wait']:.0%}  {left_min}m{left_s:02d}s left"
    )


def logged_rows(batches: Iterable[Batch], out: Path, worker: str, from_step: int) -> Iterator[Batch]:
    """The same batches, each noted as a line of step and row ids in RUN/rows/WORKER.jsonl when it is drawn."""
    path = out / "rows" / f"{worker}.jsonl"
    path.parent.mkdir(exist_ok=True)
    _keep_lines(path, before=from_step)
    with path.open("a") as file:
        for step, batch in enumerate(batches, from_step):
            print(json.dumps({"step": step, "rows": batch["sha256"]}), file=file, flush=True)
            yield batch


def _keep_lines(path: Path, before: int) -> None:
    """Drop the lines that a resumed run will write again, and a line that a killed one left unfinished."""
    if not path.is_file():
        return
    lines = path.read_text().splitlines(keepends=True)
    with replacing(path) as temporary:
        temporary.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < before))


class MetricsWriter:
    """metrics.jsonl and TensorBoard, on rank 0. A resumed run drops the lines that it will write again."""

    def __init__(self, out: Path, from_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.path = out / METRICS_FILE
        _keep_lines(self.path, before=from_step + 1)  # its steps are counted from 1
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=from_step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line, flushed, so that whoever follows the file sees it."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **{name: round(value, 6) for name, value in metrics.items()}}) + "\n")
        for name, value in metrics.items():
            self.board.add_scalar(name, value, step)

    def show(self, step: int, samples: Sequence[Sample], sample_rate_hz: int) -> None:
        """Pictures and sounds for TensorBoard."""
        for sample in samples:
            self.board.add_image(sample.name, sample.colours, step, dataformats="HWC")
            if sample.wave_T is not None:
                self.board.add_audio(f"{sample.name}/sound", sample.wave_T[None], step, sample_rate=sample_rate_hz)

    def close(self) -> None:
        """Flush TensorBoard."""
        self.board.close()


class Follower(threading.Thread):
    """Tells the driver what rank 0 writes to metrics.jsonl, while `fit` blocks. Sees nothing if they share no file system."""

    def __init__(self, path: Path, tell: Callable[[dict[str, float]], None]):
        super().__init__(daemon=True)
        self.path, self.tell = path, tell
        self.done = threading.Event()
        self.seen = path.read_text().count("\n") if path.is_file() else 0

    def __enter__(self) -> "Follower":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()

    def run(self) -> None:
        """Poll until done, then once more for the last lines."""
        while not self.done.wait(1.0):
            self._read()
        self._read()

    def _read(self) -> None:
        if not self.path.is_file():
            return
        lines: Sequence[str] = self.path.read_text().splitlines(keepends=True)
        lines = [line for line in lines if line.endswith("\n")]
        self.seen = min(self.seen, len(lines))  # a resumed run shortens the file first
        for line in lines[self.seen :]:
            self.tell(json.loads(line))
        self.seen = len(lines)
