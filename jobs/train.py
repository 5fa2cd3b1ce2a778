"""One training task: clap, vae, vocoder, diffusion or finetune. Submitting it again continues where it stopped.

ray job submit --working-dir . -- python jobs/train.py --config jobs/train.yaml task=vae out=/runs/vae
"""

from foley_ray.jobfile import TrainJob, job_main


def main(job: TrainJob) -> None:
    from foley_ray.training.progress import progress_line
    from foley_ray.training.worker import run_job

    info = run_job(job, lambda metrics: print(job.task, progress_line(metrics), flush=True))
    print(f"{job.out / 'model'}: {', '.join(info.parts)}")


if __name__ == "__main__":
    job_main(TrainJob, main)
