"""Ray Train around the loop: a TorchTrainer whose workers run `loop.Trainer` over their share of a Ray Data stream.

The same run folder continues where it stopped: each group of workers, at the start as after a failure or when its size
changes, looks for the newest whole checkpoint itself and asks the stream for the rows that come after it.
"""

import errno
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import ray.train
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from ray.data import Dataset
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.util.metrics import Gauge

from foley_ray.checkpoint import MODEL_FOLDER, ModelInfo, PartInfo, read_info, save_model
from foley_ray.data.cache import CacheInfo, is_cache
from foley_ray.data.captions import wordings_of
from foley_ray.data.cluster import ensure_ray, quiet_progress
from foley_ray.data.dataset import READER_CPUS, READERS, Collate
from foley_ray.errors import ConfigError, NonFiniteLoss, OutputError, TrainingError
from foley_ray.jobfile import TrainJob
from foley_ray.training.loop import Hooks, Trainer
from foley_ray.training.network import NodeNetwork
from foley_ray.training.progress import Follower, MetricsWriter, logged_rows
from foley_ray.training.run import (
    CHECKPOINTS,
    METRICS_FILE,
    Run,
    captions_digest,
    check_run,
    is_finished,
    newest_checkpoint,
    tidy_checkpoints,
    write_run,
)
from foley_ray.training.samples import samples
from foley_ray.training.setup import build_task, open_stream
from foley_ray.training.sharding import fsdp_plugin
from foley_ray.training.tasks.base import TrainingTask

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG}
"""What the system says of a disk that is full or closed to us, whichever file was being written: checkpoint, metrics, rows."""


def run_job(job: TrainJob, on_progress: Callable[[dict[str, float]], None] = lambda metrics: None) -> ModelInfo:
    """`train` for a job file's settings."""
    return train(Run.of(job), on_progress)


