import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foley_ray.config import DiffusionConfig
from foley_ray.diffusion.engine import SampleRequest, StepEngine, clip_noise
from foley_ray.diffusion.schedule import Schedule, dpmpp_levels
from foley_ray.errors import GenerationError, PromptError
from foley_ray.models.unet import Denoiser, build_unet
from foley_ray.presets import tiny

SCHEDULE = Schedule.from_config(DiffusionConfig())
DIM = 8


class SmallNet(nn.Module):
    """A real network with group norm, so that rows would show if they leaked into each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into = nn.Conv2d(4, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.condition = nn.Linear(DIM + 1, 16)
        self.out = nn.Conv2d(16, 4, 3, padding=1)
        self.rows: list[int] = []

    def forward(self, x: Tensor, timestep_B: Tensor, condition_BD: Tensor) -> Tensor:
        self.rows.append(len(x))
        film = self.condition(torch.cat([condition_BD, timestep_B[:, None] / 1000], dim=1))
        return self.out(torch.relu(self.norm(self.into(x)) + film[..., None, None]))


def request(**changes) -> SampleRequest:
    condition = np.linspace(-1, 1, DIM, dtype=np.float32)
    base = SampleRequest(condition, seed=1, candidate=0, steps=6, guidance=2.0, sampler="dpmpp-2m", shape=(4, 6, 5))
    return replace(base, **changes)


def engine(net: nn.Module | None = None, max_rows: int = 16) -> StepEngine:
    return StepEngine(net or SmallNet(), SCHEDULE, "v", torch.zeros(DIM), max_rows=max_rows)


MIXED = [
    request(seed=5),
    request(seed=6, steps=9, guidance=1.0),
    request(seed=7, sampler="ddim", eta=1.0),
    request(seed=7, eta=0.7),
    request(seed=8, shape=(4, 3, 5)),
    request(seed=5, candidate=1, guidance=4.0, steps=3),
    request(seed=9, guidance=3.0, guided_above=0.3, guided_below=5.0),
]


def test_a_clip_does_not_depend_on_its_mates() -> None:
    together = engine().run(MIXED)
    for one, latent in zip(MIXED, together, strict=True):
        np.testing.assert_allclose(engine().run([one])[0], latent, atol=1e-5)
        np.testing.assert_allclose(engine(max_rows=3).run([request(seed=99), one])[1], latent, atol=1e-5)


def test_joining_midway_changes_nothing() -> None:
    alone = engine().run(MIXED[:3])
    running = engine()
    found = {}
    running.submit(0, MIXED[0])
    running.step()
    running.step()
    running.submit(1, MIXED[1])
    running.step()
    running.submit(2, MIXED[2])
    while len(running):
        found |= {item.key: item.latent.numpy() for item in running.step()}
    for key in range(3):
        np.testing.assert_allclose(found[key], alone[key], atol=1e-5)


def test_guidance_doubles_only_the_rows_that_need_it() -> None:
    net = SmallNet()
    engine(net).run([request(guidance=1.0, steps=2), request(guidance=2.0, steps=2), request(guidance=1.0, steps=2)])
    assert net.rows == [4, 4]


def test_guidance_in_an_interval_of_noise_levels_costs_a_second_row_there_alone() -> None:
    net = SmallNet()
    levels = [level.sigma / level.alpha for level in dpmpp_levels(SCHEDULE, 6)][:-1]
    inside = [0.3 <= level <= 5 for level in levels]
    assert any(inside[1:-1])
    assert inside[0] is inside[-1] is False
    engine(net).run([request(guided_above=0.3, guided_below=5.0)])
    assert net.rows == [1 + here for here in inside]


def test_an_interval_of_all_levels_is_plain_guidance_and_of_none_no_guidance() -> None:
    for limits, plain in (((0.0, 1000.0), {"guidance": 3.0}), ((2000.0, 2000.0), {"guidance": 1.0})):
        one = request(guidance=3.0, guided_above=limits[0], guided_below=limits[1])
        np.testing.assert_array_equal(engine().run([one])[0], engine().run([request(**plain)])[0])


def test_rows_stay_within_the_bound_and_the_oldest_always_moves() -> None:
    net = SmallNet()
    running = engine(net, max_rows=4)
    for key in range(5):
        running.submit(key, request(seed=key, steps=3))
    order = []
    while len(running):
        order += [item.key for item in running.step()]
    assert max(net.rows) <= 4
    assert order == [0, 1, 2, 3, 4]


def test_another_shape_is_not_starved_by_newcomers() -> None:
    running = engine(max_rows=2)
    running.submit("long", request(steps=2))
    running.submit("short", request(steps=2, shape=(4, 2, 5)))
    finished: list[object] = []
    for tick in range(6):
        running.submit(tick, request(seed=tick, steps=2))
        finished += [item.key for item in running.step()]
    assert finished[:2] == ["long", "short"]


def test_cancel_takes_effect_at_the_next_step() -> None:
    net = SmallNet()
    running = engine(net)
    running.submit("a", request(guidance=1.0))
    running.submit("b", request(guidance=1.0))
    running.step()
    assert running.cancel("a")
    assert not running.cancel("a")
    running.step()
    assert net.rows == [2, 1]


class NanForLoud(SmallNet):
    """Answers NaN for rows with a loud condition."""

    def forward(self, x: Tensor, timestep_B: Tensor, condition_BD: Tensor) -> Tensor:
        loud_B = (condition_BD > 50).any(dim=1)
        return torch.where(loud_B[:, None, None, None], torch.nan, super().forward(x, timestep_B, condition_BD))


def test_one_clips_nan_touches_no_other() -> None:
    good = engine().run([request()])[0]
    running = engine(NanForLoud())
    running.submit("bad", request(condition_D=np.full(DIM, 99, dtype=np.float32)))
    running.submit("good", request())
    found = {}
    while len(running):
        found |= {item.key: item for item in running.step()}
    assert isinstance(found["bad"].error, GenerationError)
    np.testing.assert_allclose(found["good"].latent.numpy(), good, atol=1e-5)


def test_a_network_that_fails_for_one_clip_fails_only_that_clip() -> None:
    class Fussy(SmallNet):
        def forward(self, x: Tensor, timestep_B: Tensor, condition_BD: Tensor) -> Tensor:
            if bool((condition_BD > 50).any()):
                raise RuntimeError("out of memory")
            return super().forward(x, timestep_B, condition_BD)

    running = engine(Fussy())
    running.submit("bad", request(condition_D=np.full(DIM, 99, dtype=np.float32)))
    running.submit("good", request())
    found = {}
    while len(running):
        found |= {item.key: item for item in running.step()}
    assert "out of memory" in str(found["bad"].error)
    np.testing.assert_allclose(found["good"].latent.numpy(), engine().run([request()])[0], atol=1e-5)


def test_run_raises_and_leaves_the_engine_empty() -> None:
    running = engine(NanForLoud())
    with pytest.raises(GenerationError):
        running.run([request(), request(condition_D=np.full(DIM, 99, dtype=np.float32))])
    assert len(running) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps 0 must be a whole number from 1 to 1000"),
        ({"steps": 1001}, "steps 1001"),
        ({"guidance": float("nan")}, "guidance nan"),
        ({"sampler": "euler"}, "unknown sampler 'euler'"),
        ({"eta": 2.0, "sampler": "ddim"}, "eta 2.0 must lie between"),
        ({"eta": float("nan"), "sampler": "ddim"}, "eta nan must lie between"),
        ({"steps": 2.5}, "steps 2.5 must be a whole number"),
        ({"guidance": -1.0}, "guidance -1.0"),
        ({"guided_above": 2.0, "guided_below": 1.0}, "guidance from noise level 2.0 to 1.0"),
        ({"guided_below": float("nan")}, "guidance from noise level 0.0 to nan"),
        ({"shape": (4, 0, 5)}, "shape"),
        ({"condition_D": np.zeros(DIM + 1, dtype=np.float32)}, r"condition has shape \(9,\), but this model takes \(8,\)"),
        ({"condition_D": np.full(DIM, np.nan, dtype=np.float32)}, "condition holds NaN"),
    ],
)
def test_settings_that_cannot_be_sampled_are_refused_at_the_door(changes: dict, said: str) -> None:
    running = engine()
    with pytest.raises(PromptError, match=said):
        running.submit("x", request(**changes))
    assert len(running) == 0


def test_noise_belongs_to_seed_candidate_and_step_alone() -> None:
    shape = (4, 6, 5)
    torch.manual_seed(1)
    first = clip_noise(3, 1, 2, shape)
    torch.manual_seed(2)
    assert torch.equal(first, clip_noise(3, 1, 2, shape))
    others = [clip_noise(*key, shape) for key in ((4, 1, 2), (3, 2, 2), (3, 1, 3), (3, 1, -1), (31, 1, 2))]
    assert all(float((first - other).abs().mean()) > 0.5 for other in others)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sampler", ["dpmpp-2m", "ddim"])
def test_the_exact_denoiser_of_gaussian_data_yields_that_gaussian(sampler, eta: float) -> None:
    """For data N(mean, std^2) the best x_0 estimate is known, so samples must have that mean and spread."""
    mean, std = 1.5, 0.4

    def exact(x: Tensor, timestep_B: Tensor, condition_BD: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.levels(timestep_B, x)
        x0 = (mean * sigma**2 + std**2 * alpha * x) / (alpha**2 * std**2 + sigma**2)
        return (alpha * x - x0) / sigma  # as a velocity

    running = StepEngine(exact, SCHEDULE, "v", torch.zeros(DIM), max_rows=64)
    # few steps shrink the spread, by the method's own error: at 40 steps of ddim with eta 1 it is 0.33 (exact recursion)
    requests = [request(seed=seed, steps=200, guidance=1.0, sampler=sampler, eta=eta) for seed in range(40)]
    samples = np.stack(running.run(requests))
    assert abs(samples.mean() - mean) < 0.02
    assert abs(samples.std() - std) < 0.04


rows = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 3),
        "candidate": st.integers(0, 2),
        "steps": st.integers(1, 5),
        "guidance": st.sampled_from([1.0, 0.0, 2.5]),
        "sampler": st.sampled_from(["ddim", "dpmpp-2m"]),
        "eta": st.sampled_from([0.0, 0.5, 1.0]),
        "shape": st.sampled_from([(4, 6, 5), (4, 2, 5)]),
    }
)


@given(st.lists(rows, min_size=2, max_size=5), st.integers(2, 7), st.lists(st.integers(0, 3), min_size=5, max_size=5))
@settings(deadline=None, max_examples=25)
def test_any_mix_and_any_arrival_give_what_each_clip_gives_alone(changes, max_rows, waits) -> None:
    requests = [request(**change) for change in changes]
    net = SmallNet()
    running = engine(net, max_rows=max_rows)
    found = {}
    for key, each in enumerate(requests):
        running.submit(key, each)
        for _ in range(waits[key]):
            found |= {item.key: item.latent for item in running.step()}
    while len(running):
        found |= {item.key: item.latent for item in running.step()}
    assert max(net.rows) <= max_rows
    for key, each in enumerate(requests):
        np.testing.assert_allclose(found[key].numpy(), engine().run([each])[0], atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_tiny_models_unet_in_a_mixed_batch(prediction) -> None:
    torch.manual_seed(0)
    config = tiny().model
    net = Denoiser(build_unet(config)).eval()
    null_D = torch.zeros(config.clap.embed_dim)
    condition_D = torch.linspace(-1, 1, config.clap.embed_dim)
    requests = [
        request(condition_D=condition_D, shape=config.audio.latent_shape(duration), steps=steps, guidance=guidance, seed=steps)
        for duration, steps, guidance in ((0.5, 3, 2.0), (1.0, 2, 1.0), (0.5, 4, 1.0), (0.5, 2, 3.0))
    ]
    together = StepEngine(net, SCHEDULE, prediction, null_D).run(requests)
    for each, latent in zip(requests, together, strict=True):
        alone = StepEngine(net, SCHEDULE, prediction, null_D).run([each])[0]
        assert latent.shape == each.shape
        # an untrained network that predicts epsilon ends at latents of 100 and more, so the bound goes with their size
        np.testing.assert_allclose(latent, alone, atol=1e-5 * max(1.0, float(np.abs(alone).max())))


def test_a_guided_clip_walks_the_path_of_diffusers() -> None:
    """The whole engine against the usual hand-written loop: DDIM, eta 1, doubled batch."""
    one = request(sampler="ddim", eta=1.0, steps=10, guidance=2.5)
    net, scheduler = SmallNet(), DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction",
    )  # fmt: skip
    scheduler.set_timesteps(one.steps)
    x = clip_noise(one.seed, one.candidate, -1, one.shape)[None]
    condition_BD = torch.stack([torch.zeros(DIM), torch.from_numpy(one.condition_D)])
    for step, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            without, given_condition = net(torch.cat([x, x]), t.expand(2), condition_BD).chunk(2)
        noise = clip_noise(one.seed, one.candidate, step, one.shape)[None]
        guided = without + one.guidance * (given_condition - without)
        x = scheduler.step(guided, t, x, eta=1.0, variance_noise=noise).prev_sample
    latent = StepEngine(SmallNet(), SCHEDULE, "v", torch.zeros(DIM)).run([one])[0]
    np.testing.assert_allclose(latent, x[0].numpy(), rtol=1e-4, atol=2e-5)


def test_a_row_left_over_goes_to_the_next_clip_that_fits() -> None:
    net = SmallNet()
    running = engine(net, max_rows=3)
    for key, guidance in enumerate((2.0, 2.0, 1.0)):
        running.submit(key, request(seed=key, steps=1, guidance=guidance))
    assert [item.key for item in running.step()] == [0, 2]
    assert [item.key for item in running.step()] == [1]
    assert net.rows == [3, 2]


class Halting(SmallNet):
    """Waits inside its call until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.go_on = threading.Event(), threading.Event()

    def forward(self, x: Tensor, timestep_B: Tensor, condition_BD: Tensor) -> Tensor:
        self.inside.set()
        assert self.go_on.wait(10)
        return super().forward(x, timestep_B, condition_BD)


