"""`foley evaluate`: two sets of clips against each other, class by class, in one embedding space.

Each number of the generated clips stands beside what real clips reach: half of the reference against the other half for
distances, the reference itself for the rest. Plain values come out; table.py and pages.py show them.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foley_ray import __version__
from foley_ray.checkpoint import ModelInfo, read_info
from foley_ray.config import RobertaClapConfig
from foley_ray.errors import DataError
from foley_ray.evaluation import metrics
from foley_ray.evaluation.hear import Ears, Heard, hear, how
from foley_ray.evaluation.metrics import Interval
from foley_ray.evaluation.published import COMPARABLE, Published
from foley_ray.evaluation.sets import ClipSet

NEIGHBOURS = 5
FAD_INF_CLIPS = 100
"""Below this the line through FAD over 1 / M is noise."""
KEYS = ("fad", "kad", "clap_score", "accuracy", "density", "coverage", "diversity", "nearest")

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Features:
    """One class of one set as the numbers see it; what is not known is None."""

    space_ND: np.ndarray
    recordings: np.ndarray
    """(N,) Clips of one recording are no strangers."""
    scores_N: np.ndarray | None = None
    """Of the clips that have words."""
    hits: int | None = None
    """Clips that the classifier takes for their class; None as well for a class that it does not judge, and so never names."""
    silent: int = 0
    unreadable: int = 0
    patches_NPD: np.ndarray | None = None
    """What `space_ND` holds the means of, where a network hears a clip in patches."""

    @property
    def pooled(self) -> np.ndarray:
        """What FAD is of: all patches of all clips, as published; elsewhere the clips."""
        return self.space_ND if self.patches_NPD is None else self.patches_NPD


def evaluate(
    reference: ClipSet,
    generated: ClipSet,
    model: Path,
    classifier: Path | None = None,
    space: str = "clap",
    clip_s: float = 4.0,
    workers: int | None = None,
    progress: Callable[[str], None] = print,
    weights: Path | None = None,
) -> tuple[Numbers, dict[str, Heard], dict[str, Heard]]:
    """The report, and what was heard of either set. Classes are those of the generated set; the reference must have them.

    `space` is clap, classifier, or a published network's (spaces.PUBLISHED) with the file of its `weights`.

    Raises DataError for classes without enough clips, SourceError for sounds that cannot be read, ModelError for a folder
    without CLAP or classifier and for weights that are not the network's.
    """
    reference, generated = matched(reference, generated)
    ears = Ears(model, classifier, clip_s, (space, weights) if weights else None)
    progress(f"hearing {_size(reference)} reference clips")
    real = hear(reference, ears, workers)
    progress(f"hearing {_size(generated)} generated clips")
    made = hear(generated, ears, workers)
    progress("comparing")
    distinct = sorted({text for heard in (*real.values(), *made.values()) for texts in heard.texts for text in texts})
    text_of = dict(zip(distinct, ears.clap.texts(distinct), strict=True)) if distinct else {}
    info = read_info(model)
    judge = (
        f"classifier of {len(ears.judge.info.judged)} judged classes, dataset {ears.judge.info.dataset[:12]}"
        if ears.judge
        else None
    )
    judged = ears.judge.info.judged if ears.judge else ()
    report = compare_sets(
        {name: features(name, heard, space, text_of, judged) for name, heard in real.items()},
        {name: features(name, heard, space, text_of, judged) for name, heard in made.items()},
    )
    how_found = {
        "foley_ray": __version__,
        **_space(space, info, judge, ears.published),
        "yardstick": digest_of(
            ears.published.digest if ears.published else space, info.parts["clap"].digest, judge, clip_s, set_digest(reference)
        ),
        "clips": how(ears.spec, ears.published),
        "classifier": judge,
        "reference": {"where": str(reference.where), "kind": reference.kind, "note": reference.note},
        "generated": {"where": str(generated.where), "kind": generated.kind, "note": generated.note},
        "unreadable": {name: heard.unreadable for name, heard in made.items() if heard.unreadable},
        "unreadable_reference": {name: heard.unreadable for name, heard in real.items() if heard.unreadable},
    }
    return {"how": how_found, **report}, real, made


def _space(space: str, info: ModelInfo, judge: str | None, published: Published | None) -> dict[str, str]:
    if published is not None:
        return {"embedding": published.about, "comparable": COMPARABLE}
    if space == "clap" and isinstance(info.model.clap, RobertaClapConfig):
        return {
            "embedding": f"the imported CLAP of model {info.digest}",
            "comparable": "comparable with figures of the same CLAP weights, reference, number of clips and preparation",
        }
    return {
        "embedding": f"CLAP of model {info.digest}" if space == "clap" else f"the {judge}",
        "comparable": "not comparable with published figures, which use VGGish, PANNs or LAION-CLAP",
    }


def evaluate_embeddings(reference: Path, generated: Path) -> Numbers:
    """The same from embeddings that somebody else computed; what needs sounds or words is left out."""
    from foley_ray.evaluation.precomputed import read_embeddings

    found = [read_embeddings(path) for path in (reference, generated)]
    widths = [next(iter(classes.values())).shape[1] for classes in found]
    if widths[0] != widths[1]:
        raise DataError(f"embeddings of {widths[0]} values in {reference}, of {widths[1]} in {generated}: two spaces")
    _check_classes(reference, found[0], generated, found[1])
    real, made = ({name: Features(value, np.arange(len(value))) for name, value in classes.items()} for classes in found)
    content = {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in sorted(found[0].items())}
    return {
        "how": {
            "foley_ray": __version__,
            "embedding": f"precomputed, {widths[0]} values",
            "comparable": "comparable with figures of the same embedding, reference and number of clips",
            "yardstick": digest_of("precomputed", content),
            "clips": "as whoever computed the embeddings prepared them",
            "classifier": None,
            "reference": {"where": str(reference), "kind": "embeddings", "note": ""},
            "generated": {"where": str(generated), "kind": "embeddings", "note": ""},
            "unreadable": {},
            "unreadable_reference": {},
        },
        **compare_sets({name: real[name] for name in made}, made),
    }


def matched(reference: ClipSet, generated: ClipSet) -> tuple[ClipSet, ClipSet]:
    """Both with the generated set's classes. Raises DataError if the reference lacks one or has too little of it."""
    _check_classes(reference.where, reference.places, generated.where, generated.places)
    return reference.only(generated.places), generated


