"""Prompts -> ranked clips, spread over Ray workers; every worker writes to the same output folder.

ray job submit --working-dir . -- python jobs/generate.py --config jobs/generate.yaml model=/data/model out=/data/clips
"""

from itertools import count
from pathlib import Path

import ray

from foley_ray.errors import ConfigError
from foley_ray.jobfile import GenerateJob, job_main


@ray.remote  # type: ignore[untyped-decorator]
def generate_share(job: GenerateJob, share: int) -> list[str]:
    """Every workers-th clip; what a clip becomes does not depend on who makes it."""
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
    return [str(write_clip(job.out, index, clip, pipeline.info)) for index, clip in zip(indices, clips, strict=False)]


def main(job: GenerateJob) -> None:
    from foley_ray.data.cluster import ensure_ray
    from foley_ray.generate import check_writable

    job = job.model_copy(update={key: value.resolve() for key, value in job if isinstance(value, Path)})
    check_writable(job.out)
    ensure_ray()
    # Ray would wait for one in silence, for ever
    if job.gpu and not job.autoscaled and ray.cluster_resources().get("GPU", 0) < 1:
        raise ConfigError("gpu = true, but Ray sees no GPU; set gpu: false")
    task = generate_share.options(num_cpus=job.cpus_per_worker, num_gpus=1 if job.gpu else 0)
    for paths in ray.get([task.remote(job, share) for share in range(job.workers)]):
        print("\n".join(paths))


if __name__ == "__main__":
    job_main(GenerateJob, main)
