"""Freesound (what its API and its packs say of each sound) and FSD50K, which was made of it.

Pack files are called 387682__jagadamba__closing-drawer.mp3: the sound's number, its author and its title as slugs.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from foley_ray.data.manifest import Reason
from foley_ray.data.sources.licences import licence_of
from foley_ray.data.sources.recording import (
    SPLIT_NAMES,
    Recording,
    caption_of,
    class_of,
    describe,
    distinct,
    stem,
    text,
    words_of,
)
from foley_ray.data.sources.tables import Row, SoundFiles, csv_headers, is_sound, json_heads, read_json, read_table
from foley_ray.data.storage import Fault, Place, Storage
from foley_ray.errors import SourceError

PACK_FILE = "_readme_and_license.txt"
SENTENCE_WORDS = 40  # a longer first sentence of a description is about microphones
_API = ("name", "username", "license")
_PACK_FILE_NAME = re.compile(r"(?P<id>\d+)__(?P<author>.+?)__(?P<title>.+)")


def find_freesound(storage: Storage) -> list[str]:
    """The files with what the API says of sounds, and the notes in packs."""
    tables = [name for name, columns in csv_headers(storage) if {*_API, "id"} <= set(columns)]
    heads = [name for name, head in json_heads(storage) if all(f'"{key}"' in head for key in _API)]
    if heads:  # one file per sound: more than are looked at
        tables += [name for name in storage.names if name.endswith(".json")]
    tables += [name for name in storage.names if name.endswith(".jsonl") and _has_all(storage.head(name))]
    return tables + [name for name in storage.names if PurePosixPath(name).name == PACK_FILE]


def read_freesound(storage: Storage, files: Sequence[str]) -> Iterator[Recording]:
    """A recording per sound. Its captions are its name, the first sentence of its description, and its tags."""
    sounds = SoundFiles(storage)
    by_number = {number: name for name in reversed(sounds.names) if (number := _number_of(name))}
    packs = [file for file in files if PurePosixPath(file).name == PACK_FILE]
    seen: set[str] = set()
    entries: list[tuple[str, Row]] = []
    for file in files:
        if file not in packs:
            try:
                entries += [(file, entry) for entry in _api_entries(storage, file)]
            except SourceError as error:
                yield Recording(Place(file), file, fault=(Reason.CORRUPT, str(error)))
    names = Counter(text(entry.get("name")) for _, entry in entries)
    for file, entry in entries:
        number, called = text(entry.get("id")), text(entry.get("name"))
        if number in seen:  # a sound that two searches found
            continue
        seen.add(number)
        choices = [f"{number}_{called}", *([called] if names[called] == 1 and called else [])]
        name = by_number.get(number) or next(filter(None, (sounds.find(choice, file) for choice in choices)), None)
        source = name or f"{number} {called}"
        missing = f"no sound file is called {number}, {number}__... or {called!r}, of {file}"
        about = {"caption": list(_captions(entry)), "license": entry.get("license"), "username": entry.get("username")}
        yield describe(
            about, Place(source), source, recording=f"freesound:{number}", fault=None if name else (Reason.MISSING, missing)
        )
    for file in packs:
        yield from (row for row in _pack(storage, file, sounds) if row.recording.removeprefix("freesound:") not in seen)


def find_fsd50k(storage: Storage) -> list[str]:
    """dev.csv and eval.csv of FSD50K.ground_truth."""
    found = [name for name, columns in csv_headers(storage) if {"fname", "labels", "mids"} <= set(columns)]
    return [name for name in found if "collection" not in words_of(name)]


def read_fsd50k(storage: Storage, files: Sequence[str]) -> Iterator[Recording]:
    """A recording per clip; its licence and uploader are in FSD50K.metadata/*_clips_info_FSD50K.json.

    Its class is the first label, the narrowest. Its caption names the labels that people gave it, where
    FSD50K.metadata/collection is there, and else also all that follow from them (guitar: musical instrument, music).
    """
    sounds = SoundFiles(storage)
    clips: dict[str, Row] = {}
    given: dict[str, str] = {}
    for file in storage.names:
        if PurePosixPath(file).name.endswith("_clips_info_FSD50K.json"):
            clips |= _keyed(read_json(storage, file))
        elif re.fullmatch(r"collection_(dev|eval)\.csv", PurePosixPath(file).name):
            given |= {text(row["fname"]): text(row["labels"]) for row in read_table(storage, file)[1]}
    for file in files:
        held_out = "eval" in words_of(PurePosixPath(file).name)
        for row in read_table(storage, file)[1]:
            number, labels = text(row["fname"]), _labels(row["labels"])
            name = sounds.find(number, file)
            source = name or f"{number}.wav"
            about = clips.get(number, {})
            yield describe(
                {
                    "class": labels[:1],
                    "caption": ", ".join(map(caption_of, _labels(given.get(number)) or labels)),
                    "licence": about.get("license"),
                    "author": about.get("uploader"),
                },
                Place(source),
                source,
                split="eval" if held_out else SPLIT_NAMES.get(text(row.get("split")).lower()),
                recording=f"freesound:{number}",
                fault=None if name else (Reason.MISSING, f"no sound file is called {number}, of {file}"),
            )


def _labels(cell: Any) -> list[str]:
    return [class_of(label) for label in text(cell).split(",") if label]


def _has_all(head: bytes) -> bool:
    return all(f'"{key}"'.encode() in head for key in _API)


def _keyed(content: Any) -> dict[str, Row]:
    """The objects of a JSON object, by their keys."""
    return {key: value for key, value in content.items() if isinstance(value, dict)} if isinstance(content, dict) else {}


def _api_entries(storage: Storage, file: str) -> list[Row]:
    """The sounds of a file: an answer of the API with a page of them, a list, one alone, or an object of them by number."""
    if not file.endswith(".json"):
        return read_table(storage, file)[1]
    content = read_json(storage, file)
    if isinstance(content, dict):
        content = content.get("results") or ([content] if "license" in content else [*_keyed(content).values()])
    entries = content if isinstance(content, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and {"id", *_API} <= set(entry)]


def _number_of(name: str) -> str | None:
    """The sound's number in the name of a file: 387682.wav, 387682__jagadamba__closing-drawer.mp3."""
    found = re.fullmatch(r"(\d+)(?:__.*)?", stem(PurePosixPath(name).name))
    return found[1] if found else None


def _captions(entry: Mapping[str, Any]) -> tuple[str, ...]:
    name = text(entry.get("name"))
    plain = re.sub(r"<[^>]*>", " ", text(entry.get("description")))  # descriptions may have links
    sentence = re.split(r"(?<=[.!?])\s", text(plain), maxsplit=1)[0]
    tags = entry.get("tags") or []
    listed = tags if isinstance(tags, list) else re.split(r"[,;\s]+", re.sub(r"[\[\]'\"]", "", str(tags)))
    return distinct(
        [
            _title(stem(name) if is_sound(name) else name),
            sentence if 2 < len(sentence.split()) <= SENTENCE_WORDS else None,
            ", ".join(tag.replace("-", " ") for tag in map(text, listed) if tag),
        ]
    )


def _title(slug: str) -> str:
    """The words of a title or slug, if there are any."""
    words = " ".join(re.split(r"[\s_-]+", slug)).strip()
    return words if re.search(r"[^\W\d_]{2}", words) else ""


def _pack(storage: Storage, file: str, sounds: SoundFiles) -> Iterator[Recording]:
    """The sounds that a pack's note lists, each with its licence."""
    try:
        with storage.open(file) as content:
            lines = content.read().decode("utf-8-sig", errors="replace").splitlines()
    except (Fault, OSError) as error:
        yield Recording(Place(file), file, fault=(Reason.CORRUPT, str(error)))
        return
    deeds = {found[1].strip(): found[2] for line in lines if (found := re.fullmatch(r"([^*].*?): (https?://\S+)\s*", line))}
    users = {_letters(found[1]): found[1] for line in lines if (found := re.match(r" - (\S+) \( https?://", line))}
    listed = [(number, found[1]) for number, line in enumerate(lines) if (found := re.fullmatch(r"  \* (.*\S)\s*", line))]
    for (at, name), (end, _) in zip(listed, [*listed[1:], (len(lines), "")], strict=True):
        stated = next((found[1] for line in lines[at:end] if (found := re.fullmatch(r"    \* license: (.*\S)\s*", line))), "")
        parts = _PACK_FILE_NAME.fullmatch(stem(name))
        folder = PurePosixPath(file).parent
        place = (folder / name).as_posix()
        source = place if place in sounds.known else sounds.find(name, file) or place
        author = users.get(_letters(parts["author"]), parts["author"]) if parts else next(iter(users.values()), "")
        licence = licence_of(deeds.get(stated, stated))
        title = _title(parts["title"] if parts else stem(name))
        yield Recording(
            place=Place(source),
            source=source,
            captions=(title,) if title else (),
            licence=licence.name,
            author=author,
            recording=f"freesound:{parts['id']}" if parts else stem(source),
            shippable=bool(licence.shippable),
        )


def _letters(name: str) -> str:
    """What is left of a user's name in a slug."""
    return re.sub(r"[\W_]", "", name.lower())
