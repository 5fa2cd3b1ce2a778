"""The step engine: the only sampling loop. It loops over steps, not over requests.

Candidates with different steps, guidance, samplers and arrival times share each UNet call; they join and leave between steps.
The oldest candidate always moves, and others with a latent of the same shape fill the call up to `max_rows` (a guided candidate
costs two rows). Noise belongs to a clip: it is drawn from (seed, candidate, step) alone, so that a latent does not depend on
what else is under way. Knows no prompts, no waves and no runtime.
"""

import hashlib
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from foley_ray.config import Sampler
from foley_ray.diffusion.guidance import combine, guided_rows, is_guided, scale_at
from foley_ray.diffusion.samplers import METHODS, Earlier
from foley_ray.diffusion.schedule import Level, Prediction, Schedule, to_x0
from foley_ray.diffusion.windows import blend, cover
from foley_ray.errors import FoleyError, GenerationError, PromptError

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (B, C, W, H), timesteps (B,), conditions (B, D)) -> prediction (B, C, W, H)."""


@dataclass(frozen=True, eq=False)
class SampleRequest:
    """One candidate to sample. `shape` is (C, W, H); a latent of more than `window` frames is covered by overlapping ones."""

    condition_D: np.ndarray | Tensor
    seed: int
    candidate: int
    steps: int
    guidance: float
    sampler: Sampler
    shape: tuple[int, int, int]
    eta: float = 0.0
    guided_above: float = 0.0
    """Guidance works at noise levels (sigma over alpha) from here up to `guided_below`; elsewhere a step costs one row."""
    guided_below: float = math.inf
    window: int | None = None
    loop: bool = False
    """The last frame leads into the first."""


@dataclass(frozen=True, eq=False)
class Finished:
    """A candidate that left the engine, with its latent (C, W, H), float32 on the engine's device, or with what went wrong."""

    key: Hashable
    latent: Tensor | None = None
    error: FoleyError | None = None


@dataclass(eq=False)
class _Track:
    """One candidate under way: at `levels[step]`, with latent x (C, W, H)."""

    key: Hashable
    request: SampleRequest
    levels: list[Level]
    condition_D: Tensor
    x: Tensor
    step: int = 0
    earlier: Earlier | None = None

    @property
    def guidance(self) -> float:
        """Scale of this step."""
        request = self.request
        return scale_at(self.levels[self.step], request.guidance, request.guided_above, request.guided_below)

    @property
    def rows(self) -> int:
        """UNet rows this step costs."""
        return len(self.frames()) * (2 if is_guided(self.guidance) else 1)

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """(C, W, H) of a UNet row."""
        channels, width, height = self.request.shape
        return (channels, min(width, self.request.window or width), height)

    def frames(self) -> list[Tensor | None]:
        """The frames of each window at this step; None is the whole latent as it is."""
        request, width = self.request, self.request.shape[1]
        if not request.loop and self.row_shape[1] == width:
            return [None]
        return list(cover(width, self.row_shape[1], request.loop, self.step))


