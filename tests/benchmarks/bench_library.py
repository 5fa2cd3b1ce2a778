"""What a library build takes: its pace against a loop over the in-process pipeline, and its memory against the number of clips.

python tests/benchmarks/bench_library.py --model MODEL [--clips 40] [--steps 20] [--duration 4]
python tests/benchmarks/bench_library.py --model MODEL --what memory [--rows 2000 4000 8000] [--group 16]

Pace: the same clips on the same machine, one after the other. The build's time is taken once with everything (Ray, models,
delivery) and once from its first clip to its last, which is the pace of a long night. The loop writes nothing and does not
count the loading of the model.

Memory: clips as short as there are, of one candidate and one step, so that rows are many and nothing else is large. What the
driver and the largest actor of each kind have to themselves (USS: without what is shared, such as the object store), sampled
every five seconds, and the slope since a quarter of the rows was made; each number of rows in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml

from foley_ray.checkpoint import read_info
from foley_ray.clip import ClipRequest
from foley_ray.jobfile import LibraryJob
from foley_ray.library.build import Progress, build
from foley_ray.library.plan import expand, load_plan
from foley_ray.pipeline import Pipeline
from foley_ray.spec import MIN_DURATION_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--what", choices=("pace", "memory"), default="pace")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--duration", type=float, default=4.0)
    parser.add_argument("--rows", type=int, nargs="+", default=[2000, 4000, 8000])
    parser.add_argument("--group", type=int, default=1, help="clips per call of a stage")
    parser.add_argument("--json", action="store_true", help="one number of rows, in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "pace":
        pace(arguments.model, arguments.clips, arguments.steps, arguments.duration, arguments.group)
    elif arguments.json:
        print(json.dumps(memory(arguments.model, arguments.rows[0], arguments.group)))
    else:
        memories(arguments.model, arguments.rows, arguments.group)


def write_plan(folder: Path, clips: int, clip: dict[str, Any]) -> Path:
    plan = {
        "library": "Bench",
        "creator": "FRAY",
        "source": "BENCH",
        "date": "2026-01-01",
        "clip": clip,
        "gates": {"silence_dbfs": None, "clipped": None, "dc": None, "similarity": 1.0},
        "categories": [{"catid": "RAIN", "name": "Rain", "prompts": ["rain on leaves"], "seeds": clips}],
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder / "plan.yaml"


def pace(model: Path, clips: int, steps: int, duration_s: float, group: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = write_plan(Path(folder), clips, {"duration_s": duration_s, "steps": steps})
        seen: list[tuple[float, int]] = []

        def note(progress: Progress) -> None:
            seen.append((time.perf_counter(), progress.stages["keep"]))

        started = time.perf_counter()
        report = build(LibraryJob(plan=place, out=Path(folder) / "library", model=model, group=group), note)
        whole_s = time.perf_counter() - started
        assert report.made == clips
        (first_s, first), (last_s, last) = seen[0], seen[-1]
        pace = (last - first) / (last_s - first_s) if last > first else float("nan")

        planned = expand(load_plan(place), read_info(model).digest)
        pipeline = Pipeline(model)
        started = time.perf_counter()
        made = sum(1 for _ in pipeline.generate(ClipRequest(clip.prompt, clip.seed, clip.settings) for clip in planned))
        loop_s = time.perf_counter() - started
    print(f"build  {clips / whole_s * 3600:8.0f} clips an hour with everything ({whole_s:.0f} s)")
    print(f"build  {pace * 3600:8.0f} clips an hour from its first clip to its last")
    print(f"loop   {made / loop_s * 3600:8.0f} clips an hour, one thread, model loaded, nothing written")


class Sampler(threading.Thread):
    """MB that this process, and the largest Ray worker of each kind, have to themselves, against the rows that are done."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = 0
        self.seen: list[tuple[int, dict[str, float]]] = []
        self.over = threading.Event()

    def run(self) -> None:
        here = psutil.Process()
        while not self.over.wait(5):  # looking costs some ms a process
            now: dict[str, float] = defaultdict(float)
            for process in (here, *here.children(recursive=True)):
                try:
                    title = "driver" if process == here else process.cmdline()[0]
                    kind = next((kind for kind in ("driver", "StageActor", "LastActor") if kind in title), None)
                    if kind:
                        now[kind] = max(now[kind], process.memory_full_info().uss / 1e6)
                except (psutil.Error, IndexError):
                    continue
            self.seen.append((self.done, dict(now)))


def memory(model: Path, rows: int, group: int) -> dict[str, Any]:
    """What one build took: seconds, MB at the end of making, their slope since a quarter of the rows, the driver's peak."""
    with tempfile.TemporaryDirectory() as folder:
        place = write_plan(Path(folder), rows, {"duration_s": MIN_DURATION_S, "steps": 1, "candidates": 1, "guidance": 1})
        sampler = Sampler()
        sampler.start()
        made_at = started = time.perf_counter()

        def note(progress: Progress) -> None:
            nonlocal made_at
            sampler.done, made_at = progress.stages["keep"], time.perf_counter()

        report = build(LibraryJob(plan=place, out=Path(folder) / "library", model=model, group=group), note)
        assert report.made == rows
        whole_s = time.perf_counter() - started
        sampler.over.set()
        sampler.join()
        page = (Path(folder) / "library" / "index.html").stat().st_size
    making = [(done, now) for done, now in sampler.seen if rows / 4 <= done < rows]
    kinds = sorted({kind for _, now in making for kind in now})
    points = {kind: [(done, now[kind]) for done, now in making if kind in now] for kind in kinds}
    return {
        "making_s": made_at - started,
        "delivering_s": whole_s - (made_at - started),
        "page": page / 1e6,
        "last": {kind: found[-1][1] for kind, found in points.items()},
        "slope": {kind: float(np.polyfit(*zip(*found, strict=True), 1)[0]) * 1000 for kind, found in points.items()},
        "peak": max(now.get("driver", 0.0) for _, now in sampler.seen),
    }


def memories(model: Path, sizes: list[int], group: int) -> None:
    peaks = []
    for rows in sizes:
        command = [sys.executable, __file__, "--model", str(model), "--what", "memory", "--rows", str(rows), "--json"]
        command += ["--group", str(group)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        peaks.append(found["peak"])
        seconds = f"{found['making_s']:.0f} s making, {found['delivering_s']:.0f} s delivering"
        print(f"{rows} rows: {seconds}, page {found['page']:.1f} MB")
        for kind, megabytes in found["last"].items():
            print(f"    {kind:10} {megabytes:6.0f} MB when all are made, {found['slope'][kind]:+.1f} MB per 1,000 rows")
        print(f"    driver     {found['peak']:6.0f} MB at most, which is while the catalogue is written", flush=True)
    if len(sizes) > 1:
        print(f"the driver's most: {(peaks[-1] - peaks[0]) / (sizes[-1] - sizes[0]) * 1000:+.1f} MB per 1,000 rows")


if __name__ == "__main__":
    main()
