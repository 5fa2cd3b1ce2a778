"""What `foley library plan` prints: the expansion of a plan, its counts, a time estimate, what there is already."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from foley_ray.checkpoint import read_info, shipped_model
from foley_ray.config import USUAL, ClipSettings
from foley_ray.errors import ModelError
from foley_ray.library.plan import PlannedClip, expand, load_plan
from foley_ray.library.store import Store
from foley_ray.library.targets import find_targets
from foley_ray.library.ucs import lookup

SHOWN = 3
"""Clips of a category that are listed."""
ROW_STEP_S = {"tiny": 0.002, "default": 0.034}
"""Seconds of one core that a step of one UNet row takes, with its share of vocoding, for each 4 s of sound (measured)."""
GUIDED_SHARE = 0.45
"""Of 20 steps those within the usual interval of guidance, which cost a second row."""


def outline(plan_file: Path, out: Path | None, model: Path | None, all_clips: bool) -> Iterator[str]:
    """Lines to print.

    Raises ConfigError or SourceError for a plan or its targets that do not work, ModelError for a model that was given and is
    none.
    """
    try:
        info = read_info(model or shipped_model(), needs=("clap",))
    except ModelError:
        if model is not None:
            raise
        info = None
    plan = load_plan(plan_file, info.parts["clap"].digest if info else None)
    clips = expand(plan, info.digest if info else "")
    targets = find_targets(plan, clips, plan_file.parent)
    by_category: dict[str, list[PlannedClip]] = defaultdict(list)
    for clip in clips:
        by_category[clip.catid].append(clip)
    for catid, members in by_category.items():
        _, category, subcategory = lookup(catid)
        yield f"{catid}  {category} / {subcategory}: {len(members)} clips"
        for clip in members if all_clips else members[:SHOWN]:
            target = f", target {targets[clip.id].name}" if clip.id in targets else ""
            yield f"    {clip.stem}  {clip.prompt!r} seed {clip.seed}{target}"
        if not all_clips and len(members) > SHOWN:
            yield f"    and {len(members) - SHOWN} more (--all)"
    sound_s = sum(clip.settings.duration_s for clip in clips)
    candidates = sum(clip.settings.candidates for clip in clips)
    yield f"{plan.library}: {len(clips)} clips, {candidates} candidates, {sound_s / 60:.1f} minutes of sound at most"
    made = Store(out).draws() if out else {}
    missing = [clip for clip in clips if clip.id not in made]
    if out and info:
        yield f"{out}: {len(clips) - len(missing)} made already, {len(missing)} to make"
    yield _estimate(missing, Store(out).history() if out else [], info.preset if info else "")


def _estimate(clips: Sequence[PlannedClip], history: Sequence[dict[str, float]], preset: str) -> str:
    """From this library's own runs if there are any, else from what was measured of the preset."""
    made = sum(run["made"] for run in history)
    if made:
        hours = len(clips) * sum(run["seconds"] for run in history) / made / 3600
        return f"about {_hours(hours)} at the pace of the {len(history)} runs so far"
    if preset in ROW_STEP_S:
        steps = sum(
            clip.settings.candidates * clip.settings.steps * _rows(clip.settings) * clip.settings.duration_s / 4
            for clip in clips
        )
        return f"about {_hours(steps * ROW_STEP_S[preset] / 3600)} on one core, redraws apart"
    return f"no time estimate: nothing was measured yet of {preset or 'this model'}; a first run with budget.clips tells"


def _rows(settings: ClipSettings) -> float:
    """UNet rows a step costs on average: of an unusual interval at most."""
    if settings.guidance == 1:
        return 1
    usual = (settings.guided_above, settings.guided_below) == (USUAL.guided_above, USUAL.guided_below)
    return 1 + GUIDED_SHARE if usual else 2


def _hours(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"
