"""dataset (Parquet) -> batches: the endless, ordered sequence of training rows that Ray Data feeds to each worker.

What is drawn when is decided by pure functions of (seed, epoch): `epoch_order` permutes the rows of a window, `row_rng` gives
each drawn row its own randomness, `TrainingStream.pieces` lays windows end to end. A worker's share of a step follows from its
rank and the number of workers, so a resumed run asks for exactly the rows that the unbroken one would have seen.

A window is some of the row groups, from all over the set, for sources come sorted by class: a small set is a single window, so
an epoch is one perfect shuffle; a large one is read in permuted windows and never held whole. With fewer windows than workers,
workers share a window and take turns at its batches; with more, each worker reads windows of its own. Nothing is read twice.
"""

import difflib
import io
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import soundfile as sf
import torch
from pydantic import Field
from ray.data import TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.collate_fn import NumpyBatchCollateFn

from foley_ray.config import USUAL_AUGMENTATION, Augmentation
from foley_ray.data.augment import training_crop
from foley_ray.data.captions import Manner, drop_words, wordings_of
from foley_ray.data.folder import Folder, open_file, parquet_files
from foley_ray.data.manifest import DATA_FOLDER, load_info
from foley_ray.errors import DatasetError
from foley_ray.settings import Settings
from foley_ray.spec import AudioSpec

WINDOW_ROWS, WINDOW_BYTES = 4096, 512 * 2**20
"""What a window holds at most, about: of long recordings fewer rows."""
BLOCK_BYTES = 16 * 2**20
"""What a reading task hands over at a time: some ninety crops of 4 s as 16-bit. With 4 MiB `_Breather` was the limit."""
READERS = 2
"""Reading tasks per worker: one at work, one opening the next window."""
KEPT_BYTES = 128 * 2**20
"""Of decoded recordings that a reading task keeps: 50 minutes. It draws some 4,000 rows, so those of a small set many times."""
READER_CPUS = 0.1
"""What each reserves. Decoding is light beside training, and a task that waits for its worker must not hold a core."""

Columns = dict[str, np.ndarray]


class StreamSettings(Settings):
    """Which rows to draw, how often, and how to vary them."""

    split: str = "train"
    shippable_only: bool = False
    only_classes: tuple[str, ...] = Field((), description="rows of these classes alone; empty for all")
    seed: int = 0
    balance: float = Field(0.0, ge=0, le=1, description="0 draws recordings equally often, 1 classes; between: a power")
    augment: bool = False
    augmentation: Augmentation = USUAL_AUGMENTATION
    captions: Mapping[str, tuple[str, ...]] = Field({}, description="class -> wordings that may replace its rows' captions")
    caption_share: float = Field(0.8, ge=0, le=1, description="share of rows of such a class that get one of the wordings")
    word_dropout: float = Field(0.0, ge=0, lt=1)

    def manner(self, class_name: str, rng: np.random.Generator) -> Manner:
        """Whether a crop is to be a series or hold its recording once; neither in a class that has no `series` share."""
        share = self.augmentation.series.get(class_name) if self.augment else None
        if share is None:
            return ""
        return "series" if rng.random() < share else "once"

    def wording(self, caption: str, class_name: str, rng: np.random.Generator, manner: Manner = "") -> str:
        """What a row is called this time: its caption or one of its class's wordings, less some words."""
        wordings = wordings_of(self.captions, class_name, manner)
        text = str(rng.choice(wordings)) if wordings and rng.random() < self.caption_share else caption
        return drop_words(text, self.word_dropout, rng) if self.word_dropout else text


def row_rng(seed: int, epoch: int, draw: int, sha256: str) -> np.random.Generator:
    """The randomness of one drawn row: a function of the run's seed, the epoch, the draw within it and the row's id."""
    return np.random.default_rng([seed, epoch, draw, int(sha256[:15], 16)])


def draws_per_row(class_ids: np.ndarray, balance: float) -> np.ndarray:
    """How often each row of a whole set is drawn in an epoch, on average (N,): once, or with `balance` by its class.

    A class of n rows weighs n ** (1 - balance): with 0 each row is drawn once, with 1 each class equally often.
    """
    if balance == 0:
        return np.ones(len(class_ids))
    _, inverse, counts = np.unique(class_ids, return_inverse=True, return_counts=True)
    weight = counts.astype(np.float64) ** (1 - balance)
    per_row: np.ndarray = (weight / weight.sum() / counts)[inverse] * len(class_ids)
    return per_row


class Drawing(NamedTuple):
    """What an epoch draws of a window."""

    window: int
    share: np.ndarray
    """(N,): each row's, in proportion to the others'."""
    rows: int


