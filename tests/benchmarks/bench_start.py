"""How long one sound takes from nothing: `python tests/benchmarks/bench_start.py [--repeats 5]`.

Each figure is of a fresh process that does what `foley generate "a dog bark"` does: imports, the shipped model, one clip of
4 s, best of 3, its three files. The named alternative loads as one would without thinking of it: librosa and scikit-learn,
which laion-clap's package imports, the garbage collector on, a CLAP for each stage that has to do with one. Alternating;
medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PLAIN, OURS = "plain", "foley generate"
PROGRAM = """
import json, sys, time
start = time.perf_counter()
from pathlib import Path
from foley_ray import cli
def load():
    from foley_ray import generate
    from foley_ray.checkpoint import shipped_model
    from foley_ray.pipeline import Pipeline
    pipeline = Pipeline(shipped_model())
    if sys.argv[1] == "plain":
        import librosa, sklearn.metrics
        from foley_ray.stages.rank import RankStage
        from foley_ray.stages.sample import SampleStage
        librosa.filters.mel(sr=22050, n_fft=1024)
        pipeline.sample, pipeline.rank = SampleStage(shipped_model()), RankStage(shipped_model())
    return generate, pipeline
if sys.argv[1] == "plain":
    files, pipeline = load()
else:
    with cli.loading():
        files, pipeline = load()
loaded = time.perf_counter()
requests = files.requests_for(["a dog bark"], 1, 7, cli.USUAL)
clip = next(pipeline.generate(requests))
made = time.perf_counter()
files.write_clip(Path(sys.argv[2]), 0, clip, pipeline.info)
print(json.dumps({"load": loaded - start, "clip": made - loaded, "files": time.perf_counter() - made}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    found: dict[str, list[dict[str, float]]] = {PLAIN: [], OURS: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for way, times in found.items():
                # -c instead of a file: the interpreter's own start is in no figure, it is a twentieth of a second
                done = subprocess.run([sys.executable, "-c", PROGRAM, way, folder], capture_output=True, text=True, check=True)
                times.append(json.loads(done.stdout.splitlines()[-1]))
        assert list(Path(folder).glob("*.wav"))
    medians = {way: {part: statistics.median(t[part] for t in times) for part in times[0]} for way, times in found.items()}
    for way, parts in medians.items():
        print(
            f"{way:15s}",
            "  ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items()),
            f" all {sum(parts.values()):.1f} s",
        )
    print(f"load, {OURS} over {PLAIN}: {medians[OURS]['load'] / medians[PLAIN]['load']:.2f}")


if __name__ == "__main__":
    main()
