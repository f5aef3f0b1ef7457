"""What names lead to is looked up again while containers run, leases that ended are recorded, and names of a proxy's.

The host, and who is around it, are those of `test_isolated`; it resolves by the room's own /etc/hosts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.engines.images import tool
from conformance.oci.cli import Runtime
from conformance.oci.conftest import Maker
from conformance.oci.test_isolated import POLICY, asked, config, runtime, shim, started, world
from conformance.oci.test_network import attach
from conformance.room import Result, Room, wait_for
from conformance.world import GRANTED, OTHER, World

__all__ = ["runtime", "world"]  # fixtures
pytestmark = pytest.mark.oci

NAME = "api.lab.test"
NAMING = POLICY.partition("outbound")[0] + f'outbound = ["tcp:{NAME}:8080"]\n'
CONFINED = NAMING.replace('"isolated"', '"confine"')


class Hosts:
    """The host's /etc/hosts: what a name leads to from now on."""

    def __init__(self, room: Room) -> None:
        self.room = room
        room.run(["cp", "/etc/hosts", "/etc/hosts.kept"])

    def say(self, *addresses: str, name: str = NAME) -> None:
        lines = "".join(f"{address} {name}\n" for address in addresses)
        self.room.run(["sh", "-c", "cp /etc/hosts.kept /etc/hosts; cat >> /etc/hosts"], input=lines)

    def end(self) -> None:
        self.room.run(["mv", "/etc/hosts.kept", "/etc/hosts"])


@pytest.fixture
def hosts(world: World) -> Iterator[Hosts]:
    one = Hosts(world.room)
    one.say(GRANTED)
    yield one
    one.end()


@pytest.fixture
def named(runtime: Runtime, hosts: Hosts) -> Runtime:
    """agentshim under a policy that names a peer."""
    policy(runtime, NAMING)
    runtime.room.run(["rm", "-rf", "/var/log/agentshim"])
    return runtime


def policy(runtime: Runtime, text: str) -> None:
    (runtime.room.base / "config" / "policies" / "cell.toml").write_text(text)


def refresh(runtime: Runtime, *words: str) -> Result:
    return shim(runtime, "net", "refresh", *words)


def inside(runtime: Runtime, name: str) -> str:
    """The rules in a container's network."""
    place = f"/proc/{runtime.state(name)['pid']}/ns/net"
    return runtime.room.run(["nsenter", f"--net={place}", tool("nft"), "list", "ruleset"]).out


def pinned(world: World) -> list[str]:
    return [one for one in world.elements() if one.startswith("pinned")]


def logged(runtime: Runtime, name: str, action: str) -> list[dict[str, Any]]:
    told = shim(runtime, "audit", "show", name, "--json")
    return [one for line in told.out.splitlines() if (one := json.loads(line))["event.action"] == action]


def everything(runtime: Runtime, world: World, name: str) -> tuple[Any, ...]:
    """All that a refresh may change."""
    return (
        pinned(world),
        inside(runtime, name).partition("set flows")[0],
        runtime.must("exec", name, "cat", "/etc/hosts"),
        json.loads(shim(runtime, "why", name, f"{NAME}:8080", "--json").out.splitlines()[0]),
    )


def test_a_name_that_leads_elsewhere_by_now(named: Runtime, world: World, hosts: Hosts, bundle: Maker) -> None:
    """Both locks, /etc/hosts, the record and the audit log; once."""
    started(named, bundle, "c")
    assert asked(named, "c", GRANTED, 8080).out == "echo hi\n"
    assert asked(named, "c", OTHER, 8080).code != 0
    hosts.say(OTHER)
    done = refresh(named, "c")
    assert done.code == 0, str(done)
    assert done.out.splitlines() == [
        f"c may reach tcp:{OTHER}:8080, where {NAME} leads",
        f"c may not tcp:{GRANTED}:8080, where no longer {NAME} leads",
    ]
    assert asked(named, "c", OTHER, 8080).out == "echo hi\n"
    assert asked(named, "c", GRANTED, 8080).code != 0
    assert len(pinned(world)) == 1 and OTHER in pinned(world)[0]
    assert f"tcp . {OTHER} . 8080" in inside(named, "c") and f"tcp . {GRANTED} . 8080 }}" not in inside(named, "c")
    lines = named.must("exec", "c", "cat", "/etc/hosts").splitlines()
    assert f"{OTHER}\t{NAME}" in lines and f"{GRANTED}\t{NAME}" not in lines
    assert shim(named, "why", "c", f"{NAME}:8080").out.startswith(f"tcp:{OTHER}:8080: allowed")
    assert shim(named, "why", "c", f"{GRANTED}:8080").out.startswith(f"tcp:{GRANTED}:8080: rejected")
    assert [one["agentshim.peer"] for one in logged(named, "c", "pin_opened")] == [f"tcp:{OTHER}:8080"]
    assert [one["agentshim.peer"] for one in logged(named, "c", "pin_closed")] == [f"tcp:{GRANTED}:8080"]
    assert refresh(named, "c").out == "c nothing new\n"
    assert len(logged(named, "c", "pin_opened")) == 1


