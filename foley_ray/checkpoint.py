"""A model folder: laid out as diffusers lays one out, written whole or not at all, never a pickle.

    MODEL/
      foley.json          settings, latent scale, and for each part its digest, what it was trained on and with; written last
      model_index.json    diffusers' table of parts
      clap/ tuning/ unet/ vae/ vocoder/    config.json and safetensors
      scheduler/          the noise schedule in diffusers' words
      originals.safetensors    what it learned from, as CLAP hears and mel pictures show it, if it was given that (originals.py)

A folder may hold some of the parts (what one training task made); `assemble` puts parts of several folders together and
refuses those that were not made for each other.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from foley_ray import __version__
from foley_ray.audio.files import replacing
from foley_ray.config import ModelConfig, RobertaClapConfig
from foley_ray.errors import ModelError, OutputError
from foley_ray.originals import Originals
from foley_ray.presets import Preset
from foley_ray.settings import describe

Part = Literal["clap", "tuning", "unet", "vae", "vocoder"]
PARTS: tuple[Part, ...] = get_args(Part)
INFO_FILE = "foley.json"
RUN_FILE, MODEL_FOLDER = "run.json", "model"
"""In the folder of a training run: what it is, and the model that it has made when it is finished."""
FORMAT = 1
MAX_FILE_BYTES = 14_000_000
"""Networks are cut into files of this size, which fits the limits of code hosts and package indexes."""

LIBRARY_CLASSES = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}


class PartInfo(BaseModel):
    """Where one part came from."""

    model_config = ConfigDict(frozen=True)

    digest: str
    made_for: dict[Part, str] = {}
    """Digests of the parts this one was trained against: a UNet knows only the latents of its VAE and the space of its CLAP."""
    training: dict[str, Any] = {}
    """Task, steps, dataset digest, settings, scores: how to make it again."""
    stands_for: tuple[str, ...] = ()
    """Digests of earlier versions whose place this one takes: a VAE whose decoder alone was trained on has their latents, and a
    CLAP whose audio tower alone was has their text embeddings."""

    def serves(self, digest: str) -> bool:
        """Whether what was made for the part of that digest works with this one."""
        return digest in (self.digest, *self.stands_for)


class OriginalsInfo(BaseModel):
    """What a model holds of the recordings it learned from (originals.py)."""

    model_config = ConfigDict(frozen=True)

    digest: str
    clap: str
    """Digest of the CLAP that heard them."""
    dataset: str
    rows: int


class ModelInfo(BaseModel):
    """foley.json: what a model folder holds."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    foley_ray: str = __version__
    preset: str
    model: ModelConfig
    latent_scale: float = 1.0
    """What the diffusion model multiplies VAE latents by, so that they have unit spread."""
    parts: dict[Part, PartInfo] = {}
    licences: list[str] = []
    sounds: dict[str, tuple[str, ...]] = {}
    """What the diffusion model was taught to make: the wordings of each class."""
    originals: OriginalsInfo | None = None
    """By what a near copy of a recording is known, if the model was given it."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any weight or setting: the model's identity in every clip's metadata."""
        known = {"model": self.model.model_dump(mode="json"), "scale": self.latent_scale}
        known["parts"] = {name: part.digest for name, part in sorted(self.parts.items())}
        if self.originals:
            known["originals"] = self.originals.digest
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def can_rank(self) -> bool:
        """Whether its CLAP hears; a text tower alone conditions the diffusion model, but scores nothing."""
        return not isinstance(self.model.clap, RobertaClapConfig) or self.model.clap.hears

    def require_ranker(self, task: str) -> Self:
        """The same; raises ModelError if it cannot rank."""
        if isinstance(self.model.clap, RobertaClapConfig):
            self.model.clap.require_hearing(task)
        return self

    def with_part(self, name: Part, part: PartInfo, **changes: Any) -> Self:
        """The same with one part added or replaced."""
        return self.model_copy(update={"parts": {**self.parts, name: part}, **changes})


