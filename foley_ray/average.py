"""The mean of the weights of several trainings: a "model soup" (Wortsman et al. 2022, arXiv 2203.05482).

Trainings that start from the same weights mostly end in the same valley, and the middle of it is often better than each of its
edges. Trainings from different random weights do not, and their mean is noise: whose sources those are, nothing here can tell.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from foley_ray.checkpoint import ModelInfo, Part, assemble, read_info, save_model
from foley_ray.errors import ModelError


def average(sources: Sequence[Path], out: Path, half: bool = False) -> ModelInfo:
    """`assemble`, but of a part that several folders have differently the mean is taken, each folder counting once.

    Raises ModelError if such parts differ in more than their weights, and what `assemble` raises.
    """
    infos = [(folder, read_info(folder)) for folder in sources]
    owners: dict[Part, list[tuple[Path, ModelInfo]]] = {}
    for folder, info in infos:
        for name in info.parts:
            owners.setdefault(name, []).append((folder, info))
    mixed = {name: found for name, found in owners.items() if len({info.parts[name].digest for _, info in found}) > 1}
    if not mixed:
        raise ModelError("no part comes in two versions, so there is nothing to average; `foley assemble` puts parts together")
    for name, found in mixed.items():
        _check(name, found)
    last = infos[-1][1]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        parts = {}
        for name, found in mixed.items():
            _mean(name, [folder / name for folder, _ in found], place / name)
            known = found[-1][1].parts[name]
            training = known.training | {"mean_of": [info.digest for _, info in found]}
            parts[name] = known.model_copy(update={"training": training})
        owner = mixed["unet"][-1][1] if "unet" in mixed else last
        save_model(place / "mean", owner.model_copy(update={"parts": parts}), {name: place / name for name in mixed})
        return assemble([*sources, place / "mean"], out, half)


def _check(name: Part, found: list[tuple[Path, ModelInfo]]) -> None:
    """Raise ModelError unless these versions of a part are built alike and made for the same parts."""
    first_folder, first = found[0]
    for folder, info in found[1:]:
        alike = [getattr(info.model, name) == getattr(first.model, name)]
        if name == "unet":
            alike += [info.latent_scale == first.latent_scale, info.model.diffusion == first.model.diffusion]
        if not all(alike):
            raise ModelError(f"{name} of {folder} and of {first_folder} are built differently, so they have no mean")
        if info.parts[name].made_for != first.parts[name].made_for:
            raise ModelError(
                f"{name} of {folder} and of {first_folder} were trained with different parts, so they have no mean"
            )


def _mean(name: Part, folders: Sequence[Path], out: Path) -> None:
    """The last folder's files, with the mean of all folders' floating-point weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders[-1], out)
    for file in out.glob("*.safetensors"):
        versions = [load_file(folder / file.name) for folder in folders if (folder / file.name).is_file()]
        shapes = [{key: tuple(weight.shape) for key, weight in weights.items()} for weights in versions]
        if len(versions) < len(folders) or any(shape != shapes[0] for shape in shapes):
            raise ModelError(
                f"the files of {name} in {', '.join(map(str, folders))} hold different weights, so they have no mean"
            )
        mean = {
            key: sum(weights[key].float() for weights in versions) / len(versions) if weight.is_floating_point() else weight
            for key, weight in versions[-1].items()
        }
        save_file(mean, file)
