"""Ray Train around the loop: a TorchTrainer whose workers run `loop.Trainer` over their shard of a Ray Data stream.

    RUN/
      run.json         what is being trained, from what, with which settings; a second run must agree with it
      metrics.jsonl    one line per log step; tensorboard/ holds the same for TensorBoard
      ray/             Ray Train's checkpoints: step_0000500_of_2_<time>/{state.pt, manifest.json, model/}
      model/           the finished part as a model folder, when the last step is done

The same RUN continues where it stopped: Ray Train finds its last checkpoint by itself.
"""

import hashlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import ray.train
import torch
from accelerate import Accelerator
from ray.data import ExecutionOptions
from ray.train import Checkpoint, CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig

from foley_ray.audio.files import replacing
from foley_ray.checkpoint import ModelInfo, Part, PartInfo, load_part, read_info, save_model
from foley_ray.config import ModelConfig, Preset, Task, TrainConfig
from foley_ray.data.captions import read_captions
from foley_ray.data.cluster import ensure_ray, quiet_progress
from foley_ray.data.dataset import StreamSettings, collate, training_stream
from foley_ray.data.manifest import load_info
from foley_ray.errors import ConfigError, ModelError, NonFiniteLoss, OutputError, TrainingError
from foley_ray.jobfile import TrainJob
from foley_ray.training.loop import MANIFEST_FILE, Hooks, Trainer
from foley_ray.training.tasks import TASK_CLASSES, TrainingTask, segment_length

RAY_NAME = "ray"
MODEL_FOLDER = "model"
METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.json"
CHANGEABLE = frozenset({"train.steps", "train.checkpoint_every", "train.keep_checkpoints", "train.log_every"})
"""Settings in which a continued run may differ from its beginning."""


@dataclass(frozen=True)
class Run:
    """One training run, as asked for. Everything a worker needs; it travels to them as it is."""

    task: Task
    preset: Preset
    train: TrainConfig
    dataset: Path
    out: Path
    init: tuple[Path, ...] = ()
    """Model folders that give the frozen parts and the warm start; of two with the same part the later one's is taken."""
    shippable_only: bool = False
    captions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    workers: int = 2
    use_gpu: bool = False
    max_failures: int = 2

    @property
    def model(self) -> ModelConfig:
        """The model's settings."""
        return self.preset.model

    def stream_settings(self) -> StreamSettings:
        """How the training data are drawn."""
        return StreamSettings(
            seed=self.train.seed,
            balance=self.train.balance,
            augment=self.train.augment,
            shippable_only=self.shippable_only,
            captions=self.captions,
        )

    def describe(self) -> dict[str, Any]:
        """What run.json records, and what a second run with the same folder must agree with."""
        return {
            "task": self.task,
            "preset": self.preset.name,
            "model": self.model.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json"),
            "dataset": load_info(self.dataset).digest,
            "init": {str(name): owner.parts[name].digest for name, (_, owner) in self.given().items()},
            "shippable_only": self.shippable_only,
            "captions": _captions_digest(self.captions),
        }

    def given(self) -> dict[Part, tuple[Path, ModelInfo]]:
        """The parts that `init` offers to this task, and where each lies. Raises ModelError for what is missing or unfit."""
        wanted = (*TASK_CLASSES[self.task].needs, *TASK_CLASSES[self.task].makes)
        offered: dict[Part, tuple[Path, ModelInfo]] = {}
        for folder in self.init:
            folder = model_folder(folder)
            info = read_info(folder)
            for name in info.parts:
                if name in wanted:
                    offered[name] = (folder, info)
        for name in TASK_CLASSES[self.task].needs:
            if name not in offered:
                raise ModelError(
                    f"task {self.task} needs a trained {name}: `foley train {name}` first, then give its run with --init"
                )
        for name, (folder, info) in offered.items():
            for section in ("audio", name):
                if section != "tuning" and getattr(info.model, section) != getattr(self.model, section):
                    raise ModelError(
                        f"{name} of {folder} was made with other settings ({section} of preset {info.preset}) than preset "
                        f"{self.preset.name} has; use the preset that it was made with"
                    )
        return offered


