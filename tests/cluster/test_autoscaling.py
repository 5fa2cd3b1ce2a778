"""A cluster without a single worker node, as it stands by day: the nightly library brings nodes, and they leave again."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml
from ray.cluster_utils import AutoscalingCluster

from foley_ray.errors import ConfigError
from foley_ray.jobfile import LibraryJob
from foley_ray.library.build import build

pytestmark = pytest.mark.cluster
PLAN = {
    "library": "Night",
    "creator": "FRAY",
    "source": "NIGHT",
    "date": "2026-11-28",
    "clip": {"duration_s": 0.5, "candidates": 2, "steps": 4},
    "gates": {"silence_dbfs": None, "clipped": None, "dc": None, "similarity": 0.9999},
    "categories": [{"catid": "RAIN", "name": "Rain", "prompts": ["rain on leaves"], "seeds": 12}],
}


@pytest.fixture
def drained() -> Iterator[None]:
    """A head that works not, and up to two nodes of two cores that come when there is work and go after six idle seconds."""
    if ray.is_initialized():
        ray.shutdown()
    kinds = {"cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2}}
    cluster = AutoscalingCluster({"CPU": 0}, kinds, idle_timeout_minutes=0.1)
    cluster.start()
    try:
        ray.init("auto", log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def workers() -> int:
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())


def test_the_nightly_library_brings_its_nodes_and_they_leave_again(drained: None, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    job = LibraryJob(plan=tmp_path / "plan.yaml", out=tmp_path / "library", model=tiny_model)
    assert workers() == 0
    with pytest.raises(ConfigError, match="Ray has 0"):
        build(job)
    report = build(job.model_copy(update={"autoscaled": True}))
    assert report.status == 0, report.summary()
    assert report.made == 12
    assert workers() >= 1
    end = time.monotonic() + 120
    while workers():
        assert time.monotonic() < end, "the nodes stay"
        time.sleep(1)
