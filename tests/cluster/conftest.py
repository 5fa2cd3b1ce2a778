"""What the tests of a running cluster share."""

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster
from rayhead import Head, started


@pytest.fixture(scope="package")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A `ray start --head` that asks for a token, with six cores, as it believes."""
    with started(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that works not, with this process as its driver; each test adds the nodes that it wants."""
    if ray.is_initialized():
        ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
    # the dashboard is what list_actors asks
    ray.init(address=nodes.address, log_to_driver=False, logging_level="WARNING")
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()
