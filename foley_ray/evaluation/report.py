"""A score as files and as a table: report.json whole, report.md and the terminal for reading, pictures for looking.

Knows the layout of what score.score returns, nothing of how it came about.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from foley_ray.audio.files import replacing
from foley_ray.audio.plot import plot_waves
from foley_ray.evaluation.made import Made
from foley_ray.evaluation.recordings import clip
from foley_ray.evaluation.score import Numbers, Real
from foley_ray.spec import AudioSpec

RUNG_NAMES = {
    "real": "real",
    "griffin_lim": "Griffin-Lim of its mel",
    "vocoder": "vocoder",
    "vae_vocoder": "VAE and vocoder",
    "vae_griffin_lim": "VAE and Griffin-Lim",
    "whole": "whole model",
}
PICTURED = 4

Rows = list[list[str]]


def write_report(
    out: Path,
    report: Numbers,
    made: Mapping[str, Made],
    real: Mapping[str, Real],
    rebuilt: Mapping[str, Mapping[str, np.ndarray]],
    spec: AudioSpec,
) -> None:
    """REPORT/report.json, report.md, a picture per class of real above generated clips, and one per class of the ladder."""
    out.mkdir(parents=True, exist_ok=True)
    for name, recordings in real.items():
        few_NT = recordings.eval_NT[:: max(1, len(recordings.eval_NT) // PICTURED)][:PICTURED]
        if name in made:
            found = made[name]
            waves = [*few_NT, *(clip(wave_T, spec) for wave_T in found.waves[:PICTURED])]
            titles = [f"real {name}"] * len(few_NT) + [text[:44] for text in found.prompts[:PICTURED]]
            plot_waves(out / f"{name}.png", waves, titles, spec, columns=len(few_NT))
        steps = [(RUNG_NAMES[rung], found[name][0]) for rung, found in rebuilt.items()]
        titles, waves = [f"{name}: {title}" for title, _ in steps], [wave_T for _, wave_T in steps]
        plot_waves(out / f"{name}_ladder.png", waves, titles, spec, columns=len(steps))
    with replacing(out / "report.md") as temporary:
        temporary.write_text(markdown(report), encoding="utf-8")
    with replacing(out / "report.json") as temporary:  # last: its presence means that all is there
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def accuracy_rows(report: Numbers) -> Rows:
    """One row per class of generated clips, heading first: whether they are what they were meant to be."""
    rows = [["class", "accuracy", "real", "ratio", "of all classes (real)", "CLAP score"]]
    for name, made, real in _generated(report):
        rows.append(
            [
                name,
                _share(made["accuracy"]["share"]),
                _share(real["accuracy"]["share"]) + ("*" if real["accuracy"]["from"] != "eval" else ""),
                _interval(made["accuracy"]["over_real"]),
                f"{made['accuracy_of_all']['share'][0]:.0%} ({real['accuracy_of_all']['share'][0]:.0%})",
                _interval(made["clap_score"]),
            ]
        )
    return rows


def distance_rows(report: Numbers) -> Rows:
    """One row per class of generated clips, heading first: how far from real ones, how varied, how new they are."""
    rows = [["class", "KAD (real)", "diversity (real)", "memorised by mel (control)", "by CLAP (control)"]]
    for name, made, _ in _generated(report):
        space = made["judge"]
        rows.append(
            [
                name,
                f"{_interval(space['kad'])} ({_number(space['kad_train']) or 'unknown'})",
                f"{_number(space['diversity'])} ({_number(space['diversity_real'])})",
                *(_memorised(made["novelty"].get(measure, {}).get("like_for_like")) for measure in ("mel", "clap")),
            ]
        )
    return rows


def _generated(report: Numbers) -> Iterator[tuple[str, Numbers, Numbers]]:
    for name, found in report["classes"].items():
        if "generated" in found:
            yield name, found["generated"], found["real"]


def ladder_rows(report: Numbers) -> Rows:
    """One row per class: the classifier's accuracy and the mel L1 on every rung, heading first; the last row is the mean."""
    steps = report["ladder"]
    rows = [["class", *(RUNG_NAMES[rung] for rung in steps)]]
    for name in report["classes"]:
        rows.append([name, *(_rung_cell(step, name) for step in steps.values())])
    means = []
    for step in steps.values():
        l1 = f", L1 {np.mean([x[0] for x in step['mel_l1'].values()]):.2f}" if "mel_l1" in step else ""
        means.append(f"{np.mean([x[0] for x in step['accuracy'].values()]):.0%}{l1}")
    return [*rows, ["mean", *means]]


