"""What somebody else does to the host while containers run: rules flushed, Docker started, forwarding turned off.

Running containers are as they were after `agentshim net up`, or after the next create, which finds it by itself.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from conformance.engines.images import tool
from conformance.oci.cli import Runtime
from conformance.oci.conftest import Maker
from conformance.oci.test_isolated import (
    POLICY,
    address_of,
    asked,
    gateway_of,
    runtime,
    shim,
    started,
    world,
)
from conformance.oci.test_learn import ELSEWHERE, FAR, NAME, internet, learning, look
from conformance.oci.test_refresh import NAMING, Hosts, hosts
from conformance.room import wait_for
from conformance.world import GRANTED, OTHER, World

__all__ = ["hosts", "internet", "learning", "runtime", "world"]  # fixtures
pytestmark = pytest.mark.oci

SHARED = POLICY.replace("publish", "# publish")  # a door is one container's alone
ECHO = "hi\n"


@pytest.fixture
def cells(runtime: Runtime) -> Runtime:
    """Under a policy that several containers may have at once."""
    (runtime.room.base / "config" / "policies" / "cell.toml").write_text(SHARED)
    return runtime


def nft(world: World, *words: str) -> str:
    done = world.inside(world.host, tool("nft"), *words)
    assert done.code == 0, str(done)
    return done.out


def reached(runtime: Runtime, name: str, address: str = GRANTED, port: int = 8080) -> bool:
    return asked(runtime, name, address, port).out.endswith(ECHO)


def net_up(runtime: Runtime, bundle: Maker) -> None:
    done = shim(runtime, "net", "up", "cell")
    assert done.code == 0, str(done)


def next_create(runtime: Runtime, bundle: Maker) -> None:
    started(runtime, bundle, "next")


repaired_by = pytest.mark.parametrize("repair", [net_up, next_create])
Repair = Callable[[Runtime, Maker], None]


def shown(runtime: Runtime) -> str:
    return next(line for line in shim(runtime, "net", "show").out.splitlines() if line.startswith("as-cell"))


def doctor(runtime: Runtime, name: str) -> list[str]:
    """The levels of its findings of a name."""
    told = json.loads(shim(runtime, "doctor", "--json").out)["findings"]
    return [one["level"] for one in told if one["name"] == name]


def of(world: World, address: str) -> list[str]:
    """The elements of a container."""
    return sorted(one for one in world.elements() if address in one)


@repaired_by
@pytest.mark.parametrize("harm", ["flush ruleset", "flush table inet agentshim", "delete table bridge agentshim"])
def test_a_running_container_is_as_before(
    cells: Runtime, world: World, bundle: Maker, repair: Repair, harm: str
) -> None:
    started(cells, bundle, "a")
    gateway, before = gateway_of(cells, "a"), of(world, address_of(cells, "a"))
    nft(world, *harm.split())
    assert asked(cells, "a", OTHER, 8080).code != 0, "the second lock holds"
    repair(cells, bundle)
    assert reached(cells, "a") and reached(cells, "a", gateway, 9000)
    assert asked(cells, "a", OTHER, 8080).code != 0 and asked(cells, "a", gateway, 9001).code != 0
    assert of(world, address_of(cells, "a")) == before
    assert shim(cells, "net", "up", "cell").err == "", "nothing is left to do"
    cells.must("delete", "--force", "a")
    cells.call("delete", "--force", "next")
    assert world.elements() == [], "its end takes back what the repair has put there"


@repaired_by
@pytest.mark.parametrize("network", ["gone", "held"])
def test_who_has_stopped_gets_nothing_back(
    cells: Runtime, world: World, bundle: Maker, repair: Repair, network: str
) -> None:
    """Its address is still its own, and its plan is still there, until it is deleted; also where somebody else holds
    its network, and with it its interface.
    """
    started(cells, bundle, "runs")
    started(cells, bundle, "gone")
    stopped, runs = address_of(cells, "gone"), address_of(cells, "runs")
    if network == "held":
        argv = [
            "nsenter",
            f"--net=/proc/{cells.state('gone')['pid']}/ns/net",
            "sh",
            "-c",
            "echo ready; exec sleep 1000",
        ]
        world.servers.append(world.room.popen(argv, stdout=subprocess.PIPE))
        assert world.servers[-1].stdout and world.servers[-1].stdout.readline() == "ready\n"
    cells.must("kill", "gone", "KILL")
    wait_for(lambda: cells.status("gone") == "stopped", 5, "its end")
    assert of(world, stopped)
    if network == "gone":
        wait_for(lambda: len(world.ports()) == 1, 5, "the link to go with its namespace")
    nft(world, "flush", "ruleset")
    repair(cells, bundle)
    assert of(world, runs) and reached(cells, "runs")
    assert of(world, stopped) == []
    assert "elements" not in shown(cells)
    cells.must("delete", "gone")


def test_a_door_is_put_back(runtime: Runtime, world: World, bundle: Maker) -> None:
    started(runtime, bundle, "c", "sh", "-c", "while :; do echo served | nc -l -p 8080; done")
    before = world.elements()
    assert any(one.startswith("published") for one in before)
    nft(world, "flush", "ruleset")
    net_up(runtime, bundle)
    assert world.elements() == before
    wait_for(lambda: "served" in world.fetch(world.host, "127.0.0.1", 18080).out, 5, "the published port")


@pytest.mark.parametrize(
    "harm",
    ["flush map inet agentshim policies_out", "flush set bridge agentshim ports", "flush set inet agentshim services"],
)
def test_elements_alone_are_missed(cells: Runtime, world: World, bundle: Maker, harm: str) -> None:
    """The rules are as they were."""
    started(cells, bundle, "a")
    gateway, before = gateway_of(cells, "a"), world.elements()
    assert "rules as loaded" in shown(cells) and doctor(cells, "network.elements") == ["ok"]
    nft(world, *harm.split())
    assert "elements of 1 containers" in shown(cells) and doctor(cells, "network.elements") == ["fail"]
    net_up(cells, bundle)
    assert world.elements() == before and reached(cells, "a") and reached(cells, "a", gateway, 9000)
    assert "rules as loaded" in shown(cells) and doctor(cells, "network.elements") == ["ok"]


def test_an_element_that_leads_elsewhere_is_told(cells: Runtime, world: World, bundle: Maker) -> None:
    started(cells, bundle, "a")
    here = address_of(cells, "a")
    nft(world, "delete", "element", "inet", "agentshim", "policies_out", "{", here, "}")
    nft(world, "add chain inet agentshim open; add element inet agentshim policies_out {", here, ": jump open }")
    assert "elements of 1 containers" in shown(cells) and doctor(cells, "network.elements") == ["fail"]
    net_up(cells, bundle)
    assert "rules as loaded" in shown(cells) and asked(cells, "a", OTHER, 8080).code != 0 and reached(cells, "a")


def test_leases_stay_lost(cells: Runtime, world: World, bundle: Maker) -> None:
    started(cells, bundle, "a")
    lease = ("lease", "egress", "a", f"tcp:{OTHER}:8080", "--ttl", "1h", "--why", "a test of repairs")
    assert shim(cells, *lease).code == 0 and reached(cells, "a", OTHER)
    nft(world, "flush", "ruleset")
    done = shim(cells, "net", "up", "cell")
    assert done.code == 0 and f"tcp:{OTHER}:8080" in done.err and "grant it anew" in done.err, str(done)
    assert reached(cells, "a") and asked(cells, "a", OTHER, 8080).code != 0
    assert not any("leased" in one for one in world.elements())
    assert shim(cells, *lease).code == 0 and reached(cells, "a", OTHER)


def test_what_names_led_to_is_put_back_as_refreshed(
    runtime: Runtime, world: World, bundle: Maker, hosts: Hosts
) -> None:
    """The plan's first step still has the addresses of the start, and what it takes back at the end has both."""
    (runtime.room.base / "config" / "policies" / "cell.toml").write_text(NAMING)
    started(runtime, bundle, "c")
    assert reached(runtime, "c")
    hosts.say(OTHER)
    assert shim(runtime, "net", "refresh", "c").code == 0 and reached(runtime, "c", OTHER)
    before = world.elements()
    nft(world, "flush", "ruleset")
    net_up(runtime, bundle)
    assert world.elements() == before
    assert reached(runtime, "c", OTHER) and asked(runtime, "c", GRANTED, 8080).code != 0
    assert shim(runtime, "net", "refresh", "c").code == 0
    runtime.must("delete", "--force", "c")
    assert world.elements() == []


