"""A plan -> a library: Ray Data streams clips through an actor pool per stage; what is made is kept, then delivered.

A run: make what is missing, one round for the first draw and one for each redraw that a threshold or near copies ask for;
choose, in plan order, over everything that is stored; deliver what is not there yet; catalogue; manifest, last. Every file is
whole or absent, and a function of the plan, its target sounds and the model: a run that was killed anywhere is gone on with by
the next.
"""

import os
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from foley_ray.checkpoint import PARTS, read_info, shipped_model
from foley_ray.clip import ClipRequest, draw_batch
from foley_ray.columns import Batch
from foley_ray.data.cluster import ensure_ray, forgive_actors, quiet_progress
from foley_ray.errors import ConfigError, OutputError
from foley_ray.jobfile import STAGES, LibraryJob
from foley_ray.library.actors import LastActor, Listener, Meter, StageActor, cannot_write
from foley_ray.library.catalogue import MANIFEST, Missing, write_catalogue
from foley_ray.library.choose import Choice, choose, most_draws, unsettled
from foley_ray.library.deliver import Delivery, deliver
from foley_ray.library.plan import PlannedClip, expand, load_plan
from foley_ray.library.report import Report, write_report
from foley_ray.library.store import Store
from foley_ray.library.targets import Target, find_targets

MAX_BLOCKS = 1000
"""Tasks per stage and round: many enough to spread the work, few enough to keep Ray Data's own cost down."""
DELIVERED_TOGETHER = 8
"""Clips per task of delivery at least: a task alone costs as much as a short clip."""
NOT_MADE = "not made yet: the hours of the run were over"


@dataclass(frozen=True)
class Progress:
    """Where a run is: clips that have passed each stage of the present round, and the seconds until its end."""

    stages: dict[str, int]
    total: int
    left_s: float | None


@dataclass
class _Tally:
    """What a run has cost so far."""

    made: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    busy_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def build(job: LibraryJob, on_progress: Callable[[Progress], None] = lambda progress: None) -> Report:
    """Build the library that a job file asks for, or what is missing of it.

    Raises ConfigError or ModelError for a plan or model that does not work, and OutputError if the library cannot be written or
    another run is building it. Clips that fail are listed in the report and in the manifest; they raise nothing.
    """
    started = time.monotonic()
    model = (job.model or shipped_model()).resolve()
    info = read_info(model, needs=[name for name in PARTS if name != "tuning"]).require_ranker("build a library")
    clap = info.parts["clap"].digest
    plan = load_plan(job.plan, clap)
    clips = expand(plan, info.digest)
    targets = find_targets(plan, clips, job.plan.parent)
    store = Store(job.out.absolute())
    with store.locked():
        ensure_ray(num_cpus=max(2, os.cpu_count() or 1))  # the pools need more than one to be reserved
        if not job.autoscaled:
            _check_resources(job)
        quiet_progress()
        forgive_actors()
        reused = len(store.draws().keys() & {clip.id for clip in clips})
        target_D = _heard(targets, model, clap, job, store)
        deadline = started + plan.budget.hours * 3600 if plan.budget.hours else float("inf")
        tally, out_of_time = _Tally(), False
        for draw in range(max(most_draws(clip) for clip in clips)):
            draws = store.draws()
            behind = [clip for clip in clips if draws.get(clip.id, 0) == draw]
            wanted = [clip for clip in behind if unsettled(clip, draw, store, target_D.get(clip.id))]
            if wanted and not _make(wanted, draw, model, job, store, tally, deadline, on_progress):
                out_of_time = True  # with every clip made, what is left may be redraws alone
                break
        draws = store.draws()
        made = {id: draws[id] for id in draws.keys() - tally.failed.keys()}
        choices = choose(clips, made, store, target_D)
        rate_hz = info.model.audio.sample_rate_hz

        def delivery(choice: Choice) -> Delivery:
            target = targets.get(choice.clip.id)
            return Delivery.of(plan, choice.clip, choice.candidate, choice.score, info.digest, rate_hz, target)

        _deliver_all([choice for choice in choices if choice.gate is None], delivery, store)
        missing = [Missing(clip, tally.failed.get(clip.id, NOT_MADE)) for clip in clips if clip.id not in made]
        write_catalogue(plan, info, choices, missing, targets, store)
        spent = dict(tally.busy_s), _gpu_s(job, tally), started
        report = Report.of(plan.library, choices, missing, tally.made, reused, out_of_time, *spent)
        write_report(report, store)
        if job.prune and report.status == 0:
            store.prune({clip.id for clip in clips}, {target.sha256 for target in targets.values()})
    return report


def _heard(targets: Mapping[str, Target], model: Path, clap: str, job: LibraryJob, store: Store) -> dict[str, np.ndarray]:
    """Clip id -> its target's CLAP embedding (D,); those that the store has not yet are made on what a rank actor has."""
    names = {id: f"{clap}-{target.sha256}" for id, target in targets.items()}
    found = {name: heard_D for name in names.values() if (heard_D := store.embedding(name)) is not None}
    new = {names[id]: target for id, target in targets.items() if names[id] not in found}
    if new:
        pool = job.pools["rank"]
        again = {"max_restarts": -1, "max_task_retries": -1}  # where its node is lost
        listener = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, **again)(Listener).remote(model, job)
        for name, target in new.items():
            found[name] = ray.get(listener.embed.remote(target.read()))
            store.save_embedding(name, found[name])
    return {id: found[name] for id, name in names.items()}


