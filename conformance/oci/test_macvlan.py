"""A network on a card of the host's: a LAN with its gateway and a neighbour is reached as policy says; siblings and the
host are not, whatever it says.

The LAN is a bridge in a namespace of the test's own; the host's card is one end of a veth whose other end is a port of
that bridge.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.engines.images import tool
from conformance.oci.cli import Runtime
from conformance.oci.conftest import COUNTER, Maker
from conformance.oci.test_isolated import asked, config, furnish, shim, started
from conformance.room import Room, wait_for
from conformance.world import World

pytestmark = pytest.mark.oci

GATEWAY, HOST, NEIGHBOUR = "192.0.2.1", "192.0.2.10", "192.0.2.20"
FAR, OTHER = "203.0.113.5", "203.0.113.6"
FIRST = "192.0.2.65"
POLICY = f"""schema = 1
name = "cell"
about = "a network on a LAN"
base = "agent"

[network]
mode = "isolated"
outbound = ["tcp:{FAR}:8080", "tcp:{NEIGHBOUR}:8080", "tcp:{HOST}:9000"]
inbound = ["tcp:8080"]
macvlan = {{ parent = "eth1", addresses = "192.0.2.64/28", gateway = "{GATEWAY}", prefix = 24 }}
"""


class Lan(World):
    """`host` with its card eth1; `gateway` with an internet on it; `neighbour`."""

    def __init__(self, room: Room, name: str) -> None:
        self.room = room
        self.host, self.switch, self.gateway, self.neighbour = (f"{name}{letter}" for letter in "hsgn")
        self.names = (self.host, self.switch, self.gateway, self.neighbour)
        self.servers: list[subprocess.Popen[str]] = []
        for one in self.names:
            self.ip("netns", "add", one)
            self.ip("-n", one, "link", "set", "lo", "up")
        self.ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        self.ip("-n", self.switch, "link", "set", "br0", "up")
        places = ((self.host, "eth1", HOST), (self.gateway, "eth0", GATEWAY), (self.neighbour, "eth0", NEIGHBOUR))
        for number, (place, device, address) in enumerate(places):
            peer = ("type", "veth", "peer", "name", device, "netns", place)
            self.ip("-n", self.switch, "link", "add", f"p{number}", *peer)
            self.ip("-n", self.switch, "link", "set", f"p{number}", "master", "br0", "up")
            self.ip("-n", place, "address", "add", f"{address}/24", "dev", device)
            self.ip("-n", place, "link", "set", device, "up")
        for address in (FAR, OTHER):
            self.ip("-n", self.gateway, "address", "add", f"{address}/32", "dev", "lo")
        self.ip("-n", self.host, "route", "add", "default", "via", GATEWAY)
        self.serve(self.host, 9000)
        self.serve(self.gateway, 8080, 8081)
        self.serve(self.neighbour, 8080, 8081)

    def end(self) -> None:
        for one in self.servers:
            one.kill()
            one.communicate()
        for name in self.names:
            self.room.run([tool("ip"), "netns", "delete", name])


@pytest.fixture
def lan(the_room: Room) -> Iterator[Lan]:
    if not (tool("nft") and tool("ip")):
        pytest.skip("SKIPPED LOUDLY: nft or ip is not installed")
    the_room.run(["rm", "-rf", "/run/agentshim/macvlan"])
    one = Lan(the_room, f"{the_room.base.name}{next(COUNTER)}"[-10:])
    probe = ("link", "add", "probe", "link", "eth1", "type", "macvlan", "mode", "private")
    known = the_room.run([tool("ip"), "-n", one.host, *probe])
    try:
        if known.code:
            pytest.skip(f"SKIPPED LOUDLY: this kernel has no macvlan: {known.err}")
        one.ip("-n", one.host, "link", "delete", "probe")
        yield one
    finally:
        one.end()
        the_room.run(["rm", "-rf", "/run/agentshim/macvlan"])


@pytest.fixture
def runtime(lan: Lan, delegate: str) -> Iterator[Runtime]:
    """agentshim, called where the host is, under the policy."""
    furnish(lan.room, delegate, POLICY)
    program = lan.room.base / f"in-{lan.host}"
    program.write_text(f'#!/bin/sh\nexec nsenter --net=/run/netns/{lan.host} {lan.room.base}/bin/agentshim-cell "$@"\n')
    program.chmod(0o755)
    one = Runtime(lan.room, str(program), lan.room.base / f"r{next(COUNTER)}")
    yield one
    one.clear()


def policy(runtime: Runtime, text: str, name: str = "cell") -> None:
    (runtime.room.base / "config" / "policies" / f"{name}.toml").write_text(text.replace('"cell"', f'"{name}"'))


def addresses(runtime: Runtime) -> list[str]:
    return runtime.room.run(["ls", "/run/agentshim/macvlan/cell/addresses"]).out.split()


def links(lan: Lan) -> str:
    return lan.inside(lan.host, tool("ip"), "-o", "link").out


def unlock(runtime: Runtime, *names: str) -> None:
    """The containers' locks, taken away by root."""
    for name in names:
        place = f"/proc/{runtime.state(name)['pid']}/ns/net"
        assert runtime.room.run(["nsenter", f"--net={place}", tool("nft"), "flush", "ruleset"]).code == 0


