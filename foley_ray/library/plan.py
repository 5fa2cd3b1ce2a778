"""The plan of a library: typed YAML, and the clips that it multiplies out to. Imports neither torch nor ray.

    library: Small Foley           # CatID_FXName_CREATOR_SOURCE.wav
    creator: FRAY
    source: SMALL
    date: 2026-11-20               # what the files say; never the clock, so that two runs write the same bytes
    clip: {candidates: 4, threshold: 0.3}
    categories:
      - catid: ANMLDog
        name: "Dog Bark {mood}"
        prompts: ["a {mood} dog barks", "{mood} barking of a dog, {place}"]
        vary: {mood: [angry, playful], place: [indoors, in a yard]}
        seeds: 3

A threshold, and the gate on the score, may be FILE:CLASS of `foley calibrate`: thresholds.yaml:dog_bark, beside the plan.
A category with `targets: FOLDER` of sound files, or `targets: DATASET:CLASS` of `foley ingest`, is chosen by ear: each of its
clips against a target of its own instead of the prompt. Scores, thresholds and gates are then cosines to that sound.
Each prompt is multiplied by the lists whose names it has in braces, then by the seeds: 2 * 3 + 4 * 3 clips here.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from foley_ray.config import MAX_SEED, USUAL, ClipSettings
from foley_ray.errors import ConfigError
from foley_ray.library.ucs import Format, folder, lookup, stems
from foley_ray.originals import NEAR_COPY
from foley_ray.settings import Settings, describe
from foley_ray.thresholds import resolve

_FIELD = re.compile(r"\{(\w+)\}")

Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,19}$")]


def _known(catid: str) -> str:
    try:
        return lookup(catid).catid
    except ConfigError as error:
        raise ValueError(str(error)) from None


class Gates(Settings):
    """What a clip must be to be delivered; null switches a gate off."""

    silence_dbfs: float | None = Field(-50.0, le=0, description="a peak below this is silence")
    clipped: float | None = Field(0.001, ge=0, le=1, description="share of samples at full scale")
    dc: float | None = Field(0.02, ge=0, le=1, description="mean of the wave, of full scale")
    score: float | None = Field(None, ge=-1, le=1, description="lowest CLAP score")
    novelty: float | None = Field(NEAR_COPY, ge=0, description="below 1 is a near copy of a recording; null delivers them")
    similarity: float | None = Field(0.995, ge=-1, le=1, description="cosine to an earlier clip of the same CatID")


class Finish(Settings):
    """What is done to a chosen clip."""

    ceiling_dbtp: float = Field(-1.0, ge=-40, le=0, description="true peak after normalisation")
    trim_db: float | None = Field(-60.0, lt=0, description="ends this far below the peak are silence; null keeps them")
    fade_in_ms: float = Field(2.0, ge=0, le=1000)
    fade_out_ms: float = Field(10.0, ge=0, le=5000)


class Budget(Settings):
    """Where a run ends. The clips are shared out evenly over the categories."""

    clips: int | None = Field(None, ge=1)
    hours: float | None = Field(None, gt=0, description="then a run stops making clips; the next one goes on")


class CategoryPlan(Settings):
    """Prompts that share a CatID and an FXName."""

    catid: Annotated[str, AfterValidator(_known)]
    name: Word = Field(description="FXName; may have the names of lists in braces")
    prompts: tuple[Word, ...] = Field(min_length=1)
    vary: dict[str, tuple[Word, ...]] = Field({}, description="lists that multiply the prompts which name them in braces")
    seeds: int | tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...] = Field(1, description="how many, from 0; or which")
    keywords: tuple[Word, ...] = ()
    targets: Word | None = Field(None, description="folder of sounds, or DATASET:CLASS; each clip is chosen against its own")
    clip: dict[str, Any] = Field({}, description="changes to the plan's clip settings")
    gates: dict[str, Any] = Field({}, description="changes to the plan's gates")

    @model_validator(mode="after")
    def _check(self) -> Self:
        used = {field for text in (*self.prompts, self.name) for field in _FIELD.findall(text)}
        if missing := sorted(used - set(self.vary)):
            raise ValueError(f"{{{missing[0]}}} has no list in vary ({', '.join(self.vary) or 'which is empty'})")
        if unused := sorted(set(self.vary) - used):
            raise ValueError(f"vary.{unused[0]} is in no prompt; write {{{unused[0]}}} where it belongs")
        if empty := [name for name, words in self.vary.items() if not words]:
            raise ValueError(f"vary.{empty[0]} is an empty list")
        for prompt in self.prompts:
            if extra := set(_FIELD.findall(self.name)) - set(_FIELD.findall(prompt)):
                raise ValueError(f"name has {{{min(extra)}}}, but the prompt {prompt!r} has not")
        if self.seeds == () or (isinstance(self.seeds, int) and not 1 <= self.seeds <= MAX_SEED):
            raise ValueError(f"seeds {self.seeds} must be at least 1, or a list of seeds")
        return self

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds themselves."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else tuple(dict.fromkeys(self.seeds))


class Plan(Settings):
    """A whole plan."""

    library: Word
    creator: Identifier
    source: Identifier
    date: date
    clip: ClipSettings = USUAL
    gates: Gates = Gates()
    finish: Finish = Finish()
    formats: tuple[Format, ...] = Field(("wav",), min_length=1)
    keywords: tuple[Word, ...] = ()
    budget: Budget = Budget()
    categories: tuple[CategoryPlan, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for category in self.categories:
            self.clip_of(category)
            self.gates_of(category)
        return self

    def clip_of(self, category: CategoryPlan) -> ClipSettings:
        """The plan's clip settings with the category's changes."""
        return ClipSettings.model_validate({**self.clip.model_dump(), **category.clip})

    def gates_of(self, category: CategoryPlan) -> Gates:
        """The plan's gates with the category's changes."""
        return Gates.model_validate({**self.gates.model_dump(), **category.gates})


@dataclass(frozen=True, slots=True)
class PlannedClip:
    """One clip of the library. A plan may have a hundred thousand of them."""

    id: str
    """16 hexadecimal digits that change with prompt, seed, settings and model."""
    catid: str
    stem: str
    """File name without suffix."""
    prompt: str
    seed: int
    settings: ClipSettings
    gates: Gates
    keywords: tuple[str, ...]
    category: int = 0
    """Which of the plan's."""

    def place(self, format: Format) -> str:
        """Path within the library."""
        return f"{folder(self.catid)}/{self.stem}.{format}"

    @property
    def fx_name(self) -> str:
        """The second part of the name."""
        return self.stem.split("_")[1]


