"""The interface of an address, where there is one; a whole run over two of them is in cluster/test_own_addresses.py."""

import psutil
import pytest

from foley_ray.training import network


def test_the_interface_of_an_address() -> None:
    names = psutil.net_if_addrs()
    assert names, "a machine without a network"
    for name, found in names.items():
        for entry in found:
            assert network.interface_of(entry.address) in names
            if entry.address == "127.0.0.1":
                assert network.interface_of("127.0.0.1") == name
    assert network.interface_of("203.0.113.7") is None


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.delenv(network.VARIABLE, raising=False)
    network.use_node_address()
    assert network.os.environ[network.VARIABLE] == network.interface_of("127.0.0.1")
    monkeypatch.setenv(network.VARIABLE, "chosen0")
    network.use_node_address()
    assert network.os.environ[network.VARIABLE] == "chosen0"
