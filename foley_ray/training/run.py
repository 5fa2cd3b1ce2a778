"""One training run and its folder: what was asked for, whether it may go on, where it stands, what it has told so far.

    RUN/
      run.json         what is being trained, from what, with which settings; a second run must agree with it
      metrics.jsonl    one line per log step; tensorboard/ holds the same for TensorBoard
      rows/            with log_rows, which rows each worker drew for each step
      ray/             checkpoints: step_0000500_of_2_<time>/{state.pt, model/, manifest.json}
      model/           the finished part as a model folder, when the last step is done

Has never heard of Ray; worker.py runs it there.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from foley_ray.audio.files import replacing
from foley_ray.checkpoint import MODEL_FOLDER, RUN_FILE, ModelInfo, Part, find_parts, model_folder, read_info
from foley_ray.config import ModelConfig, Task, TrainConfig
from foley_ray.data.cache import CacheInfo, is_cache
from foley_ray.data.captions import read_captions
from foley_ray.data.dataset import StreamSettings
from foley_ray.data.folder import Folder, absolute
from foley_ray.data.manifest import load_info
from foley_ray.errors import ConfigError, OutputError, TrainingError
from foley_ray.jobfile import TrainJob
from foley_ray.presets import Preset
from foley_ray.training.loop import MANIFEST_FILE, check_whole
from foley_ray.training.tasks import TASK_CLASSES
from foley_ray.training.tasks.segments import segment_length

CHECKPOINTS = "ray"
RAY_LIST = "checkpoint_manager_snapshot.json"
METRICS_FILE = "metrics.jsonl"
CHANGEABLE = frozenset(
    {
        "train.steps",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.log_every",
        "train.log_rows",
        "train.samples_every",
    }
)
"""Settings in which a continued run may differ from its beginning."""


@dataclass(frozen=True)
class Run:
    """One training run, as asked for. Everything a worker needs; it travels to them as it is."""

    task: Task
    preset: Preset
    train: TrainConfig
    dataset: Folder
    """A dataset that `foley ingest` wrote, or for diffusion and finetune a cache that `foley cache` made of one."""
    out: Path
    init: tuple[Path, ...] = ()
    """Model or run folders that give frozen parts and the warm start; of two with the same part the later one's is taken."""
    shippable_only: bool = False
    classes: tuple[str, ...] = ()
    """The only classes to learn from; all when empty."""
    captions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    workers: int | tuple[int, int] = 2
    """How many, or at least and at most how many: then the run starts with, and grows and shrinks to, what the cluster has."""
    use_gpu: bool = False
    autoscaled: bool = False
    """Whether to wait for resources that the cluster does not have yet."""
    max_failures: int = 2

    @classmethod
    def of(cls, job: TrainJob) -> "Run":
        """The run that a job file asks for. Workers have another working directory, so its paths are absolute."""
        preset, settings = job.resolved()
        run = cls(
            task=job.task,
            preset=preset,
            train=settings,
            dataset=absolute(job.data),
            out=job.out.resolve(),
            init=tuple(path.resolve() for path in job.init),
            shippable_only=job.shippable_only,
            classes=job.classes,
            captions=read_captions(job.captions) if job.captions else {},
            workers=job.workers,
            use_gpu=job.gpu,
            autoscaled=job.autoscaled,
            max_failures=job.max_failures,
        )
        segment_length(run.model, run.train)  # raises for one that does not fit the crop
        if settings.sharding != "none" and not job.gpu:
            raise ConfigError(
                f"sharding {settings.sharding} needs GPUs (Accelerate would ignore it on a CPU); give --gpu, or none"
            )
        return run

    @property
    def model(self) -> ModelConfig:
        """The model's settings."""
        return self.preset.model

    @property
    def most_workers(self) -> int:
        """The largest number of workers that the run may have."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    def stream_settings(self) -> StreamSettings:
        """How the training data are drawn."""
        return StreamSettings(
            seed=self.train.seed,
            balance=self.train.balance,
            augment=self.train.augment,
            augmentation=self.train.augmentation,
            shippable_only=self.shippable_only,
            only_classes=self.classes,
            captions=self.captions,
            word_dropout=self.train.word_dropout,
        )

    def given(self) -> dict[Part, tuple[Path, ModelInfo]]:
        """The parts that `init` offers to this task, and where each lies. Raises ModelError for what is missing or unfit."""
        task = TASK_CLASSES[self.task]
        return find_parts(
            [model_folder(path) for path in self.init],
            self.preset,
            needed=task.needs,
            useful=(*task.makes, *task.uses),
            why=f"task {self.task}",
        )

    def describe(self) -> dict[str, Any]:
        """What run.json records, and what a second run with the same folder must agree with."""
        return {
            "task": self.task,
            "preset": self.preset.name,
            "model": self.model.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json"),
            "dataset": self.data_digest(),
            "init": {str(name): owner.parts[name].digest for name, (_, owner) in self.given().items()},
            "shippable_only": self.shippable_only,
            "classes": list(self.classes),
            "captions": captions_digest(self.captions),
        }

    def data_digest(self) -> str:
        """What the data are. Raises DatasetError if there are none."""
        return CacheInfo.load(self.dataset).digest if is_cache(self.dataset) else load_info(self.dataset).digest


def is_finished(info: ModelInfo, run: Run) -> bool:
    """Whether a run's model is that of its last step."""
    return all(part.training.get("step", 0) >= run.train.steps for part in info.parts.values())


