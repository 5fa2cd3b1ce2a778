"""jobs/ by `ray job submit`: status, logs, metrics, stopped and gone on with, wrong in the usual ways."""

import json
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from rayhead import Head

from foley_ray.data.procedural import write_recordings

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.cluster


def submit(head: Head, job: str, *changes: object, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """README's command."""
    words = [*options, "--", "python", f"jobs/{job}.py", "--config", f"jobs/{job}.yaml", *changes]
    return head.run("ray", "job", "submit", "--working-dir", ".", *words, cwd=REPOSITORY)


def until(head: Head, job_id: str, said: str, where: str = "logs") -> str:
    """Wait until `ray job logs` or `ray job status` says so."""
    for _ in range(120):
        found = head.run("ray", "job", where, job_id).stdout
        if said in found:
            return found
        time.sleep(1)
    raise AssertionError(f"{said!r} never came: {found}")


def settled(metrics: Path) -> int:
    """The last step of a stopped run: its workers live some seconds longer than its driver."""
    while True:
        before = metrics.read_text()
        time.sleep(8)
        if metrics.read_text() == before:
            return int(json.loads(before.splitlines()[-1])["step"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    write_recordings(folder / "recordings", count_per_class=4)
    return folder


@pytest.fixture(scope="module")
def dataset(head: Head, place: Path) -> Path:
    done = submit(head, "ingest", f"source={place / 'recordings'}", f"out={place / 'dataset'}", "preset=tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 recordings" in done.stdout
    return place / "dataset"


def test_a_stopped_training_job_goes_on_when_it_is_submitted_again(head: Head, dataset: Path, place: Path) -> None:
    run = place / "run"
    changes = ["preset=tiny", f"data={dataset}", f"out={run}"]
    changes += ["settings.log_every=1", "settings.checkpoint_every=2", "settings.batch_size=2"]
    done = submit(head, "train", *changes, "settings.steps=100000", options=("--no-wait", "--submission-id", "first"))
    assert done.returncode == 0, done.stdout + done.stderr
    until(head, "first", "vae step 8 ")
    until(head, "first", "RUNNING", "status")
    for _ in range(30):  # Ray gathers metrics every few seconds
        with urlopen(f"http://127.0.0.1:{head.metrics}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        if "ray_foley_train_step" in metrics:
            break
        time.sleep(1)
    assert "ray_foley_train_samples_per_s{" in metrics
    stopped = head.run("ray", "job", "stop", "first")
    assert stopped.returncode == 0, stopped.stderr
    until(head, "first", "was stopped", "status")
    last = settled(run / "metrics.jsonl") + 10

    done = submit(head, "train", *changes, f"settings.steps={last}", options=("--submission-id", "second"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"vae step {last} " in done.stdout
    assert "vae step 1 " not in done.stdout, "it began anew"
    said = until(head, "second", "succeeded", "status")
    assert "second" in said
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == list(range(1, last + 1))


def test_cache_generate_and_a_library(head: Head, dataset: Path, place: Path, tiny_model: Path) -> None:
    done = submit(
        head, "cache", "preset=tiny", f"data={dataset}", f"out={place / 'cache'}", f"init=[{tiny_model}]", "variants=1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "cache").is_dir()
    assert " crops" in done.stdout

    clip = ["clip.steps=2", "clip.candidates=2", "clip.duration_s=0.5", "count=2", "workers=2"]
    done = submit(head, "generate", f"model={tiny_model}", f"out={place / 'clips'}", *clip)
    assert done.returncode == 0, done.stdout + done.stderr
    names = sorted(path.stem for path in (place / "clips").glob("*.json"))
    assert names == ["000_a_dog_bark_seed7", "001_a_dog_bark_seed8", "002_rain_seed7", "003_rain_seed8"]

    plan = place / "plan.yaml"
    plan.write_text(
        "library: Tiny\ncreator: FRAY\nsource: TINY\ndate: 2026-11-20\n"
        "clip: {duration_s: 0.5, candidates: 1, steps: 2, guidance: 1}\n"
        "gates: {silence_dbfs: null, clipped: null, dc: null, similarity: null}\n"
        "categories:\n  - {catid: RAIN, name: Rain, prompts: [rain, heavy rain], seeds: 2}\n"
    )
    done = submit(head, "build_library", f"plan={plan}", f"out={place / 'library'}", f"model={tiny_model}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "library" / "manifest.json").is_file(), done.stdout


def test_the_challenge_run(head: Head, place: Path, tiny_model: Path) -> None:
    changes = [f"models.small={tiny_model}", f"models.large={tiny_model}", f"out={place / 'entry'}"]
    changes += ["count=1", "steps=1", "max_redraws=0", "workers=2", "cpus_per_worker=1"]
    done = submit(head, "dcase2023", *changes)
    assert done.returncode != 0
    assert "came without target sounds" in done.stdout  # before anything is made
    assert not (place / "entry").exists()
    done = submit(head, "dcase2023", *changes, f"classes.moving_motor_vehicle.targets={place / 'recordings'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 of 7: " in done.stdout
    assert len(list((place / "entry" / "generated_audio").glob("*/000.wav"))) == 7


def test_a_wrong_job_file_fails_with_one_line(head: Head, place: Path) -> None:
    done = submit(head, "train", f"out={place / 'x'}", "speed=1")
    assert done.returncode != 0
    assert "error: jobs/train.yaml: speed: no such setting" in done.stdout


def test_results_that_would_be_lost_with_the_job_are_refused(head: Head) -> None:
    done = submit(head, "generate", "out=clips")
    assert done.returncode != 0
    assert "a submitted job needs absolute paths, on storage that all nodes see" in done.stdout


def test_without_the_token_nothing_is_answered_and_doctor_says_why(head: Head, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    wrong.chmod(0o600)
    stranger = head.where(RAY_AUTH_TOKEN_PATH=str(wrong))
    assert stranger.run("ray", "job", "submit", "--", "true").returncode != 0
    for address in (head.environment["RAY_ADDRESS"], f"127.0.0.1:{head.gcs}"):
        for who, status in ((head, 0), (stranger, 1)):
            done = who.where(RAY_ADDRESS=address, HF_HUB_OFFLINE="1").run("foley", "doctor", "--json")
            [found] = [finding for finding in json.loads(done.stdout)["findings"] if finding["check"] == "Ray"]
            assert done.returncode == status, found
            assert address in found["seen"]
