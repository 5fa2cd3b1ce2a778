"""`foley finetune`: a folder of recordings and a model, ours or an imported one, to a model that has learned from them.

RUN/made_with.json   what the next two are made of; other recordings or another caption are refused, not passed over
RUN/dataset          the recordings, checked and converted
RUN/cache            their latents and embeddings, where the model's CLAP hears
RUN/finetune         the training run; the same command goes on from where it stopped
RUN/model            the finished model: the given one with its unet and tuning layer replaced
"""

import csv
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foley_ray.audio.files import AUDIO_SUFFIXES, sound_files
from foley_ray.checkpoint import ModelInfo, assemble, model_folder, read_info, read_originals
from foley_ray.config import TrainConfig, TuningConfig, override
from foley_ray.data.sources.recording import utf8
from foley_ray.errors import ConfigError, OutputError, SourceError
from foley_ray.jobfile import CacheJob
from foley_ray.presets import PRESETS, Preset, preset

FEWEST = 10
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NOTE_FILE = "made_with.json"
ON_FEW: dict[str, Any] = {
    "steps": 1000,
    "batch_size": 4,
    "lr": 1e-5,
    "warmup_steps": 50,
    "ema_decay": 0.99,
    "checkpoint_every": 250,
}
"""For tens of recordings rather than thousands of hours: a small rate, an average over the last hundred steps."""
LORA_LR = 1e-4

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What is asked for."""

    recordings: Path
    model: Path
    out: Path
    caption: str | None = None
    """What all of the recordings are, where neither folders nor a table say it."""
    lora_rank: int | None = None
    tuning: TuningConfig | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    variants: int = 8
    """Crops of each recording in the cache."""
    workers: int = 1
    gpu: bool = False


def finetune(wish: Wish, say: Say = lambda line: None) -> ModelInfo:
    """RUN/model.

    Raises SourceError for recordings that cannot be used, ConfigError for a RUN that was made of others, and what ingest, cache
    and training raise.
    """
    from foley_ray.data.cache import is_cache
    from foley_ray.data.cache import run_job as make_cache
    from foley_ray.data.ingest import IngestSettings, ingest, summary
    from foley_ray.data.manifest import INFO_FILE, load_info
    from foley_ray.evaluation.copies import note_originals
    from foley_ray.interchange.made_with import agree
    from foley_ray.training.progress import progress_line
    from foley_ray.training.run import Run
    from foley_ray.training.worker import train

    model, out = model_folder(wish.model).resolve(), wish.out.resolve()
    info = read_info(model, needs=("clap", "vae", "unet", "vocoder"))
    chosen, settings = plan(wish, info)
    check_recordings(wish.recordings, wish.caption)
    earlier = read_originals(model, info)
    dataset, cache = out / "dataset", out / "cache"
    ingested = (dataset / INFO_FILE).is_file()
    agree(out / NOTE_FILE, made_of(wish), begun=ingested)
    if not ingested:
        source = captioned(wish.recordings, wish.caption, out / "recordings") if wish.caption else wish.recordings
        rate_hz = chosen.model.audio.sample_rate_hz
        ingest(source, dataset, sample_rate_hz=rate_hz, settings=IngestSettings(eval_share=0.0))
    say(summary(load_info(dataset), dataset))
    if load_info(dataset).rows() < FEWEST:
        raise SourceError(f"{load_info(dataset).rows()} recordings of {wish.recordings} can be used, fewer than {FEWEST}")
    data = dataset
    if info.can_rank:
        if not is_cache(cache):
            job = CacheJob(preset=chosen.name, data=dataset, out=cache, init=(model,), variants=wish.variants, gpu=wish.gpu)
            say(f"computing what {load_info(dataset).rows()} recordings are to the model")
            make_cache(job, chosen=chosen)
        data = cache
    run = Run(
        task="finetune",
        preset=chosen,
        train=settings,
        dataset=data,
        out=out / "finetune",
        init=(model,),
        captions=dict.fromkeys(load_info(dataset).classes, (wish.caption,)) if wish.caption else {},
        workers=wish.workers,
        use_gpu=wish.gpu,
    )
    train(run, lambda metrics: say(f"finetune  {progress_line(metrics)}"))
    made = assemble([model, out / "finetune" / "model"], out / "model", taught=info.sounds)
    # a few recordings are soon learned by heart, and those of the given model not forgotten: its CLAP, which heard them, stays
    return note_originals(out / "model", dataset, earlier=earlier) if info.can_rank else made


def plan(wish: Wish, info: ModelInfo) -> tuple[Preset, TrainConfig]:
    """The given model's settings as a preset, and how it is trained. Raises ConfigError for a setting that does not exist."""
    if wish.tuning is not None and wish.tuning.kind == "none" and "tuning" in info.parts:
        raise ConfigError(
            f"{wish.model} has a tuning layer that its unet was trained with; it cannot go on without (--tuning none)"
        )
    known = preset(info.preset if info.preset in PRESETS else "large").training["finetune"]
    changes = ON_FEW | ({"lora_rank": wish.lora_rank, "lr": LORA_LR} if wish.lora_rank else {}) | dict(wish.settings)
    settings = override(known, changes)
    model = info.model.model_copy(update={"tuning": wish.tuning}) if wish.tuning else info.model
    return Preset(name=info.preset, model=model, training={"finetune": settings}), settings


