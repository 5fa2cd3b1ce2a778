"""The denoiser: AudioLDM's UNet as diffusers' UNet2DConditionModel, and the padding that its three halvings need.

The condition does not enter through cross-attention: it is projected and concatenated to the time embedding that every
residual block receives (FiLM, system.md A.2), and attention is over the latent alone.
"""

from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from foley_ray.config import ModelConfig


def build_unet(config: ModelConfig) -> UNet2DConditionModel:
    """A UNet with random weights: condition of clap.embed_dim values, attention from level `attention_from` down."""
    depth, plain = len(config.unet.channels), config.unet.attention_from
    return UNet2DConditionModel(
        sample_size=config.audio.latent_frames(config.audio.clip_s),
        in_channels=config.audio.latent_channels,
        out_channels=config.audio.latent_channels,
        block_out_channels=config.unet.channels,
        layers_per_block=config.unet.layers_per_block,
        norm_num_groups=config.unet.norm_groups,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * (depth - plain),
        up_block_types=("CrossAttnUpBlock2D",) * (depth - plain) + ("UpBlock2D",) * plain,
        # diffusers' historical name: this is the number of heads per level, not their width
        attention_head_dim=tuple(config.unet.heads or width // config.unet.head_channels for width in config.unet.channels),
        cross_attention_dim=config.unet.channels,  # as wide as the level: with no text tokens it attends to itself
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=config.clap.embed_dim,
        class_embeddings_concat=True,
    )


class Denoiser(nn.Module):
    """The UNet as the diffusion maths sees it: latents of any size in, predictions of the same size out."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet
        self.multiple = 2 ** (len(unet.config["block_out_channels"]) - 1)

    def forward(self, latent_BCWH: Tensor, timestep_B: Tensor, condition_BD: Tensor) -> Tensor:
        """(B, C, W, H), (B,) timesteps, (B, D) conditions -> (B, C, W, H).

        Pads both sides with zeros to a multiple of the UNet's stride and crops afterwards, as the paper's system does:
        (86, 20) -> (88, 24).
        """
        width, height = latent_BCWH.shape[-2:]
        pad_w, pad_h = -width % self.multiple, -height % self.multiple
        left, top = pad_w // 2, pad_h // 2
        padded = functional.pad(latent_BCWH, (top, pad_h - top, left, pad_w - left))
        predicted: Tensor = self.unet(padded, timestep_B, encoder_hidden_states=None, class_labels=condition_BD).sample
        return predicted[..., left : left + width, top : top + height]
