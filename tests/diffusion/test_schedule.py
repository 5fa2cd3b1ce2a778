from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from foley_ray.config import DiffusionConfig
from foley_ray.diffusion.schedule import Schedule, ddim_levels, dpmpp_levels, to_x0

SCHEDULE = Schedule.from_config(DiffusionConfig())
BETAS = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
AUDIOLDM = {**BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def latents(seed, rows=3):
    return torch.randn(rows, 2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_signal_power_is_that_of_audioldms_scheduler():
    torch.testing.assert_close(SCHEDULE.alphas_cumprod, DDIMScheduler(**AUDIOLDM).alphas_cumprod, rtol=1e-6, atol=0)
    assert SCHEDULE.train_steps == 1000
    assert float(SCHEDULE.alphas_cumprod[0]) == pytest.approx(1 - 0.0015)
    # ln of the product of all 1 - beta, summed independently in float64
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    assert float(SCHEDULE.alphas_cumprod[-1].log()) == pytest.approx(np.log1p(-betas).sum(), rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50, 200, 333, 999])
def test_timesteps_are_those_of_diffusers(steps):
    ddim, dpmpp = DDIMScheduler(**AUDIOLDM), DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)
    ddim.set_timesteps(steps)
    dpmpp.set_timesteps(steps)
    assert [level.timestep for level in ddim_levels(SCHEDULE, steps)[:-1]] == ddim.timesteps.tolist()
    assert [level.timestep for level in dpmpp_levels(SCHEDULE, steps)[:-1]] == dpmpp.timesteps.tolist()
    ratios = [level.sigma / level.alpha for level in dpmpp_levels(SCHEDULE, steps)]
    assert ratios == pytest.approx(dpmpp.sigmas.tolist(), rel=1e-5)


def test_last_levels():
    end = ddim_levels(SCHEDULE, 20)[-1]
    assert end.alpha**2 == pytest.approx(float(SCHEDULE.alphas_cumprod[0]))
    assert (dpmpp_levels(SCHEDULE, 20)[-1].alpha, dpmpp_levels(SCHEDULE, 20)[-1].sigma) == (1.0, 0.0)


@given(st.integers(2, 60), st.data())
@settings(deadline=None, max_examples=60)
def test_levels_fall_and_stay_in_range(train_steps, data):
    steps = data.draw(st.integers(1, train_steps - 1))
    schedule = Schedule.from_config(DiffusionConfig(train_steps=train_steps))
    for levels in (ddim_levels(schedule, steps), dpmpp_levels(schedule, steps)):
        sigmas = [level.sigma for level in levels]
        assert len(levels) == steps + 1
        assert all(0 <= level.timestep < train_steps for level in levels)
        assert all(a > b for a, b in pairwise(sigmas))
        assert all(level.alpha**2 + level.sigma**2 == pytest.approx(1) for level in levels)


def test_as_many_steps_as_timesteps():
    # diffusers' leading spacing asks for timestep 1000 of 0..999 here and fails; ours stays inside
    levels = ddim_levels(SCHEDULE, 1000)
    assert levels[0].timestep == 999
    assert len(levels) == 1001
    assert len(dpmpp_levels(SCHEDULE, 1000)) == 1001


@given(st.lists(st.integers(0, 999), min_size=3, max_size=3), st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_epsilon_and_velocity_lead_back_to_x0(timesteps, seed):
    x0, noise, t_B = latents(seed), latents(seed + 1), torch.tensor(timesteps)
    x = SCHEDULE.q_sample(x0, noise, t_B)
    level = SCHEDULE.levels(t_B, x)
    torch.testing.assert_close(to_x0(noise, x, *level, "epsilon"), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(to_x0(SCHEDULE.velocity(x0, noise, t_B), x, *level, "v"), x0, rtol=1e-9, atol=1e-9)


def test_noising_and_velocity_are_those_of_diffusers():
    scheduler = DDIMScheduler(**AUDIOLDM)
    x0, noise, t_B = latents(1).float(), latents(2).float(), torch.tensor([0, 500, 999])
    torch.testing.assert_close(SCHEDULE.q_sample(x0, noise, t_B), scheduler.add_noise(x0, noise, t_B))
    torch.testing.assert_close(SCHEDULE.velocity(x0, noise, t_B), scheduler.get_velocity(x0, noise, t_B))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_latents_keep_the_first_timesteps_noise(dtype):
    # 1 - 0.9985 is 0 in bfloat16: a clean "noisy" latent, and a velocity target without its x0
    x0, noise, t_B = torch.ones(1, 1, 1, 1, dtype=dtype), torch.zeros(1, 1, 1, 1, dtype=dtype), torch.tensor([0])
    assert float(SCHEDULE.velocity(x0, noise, t_B)) == pytest.approx(-(0.0015**0.5), rel=1e-3)
    assert float(SCHEDULE.q_sample(noise, x0, t_B)) == pytest.approx(0.0015**0.5, rel=1e-3)
