"""What the vocoder and the VAE are trained against: networks that tell real sound from generated. Never part of a model folder.

A wave discriminator returns its verdicts and its feature maps: `logits, features = discriminator(wave_BT)`, one entry per
sub-discriminator; logits are (B, positions), features a list of maps that feature matching compares. Shapes: B rows,
T samples, F frames (time), M mel bands, K frequency bins, P period, C channels.

Weight norm throughout. HiFi-GAN puts spectral norm on its first scale; its power iteration changes a buffer in every forward
pass, which differs between workers and between the passes of one step; every layer here is a pure function of its weights.

What they cost, in seconds a step on 2 CPU threads at the `default` preset's vocoder batch (8 rows of 16,384 samples; the
istft vocoder with its mel loss takes 0.16 s forward and backward). A step is one update of the discriminator plus the
generator's gradient through it, feature matching included:

    channels                     4      8     16     32 (the papers')
    MultiPeriodDiscriminator     0.31   0.70   2.4    9.2
    MultiScaleDiscriminator      0.79   1.9    5.2   15.7
    MultiResolutionDiscriminator 0.29   0.43   0.85   3.0

So on a CPU take 4 or 8 channels, and for the istft vocoder resolutions instead of scales, as Vocos does.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.1  # of the leaky ReLUs, as in HiFi-GAN

Verdict = tuple[list[Tensor], list[list[Tensor]]]  # logits and feature maps, per sub-discriminator


class _Stack(nn.Module):
    """Convolutions with leaky ReLUs between; the last one gives the logits. Every output is a feature map."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if index < len(self.layers) - 1:
                hidden = nnf.leaky_relu(hidden, SLOPE)
            features.append(hidden)
        return hidden.flatten(1), features


def _verdict(outputs: Sequence[tuple[Tensor, list[Tensor]]]) -> Verdict:
    return [logits for logits, _ in outputs], [features for _, features in outputs]


class MultiPeriodDiscriminator(nn.Module):
    """HiFi-GAN's MPD (arXiv 2010.05646, 2.3): the wave folded into rows of 2, 3, 5, 7 and 11 samples, seen column by column.

    `channels` is the first layer's width: 32 is the paper's (41 M parameters), and cost grows with its square.
    """

    def __init__(self, channels: int = 32, periods: Sequence[int] = (2, 3, 5, 7, 11)) -> None:
        super().__init__()
        self.periods = tuple(periods)
        widths = (1, channels, 4 * channels, 16 * channels, 32 * channels, 32 * channels)
        self.stacks = nn.ModuleList(
            _Stack(
                [
                    weight_norm(nn.Conv2d(a, b, (5, 1), stride=(3 if index < 4 else 1, 1), padding=(2, 0)))
                    for index, (a, b) in enumerate(pairwise(widths))
                ]
                + [weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))]
            )
            for _ in self.periods
        )

    def forward(self, wave_BT: Tensor) -> Verdict:
        """wave_BT -> logits and features, one entry per period; a rest shorter than a period is filled by reflection."""
        outputs = []
        for period, stack in zip(self.periods, self.stacks, strict=True):
            folded_BT = nnf.pad(wave_BT, (0, -wave_BT.shape[1] % period), mode="reflect")
            outputs.append(stack(folded_BT.view(len(wave_BT), 1, -1, period)))
        return _verdict(outputs)


