"""`foley import`, `foley export` and `foley finetune`: other people's weights in, ours out. Imports inside the commands."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from foley_ray.presets import PRESETS

out_console = Console(highlight=False, soft_wrap=True, markup=False)


def add_to(app: typer.Typer) -> None:
    """Add these commands to `foley`."""
    app.command("import")(import_model)
    app.command("export")(export_model)
    app.command("finetune")(finetune_model)


def finetune_model(
    recordings: Annotated[Path, typer.Argument(help="ten recordings or more: in a folder per class, or with --caption")],
    model: Annotated[Path, typer.Option("--from", help="model folder to begin with, such as an imported one")],
    out: Annotated[Path, typer.Option(help="run folder; the same folder continues")],
    caption: Annotated[str | None, typer.Option(help="what all of the recordings are, such as 'a dog bark'")] = None,
    lora: Annotated[int | None, typer.Option(help="train LoRA adapters of this rank alone; merged at the end")] = None,
    steps: Annotated[int | None, typer.Option(help="optimiser steps; 1000 if not given")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="training setting as key=value, such as lr=1e-5; repeatable")
    ] = None,
    tuning: Annotated[str | None, typer.Option(help="linear | per_class | none (none can be exported to diffusers)")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Ray Train workers")] = 1,
    gpu: Annotated[bool, typer.Option(help="one GPU per worker")] = False,
) -> None:
    """Teach a model your own recordings: ingest, cache, finetune and assemble in one command."""
    from foley_ray.config import TuningConfig
    from foley_ray.interchange.finetune import Wish, finetune
    from foley_ray.jobfile import assignment, make_job

    changes = dict(assignment(item) for item in setting or []) | ({"steps": steps} if steps is not None else {})
    layer = make_job(TuningConfig, {"kind": tuning}) if tuning else None
    info = finetune(Wish(recordings, model, out, caption, lora, layer, changes, workers=workers, gpu=gpu), out_console.print)
    out_console.print(f"{out / 'model'}: model {info.digest}; foley generate PROMPT --model {out / 'model'}")


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            help="diffusers AudioLDM folder, transformers ClapModel folder, LAION-CLAP .pt, AudioLDM or challenge .ckpt, "
            "HiFi-GAN .pth, or a hub id such as cvssp/audioldm-s-full-v2"
        ),
    ],
    out: Annotated[Path, typer.Option(help="model folder to write")],
    clap: Annotated[str | None, typer.Option(help="take the whole CLAP from here: what a text tower alone cannot rank")] = None,
    vocoder: Annotated[str | None, typer.Option(help="take the vocoder from here")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="folder with RoBERTa's tokenizer, for files that come without"),
    ] = None,
    ema: Annotated[bool, typer.Option(help="of a .ckpt: take the averaged weights where there are any")] = True,
    head_channels: Annotated[int | None, typer.Option(help="of a .ckpt: attention head width, if not the published")] = None,
    preset_name: Annotated[
        str, typer.Option("--preset", help=f"settings of what is not given: {', '.join(PRESETS)}")
    ] = "default",
    licence: Annotated[list[str] | None, typer.Option(help="the weights' licence, kept with the model; repeatable")] = None,
) -> None:
    """Convert somebody else's weights into a model folder, once: safetensors, nothing unpickled."""
    from foley_ray.interchange.foreign import TARGETS_FILE, write_model
    from foley_ray.interchange.recognise import Reading, read_foreign
    from foley_ray.presets import preset

    base = preset(preset_name)
    reading = Reading(tokenizer=tokenizer, ema=ema, head_channels=head_channels)
    foreign = read_foreign(source, reading)
    if clap is not None:
        foreign = foreign.with_part("clap", read_foreign(clap, reading))
    if vocoder is not None:
        foreign = foreign.with_part("vocoder", read_foreign(vocoder, reading))
    name = foreign.format if "unet" in foreign.parts else preset_name
    info = write_model(foreign, out, base.model, Path(source).name, name, licence or ())
    out_console.print(f"{out}: model {info.digest} with {', '.join(info.parts)}, from {foreign.format}")
    if foreign.targets is not None:
        out_console.print(f"{out / TARGETS_FILE}: {len(foreign.targets.threshold_N)} target sounds")
    if "clap" in info.parts and not info.can_rank:
        out_console.print("its CLAP is a text tower alone and cannot rank: generate with --candidates 1, or import with --clap")


def export_model(
    model: Annotated[Path, typer.Argument(help="model folder")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    to: Annotated[str, typer.Option(help="diffusers, the only format yet")] = "diffusers",
    parts: Annotated[bool, typer.Option("--parts", help="just the networks that diffusers can load one by one")] = False,
) -> None:
    """Write what diffusers' AudioLDMPipeline loads and runs."""
    from foley_ray.errors import ConfigError

    if to != "diffusers":
        raise ConfigError(f"unknown format {to!r}; known is: diffusers")
    from foley_ray.interchange.diffusers_folder import export_diffusers

    written = export_diffusers(model, out, parts)
    out_console.print(f"{out}: {', '.join(written)}")
