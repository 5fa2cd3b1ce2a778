"""What is not here but on the model hub, downloaded; without a network, what to do instead."""

from collections.abc import Sequence
from pathlib import Path

from foley_ray.errors import ModelError


def download(name: str, only: Sequence[str] | None = None, option: str = "") -> Path:
    """A repository of the hub (owner/name), or `only` some of its files, as a folder.

    Raises ModelError without a network, which tells to give the folder (by that option of the command line).
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(
            snapshot_download(
                name, allow_patterns=list(only) if only else None, ignore_patterns=["*.msgpack", "*.h5", "*.onnx"]
            )
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:160]
        raise ModelError(
            f"{name} is not here, and the hub did not give it ({reason}); download it where there is a network (hf download "
            f"{name}) and give the folder{option and f' with {option}'}"
        ) from error