def _check_classes(reference: Path, real: Mapping[str, Any], generated: Path, made: Mapping[str, Any]) -> None:
    missing = [name for name in made if name not in real]
    if missing:
        raise DataError(
            f"the reference {reference} has no class {', '.join(missing)} (it has {', '.join(sorted(real)[:12])}); "
            "leave classes out with --class, or give one another name with --map"
        )
    for where, classes in ((reference, real), (generated, made)):
        thin = [name for name in made if len(classes[name]) < 2]
        if thin:
            raise DataError(f"{where} has a single clip of {', '.join(thin)}: a distance needs at least 2; choose with --class")


def features(name: str, heard: Heard, space: str, text_of: Mapping[str, np.ndarray], judged: Collection[str]) -> Features:
    """What was heard of one class, in the chosen space; `judged` are the classes that the classifier chooses between.

    Raises DataError if fewer than two clips are left.
    """
    if len(heard.clap_ND) < 2:
        raise DataError(
            f"class {name} has {len(heard.clap_ND)} clips that are not silent ({heard.silent} silent, "
            f"{len(heard.unreadable)} unreadable); a distance needs at least 2"
        )
    told = [row for row, texts in enumerate(heard.texts) if texts]
    scores = [np.mean([heard.clap_ND[row] @ text_of[text] for text in heard.texts[row]]) for row in told]
    patches_NPD = heard.published_NPD
    space_ND = heard.judge_ND if space == "classifier" else heard.clap_ND if patches_NPD is None else patches_NPD.mean(axis=1)
    if space_ND is None:
        raise DataError("the classifier's space needs a --classifier folder")
    return Features(
        space_ND,
        heard.recordings,
        np.array(scores) if scores else None,
        int((heard.named_N == name).sum()) if heard.named_N is not None and name in judged else None,
        heard.silent,
        len(heard.unreadable),
        patches_NPD,
    )


def compare_sets(real: Mapping[str, Features], made: Mapping[str, Features]) -> Numbers:
    """All numbers of all classes, and their means."""
    classes = {name: {"generated": made_numbers(real[name], found), "real": real_numbers(real[name], len(found.space_ND))}
               for name, found in made.items()}  # fmt: skip
    return {"classes": classes, "mean": {key: mean for key in KEYS if (mean := _mean(classes, key))}}