def run_job(job: TrainJob, on_progress: Callable[[dict[str, float]], None] = lambda metrics: None) -> ModelInfo:
    """`train` for a job file's settings."""
    chosen, settings = job.resolved()
    run = Run(
        task=job.task,
        preset=chosen,
        train=settings,
        dataset=job.data,
        out=job.out,
        init=job.init,
        shippable_only=job.shippable_only,
        captions=read_captions(job.captions) if job.captions else {},
        workers=job.workers,
        use_gpu=job.gpu,
        max_failures=job.max_failures,
    )
    return train(run, on_progress)


def model_folder(path: Path) -> Path:
    """A model folder, or that of a training run."""
    return path / MODEL_FOLDER if (path / RUN_FILE).is_file() else path


def train(run: Run, on_progress: Callable[[dict[str, float]], None] = lambda metrics: None) -> ModelInfo:
    """Train one task to its last step and leave RUN/model. Continues a run that was stopped.

    `on_progress` gets each log line's metrics (with "step"). Raises ConfigError if RUN belongs to other settings,
    DatasetError, ModelError, NonFiniteLoss, or TrainingError with the worker's own words if workers keep failing.
    """
    # workers have another working directory
    run = replace(run, out=run.out.resolve(), dataset=run.dataset.resolve(), init=tuple(path.resolve() for path in run.init))
    segment_length(run.model, run.train)  # raises before any worker starts
    wanted = run.describe()
    finished = _check_run(run, wanted)
    if finished is not None:
        return finished
    ensure_ray()
    quiet_progress()
    first_step = _last_step(run.out)
    if first_step > run.train.steps:
        raise ConfigError(f"{run.out} has already trained {first_step} steps, more than {run.train.steps}; ask for more")
    resources = _worker_resources(run)
    rows_per_step = run.train.batch_size * run.workers
    stream = training_stream(
        run.dataset,
        run.stream_settings(),
        run.model.audio,
        # two steps to spare: an even split between workers may drop a few rows at the end
        rows=(run.train.steps - first_step + 2) * rows_per_step,
        first_row=first_step * rows_per_step,
    )
    _write_run(run, wanted)
    trainer = TorchTrainer(
        worker_loop,
        train_loop_config={"run": run, "first_step": first_step},
        datasets={"train": stream},
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
        scaling_config=ScalingConfig(
            num_workers=run.workers,
            use_gpu=run.use_gpu,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=RAY_NAME,
            storage_path=str(run.out),
            failure_config=FailureConfig(max_failures=run.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=run.train.keep_checkpoints),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    follower = _Follower(run.out / METRICS_FILE, on_progress)
    try:
        with follower, _own_sigint():
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"training {run.task} failed after {run.max_failures} restarts: {_root_cause(error)}") from error
    if result.return_value:
        raise NonFiniteLoss(str(result.return_value))
    if result.checkpoint is None:
        raise TrainingError(f"training {run.task} ended without a checkpoint; look into {run.out / RAY_NAME}")
    with result.checkpoint.as_directory() as folder:
        made = Path(folder) / MODEL_FOLDER
        info = read_info(made)
        if not _is_finished(info, run):
            raise TrainingError(f"training {run.task} ended before its last step; the same command goes on from {run.out}")
        save_model(run.out / MODEL_FOLDER, info, {name: made / name for name in info.parts})
    return info


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
    there = ray.cluster_resources()
    cores, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    # half a core stays for the tasks that read the data, or they would never run on a small machine
    share = min(1.0, int((cores - 0.5) / run.workers * 100) / 100)
    if share < 0.05:
        raise ConfigError(f"{run.workers} workers are too many for {cores:g} cores; give fewer --workers")
    if run.use_gpu and gpus < run.workers:
        raise ConfigError(f"{run.workers} workers need a GPU each, but Ray sees {gpus:g}; give fewer --workers, or no --gpu")
    return {"CPU": share} | ({"GPU": 1.0} if run.use_gpu else {})


def worker_loop(config: dict[str, Any]) -> str | None:
    """What each worker runs: build the task, resume if there is a checkpoint, loop, report.

    Returns why it stopped, if a loss was not finite: an exception would make Ray try again, and meet it again.
    """
    run: Run = config["run"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if not run.use_gpu:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
    accelerator = Accelerator(cpu=not run.use_gpu, mixed_precision="no" if run.train.precision == "fp32" else "bf16")
    torch.manual_seed(run.train.seed)  # the same first weights on every rank, whatever happened in this process before
    task, scale_known = build_task(run)
    task.to(accelerator.device)
    trainer = Trainer(
        task.phases, torch.nn.ModuleDict({str(name): part for name, part in task.parts().items()}), run.train, accelerator
    )
    resumed = ray.train.get_checkpoint()
    if resumed is not None:
        with resumed.as_directory() as folder:
            trainer.load(Path(folder))
            task.latent_scale = read_info(Path(folder) / MODEL_FOLDER).latent_scale
            scale_known = True
    # the stream starts where the first attempt did; after a restart within the job, what is trained already is skipped
    batches: Iterator[dict[str, Any]] = islice(_batches(run), max(trainer.step - config["first_step"], 0), None)
    if not scale_known:
        first = next(batches)
        task.calibrate({**first, "wave": first["wave"].to(accelerator.device)})
        batches = chain([first], batches)
    started = time.monotonic()
    writer = _MetricsWriter(run.out, from_step=trainer.step) if rank == 0 else None

    def checkpoint(step: int, metrics: dict[str, float]) -> None:
        if rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="foley-") as folder:
            with trainer.averaged_weights():
                _export(run, task, Path(folder) / MODEL_FOLDER, step, metrics, time.monotonic() - started)
            trainer.save(Path(folder))
            name = f"step_{step:07d}_of_{world}_{int(time.time())}"  # one folder per attempt: a torn one is never mixed with
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=name)

    hooks = Hooks(log=writer.write if writer else (lambda step, metrics: None), checkpoint=checkpoint)
    try:
        trainer.train(batches, hooks)
    except NonFiniteLoss as error:
        return str(error)
    finally:
        if writer:
            writer.close()
    return None


