"""Prompts -> ranked clips, spread over Ray workers; every worker writes to the same output folder.

Submitting it again makes only what is missing.

ray job submit --working-dir . -- python jobs/generate.py --config jobs/generate.yaml model=/data/model out=/data/clips
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from foley_ray.clip import ClipRequest
from foley_ray.jobfile import GenerateJob, job_main


def requests_of(job: GenerateJob, heard_ND: np.ndarray | None = None) -> list[ClipRequest]:
    """All clips that the job asks for. To make them takes the embeddings of its target sounds; to count them does not."""
    from foley_ray.generate import read_prompts, requests_for
    from foley_ray.stages.rank import target_files

    prompts = [*job.prompts, *(read_prompts(job.prompts_file) if job.prompts_file else [])]
    paths = target_files(job.targets) if job.targets else []
    targets = (paths, [None] * len(paths) if heard_ND is None else heard_ND) if paths else None
    return requests_for(prompts, job.count, job.seed, job.clip, targets)


def share_of(job: GenerateJob, share: int) -> Iterator[str]:
    """Makes every workers-th clip that is missing and yields its path; what a clip becomes does not depend on who makes it."""
    import torch

    from foley_ray.checkpoint import shipped_model
    from foley_ray.generate import missing, write_clip
    from foley_ray.pipeline import Pipeline

    torch.set_num_threads(job.cpus_per_worker)
    pipeline = Pipeline(job.model or shipped_model(), "cuda" if job.gpu else "cpu")
    requests = requests_of(job, pipeline.rank.embed_folder(job.targets)[1] if job.targets else None)
    pipeline.check(requests)
    # by their own index: what is missing changes while the others write
    left = [(index, request) for index, request in missing(job.out, requests, pipeline.info) if index % job.workers == share]
    clips = pipeline.generate(request for _, request in left)
    for (index, _), clip in zip(left, clips, strict=True):
        yield str(write_clip(job.out, index, clip, pipeline.info))


def main(job: GenerateJob) -> None:
    from foley_ray.checkpoint import read_info, shipped_model
    from foley_ray.data.cluster import ensure_ray, run_shares
    from foley_ray.generate import check_writable, missing

    job = job.model_copy(update={key: value.resolve() for key, value in job if isinstance(value, Path)})
    check_writable(job.out)
    requests = requests_of(job)
    left = missing(job.out, requests, read_info(job.model or shipped_model()))
    print(f"{len(requests) - len(left)} of {len(requests)} clips are there", flush=True)
    if not left:
        return
    ensure_ray()
    shares = run_shares(lambda share: share_of(job, share), job.workers, job.cpus_per_worker, job.gpu, job.autoscaled)
    for path in shares:
        print(path, flush=True)


if __name__ == "__main__":
    job_main(GenerateJob, main)
