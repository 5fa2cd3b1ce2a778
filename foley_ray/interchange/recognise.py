"""Which format a path, file or hub id has, told by its content, and the reader that takes it."""

from dataclasses import dataclass
from pathlib import Path

from foley_ray.checkpoint import INFO_FILE
from foley_ray.errors import ModelError
from foley_ray.interchange.foreign import Foreign
from foley_ray.interchange.hub import download
from foley_ray.interchange.weights import read_weights


@dataclass(frozen=True)
class Reading:
    """What a reader is told beside the path."""

    tokenizer: Path | None = None
    """Folder of RoBERTa's tokenizer, for files that come without; the hub's otherwise."""
    ema: bool = True
    head_channels: int | None = None


def read_foreign(source: str | Path, reading: Reading = Reading()) -> Foreign:
    """Everything usable of a foreign model. Raises ModelError naming what was found where nothing is recognised."""
    path = fetch(str(source))
    return _read_folder(path, reading) if path.is_dir() else _read_file(path, reading)


def fetch(source: str) -> Path:
    """A local path as it is; a hub id (owner/name) downloaded. Raises ModelError where there is neither, or no network."""
    path = Path(source)
    if path.exists():
        return path
    owner, slash, name = source.partition("/")
    if (
        not (slash and owner and name)
        or "/" in name
        or source.startswith((".", "~"))
        or path.suffix in (".pt", ".pth", ".ckpt")
    ):
        raise ModelError(f"no file or folder at {source}")
    return download(source)


def _read_folder(folder: Path, reading: Reading) -> Foreign:
    if (folder / INFO_FILE).is_file():
        raise ModelError(f"{folder} is a model folder of ours already; use it as it is")
    if (folder / "model_index.json").is_file():
        from foley_ray.interchange.diffusers_folder import read_diffusers

        return read_diffusers(folder)
    if (folder / "config.json").is_file():
        from foley_ray.models.roberta_clap import RobertaClap

        clap = RobertaClap.from_pretrained(folder, reading.tokenizer, safetensors=False)
        return Foreign("transformers CLAP", {"clap": clap}, {"clap": clap.config})
    found = ", ".join(sorted(item.name for item in folder.iterdir())[:6]) or "nothing"
    raise ModelError(f"{folder} is no model that is known here: no model_index.json, no config.json (it holds: {found})")


def _read_file(path: Path, reading: Reading) -> Foreign:
    from foley_ray.interchange.audioldm import is_audioldm, is_vae, read_audioldm, read_vae
    from foley_ray.interchange.hifigan import is_hifigan, read_hifigan
    from foley_ray.interchange.laion import is_laion, read_laion

    state = read_weights(path)
    if is_audioldm(state):
        return read_audioldm(state, str(path), reading.tokenizer, reading.ema, reading.head_channels)
    if is_laion(state):
        clap = read_laion(state, reading.tokenizer, str(path))
        return Foreign("LAION-CLAP", {"clap": clap}, {"clap": clap.config})
    if is_hifigan(state):
        return read_hifigan(state, str(path), path.parent)
    if is_vae(state):
        return read_vae(state, str(path))
    raise ModelError(f"the weights in {path} are of no model that is known here (such as {', '.join(list(state)[:3])})")
