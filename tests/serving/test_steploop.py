import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from foley_ray.columns import CONDITION
from foley_ray.diffusion.engine import SampleRequest
from foley_ray.errors import GenerationError, PromptError, ReplicaLost
from foley_ray.serving.steploop import StepLoop
from foley_ray.stages.condition import ConditionStage
from foley_ray.stages.sample import SampleStage


@pytest.fixture(scope="module")
def condition_D(tiny_model: Path) -> np.ndarray:
    return np.asarray(ConditionStage(tiny_model)({"prompt": ["rain"]})[CONDITION.name][0])


@pytest.fixture
def stage(tiny_model: Path) -> SampleStage:
    return SampleStage(tiny_model)


def request(condition_D: np.ndarray, seed: int = 1, steps: int = 5, **changes: object) -> SampleRequest:
    wish = {"guidance": 2.5, "sampler": "dpmpp-2m", "shape": (8, 11, 20), "candidate": 0} | changes
    return SampleRequest(condition_D=condition_D, seed=seed, steps=steps, **wish)  # type: ignore[arg-type]


def test_requests_of_all_kinds_get_what_each_would_alone(stage: SampleStage, condition_D: np.ndarray) -> None:
    wishes = [request(condition_D, 1, 9), request(condition_D, 2, 3, guidance=1.0), request(condition_D, 3, 5, sampler="ddim")]
    alone = [stage.engine.run([wish])[0] for wish in wishes]

    async def all_at_once() -> list[list[np.ndarray]]:
        loop = StepLoop(stage.engine)
        try:
            return await asyncio.gather(*(loop.sample({index: wish}) for index, wish in enumerate(wishes)))
        finally:
            loop.close()

    for mine, [latent] in zip(alone, asyncio.run(all_at_once()), strict=True):
        np.testing.assert_allclose(latent, mine, atol=1e-4, rtol=1e-4)


def test_a_cancelled_request_leaves_and_the_others_stay(stage: SampleStage, condition_D: np.ndarray) -> None:
    async def scene() -> None:
        loop = StepLoop(stage.engine)
        try:
            long = asyncio.create_task(loop.sample({"long": request(condition_D, steps=900)}))
            short = asyncio.create_task(loop.sample({"short": request(condition_D, 2, steps=20)}))
            while not stage.engine.progress():
                await asyncio.sleep(0.001)
            long.cancel()
            with pytest.raises(asyncio.CancelledError):
                await long
            assert set(stage.engine.progress()) <= {"short"}
            assert len(await short) == 1
            assert loop.steps < 200
        finally:
            loop.close()

    asyncio.run(scene())


def test_one_failure_is_nobody_elses(stage: SampleStage, condition_D: np.ndarray) -> None:
    async def scene() -> None:
        loop = StepLoop(stage.engine)
        try:
            good = asyncio.create_task(loop.sample({"good": request(condition_D, 1)}))
            bad = asyncio.create_task(
                loop.sample({"bad": request(condition_D, 2, guidance=1e38), "mate": request(condition_D, 3, 900)})
            )
            with pytest.raises(PromptError, match="steps 5000 must be"):
                await loop.sample({"worse": request(condition_D, 4, steps=5000)})
            with pytest.raises(GenerationError, match="NaN or infinite"):
                await bad
            assert len(await good) == 1
            await asyncio.sleep(0.05)
            assert not len(stage.engine), "the bad one's mate has left with it"
        finally:
            loop.close()

    asyncio.run(scene())


def test_a_lost_device_fails_everybody_at_once_and_stays_lost(stage: SampleStage, condition_D: np.ndarray) -> None:
    def lost(*_: object) -> torch.Tensor:
        raise torch.AcceleratorError("device-side assert")

    stage.engine.denoise = lost  # type: ignore[assignment]

    async def scene() -> None:
        loop = StepLoop(stage.engine)
        both = [loop.sample({name: request(condition_D)}) for name in "ab"]
        for outcome in await asyncio.gather(*both, return_exceptions=True):
            assert isinstance(outcome, ReplicaLost)
        assert isinstance(loop.failure, torch.AcceleratorError)
        with pytest.raises(ReplicaLost, match="device was lost"):
            await loop.sample({"c": request(condition_D)})

    asyncio.run(scene())