def made_numbers(real: Features, made: Features) -> Numbers:
    """One class of generated clips against the reference."""
    numbers: Numbers = {
        **_counts(made),
        "fad": metrics.fad_interval(real.pooled, made.pooled),
        "kad": _kad(real.space_ND, made.space_ND),
        **_balls(real.space_ND, made.space_ND),
        "diversity": metrics.diversity_interval(made.space_ND),
        "nearest": metrics.bootstrap(np.median, metrics.nearest(made.space_ND, real.space_ND)[0]),
    }
    if len(made.space_ND) >= FAD_INF_CLIPS:
        numbers["fad_inf"] = metrics.fad_inf(real.pooled, made.pooled)
    return numbers


def real_numbers(real: Features, size: int) -> Numbers:
    """What real clips reach: at most `size` of them, whole recordings, against the others."""
    numbers: Numbers = {**_counts(real), "diversity": metrics.diversity(real.space_ND)}
    distance_NN = 1 - _unit(real.space_ND) @ _unit(real.space_ND).T
    distance_NN[real.recordings[:, None] == real.recordings[None]] = np.inf
    nearest_N = distance_NN.min(axis=1)
    if np.isfinite(nearest_N).any():
        numbers["nearest"] = float(np.median(nearest_N[np.isfinite(nearest_N)]))
    part_N = held_part(real.recordings, size)
    part, rest = real.space_ND[part_N], real.space_ND[~part_N]
    if min(len(part), len(rest)) >= 2:
        numbers["fad"] = metrics.fad(real.pooled[~part_N], real.pooled[part_N])
        kad = _kad(rest, part, draws=0)
        numbers["kad"] = kad and kad.value
        numbers |= {key: value and value.value for key, value in _balls(rest, part).items()}
    numbers["part"] = int(part_N.sum())
    return numbers


def held_part(recordings: np.ndarray, size: int) -> np.ndarray:
    """(N,) a drawn part of the recordings with at most `size` clips and at most half of all; the draw is always the same."""
    limit, chosen = min(size, len(recordings) // 2), np.zeros(len(recordings), dtype=bool)
    _, first_N = np.unique(recordings, return_index=True)
    for row in np.random.default_rng(0).permutation(np.sort(first_N)):
        same = recordings == recordings[row]
        if chosen.sum() + same.sum() <= limit:
            chosen |= same
    return chosen


def _counts(found: Features) -> Numbers:
    numbers: Numbers = {"clips": len(found.space_ND), "silent": found.silent, "unreadable": found.unreadable}
    if found.scores_N is not None:
        numbers["clap_score"] = metrics.bootstrap(np.mean, found.scores_N)
    if found.hits is not None:
        numbers["accuracy"] = metrics.share(found.hits, len(found.space_ND) + found.silent)  # silence is never right
    return numbers


def _kad(real_ND: np.ndarray, made_MD: np.ndarray, draws: int = 1000) -> Interval | None:
    try:
        return metrics.kad(real_ND, made_MD, draws=draws)
    except ValueError:  # copies of one clip have no scale
        return None


def _balls(real_ND: np.ndarray, made_MD: np.ndarray) -> dict[str, Interval | None]:
    if len(real_ND) <= NEIGHBOURS:
        return {"density": None, "coverage": None}
    density, coverage = metrics.density_coverage_intervals(real_ND, made_MD, NEIGHBOURS)
    return {"density": density, "coverage": coverage}


def _mean(classes: Mapping[str, Numbers], key: str) -> Numbers | None:
    """Over the classes that have the number: each class counts once, and classes err independently of each other."""
    made = [found["generated"][key] for found in classes.values() if found["generated"].get(key) is not None]
    if not made:
        return None
    value, low, high = (np.array(column) for column in zip(*made, strict=True))
    below, above = (np.sqrt(((edge - value) ** 2).sum()) / len(value) for edge in (low, high))
    real = [found["real"][key] for found in classes.values() if found["real"].get(key) is not None]
    flat = [number[0] if isinstance(number, Sequence) else number for number in real]
    mean = float(value.mean())
    return {
        "generated": Interval(mean, mean - float(below), mean + float(above)),
        "real": float(np.mean(flat)) if flat else None,
        "classes": len(made),
    }


def digest_of(*parts: object) -> str:
    """Equal for two reports exactly if they measure with the same embedding against the same reference."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def set_digest(found: ClipSet) -> str:
    """Of the names, classes and file sizes."""
    rows = sorted(
        (name, place.path.name, place.row, place.path.stat().st_size) for name in found.places for place in found.places[name]
    )
    return digest_of(rows)


def _size(found: ClipSet) -> int:
    return sum(len(places) for places in found.places.values())


def _unit(features_ND: np.ndarray) -> np.ndarray:
    unit_ND: np.ndarray = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True).clip(min=1e-12)
    return unit_ND
