"""What a run did: for the scheduler a status, for people a page, for machines JSON and a line of history."""

import json
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Self

from foley_ray.library.catalogue import Missing
from foley_ray.library.choose import Choice
from foley_ray.library.store import Store

TRY_AGAIN = 75
"""Exit status (EX_TEMPFAIL of sysexits.h) of a run that left clips or redraws out which another run may make."""


@dataclass(frozen=True)
class Report:
    """One run, in numbers."""

    library: str
    ended: str
    seconds: float
    made: int
    """Clips that this run made or drew again."""
    reused: int
    """Clips that were there when it began."""
    delivered: int
    rejected: dict[str, int]
    """Per gate."""
    failed: dict[str, str]
    """Name -> reason."""
    out_of_time: bool
    """Whether the hours were over before all was made that was due, redraws among it."""
    busy_s: dict[str, float]
    """Seconds of work per stage, summed over its actors."""
    gpu_s: float
    rejections: dict[str, str]
    """Name -> reason."""

    @classmethod
    def of(
        cls,
        library: str,
        choices: Sequence[Choice],
        missing: Sequence[Missing],
        made: Collection[str],
        reused: int,
        out_of_time: bool,
        busy_s: Mapping[str, float],
        gpu_s: float,
        started: float,
    ) -> Self:
        """`started` is of the monotonic clock."""
        rejected = [choice for choice in choices if choice.gate is not None]
        return cls(
            library=library,
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 1),
            made=len(made),
            reused=reused,
            delivered=len(choices) - len(rejected),
            rejected=dict(Counter(str(choice.gate) for choice in rejected)),
            failed={item.clip.stem: item.reason for item in missing},
            out_of_time=out_of_time,
            busy_s={stage: round(seconds, 1) for stage, seconds in busy_s.items()},
            gpu_s=round(gpu_s, 1),
            rejections={choice.clip.stem: choice.reason for choice in rejected},
        )

    @property
    def clips_per_hour(self) -> float:
        """Of those that were made."""
        return self.made / self.seconds * 3600 if self.seconds else 0.0

    @property
    def status(self) -> int:
        """0 when nothing is left to make; TRY_AGAIN when clips, or redraws of some, are."""
        return TRY_AGAIN if self.failed or self.out_of_time else 0

    def summary(self) -> str:
        """One line."""
        rejected = sum(self.rejected.values())
        return (
            f"{self.delivered} delivered, {self.made} made, {self.reused} reused, {rejected} rejected, "
            f"{len(self.failed)} failed in {self.seconds:.0f} s ({self.clips_per_hour:.0f} clips an hour)"
            + ("; the hours of the run were over before all was made" if self.out_of_time else "")
        )

    def markdown(self) -> str:
        """The page."""
        lines = [f"# {self.library}", "", f"{self.summary()}, {self.gpu_s:.0f} GPU-seconds, ended {self.ended}.", ""]
        lines += ["| stage | seconds of work |", "|---|---|", *(f"| {stage} | {s:g} |" for stage, s in self.busy_s.items()), ""]
        for title, reasons in (("Failed", self.failed), ("Rejected", self.rejections)):
            if reasons:
                lines += [f"## {title}", "", *(f"- {name}: {' '.join(reason.split())}" for name, reason in reasons.items()), ""]
        return "\n".join(lines)


def write_report(report: Report, store: Store) -> None:
    """LIBRARY/report.md, report.json, and a line of history without the lists."""
    numbers = {**asdict(report), "clips_per_hour": round(report.clips_per_hour, 1)}
    store.put(store.library / "report.md", report.markdown().encode())
    store.put(store.library / "report.json", (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode())
    store.remember({**numbers, "failed": len(report.failed), "rejections": len(report.rejections)})
