"""What /openapi.json invites and what it forbids, sent to the running service: every answer is one that the page announces.

Schemathesis makes the requests out of the page and judges the answers: no 5xx; status, content type, body and methods as
documented; nothing accepted that the page forbids.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

UNSAID = [
    "positive_data_acceptance",  # a page cannot say that a prompt has at most 75 tokens
    "ensure_resource_availability",  # a batch that was just added may have failed on its input
]


def fuzz(address: str, place: Path, *words: str) -> None:
    """In a place of its own, as Schemathesis leaves a cache where it runs."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{address}/openapi.json", *words]
    command += ["--generation-deterministic", "--no-shrink", "--request-timeout=120", "--no-color"]
    command += [f"--exclude-checks={','.join(UNSAID)}"]
    helpers = Path(__file__).parents[1] / "helpers"
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "fuzz_cheaply", "PYTHONPATH": str(helpers)}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_answer_is_one_that_the_page_announces(service: str, tmp_path: Path) -> None:
    fuzz(service, tmp_path, "--phases=fuzzing", "--max-examples=4", "--max-time=12")


@pytest.mark.soak
def test_also_at_the_bounds_of_every_field_and_in_long_chains_of_requests(service: str, tmp_path: Path) -> None:
    fuzz(service, tmp_path, "--phases=coverage,fuzzing,stateful", "--max-examples=40", "--max-time=240")
