"""CLAP: text and sound in one space. laion-clap's own model class, with its audio and text towers behind two methods."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torchaudio
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from foley_ray.config import ClapConfig, RobertaClapConfig
from foley_ray.errors import ModelError, PromptError
from foley_ray.models.laion import laion

CONTEXT_TOKENS = 77
VOCABULARY = 49408
AUDIO_FILE, TEXT_FILE = "audio.safetensors", "text.safetensors"


def tokenize(texts: Sequence[str], cut: bool = False) -> Tensor:
    """Texts -> byte-pair tokens (B, 77).

    A text of more than 75 tokens is cut with `cut` (a caption must not end a training run), else PromptError is raised.
    """
    tokenizer = laion().tokenizer
    tokens_BL: Tensor = tokenizer.tokenize(list(texts), CONTEXT_TOKENS)
    end = VOCABULARY - 1
    for text, row in zip(texts, tokens_BL, strict=True):
        if end not in row:
            if cut:
                row[-1] = end
                continue
            seen = len(tokenizer._tokenizer.encode(text))
            raise PromptError(f"prompt has {seen} tokens, more than {CONTEXT_TOKENS - 2}: shorten {text[:60]!r}...")
    return tokens_BL


def _narrow_cnn6(tower: nn.Module, channels: Sequence[int]) -> nn.Module:
    """laion-clap's Cnn6 audio tower with other layer widths; its forward pass is unchanged."""
    pann = laion().pann_model
    for index, (before, after) in enumerate(zip((1, *channels[:-1]), channels, strict=True), start=1):
        setattr(tower, f"conv_block{index}", pann.ConvBlock5x5(in_channels=before, out_channels=after))
    tower.fc1 = nn.Linear(channels[-1], channels[-1])
    tower.fc_audioset = nn.Identity()  # AudioSet's class head: part of the tower's output, used by nobody here
    pann.init_layer(tower.fc1)
    return tower


def fill_window(wave_BT: Tensor, sample_rate_hz: int, config: ClapConfig | RobertaClapConfig) -> Tensor:
    """The `window_s` seconds that an audio tower hears, at its rate: a longer sound's first, a shorter one repeated."""
    if sample_rate_hz != config.sample_rate_hz:
        wave_BT = torchaudio.functional.resample(wave_BT, sample_rate_hz, config.sample_rate_hz)
    window, length = round(config.window_s * config.sample_rate_hz), wave_BT.shape[1]
    if length < window:
        wave_BT = wave_BT.repeat(1, window // max(length, 1))
        wave_BT = functional.pad(wave_BT, (0, window - wave_BT.shape[1]))
    return wave_BT[:, :window]


def build_clap(config: ClapConfig | RobertaClapConfig) -> "Clap":
    """A CLAP with random weights. Raises ModelError for a published kind: it is imported, not made."""
    if isinstance(config, RobertaClapConfig):
        raise ModelError("a published CLAP cannot be trained from nothing; give the imported one with --init")
    return Clap(config)


def load_clap(folder: Path) -> Any:
    """The CLAP in that folder, of whichever kind. Raises ModelError if there is none or weights and settings disagree."""
    try:
        stored = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} is no CLAP folder: config.json cannot be read ({error})") from None
    if "model_type" not in stored:
        return Clap.from_pretrained(folder)
    from foley_ray.models.roberta_clap import RobertaClap  # seconds of transformers, for those who need it

    return RobertaClap.from_pretrained(folder)


