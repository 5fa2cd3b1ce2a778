"""`foley`: the command line. Each command imports what it needs when it runs, so that --help is instant.

Errors of ours (errors.py) end in one line on standard error and exit status 2.
"""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, get_args

import typer
from pydantic import ValidationError
from rich.console import Console

from foley_ray import __version__
from foley_ray.config import MAX_SEED, SAMPLERS, TASKS, USUAL, ClipSettings
from foley_ray.doctor import doctor
from foley_ray.errors import ConfigError, FoleyError, PromptError
from foley_ray.evaluation.commands import add_to as add_evaluation_commands
from foley_ray.interchange.commands import add_to as add_interchange_commands
from foley_ray.jobfile import CacheJob, IngestJob, Layout, TrainJob, assignment, make_job
from foley_ray.library.commands import library_app
from foley_ray.presets import PRESETS, preset
from foley_ray.settings import describe
from foley_ray.thresholds import threshold_of

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Foley from text: train it, run it, scale it.",
)
app.add_typer(library_app, name="library")
add_evaluation_commands(app)
add_interchange_commands(app)
app.command()(doctor)
INTERRUPTED = 130
out_console = Console(highlight=False, soft_wrap=True, markup=False)  # a path may hold [brackets]
error_console = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point of the `foley` program."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns at every start until this is decided
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:  # typer hands Ctrl-C back as a status, not as an exception
            raise KeyboardInterrupt
        if isinstance(status, int) and status:  # a command's own, by typer.Exit
            sys.exit(status)
    except FoleyError as error:
        error_console.print(f"[bold red]error:[/] {_plain(error)}")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort) as stop:
        how = str(stop) or "the same command"
        error_console.print(f"stopped; what was finished is kept, and {how} goes on from there")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command line itself
            error_console.print(f"[bold red]error:[/] {error.format_message()} (see --help)")
            sys.exit(2)
        raise


def _plain(error: BaseException) -> str:
    return " ".join(str(error).split()).replace("[", r"\[")


@contextmanager
def loading() -> Iterator[None]:
    """No garbage collection while libraries and a model are loaded, which is a quarter sooner so.

    What is loaded stays: the collector goes through all of it each time that it has grown by a quarter, and finds nothing. Nor
    does it afterwards.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _settings_errors() -> Iterator[None]:
    """Turn pydantic's report into ours."""
    try:
        yield
    except ValidationError as error:
        raise ConfigError(describe(error)) from None


def _version(wanted: bool) -> None:
    if wanted:
        out_console.print(f"foley_ray {__version__}")
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """Foley from text: train it, run it, scale it."""


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(help="folder of recordings, or a URI of one: s3://, gs://, hf://, ...")],
    out: Annotated[Path, typer.Option(help="dataset folder to write")],
    layout: Annotated[
        str, typer.Option(help=f"how the source is laid out: {' | '.join(get_args(Layout))}; auto takes the first that fits")
    ] = "auto",
    preset_name: Annotated[str, typer.Option("--preset", help=f"sets the sample rate: {', '.join(PRESETS)}")] = "default",
    eval_share: Annotated[float, typer.Option(help="share of recordings held out, where the source has no split")] = 0.1,
    max_duration: Annotated[float, typer.Option(help="longer recordings are left out, seconds")] = 30.0,
    max_bad_share: Annotated[float, typer.Option(help="refuse a source of which more than this cannot be used")] = 0.5,
    without: Annotated[
        list[str] | None, typer.Option(help="pass over what is named so, as 'clips/esc10_*'; repeatable")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace a finished dataset at --out")] = False,
) -> None:
    """Read, check and convert recordings into a Parquet dataset; what cannot be used is listed with its reason."""
    job = make_job(
        IngestJob,
        {
            "source": source,
            "layout": layout,
            "out": out,
            "preset": preset_name,
            "eval_share": eval_share,
            "max_duration_s": max_duration,
            "max_bad_share": max_bad_share,
            "without": tuple(without or ()),
            "overwrite": overwrite,
        },
    )
    preset(job.preset)  # a typo should not cost the seconds that Ray takes to load
    from foley_ray.data.ingest import run_job, summary

    with error_console.status("reading") as status:
        info = run_job(job, lambda done, total: status.update(f"{done}/{total} recordings"))
    out_console.print(summary(info, out))


