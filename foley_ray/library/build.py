"""A plan -> a library: Ray Data streams clips through an actor pool per stage; what is made is kept, then delivered.

A run: make what is missing, one round for the first draw and one for each redraw that a threshold asks for; choose, in plan
order, over everything that is stored; deliver what is not there yet; catalogue; manifest, last. Every file is whole or absent
and a function of the plan and the model alone, so a run that was killed anywhere is gone on with by the next.

A clip's numbers must not depend on its batch mates, to the last bit. Therefore a stage sees `group` clips with equal
settings at a time, and a group that is not full is filled up with copies.
"""

import os
import pickle
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy

from foley_ray.checkpoint import PARTS, read_info, shipped_model
from foley_ray.clip import ClipRequest, draw_batch
from foley_ray.columns import CLIP_ID, CONDITION, DURATION_S, ETA, GUIDANCE, LATENT, LOOP, SAMPLER, STEPS, Batch, join, split
from foley_ray.data.cluster import ensure_ray, quiet_progress
from foley_ray.errors import ConfigError, FoleyError, OutputError, PromptError
from foley_ray.jobfile import STAGES, LibraryJob, StageName
from foley_ray.library.catalogue import MANIFEST, Missing, write_catalogue
from foley_ray.library.choose import choose, most_draws, unsettled
from foley_ray.library.deliver import Delivery, deliver
from foley_ray.library.plan import PlannedClip, expand, load_plan
from foley_ray.library.report import Report, write_report
from foley_ray.library.store import Store

MAX_BLOCKS = 1000
"""Tasks per stage and round: many enough to spread the work, few enough to keep Ray Data's own cost down."""
NOT_MADE = "not made yet: the hours of the run were over"

_DONE_WITH: dict[StageName, str] = {"sample": CONDITION.name, "vocode": LATENT.name}
"""What no later stage needs."""
_ALIKE = (STEPS, GUIDANCE, SAMPLER, ETA, DURATION_S, LOOP)


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
    plan, model = load_plan(job.plan), (job.model or shipped_model()).resolve()
    info = read_info(model, needs=[name for name in PARTS if name != "tuning"]).require_ranker("build a library")
    clips = expand(plan, info.digest)
    store = Store(job.out.absolute())
    with store.locked():
        ensure_ray(num_cpus=max(2, os.cpu_count() or 1))  # the pools need more than one to be reserved
        if not job.autoscaled:
            _check_resources(job)
        quiet_progress()
        reused = len(store.draws().keys() & {clip.id for clip in clips})
        deadline = started + plan.budget.hours * 3600 if plan.budget.hours else float("inf")
        tally = _Tally()
        for draw in range(max(most_draws(clip) for clip in clips)):
            draws = store.draws()
            wanted = [clip for clip in clips if draws.get(clip.id, 0) == draw and unsettled(clip, draw, store)]
            if wanted and not _make(wanted, draw, model, job, store, tally, deadline, on_progress):
                break
        draws = store.draws()
        made = {id: draws[id] for id in draws.keys() - tally.failed.keys()}
        choices = choose(clips, made, store)
        deliveries = [
            Delivery.of(plan, choice.clip, choice.candidate, choice.score, info.digest, info.model.audio.sample_rate_hz)
            for choice in choices
            if choice.gate is None
        ]
        _deliver_all(deliveries, store)
        missing = [Missing(clip, tally.failed.get(clip.id, NOT_MADE)) for clip in clips if clip.id not in made]
        write_catalogue(plan, info, choices, missing, store)
        report = Report.of(plan.library, choices, missing, tally.made, reused, dict(tally.busy_s), _gpu_s(job, tally), started)
        write_report(report, store)
    return report


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
    meter = ray.remote(num_cpus=0)(Meter).remote()
    works = (_work(draw_batch([(clip.id, ClipRequest(clip.prompt, clip.seed, clip.settings))], draw)) for clip in clips)
    stream = _dataset(works, len(clips))
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
            _stop_if_full(row["fatal"])
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


class Meter:
    """Counts what the stages' actors do, wherever they run."""

    def __init__(self) -> None:
        self.clips: Counter[str] = Counter()
        self.seconds: dict[str, float] = defaultdict(float)

    def add(self, stage: str, clips: int, seconds: float) -> None:
        """Some clips have passed a stage."""
        self.clips[stage] += clips
        self.seconds[stage] += seconds

    def read(self) -> tuple[dict[str, int], dict[str, float]]:
        """Clips that have passed, and seconds of work, per stage."""
        return dict(self.clips), dict(self.seconds)


