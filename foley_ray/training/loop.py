"""The training loop: Accelerate over any iterable of batches. Knows neither Ray nor what a model is.

A task (tasks.py) brings phases: modules that turn a batch into losses. Each phase has its own optimiser and is stepped in turn
(generator, then discriminator). All randomness of a step is a function of (seed, step, rank), so that a resumed run draws what
the unbroken one would have drawn.
"""

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from foley_ray.config import TrainConfig
from foley_ray.errors import NonFiniteLoss, TrainingError
from foley_ray.training import sharding

STATE_FILE = "state.pt"
MANIFEST_FILE = "manifest.json"

Batch = dict[str, Any]
Losses = dict[str, Tensor]


class Phase(nn.Module):
    """One optimiser's part of a step: its parameters, and the losses that move them.

    `forward(batch, step, carry)` returns scalars; "total" is minimised, all are logged. `carry` hands results of an earlier
    phase of the same step to a later one (the generator's wave to the discriminator).
    """

    starts_at: int = 0
    """First step at which the phase runs."""

    def forward(self, batch: Batch, step: int, carry: dict[str, Tensor]) -> Losses:
        """The losses of one batch."""
        raise NotImplementedError


@dataclass
class Hooks:
    """What the loop tells its surroundings. The defaults tell nobody."""

    log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
    checkpoint: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
    """Called on every rank at every checkpoint step; it may call `Trainer.save`."""
    sample: Callable[[int, Batch], None] = lambda step, batch: None
    """Called on every rank every `samples_every` steps, with the batch just learned from."""


