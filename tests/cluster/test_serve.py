"""cluster/'s Serve configurations by `serve deploy`, on a head that asks for a token; one after the other, as upgrades are."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
import pytest
import yaml
from rayhead import Head, free_port

from foley_ray.serving.deployments import STAGES

pytestmark = pytest.mark.cluster
CLUSTER = Path(__file__).parents[2] / "cluster"
KEY = {"xi-api-key": "the-key"}
CLIP = {"text": "rain", "duration_seconds": 0.5}


@pytest.fixture(scope="module")
def address(head: Head) -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port(8000)}"
    head.where(RAY_DASHBOARD_ADDRESS=head.environment["RAY_ADDRESS"]).run("serve", "shutdown", "-y")


def on_this_machine(config: dict[str, Any], address: str, model: Path, place: Path) -> dict[str, Any]:
    """The same with paths that are here, without GPUs, and with one replica of each, for two cores and little memory."""
    config["http_options"] |= {"host": "127.0.0.1", "port": int(address.rsplit(":", 1)[1])}
    args = config["applications"][0]["args"]
    keys = place / "keys"
    keys.write_text(KEY["xi-api-key"] + "\n")
    args |= {"model": str(model), "data": str(place / "data"), "api_keys_file": str(keys)}
    for name in ("ingress", *STAGES):
        args[name] |= {"min_replicas": 1, "max_replicas": 1, "num_gpus": 0}
    return config


@pytest.mark.parametrize("name", ["serve-cpu.yaml", "rayservice.yaml"])
def test_a_configuration_is_deployed_and_answers(name: str, head: Head, address: str, tiny_model: Path, tmp_path: Path) -> None:
    text = (CLUSTER / name if name.startswith("serve") else CLUSTER / "kuberay" / name).read_text()
    config = yaml.safe_load(text)
    config = yaml.safe_load(config["spec"]["serveConfigV2"]) if name == "rayservice.yaml" else config
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(on_this_machine(config, address, tiny_model, tmp_path)))
    serve = head.where(RAY_DASHBOARD_ADDRESS=head.environment["RAY_ADDRESS"])
    done = serve.run("serve", "deploy", path)
    assert done.returncode == 0, done.stdout + done.stderr
    for _ in range(120):
        status = yaml.safe_load(serve.run("serve", "status").stdout)
        app = status["applications"].get("foley", {"status": "DEPLOYING", "deployments": {}})
        if app["status"] != "DEPLOYING":
            break
        time.sleep(1)
    assert app["status"] == "RUNNING", status
    assert set(app["deployments"]) == {"Ingress", "Condition", "Sample", "Vocode", "Rank", "BatchRunner"}
    assert httpx.post(f"{address}/v1/sound-generation", json=CLIP).status_code == 401
    answer = httpx.post(f"{address}/v1/sound-generation", json=CLIP, headers=KEY, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.content


def test_the_probes_of_the_manifests_pass_without_a_token(head: Head, address: str) -> None:
    """KubeRay's pods ask themselves, and have no token at hand."""
    spec = yaml.safe_load((CLUSTER / "kuberay" / "rayservice.yaml").read_text())["spec"]["rayClusterConfig"]
    ports = {"52365": head.agent, "8265": head.dashboard, "8000": address.rsplit(":", 1)[1]}
    containers = [group["template"]["spec"]["containers"][0] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    commands = {
        container[kind]["exec"]["command"][-1] for container in containers for kind in ("readinessProbe", "livenessProbe")
    }
    assert len(commands) == 3
    for command in commands:
        here = re.sub(r"localhost:(\d+)", lambda found: f"127.0.0.1:{ports[found[1]]}", command)
        done = subprocess.run(["bash", "-c", here], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, (here, done.stdout, done.stderr)


def test_the_dashboards_metrics_are_there(head: Head, address: str) -> None:
    """Those of nodes and Serve; GPUs are not here, nothing has failed, and training and Ray Data are other tests'."""
    httpx.post(f"{address}/v1/sound-generation", json=CLIP, headers=KEY, timeout=120)
    board = json.loads((CLUSTER / "grafana.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    names = {name for text in expressions for name in re.findall(r"\bray_[a-z0-9_]+", text)}
    names = {name for name in names if not re.search("foley|_data_|gpu|gram|error|tasks", name)}
    assert len(names) > 10
    for _ in range(40):  # Ray gathers them every few seconds
        with urlopen(f"http://127.0.0.1:{head.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        missing = {name for name in names if not re.search(rf"^{name}[{{ ]", text, re.M)}
        if not missing:
            break
        time.sleep(1)
    assert missing == set()