def test_others_may_submit_and_cancel_during_a_call() -> None:
    net = Halting()
    running = engine(net)
    running.submit("leaves", request(steps=1))
    running.submit("again", request(steps=1, seed=5))
    running.submit("stays", request(steps=2))
    finished = []
    thread = threading.Thread(target=lambda: finished.extend(running.step()))
    thread.start()
    assert net.inside.wait(10)
    running.submit("joins", request(steps=1))
    assert running.cancel("leaves")
    assert running.cancel("again")
    running.submit("again", request(steps=2, seed=6))  # the same key, another clip: the call's result is not its own
    net.go_on.set()
    thread.join(10)
    assert finished == []
    found = {}
    while len(running):
        found |= {item.key: item.latent.numpy() for item in running.step()}
    assert set(found) == {"stays", "joins", "again"}
    np.testing.assert_allclose(found["again"], engine().run([request(steps=2, seed=6)])[0], atol=1e-5)
    np.testing.assert_allclose(found["stays"], engine().run([request(steps=2)])[0], atol=1e-5)


def test_a_lost_device_is_raised_and_moves_nobody() -> None:
    class Unplugged(SmallNet):
        broken = True

        def forward(self, x: Tensor, timestep_B: Tensor, condition_BD: Tensor) -> Tensor:
            if self.broken:
                raise torch.AcceleratorError("device lost")
            return super().forward(x, timestep_B, condition_BD)

    net = Unplugged()
    running = engine(net)
    running.submit("a", request())
    running.submit("b", request(seed=2))
    with pytest.raises(torch.AcceleratorError):
        running.step()
    net.broken = False
    found = {}
    while len(running):
        found |= {item.key: item.latent.numpy() for item in running.step()}
    np.testing.assert_allclose(found["a"], engine().run([request()])[0], atol=1e-5)


