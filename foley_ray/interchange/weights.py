"""Files of weights that others saved with torch, read as tensors and nothing else: an object in them is refused, not run."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from foley_ray.errors import ModelError

State = dict[str, Tensor]
WRAPPERS = ("state_dict", "generator", "model", "module")
"""Keys under which training programs put a network's weights, beside optimisers and counters."""

# numbers that training programs store beside the weights: plain data, which torch does not let through by itself. numpy 2 names
# the function that rebuilds them anew
_REBUILD: Any = np.float64(0).__reduce__()[0]
NUMBERS: list[Any] = [
    (_REBUILD, "numpy.core.multiarray.scalar"),
    (_REBUILD, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "bool")),
]


def read_weights(path: Path) -> State:
    """Names and tensors of a .safetensors, .pt, .pth, .ckpt or .bin file, on the CPU, wrappers taken off.

    Raises ModelError if it cannot be read, is cut off, holds more than plain data, or no tensors.
    """
    if not path.is_file():
        raise ModelError(f"no file of weights at {path}")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is no whole safetensors file ({error}); download it again") from error
    try:
        with torch.serialization.safe_globals(NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        objects = re.search(r"(?:GLOBAL|class) (\S+)", str(error))
        if objects is None:
            raise ModelError(f"{path} is no file of weights, or a damaged one; download it again") from None
        raise ModelError(
            f"{path} holds more than weights, {objects.group(1)}, and is not opened; where you trust it, save its weights "
            f"alone, as torch.save(torch.load(PATH, weights_only=False)[KEY], NEW), KEY being one of {', '.join(WRAPPERS)}"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is no file of weights, or is cut off; download it again ({_first_line(error)})") from error
    while isinstance(content, Mapping) and not _tensors(content):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    state = _tensors(content) if isinstance(content, Mapping) else {}
    if not state:
        found = ", ".join(map(str, list(content)[:6])) if isinstance(content, Mapping) else type(content).__name__
        raise ModelError(f"{path} has no weights under any name that is known here (it holds: {found})")
    return state


def strip(state: State, prefix: str) -> State:
    """Those whose name begins with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def fill(module: torch.nn.Module, state: State, what: str, computed: tuple[str, ...] = ()) -> None:
    """Load float32 copies of the weights. Raises ModelError for any that are missing, too many or of another shape.

    Names that end in one of `computed` are buffers that the module makes itself.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.endswith(computed or ("\0",))]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        raise ModelError(f"{what} is of another shape than is known here: missing {missing[:3]}, unexpected {unexpected[:3]}")
    for name, value in state.items():
        if own[name].shape != value.shape:
            raise ModelError(f"{what}: {name} has shape {tuple(value.shape)}, expected {tuple(own[name].shape)}")
    module.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in state.items()}, False
    )
    module.eval()


def _tensors(content: Mapping[Any, Any]) -> State:
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
