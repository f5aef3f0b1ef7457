"""A base chain's own policy decides nothing of ours: each chain of ours ends in a verdict. So it is enough that a
fingerprint is of rules, and whoever changes a policy opens nothing.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from hooks import chains, host_rules, nft, stateless
from hooks import host as elements_of
from hooks.attributes import nested, text, u32
from hooks.link import Port
from tests.net.hostlab import DOCKER, ELSEWHERE, FAR, GATEWAY, HOST_LAN, METADATA, NEIGHBOUR, A, B, HostLab
from tests.net.lab import CONTAINER4, CONTAINER6, FAR4, FAR6, Lab

TAG = "0123456789ab"
SECTION = {"outbound": [["tcp", FAR4, 443, 443]], "icmp": True, "public": ["203.0.113.0/24"]}
PORT = Port(7, bytes((10, 207, 0, 1)), 22, bytes((10, 207, 0, 5)))
LEARNED = {**SECTION, "learned": [["tcp", "a.test", 443, 443]]}


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("icmp", [False, True])
def test_the_lock_inside_ends_each_chain(six: bool, icmp: bool) -> None:
    ends(chains.rules(six, True, icmp))


@pytest.mark.parametrize("dns", [False, True])
def test_the_lock_without_conntrack_ends_each_chain(dns: bool) -> None:
    ends(stateless.rules(dns), "peer")


def ends(every: chains.Rules, *accepting: str) -> None:
    """`accepting`: chains that nothing comes to but what is granted."""
    deny = [nft.verdict(nft.GOTO, name) for name in ("deny", "deny6", "unasked")]
    for name, rules in every.items():
        assert rules, name
        if name in ("back", "back6"):  # comes back: nobody goes there for good
            assert not any(nft.verdict(nft.GOTO, name) in rule for chain in every.values() for rule in chain)
        elif name in ("lo", *accepting):
            assert rules[-1] == chains.ACCEPT
        else:
            assert rules[-1] in (chains.DROP, nft.reject_prohibited(), *deny), name


@pytest.mark.parametrize("section", [SECTION, LEARNED])
def test_the_hosts_lock_ends_each_chain_that_agents_come_to(section: dict[str, Any]) -> None:
    ends = {"drop", "goto deny", "goto deny_out", "goto deny_in", "reject with icmpx admin-prohibited"}
    told = host_rules.tables() + host_rules.policy(TAG, section)
    last: dict[tuple[str, str], str] = {}
    every, base = set(), set()
    for line in told.splitlines():
        verb, kind, family, _, name, *rest = [*line.split(maxsplit=5), ""]
        if (verb, kind) == ("add", "chain"):
            every.add((family, name))
            if rest[0]:
                base.add((family, name))
                assert rest[0].endswith("policy accept; }"), "others' traffic comes here, too"
        elif (verb, kind) == ("add", "rule"):
            last[family, name] = rest[0]
    assert set(last) == every
    others = {name: rule for (family, name), rule in last.items() if (family, name) not in base and rule not in ends}
    back = {"errors", f"out_{TAG}", f"in_{TAG}"}  # to which nobody goes for good
    assert others == dict.fromkeys(back, "return")
    elements = elements_of.enter(PORT, TAG).do
    assert not any(f"goto {name}" in told or goto(name) in elements for name in back)
    assert nft.chain(f"out_{TAG}") in elements and nft.chain(f"in_{TAG}") in elements


def goto(name: str) -> bytes:
    """`nft.chain`, but for good."""
    return nested(2, nested(2, u32(1, nft.GOTO & 0xFFFFFFFF), text(2, name)))


def flip(listed: str, to: str) -> str:
    """For nft: every base chain with the policy `to`."""
    every = [one["chain"] for one in json.loads(listed)["nftables"] if "policy" in one.get("chain", {})]
    assert len(every) >= 3
    return "".join(f"chain {one['family']} {one['table']} {one['name']} {{ policy {to}; }}\n" for one in every)


def test_whoever_opens_the_policies_of_the_lock_inside_opens_nothing(lab: Lab) -> None:
    both = [("tcp", 443), ("tcp", 444), ("udp", 443)]
    lab.serve(lab.i, *((protocol, address, port) for protocol, port in both for address in (FAR4, FAR6)))
    lab.serve(
        lab.c, *((protocol, address, 8080) for protocol in ("tcp", "udp") for address in (CONTAINER4, CONTAINER6))
    )
    for section in ({"outbound": [["tcp", FAR4, 443, 443]]}, {"outbound": [["tcp", FAR6, 443, 443]]}):
        lab.load(section)

        def said() -> list[bool]:
            out = [(lab.tcp if one == "tcp" else lab.udp)(far, port) for one, port in both for far in (FAR4, FAR6)]
            ours = (CONTAINER4, CONTAINER6)
            into = [go(one, 8080, lab.i) for go in (lab.tcp, lab.udp) for one in ours]
            return [one == "open" for one in (*out, *into, lab.ping(FAR4), lab.ping(FAR6))]

        before = said()
        assert before.count(True) == 1
        lab.nft("-f", "-", text=flip(lab.nft("-j", "list", "chains"), "accept"))
        assert '"policy": "drop"' not in lab.nft("-j", "list", "chains")
        assert said() == before
        lab.nft("delete", "table", "inet", "agentshim")


@pytest.fixture
def host(host_lab: HostLab) -> HostLab:
    return host_lab


@pytest.mark.parametrize("to", ["accept", "drop"])
def test_whoever_changes_the_policies_of_the_hosts_lock_opens_nothing(host: HostLab, to: str) -> None:
    shut = [(FAR, 444), *((one, 80) for one in (METADATA, NEIGHBOUR, DOCKER, B, ELSEWHERE))]
    shut += [(GATEWAY, 9000), (HOST_LAN, 9000)]
    host.serve(host.i, ("tcp", FAR, 443), ("tcp", FAR, 444), ("tcp", METADATA, 80))
    for name, address in ((host.l, NEIGHBOUR), (host.d, DOCKER)):
        host.serve(name, ("tcp", address, 80))
    host.serve(host.h, ("tcp", "0.0.0.0", 9000))
    for address in (A, B, ELSEWHERE):
        host.agent(address)
    host.serve(host.b, ("tcp", B, 80))
    host.serve(host.o, ("tcp", ELSEWHERE, 80))
    assert host.tcp(FAR, 443, host.a) == "open"
    host.on_host("nft", "-f", "-", text=flip(host.on_host("nft", "-j", "list", "chains"), to))
    assert f'"policy": "{"drop" if to == "accept" else "accept"}"' not in host.on_host("nft", "-j", "list", "chains")
    assert host.tcp(FAR, 443, host.a) == ("open" if to == "accept" else "silence")
    for address, port in shut:
        assert host.tcp(address, port, host.a) != "open", (address, port)
    assert host.tcp(A, 80, host.l) != "open" and host.tcp(A, 80, host.i) != "open"
