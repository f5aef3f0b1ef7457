"""A small world of network namespaces: a host, an internet (203.0.113.5 and .6, and a cloud's metadata service) and a
LAN (192.168.77.2) around it.

Belongs here: who is where, and what answers. agentshim, or an engine, is called where the host is; no packet leaves
these namespaces, and the machine's own has none of their interfaces, routes or rules. Next door: `room`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from conformance.engines.images import tool
from conformance.room import Result, Room

GRANTED, OTHER = "203.0.113.5", "203.0.113.6"  # the internet's: TCP and UDP 8080 and 8081, an echo
METADATA = "169.254.169.254"  # TCP and UDP 80, an echo
NEIGHBOUR, ENGINES = "192.168.77.2", "172.17.0.1"  # the LAN's 8080; the host on an engine's bridge
HOST, HOST_ON_LAN = "198.51.100.1", "192.168.77.1"  # the host, which listens at 9000 and 9001 everywhere
SERVER = """import selectors, socket, sys
wait = selectors.DefaultSelector()
address, *ports = sys.argv[1:]
for port in map(int, ports):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind == socket.SOCK_DGRAM and ":" not in address: one.setsockopt(0, 8, 1)  # IP_PKTINFO
        one.bind((address, port))
        if kind == socket.SOCK_STREAM: one.listen(64)
        wait.register(one, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in wait.select():
        one = key.fileobj
        if one.type == socket.SOCK_DGRAM:
            data, about, _, peer = one.recvmsg(2048, 64)  # answered from where it was sent to
            one.sendmsg([b"echo " + data], [(*kind, bytes(4) + told[4:]) for *kind, told in about], 0, peer)
        elif one.getsockname()[1] and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            wait.register(one.accept()[0], selectors.EVENT_READ)
        else:
            try: data = one.recv(2048)
            except OSError: data = b""
            if data: one.send(b"echo " + data)
            else: wait.unregister(one); one.close()
"""
FETCH = """import socket, sys
one = socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)
one.sendall(b"hi\\n"); one.shutdown(socket.SHUT_WR)
sys.stdout.write(one.recv(99).decode())
"""


def serving(room: Room, place: str, *ports: int, address: str = "0.0.0.0") -> subprocess.Popen[str]:
    """Who answers TCP and UDP in a network namespace, by its path, and listens by now."""
    argv = ["nsenter", f"--net={place}", sys.executable, "-c", SERVER, address, *map(str, ports)]
    server = room.popen(argv, stdout=subprocess.PIPE)
    assert server.stdout and server.stdout.readline() == "ready\n"
    return server


class World:
    """Namespaces: `host`, where agentshim is called, and who is around it."""

    def __init__(self, room: Room, name: str) -> None:
        self.room = room
        self.host, self.outside, self.lan = f"{name}h", f"{name}o", f"{name}l"
        self.servers: list[subprocess.Popen[str]] = []
        for one in (self.host, self.outside, self.lan):
            self.ip("netns", "add", one)
            self.ip("-n", one, "link", "set", "lo", "up")
        self._wire(self.outside, "out", "198.51.100")
        self._wire(self.lan, "lan", "192.168.77")
        for address in (GRANTED, OTHER, METADATA):
            self.ip("-n", self.outside, "address", "add", f"{address}/32", "dev", "lo")
        self.ip("-n", self.host, "route", "add", "default", "via", "198.51.100.2")
        self.ip("-n", self.host, "link", "add", "docker0", "type", "bridge")
        self.ip("-n", self.host, "address", "add", f"{ENGINES}/16", "dev", "docker0")
        self.ip("-n", self.host, "link", "set", "docker0", "up")
        self.serve(self.host, 9000, 9001)
        self.serve(self.outside, 8080, 8081)
        self.serve(self.outside, 80, address=METADATA)
        self.serve(self.lan, 8080)

    def _wire(self, to: str, name: str, net: str) -> None:
        self.ip("-n", self.host, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", to)
        for place, device, last in ((self.host, name, 1), (to, "eth0", 2)):
            self.ip("-n", place, "address", "add", f"{net}.{last}/24", "dev", device)
            self.ip("-n", place, "link", "set", device, "up")

    def ip(self, *words: str) -> None:
        done = self.room.run([tool("ip"), *words])
        assert done.code == 0, str(done)

    def inside(self, place: str, *argv: str, **how: Any) -> Result:
        return self.room.run(["nsenter", f"--net=/run/netns/{place}", *argv], **how)

    def serve(self, place: str, *ports: int, address: str = "0.0.0.0") -> None:
        self.servers.append(serving(self.room, f"/run/netns/{place}", *ports, address=address))

    def fetch(self, place: str, address: str, port: int) -> Result:
        """What a TCP server answers to somebody in a namespace."""
        return self.inside(place, sys.executable, "-c", FETCH, address, str(port))

    def rules(self) -> str:
        return self.inside(self.host, tool("nft"), "list", "ruleset").out

    def elements(self) -> list[str]:
        """What sets and maps of the host hold for containers."""
        told = json.loads(self.inside(self.host, tool("nft"), "-j", "list", "ruleset").out)["nftables"]
        every = [one.get("set") or one.get("map") for one in told]
        others = ("flows", "denied", "refused", "hosts_", "nets_", "learned_")  # records, and elements of policies
        found = [one for one in every if one and not one["name"].startswith(others)]
        return [f"{one['name']} {key}" for one in found for key in one.get("elem", ())]

    def ports(self) -> list[str]:
        """The host's ends of links."""
        told = json.loads(self.inside(self.host, tool("ip"), "-j", "link").out)
        return [one["ifname"] for one in told if one["ifname"].startswith("av")]

    def end(self) -> None:
        for one in self.servers:
            one.kill()
            one.communicate()
        for name in (self.host, self.outside, self.lan):
            self.room.run([tool("ip"), "netns", "delete", name])


class Inside(Room):
    """The same room, where all that is run sees a network namespace, by its name, as the host's."""

    def __init__(self, room: Room, name: str) -> None:
        super().__init__(room.base, room._fd)
        self._place = f"--net=/run/netns/{name}"

    def popen(self, argv: Sequence[str], **how: Any) -> subprocess.Popen[str]:
        return super().popen(["nsenter", self._place, *argv], **how)
