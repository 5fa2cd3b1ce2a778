"""`foley calibrate`: from which CLAP score on a sound is as convincing as real ones of its class.

A class's threshold is a quantile of what its real clips score against its wordings. How many clips of the other classes pass
it too is counted beside it: a threshold that they pass as well sorts nothing out.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from foley_ray.errors import DataError
from foley_ray.evaluation import metrics
from foley_ray.evaluation.metrics import Interval

MIN_CLIPS = 5


class Calibrated(NamedTuple):
    """One class's threshold."""

    threshold: Interval
    clips: int
    others_pass: Interval | None
    """Share of the real clips of other classes that reach it; None where there are no others."""


def calibrate(
    audio: Mapping[str, np.ndarray], texts: Mapping[str, np.ndarray], quantile: float = 0.1
) -> dict[str, Calibrated]:  # fmt: skip
    """Thresholds from unit CLAP embeddings: of each class's real clips (N, D) and of its wordings (W, D).

    Every clip counts against every wording, as any of them may be asked for. Raises DataError for a class with too few clips.
    """
    found = {}
    for name, text_WD in texts.items():
        own_NW = audio[name] @ text_WD.T
        if len(own_NW) < MIN_CLIPS:
            raise DataError(f"class {name} has {len(own_NW)} clips, a threshold needs at least {MIN_CLIPS}; leave it out")
        threshold = metrics.bootstrap(lambda scores_NW: float(np.quantile(scores_NW, quantile)), own_NW)
        others = [audio[other] @ text_WD.T for other in audio if other != name]
        passing = None
        if others:
            passed = np.concatenate(others).mean(axis=1) >= threshold.value
            passing = metrics.share(int(passed.sum()), len(passed))
        found[name] = Calibrated(threshold, len(own_NW), passing)
    return found


def as_yaml(found: Mapping[str, Calibrated], clap: str, quantile: float, how: Sequence[str]) -> str:
    """The file that foley_ray.thresholds reads, with what the numbers rest on as comments."""
    lines = [f"# {line}" for line in how]
    lines += [f"clap: '{clap}'", f"quantile: {quantile:g}", "thresholds:"]
    for name, item in found.items():
        passing = "" if item.others_pass is None else f"; {item.others_pass.value:.0%} of other classes' clips reach it"
        low, high = item.threshold.low, item.threshold.high
        told = json.dumps(name, ensure_ascii=False)  # quoted: 2023, no and on are no text in YAML
        lines.append(f"  {told}: {item.threshold.value:.4f}  # [{low:.3f}, {high:.3f}], {item.clips} clips{passing}")
    return "\n".join(lines) + "\n"