class MultiScaleDiscriminator(nn.Module):
    """HiFi-GAN's MSD (from MelGAN): long grouped convolutions over the wave, and over it averaged down 2 and 4 times.

    `channels` counts as in MultiPeriodDiscriminator (32 is the paper's: a first width of 128, 30 M parameters); a multiple
    of 4, as the groups demand.
    """

    def __init__(self, channels: int = 32, scales: int = 3) -> None:
        super().__init__()
        c = channels
        shape = (  # width in, width out, kernel, stride, groups
            (1, 4 * c, 15, 1, 1),
            (4 * c, 4 * c, 41, 2, 4),
            (4 * c, 8 * c, 41, 2, 16),
            (8 * c, 16 * c, 41, 4, 16),
            (16 * c, 32 * c, 41, 4, 16),
            (32 * c, 32 * c, 41, 1, 16),
            (32 * c, 32 * c, 5, 1, 1),
            (32 * c, 1, 3, 1, 1),
        )
        self.stacks = nn.ModuleList(
            _Stack([weight_norm(nn.Conv1d(a, b, k, stride=s, groups=g, padding=k // 2)) for a, b, k, s, g in shape])
            for _ in range(scales)
        )

    def forward(self, wave_BT: Tensor) -> Verdict:
        """wave_BT -> logits and features, one entry per scale."""
        wave_B1T = wave_BT[:, None]
        outputs = []
        for stack in self.stacks:
            outputs.append(stack(wave_B1T))
            wave_B1T = nnf.avg_pool1d(wave_B1T, kernel_size=4, stride=2, padding=2)
        return _verdict(outputs)


class MultiResolutionDiscriminator(nn.Module):
    """Complex STFTs of three window lengths as pictures (UnivNet, arXiv 2106.07889; real and imaginary part as in DAC).

    Sees phase and fine frequency structure, which an inverse-STFT vocoder gets wrong first, at frame rate, hence cheaply.
    `channels` is the width of all layers; Vocos uses 64, DAC 32.
    """

    def __init__(self, channels: int = 32, windows: Sequence[int] = (2048, 1024, 512)) -> None:
        super().__init__()
        self.windows = tuple(windows)
        for window in self.windows:
            self.register_buffer(f"hann_{window}", torch.hann_window(window), persistent=False)
        shape = ((2, channels, 9, 1), *((channels, channels, 9, 2),) * 3, (channels, channels, 3, 1), (channels, 1, 3, 1))
        self.stacks = nn.ModuleList(
            _Stack([weight_norm(nn.Conv2d(a, b, (3, k), stride=(1, s), padding=(1, k // 2))) for a, b, k, s in shape])
            for _ in self.windows
        )

    def forward(self, wave_BT: Tensor) -> Verdict:
        """wave_BT (T of half the longest window or more) -> logits and features, one entry per window length."""
        outputs = []
        for window, stack in zip(self.windows, self.stacks, strict=True):
            hann = self.get_buffer(f"hann_{window}")
            spectrum_BKF = torch.stft(wave_BT, window, window // 4, window=hann, normalized=True, return_complex=True)
            outputs.append(stack(torch.view_as_real(spectrum_BKF).permute(0, 3, 2, 1)))
        return _verdict(outputs)


class WaveDiscriminator(nn.Module):
    """What a vocoder is trained against, as its paper has it, the verdicts of all parts in one list.

    HiFi-GAN: periods and scales. istft (Vocos): periods and STFT resolutions. `channels` scales all parts (cost: see above).
    """

    def __init__(self, channels: int = 32, kind: Literal["hifigan", "istft"] = "hifigan") -> None:
        super().__init__()
        second = MultiScaleDiscriminator(channels) if kind == "hifigan" else MultiResolutionDiscriminator(channels)
        self.parts = nn.ModuleList([MultiPeriodDiscriminator(channels), second])

    def forward(self, wave_BT: Tensor) -> Verdict:
        """wave_BT -> logits and features of all eight sub-discriminators."""
        verdicts: list[Verdict] = [part(wave_BT) for part in self.parts]
        return [x for logits, _ in verdicts for x in logits], [x for _, features in verdicts for x in features]


class PatchDiscriminator(nn.Module):
    """pix2pix's and LDM's NLayerDiscriminator for the VAE's mel pictures: one verdict per patch of about 70 x 70.

    GroupNorm where the original has BatchNorm: the VAE trains with batches of 4, real and generated pass separately, so
    batch statistics would be noisy, differ between the two (and give them away), couple the rows, and need synchronising
    across workers. Without any norm the deep layers' scale is left to Adam alone.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        body: list[nn.Module] = [nn.Conv2d(1, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for index in range(1, layers + 1):
            wider = channels * min(2**index, 8)
            body += [
                nn.Conv2d(width, wider, 4, stride=2 if index < layers else 1, padding=1, bias=False),
                nn.GroupNorm(max(1, wider // 16), wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        body.append(nn.Conv2d(width, 1, 4, padding=1))
        self.body = nn.Sequential(*body)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, log_mel_B1FM: Tensor) -> Tensor:
        """log_mel_B1FM (F and M of 32 or more) -> logits (B, 1, F', M')."""
        logits: Tensor = self.body(log_mel_B1FM)
        return logits
