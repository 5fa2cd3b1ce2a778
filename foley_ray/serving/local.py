"""`foley serve`: the whole service on this machine, until Ctrl-C."""

import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from foley_ray.data.cluster import ensure_ray
from foley_ray.errors import ConfigError, ServiceError
from foley_ray.serving.app import build_app, read_keys
from foley_ray.serving.settings import ServeSettings

GPU_SHARES = {"condition": 0.1, "sample": 0.6, "vocode": 0.2, "rank": 0.1}
CPU_SHARES = {"condition": 0.25, "sample": 1.0, "vocode": 0.5, "rank": 0.25}


def local_settings(
    model: Path | None, data: Path | None, gpu: bool, keys_file: Path | None = None, cores: int | None = None
) -> ServeSettings:
    """One replica of each stage. Sampling and vocoding have all cores, as they take turns when one person asks."""
    cores = cores or os.cpu_count() or 1
    stages: dict[str, Any] = {
        name: {
            "max_replicas": 1,
            "num_cpus": CPU_SHARES[name],
            "num_gpus": GPU_SHARES[name] if gpu else 0.0,
            "threads": cores if name in ("sample", "vocode") else 1,
        }
        for name in CPU_SHARES
    }
    return ServeSettings.model_validate(
        {"model": model, "data": data, "api_keys_file": keys_file, "ingress": {"max_replicas": 1}, **stages}
    )


def run(settings: ServeSettings, host: str, port: int, tell: Callable[[str], None]) -> None:
    """Start Ray and Serve here, say where, and block until SIGINT or SIGTERM; then stop both.

    Raises ConfigError for a port that is taken, an address that may not be opened without keys, or a GPU that is not there;
    ServiceError if a stage cannot start.
    """
    _check_open(settings, host)
    _check_port(host, port)
    app = build_app(settings)
    stop = threading.Event()
    _on_signals(stop)
    tell("starting Ray and the four stages, about half a minute")
    ensure_ray(num_cpus=max(2, os.cpu_count() or 1))
    _on_signals(stop)  # Ray has put a SIGTERM handler of its own in place, which aborts
    try:
        if settings.sample.num_gpus and ray.cluster_resources().get("GPU", 0) < 1:
            raise ConfigError("--gpu: Ray finds no GPU on this machine; leave it out to run on the CPU")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options=HTTPOptions(host=host, port=port, request_timeout_s=settings.limits.request_s + 10))
        try:
            serve.run(app, name="foley", route_prefix="/")
        except RuntimeError as error:
            raise ServiceError(f"the service did not start: {_reason() or error}") from error
        if not stop.is_set():
            tell(f"ready: http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}  (API: /docs; Ctrl-C stops)")
        stop.wait()
        tell("stopping")
    finally:
        with suppress(Exception):  # on the way out; Ray going down takes everything with it
            serve.delete("foley")
        ray.shutdown()


def _on_signals(stop: threading.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())


def _reason() -> str:
    """What the first deployment that failed says of it: the last line of its traceback."""
    for deployment in serve.status().applications["foley"].deployments.values():
        if deployment.status == "DEPLOY_FAILED" and deployment.message:
            return str(deployment.message.strip().splitlines()[-1])
    return ""


def _check_open(settings: ServeSettings, host: str) -> None:
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and not read_keys(settings):
        raise ConfigError(f"--host {host} opens the service to the network: give --api-keys FILE with one key a line")


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from None
