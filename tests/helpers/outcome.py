"""What came out, in a form in which two runs can be compared."""

import base64
import io
from pathlib import Path

import httpx
import numpy as np
import soundfile as sf


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
