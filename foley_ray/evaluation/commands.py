"""`foley score`, `evaluate`, `listen-sheet`, `listen-results` and `calibrate`. Each imports what it needs when it runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from foley_ray.config import MAX_SEED, USUAL, ClipSettings
from foley_ray.errors import ConfigError, DataError
from foley_ray.jobfile import assignment, make_job

if TYPE_CHECKING:
    from foley_ray.evaluation.sets import ClipSet

Classes = Annotated[list[str] | None, typer.Option("--class", help="this class alone; repeatable")]
Renamed = Annotated[
    list[str] | None, typer.Option("--map", help="class=name: a class of the generated set by another name; repeatable")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (score, evaluate, listen_sheet, listen_results, calibrate):
        app.command()(command)  # typer calls listen_sheet listen-sheet


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
    candidates: Annotated[int, typer.Option(help="candidates per clip, of which the best is kept")] = USUAL.candidates,
    steps: Annotated[int, typer.Option(help="sampling steps")] = USUAL.steps,
    guidance: Annotated[float, typer.Option(help="classifier-free guidance; 1 is none")] = USUAL.guidance,
    guided_above: Annotated[float, typer.Option(help="lowest sigma over alpha at which guidance works")] = USUAL.guided_above,
    guided_below: Annotated[float, typer.Option(help="highest one; 1000 is all of them")] = USUAL.guided_below,
    eta: Annotated[float, typer.Option(help="noise put back at each step, 0 to 1")] = USUAL.eta,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="seed of each class's first clip")] = 0,
) -> None:
    """Judge a model against real recordings: accuracy, distances, novelty, and which stage loses what."""
    asked = {"candidates": candidates, "steps": steps, "guidance": guidance, "eta": eta}
    settings = make_job(ClipSettings, asked | {"guided_above": guided_above, "guided_below": guided_below})
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
    space: Annotated[str, typer.Option(help="embedding that distances are in: clap | classifier | vggish | panns")] = "clap",
    weights: Annotated[Path | None, typer.Option(help="file of the published weights, for --space vggish or panns")] = None,
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
    from foley_ray.evaluation.spaces import check_space

    check_space(space, classifier, weights)
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
            for_sounds = {
                "class": classes, "map": renamed, "split": split, "prompts": prompts, "classifier": classifier,
                "space": space != "clap", "weights": weights, "clap": clap,
            }  # fmt: skip
            for name, value in for_sounds.items():
                if value:
                    raise ConfigError(f"--{name} is for sounds; embeddings are compared as they are: leave it out")
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
            report, heard_real, heard_made = run(real, made, model, classifier, space, seconds, workers, status.update, weights)
            page = pages.report_page(report, heard_real, heard_made, listening_spec(model, seconds))
    for found in table.tables(report):
        _console().print(found)
    for line in table.warnings(report):
        _console().print(f"! {line}")
    _console().print(f"embedding: {report['how']['embedding']}, {report['how']['comparable']}")
    _write(out, page, table.markdown(report), report)


def listen_sheet(
    sounds: Annotated[
        list[str], typer.Option(help="NAME=FOLDER of one system's sounds (folders per class, dataset, library); repeatable")
    ],
    out: Annotated[Path, typer.Option(help="HTML file for the listeners; OUT.key.json beside it is yours alone")],
    classes: Classes = None,
    per_class: Annotated[int, typer.Option(min=1, help="comparisons of single sounds per class")] = 2,
    in_set: Annotated[int, typer.Option(min=0, help="sounds in each set that is rated for diversity; 0 asks for none")] = 3,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="draws sounds and order: another sheet for another listener")
    ] = 0,
    seconds: Annotated[float, typer.Option(min=0.5, max=30, help="of each sound that are heard")] = 4.0,
) -> None:
    """Make a blinded listening test as one HTML file: quality, fit and diversity, as in the DCASE challenge."""
    given = dict(_named_folder(item) for item in sounds)
    if len(given) < len(sounds):
        raise ConfigError("each --sounds needs a name of its own: NAME=FOLDER")
    from foley_ray.audio.files import replacing
    from foley_ray.evaluation.sets import find_set
    from foley_ray.evaluation.sheet import make_sheet

    systems = {name: _chosen(find_set(folder), classes, None, None) for name, folder in given.items()}
    page, key = make_sheet(systems, per_class, in_set, seed, seconds)
    for path, content in ((out.with_suffix(".key.json"), json.dumps(key, indent=1) + "\n"), (out, page)):
        with replacing(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    _console().print(f"{out}: {page.count('data:audio')} sounds, {len(page) / 1e6:.1f} MB; keep {out.with_suffix('.key.json')}")


def listen_results(
    ratings: Annotated[list[Path], typer.Argument(help="CSV files that the sheet saved")],
    key: Annotated[Path, typer.Option(help="OUT.key.json of `foley listen-sheet`")],
) -> None:
    """Unblind the ratings of a listening test: means with intervals, weighted 2 : 2 : 1 as in the challenge."""
    from rich.table import Table

    from foley_ray.evaluation.sheet import WEIGHTS, load_key, read_ratings, results

    found = load_key(key)
    rows = read_ratings(ratings, found)
    table = Table("system", *WEIGHTS, "weighted", title=f"{len(rows)} ratings", title_justify="left")
    for system, numbers in results(rows, found["systems"]).items():
        scales = (numbers["scales"].get(scale) for scale in WEIGHTS)
        cells = ("" if value is None else f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]" for value in scales)
        table.add_row(system, *cells, "" if numbers["weighted"] is None else f"{numbers['weighted']:.2f}")
    _console().print(table)
    _console().print("intervals count ratings as independent: of few listeners or few sounds they are too narrow")


def calibrate(
    reference: Annotated[Path, typer.Option(help="real sounds: folders per class, a dataset or a library")],
    out: Annotated[Path, typer.Option(help="YAML file to write")],
    quantile: Annotated[float, typer.Option(min=0.001, max=0.999, help="share of real clips that score below")] = 0.1,
    classes: Classes = None,
    split: Annotated[str | None, typer.Option(help="of a reference dataset: train | eval; all rows if not given")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="YAML of class: [wordings] to score against; the clips' captions if not given")
    ] = None,
    clap: Annotated[Path | None, typer.Option(help="model folder whose CLAP will rank; the shipped one if not given")] = None,
    seconds: Annotated[float, typer.Option(min=0.5, max=30, help="of each clip that are heard")] = 4.0,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray Data actors; on their own only above 500 clips")] = None,
) -> None:
    """Set per-class CLAP thresholds from real clips, for `foley generate --threshold FILE:CLASS` and library plans."""
    if split not in (None, "train", "eval"):
        raise ConfigError(f"--split {split} must be train or eval")
    from foley_ray.audio.files import replacing
    from foley_ray.checkpoint import read_info, shipped_model
    from foley_ray.evaluation import calibrate as scale
    from foley_ray.evaluation.hear import Ears, hear, how
    from foley_ray.evaluation.sets import find_set

    found = find_set(reference, split)  # type: ignore[arg-type]
    wordings = _wordings(found, prompts)
    untold = [name for name in classes or () if name in found.places and name not in wordings]
    if untold:
        told = ", ".join(wordings)
        raise ConfigError(f"{prompts or found.where} has no wordings of {', '.join(untold)} to score against; it has {told}")
    wide = classes or [name for name in wordings if len(found.places.get(name, ())) >= scale.MIN_CLIPS]
    model = clap or shipped_model()
    ears = Ears(model, None, seconds)
    heard = hear(_chosen(found, wide, None, None), ears, workers) if wide else {}
    # which clips are silent is known now; of a class that was asked for by name too few are an error
    audio = {name: item.clap_ND for name, item in heard.items() if classes or len(item.clap_ND) >= scale.MIN_CLIPS}
    if not audio:
        raise DataError(f"no class of {found.where} has wordings and {scale.MIN_CLIPS} clips that sound: no threshold to set")
    thin = [name for name in found.places if not classes and name not in audio]
    numbers = scale.calibrate(audio, {name: ears.clap.texts(wordings[name]) for name in audio}, quantile)
    digest = read_info(model).parts["clap"].digest
    notes = [f"foley calibrate: {found.where} ({', '.join(filter(None, (found.kind, found.note)))}), {how(ears.spec)}"]
    if thin:
        notes.append(f"left out, without wordings or with fewer than {scale.MIN_CLIPS} clips that sound: {', '.join(thin)}")
    with replacing(out) as temporary:
        temporary.write_text(scale.as_yaml(numbers, digest, quantile, notes), encoding="utf-8")
    _console().print(out.read_text(encoding="utf-8").rstrip())


def _wordings(found: "ClipSet", prompts: Path | None) -> dict[str, list[str]]:
    if prompts:
        from foley_ray.data.captions import read_captions

        return {name: list(texts) for name, texts in read_captions(prompts).items()}
    spoken = {name: sorted({text for texts in clips for text in texts}) for name, clips in found.texts.items()}
    if not any(spoken.values()):
        raise ConfigError(f"{found.where} has no captions to score against: give --prompts")
    return {name: texts for name, texts in spoken.items() if texts}


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (equals and name and folder):
        raise ConfigError(f"--sounds {text!r} must be NAME=FOLDER")
    return name, Path(folder)


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
