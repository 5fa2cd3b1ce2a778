"""The model that ships, from an ingested dataset: every stage in the paper's order, then one folder in 16-bit floats
that knows what it learned from.

ray job submit --working-dir . -- python jobs/default_model/make.py --data /data/dataset --out /data/default
(or without Ray's job server: python jobs/default_model/make.py ...). Hours on two CPU cores. Stopped, the same
command goes on: finished stages are passed over. `--from FOLDER` starts each stage from that model's parts instead of from
random weights, `--only STAGE` runs a single one; what each stage learns from, and for how long, is in stages/*.yaml.
`--rehearse` makes a worthless model in minutes, two small steps a stage, to see that data, machine and disk are fit.
"""

import argparse
import sys
from pathlib import Path

from foley_ray.errors import FoleyError
from foley_ray.jobfile import CacheJob, TrainJob, load_job

HERE = Path(__file__).parent
STAGES: dict[str, tuple[str, ...]] = {
    "clap": (),
    "audio": ("clap",),
    "vae": (),
    "vocoder": ("vae",),
    "decoder": ("vae",),
    "cache": ("audio", "vae"),
    "diffusion": ("audio", "vae"),
    "varied": ("audio", "vae"),
    "finetune": ("audio", "vae", "diffusion"),
    "target": ("audio", "vae", "finetune"),
}
"""Each stage, and which earlier ones give it parts."""
CACHES = {"diffusion": "cache", "finetune": "varied", "target": "varied"}
"""What the stages learn from that do not learn from the dataset itself."""
REHEARSAL = ("settings.steps=2", "settings.batch_size=2")
REHEARSAL_CACHE = ("variants=1", "balance=0")


def run_stage(name: str, data: Path, out: Path, start: Path | None, rehearse: bool = False) -> None:
    """One stage into OUT/name."""
    init = [] if start is None else [str(start)]
    init += [str(out / earlier) for earlier in STAGES[name]]
    source = out / CACHES[name] if name in CACHES else data
    changes = [f"data={source}", f"out={out / name}", f"init=[{', '.join(init)}]"]
    if name in CACHES.values():
        from foley_ray.data.cache import is_cache
        from foley_ray.data.cache import run_job as make_cache

        if not is_cache(out / name):
            changes += REHEARSAL_CACHE if rehearse else ()
            make_cache(load_job(CacheJob, HERE / "stages" / f"{name}.yaml", changes))
        return
    from foley_ray.training.progress import progress_line
    from foley_ray.training.worker import run_job

    changes += REHEARSAL if rehearse else ()
    job = load_job(TrainJob, HERE / "stages" / f"{name}.yaml", changes)
    if job.captions:
        job = job.model_copy(update={"captions": HERE / job.captions})
    run_job(job, lambda metrics: print(name, progress_line(metrics), flush=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset that `foley ingest` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the stages' runs and, at the end, model/")
    parser.add_argument("--from", dest="start", type=Path, help="model folder to start from")
    parser.add_argument("--only", choices=STAGES, help="this stage alone")
    parser.add_argument("--rehearse", action="store_true", help="two small steps a stage")
    options = parser.parse_args()
    data, out = options.data.resolve(), options.out.resolve()
    start = options.start.resolve() if options.start else None
    try:
        for name in (options.only,) if options.only else STAGES:
            run_stage(name, data, out, start, options.rehearse)
        if not options.only:
            from foley_ray.average import average
            from foley_ray.evaluation.copies import note_originals

            # what `target` gains in its seven classes it loses in the others: the mean of it and `finetune` keeps most of both
            parts = [out / name / "model" for name in ("audio", "decoder", "vocoder", "target", "finetune")]
            average(parts, out / "model", half=True)
            info = note_originals(out / "model", data, shippable_only=True)
            print(f"{out / 'model'}: {info.digest}")
    except FoleyError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
