"""HiFi-GAN generators as their authors save them (g_01080000, .pth), as transformers' class, weight norm folded away.

Shapes tell widths and kernels, not rates: those are in the config.json beside the file, or known from the published kernels.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import SpeechT5HifiGanConfig

from foley_ray.errors import ModelError
from foley_ray.interchange.diffusers_folder import audio_of, vocoder_section
from foley_ray.interchange.foreign import Foreign
from foley_ray.interchange.weights import State, fill
from foley_ray.models.vocoder import HifiGan

MARK = "conv_pre."


class Published(NamedTuple):
    """What the kernels of a published generator stand for."""

    rates: tuple[int, ...]
    sample_rate_hz: int


PUBLISHED = {
    (16, 16, 4, 4): Published((8, 8, 2, 2), 22050),  # HiFi-GAN V1, LJ Speech, and the challenge entry's small model
    (16, 16, 8, 4, 4): Published((5, 4, 2, 2, 2), 16000),  # AudioLDM, and the challenge entry's big model
}
NORMED = ((".weight_g", ".weight_v"), (".parametrizations.weight.original0", ".parametrizations.weight.original1"))
RESBLOCK_KERNELS, DILATIONS = [3, 7, 11], [1, 3, 5]


def is_hifigan(state: State) -> bool:
    """Whether these are a generator's names."""
    return any(name.startswith(MARK) for name in state)


def read_hifigan(state: State, what: str, beside: Path | None = None) -> Foreign:
    """The vocoder. `beside` is the folder that may have its config.json. Raises ModelError for other generators."""
    vocoder = vocoder_of(state, what, beside)
    return Foreign("HiFi-GAN", {"vocoder": vocoder}, {"vocoder": vocoder_section(vocoder), "audio": audio_of(vocoder)})


def vocoder_of(state: State, what: str, beside: Path | None = None) -> HifiGan:
    """A generator as a module of ours, plain weights."""
    state = folded(state)
    kernels = tuple(_weight(state, f"ups.{index}.weight", what).shape[2] for index in range(_ups(state)))
    if "resblocks.0.convs1.0.weight" not in state:
        raise ModelError(f"{what} has HiFi-GAN's small residual blocks (resblock 2, V3); known here is resblock 1 (V1, V2)")
    stated = _stated(beside)
    known = PUBLISHED.get(kernels)
    if known is None and "upsample_rates" not in stated:
        raise ModelError(
            f"{what}: what its upsampling kernels {list(kernels)} mean is not known; put the config.json it was trained with "
            "beside it"
        )
    rates = tuple(stated["upsample_rates"]) if "upsample_rates" in stated else known.rates if known else ()
    pre = _weight(state, "conv_pre.weight", what)
    config = SpeechT5HifiGanConfig(
        model_in_dim=pre.shape[1],
        sampling_rate=stated.get("sampling_rate", known.sample_rate_hz if known else 22050),
        upsample_initial_channel=pre.shape[0],
        upsample_rates=list(rates),
        upsample_kernel_sizes=list(kernels),
        resblock_kernel_sizes=stated.get("resblock_kernel_sizes", RESBLOCK_KERNELS),
        resblock_dilation_sizes=stated.get("resblock_dilation_sizes", [DILATIONS] * len(RESBLOCK_KERNELS)),
        normalize_before=False,
    )
    vocoder = HifiGan(config)
    fill(vocoder, {name.replace("ups.", "upsampler.", 1): value for name, value in state.items()}, what, ("mean", "scale"))
    return vocoder


def folded(state: State) -> State:
    """Weight norm's length g and direction v as one plain weight g v / |v|, under whichever of torch's two sets of names."""
    plain: State = {}
    for name, value in state.items():
        for length, direction in NORMED:
            if name.endswith(length):
                break
            if name.endswith(direction):
                stem = name.removesuffix(direction)
                if stem + length not in state:
                    raise ModelError(f"{name} has no {stem + length} beside it: a damaged weight norm")
                norm = torch.linalg.vector_norm(value.float(), dim=(1, 2), keepdim=True)
                plain[f"{stem}.weight"] = state[stem + length].float() * value.float() / norm
                break
        else:
            plain[name] = value
    return plain


def _stated(folder: Path | None) -> dict[str, Any]:
    path = folder / "config.json" if folder else None
    if path is None or not path.is_file():
        return {}
    try:
        stated: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"cannot read {path}: {error}") from None
    if str(stated.get("resblock", "1")) != "1":
        raise ModelError(f"{path} has resblock {stated['resblock']}; known here is resblock 1 (V1, V2)")
    return stated


def _ups(state: State) -> int:
    return len({name.split(".")[1] for name in state if name.startswith("ups.")})


def _weight(state: State, name: str, what: str) -> torch.Tensor:
    if name not in state:
        raise ModelError(f"{what} is no HiFi-GAN generator: it has no {name}")
    return state[name]