def shipped_model() -> Path:
    """The model folder that comes with the package. Raises ModelError where it was left out."""
    path = Path(__file__).with_name("default_model")
    if not (path / INFO_FILE).is_file() or "unet" not in read_info(path).parts:
        raise ModelError(f"the model that ships is not at {path}: install foley_ray again, or give a model with --model")
    return path


def part_digest(folder: Path) -> str:
    """16 hexadecimal digits over the names and bytes of a part's safetensors files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def read_info(folder: Path, needs: Sequence[Part] = ()) -> ModelInfo:
    """What a model folder says of itself. Raises ModelError if it is none, or lacks one of the parts `needs`."""
    path = folder / INFO_FILE
    if not folder.is_dir():
        raise ModelError(f"no model folder at {folder}; give one that `foley train`, `assemble` or `import` wrote")
    index = folder / "model_index.json"
    if not path.is_file() and index.is_file() and "AudioLDMPipeline" in index.read_text():
        raise ModelError(f"{folder} is a folder of diffusers'; convert it once: foley import {folder} --out MODEL")
    if not path.is_file():
        found = ", ".join(sorted(item.name for item in folder.iterdir())[:6]) or "nothing"
        raise ModelError(f"{folder} is no model folder: it has no {INFO_FILE} (it holds: {found})")
    try:
        info = ModelInfo.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ModelError(f"{path} cannot be read: {describe(error)}") from None
    if info.format > FORMAT:
        raise ModelError(f"{path} has format {info.format}, newer than this foley_ray {__version__} knows; update foley_ray")
    missing = [name for name in needs if name not in info.parts]
    if missing:
        raise ModelError(
            f"model folder {folder} lacks {', '.join(missing)} (it has: {', '.join(info.parts) or 'no parts'}); "
            "train what is missing, then put the parts together with `foley assemble`"
        )
    check_fit(info, folder)
    return info


def check_fit(info: ModelInfo, where: Path) -> None:
    """Raise ModelError if a part was trained against another CLAP or VAE than the one beside it."""
    for name, part in info.parts.items():
        for other, digest in part.made_for.items():
            if other in info.parts and not info.parts[other].serves(digest):
                raise ModelError(
                    f"parts of {where} do not fit each other: {name} was trained with {other} {digest}, but {other} here is "
                    f"{info.parts[other].digest}; train {name} again or use the {other} it was made for"
                )

    tuning, unet = info.parts.get("tuning"), info.parts.get("unet")
    if tuning and unet and tuning.training != unet.training:
        raise ModelError(
            f"parts of {where} do not fit each other: tuning and unet come from different trainings; the layer belongs to "
            "the fine-tuned unet it was trained with: name that run last"
        )


def model_folder(path: Path) -> Path:
    """A model folder, or that of a training run."""
    return path / MODEL_FOLDER if (path / RUN_FILE).is_file() else path


def find_parts(
    folders: Sequence[Path], preset: Preset, needed: Sequence[Part], useful: Sequence[Part] = (), why: str = "this"
) -> dict[Part, tuple[Path, ModelInfo]]:
    """Which of the folders gives each part, and what that folder says of itself; of two with the same part the later one.

    Raises ModelError if one of `needed` is in none of them, or a part was made with other settings than `preset` has.
    """
    offered: dict[Part, tuple[Path, ModelInfo]] = {}
    for folder in folders:
        info = read_info(folder)
        offered |= {name: (folder, info) for name in info.parts if name in (*needed, *useful)}
    for name in needed:
        if name not in offered:
            raise ModelError(f"{why} needs a trained {name}: `foley train {name}` first, then give its run with --init")
    for name, (folder, info) in offered.items():
        for section in ("audio", name):
            if section == "clap" and _same_space(info.model, preset.model):
                continue
            if section != "tuning" and getattr(info.model, section) != getattr(preset.model, section):
                raise ModelError(
                    f"{name} of {folder} was made with other settings ({section} of preset {info.preset}) than preset "
                    f"{preset.name} has; use the preset that it was made with"
                )
    return offered


def _same_space(given: ModelConfig, wanted: ModelConfig) -> bool:
    """Whether a published CLAP stands in for the preset's own: all that the diffusion model sees of it is its width."""
    return isinstance(given.clap, RobertaClapConfig) and given.clap.embed_dim == wanted.clap.embed_dim


