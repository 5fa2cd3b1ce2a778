import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foley_ray.audio.mel import LogMel, resolutions
from foley_ray.spec import AudioSpec
from foley_ray.training import losses


def unit(rows, values=8, seed=0):
    x = torch.randn(rows, values, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1)


def test_contrastive_loss_of_orthogonal_pairs():
    # each row: own pair at scale s, three others at 0
    pairs_BD = torch.eye(4)
    loss_B = losses.contrastive_loss(pairs_BD, pairs_BD, 3.0)
    torch.testing.assert_close(loss_B, torch.full((4,), math.log(math.exp(3) + 3) - 3))


def test_contrastive_loss_is_symmetric_and_averages_both_directions():
    audio_BD, text_BD = unit(5, seed=1), unit(5, seed=2)
    loss_B = losses.contrastive_loss(audio_BD, text_BD, 7.0)
    torch.testing.assert_close(loss_B, losses.contrastive_loss(text_BD, audio_BD, 7.0))
    logits = 7 * audio_BD @ text_BD.T
    expected = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()) / 2
    torch.testing.assert_close(loss_B, expected)


def test_equal_captions_are_not_negatives():
    text_BD = torch.eye(4)[[0, 0, 1, 2]]
    captions = torch.tensor([0, 0, 1, 2])
    same_BB = captions[:, None] == captions[None]
    plain_B = losses.contrastive_loss(text_BD, text_BD, 3.0)
    loss_B = losses.contrastive_loss(text_BD, text_BD, 3.0, same_BB)
    # rows 0 and 1 see their pair and two negatives, rows 2 and 3 their pair and three
    torch.testing.assert_close(loss_B[:2], torch.full((2,), math.log(math.exp(3) + 2) - 3))
    torch.testing.assert_close(loss_B[2:], plain_B[2:])
    assert (loss_B[:2] < plain_B[:2]).all()


def test_a_batch_of_one_caption_has_no_loss_and_finite_gradients():
    audio_BD = unit(3, seed=1).requires_grad_()
    scale = torch.tensor(5.0, requires_grad=True)
    loss_B = losses.contrastive_loss(audio_BD, unit(1).expand(3, -1), scale, torch.ones(3, 3, dtype=torch.bool))
    loss_B.sum().backward()
    torch.testing.assert_close(loss_B, torch.zeros(3))
    assert audio_BD.grad.isfinite().all()
    assert scale.grad.isfinite()


def test_kl_is_torchs():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 2, 4, 5, generator=generator)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (log_variance / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(losses.kl_loss(mean, log_variance), theirs.flatten(1).mean(1))
    torch.testing.assert_close(losses.kl_loss(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2))


def test_hinge():
    real, generated = torch.tensor([[2.0, 0.0]]), torch.tensor([[-3.0, 1.0]])
    torch.testing.assert_close(losses.hinge_discriminator_loss(real, generated), torch.tensor([0.5 * (0.5 + 1.0)]))
    torch.testing.assert_close(losses.hinge_generator_loss(generated), torch.tensor([1.0]))


def test_lsgan_sums_over_discriminators_and_averages_over_positions():
    real = [torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0]])]
    generated = [torch.tensor([[0.0, 2.0]]), torch.tensor([[0.5]])]
    torch.testing.assert_close(losses.lsgan_discriminator_loss(real, generated), torch.tensor([0 + 2 + 1 + 0.25]))
    torch.testing.assert_close(losses.lsgan_generator_loss(generated), torch.tensor([1 + 0.25]))


def test_feature_matching_sums_over_layers_and_spares_the_real_side():
    real = [[torch.ones(2, 3, 4, requires_grad=True)], [torch.zeros(2, 5)]]
    generated = [[torch.full((2, 3, 4), 3.0, requires_grad=True)], [torch.full((2, 5), 0.5)]]
    loss_B = losses.feature_matching_loss(real, generated)
    torch.testing.assert_close(loss_B, torch.full((2,), 2.5))
    loss_B.sum().backward()
    assert real[0][0].grad is None
    assert generated[0][0].grad is not None


def test_mel_loss():
    audio = AudioSpec()
    wave_BT = 0.1 * torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    zero_B = losses.mel_loss(wave_BT, wave_BT, resolutions(audio))
    torch.testing.assert_close(zero_B, torch.zeros(2))
    # twice the amplitude is ln 2 in every cell of every picture
    loss_B = losses.mel_loss(2 * wave_BT, wave_BT, resolutions(audio))
    torch.testing.assert_close(loss_B, torch.full((2,), math.log(2)), atol=1e-3, rtol=0)
    mel = LogMel(audio)
    torch.testing.assert_close(losses.mel_loss(2 * wave_BT, wave_BT, [mel]), losses.l1_loss(mel(2 * wave_BT), mel(wave_BT)))


def test_adaptive_weight_is_the_ratio_of_gradients():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction, adversarial = (3 * weight).sum(), (weight * torch.tensor([0.0, 2.0])).sum()
    ratio = losses.adaptive_weight(reconstruction, adversarial, weight)
    torch.testing.assert_close(ratio, torch.tensor(math.sqrt(18) / (2 + 1e-4)))
    assert not ratio.requires_grad
    (reconstruction + ratio * adversarial).backward()  # the graph is still there
    # no adversarial gradient at all: the clamp holds
    assert losses.adaptive_weight((1e3 * weight).sum(), (0 * weight).sum(), weight) == 1e4


@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.5, 20))
def test_min_snr_is_the_papers(abar, gamma):
    abar_B = torch.tensor([abar], dtype=torch.float64)
    snr = abar / (1 - abar)
    assert losses.min_snr_weight(abar_B, "epsilon", gamma).item() == pytest.approx(min(snr, gamma) / snr, rel=1e-6)
    assert losses.min_snr_weight(abar_B, "v", gamma).item() == pytest.approx(min(snr, gamma) / (snr + 1), rel=1e-6)


def test_min_snr_at_the_ends_and_of_another_prediction():
    ends_B = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(losses.min_snr_weight(ends_B, "epsilon"), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(losses.min_snr_weight(ends_B, "v"), torch.tensor([0.0, 0.0]))
    with pytest.raises(ValueError, match="epsilon or v, not 'x0'"):
        losses.min_snr_weight(ends_B, "x0")


def test_min_snr_weighs_x0_alike():
    """An error in x0 costs the same under either prediction: eps is off by sqrt(SNR), v by sqrt(SNR + 1)."""
    abar_B = torch.linspace(0.01, 0.99, 20)
    snr_B = abar_B / (1 - abar_B)
    torch.testing.assert_close(
        losses.min_snr_weight(abar_B, "epsilon") * snr_B, losses.min_snr_weight(abar_B, "v") * (snr_B + 1)
    )


def test_diffusion_loss_is_per_sample():
    prediction = torch.zeros(2, 3, 4)
    target = torch.stack([torch.ones(3, 4), torch.full((3, 4), 2.0)])
    torch.testing.assert_close(losses.diffusion_loss(prediction, target), torch.tensor([1.0, 4.0]))
    weighted_B = losses.diffusion_loss(prediction, target, torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(weighted_B, torch.tensor([0.5, 0.0]))
