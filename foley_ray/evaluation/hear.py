"""What CLAP, and where given a classifier and a published network, hear in each clip of a set: here, or in Ray Data's actors.

Every clip is prepared in one fixed way (recordings.clip), which `how` says in words. A clip that cannot be read, or is silent,
is named and left out of what is compared: silence is far from everything and would pass for variety.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foley_ray.audio.wave import TRAINING_PEAK
from foley_ray.checkpoint import read_info
from foley_ray.errors import ConfigError, SourceError
from foley_ray.evaluation.classifier import Classifier
from foley_ray.evaluation.embed import ClapEncoder, in_actors
from foley_ray.evaluation.published import Published, load_published
from foley_ray.evaluation.recordings import PACE_S, clip
from foley_ray.evaluation.sets import ClipSet, Place, read_place
from foley_ray.spec import AudioSpec

SILENT_PEAK = 1e-3
"""Of full scale, as the clip came: 60 dB below it."""
BATCH_CLIPS = 16
MANY_CLIPS = 500
"""From here on the work goes to Ray Data of itself."""
MAX_UNREADABLE = 0.5

Columns = dict[str, Any]


@dataclass(frozen=True)
class Heard:
    """The clips of one class that could be read and were not silent."""

    clap_ND: np.ndarray
    judge_ND: np.ndarray | None
    """In the classifier's space, where there is a classifier; `named_N` is what it takes the clips for."""
    named_N: np.ndarray | None
    places: list[Place]
    texts: list[tuple[str, ...]]
    recordings: np.ndarray
    silent: int
    unreadable: dict[str, str]
    """Name -> reason."""
    published_NPD: np.ndarray | None = None
    """In a published network's space, where there is one: P patches a clip."""


class Ears:
    """Places of sounds -> what is heard there; a batch of columns in, a batch out, whoever calls it."""

    def __init__(
        self,
        model: Path,
        classifier: Path | None,
        clip_s: float,
        published: tuple[str, Path] | None = None,
        threads: int | None = None,
    ):
        if threads:
            torch.set_num_threads(threads)
        self.arguments = (
            model.resolve(),
            classifier and classifier.resolve(),
            clip_s,
            published and (published[0], published[1].resolve()),
        )
        """But for the threads: what makes the same ears elsewhere."""
        self.published = load_published(*published, clip_s) if published else None
        self.spec = listening_spec(model, clip_s)
        self.clap = ClapEncoder(model)
        self.judge = Classifier.load(classifier) if classifier else None
        if self.judge is not None and self.judge.spec.sample_rate_hz != self.spec.sample_rate_hz:
            raise ConfigError(
                f"the classifier hears at {self.judge.spec.sample_rate_hz} Hz, CLAP's model at {self.spec.sample_rate_hz} Hz; "
                "give a --classifier and a --clap of one rate"
            )

    def __call__(self, batch: Columns) -> Columns:
        """Columns path and row -> the same with error, peak, clap (B, D).

        With a classifier also judge (B, J) and named, with a published network published (B, P, D).
        """
        wave_BT, errors, peaks = _read(batch, self.spec)
        found = {**batch, "error": np.array(errors, dtype=object), "peak": np.array(peaks), "clap": self.clap.sounds(wave_BT)}
        if self.judge is not None:
            found |= {
                "judge": self.judge.embed(wave_BT[:, : self.judge.spec.clip_samples]),
                "named": np.array(self.judge.predict(wave_BT[:, : self.judge.spec.clip_samples])[0], dtype=object),
            }
        if self.published is not None:  # read anew: what CLAP's rate has taken away, the network's own may keep
            found["published"] = self.published.network.sounds(_read(batch, self.published.spec)[0])
        return found


