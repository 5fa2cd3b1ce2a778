"""A head of `ray start` in an environment of its own, and how to run Ray's commands in it."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import ray
from ray.cluster_utils import Cluster

BIN = Path(sys.executable).parent


def free_port(first: int) -> int:
    """The next free port; Ray keeps 10002 to 19999 for its workers."""
    for port in range(first, first + 200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError(f"no free port from {first} on")


@dataclass(frozen=True)
class Head:
    """Where it is, and the environment in which Ray's commands find it."""

    environment: dict[str, str]
    gcs: int
    dashboard: int
    agent: int
    metrics: int

    def run(self, *words: object, **options: object) -> subprocess.CompletedProcess[str]:
        """One of Ray's commands, or ours, as a person would run it."""
        command = [str(BIN / str(words[0])), *map(str, words[1:])]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=560, **options)  # type: ignore[call-overload]

    def where(self, **environment: str) -> Self:
        """The same head, seen from another environment."""
        return replace(self, environment={**self.environment, **environment})


@contextmanager
def started(home: Path, cpus: int = 6, grows_by: dict[str, Any] | None = None, address: str = "127.0.0.1") -> Iterator[Head]:
    """With token authentication, in a home that has never seen Ray. Nothing of the user's own Ray is touched.

    `grows_by` are node types that Ray's autoscaler may add, as processes on this machine, while there is work for them.
    """
    token = home / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    keep = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **keep,
        "HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # somebody waits for these; Ray's 15 starves them beside other tests
    }
    ports = Head(environment, free_port(6400), free_port(8300), free_port(52400), free_port(8600))
    command = [BIN / "ray", "start", "--head", "--block", f"--node-ip-address={address}", f"--port={ports.gcs}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={ports.dashboard}", f"--num-cpus={cpus}"]
    command += [f"--dashboard-agent-listen-port={ports.agent}", f"--metrics-export-port={ports.metrics}"]
    if grows_by is not None:
        (home / "autoscaling.json").write_text(json.dumps(_autoscaling(ports.gcs, grows_by)))
        command += [f"--autoscaling-config={home / 'autoscaling.json'}"]
        environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    log = (home / "head.log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    environment["RAY_ADDRESS"] = f"http://127.0.0.1:{ports.dashboard}"
    try:
        for _ in range(30):  # the port answers seconds before there is an agent to run a job
            if ports.run("ray", "job", "submit", "--", "true").returncode == 0:
                break
            assert process.poll() is None, (home / "head.log").read_text()
            time.sleep(2)
        yield ports
    finally:
        process.terminate()
        process.wait(60)


def lose_node(cluster: Cluster, node_id: str) -> None:
    """Kill a node of `ray.cluster_utils`, with all its processes."""
    [socket] = [node["ObjectStoreSocketName"] for node in ray.nodes() if node["NodeID"] == node_id]
    [node] = [node for node in cluster.worker_nodes if node.plasma_store_socket_name == socket]
    cluster.remove_node(node, allow_graceful=False)


def _autoscaling(gcs: int, node_types: dict[str, Any]) -> dict[str, Any]:
    """What the example.yaml says from which Ray's own AutoscalingCluster starts: the wheel lacks it."""
    return {
        "cluster_name": "growing",
        "max_workers": 8,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.2,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": f"127.0.0.1:{gcs}",
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **{name: {"node_config": {}, **node_type} for name, node_type in node_types.items()},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
