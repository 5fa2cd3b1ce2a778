"""CLAP-score thresholds per class, as `foley calibrate` writes them and as `foley generate` and library plans read them.

    clap: 5c3f...            # digest of the CLAP that scored; scores of another one mean something else
    quantile: 0.1            # the share of real clips that score below
    thresholds:
      dog_bark: 0.41

Wherever a threshold is a number it may be FILE:CLASS instead, such as thresholds.yaml:dog_bark. Imports neither torch nor ray.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from foley_ray.errors import ConfigError
from foley_ray.settings import Settings, describe


class Thresholds(Settings):
    """A file of thresholds."""

    clap: str
    quantile: float = Field(gt=0, lt=1)
    thresholds: dict[str, float] = Field(min_length=1)


def load_thresholds(path: Path) -> Thresholds:
    """Raises ConfigError naming the file and what is wrong."""
    try:
        return Thresholds.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ConfigError(f"{path} is no file of `foley calibrate`: {describe(error)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read thresholds {path}: {' '.join(str(error).split())}") from None


def threshold_of(text: str, folder: Path = Path(), clap: str | None = None) -> float:
    """A number, or FILE:CLASS with the file's place relative to `folder`.

    Raises ConfigError for anything else, a class that the file has not, or a file of another CLAP than `clap`.
    """
    try:
        return float(text)
    except ValueError:
        file, colon, name = text.rpartition(":")
    if not colon or not file:
        raise ConfigError(f"threshold {text!r} must be a number, or FILE:CLASS of `foley calibrate`")
    found = load_thresholds(folder / file)
    if name not in found.thresholds:
        raise ConfigError(f"{folder / file} has no class {name}; it has {', '.join(found.thresholds)}")
    if clap is not None and found.clap != clap:
        raise ConfigError(f"{folder / file} was calibrated for CLAP {found.clap}, this model has {clap}: calibrate again")
    return found.thresholds[name]


def resolve(content: dict[str, Any], folder: Path, clap: str | None = None) -> None:
    """Put numbers in the place of FILE:CLASS in a plan's clip and gates sections, its categories' included.

    Raises ConfigError as `threshold_of` does.
    """
    categories = content.get("categories")
    for section in (content, *(categories if isinstance(categories, list) else ())):
        for part, key in (("clip", "threshold"), ("gates", "score")):
            settings = section.get(part) if isinstance(section, dict) else None
            if isinstance(settings, dict) and isinstance(settings.get(key), str):
                settings[key] = threshold_of(settings[key], folder, clap)
