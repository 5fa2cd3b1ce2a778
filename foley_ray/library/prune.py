"""What `foley library prune` does: the stored candidates that no plan refers to any more are removed."""

from collections.abc import Sequence
from pathlib import Path

from foley_ray.checkpoint import read_info, shipped_model
from foley_ray.errors import ConfigError, DataError
from foley_ray.library.plan import expand, load_plan
from foley_ray.library.store import Store
from foley_ray.library.targets import find_targets


def prune(plans: Sequence[Path], library: Path, model: Path | None = None, dry: bool = False) -> tuple[int, int]:
    """Numbers of files and bytes that went, or would go. The plans are all that are still wanted.

    Raises DataError where there is no library, ConfigError where no stored clip is of these plans and this model (they are
    then hardly those that built it), and OutputError while another run holds the library.
    """
    store = Store(library.absolute())
    if not store.root.is_dir():
        raise DataError(f"no library at {library}: it has no {store.root.name} folder")
    info = read_info(model or shipped_model(), needs=("clap",))
    clips: set[str] = set()
    targets: set[str] = set()
    for path in plans:
        plan = load_plan(path, info.parts["clap"].digest)
        planned = expand(plan, info.digest)
        clips |= {clip.id for clip in planned}
        targets |= {target.sha256 for target in find_targets(plan, planned, path.parent).values()}
    with store.locked():
        made = store.draws().keys()
        if made and not made & clips:
            raise ConfigError(
                f"none of the {len(made)} clips stored in {library} is of these plans with model {info.digest}: "
                "give the plans and the model that built it, or delete the library's .foley folder"
            )
        return store.prune(clips, targets, dry)
