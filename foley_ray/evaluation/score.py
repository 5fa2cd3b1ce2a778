"""How good is a model: clips generated from frozen prompts, and real sounds through its parts, against real recordings.

Every clip, real or not, is heard as recordings.clip prepares it: levelled, `clip_s` long. Each number that rests on few clips
carries its interval. Plain functions over arrays; report.py writes what comes out.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from foley_ray.audio.wave import level
from foley_ray.checkpoint import read_info
from foley_ray.config import USUAL, ClipSettings
from foley_ray.errors import ConfigError, DatasetError
from foley_ray.evaluation import metrics
from foley_ray.evaluation.classifier import Classifier
from foley_ray.evaluation.embed import ClapEncoder, log_mels, shape_distance
from foley_ray.evaluation.ladder import rungs
from foley_ray.evaluation.made import Made, made_clips
from foley_ray.evaluation.recordings import Recording, clips, stretches
from foley_ray.spec import AudioSpec

MIN_RECORDINGS = 10
"""With fewer recordings held out, a class's real accuracy also counts the cross-validated `train` rows."""
SILENT_PEAK = 1e-3
PERCENTILE = 1.0
"""Of the distances between real clips of different recordings: what is nearer to a training clip counts as memorised."""
LADDER_CLIPS = 40

Numbers = dict[str, Any]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Real:
    """The recordings of one class as clips (N, T), and which recording each was cut from."""

    train_NT: np.ndarray
    train_recordings: np.ndarray
    eval_NT: np.ndarray
    eval_recordings: np.ndarray
    learned_N: np.ndarray
    """Whether the model learned from the train clip: what it never heard it cannot have copied."""
    stretch_KT: np.ndarray
    """All that training crops are cut from: a train clip is the beginning of its recording alone."""
    stretch_of_K: np.ndarray
    """Which train clip's recording each stretch is of."""

    @classmethod
    def of(cls, rows: Sequence[Recording], spec: AudioSpec, shippable_only: bool = False) -> "Real":
        """Both splits of one class. `shippable_only`: the model that is judged learned from such rows alone."""
        train, held = ([row for row in rows if row.split == split] for split in ("train", "eval"))
        all_of = [[level(part_T) for part_T in stretches(row.wave_T, spec, spec.clip_samples)] for row in train]
        return cls(
            clips([row.wave_T for row in train], spec),
            np.array([row.recording for row in train]),
            clips([row.wave_T for row in held], spec),
            np.array([row.recording for row in held]),
            np.array([row.shippable or not shippable_only for row in train], dtype=bool),
            np.array([part_T for parts in all_of for part_T in parts]).reshape(-1, spec.clip_samples),
            np.repeat(np.arange(len(train)), [len(parts) for parts in all_of]),
        )

    def reference(self, most: int | None = None) -> np.ndarray:
        """Clips to be compared with: eval, or where fewer than ten are held out all; at most `most`, drawn by a fixed seed."""
        found_NT = self.eval_NT if len(self.eval_NT) >= MIN_RECORDINGS else np.concatenate([self.eval_NT, self.train_NT])
        if most is None or len(found_NT) <= most:
            return found_NT
        return found_NT[np.sort(np.random.default_rng(0).permutation(len(found_NT))[:most])]


def score(
    model: Path,
    real: Mapping[str, Real],
    prompts: Mapping[str, Sequence[str]],
    judge: Classifier,
    out: Path,
    count: int = 10,
    seed: int = 0,
    settings: ClipSettings | None = None,
    whole: bool = True,
    progress: Progress = print,
) -> tuple[Numbers, dict[str, Made], dict[str, dict[str, np.ndarray]]]:
    """The report as plain values, the generated clips per class, and one class's worth of clips per rung of the ladder.

    With `whole` off only the ladder is climbed, which needs no more than the parts that are there. Generated clips are kept
    in OUT/clips, and those already there (same model, prompts, seed, settings) are not made again. Raises ModelError for an
    incomplete model, ConfigError for a count below two, DatasetError for a class without recordings to compare with.
    """
    info = read_info(model)
    spec = info.model.audio
    if count < 2:
        raise ConfigError(f"{count} clip a class has no spread to measure; make at least 2")
    for name, recordings in real.items():
        if len(recordings.train_NT) < 2 or not len(recordings.eval_NT):
            raise DatasetError(f"class {name} has too few recordings to judge by; leave it out of the prompts")
    report: Numbers = {
        "model": {"digest": info.digest, "preset": info.preset, "parts": {n: p.digest for n, p in info.parts.items()}},
        "judge": judge.summary(),
        "clip_s": spec.clip_s,
        "sample_rate_hz": spec.sample_rate_hz,
        "classes": {name: {"real": real_numbers(name, found, judge)} for name, found in real.items()},
    }
    steps, rebuilt = climb(model, real, judge, progress)
    made: dict[str, Made] = {}
    if whole:
        settings = (settings or USUAL).model_copy(update={"duration_s": spec.clip_s})
        report["settings"] = {"count": count, "seed": seed, "clip": settings.model_dump(mode="json")}
        made = made_clips(model, prompts, count, seed, settings, out / "clips", progress)
        progress("judging")
        clap = ClapEncoder(model)
        for name, found in made.items():
            numbers = generated_numbers(name, found, real[name], judge, clap, spec)
            for key in ("accuracy", "accuracy_of_all"):
                numbers[key]["over_real"] = over_real(numbers[key], report["classes"][name]["real"][key])
            report["classes"][name]["generated"] = numbers
        report["pooled"] = pooled_numbers(made, real, judge, clap, spec)
        steps["whole"] = {"accuracy": {n: report["classes"][n]["generated"]["accuracy"]["share"] for n in made}}
    report["ladder"] = steps
    return report, made, rebuilt


