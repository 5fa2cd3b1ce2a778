"""Wordings per class, from YAML: small sets have one caption a class, but people ask for the same sound in many words."""

from pathlib import Path

import numpy as np
import yaml

from foley_ray.errors import SourceError


def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """{class: [wording, ...]} of a YAML file. Raises SourceError naming the line or class that is wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SourceError(f"cannot read captions from {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SourceError(f"{path} must hold a mapping of class: [wordings], not a {type(content).__name__}")
    for name, wordings in content.items():
        if (
            not isinstance(wordings, list)
            or not wordings
            or not all(isinstance(text, str) and text.strip() for text in wordings)
        ):
            raise SourceError(f"{path}: class {name!r} must have a list of wordings, not {wordings!r}")
    return {str(name): tuple(wordings) for name, wordings in content.items()}


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """The text with each word left out at that chance, at least one kept: no single word may decide what a caption means."""
    words = text.split()
    kept = [word for word in words if rng.random() >= share]
    return " ".join(kept or [str(rng.choice(words))])
