"""Give a model what it learned from, heard and seen, so that it knows a copy (originals.py). Goes through each row once."""

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from foley_ray.checkpoint import ModelInfo, add_originals, read_info
from foley_ray.data.manifest import load_info
from foley_ray.errors import DatasetError
from foley_ray.evaluation.recordings import Recording, check_rate_and_classes, stream_recordings, stretches
from foley_ray.originals import Originals
from foley_ray.spec import AudioSpec
from foley_ray.stages.rank import RankStage

GROUP_WINDOWS = 64


def note_originals(
    model: Path,
    dataset: Path,
    shippable_only: bool = False,
    classes: Collection[str] | None = None,
    progress: Callable[[int], None] = lambda windows: None,
    earlier: Originals | None = None,
) -> ModelInfo:
    """Write MODEL/originals.safetensors from those of the dataset's `train` rows that it learned from; foley.json says so.

    Short events are heard as all judges hear them (recordings.clip), longer recordings stretch after stretch. The model's
    digest changes, for best-of-n chooses otherwise from now on. `progress` is told how many stretches were heard. `earlier` are
    those of a model that this one went on from, heard by the same CLAP: it may copy them as well. Raises ModelError for a model
    whose CLAP does not hear, DatasetError for a dataset at another rate, or without these classes or such rows.
    """
    info = read_info(model, needs=("clap",)).require_ranker("know a copy")
    spec, known = info.model.audio, load_info(dataset)
    check_rate_and_classes(dataset, known, spec, classes)

    def wanted(row: dict[str, Any]) -> bool:
        return row["split"] == "train" and (row["shippable"] or not shippable_only) and (not classes or row["class"] in classes)

    rank = RankStage(model, originals=False)
    embedded, pictures, recordings, names = [], [], [], []
    heard = _stretches(stream_recordings(dataset, wanted), spec, min(rank.window_samples, spec.clip_samples))
    while group := list(islice(heard, GROUP_WINDOWS)):
        waves = [wave_T for _, wave_T in group]
        embedded.append(rank.embed(waves))
        pictures.append(rank.pictures(np.concatenate([rank.windows(wave_T) for wave_T in waves])))
        recordings += [row.recording for row, _ in group]
        names += [row.class_name for row, _ in group]
        progress(len(recordings))
    if not embedded:
        raise DatasetError(f"dataset {dataset} has no such rows of split 'train'; look at its classes and licences")
    originals = Originals.of(np.concatenate(embedded), np.concatenate(pictures), recordings, names)
    return add_originals(model, earlier.joined(originals) if earlier else originals, known.digest[:16])


def _stretches(rows: Iterable[Recording], spec: AudioSpec, samples: int) -> Iterator[tuple[Recording, np.ndarray]]:
    for row in rows:
        for stretch_T in stretches(row.wave_T, spec, samples):
            yield row, stretch_T
