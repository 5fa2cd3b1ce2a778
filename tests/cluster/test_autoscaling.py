"""A cluster that grows: the nightly library starts on a head without a core, and leaves it without a worker."""

import json
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from rayhead import Head, started

REPOSITORY = Path(__file__).parents[2]
PLAN = """\
library: Tiny
creator: FRAY
source: TINY
date: 2026-11-20
clip: {duration_s: 0.5, candidates: 1, steps: 2, guidance: 1}
gates: {silence_dbfs: null, clipped: null, dc: null, similarity: null}
categories:
  - {catid: RAIN, name: Rain, prompts: [rain, heavy rain], seeds: 8}
"""

pytestmark = pytest.mark.cluster


def workers(head: Head) -> int:
    """Nodes that are there beside the head, as Ray's state API tells it."""
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    request = Request(f"{head.environment['RAY_ADDRESS']}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"})
    with urlopen(request, timeout=30) as answer:
        nodes = json.load(answer)["data"]["result"]["result"]
    return sum(node["state"] == "ALIVE" and not node["is_head_node"] for node in nodes)


def test_a_nightly_build_adds_workers_and_drains_to_none(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    library = tmp_path / "library"
    kinds = {"cpu_worker": {"resources": {"CPU": 1}, "min_workers": 0, "max_workers": 3}}
    with started(tmp_path, cpus=0, grows_by=kinds) as head:
        assert workers(head) == 0
        submit = ["ray", "job", "submit", "--no-wait", "--submission-id", "night", "--working-dir", ".", "--", "python"]
        submit += ["jobs/build_library.py", "--config", "jobs/build_library.yaml", f"plan={tmp_path / 'plan.yaml'}"]
        done = head.run(*submit, f"out={library}", f"model={tiny_model}", "autoscaled=true", cwd=REPOSITORY)
        assert done.returncode == 0, done.stdout + done.stderr
        most = 0
        for _ in range(150):
            most = max(most, workers(head))
            status = head.run("ray", "job", "status", "night").stdout
            if "succeeded" in status or "failed" in status:
                break
            time.sleep(1)
        assert "succeeded" in status, head.run("ray", "job", "logs", "night").stdout
        assert most >= 2
        assert len(list(library.rglob("*.wav"))) == 16
        for _ in range(120):
            if workers(head) == 0:
                break
            time.sleep(1)
        assert workers(head) == 0, "workers stayed after the work was done"
