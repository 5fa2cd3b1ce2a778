"""What a library build takes: its pace against a loop over the in-process pipeline, and its memory against the number of clips.

python tests/benchmarks/bench_library.py --model MODEL [--clips 40] [--steps 20] [--duration 4]
python tests/benchmarks/bench_library.py --model MODEL --what memory [--rows 2000 4000 8000]

Pace: the same clips on the same machine, one after the other. The build's time is taken once with everything (Ray, models,
delivery) and once from its first clip to its last, which is the pace of a long night. The loop writes nothing and does not
count the loading of the model.

Memory: clips as short as there are, of one candidate and one step, so that rows are many and nothing else is large. What the
driver and the largest actor of each kind have to themselves (USS: without what is shared, such as the object store), sampled
every second; each number of rows in a process of its own. What 1,000 further rows take is the slope from the first to the last.
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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "pace":
        pace(arguments.model, arguments.clips, arguments.steps, arguments.duration)
    elif len(arguments.rows) == 1:
        print(json.dumps(memory(arguments.model, arguments.rows[0])))
    else:
        memories(arguments.model, arguments.rows)


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


def pace(model: Path, clips: int, steps: int, duration_s: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = write_plan(Path(folder), clips, {"duration_s": duration_s, "steps": steps})
        seen: list[tuple[float, int]] = []

        def note(progress: Progress) -> None:
            seen.append((time.perf_counter(), progress.stages["keep"]))

        started = time.perf_counter()
        report = build(LibraryJob(plan=place, out=Path(folder) / "library", model=model), note)
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
    """MB that this process, and the largest Ray worker of each kind, have to themselves: while clips are made, and ever."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.making = True
        self.while_making: dict[str, float] = defaultdict(float)
        self.ever: dict[str, float] = defaultdict(float)
        self.over = threading.Event()

    def run(self) -> None:
        here = psutil.Process()
        while not self.over.wait(1):
            now: dict[str, float] = defaultdict(float)
            for process in (here, *here.children(recursive=True)):
                try:
                    title = "driver" if process == here else process.cmdline()[0]
                    if title == "driver" or "Actor" in title:
                        now[title.replace("ray::", "")] = max(
                            now[title.replace("ray::", "")], process.memory_full_info().uss / 1e6
                        )
                except (psutil.Error, IndexError):
                    continue
            for peaks in (self.ever, *([self.while_making] if self.making else [])):
                for title, megabytes in now.items():
                    peaks[title] = max(peaks[title], megabytes)


def memory(model: Path, rows: int) -> dict[str, Any]:
    """Peaks of one build, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        clip = {"duration_s": MIN_DURATION_S, "steps": 1, "candidates": 1, "guidance": 1}
        place = write_plan(Path(folder), rows, clip)
        sampler = Sampler()
        sampler.start()
        last = [0.0, 0.0]

        def note(progress: Progress) -> None:
            last[0] = last[0] or time.perf_counter()
            last[1] = time.perf_counter()
            sampler.making = progress.stages["keep"] < progress.total

        started = time.perf_counter()
        report = build(LibraryJob(plan=place, out=Path(folder) / "library", model=model), note)
        whole_s = time.perf_counter() - started
        sampler.over.set()
        sampler.join()
        page = (Path(folder) / "library" / "index.html").stat().st_size
    return {
        "rows": rows,
        "made": report.made,
        "seconds": {"making": last[1] - started, "after it": whole_s - (last[1] - started)},
        "making": sampler.while_making,
        "ever": sampler.ever,
        "page": page / 1e6,
    }


def memories(model: Path, sizes: list[int]) -> None:
    found = []
    for rows in sizes:
        command = [sys.executable, __file__, "--model", str(model), "--what", "memory", "--rows", str(rows)]
        found.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]))
        last = found[-1]
        assert last["made"] == rows
        making_s, after_s = last["seconds"]["making"], last["seconds"]["after it"]
        print(
            f"{rows} rows: {making_s:.0f} s making, {after_s:.0f} s choosing and delivering, page {last['page']:.1f} MB",
            flush=True,
        )
        for when in ("making", "ever"):
            print(f"    {when:7}" + "".join(f"  {name} {mb:.0f} MB" for name, mb in sorted(last[when].items())), flush=True)
    first, last = found[0], found[-1]
    for when in ("making", "ever"):
        slopes = {name: (last[when][name] - mb) / (last["rows"] - first["rows"]) * 1000 for name, mb in first[when].items()}
        print(f"MB per 1,000 rows, {when}:" + "".join(f"  {name} {slope:.2f}" for name, slope in sorted(slopes.items())))


if __name__ == "__main__":
    main()
