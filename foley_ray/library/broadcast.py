"""Delivered files: 24-bit Broadcast WAV with bext (EBU Tech 3285, version 2) and iXML chunks, or FLAC with the same as tags.

Everything comes in as arguments, dates too: the same sound and the same words give the same bytes.
"""

import io
import re
import struct
import unicodedata
import uuid
from dataclasses import dataclass, field
from xml.etree import ElementTree

import numpy as np
import soundfile as sf

from foley_ray import __version__
from foley_ray.audio.loudness import RATE_HZ, Loudness
from foley_ray.library.ucs import Category, Format

UNDEFINED = 0x7FFF
"""What Tech 3285 writes for a loudness value that was not, or could not be, measured."""
_TEXT_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufffe\uffff\ud800-\udfff]")


@dataclass(frozen=True)
class Description:
    """What a file says of itself."""

    clip_id: str
    ucs: Category
    fx_name: str
    library: str
    creator: str
    source: str
    date: str
    """YYYY-MM-DD."""
    time: str
    """HH:MM:SS."""
    prompt: str
    keywords: tuple[str, ...]
    provenance: dict[str, str] = field(default_factory=dict)
    """How the sound was made: seed, settings, model digest."""

    @property
    def text(self) -> str:
        """One line for people."""
        return plain(f"{self.prompt}. AI-generated (foley_ray, model {self.provenance.get('MODEL', 'unknown')}).")


def plain(text: str) -> str:
    """Text without control and direction characters, which XML refuses or a reader would be misled by."""
    return " ".join(_TEXT_CONTROL.sub(" ", text).split())


def quantise(wave_T: np.ndarray) -> np.ndarray:
    """(T,) within -1..1 -> int32 samples of 24 bits, as they are stored."""
    full_scale = 2**23
    scaled = np.rint(np.asarray(wave_T, dtype=np.float64) * full_scale)
    return np.asarray(scaled.clip(-full_scale, full_scale - 1), dtype=np.int32)


def encode(wave_T: np.ndarray, format: Format, about: Description, loudness: Loudness) -> bytes:
    """A mono wave at 48 kHz as a whole file."""
    return _wav(wave_T, about, loudness) if format == "wav" else _flac(wave_T, about, loudness)


def _wav(wave_T: np.ndarray, about: Description, loudness: Loudness) -> bytes:
    samples = quantise(wave_T).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    chunks = [
        (b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE_HZ, RATE_HZ * 3, 3, 24)),
        (b"bext", bext(about, loudness)),
        (b"iXML", ixml(about, loudness)),
        (b"data", samples),
    ]
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def bext(about: Description, loudness: Loudness) -> bytes:
    """The chunk of EBU Tech 3285 v2: ASCII in fields of fixed size, loudness in hundredths."""
    reference = f"FOLEYRAY{about.clip_id}"
    # a basic SMPTE 330M UMID: its label, then a number that is the clip's own
    umid = bytes.fromhex("060a2b340101010501010d2013000000") + uuid.uuid5(uuid.NAMESPACE_OID, reference).bytes
    history = f"A=PCM,F={RATE_HZ},W=24,M=mono,T=foley_ray {__version__} AI-generated\r\n"
    levels = (
        loudness.integrated_lufs,
        None,  # a loudness range needs many seconds
        loudness.true_peak_dbtp,
        loudness.max_momentary_lufs,
        loudness.max_short_term_lufs,
    )
    return struct.pack(
        "<256s32s32s10s8sQH64s5h180s",
        _ascii(about.text, 256),
        _ascii(f"foley_ray {__version__}", 32),
        _ascii(reference, 32),
        _ascii(about.date, 10),
        _ascii(about.time, 8),
        0,
        2,
        umid,
        *(UNDEFINED if level is None else round(level * 100) for level in levels),
        b"",
    ) + _ascii(history, 1000)


def ixml(about: Description, loudness: Loudness) -> bytes:
    """The document that library managers read: USER in the manner of Soundminer, ASWG after Sony's ASWG-G006."""
    root = ElementTree.Element("BWFXML")
    keywords = ", ".join(about.keywords)
    _children(
        root,
        {
            "IXML_VERSION": "3.01",
            "PROJECT": about.library,
            "NOTE": about.text,
            "FILE_UID": about.clip_id,
        },
    )
    _children(
        ElementTree.SubElement(root, "USER"),
        {
            "CATEGORY": about.ucs.category,
            "SUBCATEGORY": about.ucs.subcategory,
            "CATID": about.ucs.catid,
            "FXNAME": about.fx_name,
            "DESCRIPTION": about.text,
            "KEYWORDS": keywords,
            "LIBRARY": about.library,
            "CREATORID": about.creator,
            "SOURCEID": about.source,
            "AI_GENERATED": "AI-generated",
            "PROMPT": about.prompt,
            **about.provenance,
        },
    )
    _children(
        ElementTree.SubElement(root, "ASWG"),
        {
            "contentType": "sfx",
            "catId": about.ucs.catid,
            "category": about.ucs.category,
            "subCategory": about.ucs.subcategory,
            "fxName": about.fx_name,
            "library": about.library,
            "creatorId": about.creator,
            "sourceId": about.source,
            "originator": f"foley_ray {__version__}",
            "notes": f"AI-generated; {keywords}" if keywords else "AI-generated",
            "loudness": "" if loudness.integrated_lufs is None else f"{loudness.integrated_lufs:.2f}",
            "maxPeak": "" if loudness.true_peak_dbtp is None else f"{loudness.true_peak_dbtp:.2f}",
        },
    )
    document: bytes = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return document


def _flac(wave_T: np.ndarray, about: Description, loudness: Loudness) -> bytes:
    """FLAC has no iXML: the description and the whole document go into its tags."""
    file = io.BytesIO()
    with sf.SoundFile(file, "w", RATE_HZ, 1, subtype="PCM_24", format="FLAC") as sound:
        sound.title = plain(f"{about.ucs.catid} {about.fx_name}")
        sound.artist = about.creator
        sound.album = plain(about.library)
        sound.date = about.date
        sound.genre = plain(f"{about.ucs.category} {about.ucs.subcategory}")
        sound.comment = ixml(about, loudness).decode()
        sound.write(quantise(wave_T) << 8)  # libsndfile takes 24 bits as the upper ones of 32
    return file.getvalue()


def _ascii(text: str, length: int) -> bytes:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore")[:length]


def _children(parent: ElementTree.Element, values: dict[str, str]) -> None:
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = plain(value)
