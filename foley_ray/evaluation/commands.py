"""`foley score`, `evaluate`, `listen-sheet`, `listen-results` and `calibrate`. Each imports what it needs when it runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from foley_ray.config import MAX_SEED, ClipSettings
from foley_ray.errors import ConfigError
from foley_ray.jobfile import assignment, make_job

if TYPE_CHECKING:
    from foley_ray.evaluation.sets import ClipSet

Classes = Annotated[list[str] | None, typer.Option("--class", help="this class alone; repeatable")]
Renamed = Annotated[
    list[str] | None, typer.Option("--map", help="class=name: a class of the generated set by another name; repeatable")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (score, evaluate):
        app.command()(command)


def score(
    data: Annotated[Path, typer.Option(help="dataset of `foley ingest`: real recordings to judge by")],
    prompts: Annotated[Path, typer.Option(help="YAML of class: [wordings] that training never saw")],
    out: Annotated[Path, typer.Option(help="folder for report.json, report.md, pictures and clips")],
    model: Annotated[Path | None, typer.Option(help="model folder; with --ladder also one of some parts")] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=2, help="clips per class")] = 10,
    classifier: Annotated[
        Path | None, typer.Option(help="folder of the classifier, trained there if there is none; OUT/classifier if not given")
    ] = None,
    kin: Annotated[
        list[str] | None,
        typer.Option(help="class=judged class whose recordings also teach the classifier that class; repeatable"),
    ] = None,
    ladder: Annotated[
        bool, typer.Option("--ladder", help="real sounds through the parts that are there; nothing generated")
    ] = False,
    candidates: Annotated[int, typer.Option(help="candidates per clip, of which the best is kept")] = 3,
    steps: Annotated[int, typer.Option(help="sampling steps")] = 20,
    guidance: Annotated[float, typer.Option(help="classifier-free guidance; 1 is none")] = 2.5,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="seed of each class's first clip")] = 0,
) -> None:
    """Judge a model against real recordings: accuracy, distances, novelty, and which stage loses what."""
    settings = make_job(ClipSettings, {"candidates": candidates, "steps": steps, "guidance": guidance})
    from foley_ray.checkpoint import shipped_model
    from foley_ray.evaluation.report import tables
    from foley_ray.evaluation.run import run

    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    with errors.status("reading") as status:
        report = run(
            model or shipped_model(),
            data,
            prompts,
            out,
            classifier,
            {child: str(name) for child, name in map(assignment, kin or [])},
            count,
            seed,
            settings,
            not ladder,
            status.update if errors.is_terminal else errors.print,  # hours of work must leave a trace in a log
        )
    for table in tables(report):
        _console().print(table)
    _console().print(f"{out / 'report.md'}")


def evaluate(
    reference: Annotated[
        Path | None, typer.Option(help="real sounds: folders per class, a dataset, a library, or embeddings (.npz, .npy)")
    ] = None,
    generated: Annotated[Path | None, typer.Option(help="sounds to judge: the same, or the clips of `foley score`")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for report.json, report.md and report.html")] = None,
    classes: Classes = None,
    renamed: Renamed = None,
    split: Annotated[str | None, typer.Option(help="of a reference dataset: train | eval; all rows if not given")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="YAML of class: [wordings], for clips that came without words of their own")
    ] = None,
    clap: Annotated[Path | None, typer.Option(help="model folder whose CLAP embeds; the shipped one if not given")] = None,
    classifier: Annotated[Path | None, typer.Option(help="classifier folder of `foley score`: adds class accuracy")] = None,
    space: Annotated[str, typer.Option(help="embedding that distances are in: clap | classifier")] = "clap",
    seconds: Annotated[float, typer.Option(min=0.5, max=30, help="of each clip that are heard")] = 4.0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray Data actors that embed; on their own only above 500 clips")
    ] = None,
    compare: Annotated[
        list[Path] | None, typer.Option(help="report.json of an earlier evaluation; repeatable, two or more, instead of sounds")
    ] = None,
) -> None:
    """Compare sets of sounds, class by class: FAD, KAD, CLAP score, accuracy, density, coverage, diversity, nearest."""
    from foley_ray.evaluation import pages, table

    if compare:
        _compare(compare, out, (reference, generated))
        return
    if reference is None or generated is None or out is None:
        raise ConfigError("give --reference, --generated and --out, or several --compare RUN/report.json")
    if split not in (None, "train", "eval"):
        raise ConfigError(f"--split {split} must be train or eval")
    if space not in ("clap", "classifier") or (space == "classifier" and classifier is None):
        raise ConfigError(f"--space {space} must be clap, or classifier together with a --classifier folder")
    from foley_ray.evaluation.evaluate import evaluate as run
    from foley_ray.evaluation.evaluate import evaluate_embeddings
    from foley_ray.evaluation.precomputed import is_embeddings
    from foley_ray.generate import check_writable

    check_writable(out)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    with errors.status("reading") as status:
        if is_embeddings(reference) or is_embeddings(generated):
            if not (is_embeddings(reference) and is_embeddings(generated)):
                raise ConfigError("embeddings compare with embeddings of the same network: give both sets as .npz or .npy")
            report = evaluate_embeddings(reference, generated)
            page = pages.report_page(report, {}, {}, None)
        else:
            from foley_ray.checkpoint import shipped_model
            from foley_ray.evaluation.hear import listening_spec
            from foley_ray.evaluation.sets import find_set

            model = clap or shipped_model()
            real, made = find_set(reference, split), _chosen(find_set(generated), classes, renamed, prompts)  # type: ignore[arg-type]
            if prompts:
                real = _chosen(real, None, None, prompts)
            report, heard_real, heard_made = run(real, made, model, classifier, space, seconds, workers, status.update)
            page = pages.report_page(report, heard_real, heard_made, listening_spec(model, seconds))
    for found in table.tables(report):
        _console().print(found)
    for line in table.warnings(report):
        _console().print(f"! {line}")
    _console().print(f"embedding: {report['how']['embedding']}, {report['how']['comparable']}")
    _write(out, page, table.markdown(report), report)


def _compare(paths: list[Path], out: Path | None, sets: tuple[Path | None, Path | None]) -> None:
    from foley_ray.evaluation import pages, table

    if any(sets) or len(paths) < 2:
        raise ConfigError("--compare takes two or more reports, and no sounds: evaluate first, then compare")
    runs = table.load_runs(paths)
    for found in table.comparison_tables(runs):
        _console().print(found)
    if out:
        _write(out, pages.comparison_page(runs), table.comparison_markdown(runs), {"runs": runs})


def _write(out: Path, page: str, text: str, report: dict[str, Any]) -> None:
    """All three files; the JSON last, so that its presence means all."""
    from foley_ray.audio.files import replacing

    for name, content in (
        ("report.html", page),
        ("report.md", text),
        ("report.json", json.dumps(report, indent=1) + "\n"),
    ):
        with replacing(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    _console().print(f"{out / 'report.html'}")


def _chosen(
    found: "ClipSet", classes: list[str] | None, renamed: list[str] | None, prompts: Path | None
) -> "ClipSet":  # fmt: skip
    """A set with classes renamed, chosen and given words as the options say."""
    found = found.renamed({name: str(to) for name, to in map(assignment, renamed or [])})
    missing = sorted(set(classes or ()) - set(found.places))
    if missing:
        raise ConfigError(f"--class {', '.join(missing)} is not in {found.where}; it has {', '.join(found.places)}")
    if prompts:
        from foley_ray.data.captions import read_captions

        found = found.asked(read_captions(prompts))
    return found.only(classes) if classes else found


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, markup=False)