def build_task(run: Run) -> tuple[TrainingTask, bool]:
    """The task with its given parts loaded, and whether its latent scale is already known from a warm start."""
    given = run.given()
    parts = {name: load_part(folder, name) for name, (folder, _) in given.items()}
    model = run.model
    if run.task == "finetune" and model.tuning.kind == "per_class" and not model.tuning.classes:
        classes = tuple(name for name in load_info(run.dataset).classes if name)
        model = model.model_copy(update={"tuning": model.tuning.model_copy(update={"classes": classes})})
    task = TASK_CLASSES[run.task](model, run.train, parts)
    if "unet" in given:
        task.latent_scale = given["unet"][1].latent_scale
    return task, "unet" in given


def _batches(run: Run) -> Iterator[dict[str, Any]]:
    shard = ray.train.get_dataset_shard("train")
    for batch in shard.iter_torch_batches(
        batch_size=run.train.batch_size, collate_fn=collate, drop_last=True, prefetch_batches=2
    ):
        yield dict(batch)


def _export(run: Run, task: TrainingTask, folder: Path, step: int, metrics: dict[str, float], wall_s: float) -> None:
    """Write the task's parts as a model folder that knows where they came from."""
    made_for = {name: owner.parts[name].digest for name, (_, owner) in run.given().items() if name in task.needs}
    training = {
        "task": run.task,
        "step": step,
        "workers": run.workers,
        "wall_s": round(wall_s, 1),
        "dataset": load_info(run.dataset).digest[:16],
        "shippable_only": run.shippable_only,
        "captions": _captions_digest(run.captions),
        "settings": run.train.model_dump(mode="json"),
        "metrics": {name: round(value, 6) for name, value in metrics.items()},
    }
    parts = task.parts()
    info = ModelInfo(
        preset=run.preset.name,
        model=task.config,
        latent_scale=task.latent_scale,
        parts={name: PartInfo(digest="", made_for=made_for, training=training) for name in parts},
    )
    save_model(folder, info, parts)


def _is_finished(info: ModelInfo, run: Run) -> bool:
    """Whether a run's model is that of its last step."""
    return all(part.training.get("step", 0) >= run.train.steps for part in info.parts.values())


