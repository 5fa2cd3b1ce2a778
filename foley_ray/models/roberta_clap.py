"""The CLAPs that others publish, LAION's and AudioLDM's: RoBERTa reads, HTSAT hears, in transformers' classes.

A second kind beside models/clap.py, behind the same face. The text tower of a diffusers AudioLDM folder comes without an audio
tower: it conditions the diffusion model, but there is nothing that could rank.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torchaudio
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, ClapConfig, ClapModel, ClapTextConfig, ClapTextModelWithProjection
from transformers.utils.logging import disable_progress_bar

from foley_ray.config import RobertaClapConfig
from foley_ray.errors import ModelError, PromptError
from foley_ray.models.clap import fill_window

FRONT_END_FILE = "preprocessor_config.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
POWER_FLOOR = 1e-10
RESERVED_POSITIONS = 2
"""RoBERTa counts positions from behind its padding index 1: of 514 there are 512 for text."""


class RobertaClap(nn.Module):
    """Text (list of str) and sound (B, T) -> unit embeddings (B, D) whose cosine says how well they match."""

    def __init__(self, net: ClapModel | ClapTextModelWithProjection, tokenizer: Any, config: RobertaClapConfig):
        super().__init__()
        self.net: Any = net
        self.tokenizer = tokenizer
        self.config = config
        text: Any = net.config.text_config if config.hears else net.config
        self.most_tokens = min(tokenizer.model_max_length, text.max_position_embeddings - RESERVED_POSITIONS)
        if config.hears:
            self.mel = torchaudio.transforms.MelSpectrogram(
                sample_rate=config.sample_rate_hz,
                n_fft=config.n_fft,
                hop_length=config.hop_samples,
                f_min=config.fmin_hz,
                f_max=config.fmax_hz,
                n_mels=config.mel_bands,
                power=2.0,
                norm="slaney",
                mel_scale="slaney",
            )
            self.net.logit_scale_t.requires_grad_(False)  # a second scale of LAION's loss that no embedding passes through

    @property
    def window_samples(self) -> int:
        """What the audio tower hears, at its own rate."""
        return round(self.config.window_s * self.config.sample_rate_hz)

    @property
    def scale(self) -> Tensor:
        """The contrastive loss's learned inverse temperature, held below 100 as in CLIP."""
        self.config.require_hearing("train clap")
        return torch.as_tensor(self.net.logit_scale_a).clamp(max=math.log(100)).exp()

    def text_embed(self, texts: Sequence[str], cut: bool = False) -> Tensor:
        """(B, D) unit embeddings of texts. One of too many tokens is cut with `cut`, else PromptError is raised."""
        rows = self.tokenizer(list(texts), verbose=False)["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > self.most_tokens and not cut:
                raise PromptError(
                    f"prompt has {len(row) - 2} tokens, more than {self.most_tokens - 2}: shorten {text[:60]!r}..."
                )
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.most_tokens, return_tensors="pt"
        ).to(self.net.device)
        read = self.net.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return functional.normalize(self.net.text_projection(read.pooler_output), dim=-1)

    def audio_embed(self, wave_BT: Tensor, sample_rate_hz: int) -> Tensor:
        """(B, D) unit embeddings of the first `window_s` seconds; shorter sound is repeated to fill them."""
        self.config.require_hearing("embed sound")
        power_BMF = self.mel(fill_window(wave_BT, sample_rate_hz, self.config))
        decibel_BFM = 10 * power_BMF.clamp(min=POWER_FLOOR).log10().transpose(1, 2)
        # (B, 1, F, M), as transformers' feature extractor would hand it over
        features = self.net.audio_model(input_features=decibel_BFM[:, None]).pooler_output
        return functional.normalize(self.net.audio_projection(features), dim=-1)

    def forward(self, wave_BT: Tensor, texts: Sequence[str], sample_rate_hz: int) -> tuple[Tensor, Tensor, Tensor]:
        """Audio embeddings (B, D), text embeddings (B, D) and the loss's scale: one call, so that DDP sees every weight."""
        return self.audio_embed(wave_BT, sample_rate_hz), self.text_embed(texts, cut=True), self.scale

    def save_pretrained(self, folder: Path) -> None:
        """Write what transformers' ClapModel (or ClapTextModelWithProjection), AutoTokenizer and AutoProcessor read."""
        disable_progress_bar()  # transformers' own, over the files of weights
        self.net.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.config.hears:
            (folder / FRONT_END_FILE).write_text(json.dumps(_front_end(self.config), indent=1))

    @classmethod
    def from_pretrained(cls, folder: Path, tokenizer: Path | None = None, safetensors: bool = True) -> Self:
        """Read a folder of transformers' (or ours, which is the same). `tokenizer` is another folder that has its files.

        Raises ModelError for what it is not, for weights that are missing, of another shape or not to be read. `safetensors`
        False also takes a .bin of weights alone, never an object.
        """
        try:
            stored = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder} is no CLAP folder: config.json cannot be read ({error})") from None
        kinds = {"clap": ClapModel, "clap_text_model": ClapTextModelWithProjection}
        if stored.get("model_type") not in kinds:
            raise ModelError(
                f"{folder}/config.json is of model_type {stored.get('model_type')!r}, not one of {', '.join(kinds)}"
            )
        disable_progress_bar()  # transformers' own, over the weights
        try:
            net, report = kinds[stored["model_type"]].from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True if safetensors else None,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"the CLAP in {folder} cannot be loaded: {error}") from error
        # transformers fills what a file lacks with random numbers
        lacking = [name for name in report["missing_keys"] if not name.endswith(("position_ids", "relative_position_index"))]
        if lacking or report["mismatched_keys"]:
            raise ModelError(f"the CLAP in {folder} lacks weights: {sorted(lacking)[:3]} {list(report['mismatched_keys'])[:3]}")
        hears = isinstance(net.config, ClapConfig)
        if hears and net.config.audio_config.enable_fusion:
            raise ModelError(f"the CLAP in {folder} fuses windows of long sounds; take the one without fusion (unfused)")
        return cls(net, load_tokenizer(tokenizer or folder), _settings(folder, net.config)).eval()


