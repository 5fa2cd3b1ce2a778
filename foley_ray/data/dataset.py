"""dataset (Parquet) -> batches: the endless, ordered stream of training crops that Ray Data feeds to the workers.

What is drawn when is decided by pure functions of (seed, epoch): `epoch_order` permutes the rows of a window, `row_rng` gives
each drawn row its own randomness. Ray Data runs one task per window of row groups (a small set is a single window, so an epoch
is one perfect shuffle; a large one is read in permuted windows and never held whole) and streams decoded crops onwards.
"""

import io
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import soundfile as sf
import torch
from pydantic import Field
from ray.data import TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback

from foley_ray.config import Settings
from foley_ray.data.augment import training_crop
from foley_ray.data.manifest import DATA_FOLDER, load_info
from foley_ray.errors import DatasetError
from foley_ray.spec import AudioSpec

WINDOW_ROWS = 4096
BLOCK_ROWS = 32
"""Rows a reading task hands over at a time: 32 crops of 4 s as 16-bit are 5.6 MB."""


class StreamSettings(Settings):
    """Which rows to draw, how often, and how to vary them."""

    split: str = "train"
    shippable_only: bool = False
    seed: int = 0
    balance: float = Field(0.0, ge=0, le=1, description="0 draws recordings equally often, 1 classes; between: a power")
    augment: bool = False
    captions: Mapping[str, tuple[str, ...]] = Field({}, description="class -> wordings that may replace its rows' captions")
    caption_share: float = Field(0.8, ge=0, le=1, description="share of rows of such a class that get one of the wordings")


def row_rng(seed: int, epoch: int, draw: int, sha256: str) -> np.random.Generator:
    """The randomness of one drawn row: a function of the run's seed, the epoch, the draw within it and the row's id."""
    return np.random.default_rng([seed, epoch, draw, int(sha256[:15], 16)])


def epoch_order(class_ids: np.ndarray, seed: int, epoch: int, window: int, balance: float) -> np.ndarray:
    """Row indices in the order of one epoch of a window: a permutation, or with `balance` as many weighted draws.

    A class of n rows weighs n ** (1 - balance): with 0 each row is drawn once, with 1 each class equally often.
    """
    rng = np.random.default_rng([seed, epoch, window])
    if balance == 0:
        return rng.permutation(len(class_ids))
    _, inverse, counts = np.unique(class_ids, return_inverse=True, return_counts=True)
    weight = counts.astype(np.float64) ** (1 - balance)
    expected = (weight / weight.sum() / counts)[inverse] * len(class_ids)
    # each row whole times, the rest by systematic sampling: the share of every class is met to within one draw
    order = rng.permutation(len(class_ids))
    steps = np.floor(np.cumsum(expected[order]) + rng.random())
    drawn = np.repeat(order, np.diff(steps, prepend=0).astype(int))
    return rng.permutation(drawn)


def training_stream(
    dataset: Path, settings: StreamSettings, spec: AudioSpec, rows: int, first_row: int = 0
) -> ray.data.Dataset:
    """At least `rows` training rows, lazily: columns wave (int16, T), caption, class_id, sha256, epoch.

    `first_row` starts the stream at that row, for a resumed run. Raises DatasetError if the dataset is
    missing, empty in this split, or was ingested at another sample rate.
    """
    info = load_info(dataset)
    if info.sample_rate_hz != spec.sample_rate_hz:
        raise DatasetError(
            f"dataset {dataset} is at {info.sample_rate_hz} Hz but the model works at {spec.sample_rate_hz} Hz; "
            "ingest the source again with the model's preset"
        )
    classes = {name: index for index, name in enumerate(info.classes)}
    try:
        windows = _windows(dataset)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"dataset {dataset} is damaged ({error}); ingest again") from None
    if not windows[0]:
        raise DatasetError(f"dataset {dataset} has no Parquet files in {DATA_FOLDER}/; ingest again")
    sizes = [_selected(_read(window, ("class", "split", "shippable")), settings).num_rows for window in windows]
    if sum(sizes) == 0:
        what = f"split {settings.split!r}" + (" and shippable" if settings.shippable_only else "")
        raise DatasetError(
            f"dataset {dataset} has no rows with {what}; it has {info.rows('train')} train and {info.rows('eval')} eval rows"
        )
    items, position = [], 0
    epoch = 0
    while position < first_row + rows:
        for index in np.random.default_rng([settings.seed, epoch]).permutation(len(windows)):
            if position + sizes[index] > first_row and sizes[index]:
                items.append({"epoch": epoch, "window": int(index), "skip": max(first_row - position, 0)})
            position += sizes[index]
        epoch += 1

    def read_window(batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        for epoch, window, skip in zip(batch["epoch"], batch["window"], batch["skip"], strict=True):
            yield from _crops(windows[window], int(epoch), int(window), settings, spec, classes, int(skip))

    stream = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        read_window,
        batch_size=1,
        num_cpus=0.5,  # decoding is light beside training; a whole core each would starve the workers of a small machine
        compute=TaskPoolStrategy(size=min(2, len(items))),
    )
    stream.context.custom_execution_callback_classes = [_Breather]
    return stream


