"""The step engine: the only sampling loop. It loops over steps, not over requests.

Candidates with different steps, guidance, samplers and arrival times share each UNet call; they join and leave between steps.
The oldest candidate always moves, and others with a latent of the same shape fill the call up to `max_rows` (a guided candidate
costs two rows). Noise belongs to a clip: it is drawn from (seed, candidate, step) alone, so that a latent does not depend on
what else is under way. Knows no prompts, no waves and no runtime.
"""

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from foley_ray.config import Sampler
from foley_ray.diffusion.guidance import combine, guided_rows
from foley_ray.diffusion.samplers import LEVELS, ddim_step, dpmpp_2m_step
from foley_ray.diffusion.schedule import Level, Prediction, Schedule
from foley_ray.errors import FoleyError, GenerationError, PromptError

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (B, C, W, H), timesteps (B,), conditions (B, D)) -> prediction (B, C, W, H)."""


@dataclass(frozen=True)
class SampleRequest:
    """One candidate to sample. `shape` is (C, W, H)."""

    condition_D: np.ndarray
    seed: int
    candidate: int
    steps: int
    guidance: float
    sampler: Sampler
    shape: tuple[int, int, int]
    eta: float = 0.0


@dataclass(frozen=True)
class Finished:
    """A candidate that left the engine, with its latent (C, W, H) or with what went wrong."""

    key: Hashable
    latent: Tensor | None = None
    error: FoleyError | None = None


@dataclass
class _Track:
    """One candidate under way."""

    key: Hashable
    request: SampleRequest
    levels: list[Level]
    condition_D: Tensor
    x: Tensor
    step: int = 0
    earlier: tuple[Tensor, Level] | None = field(default=None)

    @property
    def rows(self) -> int:
        """UNet rows a step costs."""
        return 2 if self.request.guidance != 1.0 else 1


def clip_noise(seed: int, candidate: int, step: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of one candidate's step, float32, from these numbers alone. Step -1 is the initial noise.

    Drawn on the CPU whatever the device, so that a seed means the same sound everywhere.
    """
    digest = hashlib.blake2b(f"{seed}/{candidate}/{step}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(tuple(shape), generator=generator)


class StepEngine:
    """Holds the candidates under way and moves some of them by one step per call."""

    def __init__(
        self,
        denoise: Denoise,
        schedule: Schedule,
        prediction: Prediction,
        null_condition_D: Tensor,
        max_rows: int = 16,
        device: torch.device | str = "cpu",
    ):
        if max_rows < 2:
            raise ValueError(f"max_rows {max_rows} must be at least 2, what one guided candidate needs")
        self.denoise = denoise
        self.schedule = schedule
        self.prediction = prediction
        self.device = torch.device(device)
        self.null_D = null_condition_D.to(self.device)
        self.max_rows = max_rows
        self._tracks: dict[Hashable, _Track] = {}  # in order of arrival

    def __len__(self) -> int:
        """Candidates under way."""
        return len(self._tracks)

    def submit(self, key: Hashable, request: SampleRequest) -> None:
        """Let a candidate join at the next step. Raises PromptError for settings that cannot be sampled."""
        _check(request, self.schedule.train_steps)
        if key in self._tracks:
            raise ValueError(f"key {key!r} is under way already")
        levels = LEVELS[request.sampler](self.schedule, request.steps)
        x = clip_noise(request.seed, request.candidate, -1, request.shape).to(self.device)
        condition_D = torch.as_tensor(request.condition_D, dtype=torch.float32, device=self.device)
        self._tracks[key] = _Track(key, request, levels, condition_D, x)

    def cancel(self, key: Hashable) -> bool:
        """Drop a candidate before the next step. False if it was not under way (any more)."""
        return self._tracks.pop(key, None) is not None

    def step(self) -> list[Finished]:
        """One UNet call for as many candidates as fit; returns those that finished with it."""
        chosen = self._choose()
        if not chosen:
            return []
        with torch.inference_mode():
            try:
                moved = self._move(chosen)
            except (FoleyError, RuntimeError):
                # one candidate's failure is not its mates': each is tried alone, and only those that fail again end
                moved = {track.key: self._move_alone(track) for track in chosen}
        finished = []
        for track in chosen:
            error = moved[track.key]
            if error is None and not bool(torch.isfinite(track.x).all()):
                error = GenerationError(f"the latent became NaN or infinite at step {track.step} of {track.request.steps}")
            if error is not None or track.step == track.request.steps:
                del self._tracks[track.key]
                finished.append(Finished(track.key, None if error else track.x, error))
        return finished

    def run(self, requests: Sequence[SampleRequest], on_step: Callable[[int, int], None] | None = None) -> list[np.ndarray]:
        """Sample all requests; latents (C, W, H) in their order. `on_step(done, all)` counts candidate steps.

        Raises the first error of any of them, after taking the others out.
        """
        keys = [object() for _ in requests]
        latents: dict[Hashable, np.ndarray] = {}
        total = sum(request.steps for request in requests)
        try:
            for key, request in zip(keys, requests, strict=True):
                self.submit(key, request)
            while len(latents) < len(keys):
                for item in self.step():
                    if item.error is not None:
                        raise item.error
                    if item.latent is not None:
                        latents[item.key] = item.latent.cpu().numpy()
                if on_step is not None:
                    left = sum(track.request.steps - track.step for track in self._tracks.values())
                    on_step(total - left, total)
        finally:
            for key in keys:
                self.cancel(key)
        return [latents[key] for key in keys]

    def _choose(self) -> list[_Track]:
        """The oldest candidate, and in order of arrival those of its shape that still fit."""
        chosen: list[_Track] = []
        rows = 0
        for track in self._tracks.values():
            if chosen and track.request.shape != chosen[0].request.shape:
                continue
            if rows + track.rows > self.max_rows:
                break
            chosen.append(track)
            rows += track.rows
        return chosen

    def _move(self, tracks: list[_Track]) -> dict[Hashable, FoleyError | None]:
        """Predict x_0 of all tracks in one call, then let each take its own sampler's step."""
        guided = guided_rows([track.request.guidance for track in tracks])
        x = torch.stack([track.x for track in tracks])
        timestep_B = torch.tensor([track.levels[track.step].timestep for track in tracks], device=self.device)
        condition_BD = torch.stack([track.condition_D for track in tracks])
        predicted = self.denoise(
            torch.cat([x, x[guided]]),
            torch.cat([timestep_B, timestep_B[guided]]),
            torch.cat([condition_BD, self.null_D.expand(len(guided), -1)]),
        ).float()
        conditional = predicted[: len(tracks)]
        if guided:
            scale_B = torch.tensor([tracks[row].request.guidance for row in guided], device=self.device)
            conditional = conditional.clone()
            conditional[guided] = combine(conditional[guided], predicted[len(tracks) :], scale_B)
        x0 = self.schedule.to_x0(conditional, x, timestep_B, self.prediction)
        for row, track in enumerate(tracks):
            self._advance(track, x0[row])
        return {track.key: None for track in tracks}

    def _advance(self, track: _Track, x0: Tensor) -> None:
        request, s, t = track.request, track.levels[track.step], track.levels[track.step + 1]
        if request.sampler == "ddim":
            noise = None
            if request.eta > 0:
                noise = clip_noise(request.seed, request.candidate, track.step, request.shape).to(self.device)
            track.x = ddim_step(track.x, x0, s, t, request.eta, noise)
        else:
            track.x = dpmpp_2m_step(track.x, x0, s, t, track.earlier)
            track.earlier = (x0, s)
        track.step += 1

    def _move_alone(self, track: _Track) -> FoleyError | None:
        try:
            self._move([track])
        except (FoleyError, RuntimeError) as error:
            return GenerationError(f"sampling failed at step {track.step} of {track.request.steps}: {error}")
        return None


def _check(request: SampleRequest, train_steps: int) -> None:
    """Raise PromptError for what no sampler can do, with the value seen."""
    if request.sampler not in LEVELS:
        raise PromptError(f"unknown sampler {request.sampler!r}; choose one of: {', '.join(LEVELS)}")
    if not 1 <= request.steps <= train_steps:
        raise PromptError(f"steps {request.steps} must lie between 1 and {train_steps}")
    if not (math.isfinite(request.guidance) and request.guidance >= 0):
        raise PromptError(f"guidance {request.guidance} must be a number of 0 or more")
    if not 0 <= request.eta <= 1:
        raise PromptError(f"eta {request.eta} must lie between 0 and 1")
    if request.eta > 0 and request.sampler != "ddim":
        raise PromptError(f"eta {request.eta} needs the sampler ddim; {request.sampler} puts no noise back")
