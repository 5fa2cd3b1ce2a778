"""recordings -> dataset: every recording of a SOURCE decoded, checked and written to Parquet by Ray Data.

Three passes. The driver lists the source (sources/); Ray tasks hash the recordings, so that the driver can tell duplicates by
their hashes; Ray tasks decode, check and encode FILE_ROWS recordings each and write them as one Parquet file. What the
driver handles per recording is its description and its outcome, never its sound. Each Parquet file depends only on its own
recordings, so the dataset is the same however many tasks ran side by side.

On a cluster SOURCE and OUT must be on storage that all nodes see under the same path; SOURCE may be a URI.
"""

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import ray
from pydantic import Field

from foley_ray.data.cluster import ensure_ray, quiet_progress
from foley_ray.data.decode import SoundRules, load_wave, to_flac
from foley_ray.data.manifest import (
    DATA_FOLDER,
    INFO_FILE,
    QUARANTINE_FILE,
    QUARANTINE_SCHEMA,
    ROW_SCHEMA,
    SPLITS,
    DatasetInfo,
    Reason,
    Split,
    rows_digest,
    split_of,
)
from foley_ray.data.sources import Recording, read_source
from foley_ray.data.staging import staging
from foley_ray.data.storage import Fault, Place, Storage
from foley_ray.errors import OutputError, SourceError
from foley_ray.jobfile import IngestJob
from foley_ray.presets import preset

logger = logging.getLogger(__name__)

FILE_ROWS = 256  # per Parquet file and per Ray task: some 20 MB of 4 s clips
ROW_GROUP_BYTES = 64 * 2**20  # of FLAC; what a reader must hold at once
HASH_ROWS = 1024  # per Ray task
MAX_DEATHS = 3  # of workers at one recording, before it is blamed: a machine may also fall away for its own reasons

MADE = ("audio", "duration_s", "sample_rate_hz")  # what a task adds to a row
TASK_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64()),
        pa.field("name", pa.binary()),  # a file name need not be UTF-8; this and the next three are its Place
        pa.field("start", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("column", pa.string()),
        *(field.with_nullable(True) for field in ROW_SCHEMA if field.name not in MADE),
    ]
)

Progress = Callable[[int, int], None]
Row = dict[str, Any]


class IngestSettings(SoundRules):
    """Which recordings are good enough, and how those without a split are divided."""

    eval_share: float = Field(default=0.1, ge=0, le=1, description="of the recordings, where the source has no split")
    seed: int = Field(default=0, description="draws that split")
    max_bad_share: float = Field(default=0.5, ge=0, le=1, description="quarantined share above which the source is refused")
    without: tuple[str, ...] = Field((), description="patterns of names, as clips/esc10_*, of recordings to pass over")


