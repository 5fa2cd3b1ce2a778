"""What a library holds, for machines (Parquet, CSV, manifest) and for people (index.html), and how to find a sound in it.

LIBRARY/
  Animals/ANMLDog_Dog Bark 01_FRAY_SMALL.wav      folders by category
  catalogue.parquet    a row per clip, with its CLAP embedding
  catalogue.csv        the same without
  index.html           the same to look at, search and listen to; needs nothing but the files beside it
  manifest.json        clips, rejected and failed ones with reasons; written last, so its presence means all of it
"""

import codecs
import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foley_ray.checkpoint import ModelInfo, read_info
from foley_ray.errors import DataError, ModelError, OutputError
from foley_ray.library.choose import Choice
from foley_ray.library.plan import Plan, PlannedClip
from foley_ray.library.store import Store
from foley_ray.library.targets import Target
from foley_ray.library.ucs import lookup

FORMAT = 1
MANIFEST, PARQUET, CSV, PAGE = "manifest.json", "catalogue.parquet", "catalogue.csv", "index.html"
GROUP_ROWS = 1000
"""Rows of the Parquet file that are written together."""
SHOWN = ("file", "catid", "category", "subcategory", "fx_name", "prompt", "keywords", "seed", "score", "target",
         "passed_threshold", "loop", "duration_s", "integrated_lufs")  # fmt: skip
"""Columns that the page has."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet would take a cell that begins with it for."""

