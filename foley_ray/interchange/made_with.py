"""What a folder of results is made with, noted beside them: the same command goes on there, another is refused."""

import json
from pathlib import Path
from typing import Any

from foley_ray.audio.files import replacing
from foley_ray.errors import ConfigError
from foley_ray.training.run import differences


def agree(note: Path, wanted: dict[str, Any], begun: bool) -> None:
    """Write the note; once something is there (`begun`), hold what is wanted against it instead.

    Raises ConfigError that says what differs, OutputError if the place cannot be written.
    """
    if not begun:
        with replacing(note) as temporary:
            temporary.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
        return
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"what {note.parent} was made with cannot be read ({error}); choose another folder") from None
    if differing := differences(known, wanted):
        raise ConfigError(f"{note.parent} was made with other settings: {'; '.join(differing)}; choose another folder")