@app.command()
def train(
    task: Annotated[str, typer.Argument(help=" | ".join(TASKS))],
    data: Annotated[
        str, typer.Option(help="dataset of `foley ingest`; for diffusion and finetune also a `foley cache`; folder or URI")
    ],
    out: Annotated[Path, typer.Option(help="run folder; the same folder continues")],
    preset_name: Annotated[str, typer.Option("--preset", help=" | ".join(PRESETS))] = "default",
    init: Annotated[
        list[Path] | None, typer.Option(help="run or model folder that gives frozen parts and the warm start; repeatable")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="training setting as key=value, such as lr=1e-4; repeatable")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="optimiser steps")] = None,
    batch_size: Annotated[int | None, typer.Option(help="rows per worker and step")] = None,
    workers: Annotated[str, typer.Option(help="Ray Train workers; 1-4 follows what the cluster has")] = "2",
    gpu: Annotated[bool, typer.Option(help="one GPU per worker")] = False,
    shippable_only: Annotated[bool, typer.Option(help="use only rows whose licence lets the model be given away")] = False,
    classes: Annotated[list[str] | None, typer.Option("--class", help="learn from this class alone; repeatable")] = None,
    captions: Annotated[
        Path | None, typer.Option(help="YAML of class: [wordings], drawn instead of the rows' captions")
    ] = None,
    tuning: Annotated[str | None, typer.Option(help="finetune: linear | per_class | none")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, say what it would cost, and stop")] = False,
) -> None:
    """Train one part with Ray Train; stopped or killed, the same command goes on from the last checkpoint."""
    changes = dict(assignment(item) for item in setting or [])
    changes |= {key: value for key, value in (("steps", steps), ("batch_size", batch_size)) if value is not None}
    job = make_job(
        TrainJob,
        {
            "task": task,
            "preset": preset_name,
            "data": data,
            "out": out,
            "init": tuple(init or ()),
            "settings": changes,
            "tuning": {"kind": tuning} if tuning else None,
            "shippable_only": shippable_only,
            "classes": tuple(classes or ()),
            "captions": captions,
            "workers": _workers(workers),
            "gpu": gpu,
        },
    )
    job.resolved()  # a typo should not cost the seconds that torch and Ray take to load
    if dry_run:
        from foley_ray.training.run import Run
        from foley_ray.training.setup import describe as describe_run

        for line in describe_run(Run.of(job)):
            out_console.print(line)
        return
    from foley_ray.training.progress import progress_line
    from foley_ray.training.worker import run_job

    with error_console.status("starting the workers") as status:

        def tell(metrics: dict[str, float]) -> None:
            status.stop()
            out_console.print(f"{task}  {progress_line(metrics)}")

        info = run_job(job, tell)
    out_console.print(f"{out / 'model'}: {', '.join(info.parts)}")


@app.command()
def cache(
    data: Annotated[str, typer.Option(help="dataset that `foley ingest` wrote; folder or URI")],
    out: Annotated[Path, typer.Option(help="cache folder to write; give it to `foley train` as --data")],
    init: Annotated[list[Path], typer.Option(help="run or model folder that gives vae or clap; repeatable")],
    preset_name: Annotated[str, typer.Option("--preset", help=" | ".join(PRESETS))] = "default",
    classes: Annotated[list[str] | None, typer.Option("--class", help="rows of this class alone; repeatable")] = None,
    variants: Annotated[int, typer.Option(help="crops of each recording")] = 1,
    balance: Annotated[float, typer.Option(help="0 takes as many crops of each recording, 1 of each class")] = 0.0,
    augment: Annotated[bool, typer.Option(help="vary gain, speed and mixture of each crop")] = False,
    seed: Annotated[int, typer.Option(help="draws the crops")] = 0,
    split: Annotated[str, typer.Option(help="train | eval")] = "train",
    shippable_only: Annotated[bool, typer.Option(help="use only rows whose licence lets the model be given away")] = False,
    workers: Annotated[int, typer.Option(help="encoders at most")] = 1,
    gpu: Annotated[bool, typer.Option(help="one GPU per encoder")] = False,
    overwrite: Annotated[bool, typer.Option(help="replace a finished cache at --out")] = False,
) -> None:
    """Compute latents and CLAP embeddings once, so that diffusion and finetune need not do it at every step."""
    job = make_job(
        CacheJob,
        {
            "preset": preset_name,
            "data": data,
            "out": out,
            "init": tuple(init),
            "classes": tuple(classes or ()),
            "variants": variants,
            "balance": balance,
            "augment": augment,
            "seed": seed,
            "split": split,
            "shippable_only": shippable_only,
            "workers": workers,
            "gpu": gpu,
            "overwrite": overwrite,
        },
    )
    preset(job.preset)
    from foley_ray.data.cache import run_job

    with error_console.status("starting") as status:
        info = run_job(job, lambda done, total: status.update(f"{done}/{total} crops"))
    out_console.print(f"{out}: {info.rows} crops of {info.rows // info.variants} recordings, computed once")