def test_a_collection_keeps_the_rules_of_who_runs(cells: Runtime, world: World, bundle: Maker) -> None:
    """After a flush no element tells any more whose policy is in use."""
    started(cells, bundle, "a")
    place = "/run/agentshim/net/cell"
    (cells.room.base / "config" / "policies" / "cell.toml").write_text(SHARED.replace("9000", "9001"))
    net_up(cells, bundle)
    cells.room.run(["find", place, "-name", "*.nft", "-exec", "touch", "-d", "2020-01-01", "{}", "+"])
    nft(world, "flush", "ruleset")
    assert shim(cells, "net", "gc").code == 0
    net_up(cells, bundle)
    assert reached(cells, "a") and reached(cells, "a", gateway_of(cells, "a"), 9000)


# Another lock than nf_tables

MASQUERADE = """table ip other {
    chain post { type nat hook postrouting priority 100; oifname "out" masquerade; }
}
"""


def test_learned_names_open_nothing_without_rules(
    learning: Runtime, world: World, bundle: Maker, internet: object
) -> None:
    """The lock inside lets through all public addresses on the ports of learned names; somebody else masquerades."""
    started(learning, bundle, "c")
    assert look(learning, "c", NAME)[0] == 0 and reached(learning, "c", FAR)
    assert asked(learning, "c", ELSEWHERE, 8080).code != 0
    nft(world, "flush", "ruleset")
    done = world.inside(world.host, tool("nft"), "-f", "-", input=MASQUERADE)
    assert done.code == 0, str(done)
    assert asked(learning, "c", ELSEWHERE, 8080).code != 0
    assert asked(learning, "c", FAR, 8080).code != 0
    net_up(learning, bundle)
    assert look(learning, "c", NAME)[0] == 0 and reached(learning, "c", FAR)
    assert asked(learning, "c", ELSEWHERE, 8080).code != 0


