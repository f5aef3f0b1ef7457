"""Who reaches whom: the whole matrix, in containers that `agentshim run` makes, for each mode of their network.

A program inside tries every cell and says which error came, and when; unfiltered containers in the same world are the
control: what is refused to others answers them. Next door: `engines/test_network_modes` has the same under engines.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from conformance import probe_net
from conformance.engines.images import tool
from conformance.oci.cli import Runtime
from conformance.oci.conftest import COUNTER, Maker
from conformance.oci.test_isolated import POLICY, address_of, config, gateway_of, runtime, unlock, unlock_inside, world
from conformance.probe_net import (
    AWAY,
    DENIED,
    GRANTS_HELD,
    NAME,
    NOTHING,
    OPEN,
    REFUSED,
    RESOLVER,
    RIGHTS,
    SILENCE,
    UNFILTERED,
    WITHIN,
    holds,
    outward,
    tried,
)
from conformance.room import Result, wait_for
from conformance.world import ENGINES, GRANTED, HOST, OTHER, World, serving

__all__ = ["runtime", "world"]  # fixtures
pytestmark = pytest.mark.oci

HEAD = POLICY.partition("[network]")[0] + UNFILTERED + "[network]\n"
DOORS = 'publish = ["127.0.0.1:18080:8080/tcp"]\nhost_services = ["tcp:9000"]\n'
GRANTS = f'outbound = ["tcp:{GRANTED}:8080", "udp:{GRANTED}:8080", "tcp:{NAME}:8081"]\n'
MODES = {
    "isolated": f'{HEAD}mode = "isolated"\n{GRANTS}{DOORS}',
    "dead-end": f'{HEAD}mode = "dead-end"\n{DOORS}',
    "confine": f'{HEAD}mode = "confine"\ninbound = ["tcp:8080"]\n{GRANTS}',
    "none": f'{HEAD}mode = "none"\n',
    "crowd": f'{HEAD}mode = "isolated"\noutbound = ["udp:{GRANTED}:1-60000", "tcp:{GRANTED}:8080"]\n',
}
MINE, FAR6 = "172.17.0.9", "2001:db8::5"  # the container's address on an engine's bridge; the internet's, TCP 8080
SIBLING = "172.17.0.10"
SPOOFED = AWAY  # the kernel's own answer: a source of its own choosing is for who has a right to it
FORGE = """import socket, sys
source, target = sys.argv[1:]
one = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
head = bytes.fromhex("45000020000700004011000000000000")[:12] + socket.inet_aton(source) + socket.inet_aton(target)
one.sendto(head + bytes.fromhex("1f901f90000c0000") + b"hi!!", (target, 0))
"""
SERVE = "while :; do echo served | nc -l -p 8080; done"
LOCAL = {"tcp,127.0.0.1,9002": REFUSED, **RESOLVER}  # its own loopback: nobody, where the host has somebody

Engines = Callable[[str, str], str]


@pytest.fixture
def here(world: World) -> Iterator[World]:
    """The world, with a name, a name server, IPv6, a server on the host's loopback alone, and an engine's bridge."""
    world.serve(world.outside, 53, address=OTHER)
    world.serve(world.host, 9002, address="127.0.0.1")
    for place, device, net, last in (
        (world.outside, "eth0", "fd98::", 2),
        (world.host, "out", "fd98::", 1),
        (world.host, "docker0", "fd99::", 1),
    ):
        world.ip("-n", place, "address", "add", f"{net}{last}/64", "dev", device, "nodad")
    world.ip("-n", world.outside, "address", "add", f"{FAR6}/128", "dev", "lo", "nodad")
    world.ip("-n", world.host, "route", "add", "2001:db8::/32", "via", "fd98::2")
    world.ip("-n", world.outside, "route", "add", "fd99::/64", "via", "fd98::1")
    world.serve(world.outside, 8080, address=FAR6)
    forwarding = "echo 1 | tee /proc/sys/net/ipv4/ip_forward > /proc/sys/net/ipv6/conf/all/forwarding"
    world.inside(world.host, "sh", "-c", forwarding)
    rule = "ip saddr 172.17.0.0/16 oifname != docker0 masquerade"
    chain = f"table ip engine {{ chain c {{ type nat hook postrouting priority 100; {rule}; }}; }}"
    assert world.inside(world.host, tool("nft"), chain).code == 0
    world.room.run(["sh", "-c", f"cp /etc/hosts /etc/hosts.kept; echo {OTHER} {NAME} >> /etc/hosts"])
    yield world
    world.room.run(["mv", "/etc/hosts.kept", "/etc/hosts"])


@pytest.fixture
def engines(here: World) -> Iterator[Engines]:
    """engines(name, address): a network namespace as an engine makes it, on its bridge; the path."""
    made = []

    def make(name: str, address: str) -> str:
        name = f"{here.host}{name}"
        here.ip("netns", "add", name)
        made.append(name)
        peer = ("type", "veth", "peer", "name", "eth0", "netns", name)
        here.ip("-n", here.host, "link", "add", f"v{address.rpartition('.')[2]}", *peer)
        here.ip("-n", here.host, "link", "set", f"v{address.rpartition('.')[2]}", "master", "docker0", "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{address}/16", "dev", "eth0"),
            ("address", "add", f"fd99::{address.rpartition('.')[2]}/64", "dev", "eth0", "nodad"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", ENGINES),
            ("route", "add", "default", "via", "fd99::1"),
        ):
            here.ip("-n", name, *words)
        wait_for(lambda: "echo" in here.fetch(name, FAR6, 8080).out, 10, "neighbours of IPv6 to be found")
        return f"/run/netns/{name}"

    yield make
    for name in made:
        here.ip("netns", "delete", name)


class Containers:
    """Containers with the probe in them; each serves at 8080."""

    def __init__(self, runtime: Runtime, bundle: Maker) -> None:
        self.runtime, self.room, self.bundle = runtime, runtime.room, bundle
        self.program = probe_net.compiled(runtime.room)

    def start(self, name: str, place: str = "", doors: bool = True, caps: tuple[str, ...] = ()) -> Probe:
        """`place`: the network that its engine made; `doors`: with the ports that its policy publishes."""
        asks = config(self.runtime, "sh", "-c", SERVE)
        asks["linux"]["sysctl"] = {"net.ipv4.ping_group_range": "0 65535"}
        asks["annotations"] |= {} if doors else {"agentshim.publish": ""}
        for held in asks["process"]["capabilities"].values():
            held += caps
        if place:
            kinds = asks["linux"]["namespaces"]
            asks["linux"]["namespaces"] = [{**one, "path": place} if one["type"] == "network" else one for one in kinds]
        made = self.bundle(asks)
        shutil.copy(self.program, made.path / "rootfs/bin/probe-net")
        self.runtime.must("create", "--bundle", str(made.path), name)
        self.runtime.must("start", name)
        return partial(self.inside, name)

    def inside(self, name: str, *words: str) -> Result:
        return self.runtime.call("exec", name, "probe-net", *words, timeout=60)

    def place(self, name: str) -> str:
        return f"/proc/{self.runtime.state(name)['pid']}/ns/net"

    @contextmanager
    def resolver(self, name: str) -> Iterator[None]:
        """Who answers at 127.0.0.11:53 in the container's network."""
        server = serving(self.room, self.place(name), 53, address="127.0.0.11")
        try:
            yield
        finally:
            server.kill()
            server.communicate()


