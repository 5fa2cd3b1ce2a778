"""Latents longer than a window, and circular ones, through the engine and the stages."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from foley_ray.clip import ClipRequest
from foley_ray.config import ClipSettings, DiffusionConfig
from foley_ray.diffusion.engine import SampleRequest, StepEngine
from foley_ray.diffusion.schedule import Schedule
from foley_ray.pipeline import Pipeline

SCHEDULE = Schedule.from_config(DiffusionConfig())
CONDITION_D = np.ones(4, dtype=np.float32)


def engine(denoise, max_rows: int = 16) -> StepEngine:
    return StepEngine(denoise, SCHEDULE, "v", torch.zeros(4), max_rows=max_rows)


def request(width: int, **changes: object) -> SampleRequest:
    wish = {"seed": 1, "candidate": 0, "steps": 6, "guidance": 2.0, "sampler": "dpmpp-2m", "shape": (2, width, 3)} | changes
    return SampleRequest(condition_D=CONDITION_D, **wish)  # type: ignore[arg-type]


def each_frame_by_itself(x: Tensor, timestep_B: Tensor, condition_BD: Tensor) -> Tensor:
    return torch.tanh(x) * condition_BD.mean(1)[:, None, None, None] + 0.01 * x


def around_the_circle(x: Tensor, timestep_B: Tensor, condition_BD: Tensor) -> Tensor:
    smooth = functional.avg_pool2d(functional.pad(x, (0, 0, 2, 2), mode="circular"), (5, 1), stride=1)
    return smooth * condition_BD.mean(1)[:, None, None, None]


@pytest.mark.parametrize("width", [21, 50, 100])
@pytest.mark.parametrize("loop", [False, True])
def test_a_network_that_looks_at_single_frames_does_not_notice_windows(width: int, loop: bool) -> None:
    whole = engine(each_frame_by_itself).run([request(width)])[0]
    windowed = engine(each_frame_by_itself).run([request(width, window=20, loop=loop)])[0]
    np.testing.assert_allclose(windowed, whole, atol=1e-5)


def test_a_network_that_goes_round_the_circle_does_not_notice_where_it_begins() -> None:
    plain = engine(around_the_circle).run([request(30)])[0]
    np.testing.assert_allclose(engine(around_the_circle).run([request(30, loop=True)])[0], plain, atol=1e-5)


def test_long_latents_share_calls_with_those_as_long_as_a_window_and_change_nothing() -> None:
    wishes = [request(50, window=20), request(20, window=20, seed=2), request(35, window=20, loop=True, seed=3, guidance=1.0)]
    rows: list[int] = []

    def counted(x: Tensor, timestep_B: Tensor, condition_BD: Tensor) -> Tensor:
        rows.append(len(x))
        return around_the_circle(x, timestep_B, condition_BD)

    together = engine(counted).run(wishes)
    assert rows == [2 * 3 + 2 + 3] * 6
    for wish, latent in zip(wishes, together, strict=True):
        np.testing.assert_allclose(latent, engine(around_the_circle).run([wish])[0], atol=1e-5)


def test_a_latent_of_more_windows_than_rows_still_moves() -> None:
    assert engine(each_frame_by_itself, max_rows=2).run([request(100, window=20)])[0].shape == (2, 100, 3)


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Pipeline:
    return Pipeline(tiny_model)


def test_thirty_seconds_are_thirty_seconds_in_any_company(pipeline: Pipeline) -> None:
    settings = ClipSettings(duration_s=30, steps=2, candidates=1)
    long = ClipRequest("rain", 1, settings)
    mate = ClipRequest("rain", 2, settings.model_copy(update={"duration_s": 10.0}))
    together = list(pipeline.generate([long, mate]))
    assert [len(clip.wave_T) for clip in together] == [30 * 22_050, 10 * 22_050]
    np.testing.assert_allclose(next(pipeline.generate([long])).wave_T, together[0].wave_T, atol=1e-4)


def test_a_loop_is_whole_frames_and_its_sound_goes_round(pipeline: Pipeline) -> None:
    clip = next(pipeline.generate([ClipRequest("rain", 1, ClipSettings(duration_s=2, steps=4, candidates=1, loop=True))]))
    assert len(clip.wave_T) == 43 * 1024
    latent = np.random.default_rng(0).normal(size=(8, 43, 20)).astype(np.float32)
    [loop] = pipeline.vocode({"latent": [latent], "duration_s": [2.0], "loop": [True]})["wave"]
    # three times round: what the decoder makes of the middle one has the beginning after its end, as a player does
    thrice = (
        pipeline.vocode.decode(torch.from_numpy(np.tile(latent, (1, 3, 1))[None, :, 43 - 16 : 86 + 16])).detach().numpy()[0]
    )
    middle = np.clip(thrice[16 * 1024 :], -1, 1)
    np.testing.assert_allclose(loop[1024:], middle[1024 : 43 * 1024], atol=1e-5)
    np.testing.assert_allclose(loop[0], middle[43 * 1024], atol=1e-5, err_msg="the first sample is the one after the last")
