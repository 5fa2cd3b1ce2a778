"""recordings -> dataset: every recording of a SOURCE folder decoded, checked and written to Parquet by Ray Data.

Three passes. The driver lists the source (sources.py); Ray tasks hash the files, so that the driver can tell duplicates by
their hashes; Ray tasks decode, check and encode FILE_ROWS recordings each and write them as one Parquet file. What the
driver handles per recording is its description and its outcome, never its sound. Each Parquet file depends only on its own
recordings, so the dataset is the same however many tasks ran side by side.

On a cluster SOURCE and OUT must be on storage that all nodes see under the same path.
"""

import hashlib
import io
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import ray
import soundfile
import soxr
from pydantic import Field

from foley_ray.config import Settings, preset
from foley_ray.data.cluster import ensure_ray, quiet_progress
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
from foley_ray.errors import OutputError, SourceError
from foley_ray.jobfile import IngestJob

logger = logging.getLogger(__name__)

FILE_ROWS = 256  # per Parquet file and per Ray task: some 20 MB of 4 s clips
ROW_GROUP_BYTES = 64 * 2**20  # of FLAC; what a reader must hold at once
HASH_ROWS = 1024  # per Ray task
LOST_SHARE = 0.01  # of the declared samples may be absent: MP3 headers are estimates, editors miscount a few bytes
RATES_HZ = range(1000, 384_001)  # beyond them, and beyond MAX_CHANNELS, a header is believed to be damaged
MAX_CHANNELS = 32
MAX_DEATHS = 3  # of workers at one recording, before it is blamed: a machine may also fall away for its own reasons
STREAMED = 0x7FFF0000  # a chunk size from here on means "written to a pipe, length unknown"

Progress = Callable[[int, int], None]
Row = dict[str, Any]


class IngestSettings(Settings):
    """Which recordings are good enough, and how those without a split are divided."""

    min_duration_s: float = Field(default=0.02, gt=0)
    max_duration_s: float = Field(default=30.0, gt=0)
    silence_dbfs: float = Field(default=-80.0, lt=0, description="a recording whose peak stays below this is silent")
    eval_share: float = Field(default=0.1, ge=0, le=1, description="of the recordings, where the source has no split")
    seed: int = Field(default=0, description="draws that split")
    max_bad_share: float = Field(default=0.5, ge=0, le=1, description="quarantined share above which the source is refused")


