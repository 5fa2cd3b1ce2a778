"""One thin Ray Serve deployment around each stage. What they pass on are batches of columns, one clip's candidates each.

Stages are imported in the constructors: torch is loaded where a model runs, and not in the process that builds the graph.
"""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from ray import serve

from foley_ray.checkpoint import shipped_model
from foley_ray.clip import Candidate, candidates_of, ranked, without_waves
from foley_ray.columns import CLIP_ID, PROMPT, Batch, join, split
from foley_ray.serving.metrics import SampleMetrics, StageMetrics
from foley_ray.serving.parcel import Parcel, pack, unpack
from foley_ray.serving.settings import BatchedSettings, ServeSettings, StageSettings

Outcome = Batch | Exception


def _set_threads(settings: StageSettings) -> None:
    import torch

    torch.set_num_threads(settings.torch_threads)


class _Batched:
    """Clips that wait at the same time go through the stage together; one clip's failure is its own."""

    def __init__(self, stage: Callable[[Batch], Batch], settings: BatchedSettings):
        self.stage = stage
        self.metrics = StageMetrics(type(self).__name__.lower())
        self._together.set_max_batch_size(settings.max_batch_requests)
        self._together.set_batch_wait_timeout_s(settings.batch_wait_s)

    async def run(self, batch: Batch) -> Batch:
        """The batch with the stage's columns. Raises what the stage raises for this batch alone."""
        outcome: Outcome = await self._together(batch)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @serve.batch  # type: ignore[untyped-decorator]
    async def _together(self, batches: list[Batch]) -> list[Outcome]:
        # in a thread, so that this replica goes on accepting and answering while the model runs
        return await asyncio.to_thread(self._apply, batches)

    def _apply(self, batches: list[Batch]) -> list[Outcome]:
        """An exception out of here would be everybody's, so it is handed out as a result."""
        try:
            with self.metrics.call(len(batches)):
                done = self.stage(join(batches))
        except Exception as error:
            if len(batches) == 1:
                return [error]
            return [outcome for batch in batches for outcome in self._apply([batch])]
        return list(split(done, [len(batch[CLIP_ID.name]) for batch in batches]))


class Condition(_Batched):
    """prompt -> condition and target."""

    def __init__(self, settings: ServeSettings):
        from foley_ray.stages.condition import ConditionStage

        _set_threads(settings.condition)
        model = settings.model or shipped_model()
        stage = ConditionStage(model, settings.condition.device)
        self.doubt = stage.familiar.doubt
        super().__init__(stage, settings.condition)

    async def __call__(self, batch: Batch) -> tuple[Parcel, str | None]:
        """Also what to tell who asks for a sound that the model was hardly taught, or None.

        Raises PromptError for a prompt that is empty or too long.
        """
        done = await self.run(batch)
        return pack(done), await asyncio.to_thread(self.doubt, str(batch[PROMPT.name][0]))


class Sample:
    """condition -> latent. Candidates of all requests share the step engine; they join and leave between steps."""

    def __init__(self, settings: ServeSettings):
        from foley_ray.serving.steploop import StepLoop
        from foley_ray.stages.sample import SampleStage

        _set_threads(settings.sample)
        self.stage = SampleStage(settings.model or shipped_model(), settings.sample.device, settings.sample.max_rows)
        self.steps = StepLoop(self.stage.engine, SampleMetrics().step)
        self.clips: dict[str, str] = {}
        """Call -> the clip it works for, for those who ask how far it is."""
        self.totals: dict[str, int] = {}

    async def __call__(self, parcel: Parcel) -> Parcel:
        """Raises PromptError and GenerationError for this clip alone."""
        batch = await unpack(parcel)
        call = uuid4().hex  # not the clip's id: a retry may arrive before its forerunner has left
        requests = self.stage.requests(batch)
        self.clips[call] = batch[CLIP_ID.name][0]
        self.totals[call] = sum(request.steps for request in requests)
        try:
            latents = await self.steps.sample({(call, row): request for row, request in enumerate(requests)})
        finally:
            del self.clips[call], self.totals[call]
        return pack(self.stage.with_latents(batch, latents))

    async def progress(self) -> dict[str, tuple[int, int]]:
        """Of every clip under way here: steps done and wanted, over its candidates."""
        left = dict.fromkeys(self.clips, 0)
        for key, (done, wanted) in self.stage.engine.progress().items():
            if isinstance(key, tuple) and key[0] in left:
                left[key[0]] += wanted - done
        return {clip: (self.totals[call] - left[call], self.totals[call]) for call, clip in self.clips.items()}

    async def check_health(self) -> None:
        """Raises when the device is lost, so that Serve replaces this replica."""
        if self.steps.failure is not None:
            raise self.steps.failure


class Vocode(_Batched):
    """latent -> wave."""

    def __init__(self, settings: ServeSettings):
        from foley_ray.stages.vocode import VocodeStage

        _set_threads(settings.vocode)
        model = settings.model or shipped_model()
        super().__init__(VocodeStage(model, settings.vocode.device, settings.vocode.max_rows), settings.vocode)

    async def __call__(self, parcel: Parcel) -> Parcel:
        """Waves within -1..1 at the model's rate."""
        return pack(await self.run(await unpack(parcel)))


class Rank(_Batched):
    """wave -> ranked candidates."""

    def __init__(self, settings: ServeSettings):
        from foley_ray.stages.rank import RankStage

        _set_threads(settings.rank)
        super().__init__(RankStage(settings.model or shipped_model(), settings.rank.device), settings.rank)

    async def __call__(self, parcel: Parcel, keep_all: bool) -> list[Candidate]:
        """Best first. Only the best brings its wave, unless `keep_all`: the others' are not worth their way."""
        [drawn] = candidates_of(await self.run(await unpack(parcel))).values()
        return ranked(drawn) if keep_all else without_waves(ranked(drawn))


STAGES: dict[str, type[Any]] = {"condition": Condition, "sample": Sample, "vocode": Vocode, "rank": Rank}
