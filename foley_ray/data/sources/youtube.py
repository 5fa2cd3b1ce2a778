"""AudioSet and AudioCaps: tables of segments of videos, and files named after them in as many ways as there are downloaders.

Y--PJHxphWEs.wav                    qiuqiangkong/audioset_tagging_cnn (PANNs), and WavCaps
--PJHxphWEs_30.0-40.0.ogg           MorenoLaQuatra/audioset-download, in a folder per label
--PJHxphWEs_30.000_40.000.wav       shell scripts that paste the table's own words together
--PJHxphWEs_30000_40000.flac        speedyseal/audiosetdl, milliseconds
--PJHxphWEs_30.wav  --PJHxphWEs.wav aac-datasets, and many a script
91139.wav                           AudioCaps by its own id: MorenoLaQuatra/audiocaps-download
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from foley_ray.data.manifest import Reason
from foley_ray.data.sources.recording import Recording, class_of, distinct, split_in, stem, text
from foley_ray.data.sources.tables import SoundFiles, csv_headers, nearest, read_json, read_table
from foley_ray.data.storage import Fault, Place, Storage
from foley_ray.errors import SourceError

LABELS_FILE, ONTOLOGY_FILE = "class_labels_indices.csv", "ontology.json"
_SEGMENT = re.compile(r"Y?(?P<id>[\w-]{11})(?:_(?P<start>\d+(?:\.\d+)?)(?:[_-]\d+(?:\.\d+)?)?)?", re.ASCII)


def find_audioset(storage: Storage) -> list[str]:
    """The tables of segments: three lines of comments, of which the last or the first names the columns."""
    return [name for name, _ in csv_headers(storage) if b"# YTID, start_seconds" in storage.head(name)]


def read_audioset(storage: Storage, files: Sequence[str]) -> Iterator[Recording]:
    """A recording per segment: its caption the names of its labels, its class the first of them.

    With ontology.json labels that say no more than another one (Animal, beside Dog) are left out.
    """
    names, broader = _ontology(storage)
    segments = _Segments(storage)
    for file in files:
        for video, start, mids in _segments_of(storage, file):
            known = [mid for mid in mids if mid in names]
            implied = set().union(*(broader.get(mid, ()) for mid in known))
            labels = [names[mid] for mid in known if mid not in implied] or [names[mid] for mid in known]
            captions = (text(", ".join(labels).lower()),) if labels else ()
            yield segments.recording(file, video, start, captions, class_of(labels[0]) if labels else None)


def find_audiocaps(storage: Storage) -> list[str]:
    """Tables with the columns of AudioCaps."""
    needed = {"youtube_id", "start_time", "caption"}
    return [name for name, columns in csv_headers(storage) if needed <= set(columns)]


def read_audiocaps(storage: Storage, files: Sequence[str]) -> Iterator[Recording]:
    """A recording per segment; val and test have five captions each, in rows of their own."""
    segments = _Segments(storage)
    for file in files:
        _, rows = read_table(storage, file)
        keyed: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
        for row in rows:
            keyed[text(row["youtube_id"]), text(row["start_time"])].append(row)
        for (video, start), found in keyed.items():
            ids = [text(row["audiocap_id"]) for row in found if row.get("audiocap_id")]
            yield segments.recording(file, video, start, distinct(row["caption"] for row in found), None, ids)


class _Segments:
    """The sound files of a source by the video, and the second, that they are cut from."""

    def __init__(self, storage: Storage):
        self.files = SoundFiles(storage)
        self._by_segment: dict[tuple[str, float | None], list[str]] = defaultdict(list)
        for name in self.files.names:
            if found := _SEGMENT.fullmatch(stem(PurePosixPath(name).name)):
                self._by_segment[found["id"], float(found["start"]) if found["start"] else None].append(name)

    def recording(
        self, table: str, video: str, start: str, captions: tuple[str, ...], class_name: str | None, ids: Iterable[str] = ()
    ) -> Recording:
        name = self._find(table, video, start) or next(filter(None, (self.files.find(key, table) for key in ids)), None)
        source = name or f"{video}_{start}"
        return Recording(
            place=Place(source),
            source=source,
            captions=captions,
            class_name=class_name,
            split=split_in(PurePosixPath(table).name),
            recording=f"youtube:{video}",
            fault=None if name else (Reason.MISSING, f"no sound file is named after video {video} from {start} s, of {table}"),
        )

    def _find(self, table: str, video: str, start: str) -> str | None:
        try:
            start_s = float(start)
        except ValueError:
            return None
        for key in (start_s, start_s * 1000, None):
            if names := self._by_segment.get((video, key)):
                return nearest(names, table)
        return None


def _segments_of(storage: Storage, file: str) -> Iterator[tuple[str, str, list[str]]]:
    """(video, start in seconds, label ids) of each segment of a table."""
    try:
        with storage.open(file) as content:
            lines = content.read().decode("utf-8-sig").splitlines()
        for row in csv.reader((line for line in lines if line and not line.startswith("#")), skipinitialspace=True):
            video, start, _, labels = [*row, "", "", "", ""][:4]
            yield video.strip(), start.strip(), [mid.strip() for mid in labels.split(",") if mid.strip()]
    except (Fault, OSError, ValueError, csv.Error) as error:
        raise SourceError(f"cannot read {storage}/{file}: {error}") from None


def _ontology(storage: Storage) -> tuple[dict[str, str], dict[str, set[str]]]:
    """({label id: name}, {label id: the ids of all that are broader}). Raises SourceError where nothing gives the names."""
    names: dict[str, str] = {}
    broader: dict[str, set[str]] = {}
    for file in storage.names:
        if PurePosixPath(file).name == LABELS_FILE:
            names |= {text(row.get("mid")): text(row.get("display_name")) for row in read_table(storage, file)[1]}
        elif PurePosixPath(file).name == ONTOLOGY_FILE:
            try:
                labels = read_json(storage, file)
                children = {label["id"]: label.get("child_ids", ()) for label in labels}
                names |= {label["id"]: text(label["name"]) for label in labels}
            except (KeyError, TypeError, AttributeError):
                raise SourceError(f"{storage}/{file} is not AudioSet's ontology: a list of labels with id and name") from None
            broader = _broader(children)
    if not names:
        raise SourceError(
            f"{storage} has AudioSet's segments without the names of their labels: add {LABELS_FILE} or {ONTOLOGY_FILE}"
        )
    return names, broader


def _broader(children: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """For each label all that lie above it."""
    broader: dict[str, set[str]] = defaultdict(set)
    for top in children:
        below, seen = list(children[top]), set()
        while below:
            label = below.pop()
            if label not in seen:
                seen.add(label)
                broader[label].add(top)
                below += children.get(label, ())
    return broader
