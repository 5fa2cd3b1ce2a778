"""A plan -> a delivered, catalogued sound library; run again, it makes what is missing. Status 75: clips are left to make.

ray job submit --working-dir . -- python jobs/build_library.py --config jobs/build_library.yaml plan=jobs/plans/dcase_small.yaml
"""

from foley_ray.jobfile import LibraryJob, job_main


def main(job: LibraryJob) -> int:
    from foley_ray.library.build import build
    from foley_ray.library.commands import progress_line

    report = build(job, lambda progress: print(progress_line(progress), flush=True))
    print(f"{job.out}: {report.summary()}")
    return report.status


if __name__ == "__main__":
    job_main(LibraryJob, main)