class StageActor:
    """Ray Data actor around one stage: a work is {"batch": the rows of one clip, "error": why it failed, if it did}."""

    def __init__(self, name: StageName, model: Path, job: LibraryJob, meter: Any):
        import torch

        from foley_ray.stages.condition import ConditionStage
        from foley_ray.stages.rank import RankStage
        from foley_ray.stages.sample import SampleStage
        from foley_ray.stages.vocode import VocodeStage

        torch.set_num_threads(job.threads)  # the number decides the order of sums, and with it the last bit
        kinds: dict[StageName, Any] = {
            "condition": ConditionStage, "sample": SampleStage, "vocode": VocodeStage, "rank": RankStage,
        }  # fmt: skip
        self.name, self.group, self.retries, self.meter = name, job.group, job.retries, meter
        self.stage: Callable[[Batch], Batch] = kinds[name](model, "cuda" if job.pools[name].gpus else "cpu")
        self.lost_device: type[Exception] = torch.AcceleratorError

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of works to a table of works."""
        works = self.works(table)
        return pa.table({"work": pa.array([pickle.dumps(work) for work in works], pa.large_binary())})

    def works(self, table: pa.Table) -> list[dict[str, Any]]:
        """The works of a table, one stage further."""
        started = time.perf_counter()
        works = [pickle.loads(data) for data in table["work"].to_pylist()]
        alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for work in works:
            if work["error"] is None:
                alike.setdefault(_kind(work["batch"]), []).append(work)
        for kin in alike.values():
            for start in range(0, len(kin), self.group):
                self._advance(kin[start : start + self.group])
        self.meter.add.remote(self.name, len(works), time.perf_counter() - started)
        return works

    def _advance(self, works: list[dict[str, Any]], tries: int = 0) -> None:
        """One group through the stage. If it fails each is tried alone, so that a clip's failure is not its mates'."""
        try:
            batches = self._run([work["batch"] for work in works])
        except self.lost_device:
            raise  # nobody's own failure: the next run goes on from here
        except Exception as error:
            if len(works) > 1:
                for work in works:
                    self._advance([work])
            elif tries < self.retries and not isinstance(error, PromptError):
                self._advance(works, tries + 1)
            else:
                works[0]["error"] = f"{self.name}: {error if isinstance(error, FoleyError) else repr(error)}"
            return
        for work, batch in zip(works, batches, strict=True):
            batch.pop(_DONE_WITH.get(self.name, ""), None)
            work["batch"] = batch

    def _run(self, batches: list[Batch]) -> list[Batch]:
        """Padded to a whole group."""
        padded = [*batches, *[batches[-1]] * (self.group - len(batches))]
        return split(self.stage(join(padded)), [len(batch[CLIP_ID.name]) for batch in padded])[: len(batches)]


class LastActor(StageActor):
    """The last stage also keeps what it ranked: waves go straight to the store, not through another process."""

    def __init__(self, name: StageName, model: Path, job: LibraryJob, meter: Any, library: Path, draw: int):
        super().__init__(name, model, job, meter)
        self.store, self.draw = Store(library), draw

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of works to ids, with the reason of a clip that failed, or of a disk that cannot be written.

        The reason is handed on: Ray would dress a raised error up as its own.
        """
        rows = []
        for work in self.works(table):
            row = {"id": work["batch"][CLIP_ID.name][0], "failed": work["error"] or "", "fatal": ""}
            if work["error"] is None:
                try:
                    self.store.save_draw(row["id"], self.draw, work["batch"])
                except OSError as error:
                    row["fatal"] = f"cannot write {self.store.library}: {error.strerror or error}"
            rows.append(row)
        return pa.Table.from_pylist(rows)


def _deliver_all(deliveries: Sequence[Delivery], store: Store) -> None:
    """Files of everything that is chosen, and of nothing else that this library has delivered before."""
    wanted = {delivery.clip.id: delivery for delivery in deliveries}
    places = {delivery.clip.place(format) for delivery in deliveries for format in delivery.formats}
    missing = [delivery for delivery in deliveries if delivery.done(store) is None]
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
        stream = _dataset((pickle.dumps(delivery) for delivery in missing), len(missing))
        stream = stream.map_batches(_deliver_some, fn_args=(store.library,), batch_size=1, batch_format="pyarrow")
        for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in batch.to_pylist():
                _stop_if_full(row["fatal"])


def _deliver_some(table: pa.Table, library: Path) -> pa.Table:
    """Ray Data task around `deliver`."""
    fatal = []
    for data in table["work"].to_pylist():
        try:
            deliver(pickle.loads(data), Store(library))
            fatal.append("")
        except OSError as error:
            fatal.append(f"cannot write {library}: {error.strerror or error}")
    return pa.table({"fatal": pa.array(fatal, pa.string())})


def _dataset(works: Iterable[bytes], rows: int) -> ray.data.Dataset:
    items: Iterator[dict[str, bytes]] = ({"work": work} for work in works)
    return ray.data.from_items(list(items), override_num_blocks=min(rows, MAX_BLOCKS))


def _work(batch: Batch) -> bytes:
    return pickle.dumps({"batch": batch, "error": None})


def _kind(batch: Batch) -> tuple[Any, ...]:
    """What clips must share to be computed together without a look at who else is there."""
    return (len(batch[CLIP_ID.name]), *(batch[column.name][0] for column in _ALIKE))


def _stop_if_full(reason: str) -> None:
    if reason:
        raise OutputError(f"{reason}; free it and run again, what was made is kept")


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