def epoch_order(drawing: Drawing, seed: int, epoch: int) -> np.ndarray:
    """Row indices in the order of one epoch of a window. Of equal shares and as many draws as rows that is a permutation."""
    rng = np.random.default_rng([seed, epoch, drawing.window])
    share = drawing.share
    if drawing.rows == len(share) and np.ptp(share) == 0:
        return rng.permutation(len(share))
    expected = share / share.sum() * drawing.rows
    # each row whole times, the rest by systematic sampling: the share of every class is met to within one draw
    order = rng.permutation(len(share))
    steps = np.floor(np.cumsum(expected[order]) + rng.random())
    drawn = np.repeat(order, np.diff(steps, prepend=0).astype(int))
    return rng.permutation(drawn)


class Window(ABC):
    """Some row groups of a dataset, opened: its selected rows, and what one of them becomes in a batch."""

    columns: tuple[str, ...]
    """What it reads of the files, beside class, split, shippable and sha256."""

    def __init__(self, table: pa.Table, drawing: Drawing, settings: StreamSettings, classes: Mapping[str, int]):
        self.drawing, self.settings = drawing, settings
        self.names: list[str] = table["class"].to_pylist()
        self.ids: list[str] = table["sha256"].to_pylist()
        self.shippable: list[bool] = table["shippable"].to_pylist()
        self.class_ids = np.array([classes.get(name, -1) for name in self.names])  # -1: a source without classes
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def rows(self, epoch: int, start: int, stop: int) -> list[dict[str, Any]]:
        """The draws start to stop - 1 of an epoch."""
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(self.drawing, self.settings.seed, epoch))
        drawn = []
        for draw in range(start, stop):
            row = int(self._order[1][draw])
            rng = row_rng(self.settings.seed, epoch, draw, self.ids[row])
            known = {"class_id": self.class_ids[row], "sha256": self.ids[row], "shippable": self.shippable[row], "epoch": epoch}
            drawn.append(self.row(row, rng) | known)
        return drawn

    @abstractmethod
    def row(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        """What this kind of window adds to one drawn row."""


class AudioWindow(Window):
    """Recordings, decoded and cropped on the fly: columns wave (int16, T), caption and manner."""

    columns = ("audio", "caption", "other_captions")

    def __init__(
        self, table: pa.Table, drawing: Drawing, settings: StreamSettings, classes: Mapping[str, int], *, spec: AudioSpec
    ):
        super().__init__(table, drawing, settings, classes)
        self.spec = spec
        self.audio, self.captions = table["audio"], table["caption"].to_pylist()
        # absent from datasets of before it was there
        others = table["other_captions"].to_pylist() if "other_captions" in table.column_names else [None] * len(self.captions)
        self.others: list[list[str] | None] = others
        # what may be mixed with what: rows of one class, or without classes of one caption
        kinds = [name or f"caption {text}" for name, text in zip(self.names, self.captions, strict=True)]
        self.kinds = np.unique(kinds, return_inverse=True)[1]
        self._kept: dict[int, np.ndarray] = {}
        self._room = KEPT_BYTES

    def row(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        """One crop, and one of the sound's captions or of its class's wordings."""
        mates = np.flatnonzero(self.kinds == self.kinds[row])
        manner = self.settings.manner(self.names[row], rng)
        wave_T = training_crop(
            self._decode(row),
            self.spec.clip_samples,
            self.spec.sample_rate_hz,
            rng,
            self.settings.augmentation if self.settings.augment else None,
            another=lambda: self._decode(int(rng.choice(mates))),
            class_name=self.names[row],
            manner=manner,
        )
        others = self.others[row]
        caption = str(rng.choice([self.captions[row], *others])) if others else self.captions[row]
        caption = self.settings.wording(caption, self.names[row], rng, manner)
        return {"wave": (wave_T * 32767).astype(np.int16), "caption": caption, "manner": manner}

    def _decode(self, row: int) -> np.ndarray:
        """A recording (T,) float32. Kept as its 16 bits while there is room: no row is likelier to come again."""
        wave_T = self._kept.get(row)
        if wave_T is None:
            try:
                wave_T, _ = sf.read(io.BytesIO(self.audio[row].as_py()), dtype="int16")
            except sf.LibsndfileError as error:
                raise DatasetError(f"row {self.ids[row][:12]} of the dataset is damaged ({error}); ingest again") from None
            if wave_T.nbytes <= self._room:
                self._kept[row] = wave_T
                self._room -= wave_T.nbytes
        return wave_T.astype(np.float32) / np.float32(32768)


class Piece(NamedTuple):
    """A window as one epoch of a lane runs through it."""

    epoch: int
    window: int
    start: int
    """The lane's row at which the window begins."""
    size: int


class TrainingStream:
    """The endless sequence of training rows of a dataset, and each worker's share of it."""

    def __init__(
        self,
        folder: Folder,
        settings: StreamSettings,
        classes: tuple[str, ...],
        kind: type[Window],
        **window_options: Any,
    ):
        """Raises DatasetError if the folder is damaged, has no rows of the wanted kind or does not know a wanted class."""
        for name in (*settings.only_classes, *sorted(settings.augmentation.classes)):
            if name not in classes:
                near = ", ".join(difflib.get_close_matches(name, classes, n=3)) or ", ".join(classes[:6])
                raise DatasetError(f"{folder} has no class {name!r} among its {len(classes)}; did you mean: {near}")
        self.folder = folder
        self.settings = settings
        self.classes = classes
        self._open: Callable[..., Window] = partial(
            kind, settings=settings, classes={name: index for index, name in enumerate(classes)}, **window_options
        )
        self._columns = (*kind.columns, "class", "split", "shippable", "sha256")
        try:
            groups = _windows(folder)
            selected = [_selected(_read(folder, window, ("split", "shippable", "class")), settings) for window in groups]
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"dataset {folder} is damaged ({error}); make it again") from None
        if not groups:
            raise DatasetError(f"dataset {folder} has no Parquet files in {DATA_FOLDER}/; make it again")
        names = [name for table in selected for name in table["class"].to_pylist()]
        self.present = tuple(sorted({name for name in names if name}))
        """The classes that the wanted rows belong to."""
        ends = np.cumsum([table.num_rows for table in selected])
        shares = np.split(draws_per_row(np.array(list(map(str, names))), settings.balance), ends[:-1])
        self._groups = [group for group, share in zip(groups, shares, strict=True) if len(share)]
        self._shares = [share for share in shares if len(share)]
        self.sizes = [max(1, round(float(share.sum()))) for share in self._shares]
        """How many rows are drawn of each window in an epoch: as many as it has, more or less if classes are balanced."""
        self.rows_per_epoch = sum(self.sizes)

    def pieces(self, lane: int, lanes: int, from_row: int = 0) -> Iterator[Piece]:
        """The windows of one of several lanes, for ever, from the one that holds `from_row` on.

        Each epoch deals its permuted windows to the lanes in turn.
        """
        # one lane goes through everything in each epoch, so the first epochs of a small set need not be walked through
        first_epoch = from_row // self.rows_per_epoch if lanes == 1 else 0
        start = first_epoch * self.rows_per_epoch
        for epoch in count(first_epoch):
            for window in np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.sizes))[lane::lanes]:
                piece = Piece(epoch, int(window), start, self.sizes[window])
                start += piece.size
                if start > from_row:
                    yield piece

    def batches(self, rank: int, world: int, batch_rows: int, steps: range) -> Iterator[Columns]:
        """One worker's batches of some steps, in order: a function of its arguments and the settings alone.

        Beside the window's columns each has row, the number of the row in its lane.
        """
        lanes = min(world, len(self.sizes))
        lane, place = rank % lanes, rank // lanes
        sharers = len(range(lane, world, lanes))  # workers of the same lane take turns at its batches
        pieces = self.pieces(lane, lanes, (steps.start * sharers + place) * batch_rows)
        piece = next(pieces)
        window = self._window(piece.window)
        for step in steps:
            first = row = (step * sharers + place) * batch_rows
            rows: list[dict[str, Any]] = []
            while len(rows) < batch_rows:
                while row >= piece.start + piece.size:
                    before, piece = piece, next(pieces)
                    if piece.window != before.window:
                        del window  # before the next one is there, not after
                        window = self._window(piece.window)
                taken = min(batch_rows - len(rows), piece.start + piece.size - row)
                rows += window.rows(piece.epoch, row - piece.start, row - piece.start + taken)
                row += taken
            columns = {name: np.stack([np.asarray(item[name]) for item in rows]) for name in rows[0]}
            yield columns | {"row": np.arange(first, row)}

    def share(self, rank: int, world: int, batch_rows: int, steps: range, readers: int = READERS) -> ray.data.Dataset:
        """`batches` as a Ray Data stream, read by that many tasks: rows in order, `batch_rows` a step."""
        per_task = max(1, WINDOW_ROWS // (batch_rows * -(-world // min(world, len(self.sizes)))))
        tasks = [
            {"first": first, "last": min(first + per_task, steps.stop)} for first in range(steps.start, steps.stop, per_task)
        ]

        def read(batch: Columns) -> Iterator[Columns]:
            for first, last in zip(batch["first"], batch["last"], strict=True):
                yield from self.batches(rank, world, batch_rows, range(int(first), int(last)))

        if not tasks:  # a run that was stopped between its last step and its model
            return ray.data.from_items([])
        stream = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
            read, batch_size=1, num_cpus=READER_CPUS, compute=TaskPoolStrategy(size=min(readers, len(tasks)))
        )
        stream.context.execution_options.preserve_order = True
        stream.context.target_max_block_size = BLOCK_BYTES
        stream.context.custom_execution_callback_classes = [_Breather]
        return stream

    def _window(self, index: int) -> Window:
        table = _selected(_read(self.folder, self._groups[index], self._columns), self.settings)
        return self._open(table, Drawing(index, self._shares[index], self.sizes[index]))


