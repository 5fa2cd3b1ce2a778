"""Recordings -> dataset.

ray job submit --working-dir . -- python jobs/ingest.py --config jobs/ingest.yaml source=/data/foley out=/data/foley_ds
"""

from foley_ray.jobfile import IngestJob, job_main


def main(job: IngestJob) -> None:
    from foley_ray.data.ingest import run_job, summary

    print(summary(run_job(job), job.out))


if __name__ == "__main__":
    job_main(IngestJob, main)
