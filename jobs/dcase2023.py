"""The paper's challenge run: 100 clips of 4 s for each class of DCASE 2023 Task 7, in the organisers' folder layout.

Submitting it again makes only what is missing.

ray job submit --working-dir . -- python jobs/dcase2023.py --config jobs/dcase2023.yaml models.small=/data/small out=/data/entry
"""

from collections.abc import Iterator
from pathlib import Path

from foley_ray.interchange.challenge import ChallengeJob, check, count_made, make_share, write_report
from foley_ray.jobfile import job_main


def share_of(job: ChallengeJob, share: int) -> Iterator[str]:
    """Every workers-th clip of each model; what a clip becomes does not depend on who makes it."""
    import torch

    torch.set_num_threads(job.cpus_per_worker)
    yield from make_share(job, share)


def main(job: ChallengeJob) -> None:
    from foley_ray.data.cluster import ensure_ray, run_shares
    from foley_ray.generate import check_writable

    classes = {
        name: row.model_copy(update={"targets": row.targets.resolve()}) if isinstance(row.targets, Path) else row
        for name, row in job.classes.items()
    }
    models = {name: path.resolve() for name, path in job.models.items()}
    job = job.model_copy(update={"out": job.out.resolve(), "models": models, "classes": classes})
    check(job)
    check_writable(job.out)
    total, there = job.count * len(job.classes), count_made(job)
    print(f"{there} of {total} clips are there", flush=True)
    ensure_ray()
    shares = run_shares(lambda share: share_of(job, share), job.workers, job.cpus_per_worker, job.gpu, job.autoscaled)
    for made, name in enumerate(shares, there + 1):
        print(f"{made} of {total}: {name}", flush=True)
    for name, found in write_report(job).items():
        print(
            f"{name}: {found['clips']} clips, mean score {found['mean_score']}, {len(found['below_threshold'])} below threshold"
        )
    print(job.out / "generated_audio")


if __name__ == "__main__":
    job_main(ChallengeJob, main)