def check_run(run: Run, wanted: dict[str, Any]) -> ModelInfo | None:
    """Raise if the run folder belongs to something else, or has lost what to go on from.

    Returns the finished model if there is nothing left to do.
    """
    path = run.out / RUN_FILE
    if not path.is_file():
        if run.out.exists() and (not run.out.is_dir() or any(run.out.iterdir())):
            raise OutputError(f"{run.out} exists and is no training run; choose another --out, nothing there was touched")
        return None
    try:
        known = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); choose another --out") from None
    # how long it runs and how often it saves may change; anything else would silently mix two experiments
    if differing := differences(known, wanted, but=CHANGEABLE):
        raise ConfigError(f"{run.out} is a run with other settings: {'; '.join(differing)}; choose another --out")
    made = 0
    if (run.out / MODEL_FOLDER).is_dir():
        info = read_info(run.out / MODEL_FOLDER)
        made = max(part.training["step"] for part in info.parts.values())
        _refuse_fewer_steps(run, made)
        if is_finished(info, run):
            return info
    newest = newest_checkpoint(run.out)
    if newest:
        _refuse_fewer_steps(run, checkpoint_step(newest))
        return None
    # a step beyond the first checkpoint's means that there was one; what failed before it has nothing to lose
    logged = _logged_step(run.out)
    if made or logged > known["train"]["checkpoint_every"]:
        raise TrainingError(
            f"{run.out} has trained to step {max(made, logged)}, but {run.out / CHECKPOINTS} has no whole checkpoint to go on "
            f"from, and starting over would replace what is there; choose another --out, or delete {run.out} to start over"
        )
    return None


def write_run(run: Run, wanted: dict[str, Any]) -> None:
    """run.json. Raises OutputError if the place cannot be written."""
    with replacing(run.out / RUN_FILE) as temporary:
        temporary.write_text(json.dumps(wanted, indent=1))


def newest_checkpoint(out: Path) -> Path | None:
    """The checkpoint with the most steps that is whole, to the digest; a torn one is passed over for the one before it."""
    return next(_whole_checkpoints(out), None)


def _whole_checkpoints(out: Path) -> Iterator[Path]:
    """Newest first."""
    found = []
    for folder in (out / CHECKPOINTS).glob("step_*"):
        with suppress(TrainingError):
            found.append((checkpoint_step(folder), folder.name, folder))
    for _, _, folder in sorted(found, reverse=True):
        with suppress(TrainingError):
            check_whole(folder)
            yield folder


def tidy_checkpoints(out: Path, keep: int) -> None:
    """Before a run goes on: remove all but the newest `keep` whole checkpoints, so what torn ones hold is free again.

    Ray's own list of them goes as well. It is not needed here, may be torn itself, and Ray refuses to start when a folder of it
    is gone.
    """
    (out / CHECKPOINTS / RAY_LIST).unlink(missing_ok=True)
    kept = set(islice(_whole_checkpoints(out), keep))
    for folder in (out / CHECKPOINTS).glob("step_*"):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def checkpoint_step(folder: Path) -> int:
    """The step at which a checkpoint was made. Raises TrainingError if it does not say."""
    try:
        return int(json.loads((folder / MANIFEST_FILE).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"checkpoint {folder} is incomplete ({error}); remove it") from None


def captions_digest(captions: Mapping[str, tuple[str, ...]]) -> str:
    """16 hexadecimal digits that change with any wording; empty without wordings."""
    if not captions:
        return ""
    return hashlib.sha256(json.dumps({name: list(captions[name]) for name in sorted(captions)}).encode()).hexdigest()[:16]


def _logged_step(out: Path) -> int:
    """The last step that a run has told of; 0 if none."""
    path = out / METRICS_FILE
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def _refuse_fewer_steps(run: Run, trained: int) -> None:
    if trained > run.train.steps:
        raise ConfigError(f"{run.out} has already trained {trained} steps, more than {run.train.steps}; ask for more")


def differences(known: dict[str, Any], wanted: dict[str, Any], but: Collection[str] = ()) -> list[str]:
    """In which settings two JSON objects differ, in words; those named in `but` may."""
    there, now = _flat(known), _flat(wanted)
    return [
        f"{key} was {there.get(key)}, now {now.get(key)}"
        for key in sorted(there.keys() | now.keys())
        if there.get(key) != now.get(key) and key not in but
    ]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat
