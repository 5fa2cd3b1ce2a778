"""One candidate row of a source, and the words that sources use: columns, splits, classes, captions."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from foley_ray.data.manifest import Reason, Split
from foley_ray.data.sources.licences import licence_of
from foley_ray.data.storage import Place
from foley_ray.errors import SourceError

# What a column may be called, most specific name first. Columns of other names are ignored. Captions may also be a list, or
# numbered: caption_1, caption_2, ...
COLUMNS: dict[str, tuple[str, ...]] = {
    "file": ("file", "file_name"),
    "caption": ("caption", "text", "captions"),
    "class": ("class", "label", "category", "human_labels"),
    "split": ("split",),
    "licence": ("licence", "license"),
    "author": ("author", "attribution", "username", "uploader"),
    "recording": ("recording", "recording_key"),
    "shippable": ("shippable",),
}
SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train",
    "eval": "eval", "evaluation": "eval", "test": "eval", "valid": "eval", "validation": "eval", "val": "eval", "dev": "eval",
}  # fmt: skip

# Folder names of the DCASE 2023 Task 7 set -> class and prompt of arXiv 2306.10359.
DCASE_CLASSES: dict[str, tuple[str, str]] = {
    "DogBark": ("dog_bark", "a dog bark"),
    "Footstep": ("footstep", "foot steps"),
    "GunShot": ("gunshot", "gun shot"),
    "Keyboard": ("keyboard", "someone using keyboard"),
    "MovingMotorVehicle": ("moving_motor_vehicle", "a moving motor"),
    "Rain": ("rain", "rain"),
    "Sneeze_Cough": ("sneeze_cough", "a man cough"),
}
_PROMPTS = dict(DCASE_CLASSES.values())
_TRUE = frozenset(("yes", "true", "1", "y"))


@dataclass(frozen=True)
class Recording:
    """One candidate row, as the source describes it."""

    place: Place  # may not exist, or lie outside the source
    source: str  # its name for people and in the dataset, below the source
    captions: tuple[str, ...] = ()  # all of the same sound; none where the source has neither a caption nor a class
    class_name: str | None = None  # snake_case
    split: Split | None = None
    licence: str = ""
    author: str = ""
    recording: str = ""  # rows cut from one recording share it; the source's name without suffix where it does not say
    shippable: bool = False  # only where the source says so, itself or by a licence that allows it
    fault: tuple[Reason, str] | None = None  # found while reading the source: the row goes to the quarantine

    @property
    def caption(self) -> str | None:
        """The first caption."""
        return self.captions[0] if self.captions else None


def describe(
    row: Mapping[str, Any],
    place: Place,
    source: str,
    *,
    split: Split | None = None,
    recording: str = "",
    where: str = "",
    fault: tuple[Reason, str] | None = None,
) -> Recording:
    """A recording from a row of COLUMNS; `split` and `recording` hold where the row has none.

    A split that is none is an error of the table at `where` (SourceError), and where that is not given, not a split.
    """
    class_name, labelled = labels_in(row)
    licence = licence_of(cell(row, "licence"))
    stated = cell(row, "shippable")
    shippable = stated.lower() in _TRUE and licence.shippable is not False if stated else bool(licence.shippable)
    name = cell(row, "split")
    return Recording(
        place=place,
        source=utf8(source),
        captions=captions_in(row) or labelled,
        class_name=class_name,
        split=(_split(name, where) if name else None) or split,
        licence=licence.name,
        author=cell(row, "author"),
        recording=cell(row, "recording") or recording or stem(utf8(source)),
        shippable=shippable,
        fault=fault,
    )


def is_known(column: str) -> bool:
    """Whether a column of that name says anything of a recording: others may hold whole sounds, and need not be read."""
    return column == "other_captions" or column in _KNOWN or bool(_NUMBERED.fullmatch(column))


def cell(row: Mapping[str, Any], column: str) -> str:
    """What a row has under one of the names of a column, on one line; empty for what is absent."""
    return next((text(row[name]) for name in COLUMNS.get(column, (column,)) if name in row), "")


def captions_in(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The captions of a row, each once: one, a list, or numbered columns."""
    found = next((row[name] for name in COLUMNS["caption"] if row.get(name)), None)
    numbered = (row[name] for name in sorted(filter(_NUMBERED.fullmatch, map(str, row)), key=_number))
    others = row.get("other_captions") or ()  # of a dataset of our own, ingested again
    return distinct([*(found if isinstance(found, list | tuple) else [found]), *others, *numbered])


def labels_in(row: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """(class, captions that say no more) of a row: of several labels the first is the class, and the caption names all."""
    found = next((row[name] for name in COLUMNS["class"] if row.get(name) is not None), None)
    labels = distinct(found if isinstance(found, list | tuple) else [found])
    classes = [name for name in map(class_of, labels) if name]
    return (classes[0], (", ".join(map(caption_of, classes)),)) if classes else (None, ())


_KNOWN = frozenset(name for names in COLUMNS.values() for name in names)
_NUMBERED = re.compile(r"caption_\d+")


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


def distinct(texts: Iterable[Any]) -> tuple[str, ...]:
    """Texts on one line each, without repetitions and empty ones."""
    return tuple(dict.fromkeys(line for line in map(text, texts) if line))


def text(value: Any) -> str:
    """A cell on one line; empty for what is absent."""
    return "" if value is None else " ".join(utf8(str(value)).split())


def utf8(value: str) -> str:
    """The text with a ? for what UTF-8 cannot hold: bytes of old file names, half surrogate pairs in JSON."""
    return value.encode(errors="replace").decode()


def class_of(name: str) -> str:
    """A class or folder name in snake_case: DogBark -> dog_bark, "Door Knock" -> door_knock; a second pass changes nothing."""
    if name in DCASE_CLASSES:
        return DCASE_CLASSES[name][0]
    words = re.sub(r"([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3_\2\4", name)
    return re.sub(r"[\W_]+", "_", words.lower()).strip("_")


def caption_of(class_name: str) -> str:
    """The caption of a recording that has a class alone: the paper's prompt, or the words of the class."""
    return _PROMPTS.get(class_name, class_name.replace("_", " "))


def stem(name: str) -> str:
    """A name without its suffix, folders kept."""
    return name.removesuffix(PurePosixPath(name).suffix)


def words_of(name: str) -> list[str]:
    """The words of a path, in lower case: data/train-00000.tar -> data, train, 00000, tar."""
    return [word for word in re.split(r"[\W_]+", name.lower()) if word]


def split_in(name: str) -> Split | None:
    """The split that a path names, if it does: its last word that is one."""
    return next((SPLIT_NAMES[word] for word in reversed(words_of(name)) if word in SPLIT_NAMES), None)


def top_split(source: str) -> Split | None:
    """The split after which the top folder is named."""
    top, _, below = source.partition("/")
    return SPLIT_NAMES.get(top.lower()) if below else None


def tops_are_splits(sources: Sequence[str]) -> bool:
    """Whether each path starts with a folder named after a split."""
    return all(map(top_split, sources))


def _split(name: str, where: str) -> Split | None:
    split = SPLIT_NAMES.get(name.lower())
    if split is None and where:
        raise SourceError(f"{where} has split {name!r}: use train or eval (also understood: {', '.join(SPLIT_NAMES)})")
    return split