class _Breather(ExecutionCallback):  # type: ignore[misc]
    """Lets Ray Data's scheduler sleep between its rounds.

    While the workers are slower than the readers, which is nearly always, every reading task has a block waiting, Ray 2.60's
    loop finds that all are ready and goes round without a pause: 45 % of a core, measured, on a machine that has two.
    """

    def on_execution_step(self, executor: object) -> None:
        """20 ms a round still schedule 50 blocks of 32 rows a second."""
        time.sleep(0.02)


def collate(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """A batch of the stream as the training tasks take it: wave (B, T) float32 tensor, captions and ids as lists."""
    return {
        "wave": torch.from_numpy(np.stack(list(batch["wave"])).astype(np.float32) / 32767.0),
        "caption": [str(text) for text in batch["caption"]],
        "class_id": torch.tensor(np.array(batch["class_id"], dtype=np.int64)),
        "sha256": [str(row) for row in batch["sha256"]],
    }


def _windows(dataset: Path) -> list[list[tuple[str, int]]]:
    """The dataset's row groups, (file, index), in runs of about WINDOW_ROWS rows."""
    windows: list[list[tuple[str, int]]] = [[]]
    held = 0
    for path in sorted((dataset / DATA_FOLDER).glob("*.parquet")):
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            if held >= WINDOW_ROWS:
                windows.append([])
                held = 0
            windows[-1].append((str(path), group))
            held += metadata.row_group(group).num_rows
    return windows


def _read(window: list[tuple[str, int]], columns: tuple[str, ...]) -> pa.Table:
    return pa.concat_tables(pq.ParquetFile(path).read_row_group(group, columns=list(columns)) for path, group in window)


def _selected(table: pa.Table, settings: StreamSettings) -> pa.Table:
    keep = np.asarray(table["split"]) == settings.split
    if settings.shippable_only:
        keep &= np.asarray(table["shippable"])
    return table.filter(pa.array(keep))


def _crops(
    window_groups: list[tuple[str, int]],
    epoch: int,
    window: int,
    settings: StreamSettings,
    spec: AudioSpec,
    classes: Mapping[str, int],
    skip: int,
) -> Iterator[dict[str, Any]]:
    """One epoch of one window from its `skip`-th draw on, as blocks of crops."""
    columns = ("audio", "caption", "class", "split", "shippable", "sha256")
    table = _selected(_read(window_groups, columns), settings)
    names, captions = table["class"].to_pylist(), table["caption"].to_pylist()
    class_ids = np.array([classes.get(name, -1) for name in names])  # -1: a source without classes
    order = epoch_order(class_ids, settings.seed, epoch, window, settings.balance)
    # what may be mixed with what: rows of one class, or without classes of one caption
    kinds = np.unique([name or f"caption {text}" for name, text in zip(names, captions, strict=True)], return_inverse=True)[1]
    audio, ids = table["audio"], table["sha256"].to_pylist()

    def decode(row: int) -> np.ndarray:
        wave, _ = sf.read(io.BytesIO(audio[row].as_py()), dtype="float32")
        return np.asarray(wave)

    def another(rng: np.random.Generator, mates: np.ndarray) -> np.ndarray:
        return decode(int(rng.choice(mates)))

    for start in range(skip, len(order), BLOCK_ROWS):
        rows = order[start : start + BLOCK_ROWS]
        waves, chosen = [], []
        for draw, row in enumerate(rows, start=start):
            rng = row_rng(settings.seed, epoch, draw, ids[row])
            mates = np.flatnonzero(kinds == kinds[row])
            wave_T = training_crop(
                decode(row),
                spec.clip_samples,
                spec.sample_rate_hz,
                rng,
                settings.augment,
                another=partial(another, rng, mates),
            )
            waves.append((wave_T * 32767).astype(np.int16))
            wordings = settings.captions.get(names[row], ())
            reworded = wordings and rng.random() < settings.caption_share
            chosen.append(str(rng.choice(wordings)) if reworded else captions[row])
        yield {
            "wave": np.stack(waves),
            "caption": np.array(chosen),
            "class_id": class_ids[rows],
            "sha256": np.array([ids[row] for row in rows]),
            "epoch": np.full(len(rows), epoch),
        }
