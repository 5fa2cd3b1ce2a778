"""`ray start` on nodes with addresses of their own, each in a network namespace: nothing here shares a loopback."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import lan
import pytest
from rayhead import Head, started

from foley_ray.data.procedural import write_recordings

REPOSITORY = Path(__file__).parents[2]
STEPS = 60

pytestmark = pytest.mark.cluster


@pytest.fixture
def network(tmp_path: Path) -> Iterator[lan.Lan]:
    if not lan.possible():  # asked here and not in a mark: who only collects the tests makes no namespace
        pytest.skip("no network namespaces here")
    with lan.lan(tmp_path) as made:
        yield made


@pytest.fixture
def head(network: lan.Lan, tmp_path: Path) -> Iterator[Head]:
    """It does no work itself, as on a real cluster."""
    (tmp_path / "home").mkdir()
    with started(tmp_path / "home", cpus=0, address=network.head) as running:
        yield running


def nodes(head: Head, network: lan.Lan) -> int:
    """How many are alive, as `ray status` says."""
    said = head.run("ray", "status", f"--address={network.head}:{head.gcs}").stdout
    active = said.partition("Active:")[2].partition("Pending:")[0]
    return active.count(" node_")


def wait_for_nodes(head: Head, network: lan.Lan, count: int) -> None:
    end = time.monotonic() + 180
    while nodes(head, network) != count:
        assert time.monotonic() < end, head.run("ray", "status", f"--address={network.head}:{head.gcs}")
        time.sleep(1)


def test_training_over_a_network_survives_a_pulled_cable(head: Head, network: lan.Lan, tmp_path: Path) -> None:
    write_recordings(tmp_path / "recordings", count_per_class=4)
    for number in (2, 3):
        network.join(head, number, cpus=1)
    wait_for_nodes(head, network, 3)

    def submit(job: str, *changes: str) -> str:
        words = ["--", "python", f"jobs/{job}.py", "--config", f"jobs/{job}.yaml", "preset=tiny", *changes]
        done = head.run("ray", "job", "submit", "--working-dir", ".", *words, cwd=REPOSITORY)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr
        return done.stdout

    submit("ingest", f"source={tmp_path / 'recordings'}", f"out={tmp_path / 'dataset'}")
    settings = {"steps": STEPS, "batch_size": 2, "log_every": 1, "checkpoint_every": 5, "adversarial_from": STEPS}
    train = ["task=vae", f"data={tmp_path / 'dataset'}", "workers=2", f"settings={json.dumps(settings)}", "init=[]"]
    metrics = tmp_path / "broken" / "metrics.jsonl"
    pulled: list[float] = []

    def pull() -> None:
        while not metrics.exists() or metrics.read_text().count("\n") < 12:
            time.sleep(0.2)
        network.pull(3)
        pulled.append(time.monotonic())
        network.join(head, 4, cpus=1)  # somebody puts another machine there

    threading.Thread(target=pull, daemon=True).start()
    submit("train", *train, f"out={tmp_path / 'broken'}")
    assert pulled, "the run was over before the cable was pulled"
    print(f"finished {time.monotonic() - pulled[0]:.0f} s after the cable was pulled")
    assert len(list((tmp_path / "broken" / "tensorboard").iterdir())) == 2, "one file per attempt"
    submit("train", *train, f"out={tmp_path / 'unbroken'}")
    losses = [
        [json.loads(line)["generator/l1"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("broken", "unbroken")
    ]
    assert losses[0] == losses[1]