def ingest(
    source: str | Path,
    out: Path,
    *,
    sample_rate_hz: int,
    layout: str = "auto",
    settings: IngestSettings | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Turn the recordings of `source`, a folder or URI, into a dataset at `out`; returns its summary.

    Each recording becomes mono FLAC of 16 bits at `sample_rate_hz`: channels averaged, resampled by soxr (HQ), scaled down
    only where it would clip otherwise. Mono 16-bit sound at that rate keeps every sample. Recordings that cannot be used go
    to the quarantine with a Reason; of equal files the first in source order is kept. `progress(done, total)` is called
    after each Parquet file.

    The dataset is complete or absent: it grows in a hidden sibling of `out` that is renamed at the end, and what a killed
    run left there is cleared by the next. `overwrite` replaces a finished dataset, and nothing else.

    Raises SourceError when `source` cannot be read, a pattern of `settings.without` names nothing in it, it holds nothing
    usable, or more than `settings.max_bad_share` of it is quarantined; in the latter two cases `out` stays as it was and
    OUT.quarantine.csv beside it lists what was wrong. Raises OutputError when `out` is taken or cannot be written.
    """
    settings = settings or IngestSettings()
    storage, out = Storage(source), Path(out).absolute()
    found, recordings = read_source(storage, layout)
    recordings = _wanted(recordings, settings.without, storage)
    with staging(out, index=INFO_FILE, what="dataset", overwrite=overwrite) as folder:
        (folder / DATA_FOLDER).mkdir()
        _report(out).unlink(missing_ok=True)
        ensure_ray()
        quiet_progress()
        rows = [_row(index, recording, settings) for index, recording in enumerate(recordings)]
        quarantine = _known_faults(rows, recordings, _hashes(rows, storage))
        good = [row for row in rows if row["index"] not in quarantine]
        for done, outcomes in _write_rows(good, folder / DATA_FOLDER, storage, sample_rate_hz, settings):
            for outcome in outcomes:
                if outcome["reason"]:
                    quarantine[outcome["index"]] = (Reason(outcome["reason"]), outcome["detail"])
                else:
                    rows[outcome["index"]]["duration_s"] = outcome["duration_s"]
            if progress:
                progress(done + len(rows) - len(good), len(rows))
        for leftover in (folder / DATA_FOLDER).glob("*.partial"):  # of workers that died
            leftover.unlink()
        table = _quarantine_table(rows, quarantine)
        _refuse_bad_source(table, len(rows), out, settings)
        pq.write_table(table, folder / QUARANTINE_FILE)
        info = _info([row for row in rows if row["index"] not in quarantine], table, sample_rate_hz, f"{storage} ({found})")
        info.save(folder)
    return info


def run_job(job: IngestJob, progress: Progress | None = None) -> DatasetInfo:
    """`ingest` for a job file's settings; the preset sets the sample rate."""
    return ingest(
        job.source,
        job.out,
        sample_rate_hz=preset(job.preset).model.audio.sample_rate_hz,
        layout=job.layout,
        settings=IngestSettings(
            eval_share=job.eval_share,
            max_duration_s=job.max_duration_s,
            max_bad_share=job.max_bad_share,
            without=job.without,
        ),
        overwrite=job.overwrite,
        progress=progress,
    )


def summary(info: DatasetInfo, out: Path) -> str:
    """What a person wants to know of a finished ingest."""
    lines = [
        f"{out}: {info.rows()} recordings, {info.hours:.2f} h at {info.sample_rate_hz} Hz, {len(info.classes)} classes "
        f"({info.rows('train')} train, {info.rows('eval')} eval; {info.shippable_rows} shippable)"
    ]
    if info.quarantined:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(info.quarantined.items()))
        lines.append(f"left out: {counts}; each with its reason in {out / QUARANTINE_FILE}")
    if info.straddling_recordings:
        lines.append(f"warning: {info.straddling_recordings} recordings have rows in both train and eval, as the source says")
    return "\n".join(lines)


def _wanted(recordings: list[Recording], without: Sequence[str], storage: Storage) -> list[Recording]:
    """Those that no pattern names. A pattern that names none is a mistake that would only be heard in the model."""
    for pattern in without:
        kept = [recording for recording in recordings if not fnmatchcase(recording.source, pattern)]
        if len(kept) == len(recordings):
            raise SourceError(f"no recording of {storage} is named {pattern!r}; names are such as {recordings[0].source}")
        if not kept:
            raise SourceError(f"without {pattern!r} nothing is left of {storage}")
        recordings = kept
    return recordings


def _row(index: int, recording: Recording, settings: IngestSettings) -> Row:
    """A recording as the columns of ROW_SCHEMA that need no audio, plus where it is (the fields of a Place)."""
    split = recording.split or split_of(recording.recording, eval_share=settings.eval_share, seed=settings.seed)
    return {
        "index": index,
        **recording.place._asdict(),
        "name": os.fsencode(recording.place.name),
        "caption": recording.caption or "",
        "class": recording.class_name or "",
        "split": split,
        "licence": recording.licence,
        "author": recording.author,
        "recording": recording.recording,
        "source": recording.source,
        "shippable": recording.shippable,
        "other_captions": list(recording.captions[1:]),
    }


def _place(row: Row) -> Place:
    return Place(os.fsdecode(row["name"]), row["start"], row["size"], row["column"])


# ---------------------------------------------------------------------------------------------- hashes and duplicates


def _hashes(rows: list[Row], storage: Storage) -> list[str | None]:
    """sha256 of each row's sound, in order; None where it cannot be read. Stored in the rows as well."""
    columns = ("index", *Place._fields)
    tables = [pa.table({name: [row[name] for row in chunk] for name in columns}) for chunk in _chunks(rows, HASH_ROWS)]
    dataset = ray.data.from_arrow(tables)
    hashed = dataset.map_batches(_hash_batch, fn_kwargs={"storage": storage}, batch_size=None, batch_format="pyarrow")
    for item in hashed.iter_rows():
        rows[item["index"]]["sha256"] = item["sha256"]
    return [row["sha256"] for row in rows]