def train(run: Run, on_progress: Callable[[dict[str, float]], None] = lambda metrics: None) -> ModelInfo:
    """Train one task to its last step and leave RUN/model. Continues a run that was stopped.

    `on_progress` gets each log line's metrics (with "step"). Raises ConfigError if RUN belongs to other settings,
    DatasetError, ModelError, NonFiniteLoss, or TrainingError with the worker's own words if workers keep failing.
    """
    wanted = run.describe()
    finished = check_run(run, wanted)
    if finished is not None:
        return finished
    open_stream(run)  # raises for data that do not fit, before any worker starts
    ensure_ray()
    quiet_progress()
    resources = _worker_resources(run)
    write_run(run, wanted)
    tidy_checkpoints(run.out, run.train.keep_checkpoints)
    trainer = TorchTrainer(
        worker_loop,
        train_loop_config={"run": run},
        torch_config=NodeNetwork(),
        scaling_config=ScalingConfig(num_workers=run.workers, use_gpu=run.use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=str(run.out),
            failure_config=FailureConfig(max_failures=run.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=run.train.keep_checkpoints),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    follower = Follower(run.out / METRICS_FILE, on_progress)
    try:
        with follower, _own_sigint():
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        cause = _root_cause(error)
        # met by Ray's controller, not by a worker, which would have named it
        if os.strerror(errno.ENOSPC).lower() in cause.lower() and "OutputError" not in cause:
            cause = f"OutputError: {_unwritable(run, errno.ENOSPC)}"
        raise TrainingError(f"training {run.task} failed after {run.max_failures} restarts: {cause}") from error
    if result.return_value:
        raise NonFiniteLoss(str(result.return_value))
    last = newest_checkpoint(run.out)
    if last is None:
        raise TrainingError(f"training {run.task} ended without a checkpoint; look into {run.out / CHECKPOINTS}")
    info = read_info(last / MODEL_FOLDER)
    if not is_finished(info, run):
        raise TrainingError(f"training {run.task} ended before its last step; the same command goes on from {run.out}")
    return save_model(run.out / MODEL_FOLDER, info, {name: last / MODEL_FOLDER / name for name in info.parts})


@contextmanager
def _own_sigint() -> Iterator[None]:
    """Ctrl-C as everywhere else: Ray Train aborts the run in good order, but then leaves by sys.exit and keeps the signal."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _worker_resources(run: Run) -> dict[str, float]:
    """What each worker reserves. Raises ConfigError for more than there is: Ray would wait for it in silence, for ever."""
    readers = READERS * READER_CPUS
    # the tasks that read the data need their place too, all at once, or a worker would wait for rows for ever: also when the
    # cluster has shrunk to a core for each worker
    most = 1.0 - readers
    if run.autoscaled:
        return {"CPU": most} | ({"GPU": 1.0} if run.use_gpu else {})
    there = ray.cluster_resources()
    cores, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    share = min(most, int(((cores - 0.1) / run.most_workers - readers) * 100) / 100)
    if share < 0.05:
        raise ConfigError(f"{run.most_workers} workers are too many for {cores:g} cores; give fewer --workers")
    if run.use_gpu and gpus < run.most_workers and isinstance(run.workers, int):
        raise ConfigError(f"{run.workers} workers need a GPU each, but Ray sees {gpus:g}; give fewer --workers, or no --gpu")
    return {"CPU": share} | ({"GPU": 1.0} if run.use_gpu else {})


def worker_loop(config: dict[str, Any]) -> str | None:
    """What each worker runs. Raises OutputError when it cannot write; the workers are then started again, it may be over.

    Returns why it stopped, if a loss was not finite: an exception would make Ray try again, and meet it again.
    """
    run: Run = config["run"]
    try:
        return _work(run)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise OutputError(_unwritable(run, error.errno)) from error


def _unwritable(run: Run, code: int) -> str:
    return (
        f"cannot write to {run.out} or {tempfile.gettempdir()}: {os.strerror(code)}; make room there, then the same "
        "command goes on from the last checkpoint"
    )


def _work(run: Run) -> str | None:
    """Build the task, resume if there is a checkpoint, loop, report."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if not run.use_gpu:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
    accelerator = Accelerator(
        cpu=not run.use_gpu,
        mixed_precision="no" if run.train.precision == "fp32" else "bf16",
        fsdp_plugin=fsdp_plugin() if run.train.sharding == "full" and world > 1 else None,
    )
    torch.manual_seed(run.train.seed)  # the same first weights on every rank, whatever happened in this process before
    stream = open_stream(run)
    task, scale_known = build_task(run, stream.classes)
    task.to(accelerator.device)
    trainer = Trainer(
        task.phases, torch.nn.ModuleDict({str(name): part for name, part in task.parts().items()}), run.train, accelerator
    )
    resumed = _agree(newest_checkpoint(run.out) if rank == 0 else None)
    if resumed is not None:
        trainer.load(resumed)
        task.latent_scale = read_info(resumed / MODEL_FOLDER).latent_scale
        scale_known = True
    first = trainer.rows // trainer.rows_per_step  # counted in rows, since the number of workers may have changed
    steps = range(first, first + run.train.steps - trainer.step)
    rows = run.train.batch_size * run.train.accumulate
    batches = _batches(stream.share(rank, world, rows, steps), rows)
    if run.train.log_rows:
        batches = logged_rows(batches, run.out, f"{rank}_of_{world}", trainer.step)
    if not scale_known:
        batch = next(batches)
        task.calibrate(trainer.on_device(batch))
        batches = chain([batch], batches)
    sounds = {name: wordings_of(run.captions, name) or (name.replace("_", " "),) for name in stream.present}
    started = time.monotonic()
    writer = MetricsWriter(run.out, from_step=trainer.step) if rank == 0 else None

    def checkpoint(step: int, metrics: dict[str, float]) -> None:
        if rank != 0:
            if trainer.sharded:  # its pieces go to the first
                with trainer.averaged_weights():
                    pass
                trainer.state()
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="foley-") as folder:
            with trainer.averaged_weights() as averaged:
                parts = dict(averaged.named_children()) if trainer.sharded else task.finished()
                _export(run, task, parts, Path(folder) / MODEL_FOLDER, trainer, metrics, time.monotonic() - started, sounds)
            trainer.save(Path(folder))
            name = f"step_{step:07d}_of_{world}_{int(time.time())}"  # one folder per attempt: a torn one is never mixed with
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=name)

    gauges = Gauges(run.task)

    def log(step: int, metrics: dict[str, float]) -> None:
        if writer:
            writer.write(step, metrics)
            gauges.set({"step": step, **metrics})

    def sample(step: int, batch: dict[str, Any]) -> None:
        if writer:
            with trainer.averaged_weights():
                writer.show(step, samples(task, batch), run.model.audio.sample_rate_hz)

    hooks = Hooks(log=log, checkpoint=checkpoint, sample=sample)
    try:
        trainer.train(batches, hooks)
    except NonFiniteLoss as error:
        return str(error)
    finally:
        if writer:
            writer.close()
    return None


