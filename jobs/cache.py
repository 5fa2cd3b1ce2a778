"""dataset -> cache: VAE latents and CLAP embeddings, computed once; `data` of the tasks diffusion and finetune.

ray job submit --working-dir . -- python jobs/cache.py --config jobs/cache.yaml out=/data/cache workers=8 gpu=true
"""

from foley_ray.jobfile import CacheJob, job_main


def main(job: CacheJob) -> None:
    from foley_ray.data.cache import run_job

    info = run_job(job, lambda done, total: print(f"{done}/{total} crops", flush=True))
    print(f"{job.out}: {info.rows} crops")


if __name__ == "__main__":
    job_main(CacheJob, main)
