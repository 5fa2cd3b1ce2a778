"""What are the text embeddings worth, before and after the tuning layer? On similar and on dissimilar labels.

python jobs/experiments/texts.py --config jobs/experiments/question.yaml pool=/data/pool out=/data/answers
"""

import numpy as np

from foley_ray.checkpoint import shipped_model
from foley_ray.columns import CONDITION, PROMPT, TARGET
from foley_ray.evaluation.embed import ClapEncoder
from foley_ray.evaluation.metrics import share
from foley_ray.evaluation.question import QuestionJob, judged, write_answer
from foley_ray.jobfile import job_main
from foley_ray.stages.condition import ConditionStage


def main(job: QuestionJob) -> None:
    classes = judged(job.pool, job.data, job.classifier)
    model = job.model or shipped_model()
    prompts = [(name, text) for name, found in classes.items() for text in found.candidates.prompts]
    batch = ConditionStage(model)({PROMPT.name: [text for _, text in prompts]})
    clap = ClapEncoder(model)
    centres = np.stack([clap.sounds(found.real.reference()).mean(axis=0) for found in classes.values()])
    names, label_N = list(classes), np.array([name for name, _ in prompts])
    same = label_N[:, None] == label_N[None]
    np.fill_diagonal(same, False)
    other = label_N[:, None] != label_N[None]
    rows = []
    for kind, column in (("before tuning", TARGET.name), ("after tuning", CONDITION.name)):
        unit_ND = batch[column] / np.linalg.norm(batch[column], axis=1, keepdims=True)
        cosine_NN = unit_ND @ unit_ND.T
        between = [[cosine_NN[np.ix_(label_N == a, label_N == b)].mean() for b in names if b != a] for a in names]
        nearest = np.array(names)[(unit_ND @ centres.T).argmax(axis=1)]
        rows.append(
            {
                "text embedding": kind,
                "cosine of wordings of one class": float(cosine_NN[same].mean()),
                "of two classes": float(cosine_NN[other].mean()),
                "of the two most similar classes": float(np.max(between)),
                "nearest to real sounds of its class": list(share(int((nearest == label_N).sum()), len(label_N))),
            }
        )
    plotted = ["cosine of wordings of one class", "of two classes", "nearest to real sounds of its class"]
    asked = "Text embeddings before and after the tuning layer"
    print(write_answer(job.out, "texts", asked, rows, plotted, "text embedding"))


if __name__ == "__main__":
    job_main(QuestionJob, main)
