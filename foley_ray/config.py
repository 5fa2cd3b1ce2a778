"""Typed settings: of models, of their training, of clips. Imports neither torch nor ray, so that reading one stays instant.

The model half of a configuration is stored beside the weights (foley.json), the training half beside the run. Whole
configurations are in presets.py.
"""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from foley_ray.errors import ConfigError, ModelError
from foley_ray.settings import Settings, describe
from foley_ray.spec import MAX_DURATION_S, MIN_DURATION_S, AudioSpec

Task = Literal["clap", "vae", "vocoder", "diffusion", "finetune"]
TASKS: tuple[Task, ...] = get_args(Task)
Sampler = Literal["ddim", "dpmpp-2m"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
MAX_SEED = 2**31 - 1
MAX_NOISE = 1000.0
"""More, as sigma over alpha, than any schedule starts with; the paper's, and AudioLDM's, starts with 84."""


class ClapConfig(Settings):
    """laion-clap's CLAP: an audio tower and a text tower (CLIP's byte-pair vocabulary) that meet in `embed_dim` values."""

    embed_dim: int = Field(512, ge=8)
    audio_tower: Literal["cnn6", "htsat-tiny", "htsat-base"] = "cnn6"
    cnn_channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    sample_rate_hz: int = 22050
    window_s: float = Field(4.0, gt=0, description="what the audio tower hears; shorter sound is repeated to fill it")
    n_fft: int = 1024
    hop_samples: int = 320
    fmin_hz: int = 30
    fmax_hz: int = 10000
    text_width: int = Field(256, ge=8)
    text_heads: int = 4
    text_layers: int = 4


class RobertaClapConfig(Settings):
    """A published CLAP: RoBERTa reads, HTSAT hears. The sizes of its networks are in the part's own config.json."""

    kind: Literal["roberta"] = "roberta"
    embed_dim: int = Field(512, ge=8)
    hears: bool = Field(True, description="false for the text tower alone of a diffusers AudioLDM folder: it cannot rank")
    sample_rate_hz: int = 48000
    window_s: float = Field(10.0, gt=0, description="what the audio tower hears; shorter sound is repeated to fill it")
    n_fft: int = 1024
    hop_samples: int = 480
    mel_bands: int = 64
    fmin_hz: float = 50
    fmax_hz: float = 14000

    def require_hearing(self, task: str) -> None:
        """Raise ModelError if there is no audio tower."""
        if not self.hears:
            raise ModelError(
                f"cannot {task}: this model's CLAP is a text tower alone, as diffusers' AudioLDM folders have it, and ranks "
                "nothing; import again with --clap, the whole CLAP it was made from (or use foley generate --candidates 1)"
            )


class TuningConfig(Settings):
    """The trainable layer between CLAP's text embedding and the diffusion model (the paper's embedding tuning)."""

    kind: Literal["linear", "per_class", "none"] = "linear"
    classes: tuple[str, ...] = Field((), description="class names of `per_class`; filled from the dataset")


class UNetConfig(Settings):
    """diffusers' UNet2DConditionModel with AudioLDM's layout: self-attention only, condition beside the time embedding."""

    channels: tuple[int, ...] = (128, 256, 384, 640)
    layers_per_block: int = 2
    attention_from: int = Field(1, ge=0, description="first level with attention; each halves the resolution")
    head_channels: int = Field(32, ge=1)
    norm_groups: int = 32
    heads: int | None = Field(None, ge=1, description="the same number at every level, whatever head_channels says")

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `heads` where there is no such number, as models from before it are stored: their digests stay."""
        return {key: value for key, value in handler(self).items() if key != "heads" or value is not None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.attention_from > len(self.channels):
            raise ValueError(f"attention_from {self.attention_from} is below the last of {len(self.channels)} levels")
        for width in self.channels:
            split = self.heads or self.head_channels
            if width % self.norm_groups or width % split:
                raise ValueError(
                    f"UNet width {width} must be a multiple of norm_groups {self.norm_groups} "
                    f"and of {'heads' if self.heads else 'head_channels'} {split}"
                )
        return self


class VaeConfig(Settings):
    """diffusers' AutoencoderKL over a one-channel mel picture; two halvings give the latent factor of 4."""

    channels: tuple[int, ...] = (128, 256, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    mid_attention: bool = True


class VocoderConfig(Settings):
    """mel -> wave: HiFi-GAN V1 (transformers' class), or a frame-rate network with an inverse-STFT head (Vocos family)."""

    kind: Literal["hifigan", "istft"] = "hifigan"
    channels: int = 512
    upsample_rates: tuple[int, ...] = (8, 8, 2, 2)
    upsample_kernels: tuple[int, ...] = (16, 16, 4, 4)
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    layers: int = Field(8, description="blocks of the istft kind")


class DiffusionConfig(Settings):
    """The noise process (system.md A.2): scaled-linear betas over 1000 steps."""

    train_steps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    prediction: Literal["epsilon", "v"] = "epsilon"


class ModelConfig(Settings):
    """Everything that decides the shape of a model folder's parts."""

    audio: AudioSpec = AudioSpec()
    clap: ClapConfig | RobertaClapConfig = ClapConfig()
    tuning: TuningConfig = TuningConfig()
    unet: UNetConfig = UNetConfig()
    vae: VaeConfig = VaeConfig()
    vocoder: VocoderConfig = VocoderConfig()
    diffusion: DiffusionConfig = DiffusionConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        halvings = len(self.vae.channels) - 1
        if 2**halvings != self.audio.latent_factor:
            raise ValueError(
                f"a VAE of {len(self.vae.channels)} widths shrinks by {2**halvings}, but audio.latent_factor is "
                f"{self.audio.latent_factor}"
            )
        if self.vocoder.kind == "hifigan":
            product = 1
            for rate in self.vocoder.upsample_rates:
                product *= rate
            if product != self.audio.hop_samples:
                raise ValueError(f"vocoder.upsample_rates multiply to {product}, not to hop_samples {self.audio.hop_samples}")
        return self


class Augmentation(Settings):
    """How far a crop may be from its recording."""

    speed: float = Field(0.12, ge=0, le=1, description="half of the crops play up to e^this faster or slower")
    gain_db: float = Field(8.0, ge=0, description="each crop is up to this much quieter")
    tilt_db: float = Field(0.0, ge=0, description="half of the crops are up to this much brighter or duller three octaves up")
    mix_share: float = Field(0.2, ge=0, le=1, description="of the crops hold a second recording of the class")
    room_share: float = Field(0.3, ge=0, le=1, description="of the crops that end within the clip get a room's tail")
    rooms: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="class -> its own room_share: what was recorded dry, as it is mostly heard"
    )
    outdoors: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="class -> share of its crops that sound across open ground, with a long dark tail and echoes"
    )
    series: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {},
        description="class -> share of its crops that are an even series of the one recording; the others hold it once. "
        "Wordings under CLASS/series and CLASS/once are for these alone",
    )

    @property
    def classes(self) -> set[str]:
        """All that are named."""
        return {*self.rooms, *self.outdoors, *self.series}


