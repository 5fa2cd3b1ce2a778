"""A listening test as one HTML file: blinded sounds of two or more systems side by side, rated as in the DCASE challenge.

    sheet.html      what a listener gets: sounds under codes, in an order drawn from the seed; ratings leave it as CSV
    sheet.key.json  which code is whose; stays with who made the sheet

Quality and fit are asked of single sounds, diversity of a class's sounds of one system together; all from 1 to 10, and the
challenge weighs them 2 : 2 : 1.
"""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from foley_ray.audio.encode import Encoding, encode
from foley_ray.audio.wave import level
from foley_ray.errors import ConfigError, DataError
from foley_ray.evaluation import metrics
from foley_ray.evaluation.pages import data_uri
from foley_ray.evaluation.sets import ClipSet, Place, read_place

RATE_HZ = 22_050
"""Of the challenge's clips, and of all sounds here: another rate would tell the systems apart."""
SOUND_BYTES = 24_000_000
WEIGHTS = {"quality": 2, "fit": 2, "diversity": 1}
FIELDS = ("sheet", "listener", "trial", "class", "code", "scale", "rating")
LOWEST, HIGHEST = 1, 10


def make_sheet(
    systems: Mapping[str, ClipSet], per_class: int = 2, in_set: int = 3, seed: int = 0, seconds: float = 4.0
) -> tuple[str, dict[str, Any]]:
    """The page and its key. Every class that all systems have gets `per_class` comparisons and one set of `in_set` a system.

    Raises ConfigError for fewer than two systems or no common class, SourceError for a sound that cannot be read.
    """
    if len(systems) < 2:
        raise ConfigError("a comparison needs two systems at least: give --sounds NAME=FOLDER twice")
    classes = [name for name in next(iter(systems.values())).places if all(name in found.places for found in systems.values())]
    if not classes:
        had = "; ".join(f"{system} has {', '.join(found.places)}" for system, found in systems.items())
        raise ConfigError(f"the systems have no class in common: {had}")
    rng = np.random.default_rng(seed)
    book = _Book(rng, seconds)
    trials = []
    for name in classes:
        drawn = {system: rng.permutation(len(found.places[name])) for system, found in systems.items()}
        rounds = min(per_class, *(len(rows) for rows in drawn.values()))
        for turn in range(rounds):
            order = rng.permutation(list(systems))
            sounds = [[book.enter(system, name, systems[system].places[name][drawn[system][turn]])] for system in order]
            trials.append({"class": name, "scales": ["quality", "fit"], "items": [_item(group) for group in sounds]})
        if in_set >= 2 and all(len(rows) >= 2 for rows in drawn.values()):
            order = rng.permutation(list(systems))
            size = min(in_set, *(len(rows) for rows in drawn.values()))
            groups = [
                [book.enter(system, name, systems[system].places[name][row]) for row in drawn[system][-size:]]
                for system in order
            ]
            trials.append({"class": name, "scales": ["diversity"], "items": [_item(group) for group in groups]})
    trials = [trials[place] for place in rng.permutation(len(trials))]
    sheet = hashlib.sha256(json.dumps(trials, sort_keys=True).encode()).hexdigest()[:12]
    data = json.dumps({"sheet": sheet, "trials": trials, "highest": HIGHEST}).replace("<", "\\u003c")
    page = files("foley_ray").joinpath("evaluation/page/listen.html").read_text(encoding="utf-8").replace("__DATA__", data)
    return page, {"sheet": sheet, "seed": seed, "systems": list(systems), "codes": book.codes}


def _item(group: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What is rated together bears the code of its first sound."""
    return {"code": group[0][0], "sounds": [uri for _, uri in group]}


class _Book:
    """Who is behind which code, and how much sound there is already."""

    def __init__(self, rng: np.random.Generator, seconds: float):
        self.rng, self.seconds = rng, seconds
        self.codes: dict[str, dict[str, str]] = {}
        self.bytes = 0

    def enter(self, system: str, name: str, place: Place) -> tuple[str, str]:
        """A new code and the sound as a data URI: one rate, length and peak, so that loudness does not give a system away."""
        wave_T = level(read_place(place, RATE_HZ)[: round(self.seconds * RATE_HZ)])
        sound = encode(wave_T, RATE_HZ, Encoding("ogg"))
        self.bytes += len(sound)
        if self.bytes > SOUND_BYTES:
            raise ConfigError(f"more than {SOUND_BYTES / 1e6:.0f} MB of sound: take fewer classes, systems or --per-class")
        code = self.rng.bytes(4).hex()
        self.codes[code] = {"system": system, "class": name, "file": str(place.path)}
        return code, data_uri("audio/ogg", sound)


def read_ratings(paths: Sequence[Path], key: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of all files with their system; of one listener's two ratings of the same thing the later one.

    Raises DataError naming the file and line of a row that does not belong to the sheet.
    """
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for path in paths:
        line = 1
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                for row in csv.DictReader(file):
                    line += 1
                    found[str(path) + str(row.get("listener")), str(row.get("code")), str(row.get("scale"))] = _rated(row, key)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"cannot read ratings {path}: {error}") from None
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}") from None
    return list(found.values())


def _rated(row: Mapping[str, str | None], key: Mapping[str, Any]) -> dict[str, Any]:
    missing = [name for name in FIELDS if row.get(name) is None]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}")
    if row["sheet"] != key["sheet"]:
        raise ValueError(f"it is of sheet {row['sheet']}, the key of {key['sheet']}")
    if row["code"] not in key["codes"] or row["scale"] not in WEIGHTS:
        raise ValueError(f"code {row['code']!r} or scale {row['scale']!r} is not on the sheet")
    rating = int(str(row["rating"]))
    if not LOWEST <= rating <= HIGHEST:
        raise ValueError(f"rating {rating} must be from {LOWEST} to {HIGHEST}")
    return {**row, "rating": rating, **key["codes"][row["code"]]}


def results(ratings: Sequence[Mapping[str, Any]], systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Per system: mean and interval of each scale, and the challenge's weighted mean of those that were rated."""
    found: dict[str, dict[str, Any]] = {}
    for system in systems:
        scales = {}
        for scale in WEIGHTS:
            given = np.array(
                [row["rating"] for row in ratings if row["system"] == system and row["scale"] == scale], dtype=float
            )
            if len(given):
                scales[scale] = metrics.bootstrap(np.mean, given)
        weight = sum(WEIGHTS[scale] for scale in scales)
        overall = sum(WEIGHTS[scale] * value.value for scale, value in scales.items()) / weight if weight else None
        found[system] = {"scales": scales, "weighted": overall}
    return found


def load_key(path: Path) -> dict[str, Any]:
    """A sheet's key. Raises DataError."""
    try:
        key: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"sheet", "systems", "codes"} <= key.keys():
            raise ValueError("it lacks sheet, systems or codes")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is no key of a listening sheet ({error})") from None
    return key
