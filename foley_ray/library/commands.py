"""`foley library`: plan, build, search. Each command imports what it needs when it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console

from foley_ray.errors import ConfigError
from foley_ray.jobfile import LibraryJob, load_job, make_job, published

if TYPE_CHECKING:
    from foley_ray.library.build import Progress

library_app = typer.Typer(no_args_is_help=True, help="Sound libraries: plan them, build them overnight, search them.")

PlanFile = Annotated[Path, typer.Argument(help="plan of the library, YAML")]
ModelFolder = Annotated[Path | None, typer.Option(help="model folder")]


@library_app.command()
def plan(
    plan_file: PlanFile,
    out: Annotated[Path | None, typer.Option(help="library folder: counts what it has already")] = None,
    model: ModelFolder = None,
    all_clips: Annotated[bool, typer.Option("--all", help="list every clip, not some of each category")] = False,
) -> None:
    """Show what a plan multiplies out to, how long it would take and what there is already; makes nothing."""
    from foley_ray.library.outline import outline

    for line in outline(plan_file, out, model, all_clips):
        _console().print(line)


@library_app.command()
def build(
    plan_file: PlanFile,
    out: Annotated[Path, typer.Option(help="library folder; the same folder goes on")],
    model: ModelFolder = None,
    config: Annotated[Path | None, typer.Option(help="job file with pools and group, such as jobs/build_library.yaml")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="job setting as key=value; repeatable")] = None,
) -> None:
    """Make what is missing of a library and deliver it; exit status 75 says that clips are left for another run."""
    given: dict[str, Any] = {"plan": str(plan_file), "out": str(out)} | ({"model": str(model)} if model else {})
    changes = [*(setting or []), *(f"{key}={yaml.safe_dump(value).strip()}" for key, value in given.items())]
    if config:
        job = load_job(LibraryJob, config, changes)
    elif setting:
        raise ConfigError("--set changes a job file: give one with --config")
    else:
        job = make_job(LibraryJob, given)
    from foley_ray.library.build import build as run

    def built(job: LibraryJob) -> int:
        with Console(stderr=True, highlight=False).status("starting") as status:
            report = run(job, lambda progress: status.update(progress_line(progress)))
        _console().print(f"{out}: {report.summary()}")
        return report.status

    raise typer.Exit(published(job, built))


@library_app.command()
def prune(
    plan_files: Annotated[list[Path], typer.Argument(help="every plan whose clips are still wanted, YAML")],
    out: Annotated[Path, typer.Option(help="library folder")],
    model: ModelFolder = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would go, remove nothing")] = False,
) -> None:
    """Free the disk of stored candidates that no plan refers to any more.

    A library keeps in .foley/made every candidate that was ever made for it, delivered or not, so that a plan can be
    changed, and changed back, without making a sound anew. Over the nights it grows: prompts that were taken out of the
    plan, other settings and other models leave theirs behind. This removes those; delivered files, catalogue and history
    stay. While a run is building the library it ends with an error. Jobs do it themselves with `prune: true`, after each
    run that left nothing to make.
    """
    from foley_ray.library.prune import prune as run

    files, size = run(plan_files, out, model, dry_run)
    _console().print(f"{out}: {files} files, {size / 1e6:.1f} MB {'would go' if dry_run else 'removed'}")


@library_app.command()
def search(
    words: Annotated[str, typer.Argument(help="what the sound should be")],
    library: Annotated[Path, typer.Option(help="library folder")],
    model: ModelFolder = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1)] = 10,
) -> None:
    """Find the sounds of a library that are nearest to some words, by CLAP: what was heard, not what the name says."""
    from foley_ray.checkpoint import shipped_model
    from foley_ray.library.catalogue import search as find

    for cosine, row in find(library, words, model or shipped_model(), count):
        _console().print(f"{cosine:6.3f}  {library / row['file']}  {row['prompt']}")


def progress_line(progress: "Progress") -> str:
    """Where a run is, on one line."""
    stages = "  ".join(f"{name} {done}" for name, done in progress.stages.items())
    left = "" if progress.left_s is None else f"  {progress.left_s / 60:.0f} min left"
    return f"of {progress.total} clips: {stages}{left}"


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, markup=False)