def load_plan(path: Path, clap: str | None = None) -> Plan:
    """Raises ConfigError naming the file, the line, the key, the value seen and the rule.

    `clap` is the digest of the CLAP that will score: thresholds that were calibrated for another one are refused.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content, root = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"cannot read plan {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"plan {path} must hold key: value lines, not a {type(content).__name__}")
    resolve(content, path.parent, clap)
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        lines = sorted({_line(root, item["loc"]) for item in error.errors()})
        raise ConfigError(f"{path}, line {', '.join(map(str, lines))}: {describe(error, Plan)}") from None


def expand(plan: Plan, model_digest: str) -> list[PlannedClip]:
    """The clips in plan order. Raises ConfigError if one is asked for twice: a library has no use for equal sounds."""
    drafts = [draft for index, category in enumerate(plan.categories) for draft in _drafts(plan, index, category)]
    names = stems([(plan.categories[index].catid, name) for index, name, _, _ in drafts], plan.creator, plan.source)
    clips: dict[str, PlannedClip] = {}
    places: list[int] = []
    # one object for all clips of a category: they may be a hundred thousand
    shared = [
        (plan.clip_of(category), plan.gates_of(category), tuple(dict.fromkeys((*plan.keywords, *category.keywords))))
        for category in plan.categories
    ]
    for (index, _, prompt, seed), stem in zip(drafts, names, strict=True):
        settings, gates, keywords = shared[index]
        clip_id = digest_of(prompt, seed, settings, model_digest)
        if clip_id in clips:
            raise ConfigError(f"the plan has {prompt!r} with seed {seed} twice, as {clips[clip_id].stem} and {stem}")
        catid = plan.categories[index].catid
        clips[clip_id] = PlannedClip(clip_id, catid, stem, prompt, seed, settings, gates, keywords, index)
        places.append(index)
    return [clip for clip, wanted in zip(clips.values(), _within(plan.budget.clips, places), strict=True) if wanted]


def digest_of(prompt: str, seed: int, settings: ClipSettings, model_digest: str) -> str:
    """A clip's id."""
    known = {"prompt": prompt, "seed": seed, "settings": settings.model_dump(mode="json"), "model": model_digest}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def _drafts(plan: Plan, index: int, category: CategoryPlan) -> Iterator[tuple[int, str, str, int]]:
    """(category, FXName, prompt, seed) of each of its clips."""
    for template in category.prompts:
        fields = list(dict.fromkeys(_FIELD.findall(template)))
        for words in product(*(category.vary[field] for field in fields)):
            values = dict(zip(fields, words, strict=True))
            name, prompt = (_FIELD.sub(lambda match: values[match[1]], text) for text in (category.name, template))  # noqa: B023
            for seed in category.seed_list:
                yield index, name, prompt, seed


def _within(limit: int | None, categories: Sequence[int]) -> list[bool]:
    """Which clips a budget leaves: every category its first, then every category its second, and so on."""
    turn: Counter[int] = Counter()
    turns = []
    for category in categories:
        turns.append((turn[category], category))
        turn[category] += 1
    kept = set(sorted(turns)[:limit])
    return [turn in kept for turn in turns]


def _line(root: yaml.Node | None, loc: Sequence[Any]) -> int:
    """The line of a value, or of the nearest section around it that the file has."""
    line, node = 1, root
    for key in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(name, value) for name, value in node.value if name.value == str(key)]
            if not found:
                continue  # a missing key, or the name of a type
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
    return line
