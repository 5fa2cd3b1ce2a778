"""condition + seed -> latent: the UNet behind the step engine, which is the only sampling loop there is."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foley_ray.checkpoint import load_part, read_info
from foley_ray.columns import (
    CANDIDATE,
    CONDITION,
    DURATION_S,
    ETA,
    GUIDANCE,
    GUIDED_ABOVE,
    GUIDED_BELOW,
    LATENT,
    LOOP,
    SAMPLER,
    SEED,
    STEPS,
    Batch,
    Column,
    ragged,
    require,
)
from foley_ray.diffusion.engine import SampleRequest, StepEngine
from foley_ray.diffusion.schedule import Schedule
from foley_ray.models.unet import Denoiser
from foley_ray.spec import WINDOW_S


class SampleStage:
    """Every row is one candidate; rows with different steps, guidance, samplers and durations share UNet calls."""

    requires: Sequence[Column] = (
        CONDITION,
        SEED,
        CANDIDATE,
        STEPS,
        GUIDANCE,
        GUIDED_ABOVE,
        GUIDED_BELOW,
        SAMPLER,
        ETA,
        DURATION_S,
    )
    provides: Sequence[Column] = (LATENT,)

    def __init__(self, model: Path, device: str = "cpu", max_rows: int = 16, clap: Any = None):
        """`clap` is the model's, if it is loaded already: its embedding of no words is the null condition."""
        info = read_info(model, needs=("unet", "clap"))
        self.spec = info.model.audio
        denoiser = Denoiser(load_part(model, "unet")).to(torch.device(device)).eval()
        with torch.inference_mode():
            null_D = (clap or load_part(model, "clap")).text_embed([""])[0]
        self.engine = StepEngine(
            denoiser,
            Schedule.from_config(info.model.diffusion),
            prediction=info.model.diffusion.prediction,
            null_condition_D=null_D,
            max_rows=max_rows,
            device=torch.device(device),
        )

    def __call__(self, batch: Batch, on_step: Callable[[int, int], None] | None = None) -> Batch:
        """Adds latents (C, W, H). `on_step(done, all)` counts candidate steps."""
        return self.with_latents(batch, self.engine.run(self.requests(batch), on_step=on_step))

    def requests(self, batch: Batch) -> list[SampleRequest]:
        """What each row asks of the engine, for a runtime that steps it itself."""
        rows = require(batch, self.requires, "sample")
        loops = batch.get(LOOP.name, [False] * rows)
        return [
            SampleRequest(
                condition_D=np.asarray(batch[CONDITION.name][row], dtype=np.float32),
                seed=int(batch[SEED.name][row]),
                candidate=int(batch[CANDIDATE.name][row]),
                steps=int(batch[STEPS.name][row]),
                guidance=float(batch[GUIDANCE.name][row]),
                guided_above=float(batch[GUIDED_ABOVE.name][row]),
                guided_below=float(batch[GUIDED_BELOW.name][row]),
                sampler=batch[SAMPLER.name][row],
                eta=float(batch[ETA.name][row]),
                shape=self.spec.latent_shape(float(batch[DURATION_S.name][row])),
                window=self.spec.latent_frames(WINDOW_S),
                loop=bool(loops[row]),
            )
            for row in range(rows)
        ]

    def with_latents(self, batch: Batch, latents: Iterable[np.ndarray]) -> Batch:
        """The batch with its rows' latents (C, W, H) added."""
        return {**batch, LATENT.name: ragged(np.asarray(latent, dtype=np.float32) for latent in latents)}
