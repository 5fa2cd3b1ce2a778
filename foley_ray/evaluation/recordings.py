"""Real recordings of an ingested dataset, whole and in memory: what clips are judged against.

Knows Parquet, not models. An evaluation looks at every row of some classes once, so it reads plainly, without Ray.
"""

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf

from foley_ray.audio.wave import fit, level, repeat_to
from foley_ray.data.augment import SHORT_S
from foley_ray.data.manifest import DATA_FOLDER, DatasetInfo, Split, load_info
from foley_ray.errors import DatasetError
from foley_ray.spec import AudioSpec
from foley_ray.stages.rank import audible

STREAM_ROWS = 64
PACE_S = 0.5
"""Between the starts of a repeated event: a walking pace."""


class Recording(NamedTuple):
    """One row of a dataset."""

    wave_T: np.ndarray
    """float32, mono, at the dataset's rate, as recorded."""
    class_name: str
    split: Split
    recording: str
    """Rows cut from one recording share it: they are no independent witnesses."""
    sha256: str
    shippable: bool


def read_recordings(dataset: Path, spec: AudioSpec, classes: Collection[str] | None = None) -> list[Recording]:
    """All rows of these classes (of all that have a class), in the dataset's order.

    Raises DatasetError if the dataset is missing, damaged, at another rate than `spec`, or lacks one of the classes.
    """
    check_rate_and_classes(dataset, load_info(dataset), spec, classes)
    return list(stream_recordings(dataset, lambda row: row["class"] and (classes is None or row["class"] in classes)))


def check_rate_and_classes(dataset: Path, info: DatasetInfo, spec: AudioSpec, classes: Collection[str] | None) -> None:
    """Raise DatasetError if the dataset is at another rate than `spec`, or lacks one of the classes."""
    if info.sample_rate_hz != spec.sample_rate_hz:
        raise DatasetError(
            f"dataset {dataset} is at {info.sample_rate_hz} Hz, the model at {spec.sample_rate_hz} Hz; ingest again"
        )
    missing = sorted(set(classes or ()) - set(info.classes))
    if missing:
        near = [name for wanted in missing for name in get_close_matches(wanted, info.classes, n=2)]
        meant = f" (did you mean: {', '.join(near)}?)" if near else ""
        raise DatasetError(
            f"dataset {dataset} has no class {', '.join(missing)}{meant}; it has {', '.join(info.classes) or 'no classes'}"
        )


def stream_recordings(dataset: Path, wanted: Callable[[dict[str, Any]], bool]) -> Iterator[Recording]:
    """Rows one after another, of which those that are not `wanted` are never decoded. Raises DatasetError if one is damaged."""
    columns = ["audio", "class", "split", "recording", "sha256", "shippable"]
    try:
        for path in sorted((dataset / DATA_FOLDER).glob("*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(STREAM_ROWS, columns=columns):
                for row in filter(wanted, batch.to_pylist()):
                    wave_T, _ = sf.read(io.BytesIO(row.pop("audio")), dtype="float32")
                    yield Recording(wave_T, row.pop("class"), **row)
    except (pa.ArrowException, OSError, sf.LibsndfileError) as error:
        raise DatasetError(f"dataset {dataset} is damaged ({error}); ingest again") from None


def clip(wave_T: np.ndarray, spec: AudioSpec) -> np.ndarray:
    """A sound as all judges hear it: levelled to the training peak, the first `clip_s` seconds, zeros after a shorter one.

    A recording below a second is one event (a step, a key press), of which a clip holds several, and which alone hardly
    anybody could name: it is repeated, at least PACE_S apart.
    """
    wave_T = level(wave_T)
    if len(wave_T) < min(SHORT_S, spec.clip_s / 2) * spec.sample_rate_hz:
        wave_T = repeat_to(fit(wave_T, max(len(wave_T), spec.samples(PACE_S))), spec.clip_samples)
    return level(fit(wave_T, spec.clip_samples))


def clips(waves: Sequence[np.ndarray], spec: AudioSpec) -> np.ndarray:
    """(N, T) of `clip`."""
    return np.stack([clip(wave_T, spec) for wave_T in waves]) if waves else np.zeros((0, spec.clip_samples), dtype=np.float32)


def stretches(wave_T: np.ndarray, spec: AudioSpec, samples: int) -> Iterator[np.ndarray]:
    """What a clip may be a copy of: half-overlapping stretches (T,) of `samples`, but for those that are nearly silent.

    A recording that is no longer than one is heard as all judges hear it.
    """
    if len(wave_T) <= samples:
        yield clip(wave_T, spec)[:samples]
        return
    starts = [*range(0, len(wave_T) - samples, samples // 2), len(wave_T) - samples]
    yield from audible(np.stack([wave_T[start : start + samples] for start in starts]))