@dataclass
class Meter:
    """Running means since the last log line, and the rates that go with them."""

    started: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: dict[str, float]) -> None:
        """Count one step's values."""
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self, rows_per_step: int, steps_left: int) -> dict[str, float]:
        """Means, samples per second over all workers, share of time spent waiting for data, seconds left; then start over."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        metrics = {name: total / self.counts[name] for name, total in self.sums.items()}
        metrics["samples_per_s"] = rows_per_step * self.steps / elapsed
        metrics["data_wait"] = self.waited_s / elapsed
        metrics["left_s"] = steps_left * elapsed / max(self.steps, 1)
        self.started, self.waited_s, self.steps, self.sums, self.counts = time.monotonic(), 0.0, 0, {}, {}
        return metrics


def lr_scale(step: int, config: TrainConfig) -> float:
    """Linear warm-up from 1/warmup, then a cosine from 1 to `final_lr_scale` at the last step."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.final_lr_scale + (1 - config.final_lr_scale) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class Trainer:
    """The phases of one task, made ready for this process's place in the group, and everything that must survive a restart."""

    def __init__(self, phases: dict[str, Phase], averaged: nn.Module, config: TrainConfig, accelerator: Accelerator):
        self.config = config
        self.accelerator = accelerator
        self.averaged = averaged  # the modules that end up in the model folder; EMA follows their parameters
        self.sharded = accelerator.is_fsdp2
        self._whole = copy.deepcopy(averaged) if self.sharded else averaged
        self.step = 0
        self.rows = 0  # drawn so far, over all workers
        self.bare = phases
        self.phases: dict[str, nn.Module] = {}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        for name, phase in phases.items():
            trainable = [parameter for parameter in phase.parameters() if parameter.requires_grad]
            optimiser = torch.optim.AdamW(trainable, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
            self.phases[name], self.optimisers[name] = accelerator.prepare(phase, optimiser)
        # of the pieces, where there are such; torch copies many of those one by one only
        self.ema = EMAModel(averaged.parameters(), decay=config.ema_decay, foreach=not self.sharded)
        self.ema.to(accelerator.device)

    @property
    def rows_per_step(self) -> int:
        """Over all workers."""
        workers: int = self.accelerator.num_processes
        return self.config.batch_size * self.config.accumulate * workers

    def train(self, batches: Iterable[Batch], hooks: Hooks | None = None) -> dict[str, float]:
        """Run from the current step to the last. Returns the last metrics.

        Raises NonFiniteLoss before the optimiser moves if any rank's loss is NaN or infinite, and TrainingError if the batches
        end too early.
        """
        hooks = hooks or Hooks()
        config = self.config
        iterator = iter(batches)
        meter = Meter()
        metrics: dict[str, float] = {}
        while self.step < config.steps:
            asked = time.monotonic()
            batch = self._next(iterator)
            meter.waited_s += time.monotonic() - asked
            meter.add(self._train_step(batch))
            self.step += 1
            self.rows += self.rows_per_step
            last = self.step == config.steps
            if self.step % config.log_every == 0 or last:
                metrics = meter.read(self.rows_per_step, config.steps - self.step)
                metrics["lr"] = config.lr * lr_scale(self.step - 1, config)
                hooks.log(self.step, metrics)
            if config.samples_every and (self.step % config.samples_every == 0 or last):
                hooks.sample(self.step, batch)
            if self.step % config.checkpoint_every == 0 or last:
                hooks.checkpoint(self.step, metrics)
        return metrics

    def _next(self, iterator: Iterator[Batch]) -> Batch:
        try:
            batch = next(iterator)
        except StopIteration:
            raise TrainingError(f"the data ended at step {self.step} of {self.config.steps}; give more rows") from None
        return self.on_device(batch)

    def on_device(self, batch: Batch) -> Batch:
        """The same batch with its tensors where the model is."""
        device = self.accelerator.device
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}

    def _train_step(self, batch: Batch) -> dict[str, float]:
        """Each phase in turn: losses and backward of every micro-batch, clip, step; then the moving average."""
        config, rank = self.config, self.accelerator.process_index
        torch.manual_seed(hash((config.seed, self.step, rank)) % 2**63)
        values: dict[str, float] = {}
        parts = list(micro_batches(batch, config.accumulate))
        carries: list[dict[str, Tensor]] = [{} for _ in parts]
        for name, phase in self.phases.items():
            if self.step < self.bare[name].starts_at:
                continue
            optimiser = self.optimisers[name]
            for group in optimiser.param_groups:
                group["lr"] = config.lr * lr_scale(self.step, config)
            prefix = f"{name}/" if len(self.phases) > 1 else ""
            for index, (part, carry) in enumerate(zip(parts, carries, strict=True)):
                last = index == len(parts) - 1
                with nullcontext() if last else self.accelerator.no_sync(phase):  # gradients meet once, at the last
                    with self.accelerator.autocast():
                        losses: Losses = phase(part, self.step, carry)
                    self._stop_unless_finite(name, losses, part)
                    self.accelerator.backward(losses["total"] / len(parts))
                for key, value in losses.items():
                    values[f"{prefix}{key}"] = values.get(f"{prefix}{key}", 0.0) + float(value.detach()) / len(parts)
            norm = self.accelerator.clip_grad_norm_(phase.parameters(), config.clip_grad_norm)
            if not math.isfinite(float(norm)):  # the same on every rank: gradients are averaged by now
                raise self._not_finite(name, "gradient", losses, batch)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            values[f"{prefix}grad_norm"] = float(norm)
        self.ema.step(self.averaged.parameters())
        return values

    def _stop_unless_finite(self, phase: str, losses: Losses, batch: Batch) -> None:
        """All ranks agree before any of them moves or leaves: one that left alone would hang the others."""
        here = torch.isfinite(losses["total"].detach()).float().reshape(1)
        if float(self.accelerator.gather(here).min()) == 1.0:
            return
        raise self._not_finite(phase, "loss", losses, batch)

    def _not_finite(self, phase: str, what: str, losses: Losses, batch: Batch) -> NonFiniteLoss:
        seen = {name: round(float(value.detach()), 4) for name, value in losses.items()}
        rows = ", ".join(row[:12] for row in batch.get("sha256", [])[:4])
        return NonFiniteLoss(
            f"{phase} {what} is not finite at step {self.step} (this worker: {seen}; rows {rows}...): its weights were not "
            "changed; lower lr or clip_grad_norm, or look at these rows, then run the same command to resume"
        )

    @contextmanager
    def averaged_weights(self) -> Iterator[nn.Module]:
        """Inside, the averaged modules hold their moving averages: for saving, sampling and scoring. Gives those modules.

        Of a sharded run, all ranks must enter, and the first is given copies in one piece.
        """
        parameters = list(self.averaged.parameters())
        newest = [parameter.detach().clone() for parameter in parameters]
        self.ema.copy_to(parameters)
        try:
            if self.sharded:
                sharding.fill_whole(self._whole, self.averaged)
            yield self._whole
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, newest, strict=True):
                    parameter.copy_(value)

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs. Of a sharded run, all ranks must call, and the first gets it in one piece.

        Random states need no place in it: those of a step are drawn anew from (seed, step, rank).
        """
        phases, optimisers, ema = {}, {}, self.ema.state_dict()
        for name, phase in self.bare.items():
            phases[name], optimisers[name] = sharding.whole_state(phase, self.optimisers[name])
        ema["shadow_params"] = sharding.whole_tensors(ema["shadow_params"])
        return {"step": self.step, "phases": phases, "optimisers": optimisers, "ema": ema}

    def save(self, folder: Path, state: dict[str, Any] | None = None) -> None:
        """`state` as state.pt; manifest.json, written last, has size and digest of all that is there."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state or self.state(), folder / STATE_FILE)
        files = {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _file_digest(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        (folder / MANIFEST_FILE).write_text(json.dumps({"step": self.step, "rows": self.rows, "files": files}, indent=1))

    def load(self, folder: Path) -> None:
        """Go on where `save` was called. Raises TrainingError if the folder is torn or of another model."""
        manifest = check_whole(folder)
        state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        try:
            for name, phase in self.bare.items():
                sharding.spread_state(phase, self.optimisers[name], state["phases"][name], state["optimisers"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainingError(f"checkpoint {folder} is of another task or preset: {error}") from None
        state["ema"]["shadow_params"] = sharding.spread_tensors(state["ema"]["shadow_params"], self.ema.shadow_params)
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.accelerator.device)
        self.step = state["step"]
        self.rows = manifest["rows"]


def micro_batches(batch: Batch, parts: int) -> Iterator[Batch]:
    """A batch cut into equal runs of rows. Raises ValueError if its rows do not divide."""
    rows = len(next(iter(batch.values())))
    if rows % parts:
        raise ValueError(f"{rows} rows cannot be cut into {parts} equal parts")
    size = rows // parts
    for start in range(0, rows, size):
        yield {name: value[start : start + size] for name, value in batch.items()}


def check_whole(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files have the sizes and digests it names; raises TrainingError if they do not."""
    manifest = folder / MANIFEST_FILE
    if not manifest.is_file():
        raise TrainingError(f"checkpoint {folder} is incomplete (no {MANIFEST_FILE}); remove it to start over")
    try:
        content: dict[str, Any] = json.loads(manifest.read_text())
        for name, known in content["files"].items():
            path = folder / name
            seen = path.stat().st_size if path.is_file() else 0
            if seen != known["bytes"]:
                raise TrainingError(f"checkpoint file {path} has {seen} bytes, not {known['bytes']}; remove {folder}")
            if _file_digest(path) != known["sha256"]:
                raise TrainingError(f"checkpoint file {path} is damaged (its digest is another); remove {folder}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"checkpoint {folder} is damaged ({error}); remove it") from None
    return content


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