def load_tokenizer(folder: Path) -> Any:
    """RoBERTa's tokenizer from its files. Raises ModelError where they are not."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"no tokenizer in {folder} ({' or '.join(TOKENIZER_FILES)}); give a folder that has RoBERTa's (roberta-base) "
            "with --tokenizer"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer in {folder} cannot be read: {error}") from error


def _settings(folder: Path, config: ClapConfig | ClapTextConfig) -> RobertaClapConfig:
    """What the part's files say; LAION's own front end where they say nothing of it."""
    hears = isinstance(config, ClapConfig)
    if not hears or not (folder / FRONT_END_FILE).is_file():
        bands = {"mel_bands": config.audio_config.num_mel_bins} if hears else {}
        return RobertaClapConfig(embed_dim=config.projection_dim, hears=hears, **bands)
    front: dict[str, Any] = json.loads((folder / FRONT_END_FILE).read_text())
    return RobertaClapConfig(
        embed_dim=config.projection_dim,
        sample_rate_hz=front["sampling_rate"],
        window_s=front["max_length_s"],
        n_fft=front["fft_window_size"],
        hop_samples=front["hop_length"],
        mel_bands=front["feature_size"],
        fmin_hz=front["frequency_min"],
        fmax_hz=front["frequency_max"],
    )


def _front_end(config: RobertaClapConfig) -> dict[str, Any]:
    """The settings of a ClapFeatureExtractor that computes what `audio_embed` does."""
    whole = int(config.window_s) if config.window_s == int(config.window_s) else config.window_s
    return {
        "feature_extractor_type": "ClapFeatureExtractor",
        "processor_class": "ClapProcessor",
        "sampling_rate": config.sample_rate_hz,
        "max_length_s": whole,
        "fft_window_size": config.n_fft,
        "hop_length": config.hop_samples,
        "feature_size": config.mel_bands,
        "frequency_min": config.fmin_hz,
        "frequency_max": config.fmax_hz,
        "truncation": "rand_trunc",
        "padding": "repeatpad",
    }