Probe = Callable[..., Result]
Under = Callable[[str], Containers]


@pytest.fixture
def under(runtime: Runtime, here: World, bundle: Maker) -> Under:
    """under(mode): containers under its policy."""

    def furnished(mode: str) -> Containers:
        (runtime.room.base / "config" / "policies" / "cell.toml").write_text(MODES[mode])
        return Containers(runtime, bundle)

    return furnished


@pytest.fixture
def plain(here: World, delegate: str, bundle: Maker) -> Iterator[Containers]:
    """Containers of the delegate alone."""
    one = Runtime(here.room, delegate, here.room.base / f"r{next(COUNTER)}")
    yield Containers(one, bundle)
    one.clear()


def from_outside(world: World, program: Path, cells: dict[tuple[str, str], str]) -> None:
    """Each (who, word of the probe) is as expected."""
    for place in {one for one, _ in cells}:
        holds(
            partial(world.inside, place, str(program)),
            {word: said for (who, word), said in cells.items() if who == place},
        )


def heard(containers: Containers, world: World, name: str, address: str) -> str:
    """What of a datagram that a neighbour on the LAN sends to port 8080 in the name of GRANTED, which may answer."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(tried, partial(containers.inside, name), ["hear,,8080"])
        for _ in range(4):
            time.sleep(0.2)
            assert world.inside(world.lan, sys.executable, "-c", FORGE, GRANTED, address).code == 0
        return waiting.result()["hear,,8080"][0]


def test_what_a_container_of_nobodys_reaches(here: World, plain: Containers, engines: Engines) -> None:
    """The control: every cell of the matrix has somebody who answers, and every attempt at the lock would succeed."""
    with_all = ("CAP_NET_ADMIN", "CAP_NET_RAW")
    probe = plain.start("c", engines("c", MINE), caps=with_all)
    plain.start("s", engines("s", SIBLING))
    assert plain.room.run(["nsenter", f"--net={plain.place('c')}", tool("nft"), "add table inet agentshim"]).code == 0
    cells = outward(tuple(outward()))
    cells |= {f"tcp,{SIBLING},8080": OPEN, f"tcp,{FAR6},8080": OPEN, f"tcp,{ENGINES},9001": OPEN}
    cells |= {"icmp,fd99::1,0": OPEN, f"udp,{FAR6},8080": OPEN}
    cells |= {**dict.fromkeys(RIGHTS, OPEN), "dns-udp,127.0.0.11,53": OPEN, "dns-tcp,127.0.0.11,53": OPEN}
    with plain.resolver("c"):
        holds(probe, cells)
    holds(partial(here.inside, here.host, str(plain.program)), {"tcp,127.0.0.1,9002": OPEN})
    from_outside(here, plain.program, {(here.host, f"tcp,{MINE},8080"): OPEN})
    send_to(here, MINE)
    assert heard(plain, here, "c", MINE) == OPEN


def test_a_network_of_ours(here: World, under: Under) -> None:
    """Isolated: what the policy names, and what it opens of the host; then each of both locks alone."""
    containers = under("isolated")
    probe = containers.start("c")
    containers.start("s", doors=False)
    gateway, mine, there = ours(containers)
    cells = outward(GRANTS_HELD) | {
        f"tcp,{NAME},8081": OPEN,
        f"tcp,{OTHER},8081": OPEN,
        f"udp,{OTHER},8081": DENIED,
        "tcp,other.lab.test,8081": NOTHING,
        f"tcp,{gateway},9000": OPEN,
        f"udp,{gateway},9000": DENIED,
        f"tcp,{gateway},9001": REFUSED,
        f"tcp,{gateway},9002": REFUSED,
        f"tcp,{gateway},18080": REFUSED,
        f"tcp,{there},8080": REFUSED,
        f"tcp,{FAR6},8080": AWAY,
        f"udp,{FAR6},8080": AWAY,
        f"spoof,{GRANTED},8080": SPOOFED,
    }
    with containers.resolver("c"):
        holds(probe, cells | LOCAL | RIGHTS | WITHIN)
        outside = {
            (here.host, "tcp,127.0.0.1,18080"): OPEN,
            (here.host, "udp,127.0.0.1,18080"): REFUSED,
            (here.host, f"tcp,{mine},8080"): REFUSED,
            (here.outside, f"tcp,{HOST},18080"): REFUSED,
        }
        from_outside(here, containers.program, outside)
        send_to(here, mine)
        from_outside(here, containers.program, {(here.lan, f"tcp,{mine},8080"): REFUSED})
        assert heard(containers, here, "c", mine) == SILENCE
    streams = {word: said for word, said in cells.items() if word.startswith("tcp,")}
    unlock_inside(containers.runtime, "c")
    holds(probe, streams)


def test_what_the_lock_inside_refuses_alone(here: World, under: Under) -> None:
    containers = under("isolated")
    probe = containers.start("c")
    containers.start("s", doors=False)
    gateway, _, there = ours(containers)
    unlock(containers.runtime, here)
    cells = outward(GRANTS_HELD) | {f"tcp,{NAME},8081": OPEN, f"tcp,{gateway},9000": OPEN}
    holds(probe, cells | {f"tcp,{gateway},9001": REFUSED, f"tcp,{there},8080": REFUSED} | RIGHTS | WITHIN)


def test_a_dead_end(here: World, under: Under) -> None:
    """A port is published and a service of the host's is open, and nothing else."""
    containers = under("dead-end")
    probe = containers.start("c")
    containers.start("s", doors=False)
    gateway, mine, there = ours(containers)
    cells = outward() | {
        f"tcp,{NAME},8081": NOTHING,
        f"tcp,{gateway},9000": OPEN,
        f"tcp,{gateway},9001": REFUSED,
        f"tcp,{there},8080": REFUSED,
        f"tcp,{FAR6},8080": AWAY,
    }
    with containers.resolver("c"):
        holds(probe, cells | LOCAL | RIGHTS | WITHIN)
    outside = {
        (here.host, "tcp,127.0.0.1,18080"): OPEN,
        (here.host, f"tcp,{mine},8080"): REFUSED,
        (here.outside, f"tcp,{HOST},18080"): REFUSED,
    }
    from_outside(here, containers.program, outside)
    unlock_inside(containers.runtime, "c")
    holds(probe, {word: said for word, said in outward().items() if word.startswith("tcp,")})


