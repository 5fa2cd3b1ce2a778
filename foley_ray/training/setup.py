"""What a run needs before its first step, its data and its task; and what it will cost (`foley train --dry-run`)."""

from collections.abc import Sequence

from foley_ray.checkpoint import load_part
from foley_ray.data.cache import cached_stream, is_cache
from foley_ray.data.dataset import TrainingStream, training_stream
from foley_ray.errors import ConfigError
from foley_ray.training.run import Run
from foley_ray.training.tasks import TASK_CLASSES
from foley_ray.training.tasks.base import TrainingTask


def open_stream(run: Run) -> TrainingStream:
    """The rows that the run learns from. Raises DatasetError for data that do not fit the run."""
    if not is_cache(run.dataset):
        return training_stream(run.dataset, run.stream_settings(), run.model.audio)
    if run.task not in ("diffusion", "finetune"):
        raise ConfigError(f"task {run.task} learns from sound, not from a cache as {run.dataset} is; give the dataset")
    parts = {name: owner.parts[name] for name, (_, owner) in run.given().items()}
    if run.task == "diffusion" and "clap" in parts:  # learns from embeddings of sounds, which no other ear stands for
        parts["clap"] = parts["clap"].model_copy(update={"stands_for": ()})
    return cached_stream(run.dataset, run.stream_settings(), run.model.audio, parts)


def build_task(run: Run, classes: Sequence[str]) -> tuple[TrainingTask, bool]:
    """The task with its given parts loaded, and whether its latent scale is already known from a warm start."""
    given = run.given()
    parts = {name: load_part(folder, name) for name, (folder, _) in given.items()}
    model = run.model
    if run.task == "finetune" and model.tuning.kind == "per_class" and not model.tuning.classes:
        tuning = model.tuning.model_copy(update={"classes": tuple(name for name in classes if name)})
        model = model.model_copy(update={"tuning": tuning})
    task = TASK_CLASSES[run.task](model, run.train, parts)
    if "unet" in given:
        task.latent_scale = given["unet"][1].latent_scale
    return task, "unet" in given


def describe(run: Run) -> list[str]:
    """What `train` would do, line by line, after the same checks of settings, parts and data. Nothing is written.

    Raises what `train` raises for what does not fit.
    """
    run.describe()
    stream = open_stream(run)
    task, _ = build_task(run, stream.classes)
    train = run.train
    lines = []
    trained_bytes = frozen_bytes = 0
    for name, phase in task.phases.items():
        trained = sum(weight.numel() for weight in phase.parameters() if weight.requires_grad)
        still = sum(weight.numel() for weight in phase.parameters()) - trained
        # 32-bit weight and gradient, and Adam's two moments
        trained_bytes += 16 * trained
        frozen_bytes += 4 * still
        lines.append(f"{name}: {trained / 1e6:.2f} M weights to train" + (f", {still / 1e6:.2f} M fixed" if still else ""))
    for part, module in task.frozen.items():
        size = sum(weight.numel() for weight in module.parameters())
        frozen_bytes += 4 * size
        lines.append(f"given {part}: {size / 1e6:.2f} M weights, fixed")
    averaged = sum(weight.numel() for module in task.parts().values() for weight in module.parameters())
    total_gb = (trained_bytes + frozen_bytes + 4 * averaged) / 2**30
    lines.append(
        f"memory of a worker: {total_gb:.2f} GiB for weights, gradients, Adam and the moving average; activations beside"
    )
    least = run.workers if isinstance(run.workers, int) else run.workers[0]
    rows = train.batch_size * train.accumulate
    steps = [-(-stream.rows_per_epoch // (rows * workers)) for workers in sorted({least, run.most_workers})]
    lines.append(
        f"data: {stream.rows_per_epoch} rows of {len(stream.classes)} classes; {rows} rows a worker and step, "
        f"{' to '.join(map(str, reversed(steps)))} steps an epoch"
    )
    drawn = train.steps * rows * run.most_workers
    lines.append(
        f"{train.steps} steps draw {drawn} rows, {drawn / stream.rows_per_epoch:.1f} epochs, with {run.most_workers} workers"
    )
    return lines
