"""What foreign models with random weights are made with."""

import torch


def text_config() -> dict[str, object]:
    return {
        "vocab_size": 320,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "intermediate_size": 96,
        "max_position_embeddings": 34,
        "projection_dim": 32,
        "layer_norm_eps": 1e-5,
    }


def restless(module: torch.nn.Module) -> torch.nn.Module:
    """The module with every bias, norm and table moved off its resting value, so that a mix-up of two shows."""
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim < 2 or float(weight.detach().abs().max()) == 0:
                weight.add_(0.1 * torch.randn_like(weight))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(-30 + 10 * torch.randn_like(buffer))
            if name.endswith("running_var"):
                buffer.copy_(400 * (1 + torch.rand_like(buffer)))
    return module.eval()