def test_what_is_granted_is_reached_and_nothing_else(runtime: Runtime, lan: Lan, bundle: Maker) -> None:
    started(runtime, bundle, "c")
    assert asked(runtime, "c", FAR, 8080).out == "echo hi\n", "by the gateway"
    assert asked(runtime, "c", NEIGHBOUR, 8080).out == "echo hi\n", "on the LAN itself"
    for address, port in ((FAR, 8081), (OTHER, 8080), (NEIGHBOUR, 8081), (GATEWAY, 8080), ("169.254.169.254", 80)):
        begun = time.monotonic()
        refused = asked(runtime, "c", address, port)
        assert refused.code != 0 and not refused.out, f"{address}:{port}"
        assert time.monotonic() - begun < 2, f"{address}:{port} is refused, not dropped: {refused}"
    told = runtime.must("exec", "c", "ip", "address", "show", "dev", "eth0")
    assert f"inet {FIRST}/24" in told and "link/ether 02:a5:c0:00:02:41" in told and "inet6" not in told
    assert "tables agentshim" not in lan.rules() and "table" not in lan.rules(), "the host's tables play no part"


def test_an_address_is_kept_for_who_joined(runtime: Runtime, lan: Lan, bundle: Maker) -> None:
    """Whoever ends first: nobody else answers on the LAN for an address that is in use."""
    started(runtime, bundle, "a")
    asks = config(runtime, "sleep", "1000")
    place = f"/proc/{runtime.state('a')['pid']}/ns/net"
    kinds = asks["linux"]["namespaces"]
    asks["linux"]["namespaces"] = [{**one, "path": place} if one["type"] == "network" else one for one in kinds]
    runtime.must("create", "--bundle", str(bundle(asks).path), "b")
    runtime.must("start", "b")
    runtime.must("delete", "--force", "a")
    assert addresses(runtime) == [FIRST]
    assert shim(runtime, "net", "gc").code == 0
    assert addresses(runtime) == [FIRST]
    assert asked(runtime, "b", FAR, 8080).out == "echo hi\n"
    runtime.must("delete", "--force", "b")
    assert addresses(runtime) == []


def test_it_is_reached_where_inbound_says(runtime: Runtime, lan: Lan, bundle: Maker) -> None:
    serve = "while :; do echo served | nc -l -p 8080; done"
    started(runtime, bundle, "c", "sh", "-c", f"{serve} & {serve.replace('8080', '8081')}")
    wait_for(lambda: "served" in lan.fetch(lan.neighbour, FIRST, 8080).out, 5, "the neighbour to be served")
    assert "served" not in lan.fetch(lan.neighbour, FIRST, 8081).out
    unlock(runtime, "c")
    wait_for(lambda: "served" in lan.fetch(lan.neighbour, FIRST, 8081).out, 5, "that it was the lock")


def test_the_host_is_not_reached_whoever_grants_it(runtime: Runtime, lan: Lan, bundle: Maker) -> None:
    """The lock lets it out, the LAN carries it, and the kernel gives nothing of a macvlan to its card's owner."""
    started(runtime, bundle, "c")
    told = shim(runtime, "why", "c", f"{HOST}:9000")
    assert told.code == 1 and "rejected: an address of this host's, which no card" in told.out, str(told)
    assert "to allow" not in told.out
    refused = shim(runtime, "lease", "egress", "c", f"tcp:{HOST}:9000", "--ttl", "1h", "--why", "a test")
    assert refused.code == 1 and "an address of this host's" in refused.err, str(refused)
    assert not asked(runtime, "c", HOST, 9000).out
    unlock(runtime, "c")
    assert not asked(runtime, "c", HOST, 9000).out
    assert lan.fetch(lan.neighbour, HOST, 9000).code == 0, "others on the LAN do"


def test_two_of_a_kind_do_not_see_each_other(runtime: Runtime, lan: Lan, bundle: Maker) -> None:
    """Without locks, too."""
    started(runtime, bundle, "a", "sh", "-c", "while :; do echo served | nc -l -p 8080; done")
    started(runtime, bundle, "b")
    assert sorted(addresses(runtime)) == [FIRST, "192.0.2.66"]
    assert not asked(runtime, "b", FIRST, 8080).out
    told = shim(runtime, "why", "b", f"{FIRST}:8080")
    assert told.code == 1 and "192.0.2.64/28 is our containers'" in told.out and "to allow" not in told.out, str(told)
    refused = shim(runtime, "lease", "egress", "b", f"tcp:{FIRST}:8080", "--ttl", "1h", "--why", "a test")
    assert refused.code == 1 and "our containers'" in refused.err, str(refused)
    unlock(runtime, "a", "b")
    assert not asked(runtime, "b", FIRST, 8080).out
    assert "served" in lan.fetch(lan.neighbour, FIRST, 8080).out
    assert asked(runtime, "b", NEIGHBOUR, 8081).out == "echo hi\n"


