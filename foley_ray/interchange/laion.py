"""LAION-CLAP's own checkpoints (HTSAT and RoBERTa), as transformers' ClapModel.

The two hold the same networks under other names; HTSAT keeps query, key and value in one matrix. What neither embedding passes
through stays behind: AudioSet's class heads and LAION's second pair of projections.
"""

import re
from pathlib import Path

import torch
from transformers import ClapConfig, ClapModel

from foley_ray.config import RobertaClapConfig
from foley_ray.errors import ModelError
from foley_ray.interchange.weights import State, fill, strip
from foley_ray.models.laion import FRONT_END
from foley_ray.models.roberta_clap import RobertaClap, load_tokenizer

MARK = "text_branch.embeddings.word_embeddings.weight"
ROBERTA_HEAD = 64
ROBERTA_EPSILON = 1e-5
COMPUTED = ("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")

# in this order: `norm1` of an HTSAT block, not of anything in RoBERTa
AUDIO_NAMES = (
    (r"^bn0\.", "batch_norm."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
LEFT_BEHIND = (*FRONT_END, "tscam_conv.", "head.")


def is_laion(state: State) -> bool:
    """Whether these are LAION-CLAP's names, with or without a prefix."""
    return any(name.endswith(MARK) for name in state)


def read_laion(state: State, tokenizer: Path | None, what: str) -> RobertaClap:
    """The whole CLAP. Raises ModelError for one with fusion, another text tower, or weights that do not make up the towers.

    Sizes are read off the weights; what shapes do not tell is as published (RoBERTa's heads of 64 values, HTSAT's picture).
    """
    prefix = next((name for name in state if name.endswith(MARK)), MARK).removesuffix(MARK)
    state = strip(state, prefix)
    if any("fusion_model" in name or "mel_conv2d" in name for name in state):
        raise ModelError(f"{what} fuses windows of long sounds; take the checkpoint without fusion")
    if "audio_branch.patch_embed.proj.weight" not in state:
        raise ModelError(f"{what} has no HTSAT audio tower, the only one known here beside our own")
    config = _sizes(state)
    net = ClapModel(config)
    fill(net, _renamed(state), what, COMPUTED)
    audio = config.audio_config
    settings = RobertaClapConfig(embed_dim=config.projection_dim, mel_bands=audio.num_mel_bins)
    return RobertaClap(net, load_tokenizer(tokenizer or _hub_tokenizer()), settings).eval()


def _sizes(state: State) -> ClapConfig:
    words = state["text_branch.embeddings.word_embeddings.weight"]
    width = words.shape[1]
    layers = _count(state, r"^text_branch\.encoder\.layer\.(\d+)\.")
    stages = _count(state, r"^audio_branch\.layers\.(\d+)\.")
    tables = [f"audio_branch.layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in range(stages)]
    patch = state["audio_branch.patch_embed.proj.weight"]
    embed_dim = state["text_projection.0.weight"].shape[0]
    return ClapConfig(
        text_config={
            "vocab_size": words.shape[0],
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": max(1, width // ROBERTA_HEAD),
            "intermediate_size": state["text_branch.encoder.layer.0.intermediate.dense.weight"].shape[0],
            "max_position_embeddings": state["text_branch.embeddings.position_embeddings.weight"].shape[0],
            "type_vocab_size": state["text_branch.embeddings.token_type_embeddings.weight"].shape[0],
            "layer_norm_eps": ROBERTA_EPSILON,
        },
        audio_config={
            "patch_embeds_hidden_size": patch.shape[0],
            "patch_size": patch.shape[2],
            "num_mel_bins": state["audio_branch.bn0.weight"].shape[0],
            "depths": [_count(state, rf"^audio_branch\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)],
            "num_attention_heads": [state[name].shape[1] for name in tables],
            "num_hidden_layers": stages,
            "hidden_size": patch.shape[0] * 2 ** (stages - 1),
        },
        projection_dim=embed_dim,
    )


def _renamed(state: State) -> State:
    found: State = {}
    for name, value in state.items():
        if name.startswith("text_branch."):
            found["text_model." + name.removeprefix("text_branch.")] = value
        elif name.startswith("audio_branch."):
            found |= _audio(name.removeprefix("audio_branch."), value)
        elif match := re.fullmatch(r"(text|audio)_projection\.(0|2)\.(weight|bias)", name):
            tower, place, kind = match.groups()
            found[f"{tower}_projection.linear{1 if place == '0' else 2}.{kind}"] = value
        elif name in ("logit_scale_a", "logit_scale_t"):
            found[name] = value
    return {name: value for name, value in found.items() if not name.endswith(COMPUTED)}


def _audio(name: str, value: torch.Tensor) -> State:
    if name.startswith(LEFT_BEHIND) or name.endswith("attn_mask"):
        return {}
    for pattern, new in AUDIO_NAMES:
        name = re.sub(pattern, new, name)
    name = f"audio_model.audio_encoder.{name}"
    if ".qkv." not in name:
        return {name: value}
    return {name.replace("qkv", part): rows for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True)}


def _count(state: State, pattern: str) -> int:
    """One more than the highest number that the pattern finds in the names. Raises ModelError where there is none."""
    numbers = [int(match.group(1)) for name in state if (match := re.match(pattern, name))]
    if not numbers:
        raise ModelError(f"the CLAP has no weights like {pattern}: another tower than RoBERTa or HTSAT")
    return max(numbers) + 1


def _hub_tokenizer() -> Path:
    from foley_ray.interchange.hub import download

    files = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"]
    return download("FacebookAI/roberta-base", files, option="--tokenizer")