@app.command()
def assemble(
    sources: Annotated[
        list[Path], typer.Argument(help="run or model folders; of two with the same part the later one's is taken")
    ],
    out: Annotated[Path, typer.Option(help="model folder to write")],
    half: Annotated[bool, typer.Option(help="store 16-bit weights: half the size")] = False,
) -> None:
    """Put trained parts together into one model folder."""
    from foley_ray.checkpoint import PARTS, model_folder
    from foley_ray.checkpoint import assemble as put_together

    info = put_together([model_folder(source) for source in sources], out, half)
    missing = [name for name in PARTS if name not in info.parts and name != "tuning"]
    still = f"; still missing: {', '.join(missing)}" if missing else ""
    out_console.print(f"{out}: model {info.digest} with {', '.join(info.parts)}{still}")


@app.command()
def average(
    sources: Annotated[list[Path], typer.Argument(help="run or model folders of trainings that began with the same weights")],
    out: Annotated[Path, typer.Option(help="model folder to write")],
    half: Annotated[bool, typer.Option(help="store 16-bit weights: half the size")] = False,
) -> None:
    """Put trained parts together, taking the mean of those that several folders have: often better than each of them."""
    from foley_ray.average import average as mean
    from foley_ray.checkpoint import model_folder

    info = mean([model_folder(source) for source in sources], out, half)
    averaged = [
        f"{name} (mean of {len(part.training['mean_of'])})" for name, part in info.parts.items() if "mean_of" in part.training
    ]
    out_console.print(f"{out}: model {info.digest} with {', '.join(info.parts)}; averaged: {', '.join(averaged)}")