def load_part(folder: Path, name: Part) -> Any:
    """One part as a module in float32, ready to use (eval mode). Raises ModelError if weights and settings disagree.

    Imports what this part needs alone: a process that only ranks need not spend seconds on loading diffusers.
    """
    import torch
    from safetensors import SafetensorError

    place = folder / name
    try:
        if name in LIBRARY_CLASSES:
            from diffusers import AutoencoderKL, UNet2DConditionModel
            from diffusers.utils.logging import disable_progress_bar

            disable_progress_bar()  # its own, over the files of a part
            kind = UNet2DConditionModel if name == "unet" else AutoencoderKL
            part, report = kind.from_pretrained(
                place, torch_dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            # diffusers fills what a file lacks with random numbers
            if report["missing_keys"] or report["unexpected_keys"]:
                raise ModelError(f"part {name} of {folder} lacks weights {sorted(report['missing_keys'])[:3]}")
        elif name == "vocoder":
            from foley_ray.models.vocoder import load_vocoder

            part = load_vocoder(place, read_info(folder).model.audio)
        elif name == "clap":
            from foley_ray.models.clap import load_clap

            part = load_clap(place)
        else:
            from foley_ray.models.tuning import Tuning

            part = Tuning.from_pretrained(place)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"part {name} of {folder} cannot be loaded: {error}") from error
    return part.float().eval()


