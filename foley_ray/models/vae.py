"""The mel VAE: a log-mel picture (B, F, M) to and from a latent (B, C, W, H) at a quarter of its size (system.md A.2).

The network is diffusers' AutoencoderKL, so a published AudioLDM `vae/` folder is the same thing.
"""

from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from foley_ray.config import ModelConfig


def build_vae(config: ModelConfig) -> AutoencoderKL:
    """A VAE with random weights."""
    depth = len(config.vae.channels)
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=config.audio.latent_channels,
        block_out_channels=config.vae.channels,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        layers_per_block=config.vae.layers_per_block,
        norm_num_groups=config.vae.norm_groups,
        mid_block_add_attention=config.vae.mid_attention,
        sample_size=config.audio.mel_bands,
        scaling_factor=1.0,  # set from the data's spread when the diffusion model is trained
    )


def encode(vae: AutoencoderKL, mel_BFM: Tensor) -> DiagonalGaussianDistribution:
    """Log-mel -> the distribution of its latent (B, C, W, H), not yet scaled. F must be a multiple of the latent factor."""
    return vae.encode(mel_BFM[:, None]).latent_dist


def decode(vae: AutoencoderKL, latent_BCWH: Tensor) -> Tensor:
    """Unscaled latent -> log-mel (B, F, M)."""
    mel_BFM: Tensor = vae.decode(latent_BCWH).sample[:, 0]
    return mel_BFM