def training_stream(dataset: Folder, settings: StreamSettings, spec: AudioSpec) -> TrainingStream:
    """Training crops of a dataset: columns wave (int16, T), caption, manner, class_id, sha256, epoch.

    Raises DatasetError if the dataset is missing, empty in this split, or was ingested at another sample rate.
    """
    info = load_info(dataset)
    if info.sample_rate_hz != spec.sample_rate_hz:
        raise DatasetError(
            f"dataset {dataset} is at {info.sample_rate_hz} Hz but the model works at {spec.sample_rate_hz} Hz; "
            "ingest the source again with the model's preset"
        )
    stream = TrainingStream(dataset, settings, info.classes, AudioWindow, spec=spec)
    if stream.rows_per_epoch == 0:
        what = f"split {settings.split!r}" + (" and shippable" if settings.shippable_only else "")
        raise DatasetError(
            f"dataset {dataset} has no rows with {what}; it has {info.rows('train')} train and {info.rows('eval')} eval rows"
        )
    return stream


class _Breather(ExecutionCallback):  # type: ignore[misc]
    """Lets Ray Data's scheduler sleep between its rounds.

    While the workers are slower than the readers, which is nearly always, every reading task has a block waiting, Ray 2.60's
    loop finds that all are ready and goes round without a pause: 45 % of a core, measured, on a machine that has two.
    """

    def on_execution_step(self, executor: object) -> None:
        """20 ms a round still schedule 50 blocks, or 4,500 crops of 4 s, a second."""
        time.sleep(0.02)