def save_model(out: Path, info: ModelInfo, parts: Mapping[Part, Any | Path], half: bool = False) -> ModelInfo:
    """Write a model folder from modules, or from part folders to copy; replaces one that is there.

    Everything is written to a temporary name beside `out`, foley.json last, and then renamed: the folder is whole or absent.
    Digests in `info` are filled in for modules. A new folder knows no originals. Raises OutputError if the place cannot be
    written.
    """
    info = info.model_copy(update={"originals": None})
    if out.exists() and not (out / INFO_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists and is no model folder; choose another place, nothing there was touched")
    temporary = out.with_name(f".{out.name}.{uuid4().hex[:8]}")
    replaced = temporary.with_name(f"{temporary.name}.old")
    renamed: dict[str, str] = {}
    try:
        temporary.mkdir(parents=True)
        for name, part in parts.items():
            place = temporary / name
            if isinstance(part, Path):
                shutil.copytree(part, place)
            else:
                sharded = {"max_shard_size": MAX_FILE_BYTES} if name in LIBRARY_CLASSES else {}
                part.save_pretrained(place, **sharded)
            _forget_origin(place / "config.json")
            if half:
                _halve(place)
            known = info.parts.get(name, PartInfo(digest=""))
            renamed[known.digest] = part_digest(place)
            info = info.with_part(name, known.model_copy(update={"digest": renamed[known.digest]}))
        for name, known in info.parts.items():  # what was made for a part is made for its halved copy
            made_for = {other: renamed.get(digest, digest) for other, digest in known.made_for.items()}
            info = info.with_part(name, known.model_copy(update={"made_for": made_for}))
        if "vae" in parts:
            _set_json(temporary / "vae" / "config.json", {"scaling_factor": info.latent_scale})
        _write_diffusers_files(temporary, info)
        (temporary / INFO_FILE).write_text(info.model_dump_json(indent=1))
        for path in temporary.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors makes its files readable by the owner alone
        if out.exists():
            out.rename(replaced)
        temporary.rename(out)
    except OSError as error:
        raise OutputError(f"cannot write model folder {out}: {error.strerror or error}; choose another place") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if out.exists():
            shutil.rmtree(replaced, ignore_errors=True)
    return info


def assemble(
    sources: Sequence[Path], out: Path, half: bool = False, taught: Mapping[str, tuple[str, ...]] | None = None
) -> ModelInfo:
    """Put the parts of several model folders into one; where two have the same part, the later folder's is taken.

    `half` stores weights as 16-bit floats, half the size; they are loaded as 32-bit again. `taught` are sounds that the unet
    learned before those that its folder tells of. Raises ModelError if the parts do
    not fit each other, OutputError if `out` cannot be written.
    """
    infos = [(folder, read_info(folder)) for folder in sources]
    chosen: dict[Part, tuple[Path, ModelInfo]] = {name: (folder, info) for folder, info in infos for name in info.parts}
    first_folder, first = infos[0]
    for folder, info in infos[1:]:
        if info.model.audio != first.model.audio:
            raise ModelError(f"{folder} ({info.preset}) and {first_folder} ({first.preset}) measure sound differently (audio)")
    sections: dict[str, Any] = {name: getattr(owner.model, name) for name, (_, owner) in chosen.items()}
    if "unet" in chosen:
        sections["diffusion"] = chosen["unet"][1].model.diffusion
    widths = {name: owner.model.clap.embed_dim for name, (_, owner) in chosen.items() if name in ("clap", "unet", "tuning")}
    if len(set(widths.values())) > 1:
        raise ModelError(f"parts of {out} do not fit each other: widths of the CLAP space they were made for are {widths}")
    info = ModelInfo(
        preset=infos[-1][1].preset,
        model=first.model.model_copy(update=sections),
        latent_scale=chosen["unet"][1].latent_scale if "unet" in chosen else 1.0,
        parts={name: owner.parts[name] for name, (_, owner) in chosen.items()},
        licences=sorted({licence for _, owner in infos for licence in owner.licences}),
        sounds={**(taught or {}), **chosen["unet"][1].sounds} if "unet" in chosen else {},
    )
    check_fit(info, out)
    return save_model(out, info, {name: folder / name for name, (folder, _) in chosen.items()}, half)


def add_originals(folder: Path, originals: Originals, dataset: str) -> ModelInfo:
    """Give a model folder what its CLAP heard in the recordings of a dataset (its digest); replaces what it had."""
    info = read_info(folder, needs=("clap",)).model_copy(update={"originals": None})
    _write_info(folder, info)  # who is killed here leaves a model without originals, not one whose file is another
    known = OriginalsInfo(
        digest=originals.save(folder), clap=info.parts["clap"].digest, dataset=dataset, rows=len(originals.limit_N)
    )
    info = info.model_copy(update={"originals": known})
    _write_info(folder, info)
    return info


def read_originals(folder: Path, info: ModelInfo) -> Originals | None:
    """What a model holds of the recordings it learned from, if anything. Raises ModelError where that is damaged."""
    if info.originals is None:
        return None
    if info.originals.clap != info.parts["clap"].digest:
        raise ModelError(
            f"originals of {folder} were heard by clap {info.originals.clap}, but clap here is {info.parts['clap'].digest}; "
            "make them again with foley originals"
        )
    return Originals.load(folder, info.originals.digest)


def _write_info(folder: Path, info: ModelInfo) -> None:
    with replacing(folder / INFO_FILE) as temporary:
        temporary.write_text(info.model_dump_json(indent=1))


def _halve(folder: Path) -> None:
    """Rewrite a part's safetensors files with 16-bit floats."""
    import torch
    from safetensors.torch import load_file, save_file

    for path in folder.glob("*.safetensors"):
        weights = load_file(path)
        save_file({name: w.half() if w.dtype == torch.float32 else w for name, w in weights.items()}, path)


def _write_diffusers_files(folder: Path, info: ModelInfo) -> None:
    """model_index.json and scheduler/, so that diffusers' from_pretrained(subfolder=...) works on each part."""
    diffusion = info.model.diffusion
    scheduler = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": diffusion.train_steps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction" if diffusion.prediction == "v" else "epsilon",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=1))
    index = {"_class_name": "FoleyPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
    index |= {name: LIBRARY_CLASSES.get(name, ["foley_ray", name]) for name in sorted(info.parts)}
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))


def _forget_origin(path: Path) -> None:
    """diffusers notes the folder that it loaded from, which is nobody's business where the model goes."""
    config = json.loads(path.read_text())
    if config.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(config, indent=1))


def _set_json(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=1))
