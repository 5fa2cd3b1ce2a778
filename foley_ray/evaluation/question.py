"""What the questions of jobs/experiments share: a pool judged by a classifier that did not select, and answers as files.

    OUT/NAME.json   the table as numbers      OUT/NAME.md   the table to read      OUT/NAME.png   the plot

Shapes: N candidates of one class, D values of the classifier's space.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from foley_ray.audio.files import replacing
from foley_ray.config import MAX_SEED
from foley_ray.errors import ConfigError, DataError
from foley_ray.evaluation import metrics
from foley_ray.evaluation.classifier import Classifier
from foley_ray.evaluation.pool import Candidates, Pool
from foley_ray.evaluation.recordings import clips, read_recordings
from foley_ray.evaluation.score import Real
from foley_ray.jobfile import Job, LocalPath


class QuestionJob(Job):
    """Any question: what it reads and where its answer goes."""

    pool: Path = Field(description="of jobs/experiments/candidates.py")
    other_pool: Path | None = Field(None, description="the same without the tuning layer, where a question compares the two")
    data: Path = Field(description="dataset of real recordings")
    classifier: Path = Field(description="classifier folder of `foley score`, trained on that dataset")
    model: LocalPath | None = Field(None, description="model folder; the shipped one when absent")
    draws: int = Field(50, ge=1, description="resamples of the pool")
    seed: int = Field(0, ge=0, le=MAX_SEED)


@dataclass(frozen=True)
class JudgedClass:
    """One class of a pool, heard by the judge, beside real clips."""

    candidates: Candidates
    judge_ND: np.ndarray
    right_N: np.ndarray
    """Whether the judge takes a candidate for its class."""
    real_ND: np.ndarray
    """Real clips in the same space: held-out ones, or all where few are held out."""
    real: Real


def judged(pool_folder: Path, data: Path, classifier: Path) -> dict[str, JudgedClass]:
    """Every class of a pool. Raises DataError or ModelError if pool, dataset and classifier do not fit each other."""
    pool, judge = Pool.load(pool_folder), Classifier.load(classifier)
    if pool.sample_rate_hz != judge.spec.sample_rate_hz:
        raise DataError(f"the pool is at {pool.sample_rate_hz} Hz, the classifier hears at {judge.spec.sample_rate_hz} Hz")
    strange = [name for name in pool.classes if name not in judge.info.judged]
    if strange:
        raise DataError(f"the classifier does not judge {', '.join(strange)}; it judges {', '.join(judge.info.judged)}")
    rows = read_recordings(data, judge.spec, pool.classes)
    found = {}
    for name, candidates in pool.classes.items():
        wave_NT = clips(list(candidates.wave_NT), judge.spec)
        real = Real.of([row for row in rows if row.class_name == name], judge.spec)
        found[name] = JudgedClass(
            candidates, judge.embed(wave_NT), judge.predict(wave_NT)[0] == name, judge.embed(real.reference()), real
        )
    return found


def measures(classes: Mapping[str, JudgedClass], chosen: Mapping[str, np.ndarray]) -> dict[str, float]:
    """One draw's chosen rows of each class: CLAP score, accuracy and diversity as means of classes, FAD of all together."""
    picked = {name: np.asarray(rows).ravel() for name, rows in chosen.items()}
    return {
        "CLAP score": float(np.mean([classes[name].candidates.score_N[rows].mean() for name, rows in picked.items()])),
        "accuracy": float(np.mean([classes[name].right_N[rows].mean() for name, rows in picked.items()])),
        "FAD": metrics.fad(
            np.concatenate([classes[name].real_ND for name in picked]),
            np.concatenate([classes[name].judge_ND[rows] for name, rows in picked.items()]),
        ),
        "diversity": float(np.mean([metrics.diversity(classes[name].judge_ND[rows]) for name, rows in picked.items()])),
    }


def resampled(
    draw: Callable[[np.random.Generator], Mapping[str, np.ndarray]], classes: Mapping[str, JudgedClass], draws: int, seed: int
) -> dict[str, list[float]]:
    """Mean, 2.5 and 97.5 per cent of each measure over draws: the chance in what was drawn, not in which clips are real."""
    rng = np.random.default_rng(seed)
    found = [measures(classes, draw(rng)) for _ in range(draws)]
    return {key: [float(np.mean(x)), *map(float, np.percentile(x, [2.5, 97.5]))]
            for key in found[0] for x in [[item[key] for item in found]]}  # fmt: skip


def write_answer(
    out: Path,
    name: str,
    asked: str,
    rows: Sequence[Mapping[str, Any]],
    plotted: Sequence[str],
    x: str,
    by: str | None = None,
) -> str:
    """All three files; returns the table as Markdown. A value is a number, a word, or [mean, low, high].

    The plot has a panel per column in `plotted`, with the rows along column `x` and a colour per word of column `by`. Raises
    ConfigError for no rows.
    """
    if not rows:
        raise ConfigError(f"{name}: nothing was measured")
    keys = list(rows[0])
    lines = [f"# {asked}", "", "| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(_cell(row[key]) for key in keys) + " |" for row in rows]
    text = "\n".join(lines) + "\n"
    _plot(out / f"{name}.png", rows, plotted, x, by)
    for suffix, content in (("md", text), ("json", json.dumps({"asked": asked, "rows": rows}, indent=1) + "\n")):
        with replacing(out / f"{name}.{suffix}") as temporary:
            temporary.write_text(content, encoding="utf-8")
    return text


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
    return str(value)


def _plot(path: Path, rows: Sequence[Mapping[str, Any]], plotted: Sequence[str], x: str, by: str | None) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row[x] for row in rows))
    groups = list(dict.fromkeys(row[by] for row in rows)) if by else [""]
    numbers = isinstance(names[0], float)
    width = 3.6 if numbers else max(3.6, 0.3 * len(names))
    figure = Figure(figsize=(width * len(plotted), 3.2), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    for index, key in enumerate(plotted):
        axes = figure.add_subplot(1, len(plotted), index + 1)
        for number, group in enumerate(groups):
            own = [row for row in rows if by is None or row[by] == group]
            values = np.array([row[key] if isinstance(row[key], Sequence) else [row[key]] * 3 for row in own], dtype=float)
            scatter = np.abs(values[:, 1:] - values[:, :1]).T
            # where groups share their places, their intervals stand beside each other
            aside = 0.3 * (number - (len(groups) - 1) / 2) / len(groups) if len(names) < len(rows) else 0.0
            places = [row[x] if numbers else names.index(row[x]) + aside for row in own]
            style = "o-" if numbers or (not by and len(own) < 12) else "o"
            axes.errorbar(places, values[:, 0], yerr=scatter, fmt=style, markersize=4, capsize=2, linewidth=1, label=group)
        if numbers:
            axes.set_xlabel(x, fontsize=8)
            axes.tick_params(axis="x", labelsize=7)
        else:
            axes.set_xticks(range(len(names)), [str(name)[:28] for name in names], rotation=35, ha="right", fontsize=7)
        axes.set_title(key, fontsize=9)
        axes.tick_params(axis="y", labelsize=7)
    if by:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=7, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
