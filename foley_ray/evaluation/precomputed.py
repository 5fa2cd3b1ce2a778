"""Embeddings that somebody else computed, as arrays: NAME.npz with one array (N, D) per class, or a folder of CLASS.npy.

For spaces that none of the networks here span, and for references that others publish. Those often come as pickles, which can
run any code when they are opened: they are refused, and the error says how to convert one where it is trusted.
"""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from foley_ray.errors import DataError

PICKLES = frozenset((".pkl", ".pickle", ".pt", ".pth", ".joblib"))
CONVERT = (
    "pickles can run code when opened and are not read; where you trust it, convert it once: "
    "python -c \"import pickle, numpy; numpy.savez('reference.npz', dog_bark=numpy.asarray(pickle.load(open('FILE', 'rb'))))\""
)


def is_embeddings(where: Path) -> bool:
    """Whether a path holds embeddings (or pickles that claim to), rather than sounds."""
    if where.is_file():
        return where.suffix.lower() in {".npz", ".npy"} | PICKLES
    return where.is_dir() and any(path.suffix.lower() in {".npy", ".npz"} | PICKLES for path in _files(where))


def read_embeddings(where: Path) -> dict[str, np.ndarray]:
    """{class: (N, D) float64}. A folder's class is the name of the file, or of the folder that the file lies in alone.

    Raises DataError for a pickle, for what is no table of finite numbers, and for classes of differing width.
    """
    found: dict[str, np.ndarray] = {}
    for path in [where] if where.is_file() else _files(where):
        suffix = path.suffix.lower()
        if suffix in PICKLES:
            raise DataError(f"{path}: {CONVERT.replace('FILE', path.name)}")
        if suffix not in (".npy", ".npz"):
            continue
        name = path.stem if where.is_file() or path.parent == where else path.parent.name
        for key, value in _read(path, name).items():
            if key in found:
                raise DataError(f"{where} has embeddings of {key} twice, the second time in {path}")
            found[key] = _checked(value, f"{path} ({key})")
    widths = {name: value.shape[1] for name, value in found.items()}
    if len(set(widths.values())) != 1:
        raise DataError(f"embeddings in {where} must be of one width, not {widths or 'absent'}")
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in [*folder.glob("*"), *folder.glob("*/*")] if path.is_file())


def _read(path: Path, name: str) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {name: loaded}
        with loaded as arrays:
            found = {key: np.asarray(arrays[key]) for key in arrays}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        if "pickle" in str(error).lower():
            raise DataError(f"{path}: {CONVERT.replace('FILE', path.name)}") from None
        raise DataError(f"cannot read embeddings {path}: {error}") from None
    # numpy calls the only array of savez(file, x) arr_0: it is the class that the file is named after
    return {name: found["arr_0"]} if list(found) == ["arr_0"] else found


def _checked(value: np.ndarray, what: str) -> np.ndarray:
    if value.ndim != 2 or not len(value) or not np.issubdtype(value.dtype, np.number) or not np.isfinite(value).all():
        raise DataError(f"{what} must be clips x values, all finite numbers, not {value.dtype} of shape {value.shape}")
    return value.astype(np.float64)
