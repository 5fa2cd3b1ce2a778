"""A small network on one machine: nodes with addresses of their own, whose cables can be pulled."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rayhead import BIN, Head

PREFIX = "10.93.7"


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


def possible() -> bool:
    """Whether network namespaces can be made here: by root, with iproute2, where the kernel lets them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "foley-try"], capture_output=True).returncode == 0
    _ip("netns", "del", "foley-try", check=False)
    return made


@dataclass
class Lan:
    """The switch is this machine's own network, at address 1; each node is a namespace with one cable to it."""

    home: Path
    head: str = f"{PREFIX}.1"
    nodes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def join(self, head: Head, number: int, cpus: int) -> None:
        """`ray start` on a node of its own, which has a folder of its own for what Ray keeps on a machine."""
        space, cable, address = f"foley{number}", f"fcable{number}", f"{PREFIX}.{number}"
        _ip("netns", "add", space)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", cable, "master", "fswitch", "up")
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")
        (self.home / space).mkdir()
        ray = f"{BIN / 'ray'} start --block --address={self.head}:{head.gcs} --node-ip-address={address} --num-cpus={cpus}"
        # `ip netns exec` gives a mount namespace as well, in which this is seen by nobody else
        own = f"mount --bind {self.home / space} /tmp/ray && exec {ray}"
        command = ["ip", "netns", "exec", space, "sh", "-c", own]
        with (self.home / f"node{number}.log").open("wb") as log:
            self.nodes[number] = subprocess.Popen(command, env=head.environment, stdout=log, stderr=subprocess.STDOUT)

    def pull(self, number: int) -> None:
        """The cable of a node: its processes live on, and nobody hears of them."""
        _ip("link", "set", f"fcable{number}", "down")


@contextmanager
def lan(home: Path) -> Iterator[Lan]:
    """A switch, and at the end nothing of it."""
    _ip("link", "add", "fswitch", "type", "bridge")
    made = Lan(home)
    try:
        _ip("addr", "add", f"{made.head}/24", "dev", "fswitch")
        _ip("link", "set", "fswitch", "up")
        yield made
    finally:
        for number, process in made.nodes.items():
            within = subprocess.run(["ip", "netns", "pids", f"foley{number}"], capture_output=True, text=True).stdout
            for pid in within.split():
                subprocess.run(["kill", "-9", pid], check=False, capture_output=True)
            process.wait(30)
            _ip("netns", "del", f"foley{number}", check=False)
            _ip("link", "del", f"fcable{number}", check=False)
        _ip("link", "del", "fswitch", check=False)
