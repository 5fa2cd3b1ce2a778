"""Whole configurations by name. A preset is a function that returns one; a variant copies one and changes fields."""

from collections.abc import Callable

from foley_ray.config import (
    ClapConfig,
    DiffusionConfig,
    ModelConfig,
    Task,
    TrainConfig,
    UNetConfig,
    VaeConfig,
    VocoderConfig,
)
from foley_ray.errors import ConfigError
from foley_ray.settings import Settings
from foley_ray.spec import AudioSpec


class Preset(Settings):
    """A named, complete configuration: a model and how each of its parts is trained."""

    name: str
    model: ModelConfig
    training: dict[Task, TrainConfig]


def tiny() -> Preset:
    """Real classes, under 2 M parameters, for tests and demonstrations: sounds like nothing, runs in seconds."""
    return Preset(
        name="tiny",
        model=ModelConfig(
            audio=AudioSpec(clip_s=1.0),
            clap=ClapConfig(
                embed_dim=32,
                cnn_channels=(8, 16, 32, 64),
                window_s=1.0,
                text_width=16,
                text_heads=2,
                text_layers=1,
            ),
            unet=UNetConfig(channels=(16, 32), layers_per_block=1, head_channels=8, norm_groups=8),
            vae=VaeConfig(channels=(8, 16, 16), layers_per_block=1, norm_groups=4, mid_attention=False),
            vocoder=VocoderConfig(kind="istft", channels=64, layers=2),
        ),
        training={
            "clap": TrainConfig(steps=60, batch_size=8, lr=1e-3, warmup_steps=5, ema_decay=0.95),
            "vae": TrainConfig(steps=60, batch_size=4, lr=2e-3, warmup_steps=5, ema_decay=0.95, adversarial_from=50),
            "vocoder": TrainConfig(
                steps=40,
                batch_size=4,
                lr=1e-3,
                betas=(0.8, 0.99),
                ema_decay=0.9,
                clip_grad_norm=100.0,
                segment_samples=8192,
                critic_channels=4,
            ),
            "diffusion": TrainConfig(steps=100, batch_size=8, lr=2e-3, warmup_steps=5, ema_decay=0.95),
            "finetune": TrainConfig(steps=60, batch_size=8, lr=1e-3, warmup_steps=5, ema_decay=0.95),
        },
    )


def default() -> Preset:
    """The model that ships: the paper's latent (8 x 86 x 20 for 4 s) at sizes that two CPU cores train and run."""
    return Preset(
        name="default",
        model=ModelConfig(
            clap=ClapConfig(hop_samples=512, cnn_channels=(32, 64, 128, 256), text_width=96, text_heads=4, text_layers=3),
            # attention at half resolution would be half of a training step's cost
            unet=UNetConfig(channels=(32, 64, 96, 160), attention_from=2),
            vae=VaeConfig(channels=(32, 64, 128), layers_per_block=1, norm_groups=16, mid_attention=False),
            vocoder=VocoderConfig(kind="istft", channels=256, layers=8),
            diffusion=DiffusionConfig(prediction="v"),
        ),
        training={
            "clap": TrainConfig(
                steps=4000, batch_size=24, lr=1e-3, weight_decay=0.01, warmup_steps=100, final_lr_scale=0.05,
                ema_decay=0.999, balance=0.6, augment=True, word_dropout=0.15,
            ),
            "vae": TrainConfig(
                steps=8000, batch_size=8, lr=5e-4, betas=(0.5, 0.9), warmup_steps=200, ema_decay=0.999,
                segment_samples=22528, adversarial_from=4000, adversarial_weight=0.5, balance=0.6, augment=True,
                final_lr_scale=0.1,
            ),
            "vocoder": TrainConfig(
                steps=40000, batch_size=8, lr=5e-4, betas=(0.8, 0.99), warmup_steps=200, ema_decay=0.999,
                segment_samples=16384, critic_channels=4, clip_grad_norm=100.0, balance=0.6, augment=True, final_lr_scale=0.1,
            ),
            "diffusion": TrainConfig(
                steps=20000, batch_size=8, lr=4e-4, weight_decay=0.01, warmup_steps=500, ema_decay=0.9995,
                balance=0.6, augment=True, snr_gamma=5.0, final_lr_scale=0.1,
            ),
            "finetune": TrainConfig(
                steps=10000, batch_size=8, lr=2e-4, weight_decay=0.01, warmup_steps=200, ema_decay=0.9995,
                balance=0.6, augment=True, snr_gamma=5.0, final_lr_scale=0.1,
            ),
        },
    )  # fmt: skip


def small() -> Preset:
    """The paper's LDM-S (system.md A.2): UNet of 128 channels, 185 M parameters, 22.05 kHz."""
    return Preset(
        name="small",
        model=ModelConfig(
            clap=ClapConfig(audio_tower="htsat-tiny", sample_rate_hz=48000, window_s=10.0, hop_samples=480, fmin_hz=50,
                            fmax_hz=14000, text_width=512, text_heads=8, text_layers=12),
        ),
        training=_paper_training(),
    )  # fmt: skip


def large() -> Preset:
    """The paper's LDM-L: UNet of 192 channels, 416 M parameters, 16 kHz, 64 mels, resampled afterwards."""
    return Preset(
        name="large",
        model=ModelConfig(
            audio=AudioSpec(sample_rate_hz=16000, hop_samples=160, mel_bands=64),
            clap=ClapConfig(audio_tower="htsat-base", sample_rate_hz=48000, window_s=10.0, hop_samples=480, fmin_hz=50,
                            fmax_hz=14000, text_width=512, text_heads=8, text_layers=12),
            unet=UNetConfig(channels=(192, 384, 576, 960)),
            vocoder=VocoderConfig(channels=1024, upsample_rates=(5, 4, 2, 2, 2), upsample_kernels=(16, 16, 8, 4, 4)),
        ),
        training=_paper_training(),
    )  # fmt: skip


def _paper_training() -> dict[Task, TrainConfig]:
    """Learning rates, batch sizes and step counts of system.md A.2 and A.3 where it has them."""
    ldm = TrainConfig(steps=800_000, batch_size=8, lr=3e-5, warmup_steps=2000, checkpoint_every=5000)
    return {
        "clap": TrainConfig(steps=100_000, batch_size=64, lr=1e-4, weight_decay=0.01, warmup_steps=2000),
        "vae": TrainConfig(steps=1_445_000, batch_size=4, lr=4.5e-5, betas=(0.5, 0.9), adversarial_from=50_001,
                           adversarial_weight=0.5, kl_weight=1e-6, checkpoint_every=5000),
        "vocoder": TrainConfig(steps=1_080_000, batch_size=16, lr=2e-4, betas=(0.8, 0.99), clip_grad_norm=1000.0,
                               segment_samples=8192, checkpoint_every=5000),
        "diffusion": ldm,
        "finetune": ldm.model_copy(update={"steps": 100_000}),
    }  # fmt: skip


PRESETS: dict[str, Callable[[], Preset]] = {f.__name__: f for f in (tiny, default, small, large)}


def preset(name: str) -> Preset:
    """The preset of that name. Raises ConfigError naming those that exist."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]()
