"""From prompts to files: what `foley generate` and jobs/generate.py do.

OUT/000_a_dog_bark_seed7.wav     16-bit mono at 22,050 Hz
OUT/000_a_dog_bark_seed7.png     waveform and spectrogram
OUT/000_a_dog_bark_seed7.json    prompt, seed, settings, scores, model digest; written last, so its presence means all three
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foley_ray import __version__
from foley_ray.audio.files import replacing, slug, write_wav
from foley_ray.audio.plot import plot_waves
from foley_ray.audio.wave import resample
from foley_ray.checkpoint import ModelInfo
from foley_ray.clip import OUTPUT_RATE_HZ, Clip, ClipRequest
from foley_ray.config import MAX_SEED, ClipSettings
from foley_ray.errors import OutputError, PromptError


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one a line; blank lines and lines that start with # do not count.

    Raises PromptError if the file cannot be read or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read prompts from {path}: {error}") from None
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise PromptError(f"no prompts in {path}: write one a line")
    return prompts


def requests_for(
    prompts: Sequence[str],
    count: int,
    seed: int,
    settings: ClipSettings,
    targets: tuple[Sequence[Path], Sequence[np.ndarray | None] | np.ndarray] | None = None,
) -> list[ClipRequest]:
    """`count` clips of each prompt, with seeds seed, seed + 1, ... for each prompt anew.

    With `targets` (files and their embeddings (N, D), or Nones for who makes nothing), clip i of a prompt is chosen against
    target i, from the start again when there are more clips than targets: every clip gets its own, which keeps a complex class
    varied (system.md A.5).
    """
    requests = []
    for prompt in prompts:
        for index in range(count):
            request = ClipRequest(prompt, (seed + index) % (MAX_SEED + 1), settings)
            if targets is not None:
                paths, embedding_ND = targets
                chosen = index % len(paths)
                request = ClipRequest(prompt, request.seed, settings, embedding_ND[chosen], paths[chosen].name)
            requests.append(request)
    return requests


def check_writable(out: Path) -> None:
    """Find out before hours of work whether its results can be kept. Raises OutputError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".foley_probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from None


def clip_name(index: int, request: ClipRequest) -> str:
    """The stem of a clip's three files."""
    return f"{index:03d}_{slug(request.prompt)}_seed{request.seed}"


def missing(out: Path, requests: Sequence[ClipRequest], info: ModelInfo) -> list[tuple[int, ClipRequest]]:
    """(index, request) of what no earlier run has made in `out` of the same model and request: so a stopped one goes on.

    A target sound is the same if its name is.
    """
    return [(index, request) for index, request in enumerate(requests) if not _made(out, index, request, info)]


def _made(out: Path, index: int, request: ClipRequest, info: ModelInfo) -> bool:
    path = out / f"{clip_name(index, request)}.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        same = asked(request).items() <= known.items() and known["model"]["digest"] == info.digest
    except (OSError, ValueError, AttributeError, TypeError, KeyError):  # none there, or none of ours
        return False
    return same and path.with_suffix(".wav").is_file()


def asked(request: ClipRequest) -> dict[str, Any]:
    """Of the JSON beside a clip what was asked for."""
    return {
        "prompt": request.prompt,
        "seed": request.seed,
        "settings": request.settings.model_dump(mode="json"),
        "target": request.target_name or "prompt",
    }


def describe(clip: Clip, info: ModelInfo) -> dict[str, Any]:
    """The JSON beside a clip: everything needed to make it again, and to judge it."""
    request = clip.request
    return {
        **asked(request),
        "candidate": clip.best.index,
        "score": _number(clip.score),
        "novelty": _number(clip.best.novelty),
        "candidate_scores": [_number(score) for score in clip.scores],
        "passed_threshold": clip.passed,
        "warnings": clip.warnings,
        "sample_rate_hz": OUTPUT_RATE_HZ,
        "duration_s": round(len(clip.wave_T) / info.model.audio.sample_rate_hz, 6),
        "model": {"digest": info.digest, "preset": info.preset, "licences": info.licences},
        "generator": f"foley_ray {__version__}",
        "ai_generated": True,
    }


def _number(value: float) -> float | None:
    """Six digits; none where there is none (JSON has no NaN)."""
    return None if math.isnan(value) else round(value, 6)


def write_clip(out: Path, index: int, clip: Clip, info: ModelInfo) -> Path:
    """Write a clip's three files, each whole or absent. Returns the WAV's path; raises OutputError."""
    path = out / f"{clip_name(index, clip.request)}.wav"
    path.with_suffix(".json").unlink(missing_ok=True)
    write_wav(path, resample(clip.wave_T, info.model.audio.sample_rate_hz, OUTPUT_RATE_HZ), OUTPUT_RATE_HZ)
    title = f"{clip.request.prompt[:40]}  seed {clip.request.seed}  {clip.verdict}"
    plot_waves(path.with_suffix(".png"), [clip.wave_T], [title], info.model.audio)
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(describe(clip, info), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
