"""Several Ray nodes on one machine; one of them dies while its worker trains."""

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from foley_ray.data.ingest import ingest
from foley_ray.data.procedural import write_recordings
from foley_ray.jobfile import TrainJob
from foley_ray.training.worker import run_job

pytestmark = pytest.mark.cluster
STEPS = 24


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that works not, and nodes with a core each for a worker and its readers."""
    if ray.is_initialized():
        ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    # the dashboard is what list_actors asks
    ray.init(address=nodes.address, log_to_driver=False, logging_level="WARNING")
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def lose_a_training_node(cluster: Cluster) -> None:
    """Kill a node that a worker trains on, with all its processes."""
    workers = list_actors(filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")])
    [socket] = [node["ObjectStoreSocketName"] for node in ray.nodes() if node["NodeID"] == workers[0].node_id]
    [node] = [node for node in cluster.worker_nodes if node.plasma_store_socket_name == socket]
    cluster.remove_node(node, allow_graceful=False)


def test_a_lost_node_costs_at_most_one_checkpoint_interval(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)  # a spare
    write_recordings(tmp_path / "recordings", count_per_class=4)
    ingest(tmp_path / "recordings", tmp_path / "dataset", sample_rate_hz=22_050)
    settings = {"steps": STEPS, "batch_size": 2, "log_every": 1, "checkpoint_every": 4, "adversarial_from": STEPS}
    content = {"task": "vae", "preset": "tiny", "data": tmp_path / "dataset", "workers": 2, "settings": settings}
    steps: list[int] = []
    lost: list[float] = []
    back: list[float] = []

    def lose_a_node(metrics: dict[str, float]) -> None:
        if lost and not back and metrics["step"] <= steps[-1]:
            back.append(time.monotonic())
        steps.append(int(metrics["step"]))
        if not lost and metrics["step"] >= 10:
            lose_a_training_node(cluster)
            lost.append(time.monotonic())

    run_job(TrainJob(**content, out=tmp_path / "broken"), lose_a_node)
    assert lost, "the run was over before a node was lost"
    again = [now for before, now in pairwise(steps) if now <= before]
    assert len(again) == 1, f"the steps were {steps}"
    assert max(steps[: steps.index(again[0]) + 1]) - again[0] < 4 + 4, "more than a checkpoint interval was lost"
    run_job(TrainJob(**content, out=tmp_path / "unbroken"))
    losses = [
        [json.loads(line)["generator/l1"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("broken", "unbroken")
    ]
    assert losses[0] == losses[1]
    print(f"back at step {again[0]} {back[0] - lost[0]:.0f} s after the loss")


def test_a_run_that_may_shrink_goes_on_with_the_nodes_that_are_left(cluster: Cluster, tmp_path: Path) -> None:
    write_recordings(tmp_path / "recordings", count_per_class=4)
    ingest(tmp_path / "recordings", tmp_path / "dataset", sample_rate_hz=22_050)
    settings = {
        "steps": STEPS,
        "batch_size": 2,
        "log_every": 1,
        "checkpoint_every": 4,
        "adversarial_from": STEPS,
        "log_rows": True,
    }
    content = {"task": "vae", "preset": "tiny", "data": tmp_path / "dataset", "workers": (1, 2), "settings": settings}
    lost: list[int] = []

    def lose_a_node(metrics: dict[str, float]) -> None:
        if not lost and metrics["step"] >= 6:
            lose_a_training_node(cluster)
            lost.append(int(metrics["step"]))

    run_job(TrainJob(**content, out=tmp_path / "run"), lose_a_node)
    assert lost, "the run was over before a node was lost"
    rows = {path.name: path.read_text().splitlines() for path in (tmp_path / "run" / "rows").iterdir()}
    assert set(rows) == {"0_of_2.jsonl", "1_of_2.jsonl", "0_of_1.jsonl"}, "it began with two workers and ended with one"
    assert json.loads(rows["0_of_1.jsonl"][-1])["step"] == STEPS - 1
