"""Make the pool of candidates that the other jobs of this folder resample; stopped, the same command goes on.

python jobs/experiments/candidates.py --config jobs/experiments/candidates.yaml out=/data/pool
python jobs/experiments/candidates.py --config jobs/experiments/candidates.yaml out=/data/pool_untuned tuning=false
"""

from foley_ray.evaluation.pool import PoolJob, make_pool
from foley_ray.jobfile import job_main


def main(job: PoolJob) -> None:
    make_pool(job, lambda line: print(line, flush=True))


if __name__ == "__main__":
    job_main(PoolJob, main)
