"""What one agent may use up of the host's lock, and the host's lock under another bit of the mark, with traffic."""

from __future__ import annotations

import socket

import pytest

from hooks import host_rules
from tests.net import lab as labs
from tests.net.hostlab import DIGEST, FAR, A, B, HostLab

FEW = 5
WIDE = {"mode": "isolated", "outbound": [["udp", FAR, 1, 999], ["tcp", FAR, 443, 443]]}


@pytest.fixture
def lab(host_lab: HostLab) -> HostLab:
    return host_lab


def flows(lab: HostLab, name: str, count: int) -> list[str]:
    """What becomes of so many flows at once."""

    def go() -> list[str]:
        found, kept = [], []
        for port in range(1, count + 1):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.settimeout(0.5)
            made.connect((FAR, port))
            kept.append(made)
            found.append(labs.attempt(lambda: made.send(b"x") == 1 and made.recv(1) == b"x"))  # noqa: B023
        return found

    said: list[str] = lab.inside(name, go)
    return said


def test_flows_at_once_are_bounded_for_each_agent(lab: HostLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """conntrack's table is all the host's."""
    monkeypatch.setattr(host_rules, "MOST_FLOWS", FEW)
    lab.bridges["web"] = lab.up("web", "5d" * 32, WIDE)
    lab.serve(lab.i, *(("udp", FAR, port) for port in range(1, FEW + 3)), ("tcp", FAR, 443))
    lab.agent(A)
    lab.agent(B)
    assert flows(lab, lab.a, FEW + 2) == ["open"] * FEW + ["EHOSTUNREACH"] * 2
    assert lab.tcp(FAR, 443, lab.a) == "ECONNREFUSED", "of any kind"
    assert flows(lab, lab.b, FEW) == ["open"] * FEW, "another has as many of its own"
    lab.on_host("nft", "flush", "set", "inet", "agentshim", "flows")
    assert lab.udp(FAR, FEW + 1, lab.a) == "open", "it was the count"


def test_another_bit_of_the_mark(lab: HostLab) -> None:
    """With what another table gives to packets beside it, and what it gives of the old one."""
    lab.bridges["web"] = lab.up("web", DIGEST, mark=0x40)
    lab.serve(lab.i, ("udp", FAR, 53), ("tcp", FAR, 443), ("tcp", FAR, 444))
    lab.agent(A, published=[("127.0.0.1", 8080, 80, "tcp")])
    lab.serve(lab.a, ("tcp", "0.0.0.0", 80))
    table = "table ip t { chain c { type filter hook prerouting priority -400; meta mark set meta mark | 1; }; }"
    lab.on_host("nft", "-f", "-", text=table)
    assert (lab.udp(FAR, 53, lab.a), lab.tcp(FAR, 443, lab.a)) == ("open", "open")
    assert lab.tcp(FAR, 444, lab.a) == "ECONNREFUSED" and lab.tcp("127.0.0.1", 8080, lab.h) == "open"
    lab.agent(B, elements=False)
    for bit, said in (("0x00800000", "silence"), ("0x40", "ECONNREFUSED")):  # not believed; believed, and nobody
        lab.on_host("nft", "flush", "chain", "bridge", "agentshim", "from_port")
        rule = f"meta mark set meta mark | {bit}"
        lab.on_host("nft", "add", "rule", "bridge", "agentshim", "from_port", *rule.split())
        assert lab.tcp(FAR, 443, lab.b) == said, bit
