"""Does the wording of a prompt matter? Every candidate of each wording, without selection.

python jobs/experiments/wordings.py --config jobs/experiments/question.yaml pool=/data/pool out=/data/answers
"""

from foley_ray.evaluation.metrics import bootstrap, diversity, share
from foley_ray.evaluation.question import QuestionJob, judged, write_answer
from foley_ray.jobfile import job_main


def main(job: QuestionJob) -> None:
    rows = []
    for name, found in judged(job.pool, job.data, job.classifier).items():
        for index, prompt in enumerate(found.candidates.prompts):
            own = found.candidates.prompt_N == index
            rows.append(
                {
                    "class": name,
                    "wording": prompt,
                    "accuracy": list(share(int(found.right_N[own].sum()), int(own.sum()))),
                    "CLAP score": list(bootstrap(lambda x: float(x.mean()), found.candidates.score_N[own])),
                    "diversity": diversity(found.judge_ND[own]),
                }
            )
    asked = "Wordings of a prompt against accuracy, CLAP score and diversity"
    print(write_answer(job.out, "wordings", asked, rows, ["accuracy", "CLAP score"], "wording", by="class"))


if __name__ == "__main__":
    job_main(QuestionJob, main)