def clip_noise(seed: int, candidate: int, step: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of one candidate's step, float32, from these numbers alone. Step -1 is the initial noise.

    Drawn on the CPU whatever the device, so that a seed means the same sound everywhere.
    """
    digest = hashlib.blake2b(f"{seed}/{candidate}/{step}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(tuple(shape), generator=generator)


class StepEngine:
    """Holds the candidates under way and moves some of them by one step per call.

    One thread steps; others may submit and cancel meanwhile, which takes effect at the next step.
    """

    def __init__(
        self,
        denoise: Denoise,
        schedule: Schedule,
        prediction: Prediction,
        null_condition_D: Tensor,
        max_rows: int = 16,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        """`dtype` is what the denoiser is called in; between the calls latents are float32 throughout."""
        if max_rows < 2:
            raise ValueError(f"max_rows {max_rows} must be at least 2, what one guided candidate needs")
        self.denoise = denoise
        self.schedule = schedule
        self.prediction = prediction
        self.device = torch.device(device)
        self.dtype = dtype
        self.null_D = null_condition_D.detach().to(self.device, torch.float32)
        self.max_rows = max_rows
        self._tracks: dict[Hashable, _Track] = {}  # in order of arrival
        self._lock = threading.Lock()  # guards _tracks; never held during a UNet call

    def __len__(self) -> int:
        """Candidates under way."""
        return len(self._tracks)

    def submit(self, key: Hashable, request: SampleRequest) -> None:
        """Let a candidate join at the next step. Raises PromptError for settings that cannot be sampled."""
        condition_D = _check(request, self.schedule.train_steps, len(self.null_D)).to(self.device)
        levels = METHODS[request.sampler].levels(self.schedule, request.steps)
        x = clip_noise(request.seed, request.candidate, -1, request.shape).to(self.device)
        with self._lock:
            if key in self._tracks:
                raise ValueError(f"key {key!r} is under way already")
            self._tracks[key] = _Track(key, request, levels, condition_D, x)

    def cancel(self, key: Hashable) -> bool:
        """Drop a candidate before the next step. False if it was not under way (any more)."""
        with self._lock:
            return self._tracks.pop(key, None) is not None

    def progress(self) -> dict[Hashable, tuple[int, int]]:
        """Of every candidate under way: steps done and steps asked for."""
        with self._lock:
            return {key: (track.step, track.request.steps) for key, track in self._tracks.items()}

    def step(self) -> list[Finished]:
        """One UNet call for as many candidates as fit; returns those that finished with it.

        A lost device (torch.AcceleratorError) is nobody's own failure: it is raised, with every candidate where it was.
        """
        chosen = self._choose()
        if not chosen:
            return []
        with torch.inference_mode():
            moves = self._move(chosen)
        finished = []
        with self._lock:
            for track, move in zip(chosen, moves, strict=True):
                if self._tracks.get(track.key) is not track:  # cancelled during the call
                    continue
                if isinstance(move, FoleyError):
                    finished.append(Finished(track.key, error=move))
                else:
                    track.x, track.earlier = move
                    track.step += 1
                    if track.step < track.request.steps:
                        continue
                    # a copy, made outside inference mode: an ordinary tensor that does not hold on to the whole batch
                    finished.append(Finished(track.key, latent=track.x.clone()))
                del self._tracks[track.key]
        return finished

    def run(self, requests: Sequence[SampleRequest], on_step: Callable[[int, int], None] | None = None) -> list[np.ndarray]:
        """Sample all requests; latents (C, W, H) in their order. `on_step(done, all)` counts candidate steps.

        Raises the first error of any of them, after taking the others out. Needs the engine to itself.
        """
        if self._tracks:
            raise ValueError(f"run needs an idle engine, but {len(self)} candidates are under way; submit and step instead")
        latents: dict[Hashable, np.ndarray] = {}
        total = sum(request.steps for request in requests)
        try:
            for key, request in enumerate(requests):
                self.submit(key, request)
            while self._tracks:
                for item in self.step():
                    if item.error is not None:
                        raise item.error
                    if item.latent is not None:
                        latents[item.key] = item.latent.cpu().numpy()
                if on_step is not None:
                    left = sum(track.request.steps - track.step for track in self._tracks.values())
                    on_step(total - left, total)
        finally:
            for key in range(len(requests)):
                self.cancel(key)
        return [latents[key] for key in range(len(requests))]

    def _choose(self) -> list[_Track]:
        """The oldest candidate, and in order of arrival those with rows of its shape that still fit.

        The oldest always moves, also when its windows alone are more rows than `max_rows`.
        """
        with self._lock:
            waiting = list(self._tracks.values())
        chosen: list[_Track] = []
        rows = 0
        for track in waiting:
            if track.row_shape == waiting[0].row_shape and (not chosen or rows + track.rows <= self.max_rows):
                chosen.append(track)
                rows += track.rows
        return chosen

    def _move(self, tracks: list[_Track]) -> list[tuple[Tensor, Earlier] | FoleyError]:
        """Where one step takes each track: its next x and what a multistep method remembers, or its error. Changes no track."""
        try:
            x0 = self._predict(tracks)
            moves = [self._advance(track, x0[index]) for index, track in enumerate(tracks)]
            # one answer for all tracks: on a GPU each question is a wait
            finite = torch.stack([x.isfinite().all() for x, _ in moves]).tolist()
        except torch.AcceleratorError:
            raise
        except (FoleyError, RuntimeError) as error:
            if len(tracks) == 1:
                return [_failure(tracks[0], str(error))]
            # one candidate's failure is not its mates': each is tried alone, and only those that fail again end
            return [move for track in tracks for move in self._move([track])]
        return [
            move if ok else _failure(track, "the latent became NaN or infinite; try a lower guidance")
            for track, move, ok in zip(tracks, moves, finite, strict=True)
        ]

    def _predict(self, tracks: list[_Track]) -> list[Tensor]:
        """What the network says each track's x_0 is, (C, W, H) float32, from one call.

        A row is a track's latent, or a window of it; guided rows have a second one for the prediction without a condition.
        """
        frames = [track.frames() for track in tracks]
        owners = [track for track, windows in zip(tracks, frames, strict=True) for _ in windows]
        guided = guided_rows([track.guidance for track in owners])
        x = torch.stack([_seen(track.x, window) for track, windows in zip(tracks, frames, strict=True) for window in windows])
        levels = [track.levels[track.step] for track in owners]
        timestep_B = torch.tensor([level.timestep for level in levels], device=self.device)
        condition_BD = torch.stack([track.condition_D for track in owners])
        predicted = self.denoise(
            torch.cat([x, x[guided]]).to(self.dtype),
            torch.cat([timestep_B, timestep_B[guided]]),
            torch.cat([condition_BD, self.null_D.expand(len(guided), -1)]).to(self.dtype),
        ).float()
        conditional = predicted[: len(owners)]
        if guided:
            scale_B = torch.tensor([owners[row].guidance for row in guided], device=self.device)
            conditional = conditional.clone()
            conditional[guided] = combine(conditional[guided], predicted[len(owners) :], scale_B)
        alpha, sigma = torch.tensor([[s.alpha, s.sigma] for s in levels], device=self.device).T.reshape(2, -1, 1, 1, 1)
        rows = iter(to_x0(conditional, x, alpha, sigma, self.prediction))
        return [_whole(list(islice(rows, len(windows))), windows, track) for track, windows in zip(tracks, frames, strict=True)]

    def _advance(self, track: _Track, x0: Tensor) -> tuple[Tensor, Earlier]:
        """The track's own sampler's step, with the track's own noise."""
        request, s, t = track.request, track.levels[track.step], track.levels[track.step + 1]
        noise = None
        if request.eta > 0:
            noise = clip_noise(request.seed, request.candidate, track.step, request.shape).to(self.device)
        x = METHODS[request.sampler].step(track.x, x0, s, t, earlier=track.earlier, eta=request.eta, noise=noise)
        return x, (x0, s)


def _seen(x: Tensor, frames: Tensor | None) -> Tensor:
    return x if frames is None else x[:, frames.to(x.device)]


def _whole(parts: list[Tensor], frames: list[Tensor | None], track: _Track) -> Tensor:
    """A track's latent out of its windows. Blending x_0 is blending the prediction: one is linear in the other."""
    windows = [window for window in frames if window is not None]
    return blend(parts, windows, track.request.shape[1]) if windows else parts[0]


def _failure(track: _Track, reason: str) -> GenerationError:
    return GenerationError(f"sampling failed at step {track.step + 1} of {track.request.steps}: {reason}")


def _check(request: SampleRequest, train_steps: int, width: int) -> Tensor:
    """The condition (D,) as a tensor of our own. Raises PromptError for what no sampler can do, with the value seen."""
    if request.sampler not in METHODS:
        raise PromptError(f"unknown sampler {request.sampler!r}; choose one of: {', '.join(METHODS)}")
    if not (isinstance(request.steps, Integral) and 1 <= request.steps <= train_steps):
        raise PromptError(f"steps {request.steps} must be a whole number from 1 to {train_steps}")
    if not (math.isfinite(request.guidance) and request.guidance >= 0):
        raise PromptError(f"guidance {request.guidance} must be a number of 0 or more")
    if not 0 <= request.guided_above <= request.guided_below:
        raise PromptError(f"guidance from noise level {request.guided_above} to {request.guided_below} is no range from 0 up")
    if not 0 <= request.eta <= 1:
        raise PromptError(f"eta {request.eta} must lie between 0 and 1")
    if request.window is not None and request.window < 1:
        raise PromptError(f"window {request.window} must be at least 1 latent frame")
    if len(request.shape) != 3 or min(request.shape) < 1:
        raise PromptError(f"latent shape {request.shape} must be three sizes (C, W, H) of at least 1")
    given = request.condition_D
    # copied: the caller's array may be a read-only view of shared memory, or change later
    condition_D = torch.from_numpy(np.array(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=np.float32))
    if condition_D.shape != (width,):
        raise PromptError(f"condition has shape {tuple(condition_D.shape)}, but this model takes ({width},)")
    if not condition_D.isfinite().all():
        raise PromptError("condition holds NaN or infinite values")
    return condition_D
