"""The clips that are judged: generated from frozen prompts with fixed seeds, kept as files, made only once.

OUT/clips/made.json says with what they were made; where that differs from what is asked now, all are made again.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foley_ray.audio.files import read_wave, replacing, write_wav
from foley_ray.checkpoint import read_info
from foley_ray.clip import ClipRequest
from foley_ray.config import ClipSettings
from foley_ray.errors import OutputError
from foley_ray.pipeline import Pipeline

MADE_FILE = "made.json"


@dataclass(frozen=True)
class Made:
    """One class's generated clips, (T,) each, and what each was asked for."""

    waves: list[np.ndarray]
    prompts: list[str]
    paths: list[Path]


def made_clips(
    model: Path,
    prompts: Mapping[str, Sequence[str]],
    count: int,
    seed: int,
    settings: ClipSettings,
    out: Path,
    progress: Callable[[str], None],
) -> dict[str, Made]:
    """`count` clips a class: clip i has the class's wording i (from the start again when they run out) and the seed `seed` + i.

    So a larger count adds clips and changes none. Raises ModelError if the model is not complete, OutputError if `out` holds
    something else or cannot be written.
    """
    info = read_info(model)
    with_what = {
        "model": info.digest,
        "seed": seed,
        "settings": settings.model_dump(mode="json"),
        "prompts": {name: list(texts) for name, texts in prompts.items()},
    }
    _prepare(out, with_what)
    wanted = {
        out / f"{name}_{index:03d}.wav": ClipRequest(texts[index % len(texts)], seed + index, settings)
        for name, texts in prompts.items()
        for index in range(count)
    }
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        pipeline = Pipeline(model)
        requests = [wanted[path] for path in missing]
        pipeline.check(requests)
        for done, (path, clip) in enumerate(zip(missing, pipeline.generate(requests), strict=True)):
            write_wav(path, clip.wave_T, info.model.audio.sample_rate_hz)
            progress(f"{done + 1} of {len(missing)} clips generated")
    found = {}
    for name in prompts:
        paths = [out / f"{name}_{index:03d}.wav" for index in range(count)]
        waves = [read_wave(path, info.model.audio.sample_rate_hz) for path in paths]
        found[name] = Made(waves, [wanted[path].prompt for path in paths], paths)
    return found


def _prepare(out: Path, with_what: dict[str, object]) -> None:
    """An empty folder, or one whose clips were made in the same way."""
    note = out / MADE_FILE
    if out.exists() and not note.is_file() and any(out.iterdir()):
        raise OutputError(f"{out} exists and holds no clips of an evaluation; choose another --out, nothing there was touched")
    if note.is_file() and json.loads(note.read_text()) != with_what:
        shutil.rmtree(out)
    with replacing(note) as temporary:
        temporary.write_text(json.dumps(with_what, indent=1))