class Gauges:
    """A run's metrics as Ray's, for Prometheus: foley_train_<name>, one series per task."""

    def __init__(self, task: str):
        self.task = task
        self.known: dict[str, Gauge] = {}

    def set(self, metrics: dict[str, float]) -> None:
        """Show the values of the newest log line."""
        for name, value in metrics.items():
            if name not in self.known:
                word = re.sub(r"\W", "_", name)
                self.known[name] = Gauge(f"foley_train_{word}", f"{name} of the newest log line", tag_keys=("task",))
            self.known[name].set(value, {"task": self.task})


def _agree(choice: Path | None) -> Path | None:
    """Rank 0's choice, on every rank: a folder that one rank finds whole, another might still find half-written."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return choice
    shared = [choice]
    broadcast_object_list(shared)
    return shared[0]


def _batches(stream: Dataset, rows: int) -> Iterator[dict[str, Any]]:
    for batch in stream.iter_torch_batches(batch_size=rows, collate_fn=Collate(), drop_last=True, prefetch_batches=2):
        yield dict(batch)


def _export(
    run: Run,
    task: TrainingTask,
    parts: Mapping[Any, torch.nn.Module],
    folder: Path,
    trainer: Trainer,
    metrics: dict[str, float],
    wall_s: float,
    sounds: Mapping[str, tuple[str, ...]],
) -> None:
    """Write the task's parts as a model folder that knows where they came from."""
    made_for = {name: owner.parts[name].digest for name, (_, owner) in run.given().items() if name in task.frozen}
    stands_for: tuple[str, ...] = ()
    if run.train.decoder_only or run.train.audio_only:
        (part,) = task.makes
        _, owner = run.given()[part]
        stands_for = (owner.parts[part].digest, *owner.parts[part].stands_for)
    training = {
        "task": run.task,
        "step": trainer.step,
        "workers": trainer.accelerator.num_processes,
        "wall_s": round(wall_s, 1),
        "dataset": run.data_digest()[:16],
        "shippable_only": run.shippable_only or (is_cache(run.dataset) and CacheInfo.load(run.dataset).shippable_only),
        "classes": list(run.classes),
        "captions": captions_digest(run.captions),
        "settings": run.train.model_dump(mode="json"),
        "metrics": {name: round(value, 6) for name, value in metrics.items()},
    }
    info = ModelInfo(
        preset=run.preset.name,
        model=task.config,
        latent_scale=task.latent_scale,
        parts={name: PartInfo(digest="", made_for=made_for, training=training, stands_for=stands_for) for name in parts},
        sounds=dict(sounds) if "unet" in parts else {},
    )
    save_model(folder, info, parts)


def _root_cause(error: BaseException) -> str:
    """The innermost message of a chain of Ray's errors, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [
        line for line in lines if ": " in line and line.split(":")[0].split(".")[-1].endswith(("Error", "Loss", "Exception"))
    ]
    return (named or lines or [type(error).__name__])[-1]
