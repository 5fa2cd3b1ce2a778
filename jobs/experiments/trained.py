"""What do models that differ in one thing, trained alike, do differently? Stopped, the same command goes on.

python jobs/experiments/trained.py --config jobs/experiments/sizes.yaml out=/data/sizes
python jobs/experiments/trained.py --config jobs/experiments/tunings.yaml out=/data/tunings
"""

from foley_ray.evaluation.arms import ArmsJob, compare
from foley_ray.evaluation.question import write_answer
from foley_ray.jobfile import job_main


def main(job: ArmsJob) -> None:
    rows = compare(job, lambda line: print(line, flush=True))
    asked = f"Arms: {', '.join(job.arms)}"
    plotted = ["loss", "s a clip", "CLAP score", "accuracy", "FAD", "diversity"]
    print(write_answer(job.out, job.out.name, asked, rows, plotted, "arm"))


if __name__ == "__main__":
    job_main(ArmsJob, main)