def _hash_batch(batch: pa.Table, storage: Storage) -> pa.Table:
    """Ray task: `sha256` beside `index`."""
    digests: list[str | None] = []
    for row in batch.to_pylist():
        try:
            with storage.sound(_place(row)) as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except (Fault, OSError):
            digests.append(None)  # the reason is found when it is decoded
    return pa.table({"index": batch["index"], "sha256": pa.array(digests, pa.string())})


def _known_faults(
    rows: list[Row], recordings: Sequence[Recording], hashes: Sequence[str | None]
) -> dict[int, tuple[Reason, str]]:
    """What needs no decoding to be refused: faults of the source, rows without a caption, all but the first of equal files."""
    faults: dict[int, tuple[Reason, str]] = {}
    first: dict[str, str] = {}
    for row, recording, digest in zip(rows, recordings, hashes, strict=True):
        if recording.fault:
            faults[row["index"]] = recording.fault
        elif not row["caption"]:
            faults[row["index"]] = (Reason.NO_CAPTION, "neither a caption nor a class")
        elif digest is not None and digest in first:
            faults[row["index"]] = (Reason.DUPLICATE, f"the same bytes as {first[digest]}")
        elif digest is not None:
            first[digest] = row["source"]
    return faults


# ---------------------------------------------------------------------------------------------------- decode and write


def _write_rows(
    rows: list[Row], folder: Path, storage: Storage, sample_rate_hz: int, settings: IngestSettings
) -> Iterator[tuple[int, list[Row]]]:
    """Decode the rows in Ray tasks that write the good ones to `folder`; yields (rows done so far, outcomes) per file."""
    if not rows:
        return
    # One block per Parquet file: Ray Data neither splits nor joins input blocks when batch_size is None.
    dataset = ray.data.from_arrow([pa.Table.from_pylist(chunk, TASK_SCHEMA) for chunk in _chunks(rows, FILE_ROWS)])
    outcomes = dataset.map_batches(
        _write_file,
        fn_kwargs={"folder": folder, "storage": storage, "sample_rate_hz": sample_rate_hz, "settings": settings},
        batch_size=None,
        batch_format="pyarrow",
    )
    done = 0
    for batch in outcomes.iter_batches(batch_size=None, batch_format="pyarrow"):
        if "error" in batch.column_names:
            raise OutputError(batch["error"][0].as_py())
        done += batch.num_rows
        yield done, batch.to_pylist()


def _write_file(batch: pa.Table, folder: Path, storage: Storage, sample_rate_hz: int, settings: IngestSettings) -> pa.Table:
    """Ray task: one Parquet file of the batch's good rows, and an outcome for every row; or an `error`, if that failed.

    Named after its first row, so the files sort in source order and a retried task writes the same file again.
    """
    rows = batch.to_pylist()
    target = folder / f"part-{rows[0]['index']:09d}.parquet"
    partial = target.with_suffix(f".{os.getpid()}.partial")
    journal = target.with_suffix(".journal")
    outcomes: list[Row] = []
    try:
        deaths = _deaths(journal)
        with pq.ParquetWriter(partial, ROW_SCHEMA, **_parquet_options()) as writer, journal.open("a") as diary:
            group: list[Row] = []
            for row in rows:
                print(row["index"], file=diary, flush=True)
                outcome, audio = _convert(row, deaths[row["index"]], storage, sample_rate_hz, settings)
                outcomes.append(outcome)
                if audio:
                    made = {"audio": audio, "sample_rate_hz": sample_rate_hz, "duration_s": outcome["duration_s"]}
                    group.append({name: {**row, **made}[name] for name in ROW_SCHEMA.names})
                if sum(len(item["audio"]) for item in group) >= ROW_GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(group, ROW_SCHEMA))
                    group = []
            if group:
                writer.write_table(pa.Table.from_pylist(group, ROW_SCHEMA))
        if all(outcome["reason"] for outcome in outcomes):
            partial.unlink()
        else:
            partial.replace(target)
        journal.unlink(missing_ok=True)
    except OSError as error:  # returned, since Ray Data would dress a raised one up as a defect of its own
        reason = os.strerror(error.errno) if error.errno else str(error)
        return pa.table({"error": [f"cannot write {target}: {reason}"]})
    return pa.Table.from_pylist(outcomes)


