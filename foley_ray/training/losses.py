"""Losses as pure functions, one value per sample where that makes sense, so that tasks can weight, mask and log rows.

Knows no models and no optimisers. Shapes: B rows, D embedding values, N logits, F mel frames, M mel bands.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn


def contrastive_loss(audio_BD: Tensor, text_BD: Tensor, scale: Tensor | float, positives_BB: Tensor | None = None) -> Tensor:
    """CLAP's symmetric cross-entropy (arXiv 2211.06687, eq. 1) -> (B,), half audio to text, half text to audio.

    Embeddings are unit vectors, scale is the temperature's inverse. positives_BB (bool) marks pairs that belong together
    although they are not the same row, such as equal captions: they leave the denominator, neither pulled nor pushed.
    """
    logits_BB = scale * audio_BD @ text_BD.T
    if positives_BB is not None:
        others = positives_BB & ~torch.eye(len(logits_BB), dtype=torch.bool, device=logits_BB.device)
        logits_BB = logits_BB.masked_fill(others, -torch.inf)
    rows = torch.arange(len(logits_BB), device=logits_BB.device)
    to_text = nnf.cross_entropy(logits_BB, rows, reduction="none")
    to_audio = nnf.cross_entropy(logits_BB.T, rows, reduction="none")
    return (to_text + to_audio) / 2


def kl_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of a diagonal Gaussian from N(0, 1), mean over the latent values of a row: (B, ...) -> (B,)."""
    return _per_sample(0.5 * (mean.square() + log_variance.exp() - 1 - log_variance))


def l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference: (B, ...) -> (B,)."""
    return _per_sample((prediction - target).abs())


def mel_loss(prediction_BT: Tensor, target_BT: Tensor, mels: Iterable[nn.Module]) -> Tensor:
    """L1 between log-mel pictures of two waves, averaged over the given LogMels -> (B,).

    One LogMel is HiFi-GAN's loss; several window lengths (audio.mel.resolutions) also see clicks and fine pitch.
    """
    return torch.stack([l1_loss(mel(prediction_BT), mel(target_BT)) for mel in mels]).mean(0)


def hinge_discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """LDM's hinge loss on logits (B, ...) -> (B,): real above 1, generated below -1."""
    return 0.5 * (_per_sample(nnf.relu(1 - real)) + _per_sample(nnf.relu(1 + generated)))


def hinge_generator_loss(generated: Tensor) -> Tensor:
    """The generator's side of the hinge loss: logits (B, ...) -> (B,)."""
    return -_per_sample(generated)


def lsgan_discriminator_loss(real: Sequence[Tensor], generated: Sequence[Tensor]) -> Tensor:
    """HiFi-GAN eq. 1, summed over sub-discriminators -> (B,): real at 1, generated at 0."""
    return _total(_per_sample((1 - r).square()) + _per_sample(g.square()) for r, g in zip(real, generated, strict=True))


def lsgan_generator_loss(generated: Sequence[Tensor]) -> Tensor:
    """HiFi-GAN eq. 2, summed over sub-discriminators -> (B,)."""
    return _total(_per_sample((1 - g).square()) for g in generated)


def feature_matching_loss(real: Sequence[Sequence[Tensor]], generated: Sequence[Sequence[Tensor]]) -> Tensor:
    """HiFi-GAN eq. 4 -> (B,): L1 between the feature maps of every layer, summed; no gradient through the real side."""
    return _total(
        l1_loss(g, r.detach())
        for real_maps, generated_maps in zip(real, generated, strict=True)
        for r, g in zip(real_maps, generated_maps, strict=True)
    )


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, maximum: float = 1e4) -> Tensor:
    """LDM's balance (VQGAN, arXiv 2012.09841, eq. 7): ||grad reconstruction|| / ||grad adversarial||, a scalar.

    Both losses are scalars, their gradients taken at `last_layer`, the decoder's last weight. Clamped to 0..maximum, constant
    for the backward pass; the graph stays alive for that pass.
    """
    (wanted,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (present,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    ratio: Tensor = wanted.norm() / (present.norm() + 1e-4)
    return ratio.clamp(0, maximum).detach()


def min_snr_weight(abar_B: Tensor, prediction: str, gamma: float = 5.0) -> Tensor:
    """Min-SNR weights (arXiv 2303.09556, 3.4) -> (B,), at SNR = abar / (1 - abar).

    min(SNR, gamma) / SNR for "epsilon", min(SNR, gamma) / (SNR + 1) for "v", both multiplied out so that abar may be 0 or 1.
    Raises ValueError for any other prediction.
    """
    if prediction == "epsilon":
        return (gamma * (1 - abar_B) / abar_B).clamp(max=1)
    if prediction == "v":
        return torch.minimum(abar_B, gamma * (1 - abar_B))
    raise ValueError(f"prediction is epsilon or v, not {prediction!r}")


def diffusion_loss(prediction: Tensor, target: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """Mean squared error of a row, times its weight: (B, ...) -> (B,)."""
    loss_B = _per_sample((prediction - target).square())
    return loss_B if weight_B is None else weight_B * loss_B


def _per_sample(values: Tensor) -> Tensor:
    """(B, ...) -> (B,): the mean of each row."""
    return values.flatten(1).mean(1)


def _total(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)
