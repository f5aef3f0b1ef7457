"""Two network namespaces, a container's and an internet's, joined by a veth: all traffic of these tests stays in them.

Functions run inside by fork and setns, with what they return passed back; servers are forked too, and ended by id.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hooks import plan, records

CONTAINER4, INTERNET4 = "10.99.0.2", "10.99.0.1"
CONTAINER6, INTERNET6 = "fd99::2", "fd99::1"
FAR4, FAR6 = "203.0.113.5", "2001:db8::5"
METADATA = "169.254.169.254"
HOOK = Path(__file__).parents[2] / "native" / "build" / "agentshim-net"
CLONE_NEWNET = 0x40000000
NOBODY = 65534

either = pytest.mark.parametrize("lab", [False, True], ids=["conntrack", "stateless"], indirect=True)

_count = 0


def missing() -> str:
    """What this host lacks for these tests; empty where nothing."""
    if os.geteuid():
        return "NOT ROOT: THE NETWORK LOCK IS NOT TESTED"
    for program in ("nft", "ip", "nsenter", "unshare"):
        if not any((Path(place) / program).exists() for place in ("/usr/sbin", "/usr/bin", "/sbin", "/bin")):
            return f"NO {program} HERE: THE NETWORK LOCK IS NOT TESTED"
    return ""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Lab:
    """`c`, `i`: the names of both namespaces, with this process's id in them. `close` ends all that was started.
    `stateless`: whether `load` makes the lock that stands behind the host's.
    """

    def __init__(self, stateless: bool = False) -> None:
        global _count
        self.stateless = stateless
        _count += 1
        self.c, self.i = f"asc-{os.getpid()}-{_count}", f"asi-{os.getpid()}-{_count}"
        self.children: list[int] = []
        self.made: list[str] = []
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        for name in (self.c, self.i):
            ip("netns", "add", name)
            self.made.append(name)
            self.inside(name, settings)
        ip("-n", self.i, "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", self.c)
        self.batch(
            self.i,
            "link set lo up",
            f"addr add {INTERNET4}/24 dev up0",
            f"addr add {INTERNET6}/64 dev up0 nodad",
            "link set up0 up",
            *(f"route add local {net} dev lo" for net in ("203.0.113.0/24", "198.51.100.0/24", METADATA)),
            "route add local 2001:db8::/32 dev lo",
        )
        self.batch(
            self.c,
            "link set lo up",
            f"addr add {CONTAINER4}/24 dev eth0",
            f"addr add {CONTAINER6}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {INTERNET4}",
            f"route add default via {INTERNET6}",
        )

    def batch(self, name: str, *lines: str) -> None:
        subprocess.run(
            ["ip", "-n", name, "-batch", "-"], input="\n".join(lines), check=True, capture_output=True, text=True
        )

    def close(self) -> None:
        for child in self.children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        self.children.clear()
        for name in self.made:
            ip("netns", "del", name)
        self.made.clear()

    @property
    def path(self) -> str:
        """The container's namespace as a path."""
        return f"/run/netns/{self.c}"

    # Running inside

    def fork(self, name: str, function: Callable[[], Any], uid: int = 0) -> tuple[int, int]:
        """(process, pipe): `function` runs in the namespace, as `uid` and then without capabilities."""
        reader, writer = os.pipe()
        child = os.fork()
        if child:
            os.close(writer)
            return child, reader
        try:
            os.close(reader)
            enter(f"/run/netns/{name}")
            if uid:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            answer: Any = function()
        except BaseException as error:  # handed to the parent, which raises it
            answer = error
        with os.fdopen(writer, "wb") as out:
            out.write(pickle.dumps(answer))
        os._exit(0)

    def inside(self, name: str, function: Callable[[], Any], uid: int = 0) -> Any:
        child, reader = self.fork(name, function, uid)
        return self.result(child, reader)

    def result(self, child: int, reader: int) -> Any:
        with os.fdopen(reader, "rb") as pipe:
            data = pipe.read()
        os.waitpid(child, 0)
        answer = pickle.loads(data)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def serve(self, name: str, *places: tuple[str, str, int], chatter: bool = False) -> None:
        """Echo servers at (protocol, address, port); with `chatter` they also send by themselves, every 50 ms, once
        they were spoken to. Returns when all listen.
        """
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                enter(f"/run/netns/{name}")
                server = Server(places, chatter)
                os.write(writer, b"1")
                server.run()
            except BaseException as error:
                os.write(writer, repr(error).encode())
            os._exit(1)
        self.children.append(child)
        os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            said = pipe.read(200)
        assert said == b"1", said

    # The lock

    def load(self, network: dict[str, Any], **options: Any) -> None:
        """As a container's start does it."""
        from hooks import lock

        make = lock.behind if self.stateless else lock.steps
        steps = make({"mode": "confine", **network}, **options)
        assert ("without conntrack" in steps[0].words) == self.stateless
        self.replay(steps)

    def replay(self, steps: tuple[plan.Step, ...]) -> None:
        with records.opened(self.path) as kernel:
            plan.replay(steps, lambda room, family: kernel)

    def hook(self, steps: tuple[plan.Step, ...], place: Path) -> subprocess.CompletedProcess[str]:
        """The native hook, for a process that is in the container's namespace."""
        place.write_bytes(plan.encode(steps))
        place.chmod(0o600)
        child, reader = self.fork(self.c, lambda: time.sleep(60))
        try:
            wait_until(lambda: os.readlink(f"/proc/{child}/ns/net") != os.readlink("/proc/self/ns/net"))
            state = json.dumps({"ociVersion": "1.0.2", "id": "x", "pid": child, "bundle": "/"})
            return subprocess.run([HOOK, place], input=state, capture_output=True, text=True)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reader)

    def nft(self, *words: str, text: str | None = None) -> str:
        command = ["nsenter", f"--net={self.path}", "nft", *words]
        return subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout

    def rules(self) -> list[Any]:
        """`nft -j list ruleset`, without handles and counts."""
        listed: list[Any] = bare(json.loads(self.nft("-j", "list", "ruleset"))["nftables"][1:])
        return listed

    def rows(self, name: str) -> dict[tuple[str, str, int], tuple[int, int]]:
        return {row[:3]: row[3:] for row in records.read(self.path)[name]}

    # What an agent does

    def tcp(self, address: str, port: int, name: str = "") -> str:
        """'open' where a byte came back, else the error's name, 'late' where it took 100 ms."""
        said: str = self.inside(name or self.c, lambda: tcp(address, port))
        return said

    def udp(self, address: str, port: int, name: str = "") -> str:
        said: str = self.inside(name or self.c, lambda: udp(address, port))
        return said

    def ping(self, address: str, name: str = "") -> str:
        said: str = self.inside(name or self.c, lambda: ping(address))
        return said