def collate(batch: Columns) -> dict[str, Any]:
    """A batch of a stream as the training tasks take it: wave (B, T), latent and embeddings as float32, words as lists."""
    found: dict[str, Any] = {
        "class_id": torch.tensor(np.array(batch["class_id"], dtype=np.int64)),
        "caption": [str(text) for text in batch["caption"]],
        "sha256": [str(row) for row in batch["sha256"]],
    }
    for name in ("wave", "latent", "audio_embedding"):
        if name in batch:
            column = batch[name]
            rows = column if column.dtype != object else np.stack(list(column))
            found[name] = torch.from_numpy(rows.astype(np.float32))
    if "wave" in found:
        found["wave"] /= 32767.0
    return found


class Collate(NumpyBatchCollateFn):  # type: ignore[misc]
    """`collate` in the form in which Ray Data asks for it."""

    def __call__(self, batch: Columns) -> dict[str, Any]:
        """A batch as the training tasks take it."""
        return collate(batch)


def _windows(dataset: Folder) -> list[list[tuple[str, int]]]:
    """The dataset's row groups, (file, index), dealt in turn to as many windows as keep each within WINDOW_ROWS and _BYTES."""
    groups: list[tuple[str, int]] = []
    rows = size = 0
    for name in parquet_files(dataset, DATA_FOLDER):
        with open_file(dataset, name) as file:
            metadata = pq.read_metadata(file)
        for index in range(metadata.num_row_groups):
            groups.append((name, index))
            rows += metadata.row_group(index).num_rows
            size += metadata.row_group(index).total_byte_size
    windows = min(len(groups), max(-(-rows // WINDOW_ROWS), -(-size // WINDOW_BYTES)))
    return [groups[first::windows] for first in range(windows)]


def _read(dataset: Folder, window: list[tuple[str, int]], columns: tuple[str, ...]) -> pa.Table:
    tables = []
    for name, group in window:
        with open_file(dataset, name) as file:
            tables.append(pq.ParquetFile(file).read_row_group(group, columns=list(columns)))
    return pa.concat_tables(tables)


def _selected(table: pa.Table, settings: StreamSettings) -> pa.Table:
    keep = np.asarray(table["split"]) == settings.split
    if settings.shippable_only:
        keep &= np.asarray(table["shippable"])
    if settings.only_classes:
        keep &= np.isin(table["class"].to_pylist(), settings.only_classes)
    return table.filter(pa.array(keep))
