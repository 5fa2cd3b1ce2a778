"""Several Ray nodes on one machine; one of them dies while its worker trains."""

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from ray.util.state import list_actors
from rayhead import lose_node

from foley_ray.data.ingest import ingest
from foley_ray.data.procedural import write_recordings
from foley_ray.jobfile import TrainJob
from foley_ray.training.worker import run_job

pytestmark = pytest.mark.cluster
STEPS = 40


def lose_a_training_node(cluster: Cluster) -> None:
    workers = list_actors(filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")])
    lose_node(cluster, workers[0].node_id)


def test_a_lost_node_costs_at_most_one_checkpoint_interval(cluster: Cluster, tmp_path: Path) -> None:
    for _ in range(3):  # one is a spare
        cluster.add_node(num_cpus=1)
    write_recordings(tmp_path / "recordings", count_per_class=4)
    ingest(tmp_path / "recordings", tmp_path / "dataset", sample_rate_hz=22_050)
    settings = {"steps": STEPS, "batch_size": 2, "log_every": 1, "checkpoint_every": 4, "adversarial_from": STEPS}
    content = {"task": "vae", "preset": "tiny", "data": tmp_path / "dataset", "workers": 2, "settings": settings}
    steps: list[int] = []
    lost: list[float] = []
    back: list[float] = []

    def lose_a_node(metrics: dict[str, float]) -> None:
        if lost and not back and time.monotonic() - lost[0] > 4:  # what was on its way when the node was lost has come
            back.append(time.monotonic() - lost[0])
        steps.append(int(metrics["step"]))
        if not lost and metrics["step"] >= 10:
            lose_a_training_node(cluster)
            lost.append(time.monotonic())

    run_job(TrainJob(**content, out=tmp_path / "broken"), lose_a_node)
    assert lost, "the run was over before a node was lost"
    assert len(list((tmp_path / "broken" / "tensorboard").iterdir())) == 2, "one file per attempt"
    again = [before + 1 - now for before, now in pairwise(steps) if now <= before]
    assert sum(again) < 4 + 4, f"more than a checkpoint interval was lost: the steps were {steps}"
    run_job(TrainJob(**content, out=tmp_path / "unbroken"))
    losses = [
        [json.loads(line)["generator/l1"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("broken", "unbroken")
    ]
    assert losses[0] == losses[1]
    print(f"{sum(again)} reported steps lost, on after {back[0]:.0f} s")


def test_a_run_that_may_shrink_goes_on_with_the_nodes_that_are_left(cluster: Cluster, tmp_path: Path) -> None:
    for _ in range(2):
        cluster.add_node(num_cpus=1)
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
