"""Ten kills at random moments, of the process and its own Ray: the library ends as an unbroken run leaves it."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from outcome import delivered
from sounds import save, tone

PLAN = """\
library: Kills
creator: FRAY
source: KILLS
date: 2026-11-20
clip: {duration_s: 0.5, candidates: 3, steps: 20, threshold: 0.9999, max_redraws: 1}
gates: {silence_dbfs: null, clipped: null, dc: null, similarity: 0.9999}
categories:
  - {catid: RAIN, name: Rain, prompts: [rain on leaves], seeds: 30, clip: {loop: true}}
  - {catid: ANMLDog, name: Dog, prompts: [a dog barks], seeds: 30}
  - {catid: VEHMisc, name: Motor, prompts: [a motor], seeds: 6, targets: motors}
"""


@pytest.mark.soak
def test_ten_kills_leave_no_trace(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    for index in range(6):
        save(tmp_path / "motors" / f"{index}.wav", tone(hz=100 * (index + 1)))

    def start(library: Path) -> subprocess.Popen:
        words = ["library", "build", tmp_path / "plan.yaml", "--out", library, "--model", tiny_model]
        return subprocess.Popen([sys.executable, "-m", "foley_ray.cli", *map(str, words)], stderr=subprocess.DEVNULL)

    began = time.monotonic()
    assert start(tmp_path / "unbroken").wait() == 0
    whole_s = time.monotonic() - began
    rng = random.Random(int(whole_s * 1e6))
    for _ in range(10):
        process = start(tmp_path / "killed")
        time.sleep(rng.uniform(0.05, 0.9) * whole_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "killed").wait() == 0
    assert delivered(tmp_path / "killed") == delivered(tmp_path / "unbroken")
    assert len(delivered(tmp_path / "killed")) >= 4
