"""`foley doctor`: what is wrong on this machine, in plain words, and what to do about it. Changes nothing.

torch and Ray are tried in processes of their own: what is broken there may end the whole process, and must not end this one.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.error import URLError
from urllib.request import Request, urlopen

import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from foley_ray.checkpoint import PARTS, model_folder, part_digest, read_info, shipped_model
from foley_ray.errors import FoleyError, ModelError

State = Literal["ok", "warning", "problem"]
STATES: tuple[State, ...] = get_args(State)
COLOURS: dict[State, str] = {"ok": "green", "warning": "yellow", "problem": "bold red"}
PACKAGE = "foley-ray"
GB = 1e9
MEMORY_GB = 4
"""`foley generate` takes 1.5 GB with the shipped model; the service's replicas or two training workers take more."""
SPACE_GB = {"temporary files": 5.0, "current folder": 1.0, "shared memory": 1.0}
"""Below it a warning: Ray's logs and what it spills; 1,000 delivered clips of 4 s are 0.6 GB; a few batches of training."""
RAY_FULL = 0.95
"""Ray makes no object on a disk that is fuller (its local_fs_capacity_threshold)."""
PROBE_S = 90
HUB_S = 4


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    state: State
    seen: str
    todo: str = ""


def examine(models: tuple[Path, ...] = (), tell: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """Everything, in the order in which it is worth repairing; `tell` is called with what is looked at now."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": versions,
        "devices": devices,
        "Ray": ray_cluster,
        "authentication": lambda: authentication(os.environ, Path.home()),
        "disk": disk,
        "models": lambda: model_folders(models),
        "hub": hub,
    }
    findings: list[Finding] = []
    for name, check in checks.items():
        tell(name)
        findings += check()
    return findings


def doctor(
    model: Annotated[list[Path] | None, typer.Option(help="model or run folder to check as well; repeatable")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs: status and findings as JSON")] = False,
) -> None:
    """Check versions, devices, Ray, tokens, disk, models and the hub, and say what to do; status 1 if something is broken."""
    with Console(stderr=True, highlight=False).status("looking") as status:
        findings = examine(tuple(model or ()), lambda name: status.update(f"looking at {name}"))
    worst = max((finding.state for finding in findings), key=STATES.index)
    if as_json:
        print(json.dumps({"status": worst, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        table = Table(
            "", "", Column("found", overflow="fold"), Column("what to do", overflow="fold"), box=SIMPLE_HEAD, pad_edge=False
        )
        for finding in findings:
            state = Text(finding.state, COLOURS[finding.state])
            table.add_row(Text(finding.check), state, Text(finding.seen), Text(finding.todo))
        Console(highlight=False).print(table)
    raise typer.Exit(1 if worst == "problem" else 0)


def versions() -> Iterator[Finding]:
    """Installed packages against the bounds that foley_ray was installed with, and torch beside its companions."""
    try:
        wanted = [Requirement(line) for line in metadata.requires(PACKAGE) or []]
        python = SpecifierSet(metadata.metadata(PACKAGE)["Requires-Python"])
    except metadata.PackageNotFoundError:
        yield Finding("packages", "problem", f"{PACKAGE} is not installed", "pip install -c cluster/constraints.txt .")
        return
    running = ".".join(map(str, sys.version_info[:3]))
    state: State = "ok" if running in python else "problem"
    yield Finding("Python", state, running, "" if running in python else f"use a Python {python}")
    wanted = [requirement for requirement in wanted if requirement.marker is None or requirement.marker.evaluate({"extra": ""})]
    outside = list(_outside(wanted))
    yield from outside
    if not outside:
        said = ", ".join(f"{name} {metadata.version(name)}" for name in ("ray", "torch", "torchaudio"))
        yield Finding("packages", "ok", f"{len(wanted)} within their bounds ({said})")


def _outside(wanted: list[Requirement]) -> Iterator[Finding]:
    for requirement in wanted:
        bounds = requirement.specifier
        remedy = f"pip install -c cluster/constraints.txt '{requirement.name}{bounds}'"
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(requirement.name, "problem", "not installed", remedy)
            continue
        if not bounds.contains(found, prereleases=True):
            yield Finding(requirement.name, "problem", f"{found} is outside {bounds}", remedy)


def devices() -> Iterator[Finding]:
    """Cores, memory, GPUs; whether torch and its companions can be loaded together at all."""
    cores, memory_gb = len(os.sched_getaffinity(0)), _memory_bytes() / GB
    enough = memory_gb >= MEMORY_GB
    todo = "" if enough else f"`foley serve` and training want {MEMORY_GB} GB; `foley generate` needs 1.5 GB"
    yield Finding("machine", "ok" if enough else "warning", f"{cores} CPU cores, {memory_gb:.1f} GB of memory", todo)
    found = _try(
        "import json, torch, torchaudio, torchvision\n"
        "named = lambda n: dict(name=torch.cuda.get_device_name(n), bytes=torch.cuda.get_device_properties(n).total_memory)\n"
        "gpus = [named(n) for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []\n"
        "bf16 = bool(gpus) and torch.cuda.is_bf16_supported(including_emulation=False)\n"
        "print(json.dumps(dict(cuda=torch.version.cuda, gpus=gpus, bf16=bf16)))"
    )
    if "failed" in found:
        remedy = "pip install -c cluster/constraints.txt --force-reinstall torch torchaudio torchvision"
        yield Finding("torch", "problem", f"torch, torchaudio and torchvision do not load together: {found['failed']}", remedy)
        return
    yield Finding("torch", "ok", f"loads with torchaudio and torchvision, built for CUDA {found['cuda']}")
    yield _gpus(found, os.environ.get("CUDA_VISIBLE_DEVICES"), Path("/proc/driver/nvidia/version").is_file())


def _gpus(found: Mapping[str, Any], visible: str | None, driver: bool) -> Finding:
    if found["gpus"]:
        names = ", ".join(f"{gpu['name']} ({gpu['bytes'] / GB:.0f} GB)" for gpu in found["gpus"])
        state: State = "ok" if found["bf16"] else "warning"
        todo = "" if found["bf16"] else "no bfloat16 here: train with --set precision=fp32, the default"
        return Finding("GPU", state, f"{names}{', bf16' if found['bf16'] else ''}", todo)
    if driver and visible in ("", "-1"):
        return Finding("GPU", "warning", f"hidden by CUDA_VISIBLE_DEVICES={visible!r}", "unset CUDA_VISIBLE_DEVICES to use it")
    if driver:
        todo = f"update the NVIDIA driver to one for CUDA {found['cuda']} (`nvidia-smi` shows it), or restart after an update"
        return Finding("GPU", "problem", "an NVIDIA driver is loaded, but torch cannot use a GPU", todo)
    return Finding("GPU", "ok", "none; everything runs on the CPU")


def _memory_bytes() -> int:
    """Of the machine, or what a container may take of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # not in a container, or no limit ("max")
            continue
    return total


def ray_cluster() -> Iterator[Finding]:
    """The cluster that foley would join, if any."""
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        yield Finding("Ray", "ok", "RAY_ADDRESS is not set: each command starts a Ray of its own here, and ends it")
        return
    if address.startswith("http"):
        found = _try(
            "import json\nfrom ray.job_submission import JobSubmissionClient\n"
            f"client = JobSubmissionClient({address!r})\nprint(json.dumps(dict(jobs=len(client.list_jobs()))))"
        )
        seen = f"jobs can be submitted to {address} ({found.get('jobs')} there); only `ray job submit` can use that address"
    else:
        found = _try(
            "import json, ray\nfrom foley_ray.data.cluster import ensure_ray\nensure_ray()\n"
            "print(json.dumps(dict(ray.cluster_resources(), nodes=sum(node['Alive'] for node in ray.nodes()))))"
        )
        seen = f"{address}: {found.get('nodes')} nodes, {found.get('CPU', 0):g} CPUs, {found.get('GPU', 0):g} GPUs"
    if "failed" in found:
        todo = "start it (`ray start --head`), correct RAY_ADDRESS and the token, or unset RAY_ADDRESS to work on this machine"
        yield Finding("Ray", "problem", f"RAY_ADDRESS={address} cannot be used: {found['failed']}", todo)
    else:
        yield Finding("Ray", "ok", seen)


def authentication(environment: Mapping[str, str], home: Path) -> Iterator[Finding]:
    """The mode and the token that Ray would take from these; in Ray's order."""
    mode = environment.get("RAY_AUTH_MODE")
    if mode is not None and mode not in ("token", "disabled"):
        seen = f"RAY_AUTH_MODE={mode} is no mode; Ray takes it for disabled, without a word"
        yield Finding("token", "problem", seen, "set it to token, or unset it")
    elif mode == "disabled":
        seen = "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports runs code here"
        yield Finding("token", "warning", seen, "unset it, or keep this machine off every network you do not trust")
    elif environment.get("RAY_AUTH_TOKEN"):
        yield Finding("token", "ok", "from RAY_AUTH_TOKEN")
    elif path := environment.get("RAY_AUTH_TOKEN_PATH"):
        yield _token_file(Path(path), "RAY_AUTH_TOKEN_PATH")
    elif (default := home / ".ray" / "auth_token").exists():
        yield _token_file(default, "Ray's own place")
    elif mode == "token":
        seen = "RAY_AUTH_MODE=token, but there is no token: local Rays get one, `ray start` and clusters refuse"
        yield Finding(
            "token", "warning", seen, "`ray get-auth-token --generate`, or point RAY_AUTH_TOKEN_PATH to the cluster's"
        )
    else:
        seen = "none yet: local Rays get one of their own; a `ray start` here would be open to all"
        yield Finding("token", "ok", seen, "before `ray start`: `ray get-auth-token --generate`, the same on every node")


def _token_file(path: Path, source: str) -> Finding:
    try:
        token, mode = path.read_text(encoding="utf-8").strip(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        todo = "copy the cluster's token there, or unset RAY_AUTH_TOKEN_PATH"
        return Finding("token", "problem", f"{path} ({source}) cannot be read: {reason}", todo)
    if not token:
        todo = f"`ray get-auth-token --generate` makes one in ~/.ray; copy the cluster's to {path}"
        return Finding("token", "problem", f"{path} ({source}) is empty", todo)
    if len(token.split()) > 1:
        return Finding("token", "problem", f"{path} ({source}) holds more than one word", "a token is one word on one line")
    if mode & 0o077:
        return Finding("token", "warning", f"{path} ({source}) can be read by others", f"chmod 600 {path}")
    return Finding("token", "ok", f"{path} ({source})")


def disk() -> Iterator[Finding]:
    """Room, and whether it can be written to: a file is written, and removed."""
    temporary = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    yield room("temporary files", temporary, "make room there, or set RAY_TMPDIR and TMPDIR to a larger disk")
    yield room("current folder", Path.cwd(), "make room, or give --out on another disk")
    yield room("shared memory", Path("/dev/shm"), "in Docker --shm-size=8g; without it Ray keeps its objects on disk")


def room(name: str, folder: Path, todo: str) -> Finding:
    """One place: can it be written to, and how much is left."""
    try:
        usage = shutil.disk_usage(folder)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".foley_doctor_") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        seen = f"{folder} is full" if full else f"{folder} cannot be written to: {error.strerror}"
        return Finding(name, "problem", seen, todo)
    seen = f"{folder}: {usage.free / GB:.1f} GB free of {usage.total / GB:.1f}"
    if usage.free < SPACE_GB[name] * GB:
        return Finding(name, "warning", f"{seen}, less than {SPACE_GB[name]:g}", todo)
    if name == "temporary files" and usage.used > RAY_FULL * usage.total:
        return Finding(name, "warning", f"{seen}: Ray spills nothing to a disk more than {RAY_FULL:.0%} full", todo)
    return Finding(name, "ok", seen)


def model_folders(models: tuple[Path, ...]) -> Iterator[Finding]:
    """The shipped model and those given: complete, and byte for byte what was written."""
    try:
        yield _model(shipped_model(), "shipped model", complete=True)
    except FoleyError as error:
        yield Finding("shipped model", "problem", str(error), "install foley_ray again, or give every command its --model")
    for path in models:
        yield _model(path, "model", complete=False)


def _model(path: Path, name: str, complete: bool) -> Finding:
    folder = model_folder(path)
    try:
        info = read_info(folder, needs=[part for part in PARTS if part != "tuning"] if complete else ())
        for part, known in info.parts.items():
            json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
            if (found := part_digest(folder / part)) != known.digest:
                raise ModelError(f"{folder / part} is damaged: its weights have digest {found}, written were {known.digest}")
    except FoleyError as error:
        return Finding(name, "problem", str(error), "copy or download the folder again, whole")
    except (OSError, ValueError) as error:
        return Finding(name, "problem", f"{folder} is damaged: {error}", "copy or download the folder again, whole")
    missing = [part for part in PARTS if part not in info.parts and part != "tuning"]
    if missing:
        seen = f"{folder}: whole, but {', '.join(missing)} are not in it"
        return Finding(name, "warning", seen, "`foley assemble` puts the parts of several runs together")
    return Finding(name, "ok", f"{folder}: {info.preset} {info.digest}, every weight as it was written")


def hub() -> Iterator[Finding]:
    """Whether Hugging Face answers. Nothing that foley ships needs it."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true"):
        yield Finding("hub", "ok", "switched off by HF_HUB_OFFLINE; only hf:// sources need it")
        return
    try:
        urlopen(Request(address, method="HEAD"), timeout=HUB_S).close()
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        todo = "only `foley ingest hf://...` needs it; set HF_HUB_OFFLINE=1 to spare the wait, or HF_ENDPOINT for a mirror"
        yield Finding("hub", "warning", f"{address} does not answer ({reason})", todo)
    else:
        yield Finding("hub", "ok", f"{address} answers")


def _try(code: str) -> dict[str, Any]:
    """What a process of its own prints, or under "failed" why it did not."""
    guarded = f"import sys\ntry:\n exec({code!r})\nexcept Exception as error:\n sys.exit('\\n' + ' '.join(str(error).split()))"
    try:
        done = subprocess.run([sys.executable, "-c", guarded], capture_output=True, text=True, timeout=PROBE_S)
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer within {PROBE_S} s"}
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and answers:
        found: dict[str, Any] = json.loads(answers[-1])
        return found
    said = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
    return {"failed": said if len(said) < 400 else f"{said[:400]}..."}
