"""Seven network namespaces: a host with bridges of ours, two agents on one bridge and one on another, the internet, a
neighbour on the host's LAN, and a container behind a docker0. All traffic stays in them.

The agents' ends are made by ip(8), as weak as a bridge makes them by itself unless told otherwise: what the tables of
the host shut is shut by them alone, against an agent that holds all capabilities over its own namespace.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

from hooks import host, labels, link, netlink, nft, plan, records
from hooks.labels import host_end, mac
from hooks.link import Port
from hooks.plan import Step
from shim.cold.network import net_up
from tests.net.lab import Lab, enter, ip, settings

A, B, ELSEWHERE = "10.207.0.5", "10.207.0.6", "10.207.4.5"  # agents: two siblings, one elsewhere
GATEWAY, OTHER_GATEWAY = "10.207.0.1", "10.207.4.1"
FAR, HOST_OUT, INTERNET = "203.0.113.5", "192.0.2.1", "192.0.2.2"
HOST_LAN, NEIGHBOUR = "192.168.50.1", "192.168.50.2"
DOCKER0, DOCKER = "172.17.0.1", "172.17.0.2"
METADATA = "169.254.169.254"
DIGEST, OTHER_DIGEST = "sha256:" + "0a" * 32, "sha256:" + "1b" * 32
SECTION: dict[str, Any] = {
    "mode": "isolated",
    "outbound": [
        ["tcp", FAR, 443, 443],
        ["udp", FAR, 53, 53],
        ["tcp", "198.51.100.0/24", 80, 90],
        ["tcp", METADATA, 80, 80],  # not grantable: the hard deny comes first
    ],
    "inbound": [],
    "dns": False,
    "icmp": False,
    "publish": [["127.0.0.1", 8080, 80, "tcp"]],
}


def packed(address: str) -> bytes:
    return socket.inet_aton(address)


class HostLab(Lab):
    """`h`, `a`, `b`, `o`, `i`, `l`, `d`: names of the namespaces. Bridges web (a, b) and other (o) are up."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        super().__init__()

    def _make(self) -> None:
        self.h = self.c.replace("asc", "ash")
        self.a, self.b, self.o = (self.c.replace("asc", f"as{one}") for one in "abo")
        self.l, self.d = self.c.replace("asc", "asl"), self.c.replace("asc", "asd")
        for name in (self.h, self.a, self.b, self.o, self.i, self.l, self.d):
            ip("netns", "add", name)
            self.made.append(name)
            self.inside(name, settings)
            self.batch(name, "link set lo up")
        self._outside()
        self.bridges = {name: self.up(name, digest) for name, digest in (("web", DIGEST), ("other", OTHER_DIGEST))}

    def _outside(self) -> None:
        for name, there, near, far in ((self.i, "up0", HOST_OUT, INTERNET), (self.l, "lan0", HOST_LAN, NEIGHBOUR)):
            ip("-n", self.h, "link", "add", there, "type", "veth", "peer", "name", "eth0", "netns", name)
            self.batch(self.h, f"addr add {near}/24 dev {there}", f"link set {there} up")
            self.batch(name, f"addr add {far}/24 dev eth0", "link set eth0 up")
        self.batch(self.h, f"route add default via {INTERNET}")
        self.batch(self.l, f"route add default via {HOST_LAN}")
        self.batch(
            self.i, *(f"route add local {net} dev lo" for net in ("203.0.113.0/24", "198.51.100.0/24", METADATA))
        )
        ip("-n", self.h, "link", "add", "docker0", "type", "bridge")
        ip("-n", self.h, "link", "add", "vd", "type", "veth", "peer", "name", "eth0", "netns", self.d)
        self.batch(self.h, "link set vd master docker0 up", f"addr add {DOCKER0}/16 dev docker0", "link set docker0 up")
        self.batch(self.d, f"addr add {DOCKER}/16 dev eth0", "link set eth0 up", f"route add default via {DOCKER0}")

    def up(self, profile: str, digest: str, section: dict[str, Any] = SECTION, **options: Any) -> dict[str, Any]:
        told: list[str] = []
        made: dict[str, Any] = self.inside(
            self.h, lambda: net_up.up(profile, section, digest, self.directory, told=told.append, **options)
        )
        return made

    def port(self, address: str) -> Port:
        bridge = self.bridges["other" if address == ELSEWHERE else "web"]
        return Port(bridge["index"], packed(bridge["gateway"]), bridge["prefix"], packed(address))

    def agent(self, address: str, strong: bool = False, elements: bool = True, **grants: Any) -> Step:
        """An agent comes in: both ends of its link, and its elements."""
        name = {A: self.a, B: self.b, ELSEWHERE: self.o}[address]
        bridge = self.bridges["other" if address == ELSEWHERE else "web"]
        here, end = packed(address), host_end(packed(address))
        door = host.doors(self.port(address), grants.pop("published", ()))
        step = host.enter(self.port(address), bridge["tag"], **grants)
        for one in (step, *door) if elements else ():
            self.ask(one.do)
        ip("-n", self.h, "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", name)
        hardware, gateway = text(mac(here)), bridge["gateway"]
        self.batch(
            self.h,
            f"link set {end} master {bridge['bridge']} up",
            f"neigh add {address} lladdr {hardware} nud permanent dev {bridge['bridge']}",
        )
        if strong:
            words = "isolated on learning off flood off mcast_flood off bcast_flood off"
            subprocess.run(["bridge", "-n", self.h, "link", "set", "dev", end, *words.split()], check=True)
            subprocess.run(["bridge", "-n", self.h, "fdb", "add", hardware, "dev", end, "master", "static"], check=True)
        self.batch(
            name,
            f"link set eth0 address {hardware} up",
            f"addr add {address}/22 dev eth0 noprefixroute",
            f"neigh add {gateway} lladdr {text(mac(packed(gateway)))} nud permanent dev eth0",
            f"route add {gateway} dev eth0",
            f"route add default via {gateway}",
        )
        return step

    def real(self, address: str, **grants: Any) -> None:
        """An agent comes in as a container's start does it: elements and link from one plan."""
        door = host.doors(self.port(address), grants.pop("published", ()))
        first = host.enter(self.port(address), self.bridges["web"]["tag"], **grants)
        steps = (first, *door, *link.steps(self.port(address)))

        def go() -> None:
            rooms = {}
            for room, name in ((plan.CONTAINER, self.a), (plan.HOST, self.h)):
                enter(f"/run/netns/{name}")
                for family in (netlink.ROUTE, netlink.NETFILTER):
                    rooms[room, family] = netlink.Socket(family)
            held = os.open(f"/run/netns/{self.a}", os.O_RDONLY)
            os.dup2(held, plan.NETNS)
            plan.replay(steps, lambda room, family: rooms[room, family])

        self.batch(self.a, "link set lo down")
        self.inside(self.h, go)

    def ask(self, data: bytes, acks: int = 1) -> None:
        """A batch, in the host's namespace."""
        with records.opened(f"/run/netns/{self.h}") as kernel:
            kernel.ask(data, acks)

    def lease(self, agent: str, protocol: str, far: str, port: int, milliseconds: int) -> None:
        key = host.flow_key(packed(agent), protocol, packed(far), port)
        self.ask(nft.batch([nft.lease(labels.TABLE, "leased", key, milliseconds)]))

    def on_host(self, *words: str, text: str | None = None) -> str:
        command = ["nsenter", f"--net=/run/netns/{self.h}", *words]
        return subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout

    # What an agent with all capabilities does

    def send(self, name: str, *frames: bytes, device: str = "eth0") -> None:
        """Raw ethernet frames, one behind the other."""

        def go() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
                made.bind((device, 0))
                for frame in frames:
                    made.send(frame)

        self.inside(name, go)

    def heard(self, name: str, action: Any, seconds: float = 0.5, device: str = "") -> list[bytes]:
        """The frames that reach a namespace while `action` runs, and for so long behind it."""

        def go() -> list[bytes]:
            found = []
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as made:
                if device:
                    made.bind((device, 0))
                Path(self.directory, "listening").touch()
                made.settimeout(0.05)
                end = time.monotonic() + 20
                while time.monotonic() < end:
                    try:
                        data, about = made.recvfrom(1 << 16)
                        if about[2] != socket.PACKET_OUTGOING:
                            found.append(data)
                    except TimeoutError:
                        pass
                    if Path(self.directory, "over").exists():
                        break
            return found

        for left in ("listening", "over"):
            Path(self.directory, left).unlink(missing_ok=True)
        child, pipe = self.fork(name, go)
        while not Path(self.directory, "listening").exists():
            time.sleep(0.01)
        action()
        time.sleep(seconds)
        Path(self.directory, "over").touch()
        listened: list[bytes] = self.result(child, pipe)
        for left in ("listening", "over"):
            Path(self.directory, left).unlink(missing_ok=True)
        return listened


