"""jobs/ by `ray job submit` on a `ray start --head` with token authentication, in a home that has never seen Ray."""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rayhead import BIN, free_port

from foley_ray.data.procedural import write_recordings

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The environment in which `ray job submit` finds a head of its own. Nothing of the user's Ray is touched."""
    home = tmp_path_factory.mktemp("home")
    (home / "token").write_text(secrets.token_hex(32))
    keep = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **keep,
        "HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    dashboard = free_port(8300)
    command = [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={free_port(6400)}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=4"]
    command += [f"--dashboard-agent-listen-port={free_port(52400)}"]
    log = (home / "head.log").open("w")
    head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    environment["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(30):  # the port answers seconds before there is an agent to run a job
            if (
                subprocess.run([BIN / "ray", "job", "submit", "--", "true"], env=environment, capture_output=True).returncode
                == 0
            ):
                break
            assert head.poll() is None, (home / "head.log").read_text()
            time.sleep(2)
        yield environment
    finally:
        head.terminate()
        head.wait(60)


def submit(environment: dict[str, str], job: str, *changes: object) -> subprocess.CompletedProcess[str]:
    """README's command."""
    command = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", f"jobs/{job}.py"]
    command += ["--config", f"jobs/{job}.yaml", *map(str, changes)]
    return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=560)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    write_recordings(folder / "recordings", count_per_class=4)
    return folder


def test_ingest_train_and_generate(cluster: dict[str, str], place: Path, tiny_model: Path) -> None:
    done = submit(cluster, "ingest", f"source={place / 'recordings'}", f"out={place / 'dataset'}", "preset=tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 recordings" in done.stdout

    changes = ["preset=tiny", f"data={place / 'dataset'}", f"out={place / 'run'}", "settings.log_every=1"]
    done = submit(cluster, "train", *changes, "settings.steps=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vae step 2" in done.stdout
    # submitted again with more to do, it continues
    done = submit(cluster, "train", *changes, "settings.steps=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vae step 3" in done.stdout
    assert "vae step 1" not in done.stdout
    assert [json.loads(line)["step"] for line in (place / "run" / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]

    clip = ["clip.steps=2", "clip.candidates=2", "clip.duration_s=0.5", "count=2", "workers=2"]
    done = submit(cluster, "generate", f"model={tiny_model}", f"out={place / 'clips'}", *clip)
    assert done.returncode == 0, done.stdout + done.stderr
    names = sorted(path.stem for path in (place / "clips").glob("*.json"))
    assert names == ["000_a_dog_bark_seed7", "001_a_dog_bark_seed8", "002_rain_seed7", "003_rain_seed8"]


def test_a_wrong_job_file_fails_with_one_line(cluster: dict[str, str], place: Path) -> None:
    done = submit(cluster, "train", f"out={place / 'x'}", "speed=1")
    assert done.returncode != 0
    assert "error: jobs/train.yaml: speed: no such setting" in done.stdout