def real_numbers(name: str, real: Real, judge: Classifier) -> Numbers:
    """How well the classifier knows real clips of a class that it was not trained on."""
    right = [int((answer_N == name).sum()) for answer_N in judge.predict(real.eval_NT)]
    held = len(set(real.eval_recordings))
    numbers: Numbers = {
        "clips": len(real.eval_NT),
        "recordings": held,
        "train_clips": len(real.train_NT),
        "eval_accuracy": metrics.share(right[0], len(real.eval_NT)),
    }
    of, source = len(real.eval_NT), "eval"
    crossed = judge.info.cross_validated.get(name)
    if held < MIN_RECORDINGS and crossed is not None:
        right, of, source = (
            [right[0] + crossed.judged, right[1] + crossed.all],
            of + crossed.of,
            "eval and cross-validated train",
        )
    return numbers | {"accuracy": _accuracy(right[0], of) | {"from": source}, "accuracy_of_all": _accuracy(right[1], of)}


def _accuracy(hits: int, of: int) -> Numbers:
    return {"hits": hits, "of": of, "share": metrics.share(hits, of)}


def generated_numbers(name: str, made: Made, real: Real, judge: Classifier, clap: ClapEncoder, spec: AudioSpec) -> Numbers:
    """One class's generated clips: are they it, do they match their prompt, how far from real ones, how varied, how new."""
    wave_NT = clips(made.waves, spec)
    silent_N = np.array([np.abs(wave_T).max(initial=0.0) < SILENT_PEAK for wave_T in made.waves])
    named, named_of_all = (np.where(silent_N, "(silent)", answer_N) for answer_N in judge.predict(wave_NT))
    hits = named == name
    clap_ND = clap.sounds(wave_NT)
    return {
        "clips": len(wave_NT),
        "silent": int(silent_N.sum()),
        "accuracy": _accuracy(int(hits.sum()), len(hits)),
        "accuracy_of_all": _accuracy(int((named_of_all == name).sum()), len(hits)),
        "taken_for": dict(Counter(named[~hits].tolist()).most_common()),
        "taken_for_of_all": dict(Counter(named_of_all[named_of_all != name].tolist()).most_common()),
        "prompts": {
            text: [int(hits[[p == text for p in made.prompts]].sum()), made.prompts.count(text)]
            for text in dict.fromkeys(made.prompts)
        },
        "clap_score": metrics.bootstrap(np.mean, metrics.clap_scores(clap_ND, clap.texts(made.prompts))),
        "clap": _against(clap_ND, clap.sounds, real),
        "judge": _against(judge.embed(wave_NT), judge.embed, real),
        "novelty": novelty(wave_NT, real, clap, spec),
    }


def _against(made_ND: np.ndarray, embed: Callable[[np.ndarray], np.ndarray], real: Real) -> Numbers:
    """Distances in one embedding; `kad_train`, real against real, is what a flawless model could be expected to reach.

    It is None where the reference needs train clips itself.
    """
    reference_ND = embed(real.reference())
    thin = len(reference_ND) > len(real.eval_NT)
    numbers: Numbers = {
        "kad": metrics.kad(reference_ND, made_ND),
        "kad_train": None if thin else metrics.kad(reference_ND, embed(real.train_NT), draws=0).value,
        "diversity": metrics.diversity(made_ND),
        "diversity_real": metrics.diversity(reference_ND),
    }
    if len(reference_ND) > 5:
        numbers["density"], numbers["coverage"] = metrics.density_coverage(reference_ND, made_ND)
    return numbers