class Clap(nn.Module):
    """Text (list of str) and sound (B, T) -> unit embeddings (B, D) whose cosine says how well they match."""

    def __init__(self, config: ClapConfig):
        super().__init__()
        self.config = config
        cnn = config.audio_tower == "cnn6"
        size = None if cnn else config.audio_tower.removeprefix("htsat-")
        width = config.cnn_channels[-1] if cnn else {"tiny": 768, "base": 1024}[str(size)]
        self.net: Any = laion().model.CLAP(
            embed_dim=width,
            joint_embed_shape=config.embed_dim,
            audio_cfg={
                "model_type": "PANN" if cnn else "HTSAT",
                "model_name": "Cnn6" if cnn else size,
                "sample_rate": config.sample_rate_hz,
                "window_size": config.n_fft,
                "hop_size": config.hop_samples,
                "fmin": config.fmin_hz,
                "fmax": config.fmax_hz,
                "clip_samples": self.window_samples,
            },
            text_cfg={
                "model_type": "transformer",
                "context_length": CONTEXT_TOKENS,
                "vocab_size": VOCABULARY,
                "width": config.text_width,
                "heads": config.text_heads,
                "layers": config.text_layers,
            },
        )
        if cnn:
            self.net.audio_branch = _narrow_cnn6(self.net.audio_branch, config.cnn_channels)
        # MLPs and a second scale of LAION's loss that neither embedding passes through: under DDP an unused parameter is an
        # error, so they go
        self.net.audio_transform = self.net.text_transform = nn.Identity()
        self.net.logit_scale_t.requires_grad_(False)
        if not cnn:
            self.net.audio_branch.head.requires_grad_(False)
            self.net.audio_branch.tscam_conv.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As any module's, but a Cnn6 keeps the dropouts and the SpecAugment of its forward pass off.

        They were set for AudioSet's two million clips and 512 channels, and hide a third of a 4 s clip and half of a narrow
        embedding, twice: on 1,500 clips the in-batch accuracy stood at 15 % after 22,000 of them. Varying the recordings
        (data/augment.py) is what regularises here. Its batch norms do follow `mode`.
        """
        super().train(mode)
        if self.config.audio_tower == "cnn6":
            self.net.audio_branch.training = False
        return self

    @property
    def window_samples(self) -> int:
        """What the audio tower hears, at its own rate."""
        return round(self.config.window_s * self.config.sample_rate_hz)

    @property
    def scale(self) -> Tensor:
        """The contrastive loss's learned inverse temperature, held below 100 as in CLIP."""
        return torch.as_tensor(self.net.logit_scale_a).clamp(max=4.6052).exp()

    def text_embed(self, texts: Sequence[str], cut: bool = False) -> Tensor:
        """(B, D) unit embeddings of texts. An over-long one is cut, or raises PromptError (see `tokenize`)."""
        tokens_BL = tokenize(texts, cut).to(self.net.positional_embedding.device)
        return functional.normalize(self.net.encode_text(tokens_BL, tokens_BL.device), dim=-1)

    def audio_embed(self, wave_BT: Tensor, sample_rate_hz: int) -> Tensor:
        """(B, D) unit embeddings of the first `window_s` seconds; shorter sound is repeated to fill them."""
        wave_BT = fill_window(wave_BT, sample_rate_hz, self.config)
        sound: Any = wave_BT
        if self.config.audio_tower != "cnn6":  # laion-clap's HTSAT takes a dict, without fusion just the wave
            sound = {"waveform": wave_BT}
        features = self.net.encode_audio(sound, wave_BT.device)["embedding"]
        return functional.normalize(self.net.audio_projection(features), dim=-1)

    def forward(self, wave_BT: Tensor, texts: Sequence[str], sample_rate_hz: int) -> tuple[Tensor, Tensor, Tensor]:
        """Audio embeddings (B, D), text embeddings (B, D) and the loss's scale: one call, so that DDP sees every weight."""
        return self.audio_embed(wave_BT, sample_rate_hz), self.text_embed(texts, cut=True), self.scale

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and one safetensors file per tower."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config.model_dump(mode="json"), indent=1))
        weights = {name: value.contiguous() for name, value in self.net.state_dict().items()}
        audio = {name for name in weights if name.startswith("audio_")}
        save_file({name: weights[name] for name in sorted(audio)}, folder / AUDIO_FILE)
        save_file({name: weights[name] for name in sorted(weights.keys() - audio)}, folder / TEXT_FILE)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Read what `save_pretrained` wrote. Raises ModelError if weights are missing or of another shape."""
        clap = cls(ClapConfig.model_validate_json((folder / "config.json").read_text()))
        weights = load_file(folder / AUDIO_FILE) | load_file(folder / TEXT_FILE)
        try:
            missing, unexpected = clap.net.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            raise ModelError(f"{folder} does not hold the weights that its config.json describes: {error}") from None
        if missing or unexpected:
            raise ModelError(f"{folder}: missing weights {missing[:3]}, unexpected weights {unexpected[:3]}")
        return clap
