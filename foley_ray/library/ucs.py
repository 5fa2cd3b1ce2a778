"""The Universal Category System 8.2 (universalcategorysystem.com, public domain): categories, and file names made of them.

A name is CatID_FXName_CreatorID_SourceID: ANMLDog_Dog Bark Angry 01_FRAY_DCASE.wav. The underscore separates, so no part has
one; every part is ASCII letters, digits, spaces and hyphens, which no file system, archive or terminal takes for anything else.
"""

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

from foley_ray.errors import ConfigError

Format = Literal["wav", "flac"]
"""What a delivered file may be: its suffix."""

MAX_FX_NAME = 60
"""Characters of an FXName. UCS asks for about 25; what remains of a path's 255 is for folders."""

# every catid begins with a word of its own, so a name can be none of what Windows keeps for devices (CON, NUL, COM1)
_ALLOWED = re.compile(r"[^A-Za-z0-9-]+")


class Category(NamedTuple):
    """One line of the system."""

    catid: str
    category: str
    subcategory: str


@cache
def table() -> dict[str, Category]:
    """CatID -> its line, all 753."""
    text = files("foley_ray.library").joinpath("ucs.csv").read_text(encoding="utf-8")
    return {row["catid"]: Category(**row) for row in csv.DictReader(text.splitlines())}


def lookup(catid: str) -> Category:
    """Raises ConfigError for a CatID that does not exist, with those that look like it."""
    if catid in table():
        return table()[catid]
    folded = {known.casefold(): known for known in table()}
    close = [folded[name] for name in get_close_matches(catid.casefold(), folded, n=3)]
    words = set(catid.casefold().split())
    named = [line.catid for line in table().values() if words & set(f"{line.category} {line.subcategory}".casefold().split())]
    hint = ", ".join([*close, *named][:3])
    raise ConfigError(f"{catid!r} is no CatID of UCS 8.2" + (f"; near it: {hint}" if hint else ""))


def clean(text: str) -> str:
    """Any text as a part of a name: accents dropped, all else that is not allowed a space; never empty."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return _ALLOWED.sub(" ", ascii_text).strip(" -")[:MAX_FX_NAME].strip(" -") or "Sound"


def title(text: str) -> str:
    """`clean`, each word with a capital; capitals inside a word stay."""
    return " ".join(word[0].upper() + word[1:] for word in clean(text).split())


def stems(wanted: Sequence[tuple[str, str]], creator: str, source: str) -> list[str]:
    """A file name without suffix for each (CatID, FXName), in order; each differs from the others in more than its capitals.

    All are numbered within their FXName, 01 upwards: the number is the last word, so no name can run into another's.
    """
    bases = [(catid, title(fx_name)) for catid, fx_name in wanted]
    keys = [(catid, fx_name.casefold()) for catid, fx_name in bases]
    digits = {key: max(2, len(str(count))) for key, count in Counter(keys).items()}
    seen: Counter[tuple[str, str]] = Counter()
    names = []
    for (catid, fx_name), key in zip(bases, keys, strict=True):
        seen[key] += 1
        names.append(f"{catid}_{fx_name} {seen[key]:0{digits[key]}d}_{clean(creator)}_{clean(source)}")
    return names


def folder(catid: str) -> str:
    """The folder of a category: 'Food Drink' for FOOD & DRINK."""
    return clean(table()[catid].category).title()
