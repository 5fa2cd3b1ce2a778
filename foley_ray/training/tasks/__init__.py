"""What each model learns from a batch: one task per command, each a handful of phases over real losses.

    clap       sound and text      -> symmetric contrastive loss
    vae        mel                 -> L1 + KL, and from a set step a patch discriminator
    vocoder    mel of a segment    -> mel L1, feature matching, least-squares GAN over periods and scales
    diffusion  latent of a sound   -> noise (or velocity) loss, conditioned on the sound's own CLAP embedding
    finetune   latent of a sound   -> the same, conditioned on its caption's CLAP embedding through the tuning layer

A batch is `data.dataset.collate`'s: wave (B, T) at the model's rate, caption, class_id; or from a cache (data/cache.py) latent
and audio_embedding in place of the wave. Frozen parts are held outside `nn.Module`'s sight, so that neither optimiser nor DDP
nor checkpoints see them.
"""

from foley_ray.config import Task
from foley_ray.training.tasks.base import TrainingTask
from foley_ray.training.tasks.clap import ClapTask
from foley_ray.training.tasks.diffusion import DiffusionTask, FinetuneTask
from foley_ray.training.tasks.vae import VaeTask
from foley_ray.training.tasks.vocoder import VocoderTask

TASK_CLASSES: dict[Task, type[TrainingTask]] = {
    task.name: task for task in (ClapTask, VaeTask, VocoderTask, DiffusionTask, FinetuneTask)
}