def settings() -> None:
    """Ping sockets for everybody; no waiting for duplicates of an address that nobody else has."""
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 65535")
    for which in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{which}/accept_dad").write_text("0")


def enter(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(descriptor)


def bare(value: Any) -> Any:
    """A listing without what differs between two loads of one table."""
    if isinstance(value, dict):
        return {k: bare(v) for k, v in value.items() if k not in ("handle", "packets", "bytes", "expires")}
    return [bare(one) for one in value] if isinstance(value, list) else value


def wait_until(condition: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def attempt(action: Callable[[], bool]) -> str:
    """'open' where `action` got an answer, else why not; refusals that are not at once are 'late'."""
    start = time.monotonic()
    try:
        return "open" if action() else "other"
    except TimeoutError:
        return "silence"
    except OSError as error:
        late = " late" if time.monotonic() - start > 0.1 else ""
        return errno.errorcode.get(error.errno or 0, str(error)) + late


def tcp(address: str, port: int, timeout: float = 1) -> str:
    def go() -> bool:
        with socket.create_connection((address, port), timeout) as made:
            made.sendall(b"x")
            return made.recv(1) == b"x"

    return attempt(go)


def udp(address: str, port: int, timeout: float = 0.5) -> str:
    def go() -> bool:
        with socket.socket(family(address), socket.SOCK_DGRAM) as made:
            made.settimeout(timeout)
            made.connect((address, port))
            made.send(b"x")
            return made.recv(10) == b"x"

    return attempt(go)


def ping(address: str, timeout: float = 0.5) -> str:
    six = ":" in address

    def go() -> bool:
        with socket.socket(family(address), socket.SOCK_DGRAM, 58 if six else 1) as made:
            made.settimeout(timeout)
            made.connect((address, 0))
            made.send((b"\x80" if six else b"\x08") + bytes(7) + b"agentshim")
            return made.recv(100)[:1] == (b"\x81" if six else b"\0")

    return attempt(go)


def spoofed(far: str, far_port: int, port: int) -> str:
    """Make a datagram from `far` to ourselves go over lo, then answer it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((CONTAINER4, port))
        made.settimeout(0.5)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            ends = socket.inet_aton(far) + socket.inet_aton(CONTAINER4)
            head = struct.pack(">BBHHHBBH", 0x45, 0, 0, 7, 0, 64, 17, 0) + ends
            raw.sendto(head + struct.pack(">HHHH", far_port, port, 9, 0) + b"x", (CONTAINER4, 0))
        made.recvfrom(10)
        made.connect((far, far_port))
        time.sleep(0.01)
        return attempt(lambda: made.send(b"x") == 1 and made.recv(1) == b"x")


class Server:
    """One process, all places; see Lab.serve."""

    def __init__(self, places: tuple[tuple[str, str, int], ...], chatter: bool) -> None:
        self.ready = selectors.DefaultSelector()
        self.chatter = chatter
        self.peers: list[Callable[[], Any]] = []
        for protocol, address, port in places:
            kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
            made = socket.socket(family(address), kind)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if ":" in address:
                made.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND: a local route is no address to bind
            made.bind((address, port))
            if protocol == "tcp":
                made.listen(64)
            self.ready.register(made, selectors.EVENT_READ, self._accept if protocol == "tcp" else self._datagram)

    def run(self) -> None:
        while True:
            for key, _ in self.ready.select(0.05):
                key.data(key.fileobj)
            for peer in self.peers if self.chatter else ():
                try:
                    peer()
                except OSError:
                    continue

    def _accept(self, server: socket.socket) -> None:
        made, _ = server.accept()
        made.setblocking(False)
        self.ready.register(made, selectors.EVENT_READ, self._stream)
        self.peers.append(lambda: made.send(b"more\n"))

    def _stream(self, made: socket.socket) -> None:
        try:
            data = made.recv(1 << 16)
            if data:
                made.send(data)
                return
        except OSError:
            pass
        self.ready.unregister(made)
        made.close()

    def _datagram(self, made: socket.socket) -> None:
        try:
            data, peer = made.recvfrom(1 << 16)
            made.sendto(data, peer)
        except OSError:
            return
        if self.chatter:
            self.peers.append(lambda: made.sendto(b"more", peer))
