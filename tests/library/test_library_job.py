"""jobs/build_library.py by `ray job submit` on a head that asks for a token: stopped, killed, submitted again."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from outcome import delivered
from rayhead import Head, started
from sounds import save, tone

from foley_ray.library.store import Store

pytestmark = pytest.mark.cluster
REPOSITORY = Path(__file__).parents[2]
PLAN = """\
library: Job
creator: FRAY
source: JOB
date: 2026-11-20
clip: {duration_s: 0.5, candidates: 3, steps: 50}
gates: {silence_dbfs: null, clipped: null, dc: null, similarity: null}
categories:
  - {catid: RAIN, name: Rain, prompts: [rain on leaves], seeds: 20, clip: {loop: true}}
  - {catid: VEHMisc, name: Motor, prompts: [a motor], seeds: 4, targets: motors}
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with started(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "plan.yaml").write_text(PLAN)
    for index in range(4):
        save(tmp_path / "motors" / f"{index}.wav", tone(hz=100 * (index + 1)))
    return tmp_path


def submit(head: Head, place: Path, out: str, model: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """README's command, with a copy at a URI."""
    words = ["ray", "job", "submit", *options, "--working-dir", ".", "--", "python", "jobs/build_library.py"]
    words += ["--config", "jobs/build_library.yaml", f"plan={place / 'plan.yaml'}", f"out={place / out}", f"model={model}"]
    words.append(f"publish={(place / 'bucket' / out).as_uri()}")
    # one actor of each: the head believes in more cores than there are
    few = [f"pools.{name}.actors=[1, 1]" for name in ("condition", "sample", "vocode", "rank")]
    return head.run(*words, *few, cwd=REPOSITORY)


def wait_for_draws(library: Path, count: int) -> None:
    end = time.monotonic() + 240
    while len(Store(library).draws()) < count:
        assert time.monotonic() < end, f"{library} has no {count} clips yet"
        time.sleep(0.1)


def driver_of(library: Path) -> psutil.Process:
    """The process of the job, not the shell around it."""
    return next(
        process
        for process in psutil.process_iter(["cmdline"])
        if f"out={library}" in (words := process.info["cmdline"] or []) and words[1:2] == ["jobs/build_library.py"]
    )


def manifest(library: Path) -> bytes:
    return (library / "manifest.json").read_bytes()


def test_a_job_stopped_and_killed_ends_as_one_that_never_was(head: Head, place: Path, tiny_model: Path) -> None:
    whole = submit(head, place, "whole", tiny_model)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert "24 delivered, 24 made, 0 reused, 0 rejected, 0 failed" in whole.stdout

    broken = place / "broken"
    assert submit(head, place, "broken", tiny_model, "--no-wait", "--submission-id", "stopped").returncode == 0
    wait_for_draws(broken, 2)
    assert head.run("ray", "job", "stop", "stopped").returncode == 0
    made = len(Store(broken).draws())
    assert made < 24
    assert not (broken / "manifest.json").exists()

    assert submit(head, place, "broken", tiny_model, "--no-wait", "--submission-id", "killed").returncode == 0
    wait_for_draws(broken, made + 2)
    os.kill(driver_of(broken).pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while "Job 'killed' failed" not in head.run("ray", "job", "status", "killed").stdout:
        assert time.monotonic() < end, "the job outlives its process"
        time.sleep(1)

    old = next((broken / ".foley/made").rglob("*-0.npz"))
    (old.parent / f"{old.name[:2]}{'0' * 14}-0.npz").write_bytes(old.read_bytes())  # of a clip that left the plan
    last = submit(head, place, "broken", tiny_model)
    assert last.returncode == 0, last.stdout + last.stderr
    assert Store(broken).draws().keys() == Store(place / "whole").draws().keys()
    assert manifest(broken) == manifest(place / "whole")
    for path in (place / "whole").rglob("*.wav"):
        assert (broken / path.relative_to(place / "whole")).read_bytes() == path.read_bytes()
    assert "files copied" in last.stdout
    assert delivered(place / "bucket/broken") == delivered(place / "bucket/whole")
    assert delivered(broken).items() <= delivered(place / "bucket/broken").items()
