"""The four stages in one process: prompts in, ranked clips out. Serve and the library builder run the same stages elsewhere."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from foley_ray.checkpoint import PARTS, ModelInfo, load_part, read_info
from foley_ray.clip import (
    Candidate,
    Clip,
    ClipRequest,
    candidates_of,
    draw_batch,
    must_be_ranked,
    ranked,
    settles,
    without_waves,
)
from foley_ray.columns import Batch
from foley_ray.errors import PromptError
from foley_ray.stages.condition import ConditionStage
from foley_ray.stages.rank import RankStage
from foley_ray.stages.sample import SampleStage
from foley_ray.stages.vocode import VocodeStage

GROUP_CLIPS = 8
"""Clips worked on together: enough to fill the denoiser's batches, few enough that the first sounds come soon."""


class Pipeline:
    """Loads a model folder once and generates clips. Raises ModelError if the folder is no complete model."""

    def __init__(self, model: Path, device: str = "cpu"):
        self.info: ModelInfo = read_info(model, needs=[name for name in PARTS if name != "tuning"])
        clap = load_part(model, "clap")
        self.condition = ConditionStage(model, device, clap=clap)
        self.sample = SampleStage(model, device, clap=clap)
        self.vocode = VocodeStage(model, device)
        self.rank = RankStage(model, device, clap=clap)

    def generate(self, requests: Iterable[ClipRequest], on_step: Callable[[int, int], None] | None = None) -> Iterator[Clip]:
        """Clips in request order, a group at a time. Raises PromptError for a prompt that cannot be generated.

        `on_step(done, all)` counts denoising steps of the current draw.
        """
        pending = iter(requests)
        while group := list(islice(pending, GROUP_CLIPS)):
            yield from self._generate_group(group, on_step)

    def check(self, requests: Sequence[ClipRequest]) -> None:
        """Raise PromptError for the first prompt that cannot be generated, before anything is; ModelError if none can rank."""
        if any(map(must_be_ranked, requests)):
            self.info.require_ranker("choose among candidates")
        for prompt in dict.fromkeys(request.prompt for request in requests):
            try:
                self.condition({"prompt": [prompt]})
            except PromptError as error:
                raise PromptError(f"{error} (prompt {prompt[:60]!r})") from None

    def doubt(self, prompt: str) -> str | None:
        """What to tell who asks for a sound that the model was hardly taught, and which it was; None for others."""
        return self.condition.familiar.doubt(prompt)

    def _generate_group(self, group: list[ClipRequest], on_step: Callable[[int, int], None] | None) -> list[Clip]:
        """Draw candidates for all; draw again, with the next candidate indices, for those that are not settled."""
        found: dict[int, list[Candidate]] = {index: [] for index in range(len(group))}
        unsettled = list(found)
        draw = 0
        while unsettled:
            batch = self._draw([(index, group[index]) for index in unsettled], draw, on_step)
            for index, drawn in candidates_of(batch).items():
                found[index] = without_waves(ranked([*found[index], *drawn]))
            unsettled = [
                index
                for index in unsettled
                if not settles(group[index].settings, found[index][0]) and draw < group[index].settings.max_redraws
            ]
            draw += 1
        return [Clip(request, tuple(found[index]), self.doubt(request.prompt)) for index, request in enumerate(group)]

    def _draw(self, wanted: list[tuple[int, ClipRequest]], draw: int, on_step: Callable[[int, int], None] | None) -> Batch:
        """One draw through the four stages."""
        batch = draw_batch(wanted, draw)
        batch = self.condition(batch)
        requests = dict(wanted)
        for row, index in enumerate(batch["clip_id"]):
            target_D = requests[index].target_D
            if target_D is not None:
                batch["target"][row] = target_D
        return self.rank(self.vocode(self.sample(batch, on_step)))