USUAL_AUGMENTATION = Augmentation()


class TrainConfig(Settings):
    """How one task is trained. Batch size is per worker; lengths of time are in optimiser steps."""

    steps: int = Field(1000, ge=1)
    batch_size: int = Field(8, ge=1)
    accumulate: int = Field(1, ge=1, description="batches per worker whose gradients make one step")
    lr: float = Field(3e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    final_lr_scale: float = Field(1.0, ge=0, le=1, description="cosine decay ends at this share of lr; 1 keeps it constant")
    clip_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    seed: int = 0
    checkpoint_every: int = Field(500, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(10, ge=1)
    log_rows: bool = Field(False, description="write which rows each worker drew for each step, to RUN/rows")
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = Field(False, description="vae, diffusion, finetune: compute activations twice, hold few")
    sharding: Literal["none", "full"] = Field(
        "none", description="diffusion, finetune on GPUs: `full` cuts weights and optimiser over the workers (FSDP)"
    )
    samples_every: int = Field(0, ge=0, description="steps between samples in TensorBoard; 0 is never")
    balance: float = Field(0.0, ge=0, le=1, description="0 draws recordings equally often, 1 classes; between: a power")
    augment: bool = Field(False, description="vary each crop: speed, gain, mixture with another recording of the class, rooms")
    augmentation: Augmentation = Field(USUAL_AUGMENTATION, description="how much")
    word_dropout: float = Field(0.0, ge=0, lt=1, description="chance of each word of a caption to be left out")
    # vae and vocoder
    adversarial_from: int = Field(0, ge=0, description="step at which the discriminator joins")
    adversarial_weight: float = Field(1.0, ge=0)
    segment_samples: int | None = Field(None, ge=8192, description="train on a segment of the crop, the loudest of a few")
    critic_channels: int = Field(32, ge=4, multiple_of=4, description="width of the discriminators; HiFi-GAN has 32")
    feature_weight: float = Field(2.0, ge=0)
    mel_weight: float = Field(45.0, ge=0)
    kl_weight: float = Field(1e-4, ge=0, description="KL per latent value against L1 per mel value")
    decoder_only: bool = Field(
        False, description="vae: train a given one's decoder; the latents stay, and with them caches and diffusion models"
    )
    # clap
    audio_only: bool = Field(
        False, description="clap: train a given one's audio tower; texts stay where they are, and so do models told by them"
    )
    # diffusion and finetune
    condition_dropout: float = Field(0.1, ge=0, le=1)
    snr_gamma: float | None = Field(None, description="min-SNR loss weighting (arXiv 2303.09556); off when absent")
    lora_rank: int | None = Field(None, ge=1, description="adapt a given unet by LoRA of this rank (arXiv 2106.09685)")
    lora_alpha: float = Field(16.0, gt=0)


class ClipSettings(Settings):
    """How a clip is made: the same prompt, seed and settings give the same wave, wherever and beside whatever they run."""

    duration_s: float = Field(4.0, ge=MIN_DURATION_S, le=MAX_DURATION_S)
    loop: bool = Field(False, description="the end leads into the beginning; the length is rounded to whole latent frames")
    candidates: int = Field(3, ge=1, le=100)
    steps: int = Field(20, ge=1, le=1000)
    guidance: float = Field(2.5, ge=1.0, le=20.0, description="classifier-free guidance; 1 is none")
    guided_above: float = Field(0.4, ge=0.0, description="lowest sigma over alpha at which guidance works")
    guided_below: float = Field(16.0, ge=0.0, le=MAX_NOISE, description="highest; guided beyond it, clips are alike")
    sampler: Sampler = "dpmpp-2m"
    eta: float = Field(1.0, ge=0.0, le=1.0, description="noise put back at each step, of which the paper has 1; 0 is none")
    threshold: float | None = Field(None, ge=-1.0, le=1.0, description="score below which another draw is made")
    max_redraws: int = Field(3, ge=0, le=100, description="draws more at most, for the threshold or where all are near copies")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.guided_above > self.guided_below:
            raise ValueError(f"guided_above {self.guided_above:g} must not be more than guided_below {self.guided_below:g}")
        return self


USUAL = ClipSettings()
"""What every face of the product uses where nothing else is said."""


def override(train: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    """The same training settings with some keys replaced, checked. Raises ConfigError naming key, value and rule."""
    try:
        return TrainConfig.model_validate({**train.model_dump(), **changes})
    except ValidationError as error:
        raise ConfigError(describe(error, TrainConfig)) from None
