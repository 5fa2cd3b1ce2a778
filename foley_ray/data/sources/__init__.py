"""Reading a source into a list of candidate recordings, without opening any sound.

LAYOUTS are tried in order and the first that fits wins, unless one is asked for by name. Whether a sound exists and is any
good is found out while ingesting, row by row; what is wrong with a single row here (no file of its name, an archive that
breaks off) is told in its `fault`, and only a source that cannot be understood is an error. A new layout is one more entry:
a function that finds its files and one that reads them.

Every row may have several captions of the same sound, and has them in one recording. A class comes from a label: of several
the first.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from foley_ray.data.sources.captioned import find_clotho, find_wavcaps, read_clotho, read_wavcaps
from foley_ray.data.sources.folders import METADATA_FILES, find_metadata, find_sounds, read_folders, read_metadata
from foley_ray.data.sources.freesound import PACK_FILE, find_freesound, find_fsd50k, read_freesound, read_fsd50k
from foley_ray.data.sources.recording import DCASE_CLASSES, Recording, caption_of, class_of
from foley_ray.data.sources.shards import find_parquet, find_webdataset, read_parquet, read_webdataset
from foley_ray.data.sources.tables import is_sound
from foley_ray.data.sources.youtube import find_audiocaps, find_audioset, read_audiocaps, read_audioset
from foley_ray.data.storage import Storage
from foley_ray.errors import ConfigError, SourceError

__all__ = ["DCASE_CLASSES", "LAYOUTS", "Layout", "Recording", "caption_of", "class_of", "read_source"]

logger = logging.getLogger(__name__)


class Layout(NamedTuple):
    """One way in which people keep recordings."""

    name: str
    looks_for: str
    """In words, for those whose source was not recognised."""
    find: Callable[[Storage], list[str]]
    """The files that tell; none where the layout does not fit."""
    read: Callable[[Storage, Sequence[str]], Iterable[Recording]]


LAYOUTS = (
    Layout("metadata", f"{', '.join(METADATA_FILES)} there or in train/, test/, ...", find_metadata, read_metadata),
    Layout("fsd50k", "FSD50K.ground_truth/dev.csv with fname,labels,mids", find_fsd50k, read_fsd50k),
    Layout("clotho", "clotho_captions_*.csv with file_name,caption_1", find_clotho, read_clotho),
    Layout("audiocaps", "a CSV with youtube_id,start_time,caption", find_audiocaps, read_audiocaps),
    Layout("audioset", "a CSV with the line # YTID, start_seconds, end_seconds, positive_labels", find_audioset, read_audioset),
    Layout("wavcaps", 'a JSON of {"data": [{"id", "caption"}]}', find_wavcaps, read_wavcaps),
    Layout("freesound", f"the API's JSON or CSV with id,name,username,license, or {PACK_FILE}", find_freesound, read_freesound),
    Layout("folders", "sound files (wav, flac, ogg, mp3, aiff, ...) in one folder per class", find_sounds, read_folders),
    Layout("webdataset", "tar files of key.wav (or flac, ...) and key.json, .txt, .cls", find_webdataset, read_webdataset),
    Layout("parquet", "Parquet files with a column of sounds: audio.bytes, or binary", find_parquet, read_parquet),
)


def read_source(source: str | Path | Storage, layout: str = "auto") -> tuple[str, list[Recording]]:
    """(layout in words, recordings in the source's order).

    Raises SourceError naming what is missing and what to do, and ConfigError for a layout that does not exist.
    """
    names = [candidate.name for candidate in LAYOUTS]
    if layout not in ("auto", *names):
        raise ConfigError(f"no layout {layout!r}; choose one of: auto, {', '.join(names)}")
    storage = source if isinstance(source, Storage) else Storage(source)
    candidates = [candidate for candidate in LAYOUTS if layout in ("auto", candidate.name)]
    for candidate in candidates:
        files = candidate.find(storage)
        if files and (recordings := list(candidate.read(storage, files))):
            _tell_of_others(storage, candidate.name, recordings)
            return _in_words(candidate.name, files), recordings
    sought = "; ".join(f"{candidate.looks_for} ({candidate.name})" for candidate in candidates)
    raise SourceError(f"no recordings in {storage}: looked for {sought}; it has {_contents(storage)}")


def _tell_of_others(storage: Storage, layout: str, recordings: Sequence[Recording]) -> None:
    """Warn of sound files that lie beside those of the layout: they may be what was meant."""
    named = {row.place.name for row in recordings}
    others = [name for name in storage.names if is_sound(name) and name not in named]
    if others:
        logger.warning(
            "%d sound files of %s are in no row of its %s layout (%s, ...) and left out; `--layout folders` takes them all",
            len(others), storage, layout, others[0],
        )  # fmt: skip


def _in_words(name: str, files: Sequence[str]) -> str:
    if name == "folders":
        return "class folders"
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return f"{name}: {', '.join(files[:3])}{more}"


def _contents(storage: Storage) -> str:
    """What is there instead."""
    names = storage.names
    return f"{len(names)} files ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "no files"
