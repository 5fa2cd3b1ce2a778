"""How many candidates are worth making? Best of n by CLAP, judged by a classifier that did not select.

python jobs/experiments/count.py --config jobs/experiments/question.yaml pool=/data/pool out=/data/answers
"""

import numpy as np

from foley_ray.evaluation.question import QuestionJob, judged, resampled, write_answer
from foley_ray.jobfile import job_main

COUNTS = (1, 3, 10, 50, 100)


def main(job: QuestionJob) -> None:
    classes = judged(job.pool, job.data, job.classifier)
    most = min(np.bincount(found.candidates.prompt_N).min() for found in classes.values())
    rows = []
    for count in (count for count in COUNTS if count <= most):

        def draw(rng: np.random.Generator, count: int = count) -> dict[str, np.ndarray]:
            return {n: found.candidates.best(found.candidates.drawn(count, rng)) for n, found in classes.items()}

        rows.append({"candidates": count, **resampled(draw, classes, job.draws, job.seed)})
    asked = "Number of candidates against CLAP score, accuracy, FAD and diversity"
    print(write_answer(job.out, "count", asked, rows, ["CLAP score", "accuracy", "FAD", "diversity"], "candidates"))


if __name__ == "__main__":
    job_main(QuestionJob, main)