def text(hardware: bytes) -> str:
    return hardware.hex(":")


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def send_icmp(head: bytes, about: bytes, target: str, source: str = "0.0.0.0") -> None:
    """An ICMP message whose first 8 bytes are `head`, without its checksum yet."""
    body = head + about
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.bind((source, 0))
        raw.sendto(body[:2] + struct.pack(">H", checksum(body)) + body[4:], (target, 0))


def datagram(
    source: str,
    target: str,
    port: int,
    data: bytes,
    options: bytes = b"",
    source_port: int = 5353,
    kind: int = 17,
    offset: int = 0,
) -> bytes:
    """An IPv4 packet with UDP in it, without a checksum of UDP's; or what pretends to be another protocol."""
    udp = struct.pack(">HHHH", source_port, port, 8 + len(data), 0) + data
    words = 5 + len(options) // 4
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, words * 4 + len(udp), 7, offset, 64, kind, 0)
    head += packed(source) + packed(target) + options
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + udp


def frame(target: bytes, source: bytes, data: bytes, kind: int = 0x0800, tag: bytes = b"") -> bytes:
    """An ethernet frame; `tag`: of a VLAN, in front of the type."""
    return target + source + tag + struct.pack(">H", kind) + data


def arp(operation: int, source: bytes, address: str, target: str) -> bytes:
    return struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation) + source + packed(address) + bytes(6) + packed(target)
