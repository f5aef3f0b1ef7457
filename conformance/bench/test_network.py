"""The benchmark's networks: what it compares with, and that each way of building one builds one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.bench import moby, network, network_lab, network_rivals, report, rows
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
    assert any("netavark" in line and "install the package" in line for line in network.absent())


def test_every_contender_has_a_name_in_the_table() -> None:
    told = {**report.NAMES, **network.NAMES}
    assert {
        network.OURS,
        network.EMPTY,
        "hook",
        "plain",
        "ten",
        "thousand",
        "tenth",
        "ranges",
        *network.AGAINST,
    } <= told.keys()
    assert {"networks", "throughput"} <= rows.GROUPS.keys()


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