def test_the_end_takes_back_what_was_opened_since(named: Runtime, world: World, hosts: Hosts, bundle: Maker) -> None:
    """Whoever gets the address next would be let through."""
    started(named, bundle, "c")
    hosts.say(GRANTED, OTHER)
    assert refresh(named, "c").code == 0
    assert len(pinned(world)) == 2
    named.must("delete", "--force", "c")
    assert world.elements() == []


def test_a_stream_to_where_a_name_no_longer_leads_ends(
    named: Runtime, world: World, hosts: Hosts, bundle: Maker
) -> None:
    started(named, bundle, "c", "sh", "-c", f"while :; do echo tick; sleep 0.1; done | nc {GRANTED} 8080; sleep 1000")

    def counted() -> int:
        rows = [json.loads(line) for line in shim(named, "flows", "c", "--json").out.splitlines()]
        return sum(row["network.packets"] for row in rows if row["destination.ip"] == GRANTED)

    wait_for(lambda: counted() > 5, 6, "packets")
    hosts.say(OTHER)
    assert refresh(named, "c").code == 0
    last = counted()
    time.sleep(1)
    assert counted() == last


@pytest.mark.parametrize(
    ("leads", "said"),
    [
        (("10.9.8.7",), "10.9.8.7, ceiling public addresses"),
        ((GRANTED, "169.254.169.254"), "169.254.169.254, ceiling public"),
        ((), "no address"),
    ],
)
def test_a_name_that_leads_nowhere_good_changes_nothing(
    named: Runtime, world: World, hosts: Hosts, bundle: Maker, leads: tuple[str, ...], said: str
) -> None:
    started(named, bundle, "c")
    before = everything(named, world, "c")
    hosts.say(*leads)
    refused = refresh(named, "c")
    assert refused.code == 1 and said in refused.err, str(refused)
    assert everything(named, world, "c") == before
    assert not logged(named, "c", "pin_opened") and not logged(named, "c", "pin_closed")


def test_a_name_that_leads_to_the_host_changes_nothing(
    named: Runtime, world: World, hosts: Hosts, bundle: Maker
) -> None:
    """A public address, but this host has it."""
    started(named, bundle, "c")
    before = everything(named, world, "c")
    world.ip("-n", world.host, "address", "add", "203.0.113.9/32", "dev", "lo")
    hosts.say("203.0.113.9")
    refused = refresh(named, "c")
    assert refused.code == 1 and "203.0.113.9" in refused.err
    assert everything(named, world, "c") == before


def test_what_a_killed_call_left_is_put_right(named: Runtime, world: World, hosts: Hosts, bundle: Maker) -> None:
    """It had opened both locks, and died before it had written so."""
    started(named, bundle, "c")
    agent = next(one for one in world.elements() if one.startswith("policies_out")).split("'")[1]
    element = f"{agent} . tcp . {OTHER} . 8080"
    world.inside(world.host, tool("nft"), "add", "element", "inet", "agentshim", "pinned", f"{{ {element} }}")
    place = f"/proc/{named.state('c')['pid']}/ns/net"
    add = ["add", "element", "inet", "agentshim", "hosts", f"{{ tcp . {OTHER} . 8080 }}"]
    assert named.room.run(["nsenter", f"--net={place}", tool("nft"), *add]).code == 0
    assert asked(named, "c", OTHER, 8080).out == "echo hi\n"
    assert refresh(named, "c").out == "c nothing new, repaired\n"
    assert asked(named, "c", OTHER, 8080).code != 0
    assert len(pinned(world)) == 1


@pytest.mark.parametrize("harm", ["inside", "host"])
def test_a_lock_that_is_gone_is_told(named: Runtime, world: World, hosts: Hosts, bundle: Maker, harm: str) -> None:
    """Nothing is opened in the other one."""
    started(named, bundle, "c")
    place = f"/proc/{named.state('c')['pid']}/ns/net" if harm == "inside" else f"/run/netns/{world.host}"
    named.room.run(["nsenter", f"--net={place}", tool("nft"), "flush", "ruleset"])
    left = pinned(world), inside(named, "c")
    hosts.say(OTHER)
    assert refresh(named, "c").code == 1
    assert (pinned(world), inside(named, "c")) == left


def test_one_lock_where_the_engine_made_the_network(named: Runtime, world: World, hosts: Hosts, bundle: Maker) -> None:
    policy(named, CONFINED.replace("publish", "# publish").replace("host_services", "# host_services"))
    started(named, bundle, "c")
    assert f"tcp . {GRANTED} . 8080" in inside(named, "c")
    hosts.say(OTHER)
    done = refresh(named, "c")
    assert done.code == 0, str(done)
    assert f"tcp . {OTHER} . 8080" in inside(named, "c") and GRANTED not in inside(named, "c")
    assert f"{OTHER}\t{NAME}" in named.must("exec", "c", "cat", "/etc/hosts").splitlines()
    assert pinned(world) == []