def _convert(row: Row, deaths: int, storage: Storage, sample_rate_hz: int, settings: IngestSettings) -> tuple[Row, bytes]:
    """(outcome, FLAC bytes) of one recording; no bytes where the outcome has a reason."""
    try:
        if deaths >= MAX_DEATHS:
            raise Fault(Reason.CORRUPT, f"{deaths} workers died while decoding it")
        wave = load_wave(storage, _place(row), sample_rate_hz, settings)
        if row["sha256"] is None:  # unread before, read now: whether another recording has the same bytes, nobody knows
            raise Fault(Reason.MISSING, "could not be read when it was hashed, only later; ingest again")
    except Fault as fault:
        return {"index": row["index"], "reason": fault.reason, "detail": fault.detail, "duration_s": 0.0}, b""
    outcome = {"index": row["index"], "reason": "", "detail": "", "duration_s": len(wave) / sample_rate_hz}
    return outcome, to_flac(wave, sample_rate_hz)


def _deaths(journal: Path) -> Counter[int]:
    """How many earlier attempts at a Parquet file died at each row.

    Ray Data retries a task whose worker died for ever, so one file that crashes the decoder would hang the ingest. Every
    row is therefore noted before it is decoded (`12`); an attempt that finds a journal blames the last row in it (`!12`).
    """
    if not journal.exists():
        return Counter()
    lines = journal.read_text().split()
    if lines and not lines[-1].startswith("!"):
        lines.append(f"!{lines[-1]}")
        with journal.open("a") as diary:
            print(lines[-1], file=diary)
    return Counter(int(line[1:]) for line in lines if line.startswith("!"))


def _parquet_options() -> dict[str, Any]:
    """FLAC bytes do not compress and do not repeat; everything else does both."""
    words = [name for name in ROW_SCHEMA.names if name not in ("audio", "other_captions")] + ["other_captions.list.element"]
    return {
        "compression": {"audio": "NONE", **dict.fromkeys(words, "ZSTD")},
        "use_dictionary": words,
        "write_statistics": words,
    }


# ------------------------------------------------------------------------------------------------- summary and verdict


def _quarantine_table(rows: list[Row], quarantine: dict[int, tuple[Reason, str]]) -> pa.Table:
    """The quarantine in source order."""
    return pa.Table.from_pylist(
        [
            {"source": rows[index]["source"], "reason": reason, "detail": detail, "sha256": rows[index]["sha256"]}
            for index, (reason, detail) in sorted(quarantine.items())
        ],
        QUARANTINE_SCHEMA,
    )


def _refuse_bad_source(quarantine: pa.Table, total: int, out: Path, settings: IngestSettings) -> None:
    """Raise SourceError, leaving the quarantine beside `out` for a person to read, when too little is usable."""
    bad = quarantine.num_rows
    if bad < total and bad <= settings.max_bad_share * total:
        return
    report = _report(out)
    pa_csv.write_csv(quarantine, report)
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(quarantine["reason"].to_pylist()).most_common())
    limit = "none is usable" if bad == total else f"more than max_bad_share {settings.max_bad_share:g} (raise it to go on)"
    raise SourceError(f"{bad} of {total} recordings are bad ({reasons}), {limit}; each is listed in {report}")


def _info(rows: list[Row], quarantine: pa.Table, sample_rate_hz: int, source: str) -> DatasetInfo:
    counts: dict[Split, Counter[str]] = {split: Counter() for split in SPLITS}
    splits_of = defaultdict(set)
    for row in rows:
        counts[row["split"]][row["class"]] += 1
        splits_of[row["recording"]].add(row["split"])
    straddling = sorted(recording for recording, splits in splits_of.items() if len(splits) > 1)
    if straddling:
        logger.warning(
            "%d recordings have rows in both train and eval, as the source has it (%s, ...): evaluation will flatter",
            len(straddling), straddling[0],
        )  # fmt: skip
    return DatasetInfo(
        sample_rate_hz=sample_rate_hz,
        counts={split: dict(sorted(counts[split].items())) for split in SPLITS},
        classes=tuple(sorted({row["class"] for row in rows} - {""})),
        shippable_rows=sum(row["shippable"] for row in rows),
        quarantined=dict(sorted(Counter(map(Reason, quarantine["reason"].to_pylist())).items())),
        straddling_recordings=len(straddling),
        hours=round(sum(row["duration_s"] for row in rows) / 3600, 4),
        source=source,
        digest=rows_digest((row["sha256"], _all_captions(row), row["class"], row["split"]) for row in rows),
    )


def _all_captions(row: Row) -> str:
    """One a line: no caption has lines."""
    return "\n".join([row["caption"], *row["other_captions"]])


def _report(out: Path) -> Path:
    return out.with_name(f"{out.name}.quarantine.csv")


def _chunks(rows: list[Row], size: int) -> Iterator[list[Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
