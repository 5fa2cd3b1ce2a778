"""Where should the threshold lie? Which candidates pass it, and how many of those are right.

python jobs/experiments/sweep.py --config jobs/experiments/question.yaml pool=/data/pool out=/data/answers
"""

import numpy as np

from foley_ray.evaluation.metrics import share
from foley_ray.evaluation.question import QuestionJob, judged, write_answer
from foley_ray.jobfile import job_main

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9)


def main(job: QuestionJob) -> None:
    rows = []
    for name, found in judged(job.pool, job.data, job.classifier).items():
        score_N = found.candidates.score_N
        for quantile in QUANTILES:
            threshold = float(np.quantile(score_N, quantile))
            passed = score_N >= threshold
            rows.append(
                {
                    "class": name,
                    "threshold": threshold,
                    "pass": float(passed.mean()),
                    "draws of 1 until one passes": float(1 / passed.mean()),
                    "accuracy of those": list(share(int(found.right_N[passed].sum()), int(passed.sum()))),
                }
            )
    asked = "Threshold sweep: who passes, and is more of it right?"
    print(write_answer(job.out, "sweep", asked, rows, ["pass", "accuracy of those"], "threshold", by="class"))


if __name__ == "__main__":
    job_main(QuestionJob, main)
