"""Which network the workers of a run talk over: that of the addresses under which Ray knows their nodes.

Gloo by itself takes the address that the host's own name stands for. On a plain Debian machine that is 127.0.1.1, and a run
over two such machines would wait for its workers until it fails. NCCL looks for itself.
"""

import os

import psutil
import ray
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

VARIABLE = "GLOO_SOCKET_IFNAME"
"""Where Gloo looks for the name of a network interface; one that the user has set stays."""


def interface_of(address: str) -> str | None:
    """The name of the interface that has an IP address, such as eth0."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, found in interfaces if any(entry.address == address for entry in found)), None)


def use_node_address() -> None:
    """Have Gloo in this process use the address under which Ray knows this node."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(VARIABLE, name)


class NodeNetwork(TorchConfig):  # type: ignore[misc]
    """Ray Train's TorchConfig, with each worker on its node's own address."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What starts the process group."""
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: object, backend_config: TorchConfig) -> None:
        worker_group.execute(use_node_address)  # type: ignore[attr-defined]
        super().on_start(worker_group, backend_config)