# What others do to the host


def docker(world: World, program: str) -> None:
    """What dockerd does to the table filter at its start."""
    tables = tool(program)
    for words in (
        ("-N", "DOCKER-USER"),
        ("-A", "DOCKER-USER", "-j", "RETURN"),
        ("-I", "FORWARD", "-j", "DOCKER-USER"),
        ("-P", "FORWARD", "DROP"),
    ):
        done = world.inside(world.host, tables, "-w", *words)
        assert done.code == 0, str(done)


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_docker_that_starts_later_is_found(cells: Runtime, world: World, bundle: Maker, program: str) -> None:
    if not tool(program):
        pytest.skip(f"SKIPPED LOUDLY: {program} is not installed")
    started(cells, bundle, "a")
    docker(world, program)
    assert asked(cells, "a", GRANTED, 8080).code != 0
    next_create(cells, bundle)
    assert reached(cells, "next") and reached(cells, "a")


def test_a_flush_of_dockers_chain_is_found(cells: Runtime, world: World, bundle: Maker) -> None:
    docker(world, "iptables-nft")
    started(cells, bundle, "a")
    assert reached(cells, "a")
    world.inside(world.host, tool("iptables-nft"), "-w", "-F", "DOCKER-USER")
    assert asked(cells, "a", GRANTED, 8080).code != 0
    next_create(cells, bundle)
    assert reached(cells, "next") and reached(cells, "a")


@pytest.mark.parametrize(
    "harm",
    [
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv4.conf.as-cell.forwarding=0",
        "ip link set as-cell down",
    ],
)
def test_what_the_bridge_needs_is_found(cells: Runtime, world: World, bundle: Maker, harm: str) -> None:
    started(cells, bundle, "a")
    program, *words = harm.split()
    assert world.inside(world.host, tool(program), *words).code == 0
    assert asked(cells, "a", GRANTED, 8080).code != 0
    next_create(cells, bundle)
    assert reached(cells, "next") and reached(cells, "a")


def test_a_host_that_is_right_is_not_repaired(cells: Runtime, world: World, bundle: Maker) -> None:
    """What a create looks at stays as it is: without nft it could not repair anything."""
    docker(world, "iptables-nft")
    for name in ("a", "b"):
        started(cells, bundle, name)
    program = tool("nft")
    cells.room.run(["mount", "--bind", "/dev/null", program])
    try:
        started(cells, bundle, "c")
    finally:
        cells.room.run(["umount", program])
    assert reached(cells, "c")
