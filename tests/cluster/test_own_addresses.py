"""`ray start` on nodes with addresses of their own, each in a network namespace: nothing here shares a loopback."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import lan
import numpy as np
import pytest
import yaml
from outcome import FORTY_RAINS, delivered, sound
from rayhead import Head, free_port, started

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


def join_two(head: Head, network: lan.Lan, cpus: int) -> None:
    """Nodes 2 and 3, of so many cores each."""
    for number in (2, 3):
        network.join(head, number, cpus)
    wait_for_nodes(head, network, 3)


def submit(head: Head, job: str, *changes: object) -> str:
    """README's command, and what it printed."""
    words = ["--", "python", f"jobs/{job}.py", "--config", f"jobs/{job}.yaml", *changes]
    done = head.run("ray", "job", "submit", "--working-dir", ".", *words, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    return done.stdout


def addresses(head: Head, what: str) -> dict[str, str]:
    """Which node the living actors of a kind are on, as `ray list` says: class name -> address."""

    def listed(kind: str) -> list[dict]:
        found: list[dict] = json.loads(head.run("ray", "list", kind, "--format=json", "--limit=1000").stdout)
        return found

    nodes = {node["node_id"]: node["node_ip"] for node in listed("nodes")}
    alive = [actor for actor in listed("actors") if actor["state"] == "ALIVE" and what in actor["class_name"]]
    return {actor["class_name"].split(":")[-1]: nodes[actor["node_id"]] for actor in alive}


class Pull:
    """Pulls a cable as soon as it is time, and lets somebody put another machine there."""

    def __init__(self, head: Head, network: lan.Lan, number: int, cpus: int, when: Callable[[], bool]):
        self.at: float | None = None

        def wait() -> None:
            while not when():
                time.sleep(0.2)
            network.pull(number)
            self.at = time.monotonic()
            network.join(head, 9, cpus)

        threading.Thread(target=wait, daemon=True).start()

    def over(self, what: str) -> None:
        """To be called when the work is done."""
        assert self.at is not None, "the work was over before the cable was pulled"
        print(f"{what}: finished {time.monotonic() - self.at:.0f} s after the cable was pulled")


def test_training_over_a_network_survives_a_pulled_cable(head: Head, network: lan.Lan, tmp_path: Path) -> None:
    write_recordings(tmp_path / "recordings", count_per_class=4)
    join_two(head, network, cpus=1)
    tiny = "preset=tiny"
    submit(head, "ingest", tiny, f"source={tmp_path / 'recordings'}", f"out={tmp_path / 'dataset'}")
    settings = {"steps": STEPS, "batch_size": 2, "log_every": 1, "checkpoint_every": 5, "adversarial_from": STEPS}
    train = ["task=vae", f"data={tmp_path / 'dataset'}", "workers=2", f"settings={json.dumps(settings)}", "init=[]"]
    metrics = tmp_path / "broken" / "metrics.jsonl"
    pull = Pull(head, network, 3, 1, lambda: metrics.exists() and metrics.read_text().count("\n") >= 12)
    submit(head, "train", tiny, *train, f"out={tmp_path / 'broken'}")
    pull.over("training")
    assert len(list((tmp_path / "broken" / "tensorboard").iterdir())) == 2, "one file per attempt"
    submit(head, "train", tiny, *train, f"out={tmp_path / 'unbroken'}")
    losses = [
        [json.loads(line)["generator/l1"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("broken", "unbroken")
    ]
    assert losses[0] == losses[1]


def test_a_library_over_a_network_survives_a_pulled_cable(
    head: Head, network: lan.Lan, tmp_path: Path, tiny_model: Path
) -> None:
    """The actors of the lost node live on for a while, and what they still write is what the others write as well."""
    join_two(head, network, cpus=2)
    (tmp_path / "plan.yaml").write_text(FORTY_RAINS)
    pools = json.dumps({"sample": {"actors": [2, 2], "cpus": 0.9}})  # with the other stages' 0.6 more than a node has
    library = [f"plan={tmp_path / 'plan.yaml'}", f"model={tiny_model}", f"pools={pools}"]
    made = tmp_path / "broken" / ".foley" / "made"
    pull = Pull(head, network, 3, 2, lambda: len(list(made.rglob("*.npz"))) >= 4)
    submit(head, "build_library", *library, f"out={tmp_path / 'broken'}")
    pull.over("library")
    submit(head, "build_library", *library, f"out={tmp_path / 'unbroken'}")
    files = [delivered(tmp_path / name) for name in ("broken", "unbroken")]
    assert len(files[0]) > 40
    assert files[0] == files[1]


def test_the_serve_graph_over_a_network_survives_a_pulled_cable(
    head: Head, network: lan.Lan, tmp_path: Path, tiny_model: Path
) -> None:
    """Of a node with a stage on it, while clients wait; each gets the sound that it gets on whole nodes."""
    join_two(head, network, cpus=3)
    address = f"http://{network.head}:{free_port(8000)}"
    stage = {"num_cpus": 1, "min_replicas": 1, "max_replicas": 1, "health_check_period_s": 1}
    args = {"model": str(tiny_model), "data": str(tmp_path / "data"), "ingress": {"max_replicas": 1, "num_cpus": 0}}
    args |= {"api_keys": ["the-key"]} | dict.fromkeys(("condition", "sample", "vocode", "rank"), stage)
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": network.head, "port": int(address.rsplit(":", 1)[1]), "request_timeout_s": 400},
        "applications": [
            {"name": "foley", "route_prefix": "/", "import_path": "foley_ray.serving.app:build_app", "args": args}
        ],
    }
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    serve = head.where(RAY_DASHBOARD_ADDRESS=head.environment["RAY_ADDRESS"])
    done = serve.run("serve", "deploy", tmp_path / "serve.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    wishes = [
        {"prompt": "rain", "duration_s": 0.5, "steps": 20 + seed % 3, "candidates": 2, "seed": seed} for seed in range(16)
    ]
    with (
        httpx.Client(base_url=address, headers={"xi-api-key": "the-key"}, timeout=400) as client,
        ThreadPoolExecutor(4) as pool,
    ):

        def ready() -> bool:
            try:
                return client.get("/healthz").status_code == 200
            except httpx.TransportError:
                return False

        end = time.monotonic() + 300
        while not ready():
            assert time.monotonic() < end, serve.run("serve", "status").stdout
            time.sleep(1)

        def ask(wish: dict) -> tuple[int, list[int], np.ndarray]:
            return sound(client.post("/v1/audio/generate", json=wish))

        undisturbed = list(pool.map(ask, wishes))
        places = addresses(head, "ServeReplica")
        stages = {name: place for name, place in places.items() if name in ("Condition", "Sample", "Vocode", "Rank")}
        assert set(stages.values()) == {f"{lan.PREFIX}.2", f"{lan.PREFIX}.3"}, places
        doomed = next(place for place in stages.values() if place != places["Ingress"])
        answers = [pool.submit(ask, wish) for wish in wishes]
        answers[2].result()  # the load is on
        pull = Pull(head, network, int(doomed.rsplit(".", 1)[1]), 3, lambda: True)
        disturbed = [answer.result() for answer in answers]
        pull.over("serving")
        for before, after in zip(undisturbed, disturbed, strict=True):
            assert after[:2] == before[:2]
            np.testing.assert_allclose(after[2], before[2], atol=2e-4)