def tables(report: Numbers) -> Iterator[Table]:
    """For the terminal."""
    for title, rows in _titled(report):
        table = Table(*rows[0], title=title, title_justify="left")
        for row in rows[1:]:
            table.add_row(*row)
        yield table


def markdown(report: Numbers) -> str:
    """The same as text, with what the numbers mean."""
    model, judge = report["model"], report["judge"]
    lines = [
        f"# Score of model {model['digest']} ({model['preset']}: {', '.join(model['parts'])})",
        "",
        f"Clips are {report['clip_s']:g} s at {report['sample_rate_hz']} Hz, levelled. Square brackets hold 95 % intervals",
        "(Wilson for shares, bootstrap otherwise); they count clips, and clips of one recording are alike, so the truth may",
        f"lie further out. The judge is a classifier of {judge['classes']} classes, trained on {judge['train_clips']} real",
        "`train` clips alone. Accuracy is the share of clips that it takes for their own class among those judged here; `of",
        "all classes`, the share where no other class that it knows is likelier either.",
        "",
    ]
    for title, rows in _titled(report):
        lines += [f"## {title}", "", "| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
        lines += ["| " + " | ".join(row) + " |" for row in rows[1:]] + [""]
    if "pooled" in report:
        lines += [
            "`*`: fewer than ten recordings are held out, so train rows in recording-grouped cross-validation count too.",
            "KAD and diversity are in the classifier's space, which ranks nothing; KAD in brackets is that of real `train`",
            "clips, what a flawless model could reach. Memorised: nearer to a training clip than all but 1 % of real clips are",
            "to a clip of another recording; the control is the same count for held-out real clips.",
            "",
            *_pooled(report["pooled"]),
            "",
            "## What generated clips were taken for",
            "",
            *(f"- {name}: {_taken(found['generated'])}" for name, found in report["classes"].items()),
            "",
        ]
    return "\n".join(lines)


def _titled(report: Numbers) -> Iterator[tuple[str, Rows]]:
    if "pooled" in report:
        yield f"Generated clips, {report['settings']['count']} a class: what they are", accuracy_rows(report)
        yield "Generated clips: distance to real ones, variety, novelty", distance_rows(report)
    yield "Stage ladder: accuracy of the classifier, L1 of the log-mel", ladder_rows(report)


def _pooled(pooled: Numbers) -> list[str]:
    lines = [f"## All classes together: {pooled['generated']} generated, {pooled['reference']} real", ""]
    for space in ("judge", "clap"):
        found = pooled[space]
        inf = f", extrapolated to infinitely many clips {found['fad_inf']:.3g}" if found["fad_inf"] is not None else ""
        lines.append(
            f"- {'classifier' if space == 'judge' else 'CLAP'} space: FAD {found['fad']:.3g} "
            f"(real `train` clips: {found['fad_train']:.3g}{inf}), KAD {_interval(found['kad'])} "
            f"(real: {found['kad_train']:.2f}). Not comparable with published figures."
        )
    return lines


def _taken(made: Numbers) -> str:
    return ", ".join(f"{name} {count}" for name, count in made["taken_for"].items()) or "nothing else"


def _rung_cell(step: Numbers, name: str) -> str:
    if name not in step["accuracy"]:
        return ""
    l1 = f", L1 {step['mel_l1'][name][0]:.2f}" if "mel_l1" in step else ""
    return _share(step["accuracy"][name]) + l1


def _share(interval: Sequence[float]) -> str:
    value, low, high = interval
    return f"{value:.0%} [{low:.0%}, {high:.0%}]"


def _interval(interval: Sequence[float]) -> str:
    value, low, high = interval
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.2f}"


def _memorised(rule: Numbers | None) -> str:
    return "unknown" if rule is None else f"{rule['memorised'][0]:.0%} ({rule['memorised_real'][0]:.0%})"
