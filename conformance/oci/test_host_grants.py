"""Addresses of the host's own, and those of other containers: what a grant, a lease and `why` say of them happens.

The host, and who is around it, are those of `test_isolated`. Probes are sent from a container's network namespace by
root, who is not held back by anything but the locks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from conformance.engines.images import tool
from conformance.oci.bundles import spec
from conformance.oci.cli import Runtime
from conformance.oci.conftest import COUNTER, Maker
from conformance.oci.test_isolated import (
    POLICY,
    address_of,
    asked,
    config,
    gateway_of,
    runtime,
    shim,
    started,
    unlock,
    world,
)
from conformance.room import Result, Room
from conformance.world import ENGINES, GRANTED, HOST, HOST_ON_LAN, NEIGHBOUR, OTHER, World

__all__ = ["runtime", "world"]  # fixtures
pytestmark = pytest.mark.oci

LOOPBACK, POOLED = "127.0.0.1", "10.207.0.6"
OPEN, SHUT = 9100, 9101  # ports at which the host listens at each of these addresses
BLOCK, OF_BLOCK = "203.0.113.192/26", "203.0.113.200"  # the host's, by one route
HEAD = POLICY.partition("outbound")[0]
ASK = """import socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
one = socket.socket(socket.AF_INET, kind)
one.settimeout(1.5)
try:
    one.connect((sys.argv[2], int(sys.argv[3])))
    one.send(b"hi")
    print(one.recv(99).decode())
except TimeoutError: print("silence")
except OSError as error: print(error.strerror)
"""
# Its own kernel takes no answer from 127.0.0.1: it is seen on the wire.
WATCH = """import socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
wire.settimeout(0.7)
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    one.sendto(b"hi", (sys.argv[1], int(sys.argv[2])))
    while not wire.recv(999).endswith(b"echo hi"): pass
    print("answered")
except OSError: print("nothing")
"""


def literal(*words: str) -> str:
    """Grants of addresses that need a reason."""
    return "".join(f'[[network.add]]\nto = "{word}"\nwhy = "a test"\ndoc = "https://e.org"\n' for word in words)


def policy(runtime: Runtime, text: str) -> None:
    (runtime.room.base / "config" / "policies" / "cell.toml").write_text(text)


def probe(runtime: Runtime, name: str, protocol: str, address: str, port: int) -> str:
    """What is answered to a packet from a container's network."""
    place = f"--net=/proc/{runtime.state(name)['pid']}/ns/net"
    told = runtime.room.run(["nsenter", place, sys.executable, "-c", ASK, protocol, address, str(port)])
    assert told.code == 0, str(told)
    return told.out.strip()


def both(address: str, port: int) -> list[tuple[str, str, int]]:
    return [("tcp", address, port), ("udp", address, port)]


def words(address: str, port: int) -> list[str]:
    return [f"{protocol}:{address}:{port}" for protocol in ("tcp", "udp")]


def listening(world: World) -> None:
    for address in (ENGINES, HOST_ON_LAN, HOST, LOOPBACK):
        world.serve(world.host, OPEN, SHUT, address=address)


def test_a_literal_grant_opens_one_address_of_the_host_and_nothing_else(
    runtime: Runtime, world: World, bundle: Maker
) -> None:
    """That of docker0, one on a LAN, and that of the gateway. 127.0.0.1 is the host's alone, whatever is granted."""
    listening(world)
    head = HEAD + 'host_services = ["tcp:9000", "udp:9000"]\npublish = ["127.0.0.1:18080:8080/tcp"]\n'
    policy(runtime, head + literal(*words(ENGINES, OPEN), *words(HOST_ON_LAN, OPEN), *words(LOOPBACK, OPEN)))
    started(runtime, bundle, "c")
    gateway = gateway_of(runtime, "c")
    granted = (*both(ENGINES, OPEN), *both(HOST_ON_LAN, OPEN), *both(gateway, 9000))
    forbidden = (
        *both(ENGINES, SHUT), *both(HOST_ON_LAN, SHUT), *both(HOST, OPEN), ("tcp", gateway, 9001),
        ("tcp", ENGINES, 9000), ("tcp", HOST_ON_LAN, 9000), ("tcp", NEIGHBOUR, 8080), ("tcp", GRANTED, 8080),
    )  # fmt: skip
    assert {one: probe(runtime, "c", *one) for one in granted} == dict.fromkeys(granted, "echo hi")
    assert asked(runtime, "c", ENGINES, OPEN).out == "echo hi\n", "for a workload, too"
    for one in forbidden:
        assert probe(runtime, "c", *one) in ("Connection refused", "Operation not permitted"), one
    net = f"--net=/proc/{runtime.state('c')['pid']}/ns/net"
    around = "ip route delete local 127.0.0.0/8 table local; ip route delete local 127.0.0.1 table local;"
    around += "ip route add 127.0.0.1 via $(ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p') dev eth0"
    told = runtime.room.run(["nsenter", net, "sh", "-c", around])
    assert told.code == 0, str(told)

    def loopback() -> str:
        return runtime.room.run(["nsenter", net, sys.executable, "-c", WATCH, LOOPBACK, str(OPEN)]).out.strip()

    assert loopback() == "nothing", "the host's own loopback"
    runtime.room.run(["nsenter", net, tool("nft"), "flush", "ruleset"])
    assert loopback() == "nothing", "the host's lock alone"
    for one in forbidden:
        assert probe(runtime, "c", *one) != "echo hi", f"{one}: the host's lock alone"
    unlock(runtime, world, "c")
    assert loopback() == "answered", "the attack works where nothing stops it"
    for one in forbidden:
        assert probe(runtime, "c", *one) == "echo hi", f"{one} is there"