def test_the_end_leaves_nothing(runtime: Runtime, lan: Lan, bundle: Maker) -> None:
    before = links(lan)
    started(runtime, bundle, "c")
    assert addresses(runtime) == [FIRST]
    runtime.must("delete", "--force", "c")
    assert addresses(runtime) == []
    assert links(lan) == before


def test_a_create_that_fails_leaves_nothing(runtime: Runtime, lan: Lan, bundle: Maker) -> None:
    asks = config(runtime, "true")
    asks["mounts"].append({"destination": "/x", "type": "bind", "source": "/etc/shadow", "options": ["bind"]})
    assert runtime.call("create", "--bundle", str(bundle(asks).path), "c").code != 0
    assert addresses(runtime) == []


def test_addresses_run_out_and_come_round(runtime: Runtime, lan: Lan, bundle: Maker) -> None:
    """Of a block of four, two are given away; what a kill left is found by the next start."""
    policy(runtime, POLICY.replace("192.0.2.64/28", "192.0.2.64/30"))
    started(runtime, bundle, "a")
    started(runtime, bundle, "b")
    refused = runtime.call("create", "--bundle", str(bundle(config(runtime, "true")).path), "c")
    assert refused.code == 1 and "all taken" in refused.err, str(refused)
    runtime.must("delete", "--force", "a")
    forged = f"/run/agentshim/macvlan/cell/addresses/{FIRST}"
    runtime.room.run(["sh", "-c", f"echo nobody 1 1 > {forged}"])
    started(runtime, bundle, "c")
    runtime.must("delete", "--force", "c")
    runtime.room.run(["sh", "-c", f"echo nobody 1 1 > {forged}"])
    told = shim(runtime, "net", "gc")
    assert "1 addresses on LANs" in told.out, str(told)
    assert addresses(runtime) == ["192.0.2.66"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"eth1"', '"eth9"', "macvlan eth9"),
        ('"isolated"', '"confine"', "mode isolated"),
        ("192.0.2.64/28", "198.51.100.0/28", "4 addresses of 192.0.2.0/24 or more"),
        ("192.0.2.64/28", "192.0.2.0/28", "without the gateway"),
        (f"tcp:{NEIGHBOUR}:8080", "tcp:192.0.2.66:8080", "addresses outside 192.0.2.64/28"),
        ("inbound", 'publish = ["127.0.0.1:80:80/tcp"]\ninbound', "publish beside it"),
        ("inbound", 'host_services = ["tcp:9000"]\ninbound', "host_services beside it"),
    ],
)
def test_what_makes_no_sense_is_refused(
    runtime: Runtime, lan: Lan, bundle: Maker, old: str, new: str, said: str
) -> None:
    policy(runtime, POLICY.replace(old, new))
    made = bundle(config(runtime, "true"))
    before = (made.path / "config.json").read_bytes()
    refused = runtime.call("create", "--bundle", str(made.path), "c")
    assert refused.code == 1 and said in refused.err, str(refused)
    assert (made.path / "config.json").read_bytes() == before


def test_a_block_is_one_policys(runtime: Runtime, lan: Lan, bundle: Maker) -> None:
    started(runtime, bundle, "c")
    policy(runtime, POLICY.replace("192.0.2.64/28", "192.0.2.64/29"), "other")
    try:
        refused = shim(runtime, "net", "up", "other")
        assert refused.code == 1 and "addresses apart from cell's" in refused.err, str(refused)
    finally:
        policy(runtime, POLICY)
        runtime.room.run(["rm", f"{runtime.room.base}/config/policies/other.toml"])
    assert "eth1  192.0.2.64/28  gateway 192.0.2.1" in shim(runtime, "net", "up", "cell").out
    assert "eth1  192.0.2.64/28  1 containers" in shim(runtime, "net", "show").out
    assert "as-cell" not in links(lan), "there is no bridge"


def test_a_lease_opens_the_one_lock(runtime: Runtime, lan: Lan, bundle: Maker) -> None:
    started(runtime, bundle, "c")
    words: tuple[Any, ...] = ("lease", "egress", "c", f"tcp:{OTHER}:8080", "--ttl", "1h", "--why", "a test")
    told = shim(runtime, *words)
    assert told.code == 0, str(told)
    assert asked(runtime, "c", OTHER, 8080).out == "echo hi\n"
    assert shim(runtime, "lease", "revoke", "c", f"tcp:{OTHER}:8080").code == 0
    assert asked(runtime, "c", OTHER, 8080).code != 0
