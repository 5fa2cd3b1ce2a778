"""Weights cut over the workers (FSDP2 through Accelerate), for networks whose optimiser does not fit one GPU, such as `large`.

Every worker then holds a piece of each weight, gradient, Adam moment and moving average. The functions here put the pieces
together for a checkpoint and cut a checkpoint up again, all workers calling them together; of a run without sharding they take
what is whole already. So a checkpoint is the same file either way, and either way of running, with any number of workers,
resumes it.

Unverified: tests hold these functions to whole training with processes on a CPU; on GPUs, by NCCL, none of it has been run yet.
"""

from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

UNIT_WEIGHTS = 10_000_000
"""Weights that are gathered at a time during a step: `large` has some forty such units."""

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
SPREAD = StateDictOptions(full_state_dict=True)


def fsdp_plugin() -> FullyShardedDataParallelPlugin:
    """How Accelerate is to cut: FSDP2, weights freed again after each unit's forward pass."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="size_based_wrap",
        min_num_params=UNIT_WEIGHTS,
        cpu_ram_efficient_loading=False,  # every worker has built the same weights, from the seed or from files
    )


def whole_state(phase: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """State of a phase and of its optimiser, by the names of the phase's weights.

    Of one that is cut up: in one piece, on the CPU, on the first rank; empty on the others.
    """
    if _is_cut(phase):
        return get_model_state_dict(phase, options=WHOLE), get_optimizer_state_dict(phase, optimiser, options=WHOLE)
    # not torch's function here: it would give an optimiser that has not begun a first, empty step, on the saving rank alone
    names, known = _trained(phase), optimiser.state_dict()
    groups = [{**group, "params": [names[index] for index in group["params"]]} for group in known["param_groups"]]
    return phase.state_dict(), {
        "state": {names[index]: moments for index, moments in known["state"].items()},
        "param_groups": groups,
    }


def spread_state(
    phase: nn.Module, optimiser: torch.optim.Optimizer, phase_state: dict[str, Any], optimiser_state: dict[str, Any]
) -> None:
    """The inverse; every rank brings all of it. Raises RuntimeError, KeyError or ValueError if it is of another model."""
    if _is_cut(phase):
        set_model_state_dict(phase, phase_state, options=SPREAD)
        set_optimizer_state_dict(phase, optimiser, optimiser_state, options=SPREAD)
        return
    phase.load_state_dict(phase_state)
    index = {name: number for number, name in enumerate(_trained(phase))}
    groups = [{**group, "params": [index[name] for name in group["params"]]} for group in optimiser_state["param_groups"]]
    state = {index[name]: moments for name, moments in optimiser_state["state"].items()}
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def _is_cut(phase: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in phase.parameters())


def _trained(phase: nn.Module) -> list[str]:
    """Names of a phase's weights in the order of its optimiser."""
    return [name for name, parameter in phase.named_parameters() if parameter.requires_grad]


def whole_tensors(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors in one piece, on the CPU, on every rank; those that are whole already stay as they are."""
    return [tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def spread_tensors(tensors: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """The inverse: each tensor cut as its counterpart in `like` is."""
    return [
        distribute_tensor(tensor.to(piece.device), piece.device_mesh, piece.placements)
        if isinstance(piece, DTensor)
        else tensor
        for tensor, piece in zip(tensors, like, strict=True)
    ]


def fill_whole(target: nn.Module, source: nn.Module) -> None:
    """Give a whole module, on the first rank, the weights and buffers of a sharded one of the same shape."""
    state = get_model_state_dict(source, options=WHOLE)
    if state:
        target.load_state_dict(state)
