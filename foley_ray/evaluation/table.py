"""What `foley evaluate` found as tables: for the terminal, as Markdown, and of several runs side by side.

Knows the layout of evaluate.evaluate's report, nothing of how it came about.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from foley_ray.errors import ConfigError, DataError
from foley_ray.evaluation.evaluate import KEYS, Numbers

Rows = list[list[str]]


class Metric(NamedTuple):
    """How a number is called and read."""

    title: str
    better: str
    meaning: str
    percent: bool = False


METRICS = {
    "fad": Metric("FAD", "lower", "Frechet distance of the two sets as Gaussians; biased upwards for few clips, so only sets "
                  "of equal size compare; the interval shows scatter, not that bias"),
    "kad": Metric("KAD", "lower", "100 times the unbiased squared MMD; 0 on average for equal distributions at any number of "
                  "clips, and may be below"),
    "density": Metric("density", "near 1", "how many balls around real clips hold a generated one, over 5; 1 for equal "
                      "distributions"),
    "coverage": Metric("coverage", "higher", "share of real clips with a generated one in their ball; grows with the number "
                       "of generated clips", percent=True),
    "clap_score": Metric("CLAP score", "higher", "cosine of a clip and its words; what CLAP selected scores high here"),
    "accuracy": Metric("accuracy", "higher", "share that the classifier takes for their class among those it judges; a silent "
                       "clip is never right", percent=True),
    "diversity": Metric("diversity", "like real", "mean cosine distance of two clips"),
    "nearest": Metric("nearest", "like real", "median cosine distance to the nearest reference clip (for real: of another "
                      "recording); far below real means copied"),
}  # fmt: skip
TABLES = (
    ("Distance to the reference", ("fad", "kad", "density", "coverage")),
    ("What the clips are, how varied, how new", ("clap_score", "accuracy", "diversity", "nearest")),
)


def cell(key: str, made: Sequence[float] | None, real: Any = None) -> str:
    """One number as `value [interval] (real)`; empty where it is not known."""
    if made is None:
        return ""
    value, low, high = (number(key, item) for item in made)
    flat = real[0] if isinstance(real, Sequence) else real
    return f"{value} [{low}, {high}]" + (f" ({number(key, flat)})" if flat is not None else "")


def number(key: str, value: float) -> str:
    """A number to three digits, a share as per cent."""
    if METRICS[key].percent:
        return f"{value:.0%}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"


def rows_of(report: Numbers, keys: Sequence[str]) -> Rows:
    """Heading, a row per class, the mean; metrics that no class has are left out."""
    known = [key for key in keys if key in report["mean"]]
    rows = [["class", "clips", *(METRICS[key].title for key in known)]]
    for name, found in report["classes"].items():
        made, real = found["generated"], found["real"]
        rows.append([name, clips_cell(made, real), *(cell(key, made.get(key), real.get(key)) for key in known)])
    means = (report["mean"][key] for key in known)
    return [*rows, ["mean", "", *(cell(key, mean["generated"], mean["real"]) for key, mean in zip(known, means, strict=True))]]


def clips_cell(made: Numbers, real: Numbers) -> str:
    """Counts of generated and real clips, and what was left out of the generated ones."""
    left_out = [f"{made[key]} {key}" for key in ("silent", "unreadable") if made[key]]
    return f"{made['clips']} / {real['clips']}" + (f" ({', '.join(left_out)})" if left_out else "")


def tables(report: Numbers) -> Iterator[Table]:
    """For the terminal."""
    for title, keys in TABLES:
        rows = rows_of(report, keys)
        if len(rows[0]) > 2:
            yield _rich(title, rows)


def _rich(title: str, rows: Rows) -> Table:
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows[1:]:
        table.add_row(*row, end_section=row is rows[-2])
    return table


def warnings(report: Numbers) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = []
    for name, pair in report["classes"].items():
        made, real = pair["generated"], pair["real"]
        if made["silent"]:
            found.append(f"{name}: {made['silent']} generated clips are silent; only accuracy counts them, as wrong")
        if made["unreadable"]:
            found.append(f"{name}: {made['unreadable']} generated clips cannot be read and are left out")
        if real["silent"] or real["unreadable"]:
            found.append(f"{name}: {real['silent']} silent and {real['unreadable']} unreadable reference clips are left out")
        if min(made["clips"], real["clips"]) < 20:
            found.append(f"{name}: {made['clips']} generated and {real['clips']} real clips are few; trust KAD more than FAD")
        if report["how"]["classifier"] and "accuracy" not in made:
            found.append(
                f"{name}: not one of the classes that the classifier judges; it has no accuracy, nor has it part in the mean"
            )
    return found


def markdown(report: Numbers) -> str:
    """The report as text, with what the numbers mean."""
    how = report["how"]
    lines = [
        "# Evaluation",
        "",
        f"Generated: {_where(how['generated'])}. Reference: {_where(how['reference'])}.",
        f"Embedding: {how['embedding']}; {how['comparable']}. Yardstick {how['yardstick']}.",
        f"Clips: {how['clips']}.",
        "Square brackets hold 95 % intervals (Wilson for shares, bootstrap otherwise); they count clips, and clips of one",
        "recording are alike, so the truth may lie further out. Round brackets hold what real clips reach: a part of the",
        "reference, at most as many clips as were generated and at most half of it, against the rest.",
        "",
    ]
    for title, keys in TABLES:
        rows = rows_of(report, keys)
        if len(rows[0]) > 2:
            lines += [f"## {title}", "", *table_lines(rows), ""]
    lines += [
        f"- {METRICS[key].title} (better: {METRICS[key].better}): {METRICS[key].meaning}."
        for key in KEYS
        if key in report["mean"]
    ]
    told = warnings(report)
    lines += ["", "## To be known", "", *(f"- {line}." for line in told)] if told else []
    return "\n".join([*lines, ""])


def _where(found: Mapping[str, str]) -> str:
    return f"`{found['where']}` ({', '.join(filter(None, (found['kind'], found['note'])))})"


def table_lines(rows: Rows) -> list[str]:
    """Rows as a Markdown table."""
    return [
        "| " + " | ".join(rows[0]) + " |",
        "|" + "---|" * len(rows[0]),
        *("| " + " | ".join(row) + " |" for row in rows[1:]),
    ]


def load_report(path: Path) -> Numbers:
    """A report.json, or the folder it lies in. Raises DataError if it is none of `foley evaluate`."""
    path = path / "report.json" if path.is_dir() else path
    try:
        report: Numbers = json.loads(path.read_text(encoding="utf-8"))
        if not {"how", "classes", "mean"} <= report.keys() or "yardstick" not in report["how"]:
            raise ValueError("it has no yardstick")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path} is no report of `foley evaluate` ({error})") from None
    return report


def load_runs(paths: Sequence[Path]) -> dict[str, Numbers]:
    """Reports to be compared, by short names. Raises ConfigError if they measured with different yardsticks."""
    runs: dict[str, Numbers] = {}
    for path in paths:
        name = path.name if path.is_dir() else path.parent.name if path.stem == "report" else path.stem
        while not name or name in runs:
            name += "'"
        runs[name] = load_report(path)
    yardsticks = {name: report["how"]["yardstick"] for name, report in runs.items()}
    if len(set(yardsticks.values())) > 1:
        told = ", ".join(f"{name}: {digest}" for name, digest in yardsticks.items())
        raise ConfigError(f"these runs cannot be compared: another embedding, reference, class list or clip length ({told})")
    return runs


def comparison_rows(runs: Mapping[str, Numbers], key: str | None = None) -> Rows:
    """A column per run: a row per metric with its mean over classes, or one metric with a row per class."""
    first = next(iter(runs.values()))
    rows = [["class" if key else "mean over classes", *runs, "real"]]
    if key is None:
        for known in (name for name in KEYS if any(name in report["mean"] for report in runs.values())):
            made = (report["mean"].get(known, {}).get("generated") for report in runs.values())
            real = first["mean"].get(known, {}).get("real")
            title = f"{METRICS[known].title} ({METRICS[known].better})"
            rows.append([title, *(cell(known, value) for value in made), "" if real is None else number(known, real)])
        return rows
    for name in dict.fromkeys(name for report in runs.values() for name in report["classes"]):
        made = (report["classes"].get(name, {}).get("generated", {}).get(key) for report in runs.values())
        real = first["classes"].get(name, {}).get("real", {}).get(key)
        real = real[0] if isinstance(real, Sequence) else real
        rows.append([name, *(cell(key, value) for value in made), "" if real is None else number(key, real)])
    return rows


def comparison_titles(runs: Mapping[str, Numbers]) -> Iterator[tuple[str, Rows]]:
    """The tables of a comparison."""
    yield "Means over classes", comparison_rows(runs)
    for key in KEYS:
        if any(key in report["mean"] for report in runs.values()):
            yield f"{METRICS[key].title}, better: {METRICS[key].better}", comparison_rows(runs, key)


def comparison_tables(runs: Mapping[str, Numbers]) -> Iterator[Table]:
    """For the terminal: the means alone."""
    yield _rich(*next(comparison_titles(runs)))


def comparison_markdown(runs: Mapping[str, Numbers]) -> str:
    """All tables, and on how many clips they rest."""
    lines = ["# Comparison", ""]
    for name, report in runs.items():
        counts = [found["generated"]["clips"] for found in report["classes"].values()]
        lines.append(f"- {name}: `{report['how']['generated']['where']}`, {min(counts)} to {max(counts)} clips a class")
    lines += ["", "FAD and coverage depend on the number of clips: compare runs of equal numbers.", ""]
    for title, rows in comparison_titles(runs):
        lines += [f"## {title}", "", *table_lines(rows), ""]
    return "\n".join(lines)