def _check_run(run: Run, wanted: dict[str, Any]) -> ModelInfo | None:
    """Raise if the run folder belongs to something else. Returns the finished model if there is nothing left to do."""
    path = run.out / RUN_FILE
    if path.is_file():
        try:
            known = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is damaged ({error}); choose another --out") from None
        # how long it runs and how often it saves may change; anything else would silently mix two experiments
        there, now = _flat(known), _flat(wanted)
        differing = [
            f"{key} was {there.get(key)}, now {now.get(key)}"
            for key in sorted(there.keys() | now.keys())
            if there.get(key) != now.get(key) and key not in CHANGEABLE
        ]
        if differing:
            raise ConfigError(f"{run.out} is a run with other settings: {'; '.join(differing)}; choose another --out")
        if (run.out / MODEL_FOLDER).is_dir():
            info = read_info(run.out / MODEL_FOLDER)
            trained = max(part.training["step"] for part in info.parts.values())
            if trained > run.train.steps:
                raise ConfigError(f"{run.out} has already trained {trained} steps, more than {run.train.steps}; ask for more")
            return info if _is_finished(info, run) else None
    elif run.out.exists() and (not run.out.is_dir() or any(run.out.iterdir())):
        raise OutputError(f"{run.out} exists and is no training run; choose another --out, nothing there was touched")
    return None


def _write_run(run: Run, wanted: dict[str, Any]) -> None:
    with replacing(run.out / RUN_FILE) as temporary:
        temporary.write_text(json.dumps(wanted, indent=1))


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat


def _captions_digest(captions: Mapping[str, tuple[str, ...]]) -> str:
    """16 hexadecimal digits that change with any wording; empty without wordings."""
    if not captions:
        return ""
    return hashlib.sha256(json.dumps({name: list(captions[name]) for name in sorted(captions)}).encode()).hexdigest()[:16]


def _last_step(out: Path) -> int:
    """The step of the newest whole checkpoint, 0 without one."""
    steps = [0]
    for path in (out / RAY_NAME).glob(f"step_*/{MANIFEST_FILE}"):
        with suppress(ValueError, KeyError):  # torn by a kill while it was copied
            steps.append(json.loads(path.read_text())["step"])
    return max(steps)


def _root_cause(error: BaseException) -> str:
    """The innermost message of a chain of Ray's errors, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [
        line for line in lines if ": " in line and line.split(":")[0].split(".")[-1].endswith(("Error", "Loss", "Exception"))
    ]
    return (named or lines or [type(error).__name__])[-1]


def progress_line(metrics: Mapping[str, float]) -> str:
    """One log step for a person: losses, rate, data wait, time left."""
    rates = {"step", "samples_per_s", "data_wait", "left_s", "lr"}
    losses = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name not in rates)
    left_min, left_s = divmod(round(metrics["left_s"]), 60)
    return (
        f"step {metrics['step']:.0f}  {losses}  {metrics['samples_per_s']:.1f} samples/s  "
        f"data wait {metrics['data_wait']:.0%}  {left_min}m{left_s:02d}s left"
    )


class _MetricsWriter:
    """metrics.jsonl and TensorBoard, on rank 0. A resumed run drops the lines that it will write again."""

    def __init__(self, out: Path, from_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.path = out / METRICS_FILE
        kept = []
        if self.path.is_file():
            kept = [line for line in self.path.read_text().splitlines() if json.loads(line)["step"] <= from_step]
        self.path.write_text("".join(f"{line}\n" for line in kept))
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=from_step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line, flushed, so that whoever follows the file sees it."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **{name: round(value, 6) for name, value in metrics.items()}}) + "\n")
        for name, value in metrics.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush TensorBoard."""
        self.board.close()


class _Follower(threading.Thread):
    """Tells the driver what rank 0 writes to metrics.jsonl, while `fit` blocks. Sees nothing if they share no file system."""

    def __init__(self, path: Path, tell: Callable[[dict[str, float]], None]):
        super().__init__(daemon=True)
        self.path, self.tell = path, tell
        self.done = threading.Event()
        self.seen = path.read_text().count("\n") if path.is_file() else 0

    def __enter__(self) -> "_Follower":
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
