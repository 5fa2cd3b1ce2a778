"""Starting Ray, or joining the cluster that is there. The one place where foley_ray calls `ray.init`."""

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import ray
import ray.data

from foley_ray.errors import ConfigError

Made = TypeVar("Made")


def ensure_ray(num_cpus: int | None = None) -> None:
    """Make Ray usable in this process; does nothing where it already is.

    Joins the cluster named by RAY_ADDRESS (which `ray job submit` sets for its driver), else starts one on this machine
    that ends with this process, with `num_cpus` cores (None: all). Raises ConfigError when the named cluster cannot be
    joined.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address := os.environ.get("RAY_ADDRESS"):
        _join(address)
    else:
        _start(num_cpus)


def quiet_progress() -> None:
    """Keep Ray Data's bars and notices off the console: foley_ray reports progress itself. Its log file still has them."""
    context = ray.data.DataContext.get_current()
    context.print_on_execution_start = False
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []  # advice for who writes the pipeline, repeated to who runs it
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that the bars are off
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)


def forgive_actors() -> None:
    """Let Ray Data's actor pools try again where an actor does not come up.

    On a busy node Ray gives up on a worker's process after some minutes; one that was only to help must not end a night's work,
    as it does by default. What fails every time still does, after five more tries.
    """
    ray.data.DataContext.get_current().max_consecutive_actor_init_deaths = 5


def run_shares(
    share_of: Callable[[int], Iterator[Made]],
    workers: int,
    cpus_per_worker: int = 1,
    gpu: bool = False,
    autoscaled: bool = False,
) -> Iterator[Made]:
    """Run share_of(0) .. share_of(workers - 1) on the cluster, each with its cores; yields what they yield, as it is made.

    Raises ConfigError when no node is large enough for a worker, unless the cluster may grow: Ray would wait, in silence, for
    ever. What a share raises is raised here.
    """
    gpus = 1 if gpu else 0
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = any(has.get("CPU", 0) >= cpus_per_worker and has.get("GPU", 0) >= gpus for has in nodes)
    if not fits and not autoscaled:
        raise ConfigError(
            f"a worker asks for {cpus_per_worker} cores and {gpus} GPUs, but the nodes have "
            + ", ".join(f"{has.get('CPU', 0):g} cores and {has.get('GPU', 0):g} GPUs" for has in nodes)
            + "; lower cpus_per_worker, set gpu: false, or set autoscaled: true where nodes are added on demand"
        )

    def make(share: int) -> Iterator[Made]:
        # Ray sends into what it iterates, which a plain iterator, other than a generator, refuses.
        yield from (made for made in share_of(share))

    task = ray.remote(num_cpus=cpus_per_worker, num_gpus=gpus, num_returns="streaming")(make)
    under_way = [task.remote(share) for share in range(workers)]
    while under_way:
        (ready,), _ = ray.wait(under_way, num_returns=1)
        try:
            yield ray.get(next(ready))
        except StopIteration:
            under_way.remove(ready)


def _start(num_cpus: int | None) -> None:
    """A private cluster on this machine, guarded by a token.

    Ray guards a new local cluster with the token in ~/.ray, and writes one there first. A home may be read-only or
    shared, so where no token exists this process makes its own; worker processes inherit it. RAY_AUTH_MODE is left
    alone: Ray reads it when imported, and setting it later leaves the driver and its cluster with different modes.
    """
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if not named and not Path("~/.ray/auth_token").expanduser().exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # It would announce, as a warning, that the token is on.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    # Ray Train asks the dashboard whether its controller lives, and where there is none waits for it, 12 s at the end of a
    # short run. An address that refuses at once is passed on to the cluster's processes, and only to them.
    elsewhere = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ.setdefault("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    try:
        # "local" and not None: None joins any cluster that a bystander started on this machine.
        ray.init(
            address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
        )
    finally:
        if elsewhere is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]


def _join(address: str) -> None:
    """Join a running cluster. Its worker processes and cores are its own affair, so `num_cpus` has no say here."""
    if address.startswith("http"):
        raise ConfigError(
            f"RAY_ADDRESS={address} is where `ray job submit` sends jobs, not where one joins: submit jobs/*.py, or unset it"
        )
    try:
        _probe(address)
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ray.exceptions.RaySystemError, ray.exceptions.AuthenticationError) as error:
        reason = str(error).split(". ")[0].strip()
        raise ConfigError(
            f"cannot join the Ray cluster at RAY_ADDRESS={address}: {reason} "
            "(is it running? if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH)"
        ) from None


def _probe(address: str) -> None:
    """Raise OSError when nothing listens at host:port: Ray itself would keep trying for minutes."""
    url = urlsplit(address if "://" in address else f"//{address}")
    if url.hostname and url.port:
        socket.create_connection((url.hostname, url.port), timeout=10).close()
