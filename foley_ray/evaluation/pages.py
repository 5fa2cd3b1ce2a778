"""The report as one HTML file that needs nothing beside it: tables, plots, and sounds to look at and listen to.

Pictures and sounds ride inside as data URIs; no script, no network. What is shown is a few clips a class, drawn by a fixed
seed and not chosen by ear, as many as fit into the limit.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

import numpy as np

from foley_ray.audio.encode import Encoding, encode
from foley_ray.audio.mel import LOG_MEL_MAX, LOG_MEL_MIN
from foley_ray.audio.wave import fit
from foley_ray.evaluation import table
from foley_ray.evaluation.embed import log_mels
from foley_ray.evaluation.evaluate import KEYS, Numbers
from foley_ray.evaluation.hear import Heard
from foley_ray.evaluation.sets import read_place
from foley_ray.spec import AudioSpec

SHOWN = 4
"""Clips a class and side at most."""
SOUND_BYTES = 12_000_000
"""All players together, before base64."""
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#bab0ac")


def report_page(report: Numbers, real: Mapping[str, Heard], made: Mapping[str, Heard], spec: AudioSpec | None) -> str:
    """`spec` says at what rate and length to show clips; None leaves the sounds out."""
    how = report["how"]
    body = [
        "<h1>Evaluation</h1>",
        f"<p>Generated: <code>{escape(how['generated']['where'])}</code>. Reference: "
        f"<code>{escape(how['reference']['where'])}</code> {escape(how['reference']['note'])}.<br>",
        f"Embedding: {escape(how['embedding'])}; {escape(how['comparable'])}.<br>Clips: {escape(how['clips'])}.</p>",
        "<p>Square brackets: 95 % intervals. Round brackets, and grey lines in the plots: what real clips reach, a part of the "
        "reference against the rest.</p>",
        *_warned(table.warnings(report)),
    ]
    for title, keys in table.TABLES:
        rows = table.rows_of(report, keys)
        if len(rows[0]) > 2:
            body += [f"<h2>{title}</h2>", html_table(rows)]
    body += [f'<img class="plot" alt="each metric by class, with intervals" src="{plot({"generated": report})}">', "<dl>"]
    for key in KEYS:
        if key in report["mean"]:
            metric = table.METRICS[key]
            body.append(f"<dt>{metric.title} (better: {metric.better})</dt><dd>{escape(metric.meaning)}.</dd>")
    body.append("</dl>")
    if spec is not None:
        body += ["<h2>Side by side</h2>", *_sounds(real, made, spec)]
    return whole("Evaluation", body)


def comparison_page(runs: Mapping[str, Numbers]) -> str:
    """Several runs: the plot and all tables."""
    body = ["<h1>Comparison</h1>", f'<img class="plot" alt="each metric by class and run" src="{plot(runs)}">']
    for title, rows in table.comparison_titles(runs):
        body += [f"<h2>{escape(title)}</h2>", html_table(rows)]
    return whole("Comparison", body)


def whole(title: str, body: Sequence[str]) -> str:
    """A page with the style of all pages here."""
    style = files("foley_ray").joinpath("evaluation/page/report.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body><main>\n'
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def html_table(rows: table.Rows) -> str:
    """In a box that scrolls by itself on a narrow screen."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    lines = [
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows[1:]
    ]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _warned(told: Sequence[str]) -> list[str]:
    return ["<ul class='warn'>", *(f"<li>{escape(line)}</li>" for line in told), "</ul>"] if told else []


def plot(runs: Mapping[str, Numbers]) -> str:
    """One panel per metric: a bar with its interval per class and run, a grey line at what real clips reach."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = [key for key in KEYS if any(key in report["mean"] for report in runs.values())]
    classes = list(dict.fromkeys(name for report in runs.values() for name in report["classes"]))
    columns = 4 if len(keys) > 3 else len(keys)
    figure = Figure(figsize=(3.4 * columns, 2.9 * -(-len(keys) // columns)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    width = 0.8 / len(runs)
    for place, key in enumerate(keys):
        axes = figure.add_subplot(-(-len(keys) // columns), columns, place + 1)
        for index, (run, report) in enumerate(runs.items()):
            found = [(x, report["classes"].get(name, {}).get("generated", {}).get(key)) for x, name in enumerate(classes)]
            known = [(x, value) for x, value in found if value is not None]
            if known:
                at = [x + width * (index - (len(runs) - 1) / 2) for x, _ in known]
                value, low, high = np.array([value for _, value in known], dtype=float).T
                scatter = np.nan_to_num(np.stack([value - low, high - value]).clip(min=0))
                colour = COLOURS[index % len(COLOURS)]
                axes.bar(at, value, width, yerr=scatter, label=run, color=colour, error_kw={"linewidth": 0.8})
        for x, name in enumerate(classes):
            reached = next(iter(runs.values()))["classes"].get(name, {}).get("real", {}).get(key)
            reached = reached[0] if isinstance(reached, Sequence) else reached
            if reached is not None:
                axes.plot([x - 0.45, x + 0.45], [reached, reached], color="#666", linewidth=1.6)
        axes.set_title(f"{table.METRICS[key].title} ({table.METRICS[key].better})", fontsize=9)
        axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", fontsize=7)
        axes.tick_params(axis="y", labelsize=7)
        axes.axhline(0, color="#999", linewidth=0.5)
    if len(runs) > 1:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return data_uri("image/png", file.getvalue())


def _sounds(real: Mapping[str, Heard], made: Mapping[str, Heard], spec: AudioSpec) -> list[str]:
    """Per class a row of real and a row of generated clips, as long as there is room."""
    lines, left = [], SOUND_BYTES
    for name, heard in made.items():
        lines += [f"<h3>{escape(name)}</h3>", '<div class="pair">']
        for side, found in (("real", real[name]), ("generated", heard)):
            lines.append(f'<section><h4>{side}</h4><div class="clips">')
            rows = np.random.default_rng(0).permutation(len(found.places))[:SHOWN]
            for row in sorted(rows):
                wave_T = read_place(found.places[row], spec.sample_rate_hz)[: spec.clip_samples]
                sound = encode(wave_T, spec.sample_rate_hz, Encoding("ogg"))
                left -= len(sound)
                if left < 0:
                    return [*lines, "</div></section></div>", "<p>More sounds would make this page too large.</p>"]
                words = " / ".join(found.texts[row][:2]) or found.places[row].name
                lines.append(figure(wave_T, sound, words, spec))
            lines.append("</div></section>")
        lines.append("</div>")
    return lines


def figure(wave_T: np.ndarray, sound: bytes, words: str, spec: AudioSpec) -> str:
    """A spectrogram, a player, and what it is."""
    return (
        f'<figure><img alt="spectrogram" src="{spectrogram(wave_T, spec)}">'
        f'<audio controls preload="none" src="{data_uri("audio/ogg", sound)}"></audio>'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def spectrogram(wave_T: np.ndarray, spec: AudioSpec) -> str:
    """A small log-mel picture as a data URI; all on one colour scale."""
    from matplotlib.image import imsave

    mel_FM = log_mels(fit(wave_T, spec.clip_samples)[None].astype(np.float32), spec)[0]
    file = io.BytesIO()
    imsave(file, mel_FM[::2].T, origin="lower", cmap="magma", vmin=LOG_MEL_MIN, vmax=LOG_MEL_MAX, format="png")
    return data_uri("image/png", file.getvalue())


def data_uri(media_type: str, data: bytes) -> str:
    """Bytes inside an attribute."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
