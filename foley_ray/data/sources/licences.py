"""Licences as sources state them -> a short name, and whether a model trained on the sound may be given away.

Allowed are CC0, the public domain, CC BY and MIT, and nothing by guess: a text that is not wholly understood stays as it is
and allows nothing. Freesound states licences by deed URL in its API and by name in its packs and its pages.
"""

import re
from typing import NamedTuple


class Licence(NamedTuple):
    """One statement."""

    name: str
    """Short, where the licence is known; else the source's own words."""
    shippable: bool | None
    """None: not known, or not stated."""


_VERSION = r"(?P<version>[1-4]\.[0-9])"
_KINDS = "by-nc-sa|by-nc-nd|by-nc|by-sa|by-nd|by|nc-sampling+|sampling+|sampling".replace("+", r"\+")
_URL = re.compile(
    r"(?:https?:)?//(?:www\.)?creativecommons\.org/"
    rf"(?:publicdomain/(?P<domain>zero|mark)/1\.0|licenses/(?P<kind>{_KINDS})/{_VERSION}(?:/[a-z]{{2}})?|licenses/(?P<old>publicdomain))"
    r"(?:/(?:deed(?:\.[a-z_-]+)?|legalcode(?:\.[a-z_-]+)?)?)?"
)
_PORTED = r"(?: (?:unported|international|generic))?"
_CC = re.compile(rf"(?:cc|creative commons)[ -](?P<kind>{_KINDS})(?:[ -]{_VERSION})?{_PORTED}")
_ATTRIBUTION = re.compile(rf"(?:cc |creative commons )?attribution(?P<nc>[ -]?non[ -]?commercial)?(?: {_VERSION})?{_PORTED}")
_NAMES = {
    "cc0": "CC0 1.0", "cc0 1.0": "CC0 1.0", "cc0-1.0": "CC0 1.0", "creative commons 0": "CC0 1.0",
    "creative commons zero": "CC0 1.0", "cc0 1.0 universal": "CC0 1.0",
    "public domain": "Public Domain", "publicdomain": "Public Domain", "pd": "Public Domain",
    "mit": "MIT", "mit license": "MIT", "mit licence": "MIT",
    "sampling+": "CC Sampling+ 1.0", "sampling plus": "CC Sampling+ 1.0", "sampling plus 1.0": "CC Sampling+ 1.0",
}  # fmt: skip
_ALLOWED = {"CC0 1.0", "Public Domain", "MIT"}


def licence_of(text: str) -> Licence:
    """What a source's statement of a licence means."""
    text = " ".join(text.split())
    words = text.lower().rstrip("/")
    if not text:
        return Licence("", None)
    if words in _NAMES:
        return _known(_NAMES[words])
    if url := _URL.fullmatch(words):
        if url["kind"]:
            return _commons(url["kind"], url["version"])
        return _known("CC0 1.0" if url["domain"] == "zero" else "Public Domain")
    if named := _CC.fullmatch(words):
        return _commons(named["kind"], named["version"])
    if named := _ATTRIBUTION.fullmatch(words):
        return _commons("by-nc" if named["nc"] else "by", named["version"])
    return Licence(text, None)


def _commons(kind: str, version: str | None) -> Licence:
    name = kind.upper() if kind.startswith("by") else kind.replace("sampling", "Sampling").replace("nc-", "NC-")
    return _known(f"CC {name} {version}" if version else f"CC {name}")


def _known(name: str) -> Licence:
    return Licence(name, name in _ALLOWED or re.fullmatch(r"CC BY( [1-4]\.\d)?", name) is not None)
