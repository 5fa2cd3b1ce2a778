"""The whole service on this machine, real Serve and real HTTP, around the tiny model."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="package")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve_data")


@pytest.fixture(scope="package")
def service(ray_local: None, tiny_model: Path, data_folder: Path) -> Iterator[str]:
    """Address of the running service. Its stages ask for no core, so that other tests' work finds some."""
    from ray import serve

    from foley_ray.serving.app import build_app
    from foley_ray.serving.settings import ServeSettings

    stage = {"num_cpus": 0, "max_replicas": 1, "health_check_period_s": 1}
    settings = ServeSettings.model_validate(
        {
            "model": tiny_model,
            "data": data_folder,
            "ingress": {"max_replicas": 1},
            "limits": {"pending_candidates": 40, "body_bytes": 4096},
            **dict.fromkeys(("condition", "sample", "vocode", "rank"), stage),
        }
    )
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 120})
    serve.run(build_app(settings), name="foley", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture
def http(service: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service, timeout=120) as client:
        yield client


@pytest.fixture
def kill_replica(service: str) -> Callable[[str], None]:
    """Kill the process of a deployment's only replica, as a lost node would."""
    import ray

    def kill(deployment: str) -> None:
        actors = ray.util.list_named_actors(all_namespaces=True)
        [name] = [actor["name"] for actor in actors if f"foley#{deployment}#" in actor["name"]]
        ray.kill(ray.get_actor(name, namespace="serve"), no_restart=False)

    return kill
