"""The order of the rules matters: each mutant below is a lock as one might write it, and opens what the lock shuts.

Each probe is asked of the lock and of its mutant; that the answers differ shows that the probe can fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hooks import chains, grants, lock, nft, records, stateless
from tests.net.lab import FAR4, METADATA, Lab, spoofed
from tests.net.test_leases import silent

ESTABLISHED = chains._state(nft.ESTABLISHED | nft.RELATED) + chains.ACCEPT
Rules = dict[str, list[bytes]]
Change = Callable[[Rules], object]


def load(lab: Lab, section: dict[str, Any], change: Change, rows: int = lock.ROWS, six: bool = False) -> None:
    """The lock of `section`, as `lab.stateless` says which, its rules changed; in place of the one that is there."""
    if lab.rules():
        lab.nft("delete", "table", "inet", "agentshim")
    dns, icmp = bool(section.get("dns")), bool(section.get("icmp"))
    made = stateless.rules(dns) if lab.stateless else chains.rules(six, dns, icmp)
    before = {name: list(rules) for name, rules in made.items()}
    change(made)
    assert (made == before) == (change is nothing)
    out4, out6 = grants.outbound(section)
    hosts, ranges = chains.split(out4)
    assert not (lab.stateless and ranges)
    every = lock.hosts_of("", nft.IPV4_ADDR, hosts, rows, 1) if lab.stateless else None
    lab.replay((lock.step(every or lock.sets(out4, out6, grants.inbound(section), rows), made, "a mutant"),))


def nothing(rules: Rules) -> None:
    """The lock as it is."""


def answers(lab: Lab, section: dict[str, Any], change: Change, probe: Callable[[], Any], rows: int = 4) -> list[Any]:
    out = []
    for one in (nothing, change):
        load(lab, section, one, rows)
        out.append(probe())
    return out


def test_the_usual_accept_of_what_is_established_first(lab: Lab) -> None:
    lab.serve(lab.i, ("tcp", FAR4, 443), chatter=True)

    def first(rules: Rules) -> None:
        rules["output"].insert(0, ESTABLISHED)
        rules["input"].insert(0, ESTABLISHED)

    def probe() -> bool:
        records.lease_add(lab.path, "tcp", FAR4, 443, 500)
        heard: float = lab.inside(lab.c, lambda: silent("tcp", 1.5))
        return heard > 1.2

    assert answers(lab, {}, first, probe) == [False, True]


def test_answers_accepted_without_a_look_at_the_grant(lab: Lab) -> None:
    """The output side of a lease is cut, and the far side sends on over UDP."""
    lab.serve(lab.i, ("udp", FAR4, 443), chatter=True)

    def bare(rules: Rules) -> None:
        rules["input"].insert(2, chains.WAY_BACK + ESTABLISHED)

    def probe() -> bool:
        records.lease_add(lab.path, "udp", FAR4, 443, 500)
        heard: float = lab.inside(lab.c, lambda: silent("udp", 1.5))
        return heard > 1.2

    assert answers(lab, {}, bare, probe) == [False, True]


def test_the_hard_deny_behind_the_grants(lab: Lab) -> None:
    lab.serve(lab.i, ("tcp", METADATA, 80))

    def behind(rules: Rules) -> None:
        hard = [rule for rule in rules["output"] if any(rule.startswith(one) for one in chains.family4().hard)]
        assert len(hard) == 4
        rules["output"] = [rule for rule in rules["output"] if rule not in hard]
        rules["output"][-1:-1] = hard

    said = answers(lab, {"outbound": "any"}, behind, lambda: lab.tcp(METADATA, 80))
    assert said == ["ECONNREFUSED", "open"]


def test_what_is_refused_whatever_is_granted_among_the_hosts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """@hosts is looked up first: `chains.alone` keeps out of it what other rules are for."""
    lab.serve(lab.i, ("tcp", METADATA, 80), ("tcp", FAR4, 443))
    lab.serve(lab.c, ("udp", "127.0.0.11", 53))
    granted = [["tcp", METADATA, 80, 80], ["udp", "127.0.0.11", 53, 53], ["tcp", FAR4, 443, 443]]

    def said() -> list[str]:
        load(lab, {"outbound": granted}, nothing)
        return [lab.tcp(METADATA, 80), lab.udp("127.0.0.11", 53), lab.tcp(FAR4, 443)]

    assert said() == ["ECONNREFUSED", "EPERM", "open"]
    monkeypatch.setattr(chains, "alone", lambda first, last: first == last)
    assert said() == ["open"] * 3


def test_flows_counted_and_accepted_by_two_rules(lab: Lab) -> None:
    lab.serve(lab.i, *[("udp", FAR4, port) for port in (1, 2, 3)])

    def parted(rules: Rules) -> None:
        counted = next(rule for rule in rules["output"] if nft.lookup("outbound") in rule)
        count = counted.removesuffix(chains.ACCEPT)
        place = rules["output"].index(counted)
        looked_up = count.partition(nft.lookup("outbound"))[0] + nft.lookup("outbound")
        rules["output"][place : place + 1] = [count, looked_up + chains.ACCEPT]

    section = {"outbound": [["udp", FAR4, 1, 3]]}
    said = answers(lab, section, parted, lambda: [lab.udp(FAR4, port) for port in (1, 2, 3)], rows=2)
    assert said == [["open", "open", "EPERM"], ["open"] * 3]


def test_lo_accepted_before_the_engines_resolver_is_refused(lab: Lab) -> None:
    lab.serve(lab.c, ("udp", "127.0.0.11", 53))

    def lo_first(rules: Rules) -> None:
        rules["lo"].remove(chains.ACCEPT)
        rules["lo"].insert(0, chains.ACCEPT)

    said = answers(lab, {}, lo_first, lambda: lab.udp("127.0.0.11", 53))
    assert said == ["EPERM", "open"]


def test_answers_out_without_a_look_at_what_is_granted_inbound(lab: Lab) -> None:
    """A flow that only seems to come from outside (over lo, with NET_RAW) can be answered anywhere."""
    lab.serve(lab.i, ("udp", FAR4, 80))

    def bare(rules: Rules) -> None:
        rules["output"].insert(2, chains.WAY_BACK + ESTABLISHED)

    section = {"inbound": [["udp", 8080, 8080]]}
    said = answers(lab, section, bare, lambda: lab.inside(lab.c, lambda: spoofed(FAR4, 80, 8081)))
    assert said == ["EPERM", "silence"]  # it went out; what comes back is refused
