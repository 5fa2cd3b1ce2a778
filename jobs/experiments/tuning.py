"""What does the tuning layer do? The same prompts and noise with it and around it, best of 3.

python jobs/experiments/tuning.py --config jobs/experiments/question.yaml pool=/data/pool other_pool=/data/pool_untuned
"""

import numpy as np

from foley_ray.errors import ConfigError
from foley_ray.evaluation.question import QuestionJob, judged, resampled, write_answer
from foley_ray.jobfile import job_main

COUNT = 3


def main(job: QuestionJob) -> None:
    if job.other_pool is None:
        raise ConfigError("other_pool must be a pool that candidates.py made with tuning=false")
    rows = []
    for kind, folder in (("on", job.pool), ("off", job.other_pool)):
        classes = judged(folder, job.data, job.classifier)
        for name in ("all", *classes):
            chosen = classes if name == "all" else {name: classes[name]}

            def draw(rng: np.random.Generator, chosen: dict = chosen) -> dict[str, np.ndarray]:
                return {n: found.candidates.best(found.candidates.drawn(COUNT, rng)) for n, found in chosen.items()}

            rows.append({"tuning": kind, "class": name, **resampled(draw, chosen, job.draws, job.seed)})
    asked = "The tuning layer on and off"
    print(write_answer(job.out, "tuning", asked, rows, ["CLAP score", "accuracy", "FAD", "diversity"], "class", by="tuning"))


if __name__ == "__main__":
    job_main(QuestionJob, main)
