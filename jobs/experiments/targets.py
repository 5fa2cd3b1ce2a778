"""Is a target sound for each clip (multi-target selection) better than the prompt for all? Class by class, best of 10.

python jobs/experiments/targets.py --config jobs/experiments/question.yaml pool=/data/pool out=/data/answers
"""

import numpy as np

from foley_ray.checkpoint import read_info, shipped_model
from foley_ray.evaluation.embed import ClapEncoder
from foley_ray.evaluation.question import QuestionJob, judged, resampled, write_answer
from foley_ray.evaluation.recordings import clips
from foley_ray.jobfile import job_main

COUNT = 10


def main(job: QuestionJob) -> None:
    classes = judged(job.pool, job.data, job.classifier)
    model = job.model or shipped_model()
    clap, spec = ClapEncoder(model), read_info(model).model.audio
    rows = []
    for name, found in classes.items():
        target_MD = clap.sounds(clips(list(found.real.train_NT), spec))

        def single(rng: np.random.Generator, name: str = name) -> dict[str, np.ndarray]:
            candidates = classes[name].candidates
            return {name: candidates.best(candidates.drawn(COUNT, rng))}

        def multi(rng: np.random.Generator, name: str = name, target_MD: np.ndarray = target_MD) -> dict[str, np.ndarray]:
            candidates = classes[name].candidates
            rows_PK = candidates.drawn(COUNT, rng)
            targets = rng.permutation(len(target_MD))[: len(rows_PK)]  # a real training clip of its own for each
            picked = [rows_K[(candidates.audio_ND[rows_K] @ target_MD[t]).argmax()]
                      for rows_K, t in zip(rows_PK, np.resize(targets, len(rows_PK)), strict=True)]  # fmt: skip
            return {name: np.array(picked)}

        only = {name: found}
        rows += [
            {"class": name, "chosen by": kind, **resampled(draw, only, job.draws, job.seed)}
            for kind, draw in (("text", single), ("targets", multi))
        ]
    asked = "Selection by the prompt against selection by a target sound for each clip"
    print(write_answer(job.out, "targets", asked, rows, ["accuracy", "FAD", "diversity"], "class", by="chosen by"))


if __name__ == "__main__":
    job_main(QuestionJob, main)
