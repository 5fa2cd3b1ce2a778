"""What a library holds, for machines (Parquet, CSV, manifest) and for people (index.html), and how to find a sound in it.

LIBRARY/
  Animals/ANMLDog_Dog Bark 01_FRAY_SMALL.wav      folders by category
  catalogue.parquet    a row per clip, with its CLAP embedding
  catalogue.csv        the same without
  index.html           the same to look at, search and listen to; needs nothing but the files beside it
  pictures/0.js        of more than PICTURED clips the page's pictures, which it loads as it shows them
  manifest.json        clips, rejected and failed ones with reasons; written last, so its presence means all of it
"""

import codecs
import csv
import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

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

Item = TypeVar("Item")
FORMAT = 1
MANIFEST, PARQUET, CSV, PAGE, PICTURES = "manifest.json", "catalogue.parquet", "catalogue.csv", "index.html", "pictures"
GROUP_ROWS = 1000
"""Rows of the Parquet file, and pictures, that are written together."""
PICTURED = 10_000
"""A page of so many clips has their pictures in it, 2 kB each; the pictures of more are files beside it."""
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
        pa.field("novelty", pa.float64()),  # null where the model does not know what it learned from
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

    def rows() -> Iterator[dict[str, Any]]:  # read anew for each file: a hundred thousand are never in memory together
        return (_row(choice, _receipt(choice.clip, store), info, targets.get(choice.clip.id)) for choice in kept)

    with store.writing(store.library / PARQUET) as file:
        _parquet(file, rows(), kept, info, store)
    store.put(store.library / CSV, _csv(rows()))
    pictures = (_receipt(choice.clip, store)["picture"] for choice in kept)
    shutil.rmtree(store.library / PICTURES, ignore_errors=True)
    if len(kept) > PICTURED:
        store.put(store.library / PAGE, page(plan, rows()))
        for name, data in picture_files(pictures):
            store.put(store.library / name, data)
    else:
        store.put(store.library / PAGE, page(plan, rows(), pictures))
    about = {
        "format": FORMAT,
        "library": plan.library,
        "creator": plan.creator,
        "source": plan.source,
        "date": plan.date.isoformat(),
        "plan": hashlib.sha256(plan.model_dump_json().encode()).hexdigest()[:16],
        "model": {"digest": info.digest, "preset": info.preset, "licences": info.licences},
        "ai_generated": True,
    }
    lists: dict[str, Iterator[dict[str, Any]]] = {
        "clips": (
            {**row, "files": _receipt(choice.clip, store)["files"], "candidate_scores": choice.scores}
            for choice, row in zip(kept, rows(), strict=True)
        ),
        "rejected": (
            {**_asked(choice.clip), "gate": choice.gate, "reason": choice.reason, "candidate_scores": choice.scores}
            for choice in choices
            if choice.gate is not None
        ),
        "failed": ({**_asked(item.clip), "reason": item.reason} for item in missing),
    }
    store.put(store.library / MANIFEST, _manifest(about, lists))


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
        "novelty": None if math.isnan(choice.novelty) else choice.novelty,
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


def _parquet(file: BinaryIO, rows: Iterable[dict[str, Any]], choices: Iterable[Choice], info: ModelInfo, store: Store) -> None:
    schema = SCHEMA.append(pa.field("embedding", pa.list_(pa.float32())))
    schema = schema.with_metadata({"clap": info.parts["clap"].digest})
    with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=SCHEMA.names) as writer:
        for some in _grouped(zip(rows, choices, strict=True)):
            table = pa.Table.from_pylist([row for row, _ in some], SCHEMA)
            heard = [store.heard(choice.clip.id, choice.candidate, choice.clip.settings.candidates) for _, choice in some]
            # numpy's own values: as Python's they would take eight times as much
            ends = np.cumsum([0, *(len(embedding_D) for embedding_D in heard)], dtype=np.int32)
            vectors = pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(heard), pa.float32()))
            writer.write_table(table.append_column(schema.field("embedding"), vectors).replace_schema_metadata(schema.metadata))


def _grouped(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while some := list(islice(rest, GROUP_ROWS)):
        yield some


def _manifest(about: dict[str, Any], lists: dict[str, Iterator[dict[str, Any]]]) -> Iterator[bytes]:
    """A JSON object in parts: a line for each item of a list."""
    yield json.dumps(about, indent=1, ensure_ascii=False).removesuffix("\n}").encode()
    for name, items in lists.items():
        yield f',\n "{name}": ['.encode()
        for index, item in enumerate(items):
            yield f"{',' if index else ''}\n  {json.dumps(item, ensure_ascii=False)}".encode()
        yield b"\n ]"
    yield b"\n}\n"


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


def page(plan: Plan, rows: Iterable[dict[str, Any]], pictures: Iterable[dict[str, str]] | None = None) -> Iterator[bytes]:
    """index.html in parts, from rows of the catalogue and their pictures, or without for a page that is to load them."""
    frame = files("foley_ray.library").joinpath("page", "index.html").read_text(encoding="utf-8")
    before, after = frame.split("__DATA__")
    about = {"library": plan.library, "date": plan.date.isoformat(), "pictured": GROUP_ROWS if pictures is None else 0}
    yield f'{before}{_script(about)[:-1]}, "clips": ['.encode()
    for index, (row, drawn) in enumerate(zip(rows, repeat({}) if pictures is None else pictures, strict=pictures is not None)):
        yield f"{',' if index else ''}\n{_script({**{name: row[name] for name in SHOWN}, **drawn})}".encode()
    yield f"]}}{after}".encode()


def picture_files(pictures: Iterable[dict[str, str]]) -> Iterator[tuple[str, bytes]]:
    """Paths within the library, and contents, of what a page without pictures loads."""
    for number, some in enumerate(_grouped(pictures)):
        yield f"{PICTURES}/{number}.js", f"pictured({number}, {json.dumps(some)});\n".encode()


def _script(value: dict[str, Any]) -> str:
    """JSON to stand in a script, which no text of a plan can end."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