def test_what_is_granted_to_one_is_not_anothers(runtime: Runtime, world: World, bundle: Maker) -> None:
    """Of one policy, and of one address: the elements go with the container."""
    listening(world)
    policy(runtime, HEAD + literal(*words(ENGINES, OPEN)))
    started(runtime, bundle, "a")
    assert probe(runtime, "a", "tcp", ENGINES, OPEN) == "echo hi"
    assert sum(one.startswith("services") for one in world.elements()) == 2
    first = address_of(runtime, "a")
    runtime.must("delete", "--force", "a")
    assert world.elements() == []
    policy(runtime, HEAD + f'outbound = ["tcp:{GRANTED}:8080"]\n')
    started(runtime, bundle, "b")
    assert probe(runtime, "b", "tcp", GRANTED, 8080) == "echo hi"
    assert probe(runtime, "b", "tcp", ENGINES, OPEN) == "Connection refused" and first


def test_the_resolver_is_an_address_of_the_hosts(runtime: Runtime, world: World, bundle: Maker) -> None:
    """A host that asks itself, on a LAN: what `dns = "engine"` lets through is this address, and its port 53."""
    world.serve(world.host, 53, address=HOST_ON_LAN)
    listening(world)
    world.room.run(["cp", "-P", "/etc/resolv.conf", "/etc/resolv.kept"])
    lines = f"nameserver {HOST_ON_LAN}\n"
    world.room.run(["sh", "-c", "rm -f /etc/resolv.conf; cat > /etc/resolv.conf"], input=lines)
    try:
        policy(runtime, HEAD + 'dns = "engine"\n')
        started(runtime, bundle, "c")
        for protocol in ("tcp", "udp"):
            assert probe(runtime, "c", protocol, HOST_ON_LAN, 53) == "echo hi"
            assert why(runtime, "c", HOST_ON_LAN, 53, protocol)["verdict"] == "allowed"
        assert probe(runtime, "c", "tcp", HOST_ON_LAN, OPEN) == "Connection refused"
    finally:
        world.room.run(["mv", "/etc/resolv.kept", "/etc/resolv.conf"])


def test_what_was_refreshed_goes_with_the_container(runtime: Runtime, world: World, bundle: Maker) -> None:
    listening(world)
    policy(runtime, HEAD + 'outbound = ["tcp:api.lab.test:8080"]\n' + literal(f"tcp:{ENGINES}:{OPEN}"))
    hosts(runtime.room, f"{GRANTED} api.lab.test")
    try:
        started(runtime, bundle, "c")
        runtime.room.run(["sh", "-c", f"cp /etc/hosts.kept /etc/hosts; echo {OTHER} api.lab.test >> /etc/hosts"])
        told = shim(runtime, "net", "refresh", "c")
        assert told.code == 0 and f"may reach tcp:{OTHER}:8080" in told.out, str(told)
    finally:
        runtime.room.run(["mv", "/etc/hosts.kept", "/etc/hosts"])
    assert probe(runtime, "c", "tcp", OTHER, 8080) == probe(runtime, "c", "tcp", ENGINES, OPEN) == "echo hi"
    assert sum(one.startswith("services") for one in world.elements()) == 1
    runtime.must("delete", "--force", "c")
    assert world.elements() == []


