import pytest
import torch

from foley_ray.models.discriminators import (
    MultiPeriodDiscriminator,
    MultiResolutionDiscriminator,
    MultiScaleDiscriminator,
    PatchDiscriminator,
    WaveDiscriminator,
)
from foley_ray.training.losses import lsgan_discriminator_loss

PARTS = [(MultiPeriodDiscriminator, 5, 6), (MultiScaleDiscriminator, 3, 8), (MultiResolutionDiscriminator, 3, 6)]
ALL = pytest.mark.parametrize(("part", "stacks", "layers"), PARTS, ids=["periods", "scales", "resolutions"])


@pytest.fixture
def one_thread():
    """Many tiny steps: on a busy machine, threads that wait for each other would make them a hundred times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def wave(rows=2, samples=4096):
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(samples))


@ALL
@pytest.mark.parametrize("samples", [2049, 4096, 8191])
def test_one_verdict_and_all_maps_for_each_stack(part, stacks, layers, samples):
    torch.manual_seed(0)
    with torch.no_grad():
        logits, features = part(4)(wave(samples=samples))
    assert len(logits) == len(features) == stacks
    assert all(x.ndim == 2 and x.shape[0] == 2 and x.isfinite().all() for x in logits)
    assert all(len(maps) == layers for maps in features)
    assert all(torch.equal(maps[-1].flatten(1), x) for x, maps in zip(logits, features, strict=True))


@ALL
def test_rows_do_not_mix(part, stacks, layers):
    torch.manual_seed(0)
    discriminator = part(4)
    with torch.no_grad():
        together, _ = discriminator(wave(rows=3))
        alone, _ = discriminator(wave(rows=3)[1:2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, atol=1e-6, rtol=1e-4)


@ALL
def test_gradients_reach_every_parameter_and_the_wave(part, stacks, layers):
    torch.manual_seed(0)
    discriminator = part(4)
    wave_BT = wave().requires_grad_()
    logits, _ = discriminator(wave_BT)
    sum((1 - x).square().mean() for x in logits).backward()
    assert [name for name, p in discriminator.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert wave_BT.grad.isfinite().all()
    assert wave_BT.grad.abs().sum() > 0


def test_the_papers_widths():
    def parameters(part):
        return sum(p.numel() for p in part.parameters())

    assert round(parameters(MultiPeriodDiscriminator()) / 1e6, 1) == 41.1
    assert round(parameters(MultiScaleDiscriminator()) / 1e6, 1) == 29.6


@pytest.mark.parametrize("kind", ["hifigan", "istft"])
def test_wave_discriminator_lists_all_parts(kind):
    logits, features = WaveDiscriminator(4, kind)(wave())
    assert len(logits) == len(features) == 8


def test_silence_and_short_crops_are_judged():
    for kind in ("hifigan", "istft"):
        logits, _ = WaveDiscriminator(4, kind)(torch.zeros(1, 1200))
        assert all(x.isfinite().all() for x in logits)


def test_wave_discriminator_learns_to_tell(one_thread):
    torch.manual_seed(0)
    discriminator = WaveDiscriminator(4, "istft")
    optimiser = torch.optim.AdamW(discriminator.parameters(), lr=3e-3)
    real = 0.3 * torch.sin(torch.arange(1200) / 8 + torch.arange(2)[:, None])
    generated = 0.3 * torch.randn(2, 1200)
    losses = []
    for _ in range(30):
        loss = lsgan_discriminator_loss(discriminator(real)[0], discriminator(generated)[0]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    # saying 1/2 to everything costs 8 x 1/2
    assert losses[0] > 6
    assert losses[-1] < 2


@pytest.mark.parametrize(
    ("frames", "bands", "patches"), [(344, 80, (41, 8)), (400, 64, (48, 6)), (86, 80, (8, 8)), (32, 32, (2, 2))]
)
def test_patches(frames, bands, patches):
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(channels=8)
    picture = torch.randn(2, 1, frames, bands)
    logits = discriminator(picture)
    assert logits.shape == (2, 1, *patches)
    torch.testing.assert_close(discriminator(picture[1:]), logits[1:])  # no batch statistics
    logits.square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in discriminator.parameters())


def test_patch_discriminator_has_the_originals_size():
    # NLayerDiscriminator of one channel has 2,763,585 parameters with BatchNorm; GroupNorm has as many
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_763_585
