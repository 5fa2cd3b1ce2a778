from itertools import pairwise
from typing import get_args

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from foley_ray.config import DiffusionConfig, Sampler
from foley_ray.diffusion.guidance import combine, guided_rows
from foley_ray.diffusion.samplers import METHODS, ddim_step, dpmpp_2m_step
from foley_ray.diffusion.schedule import Schedule, to_x0

SCHEDULE = Schedule.from_config(DiffusionConfig())
BETAS = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
AUDIOLDM = {**BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
KARRAS = {**BETAS, "use_karras_sigmas": True}
KINDS = {"epsilon": "epsilon", "v": "v_prediction"}


def normal(seed, shape=(2, 2, 6, 5)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


KERNEL = normal(99, (2, 2, 3, 3)) / 4


def network(x, t_B, kind):
    """A nonlinear network that is about as right as a trained one: the exact denoiser of data N(0, 1/4), and a ripple."""
    power = SCHEDULE.alphas_cumprod[t_B].reshape(-1, 1, 1, 1)
    alpha, sigma = power.sqrt(), (1 - power).sqrt()
    x0 = alpha / (alpha**2 + 4 * sigma**2) * x + 0.3 * alpha * torch.tanh(functional.conv2d(x, KERNEL, padding=1))
    return (x - alpha * x0) / sigma if kind == "epsilon" else (alpha * x - x0) / sigma


def says(x, level, kind):
    """What the network says x_0 is."""
    predicted = network(x, torch.full((len(x),), level.timestep), kind)
    return to_x0(predicted, x, torch.tensor(level.alpha), torch.tensor(level.sigma), kind)


def trajectory(name, steps, kind, eta=0.0):
    """Every latent on the way, by our functions alone."""
    method = METHODS[name]
    levels, x, earlier, path = method.levels(SCHEDULE, steps), normal(0), None, []
    for step, (s, t) in enumerate(pairwise(levels)):
        x0 = says(x, s, kind)
        x = method.step(x, x0, s, t, earlier=earlier, eta=eta, noise=normal(step + 1) if eta else None)
        earlier = (x0, s)
        path.append(x)
    return torch.stack(path)


def reference(scheduler, steps, kind, noisy=False, **options):
    scheduler.set_timesteps(steps)
    x, path = normal(0), []
    for step, t in enumerate(scheduler.timesteps):
        noise = {"variance_noise": normal(step + 1)} if noisy or options.get("eta") else {}
        x = scheduler.step(network(x, t.expand(len(x)), kind), t, x, **options, **noise).prev_sample
        path.append(x)
    return torch.stack(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 25, 50, 200])
def test_ddim_walks_the_path_of_diffusers(steps, eta, kind):
    expected = reference(DDIMScheduler(**AUDIOLDM, prediction_type=KINDS[kind]), steps, kind, eta=eta)
    torch.testing.assert_close(trajectory("ddim", steps, kind, eta), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 14, 15, 20, 25, 50, 200])
def test_dpmpp_walks_the_path_of_diffusers(steps, kind):
    expected = reference(DPMSolverMultistepScheduler(**KARRAS, prediction_type=KINDS[kind]), steps, kind)
    # in one or two leaps from the noisiest level, float32's rounding of epsilon is divided by an alpha of 0.012, and stays so
    atol = 1e-4 if steps <= 2 and kind == "epsilon" else 2e-5
    torch.testing.assert_close(trajectory("dpmpp-2m", steps, kind), expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 15, 20, 50, 200])
def test_dpmpp_with_noise_walks_the_path_of_diffusers(steps, kind):
    """Eta 1 is SDE-DPM-Solver++."""
    scheduler = DPMSolverMultistepScheduler(**KARRAS, prediction_type=KINDS[kind], algorithm_type="sde-dpmsolver++")
    expected = reference(scheduler, steps, kind, noisy=True)
    atol = 1e-4 if steps <= 2 and kind == "epsilon" else 2e-5
    torch.testing.assert_close(trajectory("dpmpp-2m", steps, kind, eta=1.0), expected, rtol=1e-5, atol=atol)


def test_second_order_is_worth_its_name():
    """19 steps of 20 (the last is first order) end far nearer to a path of 400 steps than first-order steps do."""
    levels, x = METHODS["dpmpp-2m"].levels(SCHEDULE, 20), normal(0)
    fine = [level.timestep for level in METHODS["dpmpp-2m"].levels(SCHEDULE, 400)]
    exact = trajectory("dpmpp-2m", 400, "epsilon")[fine.index(levels[-2].timestep) - 1]
    second = (trajectory("dpmpp-2m", 20, "epsilon")[-2] - exact).abs().mean()
    for s, t in pairwise(levels[:-1]):
        x = dpmpp_2m_step(x, says(x, s, "epsilon"), s, t)
    assert second < 0.3 * (x - exact).abs().mean()


@given(st.sampled_from(get_args(Sampler)), st.integers(1, 300), st.floats(0, 1), st.data())
@settings(deadline=None, max_examples=60)
def test_a_right_x0_gives_the_right_mean_and_spread(name, steps, eta, data):
    """Knowing x_0, a step from alpha x_0 + sigma eps lands on the next level's signal, with that level's noise power."""
    levels = METHODS[name].levels(SCHEDULE, steps)
    index = data.draw(st.integers(0, steps - 1))
    s, t = levels[index], levels[index + 1]
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    earlier = (one, levels[index - 1]) if index else None

    def step(x, x0, noise):
        before = None if earlier is None else (x0, earlier[1])
        return float(METHODS[name].step(x, x0, s, t, earlier=before, eta=eta, noise=noise))

    assert step(s.alpha * one, one, zero) == pytest.approx(t.alpha, abs=1e-9)
    kept, fresh = step(s.sigma * one, zero, zero), step(zero, zero, one)
    assert kept**2 + fresh**2 == pytest.approx(t.sigma**2, abs=1e-9)


def test_steps_do_not_write_into_their_arguments():
    s, t = METHODS["ddim"].levels(SCHEDULE, 10)[3:5]
    x, x0, noise, before = normal(1), normal(2), normal(3), normal(4)
    copies = [value.clone() for value in (x, x0, noise, before)]
    ddim_step(x, x0, s, t, eta=1.0, noise=noise)
    dpmpp_2m_step(x, x0, s, t, earlier=(before, METHODS["ddim"].levels(SCHEDULE, 10)[2]))
    for value, copy in zip((x, x0, noise, before), copies, strict=True):
        assert torch.equal(value, copy)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_with_eta_asks_for_noise(name):
    s, t = METHODS[name].levels(SCHEDULE, 10)[3:5]
    with pytest.raises(ValueError, match=r"eta 0.5 needs noise"):
        METHODS[name].step(normal(1), normal(2), s, t, eta=0.5)


def test_every_sampler_of_the_config_has_a_method():
    assert set(METHODS) == set(get_args(Sampler))


def test_guidance():
    assert guided_rows([1.0, 2.5, 1.0, 0.0]) == [1, 3]
    conditional, unconditional = normal(1), normal(2)
    scale_B = torch.tensor([2.5, 0.0])
    expected = torch.stack([unconditional[0] + 2.5 * (conditional[0] - unconditional[0]), unconditional[1]])
    torch.testing.assert_close(combine(conditional, unconditional, scale_B), expected)