def test_a_block_that_one_route_makes_the_hosts_own(runtime: Runtime, world: World, bundle: Maker) -> None:
    """`ip route add local BLOCK`: each address of it is this host, and none is in a grant of more than one."""
    world.ip("-n", world.host, "route", "add", "local", BLOCK, "dev", "lo")
    policy(runtime, HEAD + f'outbound = ["tcp:203.0.113.0/24:9000", "tcp:{GRANTED}:8080"]\n')
    started(runtime, bundle, "a")
    assert probe(runtime, "a", "tcp", GRANTED, 8080) == "echo hi"
    assert probe(runtime, "a", "tcp", OF_BLOCK, 9000) == "Connection refused"
    assert f"tcp to {OF_BLOCK}:9000" in shim(runtime, "denied", "a").out, "by the lock inside, which is all of confine"
    said = why(runtime, "a", OF_BLOCK, 9000)
    assert said["verdict"] == "rejected" and f"tcp:{OF_BLOCK}:9000" in said["allow"], said
    policy(runtime, HEAD + literal(f"tcp:{OF_BLOCK}:9000"))
    started(runtime, bundle, "b")
    assert probe(runtime, "b", "tcp", OF_BLOCK, 9000) == "echo hi", "granted for itself"
    assert why(runtime, "b", OF_BLOCK, 9000)["verdict"] == "allowed"
    hosts(runtime.room, f"{OF_BLOCK} own.lab.test")
    try:
        policy(runtime, HEAD + 'outbound = ["tcp:own.lab.test:9000"]\n')
        refused = runtime.call("create", "--bundle", str(bundle(config(runtime, "true")).path), "c")
        assert refused.code == 1 and f"{OF_BLOCK}, ceiling public addresses" in refused.err, str(refused)
        told = lease(runtime, "a", "tcp:own.lab.test:9000")
        assert told.code == 1 and "this host" in told.err, str(told)
    finally:
        runtime.room.run(["mv", "/etc/hosts.kept", "/etc/hosts"])


def hosts(room: Room, line: str) -> None:
    room.run(["sh", "-c", f"cp /etc/hosts /etc/hosts.kept; echo '{line}' >> /etc/hosts"])


def why(runtime: Runtime, name: str, address: str, port: int, protocol: str = "tcp") -> dict[str, str]:
    told = shim(runtime, "why", name, f"{protocol}:{address}:{port}", "--json")
    found: dict[str, str] = json.loads(told.out)
    assert told.code == (0 if found["verdict"] == "allowed" else 1)
    return found


def lease(runtime: Runtime, name: str, peer: str) -> Result:
    return shim(runtime, "lease", "egress", name, peer, "--ttl", "1h", "--why", "a test of grants")


@pytest.mark.parametrize("mode", ["isolated", "confine"])
def test_another_container_is_granted_to_nobody(runtime: Runtime, world: World, bundle: Maker, mode: str) -> None:
    policy(runtime, HEAD.replace("isolated", mode) + literal(f"tcp:{POOLED}:80"))
    made = bundle(config(runtime, "true"))
    before = (made.path / "config.json").read_bytes()
    refused = runtime.call("create", "--bundle", str(made.path), "c")
    told = f"asked tcp:{POOLED}:80, ceiling addresses outside 10.207.0.0/16"
    assert refused.code == 1 and told in refused.err, str(refused)
    assert (made.path / "config.json").read_bytes() == before
    assert shim(runtime, "policy", "check").code == 1


def test_a_pool_that_moves_is_looked_at_again(runtime: Runtime, world: World, bundle: Maker) -> None:
    """A policy that was compiled before config.toml named another pool."""
    policy(runtime, HEAD + literal("tcp:10.99.0.6:80"))
    started(runtime, bundle, "c")
    file = Path(runtime.room.base / "config" / "config.toml")
    text = file.read_text()
    try:
        file.write_text('network_pool = "10.99.0.0/16"\n' + text)
        refused = runtime.call("create", "--bundle", str(bundle(config(runtime, "true")).path), "d")
        assert refused.code == 1 and "10.99.0.6" in refused.err, str(refused)
        assert why(runtime, "c", "10.99.0.6", 80)["verdict"] == "rejected"
    finally:
        file.write_text(text)


