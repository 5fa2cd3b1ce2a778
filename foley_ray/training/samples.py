"""What a half-trained part makes of a few rows, to look at and listen to while it trains (TensorBoard, `samples_every`)."""

from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from torch import Tensor

from foley_ray.audio.mel import LOG_MEL_MAX, LOG_MEL_MIN, LogMel, griffin_lim
from foley_ray.diffusion.engine import SampleRequest, StepEngine
from foley_ray.models.vae import decode, encode
from foley_ray.training.loop import Batch
from foley_ray.training.tasks.base import TrainingTask
from foley_ray.training.tasks.clap import ClapTask
from foley_ray.training.tasks.diffusion import DiffusionTask
from foley_ray.training.tasks.vae import VaeTask
from foley_ray.training.tasks.vocoder import VocoderTask

ROWS = 4
STEPS = 20
GUIDANCE = 2.5


@dataclass(frozen=True)
class Sample:
    """One picture (values 0..1, rows by columns), and the sound it shows where there is one."""

    name: str
    picture: np.ndarray
    wave_T: np.ndarray | None = None

    @property
    def colours(self) -> np.ndarray:
        """The picture as RGB (rows, columns, 3), 0..1, low frequencies at the bottom."""
        rgb: np.ndarray = matplotlib.colormaps["magma"](self.picture[::-1])[..., :3]
        return rgb


@torch.no_grad()
def samples(task: TrainingTask, batch: Batch) -> list[Sample]:
    """A task's samples for the first rows of a batch, with the weights as they are. Its modules keep their modes."""
    few = {name: value[:ROWS] for name, value in batch.items()}
    modules = [module for part in task.parts().values() for module in part.modules()]
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        return _made(task, few)
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _made(task: TrainingTask, batch: Batch) -> list[Sample]:
    audio = task.config.audio
    if isinstance(task, ClapTask):
        audio_BD, text_BD, _ = task.clap(batch["wave"], batch["caption"], audio.sample_rate_hz)
        return [Sample("similarity of sounds (rows) and captions", (audio_BD @ text_BD.T).clamp(0, 1).cpu().numpy())]
    if isinstance(task, DiffusionTask):
        mel_BFM = _sampled(task, batch)
        return _seen("sampled", mel_BFM, griffin_lim(mel_BFM, audio))
    log_mel = LogMel(audio).to(batch["wave"].device)
    mel_BFM = log_mel(batch["wave"])
    real = _seen("real", mel_BFM, batch["wave"])
    if isinstance(task, VaeTask):
        return [*real, *_seen("rebuilt", decode(task.vae, encode(task.vae, mel_BFM).mean))]
    assert isinstance(task, VocoderTask)
    wave_BT = task.vocoder(mel_BFM)
    return [*real, *_seen("vocoded", log_mel(wave_BT), wave_BT)]


def _sampled(task: DiffusionTask, batch: Batch) -> Tensor:
    """Log-mels (B, F, M) of the rows' conditions, always from the same noise, so that steps can be compared."""
    condition_BD = task.embed(batch)
    if task.tuning is not None:
        condition_BD = task.tuning(condition_BD)
    audio, diffusion, device = task.config.audio, task.config.diffusion, condition_BD.device
    engine = StepEngine(task.denoiser, task.schedule, diffusion.prediction, task.null(device), device=device)
    shape = audio.latent_shape(audio.clip_s)
    requests = [SampleRequest(row_D, 0, row, STEPS, GUIDANCE, "dpmpp-2m", shape) for row, row_D in enumerate(condition_BD)]
    latent_BCWH = torch.from_numpy(np.stack(engine.run(requests))).to(device) / task.latent_scale
    return decode(task.frozen["vae"], latent_BCWH)


def _seen(name: str, mel_BFM: Tensor, wave_BT: Tensor | None = None) -> list[Sample]:
    found = []
    for row, mel_FM in enumerate(mel_BFM.float().cpu().numpy()):
        picture = ((mel_FM.T - LOG_MEL_MIN) / (LOG_MEL_MAX - LOG_MEL_MIN)).clip(0, 1)
        found.append(Sample(f"{name}/{row}", picture, None if wave_BT is None else wave_BT[row].float().cpu().numpy()))
    return found
