"""What came out, in a form in which two runs can be compared."""

import base64
import io
from pathlib import Path

import httpx
import numpy as np
import soundfile as sf

FORTY_RAINS = """\
library: Tiny
creator: FRAY
source: TINY
date: 2026-11-20
clip: {duration_s: 0.5, candidates: 2, steps: 10}
gates: {silence_dbfs: null, clipped: null, dc: null, similarity: null}
categories:
  - {catid: RAIN, name: Rain, prompts: [rain, heavy rain], seeds: 20}
"""
"""A plan that is long enough for a node to be lost meanwhile."""


def delivered(library: Path) -> dict[str, bytes]:
    """Everything in a library that a user sees, but for the report, which tells of a run and not of the library."""
    return {
        str(path.relative_to(library)): path.read_bytes()
        for path in library.rglob("*")
        if path.is_file() and ".foley" not in path.parts and not path.name.startswith("report.")
    }


def sound(answer: httpx.Response) -> tuple[int, list[int], np.ndarray]:
    """Of a service's answer with one clip: seed, order of the candidates, and the best one's wave."""
    assert answer.status_code == 200, answer.text
    [clip] = answer.json()["clips"]
    wave_T = sf.read(io.BytesIO(base64.b64decode(clip["candidates"][0]["audio"])), dtype="float32")[0]
    return clip["seed"], [item["index"] for item in clip["candidates"]], wave_T