def _make(
    clips: Sequence[PlannedClip],
    draw: int,
    model: Path,
    job: LibraryJob,
    store: Store,
    tally: _Tally,
    deadline: float,
    on_progress: Callable[[Progress], None],
) -> bool:
    """One draw of each clip into the store. False if the time was over before all were made."""
    started = time.monotonic()
    # on this node, which outlives any other that may be lost
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    meter = ray.remote(num_cpus=0, scheduling_strategy=here)(Meter).remote()
    works = (_work(draw_batch([(clip.id, ClipRequest(clip.prompt, clip.seed, clip.settings))], draw)) for clip in clips)
    stream = _dataset(works, len(clips), job.group)
    for name in STAGES:
        pool = job.pools[name]
        stream = stream.map_batches(
            LastActor if name == STAGES[-1] else StageActor,
            fn_constructor_args=(name, model, job, meter, *([store.library, draw] if name == STAGES[-1] else [])),
            batch_size=job.group,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=pool.actors[0], max_size=pool.actors[1]),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
    done = 0
    for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in batch.to_pylist():
            _stop_if_fatal(row["fatal"])
            done += 1
            if row["failed"]:
                tally.failed[row["id"]] = row["failed"]
            else:
                tally.made.add(row["id"])
        passed, busy_s = ray.get(meter.read.remote())
        left_s = (time.monotonic() - started) / done * (len(clips) - done)
        on_progress(Progress({**passed, "keep": done}, len(clips), left_s))
        if time.monotonic() > deadline:
            break
    passed, busy_s = ray.get(meter.read.remote())
    for name, seconds in busy_s.items():
        tally.busy_s[name] += seconds
    return done == len(clips)


def _deliver_all(choices: Sequence[Choice], delivery: Callable[[Choice], Delivery], store: Store) -> None:
    """Files of everything that is chosen, and of nothing else that this library has delivered before.

    Deliveries are made as they are looked at: all together they would be ten times the size of the choices.
    """
    wanted: set[str] = set()
    places: set[str] = set()
    missing: list[Choice] = []
    for choice in choices:
        wanted.add(choice.clip.id)
        asked = delivery(choice)
        places.update(choice.clip.place(format) for format in asked.formats)
        if asked.done(store) is None:
            missing.append(choice)
    old = {
        path: [file["path"] for file in receipt["files"] if file["path"] not in places]
        for path, receipt in store.receipts()
    }  # fmt: skip
    old = {path: files for path, files in old.items() if files or path.stem not in wanted}
    if missing or old:
        (store.library / MANIFEST).unlink(missing_ok=True)  # from here until it is written again the library is not whole
    for path, files in old.items():
        for file in files:
            (store.library / file).unlink(missing_ok=True)
        path.unlink()
    if missing:
        stream = _dataset((pickle.dumps(delivery(choice)) for choice in missing), len(missing), DELIVERED_TOGETHER)
        stream = stream.map_batches(_deliver_some, fn_args=(store.library,), batch_format="pyarrow")
        for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in batch.to_pylist():
                _stop_if_fatal(row["fatal"])


def _deliver_some(table: pa.Table, library: Path) -> pa.Table:
    """Ray Data task around `deliver`; hands the reason on as LastActor does."""
    fatal = []
    for data in table["work"].to_pylist():
        try:
            deliver(pickle.loads(data), Store(library))
            fatal.append("")
        except OSError as error:
            fatal.append(cannot_write(library, error))
        except OutputError as error:
            fatal.append(str(error))
    return pa.table({"fatal": pa.array(fatal, pa.string())})


def _dataset(works: Iterator[bytes], rows: int, group: int) -> ray.data.Dataset:
    """Blocks of whole groups, but for the last: no stage fills a group up more often than it must."""
    groups = -(-rows // group)
    size, wider = divmod(groups, blocks := min(groups, MAX_BLOCKS))
    sizes = [group * (size + (block < wider)) for block in range(blocks)]
    return ray.data.from_arrow([pa.table({"work": pa.array(islice(works, size), pa.large_binary())}) for size in sizes])


def _work(batch: Batch) -> bytes:
    return pickle.dumps({"batch": batch, "error": None})


def _stop_if_fatal(reason: str) -> None:
    if reason:
        raise OutputError(reason)


def _gpu_s(job: LibraryJob, tally: _Tally) -> float:
    return sum(tally.busy_s[name] * job.pools[name].gpus for name in STAGES)


def _check_resources(job: LibraryJob) -> None:
    """Raise ConfigError for what Ray would wait for in silence, for ever."""
    has = ray.cluster_resources()
    for resource, key in (("CPU", "cpus"), ("GPU", "gpus")):
        needs = sum(pool.actors[0] * getattr(pool, key) for pool in job.pools.values())
        if needs > has.get(resource, 0):
            raise ConfigError(
                f"the pools need at least {needs:g} {resource}s at once, but Ray has {has.get(resource, 0):g}; "
                f"lower {key} or actors in pools"
            )
