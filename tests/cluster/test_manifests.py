"""cluster/ against the schemas of those who read it, and against each other. Starts nothing."""

import copy
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from foley_ray import __version__, jobfile
from foley_ray.jobfile import LibraryJob, TrainJob, load_job
from foley_ray.library.plan import load_plan
from foley_ray.serving.deployments import STAGES
from foley_ray.serving.settings import ServeSettings

REPOSITORY = Path(__file__).parents[2]
CLUSTER = REPOSITORY / "cluster"
KUBERAY = CLUSTER / "kuberay"
YAMLS = sorted(CLUSTER.rglob("*.yaml"))
SERVE = sorted(CLUSTER.glob("serve*.yaml"))
KINDS = {
    "raycluster.yaml": "RayCluster",
    "rayjob-train.yaml": "RayJob",
    "rayjob-library.yaml": "RayJob",
    "raycronjob-library.yaml": "RayCronJob",
    "rayservice.yaml": "RayService",
}
IMAGE_ROOT = "/opt/foley_ray/"
"""Where the image has this repository."""

Json = dict[str, Any]


def load(path: Path) -> Json:
    content: Json = yaml.safe_load(path.read_text())
    return content


def constraints() -> dict[str, str]:
    lines = (CLUSTER / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def clusters() -> Iterator[tuple[str, Json]]:
    """Every RayCluster spec, with the file that it is in."""
    for name in KINDS:
        spec = load(KUBERAY / name)["spec"]
        spec = spec.get("jobTemplate", spec)
        yield name, spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods(cluster: Json) -> Iterator[tuple[str, Json]]:
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


@pytest.fixture(scope="module")
def definitions() -> Json:
    """KubeRay's schemas, as strict as `kubectl apply`: an unknown field is an error."""
    content: Json = json.loads((Path(__file__).parent / "crds" / "kuberay.json").read_text())

    def close(node: Any) -> None:
        if isinstance(node, dict):
            if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
                node.setdefault("additionalProperties", False)
            for value in node.values():
                close(value)
        elif isinstance(node, list):
            for value in node:
                close(value)

    close(content)
    return content


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_every_number_is_explained_beside_it(path: Path) -> None:
    numbers = re.compile(r"""[:\[] *"?-?\d+(\.\d+)?(m|Mi|Gi)?"? *([,}\]]|$|\s#)""")
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith(("#", "python "))]
    assert [line for line in lines if numbers.search(line) and "#" not in line] == []


def test_ray_up_takes_its_yaml() -> None:
    config = load(CLUSTER / "ray-up.yaml")
    ready = prepare_config(copy.deepcopy(config))
    validate_config(ready)
    types = config["available_node_types"]
    workers = {name: kind for name, kind in types.items() if name != config["head_node_type"]}
    assert config["max_workers"] == sum(kind["max_workers"] for kind in workers.values())
    assert any(kind["resources"].get("GPU") for kind in workers.values())
    assert any("GPU" not in kind["resources"] for kind in workers.values())
    assert all(kind["min_workers"] == 0 for kind in workers.values() if kind["resources"].get("GPU")), "no GPU is paid for idly"
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in ready[commands][-1]
        assert "dashboard-host" not in ready[commands][-1], "the dashboard is never public"
    assert "~/.ray/auth_token" in ready["file_mounts"]
    with pytest.raises(jsonschema.ValidationError, match="max_wokers"):
        validate_config({**ready, "max_wokers": 2})


def test_a_shell_takes_every_command_of_ray_up_as_ray_wraps_it() -> None:
    """In brackets, and in one line: a comment at its end would take the closing one away."""
    ready = prepare_config(load(CLUSTER / "ray-up.yaml"))
    commands = [command for key, value in ready.items() if key.endswith("_commands") for command in value]
    assert len(commands) > 5
    for command in commands:
        [wrapped] = shlex.split(_with_interactive(command)[-1])
        assert f"({command})" in wrapped
        done = subprocess.run(["bash", "-n", "-c", wrapped], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.mark.parametrize("name", KINDS)
def test_kuberay_takes_its_manifests(name: str, definitions: Json) -> None:
    manifest = load(KUBERAY / name)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", KINDS[name])
    schema = {**definitions["kinds"][KINDS[name]], "$defs": definitions["$defs"]}
    validator = jsonschema.Draft202012Validator(schema)
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)] == []
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["wokerGroupSpecs"] = []
    assert not validator.is_valid(wrong)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?", manifest["metadata"]["name"])


