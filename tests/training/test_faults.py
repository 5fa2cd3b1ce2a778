"""What a week of cluster time meets, done for real: workers killed at random moments, a torn checkpoint, a damaged row.

By default one worker is killed; `-m soak` runs the rest, and FOLEY_KILLS=10 is the full check. Lost nodes are in
tests/cluster/test_nodes.py.
"""

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foley_ray.checkpoint import read_info
from foley_ray.data.ingest import ingest
from foley_ray.data.procedural import write_recordings
from foley_ray.errors import TrainingError
from foley_ray.jobfile import TrainJob
from foley_ray.training.worker import run_job

KILLS = int(os.environ.get("FOLEY_KILLS", "1"))
STEPS = 10 + 8 * KILLS
RATES = {"samples_per_s", "data_wait", "left_s"}


@pytest.fixture(scope="module")
def place(ray_local, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_recordings(folder / "recordings", count_per_class=4)
    ingest(folder / "recordings", folder / "dataset", sample_rate_hz=22_050)
    return folder


def job(place: Path, name: str, **changes) -> TrainJob:
    settings = {"steps": STEPS, "batch_size": 2, "log_every": 1, "checkpoint_every": 4, "log_rows": True, "augment": True}
    settings |= {"adversarial_from": STEPS // 2, **changes.pop("settings", {})}
    content = {
        "task": "vae",
        "preset": "tiny",
        "data": place / "dataset",
        "out": place / name,
        "workers": 2,
        "max_failures": KILLS,
    }
    return TrainJob(**{**content, "settings": settings, **changes})


def train_workers() -> list[psutil.Process]:
    """The training workers of this test's own Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in process.name() or "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def rows_of(out: Path) -> dict[str, list[dict]]:
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in (out / "rows").iterdir()}


def losses_of(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in RATES} for line in lines]


@pytest.fixture(scope="module")
def unbroken(place: Path) -> Path:
    run_job(job(place, "unbroken"))
    return place / "unbroken"


def test_a_run_killed_again_and_again_is_the_unbroken_run(place: Path, unbroken: Path) -> None:
    """The same rows in the same order for each worker, the same losses to the last bit, the same weights."""
    rng = random.Random(0)
    after = sorted(rng.sample(range(2, STEPS - 2), KILLS))
    killed: list[int] = []

    def strike(metrics: dict[str, float]) -> None:
        if len(killed) < KILLS and metrics["step"] >= after[len(killed)]:
            victims = train_workers()
            if len(victims) == 2:  # not while they are being replaced
                rng.choice(victims).send_signal(signal.SIGKILL)
                killed.append(int(metrics["step"]))

    info = run_job(job(place, "killed"), strike)
    assert len(killed) == KILLS, f"only {killed} were killed: the run was too quick"
    assert rows_of(place / "killed") == rows_of(unbroken)
    assert losses_of(place / "killed") == losses_of(unbroken)
    assert len(losses_of(unbroken)) == STEPS
    assert info.parts["vae"].digest == read_info(unbroken / "model").parts["vae"].digest


def test_a_run_stopped_between_its_last_step_and_its_model_only_writes_the_model(place: Path, unbroken: Path) -> None:
    made = read_info(unbroken / "model").parts["vae"].digest
    lines = losses_of(unbroken)
    (unbroken / "model").rename(place / "model_of_unbroken")
    assert run_job(job(place, "unbroken")).parts["vae"].digest == made
    assert losses_of(unbroken) == lines


@pytest.mark.soak
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(place: Path, unbroken: Path) -> None:
    half = job(place, "torn", settings={"steps": 8})
    run_job(half)
    newest = max((place / "torn" / "ray").glob("step_*"))
    assert "step_0000008" in newest.name
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:-1])
    (place / "torn" / "model").rename(place / "aside")
    run_job(job(place, "torn", settings={"steps": 12, "adversarial_from": STEPS // 2}))
    assert losses_of(place / "torn") == losses_of(unbroken)[:12]


@pytest.mark.soak
def test_another_number_of_workers_goes_on_from_the_same_row(place: Path, unbroken: Path) -> None:
    run_job(job(place, "alone", settings={"steps": 4}))
    run_job(job(place, "alone", settings={"steps": 6}, workers=1))
    rows = rows_of(place / "alone")
    assert [line["step"] for line in rows["0_of_1.jsonl"]] == [4, 5]
    # two workers drew 16 rows in 4 steps; the one goes on with row 16, which two would have drawn in steps 4 and 5
    alone = [row for line in rows["0_of_1.jsonl"] for row in line["rows"]]
    both = rows_of(unbroken)
    assert sorted(alone) == sorted(both["0_of_2.jsonl"][4]["rows"] + both["1_of_2.jsonl"][4]["rows"])


@pytest.mark.soak
def test_a_row_damaged_after_ingest_ends_the_run_with_its_name(place: Path, tmp_path: Path) -> None:
    (part,) = (place / "dataset" / "data").glob("*.parquet")
    (tmp_path / "dataset" / "data").mkdir(parents=True)
    (tmp_path / "dataset" / "dataset.json").write_bytes((place / "dataset" / "dataset.json").read_bytes())
    table = pq.read_table(part)
    audio = [b"no sound" if index == 3 else value for index, value in enumerate(table["audio"].to_pylist())]
    pq.write_table(table.set_column(0, "audio", pa.array(audio, pa.binary())), tmp_path / "dataset" / "data" / part.name)
    damaged = table["sha256"][3].as_py()[:12]
    with pytest.raises(TrainingError, match=f"row {damaged} of the dataset is damaged"):
        run_job(job(place, "damaged", data=tmp_path / "dataset", max_failures=0))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 MB; a checkpoint of the tiny VAE takes 12 MB, with its discriminator's moments 34 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"only who may mount can have a full disk: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.soak
def test_a_full_disk_ends_the_run_by_name_and_with_room_it_goes_on(place: Path, small_disk: Path, unbroken: Path) -> None:
    def fill(metrics: dict[str, float]) -> None:
        if metrics["step"] >= 5 and not (small_disk / "filler").exists():
            filled = subprocess.run(["dd", "if=/dev/zero", f"of={small_disk / 'filler'}"], capture_output=True, text=True)
            assert "No space left" in filled.stderr

    changes = {"out": small_disk / "run", "max_failures": 1}
    with pytest.raises(TrainingError, match=r"OutputError: cannot write .*No space left on device; .*"):
        run_job(job(place, "", **changes), fill)
    (small_disk / "filler").unlink()
    run_job(job(place, "", **changes))
    assert losses_of(small_disk / "run") == losses_of(unbroken)
