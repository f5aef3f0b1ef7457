"""The host's lock, alone, where names are learned: what a resolver puts into its sets is granted, and no more."""

from __future__ import annotations

import time

import pytest

from hooks import host_rules
from shim.cold.network import network_source
from tests.net.hostlab import DOCKER, FAR, METADATA, NEIGHBOUR, A, HostLab
from tests.net.test_host import both, refused, without_rules

OTHER = "203.0.113.6"
SECTION = network_source.expand(
    {"mode": "isolated", "names": "learn", "outbound": ["tcp:a.example.com:443", "udp:b.example.com:53"]}, set()
)


@pytest.fixture
def lab(host_lab: HostLab) -> HostLab:
    host_lab.on_host("nft", "-f", "-", text=host_rules.policy(host_lab.bridges["web"]["tag"], SECTION))
    return host_lab


def learn(lab: HostLab, number: int, *addresses: str) -> None:
    """What dnsmasq does when it answers."""
    name = host_rules.learned_set(lab.bridges["web"]["tag"], number)
    lab.on_host("nft", "add", "element", "inet", "agentshim", name, "{", ", ".join(addresses), "}")


def test_what_is_learned_is_reached_on_its_port(lab: HostLab) -> None:
    lab.serve(lab.i, *both(FAR, 443, 53, 444), *both(OTHER, 443))
    lab.agent(A)
    assert refused(lab.tcp(FAR, 443, lab.a)), "before somebody asked"
    learn(lab, 0, FAR)
    assert lab.tcp(FAR, 443, lab.a) == "open"
    assert refused(lab.udp(FAR, 53, lab.a)), "another name's"
    learn(lab, 1, FAR)
    assert lab.udp(FAR, 53, lab.a) == "open"
    for address, port in ((FAR, 444), (FAR, 53), (OTHER, 443)):
        assert refused(lab.tcp(address, port, lab.a)), (address, port)
    without_rules(lab)
    assert (lab.tcp(FAR, 444, lab.a), lab.tcp(OTHER, 443, lab.a)) == ("open", "open")


def test_a_name_that_leads_near_opens_nothing(lab: HostLab) -> None:
    """DNS rebinding, past a resolver that lets it through."""
    near = {METADATA: lab.i, NEIGHBOUR: lab.l, DOCKER: lab.d}
    for address, place in near.items():
        lab.serve(place, *both(address, 443))
    lab.agent(A)
    learn(lab, 0, *near)
    for address in near:
        assert refused(lab.tcp(address, 443, lab.a)), address
    without_rules(lab)
    for address in (NEIGHBOUR, DOCKER):
        assert lab.tcp(address, 443, lab.a) == "open", address


def test_what_is_used_stays_and_what_is_not_goes(lab: HostLab) -> None:
    """A packet out makes the hour anew; a set that is emptied cuts."""
    lab.serve(lab.i, *both(FAR, 443))
    lab.agent(A)
    name = host_rules.learned_set(lab.bridges["web"]["tag"], 0)
    learn(lab, 0, f"{FAR} timeout 3s", f"{OTHER} timeout 3s")
    assert lab.tcp(FAR, 443, lab.a) == "open"
    time.sleep(3.5)
    left = lab.on_host("nft", "list", "set", "inet", "agentshim", name)
    assert FAR in left and OTHER not in left
    assert lab.tcp(FAR, 443, lab.a) == "open"
    lab.on_host("nft", "flush", "set", "inet", "agentshim", name)
    assert refused(lab.tcp(FAR, 443, lab.a))
