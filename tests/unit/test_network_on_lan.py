"""What policy says of a network on a LAN -> the compiled section: our own addresses there are granted to nobody."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from shim.cold.network import network_source
from shim.dim import network
from shim.errors import Invalid

LAN = {"parent": "eth1", "addresses": "203.0.113.64/26", "gateway": "203.0.113.1", "prefix": 24}
POOL = ipaddress.ip_network("203.0.113.64/26")


def expand(**section: Any) -> Any:
    return network_source.expand({"mode": "isolated", "macvlan": LAN, **section}, set())


def reached(blocks: list[str], address: str) -> bool:
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(block) for block in blocks)


def test_what_is_granted_is_granted_around_us() -> None:
    for word in ("tcp:203.0.113.0/24:443", "any"):
        blocks = [one[1] for one in expand(outbound=[word])["outbound"]]
        assert reached(blocks, "203.0.113.63") and reached(blocks, "203.0.113.128")
        assert not any(ipaddress.ip_network(one).overlaps(POOL) for one in blocks if ":" not in one)
    section = expand(outbound=["any"])
    plain = network_source.expand({"mode": "isolated", "outbound": ["any"]}, set())
    assert network.leq(network.from_policy(section), network.from_policy(plain))
    assert not network.leq(network.from_policy(plain), network.from_policy(section))


def test_a_name_does_not_lead_to_us() -> None:
    section = expand(outbound=["tcp:a.test:443"])
    assert not reached(section["public"], "203.0.113.65") and reached(section["public"], "203.0.113.5")


def test_what_is_kept() -> None:
    section = expand(outbound=["tcp:203.0.113.5:443"], inbound=["tcp:80"])
    assert section["macvlan"] == LAN and section["mode"] == "isolated" and section["inbound"] == [["tcp", 80, 80]]
    assert "plan" not in section, "the lock's plan alone would make no interface"


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "auto"},
        {"mode": "engine"},
        {"mode": "none"},
        {"publish": ["127.0.0.1:80:80/tcp"]},
        {"host_services": ["tcp:80"]},
        {"outbound": ["tcp:203.0.113.65:443"]},
        {"outbound": ["tcp:203.0.113.96/27:443"]},
        {"macvlan": {**LAN, "addresses": "203.0.113.65/26"}},
        {"macvlan": {**LAN, "addresses": "203.0.113.0/26"}},
        {"macvlan": {**LAN, "addresses": "198.51.100.0/26"}},
        {"macvlan": {**LAN, "addresses": "203.0.113.64/31"}},
        {"macvlan": {**LAN, "gateway": "203.0.113.300"}},
    ],
)
def test_what_makes_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        expand(**wrong)