def _read(batch: Columns, spec: AudioSpec) -> tuple[np.ndarray, list[str], list[float]]:
    """Clips (B, T), zeros where a sound cannot be read; why not, else an empty string; peaks as the sounds came."""
    wave_BT = np.zeros((len(batch["path"]), spec.clip_samples), dtype=np.float32)
    errors, peaks = [], []
    for index, (path, row) in enumerate(zip(batch["path"], batch["row"], strict=True)):
        try:
            wave_T = read_place(Place(Path(path), None if row < 0 else int(row)), spec.sample_rate_hz)
            if not np.isfinite(wave_T).all():
                raise SourceError("it has samples that are no numbers")
            wave_BT[index] = clip(wave_T, spec)
            errors.append("")
            peaks.append(float(np.abs(wave_T).max(initial=0.0)))
        except SourceError as error:
            errors.append(str(error))
            peaks.append(0.0)
    return wave_BT, errors, peaks


def listening_spec(model: Path, clip_s: float) -> AudioSpec:
    """How a model's CLAP is made to listen: at its rate, for `clip_s` seconds."""
    return read_info(model, needs=("clap",)).model.audio.model_copy(update={"clip_s": clip_s})


def how(spec: AudioSpec, published: Published | None = None) -> str:
    """What is done to each clip before it is heard."""
    also = f"; for the published network the same at {published.spec.sample_rate_hz} Hz" if published else ""
    return (
        f"mono, {spec.sample_rate_hz} Hz (soxr HQ), the first {spec.clip_samples / spec.sample_rate_hz:.2f} s, zeros after a "
        f"shorter clip, mean removed, peak {TRAINING_PEAK:g}; a clip below a second is one event, repeated every {PACE_S:g} s "
        f"or more; a peak below {SILENT_PEAK:g} of full scale is silence{also}"
    )


def hear(found: ClipSet, ears: Ears, workers: int | None = None) -> dict[str, Heard]:
    """All classes of a set. `workers` actors of Ray Data, each with such ears, if given or if there are many clips.

    Raises SourceError if more than half of the clips cannot be read.
    """
    places = [place for name in found.places for place in found.places[name]]
    columns: Columns = {
        "index": np.arange(len(places)),
        "path": np.array([str(place.path) for place in places], dtype=object),
        "row": np.array([-1 if place.row is None else place.row for place in places]),
    }
    if workers is not None or len(places) > MANY_CLIPS:
        batches = in_actors(Ears, (*ears.arguments, 1), columns, BATCH_CLIPS, workers or 1)
    else:
        batches = [
            ears({name: value[start : start + BATCH_CLIPS] for name, value in columns.items()})
            for start in range(0, len(places), BATCH_CLIPS)
        ]
    heard = _in_order(batches)
    bad = [index for index, error in enumerate(heard["error"]) if error]
    if len(bad) > MAX_UNREADABLE * len(places):
        raise SourceError(
            f"{len(bad)} of {len(places)} sounds in {found.where} cannot be read, the first: {heard['error'][bad[0]]}"
        )
    classes, start = {}, 0
    for name, texts in found.texts.items():
        rows = np.arange(start, start + len(texts))
        start += len(texts)
        readable = np.array([not heard["error"][row] for row in rows])
        silent = readable & (heard["peak"][rows] < SILENT_PEAK)
        kept = rows[readable & ~silent]
        first = rows[0]
        classes[name] = Heard(
            heard["clap"][kept],
            heard["judge"][kept] if "judge" in heard else None,
            heard["named"][kept] if "named" in heard else None,
            [places[row] for row in kept],
            [texts[row - first] for row in kept],
            np.array([found.recordings[name][row - first] for row in kept], dtype=object),
            int(silent.sum()),
            {places[row].name: str(heard["error"][row]) for row in rows[~readable]},
            heard["published"][kept] if "published" in heard else None,
        )
    return classes


def _in_order(batches: Sequence[Columns]) -> Columns:
    """One batch, in the order of `index`, whatever order the batches came in."""
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    order = np.argsort(joined["index"])
    return {name: value[order] for name, value in joined.items()}
