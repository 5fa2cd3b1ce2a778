"""The base of everything that is configured, and what its errors say."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError


class Settings(BaseModel):
    """Base of all settings: immutable, and an unknown key is an error rather than silence."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def describe(error: ValidationError, kind: type[BaseModel] | None = None) -> str:
    """pydantic's report on one line: each key, the value seen, the rule it breaks; with `kind` also what it nearly says."""
    parts = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "settings"
        rule = item["msg"].removeprefix("Value error, ")  # what pydantic puts before the words of our own validators
        seen = str(item["input"]) if isinstance(item["input"], Path) else item["input"]
        if item["type"] == "extra_forbidden":
            near = get_close_matches(str(item["loc"][-1]), _settings_at(kind, item["loc"][:-1]), n=2)
            parts.append(f"{key}: no such setting" + (f" (did you mean: {', '.join(near)}?)" if near else ""))
        elif isinstance(item["input"], dict):  # a whole section: what is wrong with it says more than all of it
            parts.append(f"{key}: {rule}")
        else:
            parts.append(f"{key} = {seen!r}: {rule}")
    return "; ".join(parts)


def _settings_at(kind: Any, location: Sequence[int | str]) -> list[str]:
    """Names of the settings in that section of `kind`: through fields, and through what lists and mappings hold."""
    while get_origin(kind) in (Annotated, Union, UnionType):  # the value's own type comes first
        kind = get_args(kind)[0]
    fields = getattr(kind, "model_fields", None) or {}
    if not location:
        return list(fields)
    first, *rest = location
    if fields:
        return _settings_at(fields[first].annotation if first in fields else None, rest)
    return _settings_at(next((held for held in reversed(get_args(kind)) if held is not Ellipsis), None), rest)
