"""Several Ray nodes on one machine; one of them dies in the middle of what is no training: nothing is lost but time."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pyarrow.dataset
import pytest
import ray
from outcome import FORTY_RAINS, delivered, sound
from ray import serve
from ray.cluster_utils import Cluster
from ray.util.state import list_actors
from rayhead import free_port, lose_node

from foley_ray.data import ingest
from foley_ray.data.procedural import write_recordings
from foley_ray.jobfile import LibraryJob, Pool
from foley_ray.library.build import Progress, build
from foley_ray.serving.app import build_app
from foley_ray.serving.settings import ServeSettings

pytestmark = pytest.mark.cluster
GENERATE = "/v1/audio/generate"


class Axe:
    """Fells one node, and tells how long its work took against the same work undisturbed."""

    def __init__(self, cluster: Cluster):
        self.cluster, self.felled = cluster, False
        self.took_s: list[float] = []

    def swing(self, node_id: str) -> None:
        self.felled = True
        lose_node(self.cluster, node_id)

    @contextmanager
    def timed(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.took_s.append(time.monotonic() - began)


@pytest.fixture
def axe(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Axe]:
    found = Axe(cluster)
    yield found
    assert found.felled, "the work was over before a node was lost"
    print(f"{request.node.name}: {found.took_s[0]:.0f} s with a node lost, {found.took_s[1]:.0f} s without")


def a_worker() -> str:
    """A node with a core, which in these tests is one with work."""
    return str(next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")))


def rows_of(folder: Path) -> list[dict]:
    rows: list[dict] = pyarrow.dataset.dataset(folder / "data", partitioning=None).to_table().to_pylist()
    return rows


def test_ingestion(cluster: Cluster, axe: Axe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "FILE_ROWS", 4)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    source = write_recordings(tmp_path / "recordings", count_per_class=20)

    def progress(done: int, total: int) -> None:
        if not axe.felled:
            axe.swing(a_worker())

    infos = []
    for name, told in (("broken", progress), ("unbroken", None)):
        with axe.timed():
            infos.append(ingest.ingest(source, tmp_path / name, sample_rate_hz=22_050, progress=told))
    assert infos[0] == infos[1]
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "unbroken")
    assert not list((tmp_path / "broken" / "data").glob("*.journal"))


def test_the_library_build(cluster: Cluster, axe: Axe, tmp_path: Path, tiny_model: Path) -> None:
    for _ in range(2):
        cluster.add_node(num_cpus=3)
    (tmp_path / "plan.yaml").write_text(FORTY_RAINS)
    pools = {"sample": Pool(actors=(2, 2), cpus=0.9)}
    unbroken = LibraryJob(plan=tmp_path / "plan.yaml", out=tmp_path / "unbroken", model=tiny_model, pools=pools)

    def progress(now: Progress) -> None:
        if now.stages["keep"] >= 4 and not axe.felled:
            actors = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
            axe.swing(next(actor.node_id for actor in actors if "StageActor" in actor.class_name))

    with axe.timed():
        reports = [build(unbroken.model_copy(update={"out": tmp_path / "broken"}), progress)]
    with axe.timed():
        reports.append(build(unbroken))
    assert [(report.status, len(report.failed)) for report in reports] == [(0, 0)] * 2
    files = [delivered(tmp_path / name) for name in ("broken", "unbroken")]
    assert len(files[0]) > 40
    assert files[0] == files[1]


def test_the_serve_graph(cluster: Cluster, axe: Axe, tmp_path: Path, tiny_model: Path) -> None:
    """Of a node with a stage on it; who is connected to a lost ingress asks again (tests/serving/test_replica_kills.py)."""
    for _ in range(3):
        cluster.add_node(num_cpus=2)
    stage = {"num_cpus": 1, "min_replicas": 1, "max_replicas": 1, "health_check_period_s": 1}
    settings = ServeSettings.model_validate(
        {
            "model": tiny_model,
            "data": tmp_path / "data",
            "ingress": {"max_replicas": 1, "num_cpus": 0},
            **dict.fromkeys(("condition", "sample", "vocode", "rank"), stage),
        }
    )
    address = f"http://127.0.0.1:{free_port(8000)}"
    options = {"host": "127.0.0.1", "port": int(address.rsplit(":", 1)[1]), "request_timeout_s": 200, "location": "HeadOnly"}
    serve.start(http_options=options)
    serve.run(build_app(settings), name="foley", route_prefix="/")
    try:
        wishes = [
            {"prompt": "rain", "duration_s": 0.5, "steps": 20 + seed % 3, "candidates": 2, "seed": seed} for seed in range(24)
        ]
        with httpx.Client(base_url=address, timeout=240) as client, ThreadPoolExecutor(6) as pool:

            def ask(wish: dict) -> tuple[int, list[int], np.ndarray]:
                return sound(client.post(GENERATE, json=wish))

            with axe.timed():
                undisturbed = list(pool.map(ask, wishes))
            actors = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
            places = {actor.class_name.split(":")[-1]: actor.node_id for actor in actors if "Replica" in actor.class_name}
            assert len(set(places.values())) > 1, f"the graph is on one node: {places}"
            stages = ("Sample", "Vocode", "Rank", "Condition")
            doomed = next(places[name] for name in stages if places[name] != places["Ingress"])
            with axe.timed():
                answers = [pool.submit(ask, wish) for wish in wishes]
                answers[3].result()  # the load is on
                axe.swing(doomed)
                disturbed = [answer.result() for answer in answers]
            axe.took_s.reverse()
            for before, after in zip(undisturbed, disturbed, strict=True):
                assert after[:2] == before[:2]
                np.testing.assert_allclose(after[2], before[2], atol=2e-4)
    finally:
        serve.shutdown()
