"""What an ingested dataset is: the columns of its rows, its quarantine, its summary, and who goes to train or eval.

DATASET/
  dataset.json         DatasetInfo; written last, so a folder without it is an ingest that never finished
  data/*.parquet       rows of ROW_SCHEMA; the files by name, and the rows within, are in source order
  quarantine.parquet   rows of QUARANTINE_SCHEMA: every recording left out, and why
"""

import hashlib
import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self, get_args

import pyarrow as pa
from pydantic import Field, ValidationError

from foley_ray.data.folder import Folder, has_file, read_text
from foley_ray.errors import DatasetError, OutputError
from foley_ray.settings import Settings, describe

FORMAT_VERSION = 1
INFO_FILE = "dataset.json"
DATA_FOLDER = "data"
QUARANTINE_FILE = "quarantine.parquet"

Split = Literal["train", "eval"]
SPLITS: tuple[Split, ...] = get_args(Split)

ROW_SCHEMA = pa.schema(
    [
        pa.field("audio", pa.binary(), nullable=False),  # FLAC bytes: mono, 16-bit, at sample_rate_hz
        pa.field("caption", pa.string(), nullable=False),
        pa.field("class", pa.string(), nullable=False),  # snake_case; empty where the source has captions only
        pa.field("split", pa.string(), nullable=False),  # one of SPLITS
        pa.field("licence", pa.string(), nullable=False),  # empty where the source says nothing; likewise author
        pa.field("author", pa.string(), nullable=False),
        pa.field("recording", pa.string(), nullable=False),  # rows cut from one recording share it
        pa.field("sha256", pa.string(), nullable=False),  # of the source file's bytes, in hex: the row's id
        pa.field("duration_s", pa.float32(), nullable=False),
        pa.field("sample_rate_hz", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # its name below the ingested folder or URI
        pa.field("shippable", pa.bool_(), nullable=False),  # may a model trained on this row be given away?
        pa.field("other_captions", pa.list_(pa.string())),  # of a source with several per sound: training draws one of all
    ]
)

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # a Reason
        pa.field("detail", pa.string(), nullable=False),  # the value seen, for a person
        pa.field("sha256", pa.string()),  # null where the file could not be read
    ]
)


class Reason(StrEnum):
    """Why a recording was left out."""

    OUTSIDE = "outside"  # its path leaves the source folder
    MISSING = "missing"  # no such file, or not readable
    EMPTY = "empty"  # no bytes, or no samples
    NOT_AUDIO = "not_audio"  # no format that libsndfile knows
    CORRUPT = "corrupt"  # audio that breaks off or contradicts its header, and archives that do
    NOT_FINITE = "not_finite"  # NaN or infinite samples
    SILENT = "silent"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    TOO_LARGE = "too_large"  # more bytes than one recording may have in memory
    NO_CAPTION = "no_caption"  # neither a caption nor a class
    DUPLICATE = "duplicate"  # the same bytes as an earlier recording


class DatasetInfo(Settings):
    """Summary of a finished dataset; `dataset.json` is this."""

    format_version: int = FORMAT_VERSION
    sample_rate_hz: int = Field(ge=1)
    counts: dict[Split, dict[str, int]] = Field(description="rows per split and class; both splits are always there")
    classes: tuple[str, ...] = Field(description="class names, sorted")
    shippable_rows: int = Field(ge=0)
    quarantined: dict[Reason, int] = Field(description="recordings left out, per reason")
    straddling_recordings: int = Field(ge=0, description="recordings with rows in both splits, as the source has them")
    hours: float = Field(ge=0)
    source: str = Field(description="which folder was ingested, and how it was laid out")
    digest: str = Field(description="rows_digest of the rows; the same source and settings give the same")

    def rows(self, split: Split | None = None) -> int:
        """Number of rows in one split, or in all."""
        return sum(sum(self.counts[name].values()) for name in SPLITS if split in (None, name))

    def save(self, dataset: Path) -> None:
        """Write `dataset.json` whole or not at all. Raises OutputError where that is not possible."""
        partial = dataset / f"{INFO_FILE}.partial"
        try:
            partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
            partial.replace(dataset / INFO_FILE)
        except OSError as error:
            raise OutputError(f"cannot write {dataset / INFO_FILE}: {error.strerror}") from None

    @classmethod
    def load(cls, dataset: Folder) -> Self:
        """Read `dataset.json`. Raises DatasetError: no folder, never finished, another version, or damaged."""
        file = f"{dataset}/{INFO_FILE}"
        if isinstance(dataset, Path) and not dataset.is_dir():
            raise DatasetError(f"no dataset at {dataset}: make one with `foley ingest SOURCE --out {dataset}`")
        if not has_file(dataset, INFO_FILE):
            raise DatasetError(f"{dataset} has no {INFO_FILE}: not a dataset, or its ingest never finished; ingest again")
        try:
            content = json.loads(read_text(dataset, INFO_FILE))
            version = content.get("format_version")
        except (OSError, ValueError, AttributeError) as error:
            raise DatasetError(f"{file} is damaged ({error}); ingest again") from None
        if version != FORMAT_VERSION:
            raise DatasetError(f"{file} has format version {version!r}, this foley_ray reads {FORMAT_VERSION}; ingest again")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise DatasetError(f"{file} is damaged ({describe(error)}); ingest again") from None


def load_info(dataset: Folder) -> DatasetInfo:
    """The summary of a finished dataset. Raises DatasetError as `DatasetInfo.load` does."""
    return DatasetInfo.load(dataset)


def rows_digest(rows: Iterable[tuple[str, ...]]) -> str:
    """Hex digest of (sha256, caption, class, split) tuples, in whatever order they come."""
    digest = hashlib.sha256()
    for row in sorted(rows):
        digest.update(json.dumps(row).encode() + b"\n")  # quoted, so no caption can pass for a field boundary
    return digest.hexdigest()


def split_of(recording: str, *, eval_share: float, seed: int) -> Split:
    """The split of everything cut from one recording, for sources that do not say.

    Depends on nothing but the arguments, so rows added later move no earlier row. `eval_share` is met on average over
    many recordings; a handful may all land in train.
    """
    # surrogatepass: a key made from a file name may hold what is no UTF-8
    word = hashlib.sha256(f"{seed}:{recording}".encode(errors="surrogatepass")).digest()[:8]
    return "eval" if int.from_bytes(word, "big") < eval_share * 2**64 else "train"
