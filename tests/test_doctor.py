"""What `foley doctor` says of things that are really broken."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from foley_ray import doctor
from foley_ray.checkpoint import ModelInfo, shipped_model
from foley_ray.doctor import Finding, authentication, model_folders, room, versions

QUIET = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HF_HUB_OFFLINE": "1"}


def run(*words: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "foley_ray.cli", "doctor", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=QUIET | (environment or {}))


def one(findings: Iterator[Finding], check: str) -> Finding:
    [found] = [finding for finding in findings if finding.check == check]
    return found


def test_a_machine_that_works_gets_status_0_and_everything_is_looked_at(tiny_model: Path, tmp_path: Path) -> None:
    done = run("--json", "--model", tiny_model, environment={"HOME": str(tmp_path)})
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert report["status"] in ("ok", "warning")
    seen = {finding["check"]: finding for finding in report["findings"]}
    assert {"Python", "packages", "machine", "torch", "GPU", "Ray", "token", "current folder", "shared memory"} <= set(seen)
    assert "within their bounds" in seen["packages"]["seen"]
    assert "every weight as it was written" in seen["shipped model"]["seen"]
    assert str(tiny_model) in seen["model"]["seen"]
    assert "switched off" in seen["hub"]["seen"]
    assert [path.name for path in tmp_path.iterdir()] == [], "it changes nothing"


def test_what_is_broken_is_one_table_and_status_1(tiny_model: Path, tmp_path: Path) -> None:
    """A torchaudio for another torch, a model cut short, a token that is not there: all said at once."""
    broken = tmp_path / "site"
    (broken / "torchaudio").mkdir(parents=True)
    (broken / "torchaudio" / "__init__.py").write_text("raise OSError('undefined symbol: _ZN5torch')\n")
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    weights = next((model / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    environment = {"PYTHONPATH": str(broken), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "nothing")}
    done = run("--model", model, environment=environment | {"COLUMNS": "500"})
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert "torch, torchaudio and torchvision do not load together: undefined symbol: _ZN5torch" in said
    assert "nothing (RAY_AUTH_TOKEN_PATH) cannot be read: No such file or directory" in said
    assert "is damaged: its weights have digest" in said
    assert said.count("problem") == 3
    assert "Traceback" not in done.stderr


def test_packages_outside_their_bounds_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Bounds as an installation has them, of packages that are really there, or really are not."""
    place = tmp_path / "foley_ray-9.dist-info"
    place.mkdir()
    numpy = metadata.version("numpy")
    (place / "METADATA").write_text(
        textwrap.dedent(f"""\
            Metadata-Version: 2.4
            Name: foley-ray
            Version: 9
            Requires-Python: >=4
            Requires-Dist: numpy>{numpy}
            Requires-Dist: no-such-package-at-all>=1
            Requires-Dist: pyyaml>=6
            Requires-Dist: nor-this-one; extra == "dev"
            """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    findings = list(versions())
    assert [(finding.check, finding.state) for finding in findings] == [
        ("Python", "problem"),
        ("numpy", "problem"),
        ("no-such-package-at-all", "problem"),
    ]
    assert findings[1].seen == f"{numpy} is outside >{numpy}"
    assert findings[2].todo == "pip install -c cluster/constraints.txt 'no-such-package-at-all>=1'"


@pytest.mark.parametrize(
    ("content", "mode", "state", "said"),
    [
        (b"a" * 64, 0o600, "ok", "token (RAY_AUTH_TOKEN_PATH)"),
        (b"a" * 64, 0o644, "warning", "can be read by others"),
        (b"\n", 0o600, "problem", "is empty"),
        (b"two words", 0o600, "problem", "more than one word"),
        (b"\xff\xfe", 0o600, "problem", "it is not text"),
    ],
)
def test_token_files(content: bytes, mode: int, state: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(mode)
    [found] = authentication({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}, tmp_path)
    assert (found.state, said in found.seen) == (state, True), found


@pytest.mark.parametrize(
    ("environment", "state", "said"),
    [
        ({}, "ok", "none yet"),
        ({"RAY_AUTH_TOKEN": "x"}, "ok", "from RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "token"}, "warning", "there is no token"),
        ({"RAY_AUTH_MODE": "disabled"}, "warning", "runs code here"),
        ({"RAY_AUTH_MODE": "on"}, "problem", "Ray takes it for disabled"),
    ],
)
def test_authentication_modes(environment: dict[str, str], state: str, said: str, tmp_path: Path) -> None:
    [found] = authentication(environment, tmp_path)
    assert (found.state, said in found.seen) == (state, True), found


def test_rays_own_token_is_found_in_the_home(tmp_path: Path) -> None:
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("b" * 32)
    path.chmod(0o600)
    [found] = authentication({}, tmp_path)
    assert (found.state, found.seen) == ("ok", f"{path} (Ray's own place)")


def test_a_place_that_cannot_be_written_and_one_that_is_not_there(tmp_path: Path) -> None:
    assert room("current folder", tmp_path, "").state in ("ok", "warning")
    assert list(tmp_path.iterdir()) == []
    found = room("current folder", Path("/proc"), "another disk")
    assert (found.state, found.todo) == ("problem", "another disk")
    assert found.seen.startswith("/proc cannot be written to")
    assert "No such file" in room("temporary files", tmp_path / "nowhere", "").seen


def test_a_full_disk_is_called_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"only who may mount can have a full disk: {mounted.stderr.strip()}")
    try:
        assert room("current folder", disk, "").state == "warning", "little room"
        (disk / "filler").write_bytes(bytes(120 << 10))
        found = room("current folder", disk, "make room")
        assert found == Finding("current folder", "problem", f"{disk} is full", "make room")
        assert [path.name for path in disk.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_model_folders_that_are_not_whole(tiny_model: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny_model, tmp_path / name))

    lost = copy("lost")
    shutil.rmtree(lost / "clap")
    mangled = copy("mangled")
    (mangled / "unet" / "config.json").write_text('{"sample_size": ')
    some = copy("some")
    info = ModelInfo.model_validate_json((some / "foley.json").read_text())
    only = info.model_copy(update={"parts": {"vae": info.parts["vae"]}})
    (some / "foley.json").write_text(only.model_dump_json())
    folders = (tiny_model, lost, mangled, some, tmp_path / "nowhere", tmp_path)
    whole, *found = [finding for finding in model_folders(folders) if finding.check == "model"]
    assert whole.state == "ok"
    assert [finding.state for finding in found] == ["problem", "problem", "warning", "problem", "problem"]
    for finding, said in zip(
        found,
        [
            "No such file",
            "is damaged: Expecting value",
            "clap, unet, vocoder are not in it",
            "no model folder",
            "is no model folder",
        ],
        strict=True,
    ):
        assert said in finding.seen


def test_a_shipped_model_that_was_left_out_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert shipped_model().is_dir()
    monkeypatch.setattr("foley_ray.checkpoint.__file__", str(tmp_path / "checkpoint.py"))
    found = one(model_folders(()), "shipped model")
    assert found.state == "problem"
    assert "install foley_ray again" in found.seen


def test_no_cluster_at_rays_address_is_said_with_the_address() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:9")
        [found] = doctor.ray_cluster()
    assert found.state == "problem"
    assert "RAY_ADDRESS=127.0.0.1:9 cannot be used: cannot join the Ray cluster" in found.seen


def test_a_gpu_that_torch_cannot_use_is_a_problem_and_a_hidden_one_a_warning() -> None:
    none: dict = {"gpus": [], "bf16": False, "cuda": "13.0"}
    assert doctor._gpus(none, None, driver=False).state == "ok"
    assert doctor._gpus(none, "", driver=True).state == "warning"
    assert "driver to one for CUDA 13.0" in doctor._gpus(none, None, driver=True).todo
    old = doctor._gpus({"gpus": [{"name": "T4", "bytes": 16e9}], "bf16": False, "cuda": "13.0"}, None, driver=True)
    assert (old.state, old.seen) == ("warning", "T4 (16 GB)")


def test_a_hub_that_does_not_answer_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    [found] = doctor.hub()
    assert (found.state, "Connection refused" in found.seen) == ("warning", True)