def test_all_goes_on_where_one_fails(named: Runtime, world: World, hosts: Hosts, bundle: Maker) -> None:
    started(named, bundle, "a")
    policy(named, NAMING.replace(NAME, "other.lab.test"))
    hosts.say(GRANTED, name="other.lab.test")
    started(named, bundle, "b")
    hosts.say(OTHER, name="other.lab.test")
    done = refresh(named, "--all")
    assert done.code == 1 and "no address" in done.err and "agentshim: a: " in done.err, str(done)
    assert f"b may reach tcp:{OTHER}:8080" in done.out
    policy(named, POLICY.replace("publish", "# publish"))
    started(named, bundle, "c")  # has no names: not looked at
    assert "c " not in refresh(named, "--all").out
    assert refresh(named, "c").code == 1
    assert refresh(named).code == 1


def test_who_joined_the_network_is_asked_too(named: Runtime, world: World, hosts: Hosts, bundle: Maker) -> None:
    """The lock is for all in it: what one may not reach is not opened; and each record says what the lock does."""
    policy(named, CONFINED)
    started(named, bundle, "first")
    place = f"/proc/{named.state('first')['pid']}/ns/net"
    asks = config(named, "sleep", "1000")
    kinds = asks["linux"]["namespaces"]
    asks["linux"]["namespaces"] = [{**one, "path": place} if one["type"] == "network" else one for one in kinds]
    named.must("create", "--bundle", str(bundle(asks).path), "second")
    hosts.say(GRANTED, OTHER)
    assert refresh(named, "first").code == 0
    attach(named, "first")
    assert shim(named, "why", "second", f"{OTHER}:8080").code == 0
    policy(named, CONFINED.replace(NAME, GRANTED))
    hosts.say(OTHER)
    refused = refresh(named, "first")
    assert refused.code == 1 and "for second in the same network" in refused.err, str(refused)
    assert f"tcp . {GRANTED} . 8080" in inside(named, "first")


# Leases that ended by themselves


@pytest.mark.parametrize("look", [("lease", "list"), ("net", "gc")])
def test_a_lease_that_ended_is_recorded_once(
    named: Runtime, world: World, hosts: Hosts, bundle: Maker, look: tuple[str, ...]
) -> None:
    started(named, bundle, "c")
    peer = f"tcp:{OTHER}:8081"
    grant = ("lease", "egress", "c", peer, "--why", "a test of leases", "--ttl")
    assert shim(named, *grant, "1s").code == 0
    assert shim(named, *look).code == 0
    assert logged(named, "c", "lease_expired") == [], "it runs"
    time.sleep(1.3)
    for _ in range(3):
        assert shim(named, *look).code == 0
    found = logged(named, "c", "lease_expired")
    assert [one["agentshim.peer"] for one in found] == [peer]
    assert found[0]["agentshim.ended"] <= found[0]["@timestamp"]


def test_a_lease_that_was_revoked_or_renewed_has_not_expired(
    named: Runtime, world: World, hosts: Hosts, bundle: Maker
) -> None:
    started(named, bundle, "c")
    peer = f"tcp:{OTHER}:8081"
    grant = ("lease", "egress", "c", peer, "--why", "a test of leases", "--ttl")
    assert shim(named, *grant, "1s").code == 0
    assert shim(named, "lease", "revoke", "c", peer).code == 0
    assert shim(named, *grant, "1s").code == 0
    assert shim(named, *grant[:3], peer.removeprefix("tcp:"), *grant[4:], "1h").code == 0
    time.sleep(1.3)
    assert shim(named, "lease", "list").out.startswith(f"c {peer}: ")
    assert logged(named, "c", "lease_expired") == []


def test_the_next_lease_finds_one_that_ended(named: Runtime, world: World, hosts: Hosts, bundle: Maker) -> None:
    started(named, bundle, "c")
    grant = ("lease", "egress", "c", f"tcp:{OTHER}:8081", "--why", "a test of leases", "--ttl", "1s")
    assert shim(named, *grant).code == 0
    time.sleep(1.3)
    assert shim(named, *grant).code == 0
    assert len(logged(named, "c", "lease_expired")) == 1


# Names that are a proxy's


def test_names_of_a_proxy(named: Runtime, world: World, hosts: Hosts, bundle: Maker) -> None:
    """Nothing is looked up or granted for them."""
    policy(named, NAMING.replace("[network]", '[network]\nnames = "proxy"\nhost_services = ["tcp:9000"]'))
    hosts.say()
    told = shim(named, "net", "names", "cell")
    assert (told.code, told.out) == (0, f"tcp {NAME} 8080\n"), str(told)
    started(named, bundle, "c")
    said = shim(named, "why", "c", f"{NAME}:8080")
    assert said.code == 0 and said.out.startswith(f"tcp:{NAME}:8080: by the proxy, if its list has it"), str(said)
    assert shim(named, "why", "c", f"{GRANTED}:8080").code == 1
    assert asked(named, "c", GRANTED, 8080).code != 0
    assert refresh(named, "c").code == 1
    policy(named, NAMING)
    assert shim(named, "net", "names", "cell").out == ""