@app.command()
def originals(
    model: Annotated[Path, typer.Argument(help="model folder, as `foley assemble` or `average` wrote it")],
    data: Annotated[Path, typer.Option(help="ingested dataset that it learned from")],
    shippable_only: Annotated[
        bool, typer.Option(help="it learned from rows alone whose licences let a model be given away")
    ] = False,
    classes: Annotated[list[str] | None, typer.Option("--class", help="it learned from this class; may be repeated")] = None,
) -> None:
    """Tell a model what it learned from, so that near copies of those recordings are passed over."""
    from foley_ray.evaluation.copies import note_originals

    with error_console.status("") as status:
        info = note_originals(model, data, shippable_only, classes, lambda heard: status.update(f"{heard} windows heard"))
    known = info.originals.rows if info.originals else 0
    out_console.print(f"{model}: model {info.digest} knows {known} stretches of the recordings that it learned from")


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="what the sound should be, such as 'a dog bark'")] = None,
    model: Annotated[Path | None, typer.Option(help="model folder")] = None,
    out: Annotated[Path, typer.Option(help="folder for WAV, picture and JSON of each clip")] = Path("out"),
    prompts: Annotated[Path | None, typer.Option(help="text file of prompts, one a line")] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="clips per prompt")] = 1,
    candidates: Annotated[int, typer.Option(help="candidates per clip, of which the best is kept")] = USUAL.candidates,
    steps: Annotated[int, typer.Option(help="sampling steps")] = USUAL.steps,
    guidance: Annotated[float, typer.Option(help="classifier-free guidance; 1 is none")] = USUAL.guidance,
    guided_above: Annotated[float, typer.Option(help="lowest sigma over alpha at which guidance works")] = USUAL.guided_above,
    guided_below: Annotated[float, typer.Option(help="highest one; 1000 is all of them")] = USUAL.guided_below,
    sampler: Annotated[str, typer.Option(help=" | ".join(SAMPLERS))] = USUAL.sampler,
    eta: Annotated[float, typer.Option(help="noise put back at each step, 0 to 1")] = USUAL.eta,
    duration: Annotated[float, typer.Option(help="seconds, 0.5 to 30")] = USUAL.duration_s,
    seed: Annotated[int | None, typer.Option(help="seed of the first clip; the next clips count up from it")] = None,
    threshold: Annotated[
        str | None, typer.Option(help="score below which candidates are drawn again, or FILE:CLASS of `foley calibrate`")
    ] = None,
    max_redraws: Annotated[int, typer.Option(help="how often at most, for a threshold or near copies")] = USUAL.max_redraws,
    targets: Annotated[Path | None, typer.Option(help="folder of sounds: each clip is chosen against one of them")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Generate sounds from a prompt, best of n candidates each; with the same --seed and --out only what is not there yet."""
    if (prompt is None) == (prompts is None):
        raise PromptError("give one prompt, or a text file of them with --prompts")
    with _settings_errors():
        settings = ClipSettings.model_validate(
            {
                "duration_s": duration,
                "candidates": candidates,
                "steps": steps,
                "guidance": guidance,
                "guided_above": guided_above,
                "guided_below": guided_below,
                "sampler": sampler,
                "eta": eta,
                "threshold": None if threshold is None else threshold_of(threshold),
                "max_redraws": max_redraws,
            }
        )
    with loading():
        from foley_ray import generate as files
        from foley_ray.checkpoint import shipped_model
        from foley_ray.pipeline import Pipeline

        wanted = files.read_prompts(prompts) if prompts else [prompt or ""]
        first = _seed(seed)
        pipeline = Pipeline(model or shipped_model(), _device(device))
    if threshold is not None:  # once more, now that the CLAP is known for which it must have been calibrated
        threshold_of(threshold, clap=pipeline.info.parts["clap"].digest)
    found = pipeline.rank.embed_folder(targets) if targets else None
    requests = files.requests_for(wanted, count, first, settings, found)
    pipeline.check(requests)
    files.check_writable(out)
    left = files.missing(out, requests, pipeline.info)
    there = f"{len(requests)} clips" + (f" ({len(requests) - len(left)} already there)" if len(left) < len(requests) else "")
    out_console.print(f"model {pipeline.info.digest} ({pipeline.info.preset}), {there}, first seed {first}")
    for doubt in filter(None, map(pipeline.doubt, dict.fromkeys(wanted))):
        error_console.print(f"warning: {doubt}", style="yellow", markup=False)
    with error_console.status("") as status, _seed_told(seed, first):
        to_make = [request for _, request in left]
        clips = pipeline.generate(to_make, lambda done, total: status.update(f"sampling, {done}/{total} candidate steps"))
        for (index, _), clip in zip(left, clips, strict=True):
            path = files.write_clip(out, index, clip, pipeline.info)
            below = "" if clip.passed else f"  below the threshold after {settings.max_redraws} redraws, the best there was"
            out_console.print(f"{path}  {clip.verdict} (best of {len(clip.scores)}){below}")
            if clip.best.copied:
                error_console.print(f"warning: {clip.warnings[-1]}", style="yellow", markup=False)


@app.command()
def serve(
    model: Annotated[Path | None, typer.Option(help="model folder")] = None,
    host: Annotated[str, typer.Option(help="address to listen on; any but this machine's own needs --api-keys")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    gpu: Annotated[bool, typer.Option(help="run the stages on one GPU")] = False,
    data: Annotated[Path, typer.Option(help="folder for uploaded files and batches")] = Path("serve_data"),
    api_keys: Annotated[Path | None, typer.Option(help="text file of API keys, one a line")] = None,
) -> None:
    """Serve sounds over HTTP, with a web page, from this machine; `serve deploy cluster/serve.yaml` does it on a cluster."""
    from foley_ray.serving.local import local_settings, run

    run(local_settings(model, data, gpu, api_keys), host, port, out_console.print)


@app.command()
def demo(
    prompt: Annotated[str, typer.Argument(help="what to generate at the end")] = "a dog bark",
    out: Annotated[Path, typer.Option(help="folder for recordings, dataset, runs, model and sounds")] = Path("demo"),
) -> None:
    """The whole path in miniature: train a tiny model on generated recordings, then generate with it."""
    out_console.print("training a tiny model, every part of it, on generated recordings: about four minutes on two cores.")
    out_console.print("It shows that every part works on this machine; its sounds are not yet sounds.")
    from foley_ray.demo import demo as run_demo
    from foley_ray.models.clap import tokenize

    if not prompt.strip() or len(tokenize([prompt])) == 0:
        raise PromptError("the prompt is empty: say what the sound should be, such as 'a dog bark'")
    with error_console.status("starting") as status:
        model, _ = run_demo(out, status.update)
    generate(prompt, model=model, out=out / "sounds", count=2, duration=1.0, seed=7)


def _workers(text: str) -> int | tuple[int, int]:
    least, dash, most = text.partition("-")
    if not (least.isdecimal() and (most.isdecimal() or not dash)):
        raise ConfigError(f"--workers {text} must be a number, or least-most as in 1-4")
    return (int(least), int(most)) if dash else int(least)


def _device(name: str) -> str:
    import torch

    if name != "cpu" and not (name.startswith("cuda") and torch.cuda.is_available()):
        raise ConfigError(f"--device {name} is not available here; use cpu" + ("" if name.startswith("cuda") else " or cuda"))
    return name


@contextmanager
def _seed_told(seed: int | None, drawn: int) -> Iterator[None]:
    """Who gave no seed and presses Ctrl-C is told the one that was drawn: the same command would draw another."""
    try:
        yield
    except KeyboardInterrupt:
        if seed is not None:
            raise
        raise typer.Abort(f"the same command with --seed {drawn}") from None


def _seed(seed: int | None) -> int:
    if seed is None:
        import secrets

        return secrets.randbelow(MAX_SEED)
    if not 0 <= seed <= MAX_SEED:
        raise PromptError(f"--seed {seed} must lie between 0 and {MAX_SEED}")
    return seed


if __name__ == "__main__":
    main()
