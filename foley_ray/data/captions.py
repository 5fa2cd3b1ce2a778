"""Wordings per class, from YAML: small sets have one caption a class, but people ask for the same sound in many words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from foley_ray.errors import SourceError

Manner = Literal["", "series", "once"]
"""How a crop holds what its class is: in a series, once, or nobody knows."""
MANNERS: tuple[Manner, ...] = ("series", "once")


def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """{class: (wording, ...)} of a YAML file; a class may be CLASS/series or CLASS/once.

    Raises SourceError naming the line or class that is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SourceError(f"cannot read captions from {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SourceError(f"{path} must hold a mapping of class: [wordings], not a {type(content).__name__}")
    for name, wordings in content.items():
        kind, slash, manner = str(name).partition("/")
        if slash and manner not in MANNERS:
            raise SourceError(f"{path}: {name!r} must be {kind}, {kind}/{f' or {kind}/'.join(MANNERS)}")
        if (
            not isinstance(wordings, list)
            or not wordings
            or not all(isinstance(text, str) and text.strip() for text in wordings)
        ):
            raise SourceError(f"{path}: class {name!r} must have a list of wordings, not {wordings!r}")
    return {str(name): tuple(wordings) for name, wordings in content.items()}


def wordings_of(captions: Mapping[str, tuple[str, ...]], class_name: str, manner: Manner = "") -> tuple[str, ...]:
    """What a crop of a class may be called: by CLASS's wordings, and by those of CLASS/MANNER (of all, if nobody knows)."""
    lists = [class_name, *(f"{class_name}/{known}" for known in MANNERS if manner in ("", known))]
    return tuple(text for name in lists for text in captions.get(name, ()))


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """The text with each word left out at that chance, at least one kept: no single word may decide what a caption means."""
    words = text.split()
    kept = [word for word in words if rng.random() >= share]
    return " ".join(kept or [str(rng.choice(words))])
