"""The application: ingress -> condition -> sample -> vocode -> rank, built from typed settings.

serve deploy cluster/serve.yaml           import_path: foley_ray.serving.app:build_app
"""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from foley_ray.checkpoint import PARTS, read_info, shipped_model
from foley_ray.errors import ConfigError
from foley_ray.serving.batchrun import BatchRunner
from foley_ray.serving.batchstore import Store
from foley_ray.serving.deployments import STAGES
from foley_ray.serving.generation import Generation
from foley_ray.serving.graph import Graph
from foley_ray.serving.routes import make_api
from foley_ray.serving.settings import ServeSettings


@serve.ingress()
class Ingress:
    """Speaks HTTP; holds no model."""

    def __init__(
        self,
        settings: ServeSettings,
        condition: DeploymentHandle,
        sample: DeploymentHandle,
        vocode: DeploymentHandle,
        rank: DeploymentHandle,
        batches: DeploymentHandle | None = None,
    ):
        self.settings = settings
        self.batches = batches
        graph = Graph(settings, condition, sample, vocode, rank, settings.limits.request_s)
        info = read_info(settings.model or shipped_model())
        self.generation = Generation(graph, info, settings.limits)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve in the replica: the routes have the handles at hand."""
        return make_api(self.generation, self.settings, read_keys(self.settings), self.batches)


def build_app(args: ServeSettings) -> Application:
    """The graph, ready for `serve.run`.

    Raises ModelError if there is no complete model, ConfigError and OutputError for settings that cannot be used.
    """
    model = read_info(args.model or shipped_model(), needs=[name for name in PARTS if name != "tuning"])
    model.require_ranker("serve")
    read_keys(args)
    handles: dict[str, Any] = {
        name: serve.deployment(kind, name=kind.__name__, **getattr(args, name).options()).bind(args)
        for name, kind in STAGES.items()
    }
    if args.data is not None:
        Store(args.data)  # a place that cannot be written is found now, and not by a replica
        options = {
            "num_replicas": 1,
            "ray_actor_options": {"num_cpus": 0},
            "max_ongoing_requests": 64,
            "max_queued_requests": 256,
        }
        handles["batches"] = serve.deployment(BatchRunner, name="BatchRunner", **options).bind(args, **handles)
    return serve.deployment(Ingress, name="Ingress", **args.ingress.options()).bind(args, **handles)


def read_keys(settings: ServeSettings) -> tuple[str, ...]:
    """API keys of the settings and of the file they name. Raises ConfigError for a file that cannot be read or holds none."""
    if settings.api_keys_file is None:
        return settings.api_keys
    path: Path = settings.api_keys_file
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read API keys from {path}: {error}") from None
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if not found:  # an empty file must not open the service
        raise ConfigError(f"{path} holds no API key: write one a line")
    return (*settings.api_keys, *found)
