"""Clips per hour of a library build against a loop over the in-process pipeline: same clips, same machine, one after the other.

python tests/benchmarks/bench_library.py --model MODEL [--clips 40] [--steps 20] [--duration 4]

The build's time is taken once with everything (Ray, models, delivery) and once from its first clip to its last, which is the
pace of a long night. The loop writes nothing and does not count the loading of the model.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
import yaml

from foley_ray.checkpoint import read_info
from foley_ray.clip import ClipRequest
from foley_ray.jobfile import LibraryJob
from foley_ray.library.build import Progress, build
from foley_ray.library.plan import expand, load_plan
from foley_ray.pipeline import Pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--duration", type=float, default=4.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plan = {
        "library": "Bench",
        "creator": "FRAY",
        "source": "BENCH",
        "date": "2026-01-01",
        "clip": {"duration_s": arguments.duration, "steps": arguments.steps},
        "categories": [{"catid": "RAIN", "name": "Rain", "prompts": ["rain on leaves"], "seeds": arguments.clips}],
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "plan.yaml"
        place.write_text(yaml.safe_dump(plan))
        seen: list[tuple[float, int]] = []

        def note(progress: Progress) -> None:
            seen.append((time.perf_counter(), progress.stages["keep"]))

        started = time.perf_counter()
        report = build(LibraryJob(plan=place, out=Path(folder) / "library", model=arguments.model), note)
        whole_s = time.perf_counter() - started
        assert report.made == arguments.clips
        (first_s, first), (last_s, last) = seen[0], seen[-1]
        pace = (last - first) / (last_s - first_s) if last > first else float("nan")

        clips = expand(load_plan(place), read_info(arguments.model).digest)
        pipeline = Pipeline(arguments.model)
        started = time.perf_counter()
        made = sum(1 for _ in pipeline.generate(ClipRequest(clip.prompt, clip.seed, clip.settings) for clip in clips))
        loop_s = time.perf_counter() - started
    print(f"build  {arguments.clips / whole_s * 3600:8.0f} clips an hour with everything ({whole_s:.0f} s)")
    print(f"build  {pace * 3600:8.0f} clips an hour from its first clip to its last")
    print(f"loop   {made / loop_s * 3600:8.0f} clips an hour, one thread, model loaded, nothing written")


if __name__ == "__main__":
    main()
