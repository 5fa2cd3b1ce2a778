"""The stage classes as Ray Data actors: a table of works in, a table of works out, one clip a work. Imports no ray.

A clip's numbers must not depend on its batch mates, to the last bit. Therefore a stage sees `group` clips with equal
settings at a time, and a group that is not full is filled up with copies.
"""

import io
import pickle
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile as sf

from foley_ray.audio.wave import resample, to_mono
from foley_ray.columns import (
    CLIP_ID,
    CONDITION,
    DURATION_S,
    ETA,
    GUIDANCE,
    GUIDED_ABOVE,
    GUIDED_BELOW,
    LATENT,
    LOOP,
    SAMPLER,
    STEPS,
    Batch,
    join,
    split,
)
from foley_ray.errors import FoleyError, PromptError
from foley_ray.jobfile import LibraryJob, StageName
from foley_ray.library.store import Store

_DONE_WITH: dict[StageName, str] = {"sample": CONDITION.name, "vocode": LATENT.name}
"""What no later stage needs."""
_ALIKE = (STEPS, GUIDANCE, GUIDED_ABOVE, GUIDED_BELOW, SAMPLER, ETA, DURATION_S, LOOP)


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
                    row["fatal"] = cannot_write(self.store.library, error)
            rows.append(row)
        return pa.Table.from_pylist(rows)


class Listener:
    """Actor around the last stage's CLAP, for target sounds. Each is heard alone: its embedding must not depend on others."""

    def __init__(self, model: Path, job: LibraryJob):
        import torch

        from foley_ray.stages.rank import RankStage

        torch.set_num_threads(job.threads)
        self.stage = RankStage(model, "cuda" if job.pools["rank"].gpus else "cpu")

    def embed(self, data: bytes) -> np.ndarray:
        """The bytes of a sound file -> its unit embedding (D,)."""
        wave, rate_hz = sf.read(io.BytesIO(data), dtype="float32")
        embedding_D: np.ndarray = self.stage.embed([resample(to_mono(wave), rate_hz, self.stage.sample_rate_hz)])[0]
        return embedding_D


def cannot_write(library: Path, error: OSError) -> str:
    """Why a run ends at once: no other clip will fare better."""
    return f"cannot write {library}: {error.strerror or error}; free it and run again, what was made is kept"


def _kind(batch: Batch) -> tuple[Any, ...]:
    """What clips must share to be computed together without a look at who else is there."""
    return (len(batch[CLIP_ID.name]), *(batch[column.name][0] for column in _ALIKE))