def test_a_failing_call_steps_nobody_twice() -> None:
    """When a batch is too large for memory its clips go on alone, from where they were."""

    class Cramped(SmallNet):
        def forward(self, x: Tensor, timestep_B: Tensor, condition_BD: Tensor) -> Tensor:
            if len(x) > 2:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(x, timestep_B, condition_BD)

    requests = [request(seed=seed, sampler="ddim", eta=1.0) for seed in range(3)]
    cramped, roomy = engine(Cramped()).run(requests), engine().run(requests)
    for one, other in zip(cramped, roomy, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_conditions_of_any_kind_are_taken_and_copied() -> None:
    """Ray hands over read-only views of shared memory; a stage may reuse its buffer."""
    frozen = np.linspace(-1, 1, DIM, dtype=np.float32)
    frozen.setflags(write=False)
    expected = engine().run([request()])[0]
    for condition in (frozen, torch.from_numpy(frozen.copy()).requires_grad_(), frozen.astype(np.float64)):
        np.testing.assert_allclose(engine().run([request(condition_D=condition)])[0], expected, atol=1e-6)
    reused = frozen.copy()
    running = engine()
    running.submit("a", request(condition_D=reused, steps=1))
    reused[:] = 0
    (item,) = running.step()
    np.testing.assert_allclose(item.latent.numpy(), engine().run([request(steps=1)])[0], atol=1e-6)


def test_the_denoiser_is_called_in_its_own_precision_and_latents_stay_float32() -> None:
    seen = []

    def half(x: Tensor, timestep_B: Tensor, condition_BD: Tensor) -> Tensor:
        seen.append((x.dtype, timestep_B.dtype, condition_BD.dtype, torch.is_inference_mode_enabled()))
        return x * 0.5

    running = StepEngine(half, SCHEDULE, "v", torch.zeros(DIM), dtype=torch.bfloat16)
    running.submit("a", request(steps=1))
    (item,) = running.step()
    assert seen == [(torch.bfloat16, torch.int64, torch.bfloat16, True)]
    assert item.latent.dtype == torch.float32
    assert not item.latent.is_inference()
    assert item.latent.untyped_storage().nbytes() == item.latent.nbytes


def test_run_counts_steps_and_wants_the_engine_to_itself() -> None:
    running, told = engine(), []
    running.run([request(steps=2), request(steps=3)], on_step=lambda done, all_steps: told.append((done, all_steps)))
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert running.run([]) == []
    running.submit("a", request())
    with pytest.raises(ValueError, match="idle"):
        running.run([request()])
    with pytest.raises(ValueError, match="'a' is under way"):
        running.submit("a", request())
    with pytest.raises(ValueError, match="max_rows 1"):
        engine(max_rows=1)