def test_an_engines_network(here: World, under: Under, plain: Containers, engines: Engines) -> None:
    """Confined: the lock inside is the only one; who shares the bridge is refused as all others are."""
    containers = under("confine")
    probe = containers.start("c", engines("c", MINE))
    plain.start("s", engines("s", SIBLING))
    cells = outward(GRANTS_HELD) | {
        f"tcp,{NAME},8081": OPEN,
        f"tcp,{ENGINES},9001": REFUSED,
        f"tcp,{SIBLING},8080": REFUSED,
        f"udp,{SIBLING},8080": DENIED,
        f"tcp,{FAR6},8080": REFUSED,
        f"udp,{FAR6},8080": DENIED,
        "icmp,fd99::1,0": "EACCES",  # as the kernel words what its IPv6 prohibits
        f"spoof,{GRANTED},8080": SPOOFED,
    }
    with containers.resolver("c"):
        holds(probe, cells | LOCAL | RIGHTS | WITHIN)
    from_outside(
        here, containers.program, {(here.host, f"tcp,{MINE},8080"): OPEN, (here.host, f"tcp,{MINE},8081"): REFUSED}
    )
    send_to(here, MINE)
    assert heard(containers, here, "c", MINE) == SILENCE


def test_no_network_at_all(here: World, under: Under) -> None:
    """Mode none: lo is there and up, and nothing else."""
    containers = under("none")
    probe = containers.start("c")
    away = outward(tcp=AWAY, udp=AWAY) | {f"tcp,{FAR6},8080": AWAY}
    with containers.resolver("c"):
        holds(probe, away | LOCAL | RIGHTS | WITHIN | {"tcp,127.0.0.1,8080": OPEN})
    assert here.ports() == [] and containers.runtime.must("exec", "c", "ip", "-o", "link").count("\n") == 1


