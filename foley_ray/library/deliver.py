"""A choice -> its files in the library, and a receipt that says what they were made of."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from foley_ray import __version__
from foley_ray.audio.loudness import RATE_HZ, measure
from foley_ray.library.broadcast import Description, encode, quantise
from foley_ray.library.finish import PICTURE, finish, picture
from foley_ray.library.plan import Finish, Plan, PlannedClip
from foley_ray.library.store import Store
from foley_ray.library.targets import Target
from foley_ray.library.ucs import Format, lookup


@dataclass(frozen=True)
class Delivery:
    """Everything that decides a clip's files."""

    clip: PlannedClip
    candidate: int
    score: float
    model: str
    rate_hz: int
    about: Description
    finish: Finish
    formats: tuple[Format, ...]

    @classmethod
    def of(
        cls, plan: Plan, clip: PlannedClip, candidate: int, score: float, model: str, rate_hz: int, target: Target | None = None
    ) -> "Delivery":
        """The delivery of a chosen candidate; `target` is the sound that it was chosen against, None for the prompt."""
        settings = json.dumps(clip.settings.model_dump(mode="json"), separators=(",", ":"))
        about = Description(
            clip_id=clip.id,
            ucs=lookup(clip.catid),
            fx_name=clip.fx_name,
            library=plan.library,
            creator=plan.creator,
            source=plan.source,
            date=plan.date.isoformat(),
            time="00:00:00",
            prompt=clip.prompt,
            keywords=clip.keywords,
            provenance={
                "SEED": str(clip.seed),
                "CANDIDATE": str(candidate),
                "SCORE": f"{score:.6f}",
                "SETTINGS": settings,
                "MODEL": model,
                **({"TARGET": f"{target.name} (sha256 {target.sha256})"} if target else {}),
                "GENERATOR": f"foley_ray {__version__}",
            },
        )
        return cls(clip, candidate, score, model, rate_hz, about, plan.finish, plan.formats)

    @property
    def digest(self) -> str:
        """Changes with anything that decides the files' bytes."""
        known = {
            "about": asdict(self.about),
            "finish": self.finish.model_dump(),
            "formats": self.formats,
            "rate_hz": self.rate_hz,
            "picture": PICTURE,
        }
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    def done(self, store: Store) -> dict[str, Any] | None:
        """The receipt, if the files that it speaks of are there and were made of the same."""
        receipt = store.receipt(self.clip.id)
        if receipt is None or receipt["delivery"] != self.digest:
            return None
        for file in receipt["files"]:
            place = store.library / file["path"]
            if not place.is_file() or place.stat().st_size != file["bytes"]:
                return None
        return receipt


def deliver(delivery: Delivery, store: Store) -> dict[str, Any]:
    """Finish, measure and write one clip; returns its receipt."""
    clip = delivery.clip
    wave_T = store.wave(clip.id, delivery.candidate, clip.settings.candidates)
    wave_T = finish(wave_T, delivery.rate_hz, delivery.finish, clip.settings.loop)
    wave_T = quantise(wave_T) / 2**23  # what is measured is what is stored
    loudness = measure(wave_T)
    files = []
    for format in delivery.formats:
        data = encode(wave_T, format, delivery.about, loudness)
        store.put(store.library / clip.place(format), data)
        files.append({"path": clip.place(format), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    receipt = {
        "delivery": delivery.digest,
        "files": files,
        "duration_s": round(len(wave_T) / RATE_HZ, 6),
        **loudness._asdict(),
        "picture": picture(wave_T, clip.settings.loop),
    }
    store.save_receipt(clip.id, receipt)
    return receipt