def check_recordings(folder: Path, caption: str | None) -> None:
    """Raise SourceError if there is nothing to learn from, or nothing says what it is."""
    if not folder.is_dir():
        raise SourceError(f"no folder of recordings at {folder}")
    sounds = sound_files(folder)
    if not sounds and not any((folder / name).is_file() for name in METADATA):
        raise SourceError(f"no sound files in {folder}; they are {', '.join(sorted(AUDIO_SUFFIXES))} files")
    if not any((folder / name).is_file() for name in METADATA) and len(sounds) < FEWEST:
        raise SourceError(f"{len(sounds)} recordings in {folder}, fewer than {FEWEST}: too few to learn anything but them")
    told = any((folder / name).is_file() for name in METADATA) or any(path.parent != folder for path in sounds)
    if not (told or caption):
        raise SourceError(
            f"nothing says what the sounds in {folder} are: give --caption 'a dog bark', or put them into a folder per class, "
            "or write a metadata.csv with columns file and caption"
        )


def made_of(wish: Wish) -> dict[str, Any]:
    """What dataset and cache depend on and training cannot see; its own check_run compares the model and the settings."""
    total, count = hashlib.sha256(), 0
    folder, out = wish.recordings.resolve(), wish.out.resolve()
    tables = (path for name in METADATA for path in sorted(folder.rglob(name)))
    for path in (*sound_files(folder), *tables):
        if path.is_relative_to(out):  # a run within the recordings is not of them
            continue
        count += 1
        total.update(os.fsencode(path.relative_to(folder)) + b"\0")  # a folder may name a class
        with suppress(OSError), path.open("rb") as file:  # what cannot be read, ingest tells of
            total.update(hashlib.file_digest(file, "sha256").digest())
    recordings = {"files": count, "digest": total.hexdigest()[:16]}
    return {"recordings": recordings, "caption": wish.caption, "variants": wish.variants}


def captioned(folder: Path, caption: str, place: Path) -> Path:
    """The sounds of a folder under a table that gives all of them the caption: links where the disk allows it, else copies."""
    try:
        shutil.rmtree(place, ignore_errors=True)
        sounds = [path for path in sound_files(folder) if path.is_file()]
        place.mkdir(parents=True)
        names = [f"{number:06d}_{utf8(path.name)}" for number, path in enumerate(sounds)]
        for path, name in zip(sounds, names, strict=True):
            try:
                os.link(path, place / name)
            except OSError:
                shutil.copy2(path, place / name)
        with (place / METADATA[0]).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("file", "caption", "class"), *((name, caption, caption) for name in names)])
    except OSError as error:
        raise OutputError(f"cannot write {place}: {error.strerror or error}; choose another --out") from error
    return place
