"""The whole path in miniature: make recordings, ingest them, train every part of `tiny`, assemble, ready to generate.

What comes out proves that everything works on this machine; it is not yet a sound anybody would use.
"""

from collections.abc import Callable
from pathlib import Path

from foley_ray.checkpoint import MODEL_FOLDER, ModelInfo, assemble
from foley_ray.config import TASKS, Task
from foley_ray.data.ingest import ingest
from foley_ray.data.manifest import INFO_FILE
from foley_ray.data.procedural import write_recordings
from foley_ray.jobfile import TrainJob
from foley_ray.presets import preset
from foley_ray.training.worker import run_job

INITS: dict[Task, tuple[Task, ...]] = {"diffusion": ("clap", "vae"), "finetune": ("clap", "vae", "diffusion")}


def demo(out: Path, tell: Callable[[str], None], steps: int | None = None, workers: int = 2) -> tuple[Path, ModelInfo]:
    """Train the tiny preset on generated recordings in `out`; returns the model folder. A second call does what is missing.

    `steps` replaces every task's own number of steps.
    """
    rate = preset("tiny").model.audio.sample_rate_hz
    dataset = out / "dataset"
    if not (dataset / INFO_FILE).is_file():
        tell("making procedural recordings (noise bursts, clicks, resonances) and ingesting them")
        write_recordings(out / "recordings", count_per_class=12, sample_rate_hz=rate)
        ingest(out / "recordings", dataset, sample_rate_hz=rate)
    for task in TASKS:
        job = TrainJob(
            task=task,
            preset="tiny",
            data=dataset,
            out=out / "runs" / task,
            init=tuple(out / "runs" / name for name in INITS.get(task, ())),
            settings={} if steps is None else {"steps": steps},
            workers=workers,
        )
        tell(f"training {task}")
        run_job(job)
    model = out / MODEL_FOLDER
    return model, assemble([out / "runs" / task / MODEL_FOLDER for task in TASKS], model)
