"""The paper's challenge run: 100 clips of 4 s for each class of DCASE 2023 Task 7, in the organisers' folder layout.

Submitting it again makes only what is missing.

ray job submit --working-dir . -- python jobs/dcase2023.py --config jobs/dcase2023.yaml models.small=/data/small out=/data/entry
"""

import ray

from foley_ray.interchange.challenge import ChallengeJob, make_share, write_report
from foley_ray.jobfile import job_main


@ray.remote  # type: ignore[untyped-decorator]
def share_of(job: ChallengeJob, share: int) -> int:
    """Every workers-th clip of each model; what a clip becomes does not depend on who makes it."""
    import torch

    torch.set_num_threads(job.cpus_per_worker)
    return make_share(job, share)


def main(job: ChallengeJob) -> None:
    from foley_ray.data.cluster import ensure_ray
    from foley_ray.generate import check_writable

    models = {name: path.resolve() for name, path in job.models.items()}
    job = job.model_copy(update={"out": job.out.resolve(), "models": models})
    check_writable(job.out)
    ensure_ray()
    task = share_of.options(num_cpus=job.cpus_per_worker, num_gpus=1 if job.gpu else 0)
    made = sum(ray.get([task.remote(job, share) for share in range(job.workers)]))
    for name, found in write_report(job).items():
        print(
            f"{name}: {found['clips']} clips, mean score {found['mean_score']}, {len(found['below_threshold'])} below threshold"
        )
    print(f"{job.out / 'generated_audio'}: {made} clips made now")


if __name__ == "__main__":
    job_main(ChallengeJob, main)
