"""laion-clap's network and byte-pair tokenizer, and nothing else of the package.

It cannot be imported plainly: its __init__ asks the model hub for three tokenizers, and offline it gets garbage vocabularies
without an error. Its sub-package's imports scikit-learn, and its towers librosa, which who only generates should not wait for.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from foley_ray.errors import ModelError
from foley_ray.models import logmel

FRONT_END = ("spectrogram_extractor.", "logmel_extractor.")
"""Fourier and mel matrices that published audio towers carry: they follow from the settings, and are computed here."""


@cache
def laion() -> types.SimpleNamespace:
    """Its modules `model`, `pann_model` and `tokenizer`. Raises ModelError if it is not installed."""
    if importlib.util.find_spec("laion_clap") is None:
        raise ModelError("the package laion-clap is not installed; run: pip install 'laion-clap>=1.1.7,<2'")
    package = _without_init("laion_clap")
    towers = _without_init("torchlibrosa")
    bare = {
        "laion_clap": package,
        "laion_clap.clap_module": _inside(package, "clap_module"),
        "torchlibrosa": towers,
        "torchlibrosa.stft": logmel,
    }
    with _standing_in(bare):
        return types.SimpleNamespace(
            **{name: importlib.import_module(f"laion_clap.clap_module.{name}") for name in ("model", "pann_model", "tokenizer")}
        )


def _without_init(name: str) -> types.ModuleType:
    """A package whose modules can be imported, but whose own __init__ has not run."""
    spec = importlib.util.find_spec(name)
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations or []) if spec else []
    return package


def _inside(package: types.ModuleType, name: str) -> types.ModuleType:
    """The same of a package within one."""
    inner = types.ModuleType(f"{package.__name__}.{name}")
    inner.__path__ = [f"{folder}/{name}" for folder in package.__path__]
    return inner


@contextmanager
def _standing_in(modules: Mapping[str, types.ModuleType]) -> Iterator[None]:
    """Others in the place of some modules, for a while: somebody else's `import laion_clap` still gets the real one."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