SCHEMA = pa.schema(
    [
        *[pa.field(name, pa.string(), nullable=False) for name in
          ("file", "id", "catid", "category", "subcategory", "fx_name", "prompt", "keywords")],
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("candidate", pa.int32(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("target", pa.string(), nullable=False),  # what the score is a cosine to: "prompt", or a target sound's name
        pa.field("passed_threshold", pa.bool_(), nullable=False),
        pa.field("loop", pa.bool_(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        *[pa.field(name, pa.float64()) for name in
          ("integrated_lufs", "max_momentary_lufs", "max_short_term_lufs", "true_peak_dbtp")],
        *[pa.field(name, pa.string(), nullable=False) for name in ("sha256", "settings", "model")],
        pa.field("ai_generated", pa.bool_(), nullable=False),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Missing:
    """A clip of the plan that could not be made."""

    clip: PlannedClip
    reason: str


def write_catalogue(
    plan: Plan,
    info: ModelInfo,
    choices: Sequence[Choice],
    missing: Sequence[Missing],
    targets: Mapping[str, Target],
    store: Store,
) -> None:
    """All four files from what was chosen and delivered; the same choices give the same bytes."""
    kept = [choice for choice in choices if choice.gate is None]
    rows = [_row(choice, _receipt(choice.clip, store), info, targets.get(choice.clip.id)) for choice in kept]
    pictures = (_receipt(choice.clip, store)["picture"] for choice in kept)  # a page of thousands is never whole in memory
    for name, data in (
        (PARQUET, _parquet(rows, kept, info)),
        (CSV, _csv(rows)),
        (PAGE, page(plan, rows, pictures)),
    ):
        store.put(store.library / name, data)
    manifest = {
        "format": FORMAT,
        "library": plan.library,
        "creator": plan.creator,
        "source": plan.source,
        "date": plan.date.isoformat(),
        "plan": hashlib.sha256(plan.model_dump_json().encode()).hexdigest()[:16],
        "model": {"digest": info.digest, "preset": info.preset, "licences": info.licences},
        "ai_generated": True,
        "clips": [
            {**row, "files": _receipt(choice.clip, store)["files"], "candidate_scores": choice.scores}
            for choice, row in zip(kept, rows, strict=True)
        ],
        "rejected": [
            {**_asked(choice.clip), "gate": choice.gate, "reason": choice.reason, "candidate_scores": choice.scores}
            for choice in choices
            if choice.gate is not None
        ],
        "failed": [{**_asked(item.clip), "reason": item.reason} for item in missing],
    }
    written = json.JSONEncoder(indent=1, ensure_ascii=False).iterencode(manifest)
    store.put(store.library / MANIFEST, (part.encode() for part in chain(written, "\n")))


def search(library: Path, words: str, model: Path, count: int = 10) -> list[tuple[float, dict[str, Any]]]:
    """The clips whose sound is nearest to the words by CLAP, nearest first, with their cosines.

    Raises DataError if there is no catalogue, ModelError if the model's CLAP is not the one that heard the clips, and
    PromptError for words that cannot be embedded.
    """
    path = library / PARQUET
    try:
        catalogue = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"no catalogue in {library}: {error}; build the library first") from None
    clap = (catalogue.schema.metadata or {}).get(b"clap", b"").decode()
    if read_info(model, needs=("clap",)).parts["clap"].digest != clap:
        raise ModelError(f"{library} was heard by another CLAP ({clap}) than {model} has; give the model that built it")
    from foley_ray.stages.condition import ConditionStage

    target_D = ConditionStage(model)({"prompt": [words]})["target"][0]
    if len(catalogue) == 0:
        return []
    cosine_N = np.stack(catalogue["embedding"].to_numpy()) @ target_D
    nearest = np.argsort(-cosine_N.round(6), kind="stable")[:count]
    rows = catalogue.drop_columns(["embedding"]).take(pa.array(nearest)).to_pylist()
    return [(float(cosine_N[index]), row) for index, row in zip(nearest, rows, strict=True)]


def safe(cell: str) -> str:
    """Text that no spreadsheet runs as a formula: with an apostrophe before what would begin one."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def _asked(clip: PlannedClip) -> dict[str, Any]:
    return {"id": clip.id, "name": clip.stem, "catid": clip.catid, "prompt": clip.prompt, "seed": clip.seed}


def _receipt(clip: PlannedClip, store: Store) -> dict[str, Any]:
    receipt = store.receipt(clip.id)
    if receipt is None:
        raise OutputError(f"{store.library} lost the receipt of {clip.stem}: build again")
    return receipt


def _row(choice: Choice, receipt: dict[str, Any], info: ModelInfo, target: Target | None) -> dict[str, Any]:
    clip = choice.clip
    _, category, subcategory = lookup(clip.catid)
    return {
        "file": receipt["files"][0]["path"],
        "id": clip.id,
        "catid": clip.catid,
        "category": category,
        "subcategory": subcategory,
        "fx_name": clip.fx_name,
        "prompt": clip.prompt,
        "keywords": ", ".join(clip.keywords),
        "seed": clip.seed,
        "candidate": choice.candidate,
        "score": choice.score,
        "target": target.name if target else "prompt",
        "passed_threshold": choice.passed,
        "loop": clip.settings.loop,
        "duration_s": receipt["duration_s"],
        **{name: receipt[name] for name in ("integrated_lufs", "max_momentary_lufs", "max_short_term_lufs", "true_peak_dbtp")},
        "sha256": receipt["files"][0]["sha256"],
        "settings": json.dumps(clip.settings.model_dump(mode="json")),
        "model": info.digest,
        "ai_generated": True,
    }


def _parquet(rows: Sequence[dict[str, Any]], choices: Sequence[Choice], info: ModelInfo) -> bytes:
    schema = SCHEMA.append(pa.field("embedding", pa.list_(pa.float32())))
    schema = schema.with_metadata({"clap": info.parts["clap"].digest})
    file = io.BytesIO()
    with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=SCHEMA.names) as writer:
        for start in range(0, len(rows), GROUP_ROWS):
            table = pa.Table.from_pylist(list(rows[start : start + GROUP_ROWS]), SCHEMA)
            # numpy's own values: as Python's they would take eight times as much
            heard = [choice.embedding_D for choice in choices[start : start + GROUP_ROWS]]
            ends = np.cumsum([0, *(len(embedding_D) for embedding_D in heard)], dtype=np.int32)
            vectors = pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(heard), pa.float32()))
            writer.write_table(table.append_column(schema.field("embedding"), vectors).replace_schema_metadata(schema.metadata))
    return file.getvalue()


class _Told:
    """A file for csv that says what it was told, so that rows come one at a time."""

    def write(self, text: str) -> str:
        return text


def _csv(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    writer = csv.DictWriter(_Told(), SCHEMA.names, lineterminator="\r\n")
    yield codecs.BOM_UTF8  # or a spreadsheet takes it for another encoding
    for row in chain([dict(zip(SCHEMA.names, SCHEMA.names, strict=True))], rows):
        told: str = writer.writerow({name: safe(value) if isinstance(value, str) else value for name, value in row.items()})
        yield told.encode()


def page(plan: Plan, rows: Iterable[dict[str, Any]], pictures: Iterable[dict[str, str]]) -> Iterator[bytes]:
    """index.html in parts, from rows of the catalogue and their pictures."""
    frame = files("foley_ray.library").joinpath("page", "index.html").read_text(encoding="utf-8")
    before, after = frame.split("__DATA__")
    about = {"library": plan.library, "date": plan.date.isoformat()}
    yield f'{before}{_script(about)[:-1]}, "clips": ['.encode()
    for index, (row, drawn) in enumerate(zip(rows, pictures, strict=True)):
        yield f"{',' if index else ''}\n{_script({**{name: row[name] for name in SHOWN}, **drawn})}".encode()
    yield f"]}}{after}".encode()


def _script(value: dict[str, Any]) -> str:
    """JSON to stand in a script, which no text of a plan can end."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
