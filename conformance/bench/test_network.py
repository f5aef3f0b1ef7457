"""The benchmark's networks: what it compares with, and that each way of building one builds one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from conformance.bench import (
    moby,
    network,
    network_docker,
    network_lab,
    network_packets,
    network_rivals,
    place,
    report,
    rows,
    turns,
)
from conformance.bench.network_lab import CONFINED, EMPTY, OURS
from hooks import host_rules, lock


def test_grants_are_as_many_as_the_row_says_and_name_the_peer() -> None:
    for count in (10, 1000):
        for wide in (False, True):
            asks = network_lab.section(count, wide)
            assert len(asks["outbound"]) == len({tuple(one) for one in asks["outbound"]}) == count
            text = host_rules.policy("be" * 6, asks)
            hosts, nets = (len(re.findall(r"(?:6|17) \. \d+\.", line)) for line in _elements(text))
            assert (hosts, nets) == ((0, count) if wide else (count, 0)), "hashed, or in ranges, not both"
            assert network_lab.FAR in text or wide
            assert lock.steps(asks)


def _elements(text: str) -> list[str]:
    """Of the set of hosts, and that of networks."""
    lines = [line for line in text.splitlines() if line.startswith("add element")]
    return ["".join(line for line in lines if f" {name}_" in line) for name in ("hosts", "nets")]


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(network_rivals.NEEDS, "netavark", (("/no/such/netavark",), "netavark"))
    monkeypatch.setitem(network_rivals.NEEDS, "dockerd", (("/no/such/dockerd",), "docker.io"))
    assert "against netavark: install the package netavark" in network.absent()
    assert "against Docker's bridge: install the package docker.io" in network.absent()
    assert not network_docker.possible()


def test_every_contender_has_a_name_in_the_table() -> None:
    told = {**report.NAMES, **network.NAMES}
    packets = {name for row in (*network_packets.COMPARED, *network_packets.PER_PACKET) for name in row[:2]}
    docker = {*network_docker.WAYS, *network_docker.PAIRS}
    assert {OURS, CONFINED, EMPTY, "hook", *network.AGAINST, *packets, *docker} <= told.keys()
    assert {"networks", "throughput"} <= rows.GROUPS.keys()


class Told:
    """A container whose calls take as long as it is told: ms."""

    def __init__(self, create: float, delete: float) -> None:
        self.create, self.delete = (lambda: create), (lambda: delete)

    def start(self) -> None: ...

    wait = discard = start


def test_a_network_that_costs_more_than_its_limit_is_told_as_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {OURS: Told(43.5, 4.5), CONFINED: Told(42.5, 6.0), EMPTY: Told(40.0, 4.0)}
    bench = turns.Bench(cast("place.Place", None), {}, {}, 3, 1, "", Path())
    monkeypatch.setattr(bench, "fresh", took.__getitem__)
    monkeypatch.setattr(network, "timed", lambda action: action())
    monkeypatch.setattr(network, "QUIET", 0)
    monkeypatch.setattr(report, "NAMES", network.NAMES)
    lines = report.table(list(network._created(bench))).splitlines()
    held = {line.split(" | ")[0].strip("| "): line.split(" | ")[7:9] for line in lines}
    assert held["`create`, isolated network"] == ["≤ +3.0 ms", "no"]
    assert held["`delete`, isolated network"] == ["≤ +1.0 ms", "yes"]
    assert held["`create`, network filtered in place"] == ["≤ +3.0 ms", "yes"]
    assert held["`delete`, network filtered in place"] == ["≤ +1.0 ms", "no"]


def test_what_networks_add_is_taken_round_by_round() -> None:
    samples = {"docker-cell": [9.0, 7.0], "docker-open": [5.0, 6.0], "docker-bridge": [1.0, 1.0]}
    assert network_docker._added(samples) == {"isolated network": [4.0, 1.0]}


def test_a_host_that_failed_once_is_in_no_row() -> None:
    assert network_packets._joined([{"ten": [1.0], "plain": [2.0]}, {"ten": [3.0]}]) == {"ten": [1.0, 3.0]}


def test_every_way_builds_a_network_and_takes_it_back(tmp_path: Path) -> None:
    """In namespaces of its own, which end with it: a process of its own, since it leaves the mounts of this one."""
    hook = network_lab.hook_of(moby.REPOSITORY)
    if os.geteuid() or not hook.is_file() or not network_rivals.found("script"):
        pytest.skip("SKIPPED LOUDLY: NOT ROOT, OR NO HOOK, OR NO nft: NO WAY OF BUILDING A NETWORK IS TRIED")
    argv = ["unshare", "-m", "sh", "-ec", 'mount -t tmpfs x /run; exec "$@"', "sh", sys.executable, "-B", "-c", TRIED]
    done = subprocess.run([*argv, tmp_path], cwd=moby.REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    built = dict(line.split() for line in done.stdout.splitlines())
    assert built.keys() >= {"hook", "script"}
    assert all(answer == "built" for answer in built.values()), done.stdout


TRIED = """
import sys
from pathlib import Path
from types import SimpleNamespace
from conformance.bench import moby, network
from conformance.bench.network_lab import guest, tool

folder = Path(sys.argv[1])
ways = network._ways(SimpleNamespace(library=moby.REPOSITORY), folder)
locks = {}
for name, way in ways.items():
    with guest() as stays, guest() as member, way.net.inside():
        way.join(stays)[0]()
        build, end = way.join(member, True)
        before = tool("nft", "list", "ruleset")
        build()
        with member.inside():
            there = " default via 10." in " " + tool("ip", "route")
            locks[name] = tool("nft", "list", "ruleset")
        built = tool("nft", "list", "ruleset") != before
        end()
        left = tool("nft", "list", "ruleset") != before
        print(name, "built" if there and built and not (left and name in ("hook", "script")) else "not")
assert locks["hook"] == locks["script"], "the script does not build the same lock"
"""
