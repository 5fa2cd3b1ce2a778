"""Prompts -> ranked clips, spread over Ray workers; every worker writes to the same output folder.

ray job submit --working-dir . -- python jobs/generate.py --config jobs/generate.yaml model=/data/model out=/data/clips
"""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from foley_ray.jobfile import GenerateJob, job_main


def share_of(job: GenerateJob, share: int) -> Iterator[str]:
    """Makes every workers-th clip and yields its path; what a clip becomes does not depend on who makes it."""
    import torch

    from foley_ray.checkpoint import shipped_model
    from foley_ray.generate import read_prompts, requests_for, write_clip
    from foley_ray.pipeline import Pipeline

    torch.set_num_threads(job.cpus_per_worker)
    pipeline = Pipeline(job.model or shipped_model(), "cuda" if job.gpu else "cpu")
    prompts = [*job.prompts, *(read_prompts(job.prompts_file) if job.prompts_file else [])]
    targets = pipeline.rank.embed_folder(job.targets) if job.targets else None
    requests = requests_for(prompts, job.count, job.seed, job.clip, targets)
    pipeline.check(requests)
    indices = count(share, job.workers)
    clips = pipeline.generate(requests[share :: job.workers])
    for index, clip in zip(indices, clips, strict=False):
        yield str(write_clip(job.out, index, clip, pipeline.info))


def main(job: GenerateJob) -> None:
    from foley_ray.data.cluster import ensure_ray, run_shares
    from foley_ray.generate import check_writable

    job = job.model_copy(update={key: value.resolve() for key, value in job if isinstance(value, Path)})
    check_writable(job.out)
    ensure_ray()
    shares = run_shares(lambda share: share_of(job, share), job.workers, job.cpus_per_worker, job.gpu, job.autoscaled)
    for path in shares:
        print(path, flush=True)


if __name__ == "__main__":
    job_main(GenerateJob, main)