def test_nobody_is_promised_another_container(runtime: Runtime, world: World, bundle: Maker) -> None:
    """Neither by a grant of a wider block, nor by `why`, nor by a lease; on a bridge outside of the pool neither."""
    policy(runtime, HEAD + literal("tcp:10.0.0.0/8:8080"))
    assert shim(runtime, "net", "up", "cell", "--pool", "10.88.0.0/16").code == 0
    started(runtime, bundle, "a", "sh", "-c", "while :; do echo served | nc -l -p 8080; done")
    started(runtime, bundle, "b")
    sibling = address_of(runtime, "a")
    assert sibling.startswith("10.88.")
    for address in (sibling, POOLED):
        assert probe(runtime, "b", "tcp", address, 8080) in ("Connection refused", "silence"), address
        said = why(runtime, "b", address, 8080)
        assert said["verdict"] == "rejected" and "containers" in said["rule"] and not said["allow"], said
        told = lease(runtime, "b", f"tcp:{address}:8080")
        assert told.code == 1 and "containers" in told.err, str(told)
        assert not probe(runtime, "b", "tcp", address, 8080).startswith(("served", "echo"))
    assert not any("leased" in one for one in world.elements())
    assert why(runtime, "b", address_of(runtime, "b"), 8080)["rule"] == "the container's own address"


def test_why_says_what_happens_at_the_hosts_own_addresses(runtime: Runtime, world: World, bundle: Maker) -> None:
    listening(world)
    policy(
        runtime, HEAD + 'host_services = ["tcp:9000"]\n' + literal(f"tcp:{ENGINES}:{OPEN}", "tcp:172.16.0.0/12:9000")
    )
    started(runtime, bundle, "c")
    gateway = gateway_of(runtime, "c")
    for address, port, verdict, allow in (
        (ENGINES, OPEN, "allowed", ""),
        (gateway, 9000, "allowed", ""),
        (ENGINES, SHUT, "rejected", f'[[network.add]] to = "tcp:{ENGINES}:{SHUT}", with why and doc'),
        (ENGINES, 9000, "rejected", f'[[network.add]] to = "tcp:{ENGINES}:9000", with why and doc'),
        (HOST_ON_LAN, OPEN, "rejected", f'[[network.add]] to = "tcp:{HOST_ON_LAN}:{OPEN}", with why and doc'),
        (HOST, OPEN, "rejected", f'[network] outbound = ["tcp:{HOST}:{OPEN}"]'),
        (gateway, 9001, "rejected", '[network] host_services = ["tcp:9001"]'),
    ):
        said = why(runtime, "c", address, port)
        assert (said["verdict"], said["allow"]) == (verdict, allow), said
        assert (probe(runtime, "c", "tcp", address, port) == "echo hi") == (verdict == "allowed"), said
    world.ip("-n", world.host, "address", "add", "172.20.0.1/32", "dev", "docker0")
    said = why(runtime, "c", "172.20.0.1", 9000)
    assert said["verdict"] == "rejected" and "create it anew" in said["rule"], said
    assert probe(runtime, "c", "tcp", "172.20.0.1", 9000) == "Connection refused"


def test_a_lease_of_one_of_the_hosts_addresses(runtime: Runtime, world: World, bundle: Maker) -> None:
    listening(world)
    started(runtime, bundle, "c")
    peer = f"tcp:{HOST_ON_LAN}:{OPEN}"
    assert probe(runtime, "c", "tcp", HOST_ON_LAN, OPEN) == "Connection refused"
    told = lease(runtime, "c", peer)
    assert told.code == 0, str(told)
    assert why(runtime, "c", HOST_ON_LAN, OPEN)["verdict"] == "allowed"
    assert probe(runtime, "c", "tcp", HOST_ON_LAN, OPEN) == "echo hi"
    for one in (("tcp", HOST_ON_LAN, SHUT), ("udp", HOST_ON_LAN, OPEN), ("tcp", HOST, OPEN)):
        assert probe(runtime, "c", *one) != "echo hi", one
    assert shim(runtime, "lease", "revoke", "c", peer).code == 0
    assert probe(runtime, "c", "tcp", HOST_ON_LAN, OPEN) == "Connection refused"


@pytest.mark.parametrize("mode", ["none", "auto", "engine"])
def test_a_network_with_nothing_but_lo_reaches_nobody(runtime: Runtime, world: World, bundle: Maker, mode: str) -> None:
    policy(runtime, HEAD.replace("isolated", mode))
    asks = spec("sleep", "1000", cgroup=f"{runtime.cgroup}/lo-{next(COUNTER)}")
    runtime.must("create", "--bundle", str(bundle(asks).path), "c")
    runtime.must("start", "c")
    said = why(runtime, "c", GRANTED, 8080)
    assert said["verdict"] == "rejected" and "only lo" in said["rule"], said
    assert probe(runtime, "c", "tcp", GRANTED, 8080) != "echo hi"
    assert why(runtime, "c", LOOPBACK, 80)["verdict"] == "allowed"