def novelty(wave_NT: np.ndarray, real: Real, clap: ClapEncoder, spec: AudioSpec) -> Numbers:
    """Nearest of all that the model learned from, by CLAP and by mel picture, against two limits; held-out ones as the control.

    `like_for_like`: the first percentile of each real clip's distance to the nearest stretch of another recording. `pairs`:
    that of all such pairs. The nearest of n clips is nearer than a pair at random, so many real clips that no
    one copied fall under the second limit: read it beside its control.
    """
    taught = np.flatnonzero(real.learned_N[real.stretch_of_K])
    if not len(taught):  # nothing of this class: nothing to copy
        return {}
    sets = wave_NT, real.eval_NT, real.train_NT
    clap_KD, mel_KFM = clap.sounds(real.stretch_KT), log_mels(real.stretch_KT, spec)
    distances = {
        "clap": [1 - clap.sounds(set_NT) @ clap_KD.T for set_NT in sets],
        "mel": [shape_distance(log_mels(set_NT, spec), mel_KFM) for set_NT in sets],
    }
    other = real.train_recordings[:, None] != real.train_recordings[real.stretch_of_K][None]
    numbers: Numbers = {}
    for measure, (to_made, to_held, within) in distances.items():
        made, held = to_made[:, taught], to_held[:, taught]
        nearest_other = np.where(other, within, np.inf).min(axis=1)
        numbers[measure] = {
            "nearest_median": float(np.median(made.min(axis=1))),
            "nearest_median_real": float(np.median(held.min(axis=1))),
            "nearest_train_clip": [int(row) for row in real.stretch_of_K[taught[made.argmin(axis=1)]]],
        }
        limits = {"like_for_like": nearest_other[np.isfinite(nearest_other)], "pairs": within[other]}
        for rule, values in limits.items():
            if len(values):  # a class of one recording has no pair to measure by
                limit = float(np.percentile(values, PERCENTILE))
                numbers[measure][rule] = {
                    "limit": limit,
                    "memorised": metrics.share(int((made.min(axis=1) < limit).sum()), len(made)),
                    "memorised_real": metrics.share(int((held.min(axis=1) < limit).sum()), len(held)),
                }
    return numbers


def over_real(made: Numbers, real: Numbers) -> metrics.Interval:
    """Accuracy on generated over accuracy on real clips; the interval counts the chance in both."""
    flags = [np.repeat([1.0, 0.0], [found["hits"], found["of"] - found["hits"]]) for found in (made, real)]
    if not real["hits"]:
        return metrics.Interval(float("nan"), float("nan"), float("nan"))
    return metrics.bootstrap(lambda a, b: a.mean() / max(b.mean(), 1 / len(b)), *flags)


def pooled_numbers(
    made: Mapping[str, Made], real: Mapping[str, Real], judge: Classifier, clap: ClapEncoder, spec: AudioSpec
) -> Numbers:
    """All classes together: FAD, with that of as many real `train` clips as the measure of what small sets cost.

    A class with fewer than ten eval clips has train clips on both sides of that measure, which then is a little too low.
    """
    made_NT = clips([wave_T for found in made.values() for wave_T in found.waves], spec)
    count = max(len(found.waves) for found in made.values())
    reference_NT = np.concatenate([real[name].reference(count) for name in made])
    train_NT = np.concatenate(
        [real[name].train_NT[np.random.default_rng(1).permutation(len(real[name].train_NT))[:count]] for name in made]
    )
    numbers: Numbers = {"generated": len(made_NT), "reference": len(reference_NT)}
    for name, embed in (("clap", clap.sounds), ("judge", judge.embed)):
        made_ND, reference_ND, train_ND = embed(made_NT), embed(reference_NT), embed(train_NT)
        numbers[name] = {
            "fad": metrics.fad(reference_ND, made_ND),
            "fad_train": metrics.fad(reference_ND, train_ND),
            "fad_inf": metrics.fad_inf(reference_ND, made_ND) if len(made_ND) >= 100 else None,
            "kad": metrics.kad(reference_ND, made_ND),
            "kad_train": metrics.kad(reference_ND, train_ND, draws=0).value,
        }
    return numbers


def climb(
    model: Path, real: Mapping[str, Real], judge: Classifier, progress: Progress
) -> tuple[Numbers, dict[str, dict[str, np.ndarray]]]:
    """Held-out real clips through each rung: the classifier's accuracy, and the L1 distance of log-mels (nepers a cell).

    Also returns the first clips of each class and rung, to look at.
    """
    spec = judge.spec
    chosen = {name: found.eval_NT[:LADDER_CLIPS] for name, found in real.items()}
    all_NT = np.concatenate(list(chosen.values()))
    names = np.array(list(chain.from_iterable([name] * len(found) for name, found in chosen.items())))
    real_NFM = log_mels(all_NT, spec)
    shown = {"real": {name: found[:1] for name, found in chosen.items()}}
    steps: Numbers = {"real": _rung(judge.predict(all_NT)[0], names)}
    for rung in rungs(model):
        progress(f"{len(all_NT)} real clips through {rung.name}")
        rebuilt_NT = rung(all_NT)
        apart_N = np.abs(log_mels(rebuilt_NT, spec) - real_NFM).mean(axis=(1, 2))
        levelled_NT = clips(list(rebuilt_NT), spec)
        mel_l1 = {name: metrics.bootstrap(np.mean, apart_N[names == name]) for name in chosen}
        steps[rung.name] = _rung(judge.predict(levelled_NT)[0], names) | {"mel_l1": mel_l1}
        shown[rung.name] = {name: rebuilt_NT[names == name][:1] for name in chosen}
    return steps, shown


def _rung(named: np.ndarray, names: np.ndarray) -> Numbers:
    found = {}
    for name in dict.fromkeys(names):
        hits = named[names == name] == name
        found[str(name)] = metrics.share(int(hits.sum()), len(hits))
    return {"accuracy": found}