def ingest(
    source: Path,
    out: Path,
    *,
    sample_rate_hz: int,
    settings: IngestSettings | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Turn the recordings of `source` into a dataset at `out`; returns its summary.

    Each recording becomes mono FLAC of 16 bits at `sample_rate_hz`: channels averaged, resampled by soxr (HQ), scaled down
    only where it would clip otherwise. Mono 16-bit sound at that rate keeps every sample. Recordings that cannot be used go
    to the quarantine with a Reason; of equal files the first in source order is kept. `progress(done, total)` is called
    after each Parquet file.

    The dataset is complete or absent: it grows in a hidden sibling of `out` that is renamed at the end, and what a killed
    run left there is cleared by the next. `overwrite` replaces a finished dataset, and nothing else.

    Raises SourceError when `source` cannot be read, holds nothing usable, or more than `settings.max_bad_share` of it is
    quarantined; in the latter two cases `out` stays as it was and OUT.quarantine.csv beside it lists what was wrong. Raises
    OutputError when `out` is taken or cannot be written.
    """
    settings = settings or IngestSettings()
    source, out = Path(source).resolve(), Path(out).absolute()
    layout, recordings = read_source(source)
    with staging(out, index=INFO_FILE, what="dataset", overwrite=overwrite) as folder:
        (folder / DATA_FOLDER).mkdir()
        _report(out).unlink(missing_ok=True)
        ensure_ray()
        quiet_progress()
        rows = [_row(index, recording, settings) for index, recording in enumerate(recordings)]
        quarantine = _known_faults(rows, _hashes(rows, source))
        good = [row for row in rows if row["index"] not in quarantine]
        for done, outcomes in _write_rows(good, folder / DATA_FOLDER, source, sample_rate_hz, settings):
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
        info = _info([row for row in rows if row["index"] not in quarantine], table, sample_rate_hz, f"{source} ({layout})")
        info.save(folder)
    return info


def run_job(job: IngestJob, progress: Progress | None = None) -> DatasetInfo:
    """`ingest` for a job file's settings; the preset sets the sample rate."""
    return ingest(
        job.source,
        job.out,
        sample_rate_hz=preset(job.preset).model.audio.sample_rate_hz,
        settings=IngestSettings(eval_share=job.eval_share, max_duration_s=job.max_duration_s),
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


def _row(index: int, recording: Recording, settings: IngestSettings) -> Row:
    """A recording as the columns of ROW_SCHEMA that need no audio, plus where it is."""
    split = recording.split or split_of(recording.recording, eval_share=settings.eval_share, seed=settings.seed)
    return {
        "index": index,
        "path": os.fsencode(recording.path),  # bytes: a file name need not be UTF-8
        "caption": recording.caption or "",
        "class": recording.class_name or "",
        "split": split,
        "licence": recording.licence,
        "author": recording.author,
        "recording": recording.recording,
        "source": recording.source,
        "shippable": recording.shippable,
    }


# ---------------------------------------------------------------------------------------------- hashes and duplicates


def _hashes(rows: list[Row], root: Path) -> list[str | None]:
    """sha256 of each row's file, in order; None where it cannot be read. Stored in the rows as well."""
    tables = [
        pa.table({"index": [row["index"] for row in chunk], "path": [row["path"] for row in chunk]})
        for chunk in _chunks(rows, HASH_ROWS)
    ]
    dataset = ray.data.from_arrow(tables)
    hashed = dataset.map_batches(_hash_batch, fn_kwargs={"root": root}, batch_size=None, batch_format="pyarrow")
    for item in hashed.iter_rows():
        rows[item["index"]]["sha256"] = item["sha256"]
    return [row["sha256"] for row in rows]


def _hash_batch(batch: pa.Table, root: Path) -> pa.Table:
    """Ray task: `sha256` beside `index`."""
    digests: list[str | None] = []
    for path in (Path(os.fsdecode(name)) for name in batch["path"].to_pylist()):
        try:
            _check_place(path, root)
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except (_Fault, OSError):
            digests.append(None)  # the reason is found when it is decoded
    return pa.table({"index": batch["index"], "sha256": pa.array(digests, pa.string())})


def _known_faults(rows: list[Row], hashes: Sequence[str | None]) -> dict[int, tuple[Reason, str]]:
    """What needs no decoding to be refused: rows without a caption, and all but the first of equal files."""
    faults: dict[int, tuple[Reason, str]] = {}
    first: dict[str, str] = {}
    for row, digest in zip(rows, hashes, strict=True):
        if not row["caption"]:
            faults[row["index"]] = (Reason.NO_CAPTION, "neither a caption nor a class")
        elif digest is not None and digest in first:
            faults[row["index"]] = (Reason.DUPLICATE, f"the same bytes as {first[digest]}")
        elif digest is not None:
            first[digest] = row["source"]
    return faults


# ---------------------------------------------------------------------------------------------------- decode and write


def _write_rows(
    rows: list[Row], folder: Path, root: Path, sample_rate_hz: int, settings: IngestSettings
) -> Iterator[tuple[int, list[Row]]]:
    """Decode the rows in Ray tasks that write the good ones to `folder`; yields (rows done so far, outcomes) per file."""
    if not rows:
        return
    # One block per Parquet file: Ray Data neither splits nor joins input blocks when batch_size is None.
    dataset = ray.data.from_arrow([pa.Table.from_pylist(chunk) for chunk in _chunks(rows, FILE_ROWS)])
    outcomes = dataset.map_batches(
        _write_file,
        fn_kwargs={"folder": folder, "root": root, "sample_rate_hz": sample_rate_hz, "settings": settings},
        batch_size=None,
        batch_format="pyarrow",
    )
    done = 0
    for batch in outcomes.iter_batches(batch_size=None, batch_format="pyarrow"):
        if "error" in batch.column_names:
            raise OutputError(batch["error"][0].as_py())
        done += batch.num_rows
        yield done, batch.to_pylist()


def _write_file(batch: pa.Table, folder: Path, root: Path, sample_rate_hz: int, settings: IngestSettings) -> pa.Table:
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
                outcome, audio = _convert(row, deaths[row["index"]], root, sample_rate_hz, settings)
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


def _convert(row: Row, deaths: int, root: Path, sample_rate_hz: int, settings: IngestSettings) -> tuple[Row, bytes]:
    """(outcome, FLAC bytes) of one recording; no bytes where the outcome has a reason."""
    try:
        if deaths >= MAX_DEATHS:
            raise _Fault(Reason.CORRUPT, f"{deaths} workers died while decoding it")
        wave = load_wave(Path(os.fsdecode(row["path"])), root, sample_rate_hz, settings)
    except _Fault as fault:
        return {"index": row["index"], "reason": fault.reason, "detail": fault.detail, "duration_s": 0.0}, b""
    outcome = {"index": row["index"], "reason": "", "detail": "", "duration_s": len(wave) / sample_rate_hz}
    return outcome, _flac(wave, sample_rate_hz)


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
    words = [name for name in ROW_SCHEMA.names if name != "audio"]
    return {
        "compression": {"audio": "NONE", **dict.fromkeys(words, "ZSTD")},
        "use_dictionary": words,
        "write_statistics": words,
    }


class _Fault(Exception):
    """Why one recording cannot be used."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def load_wave(path: Path, root: Path, sample_rate_hz: int, settings: IngestSettings) -> np.ndarray:
    """int16 (T,): the checked sound of one file, mono at `sample_rate_hz`. Raises _Fault."""
    _check_place(path, root)
    try:
        if path.stat().st_size == 0:
            raise _Fault(Reason.EMPTY, "the file has no bytes")
        wave, rate_hz = _decode(path, settings)
    except soundfile.LibsndfileError as error:
        unknown = error.code == 1  # SF_ERR_UNRECOGNISED_FORMAT
        raise _Fault(Reason.NOT_AUDIO if unknown else Reason.CORRUPT, error.error_string) from None
    except OSError as error:
        raise _Fault(Reason.MISSING, f"cannot be read: {error.strerror}") from None
    _check_sound(wave, rate_hz, settings)
    if rate_hz != sample_rate_hz:
        wave = soxr.resample(wave, rate_hz, sample_rate_hz, quality="HQ")
    return _int16(wave)


def _check_place(path: Path, root: Path) -> None:
    """Raise _Fault unless the path is a regular file below the root, links followed."""
    try:
        real = path.resolve()
        inside = real.is_relative_to(root)
        regular = inside and real.is_file()  # a pipe would be waited for without end
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name with a NUL in it
        raise _Fault(Reason.MISSING, f"no such file ({error})") from None
    if not inside:
        raise _Fault(Reason.OUTSIDE, f"leads out of the source folder, to {real}")
    if not regular:
        raise _Fault(Reason.MISSING, "no such file")


def _decode(path: Path, settings: IngestSettings) -> tuple[np.ndarray, int]:
    """(float32 (T,) mono, rate in Hz) of a file whose header has been believed only after a look at it."""
    # A descriptor has no name: by a name *.raw soundfile takes a file for headerless sound and demands its rate.
    with path.open("rb") as file, soundfile.SoundFile(file.fileno(), closefd=False) as sound:
        rate_hz, channels, declared = sound.samplerate, sound.channels, sound.frames
        if rate_hz not in RATES_HZ or not 1 <= channels <= MAX_CHANNELS:
            raise _Fault(Reason.CORRUPT, f"header says {rate_hz} Hz, {channels} channels")
        if declared > settings.max_duration_s * rate_hz:
            raise _Fault(Reason.TOO_LONG, f"{declared / rate_hz:.2f} s, at most {settings.max_duration_s:g} s are taken")
        if declared == 0:
            raise _Fault(Reason.EMPTY, "the file has no samples")
        _check_chunks(sound.extra_info)
        # By blocks, so that many channels never lie in memory at once; not by sound.blocks(), which fills up what a
        # truncated file lacks with uninitialised memory.
        blocks = [np.zeros(0, np.float32)]
        while len(block := sound.read(65536, dtype="float32", always_2d=True)):
            blocks.append(block.mean(axis=1))
    wave = np.concatenate(blocks)
    if len(wave) < declared * (1 - LOST_SHARE):
        raise _Fault(Reason.CORRUPT, f"breaks off after {len(wave)} of {declared} samples")
    return wave, rate_hz


def _check_chunks(log: str) -> None:
    """Raise _Fault when libsndfile noted that the file ends inside its sound (WAV, AIFF, AU).

    It then reads what is there and says nothing but this line: `data : 44100 (should be 22028)`.
    """
    for size, present in re.findall(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", log, re.MULTILINE):
        if int(present) < int(size) * (1 - LOST_SHARE) and int(size) < STREAMED:
            raise _Fault(Reason.CORRUPT, f"breaks off: {present} of {size} bytes of sound")


def _check_sound(wave: np.ndarray, rate_hz: int, settings: IngestSettings) -> None:
    duration_s = len(wave) / rate_hz
    if duration_s < settings.min_duration_s:
        raise _Fault(Reason.TOO_SHORT, f"{duration_s:.4f} s, at least {settings.min_duration_s:g} s are needed")
    if not np.isfinite(wave).all():
        raise _Fault(Reason.NOT_FINITE, f"{np.count_nonzero(~np.isfinite(wave))} of {len(wave)} samples are NaN or infinite")
    peak = float(np.abs(wave).max())
    if peak < 10 ** (settings.silence_dbfs / 20):
        level = f"{20 * np.log10(peak):.1f} dBFS" if peak else "nothing but zeros"
        raise _Fault(Reason.SILENT, f"peak {level}, below {settings.silence_dbfs:g} dBFS")


def _int16(wave: np.ndarray) -> np.ndarray:
    """-1..1 to 16 bits at libsndfile's own scale of 2**15, so that 16-bit sound comes back bit for bit."""
    scaled = wave.astype(np.float64) * 2**15
    over = max(float(scaled.max()) / (2**15 - 1), float(scaled.min()) / -(2**15))
    wave_int16: np.ndarray = np.round(scaled / max(over, 1.0)).astype(np.int16)
    return wave_int16


def _flac(wave: np.ndarray, sample_rate_hz: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, sample_rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


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
    limit = "none is usable" if bad == total else f"more than max_bad_share {settings.max_bad_share:g}"
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
        digest=rows_digest((row["sha256"], row["caption"], row["class"], row["split"]) for row in rows),
    )


def _report(out: Path) -> Path:
    return out.with_name(f"{out.name}.quarantine.csv")


def _chunks(rows: list[Row], size: int) -> Iterator[list[Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