@pytest.mark.parametrize(("name", "cluster"), list(clusters()), ids=lambda value: value if isinstance(value, str) else "")
def test_clusters_ask_for_a_token_close_their_ports_and_say_what_they_take(name: str, cluster: Json) -> None:
    assert cluster["rayVersion"] == constraints()["ray"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["networkPolicy"]["mode"] == "DenyAllIngress"
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "serviceType" not in cluster["headGroupSpec"], "ClusterIP: the dashboard is never public"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for place, pod in pods(cluster):
        [container] = pod["containers"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        assert ("nvidia.com/gpu" in limits) == (place == "gpu") == ("tolerations" in pod)
        assert pod["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert "restartPolicy" not in pod, "the autoscaler (v2) replaces nodes itself"
        assert {"readinessProbe", "livenessProbe"} <= set(container)
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_other_manifests_hold_pods_that_kubernetes_takes(definitions: Json) -> None:
    """Their pods against the pod that KubeRay's schemas hold; the rest is a few lines."""
    documents = [*yaml.safe_load_all((KUBERAY / "redis.yaml").read_text()), load(KUBERAY / "storage.yaml")]
    kinds = {document["kind"]: document for document in documents}
    assert set(kinds) == {"Service", "StatefulSet", "NetworkPolicy", "PersistentVolumeClaim"}

    def resolved(node: Json) -> Json:
        return definitions["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node

    node = definitions["kinds"]["RayCluster"]
    for name in ("spec", "headGroupSpec", "template"):
        node = resolved(resolved(node)["properties"][name])
    template = kinds["StatefulSet"]["spec"]["template"]
    jsonschema.validate(template, {**node, "$defs": definitions["$defs"]})
    labels = template["metadata"]["labels"]
    assert labels == kinds["Service"]["spec"]["selector"]
    assert labels == kinds["StatefulSet"]["spec"]["selector"]["matchLabels"]
    assert labels == kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    options = load(KUBERAY / "rayservice.yaml")["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    [port] = kinds["Service"]["spec"]["ports"]
    assert options["redisAddress"] == f"{kinds['Service']['metadata']['name']}:{port['port']}"
    assert options["redisPassword"]["valueFrom"] == template["spec"]["containers"][0]["env"][0]["valueFrom"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for _, cluster in clusters()
        for _, pod in pods(cluster)
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {kinds["PersistentVolumeClaim"]["metadata"]["name"]}


def serve_configs() -> list[tuple[str, Json]]:
    configs = [(path.name, load(path)) for path in SERVE]
    return [*configs, ("rayservice.yaml", yaml.safe_load(load(KUBERAY / "rayservice.yaml")["spec"]["serveConfigV2"]))]


@pytest.mark.parametrize(("name", "config"), serve_configs(), ids=lambda value: value if isinstance(value, str) else "")
def test_serve_and_the_builder_take_every_configuration(name: str, config: Json) -> None:
    schema = ServeDeploySchema.model_validate(config)
    [app] = schema.applications
    module, _, builder = app.import_path.partition(":")
    assert callable(getattr(import_module(module), builder))
    settings = ServeSettings.model_validate(app.args)
    assert schema.http_options.request_timeout_s > settings.limits.request_s
    assert settings.api_keys_file is not None, "no service without keys on a network"
    assert not settings.open_access
    gpus = sum(getattr(settings, stage).num_gpus * getattr(settings, stage).max_replicas for stage in STAGES)
    if name == "serve-cpu.yaml":
        assert gpus == 0
    elif name == "serve-one-gpu.yaml":
        assert gpus == pytest.approx(1)
    else:
        assert settings.sample.device == "cuda"


def test_the_ray_service_has_nodes_for_what_it_may_grow_to() -> None:
    spec = load(KUBERAY / "rayservice.yaml")["spec"]
    assert yaml.safe_load(spec["serveConfigV2"]) == load(CLUSTER / "serve-many-gpus.yaml")
    settings = ServeSettings.model_validate(yaml.safe_load(spec["serveConfigV2"])["applications"][0]["args"])
    [group] = [group for group in spec["rayClusterConfig"]["workerGroupSpecs"] if group["groupName"] == "gpu"]
    least = sum(getattr(settings, name).num_gpus * getattr(settings, name).min_replicas for name in STAGES)
    most = sum(getattr(settings, name).num_gpus * getattr(settings, name).max_replicas for name in STAGES)
    assert least <= group["minReplicas"]
    assert most <= group["maxReplicas"]
    rules = spec["rayClusterConfig"]["networkPolicy"]["worker"]["ingressRules"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == {8000, 8080}
    probe = group["template"]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"][-1]
    assert "localhost:8000/-/healthz" in probe, "a node without a proxy gets no requests"
    assert spec["rayClusterDeletionDelaySeconds"] > settings.limits.request_s


def entrypoints() -> list[tuple[str, str]]:
    """Every command that cluster/ and README give to `ray job submit`, or KubeRay does, with where it stands."""
    found = [(name, load(KUBERAY / name)["spec"]) for name in KINDS]
    commands = [(name, spec.get("jobTemplate", spec)["entrypoint"]) for name, spec in found if "Job" in KINDS[name]]
    for path in (CLUSTER / "crontab", REPOSITORY / "README.md", *KUBERAY.glob("*.yaml"), *(REPOSITORY / "jobs").glob("*.py")):
        lines = path.read_text().replace("\\\n", " ").splitlines()
        commands += [
            (path.name, line.split(" -- ", 1)[1].split(">>")[0]) for line in lines if re.search(r"ray job submit.* -- p", line)
        ]
    return commands


@pytest.mark.parametrize(("where", "command"), entrypoints())
def test_every_entrypoint_is_a_job_with_settings_it_takes(where: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split(command.split("#")[0])
    assert words[0] == "python"
    assert words[2] == "--config"
    script, config, *changes = (word.replace(IMAGE_ROOT, "") for word in (words[1], words[3], *words[4:]))
    kind = runpy.run_path(script)["main"].__annotations__["job"]
    job = load_job(kind, Path(config), changes)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    jobfile._refuse_lost_paths(job)
    if isinstance(job, TrainJob):
        job.resolved()
    if isinstance(job, LibraryJob):
        load_plan(job.plan)


@pytest.mark.parametrize("name", ["rayjob-library.yaml", "raycronjob-library.yaml"])
def test_what_they_say_of_gpus_is_a_setting_that_the_job_takes(name: str) -> None:
    [said] = re.findall(r"with GPUs, .* and (.*) in the entrypoint", (KUBERAY / name).read_text())
    usual = load_job(LibraryJob, REPOSITORY / "jobs" / "build_library.yaml")
    job = load_job(LibraryJob, REPOSITORY / "jobs" / "build_library.yaml", shlex.split(said))
    assert job.pools == {**usual.pools, "sample": usual.pools["sample"].model_copy(update={"gpus": 1})}


def test_cron_finds_the_programs_that_its_line_runs() -> None:
    lines = (CLUSTER / "crontab").read_text().splitlines()
    [path] = [line.removeprefix("PATH=") for line in lines if line.startswith("PATH=")]
    here = path.replace(f"{IMAGE_ROOT}.venv", sys.prefix)  # an environment as README makes one
    for program in ("ray", "flock"):
        assert shutil.which(program, path=here), f"{program} is not on {path}"
    assert "/usr/local/bin" in path.split(":"), "where the image has ray"


def test_commands_are_found_where_they_should_be() -> None:
    places = {where for where, _ in entrypoints()}
    assert {
        "rayjob-train.yaml",
        "rayjob-library.yaml",
        "raycronjob-library.yaml",
        "raycluster.yaml",
        "crontab",
        "README.md",
    } <= places


def test_the_nights_do_what_the_job_does() -> None:
    cron, job = load(KUBERAY / "raycronjob-library.yaml")["spec"], load(KUBERAY / "rayjob-library.yaml")["spec"]
    assert cron["jobTemplate"] == job
    [line] = [line for line in (CLUSTER / "crontab").read_text().splitlines() if "ray job submit" in line]
    assert line.startswith(cron["schedule"] + " ")
    plan = load_plan(REPOSITORY / "jobs" / "plans" / "dcase_small.yaml")
    assert job["activeDeadlineSeconds"] > plan.budget.hours * 3600


def test_the_image_has_the_tested_versions_and_is_the_one_that_is_used() -> None:
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    pinned = dict(re.findall(r"([\w-]+)(?:\[[\w,]+\])?==([\d.]+)", text))
    assert set(pinned) == {"ray", "torch", "torchaudio", "torchvision"}
    assert pinned == {name: constraints()[name] for name in pinned}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    [python] = re.findall(r"^FROM python:([\d.]+)", text, re.M)
    assert f"{python}.0" in SpecifierSet(project["requires-python"])
    installs = re.findall(r"pip install (.*)", text)
    assert all("-c cluster/constraints.txt" in line for line in installs if "boto3" not in line)
    for source in re.findall(r"^COPY ((?:\S+ )+)\S+$", text, re.M):
        assert all((REPOSITORY / name).exists() for name in source.split())
    assert f"WORKDIR {IMAGE_ROOT.rstrip('/')}" in text
    images = {load(CLUSTER / "ray-up.yaml")["docker"]["image"]}
    images |= {container["image"] for _, cluster in clusters() for _, pod in pods(cluster) for container in pod["containers"]}
    assert images == {f"registry.example.com/foley-ray:{__version__}"}


def test_the_dashboard_asks_for_metrics_that_are_exported() -> None:
    board = json.loads((CLUSTER / "grafana.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    names = {name for expression in expressions for name in re.findall(r"\bray_[a-z0-9_]+", expression)}
    ours = {name.removeprefix("ray_foley_train_") for name in names if name.startswith("ray_foley_train_")} - {""}
    loop = (REPOSITORY / "foley_ray" / "training" / "loop.py").read_text()
    assert ours
    assert [name for name in ours if f'"{name}"' not in loop and name != "step"] == []
    theirs = {name for name in names if not name.startswith("ray_foley_")}
    known = set()
    for kind in ("default", "serve", "serve_deployment", "data", "train"):  # what Ray's own dashboards ask for
        panels = import_module(f"ray.dashboard.modules.metrics.dashboards.{kind}_dashboard_panels")
        known |= set(re.findall(r"\bray_[a-z0-9_]+", Path(panels.__file__).read_text()))
    assert theirs - known == set()
    assert any(name.startswith("ray_serve_") for name in theirs)
    assert any(name.startswith("ray_data_") for name in theirs)