def test_who_fills_its_records_fills_no_others(here: World, under: Under) -> None:
    """What is counted is bounded: a full set lets nothing new out, and is the one container's."""
    containers = under("crowd")
    one, other = containers.start("c"), containers.start("s")
    assert tried(one, [f"fill,{OTHER},4500"])[f"fill,{OTHER},4500"][0] == DENIED
    assert tried(one, [f"fill,{GRANTED},4000"])[f"fill,{GRANTED},4000"][0] == OPEN
    holds(one, {f"tcp,{GRANTED},8080": OPEN})
    assert tried(one, [f"fill,{GRANTED},4500"])[f"fill,{GRANTED},4500"][0] == DENIED
    holds(one, {f"udp,{GRANTED},8081": DENIED})
    holds(other, outward((*GRANTS_HELD, f"udp,{GRANTED},8081")))


def ours(containers: Containers) -> tuple[str, str, str]:
    """The gateway, and the addresses of `c` and `s`."""
    runtime = containers.runtime
    return gateway_of(runtime, "c"), address_of(runtime, "c"), address_of(runtime, "s")


def send_to(world: World, address: str) -> None:
    """The LAN knows a way to a container, and the host lets any source through that it has a route for."""
    world.ip("-n", world.lan, "route", "add", f"{address}/32", "via", "192.168.77.1")
    loose = "for one in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $one; done"
    assert world.inside(world.host, "sh", "-c", loose).code == 0
