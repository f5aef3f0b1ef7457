"""Network namespaces for the benchmark: hosts, containers and peers that no cable connects to this machine.

Belongs here: making them, and putting a container on a bridge of ours as its start does. Next door: `network` has the
rows, `network_rivals` the others' ways. A namespace is held by a descriptor, so all of it ends with this process.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.bench import moby
from conformance.bench.life import DEFAULTS, ENVIRONMENT, Failed
from hooks import host, labels, link, lock, plan
from hooks.grants import address_of
from shim.cold.network import net_up

CLONE_NEWNET = 0x40000000
BUSYBOX = "/bin/busybox"
HERE = "/proc/thread-self/ns/net"
# agentshim's contenders; the first is also the name of the mount namespace of all three
OURS, CONFINED, EMPTY = "shim-cell", "shim-confined", "shim-open"
NAME = "bench"  # of the profile: the bridge is as-bench
DIGEST = "sha256:" + "be" * 32
FAR, FAR_HOST = "198.51.100.2", "198.51.100.1"  # a peer, and the host's address on its wire
PORT = 7000  # and every second one behind it, in the order of traffic.c: grants of neighbours would become one range
MODES = {"push": "tcp", "fetch": "tcp", "tcp": "tcp", "udp": "udp", "hole": "udp", "link": "tcp"}
PUBLISHED = ["127.0.0.1", 8080, 80, "tcp"]
INBOUND = [["tcp", 80, 80]]  # what the lock inside must let through of it
FEW = 10
MASQUERADE = """table ip nat {
    chain out {
        type nat hook postrouting priority 100
        ip saddr 10.99.0.0/22 oifname != "br0" masquerade
    }
}
"""

_libc = ctypes.CDLL(None, use_errno=True)


class Net:
    """A network namespace of our own, with lo up."""

    def __init__(self) -> None:
        with _unshared():
            self.fd = os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)
            tool("ip", "link", "set", "lo", "up")

    @property
    def path(self) -> str:
        """For programs that we start."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, and what it starts, is in the namespace meanwhile."""
        with _back():
            _setns(self.fd)
            yield

    def run(self, *argv: str, text: str = "") -> str:
        """A tool's output. Failed where it fails."""
        with self.inside():
            return tool(*argv, text=text)

    def batch(self, *lines: str) -> None:
        """Lines for ip(8)."""
        self.run("ip", "-batch", "-", text="\n".join(lines) + "\n")

    def close(self) -> None:
        os.close(self.fd)


class Member:
    """A process that has a network namespace of its own: a container's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.path = f"/proc/{pid}/ns/net"

    @contextmanager
    def inside(self) -> Iterator[None]:
        there = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        with _back():
            _setns(there)
            os.close(there)
            yield


class Guest(Member):
    """One of ours: it sleeps, lo down, as a container's init is found by the hook."""

    def __init__(self) -> None:
        with _unshared():
            super().__init__(os.posix_spawn(BUSYBOX, ["sleep", "3600"], {}))

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def tool(*argv: str, text: str = "") -> str:
    """One of the host's programs. Failed where it fails."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        raise Failed(f"{' '.join(argv)}: {(done.stderr.splitlines() or ['(silent)'])[-1]}")
    return done.stdout


@dataclass(frozen=True)
class Call:
    """A program that is to be run, started as cheaply as can be; what it says goes to `errors`, or its stdout to
    `said`.
    """

    argv: list[str]
    stdin: Path
    errors: Path
    more: dict[str, str]
    said: Path | None = None

    def __call__(self) -> None:
        """Raises Failed."""
        new = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        files: list[Any] = [
            (os.POSIX_SPAWN_OPEN, 0, str(self.stdin), os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, str(self.errors), new, 0o600),
            (os.POSIX_SPAWN_OPEN, 1, str(self.said), new, 0o600) if self.said else (os.POSIX_SPAWN_DUP2, 2, 1),
        ]
        environment = {**ENVIRONMENT, **self.more}
        pid = os.posix_spawn(self.argv[0], self.argv, environment, file_actions=files, setsigdef=DEFAULTS)
        if (code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) != 0:
            last = [file.read_text(errors="replace").strip()[-300:] for file in (self.errors, self.said) if file]
            raise Failed(f"{' '.join(self.argv)}: exit {code}: {' '.join(last)}")


@contextmanager
def guest() -> Iterator[Guest]:
    """A container's namespace for one sample."""
    made = Guest()
    try:
        yield made
    finally:
        made.close()


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory of ours alone: /run is."""
    made = Path("/run/bench-networks")
    tool("rm", "-rf", str(made))
    made.mkdir(mode=0o700)
    yield made


# Hosts


def section(grants: int = FEW, wide: bool = False, publish: bool = False) -> dict[str, Any]:
    """[network] of a compiled policy with `grants` grants, those of the peer that is there among them; `wide`: networks
    of 16 addresses, else single ones.
    """
    near = [[p, f"{FAR}/28", PORT, PORT + 2 * len(MODES)] for p in ("tcp", "udp")]
    if not wide:
        near = [[p, FAR, PORT + 2 * n, PORT + 2 * n] for n, p in enumerate(MODES.values())]
    more = range(grants - len(near))
    others = [["tcp", f"198.18.{n >> 4}.{(n & 15) << 4}{'/28' if wide else ''}", 443, 443] for n in more]
    return {
        "mode": "isolated",
        "outbound": [*others, *near],
        "inbound": [],
        "dns": False,
        "icmp": False,
        "publish": [PUBLISHED] if publish else [],
    }


class Ours:
    """A host with a bridge of ours, and containers put on it by the hook that a create runs."""

    def __init__(self, hook: Path, folder: Path, grants: dict[str, Any]) -> None:
        """`grants`: the policy's; a container that is to publish wants a `publish` there."""
        self.hook, self.folder, self.section = hook, folder, grants
        self.net = Net()
        folder.mkdir(mode=0o700)
        with self.net.inside():
            self.bridge = net_up.up(NAME, grants, DIGEST, str(folder / "net"), told=lambda _: None)
        self.count = 1  # of addresses: the first is the gateway's

    def address(self) -> bytes:
        """The next one that is free."""
        self.count += 1
        return (int.from_bytes(address_of(self.bridge["gateway"]), "big") + self.count - 1).to_bytes(4, "big")

    def join(self, guest: Guest, published: bool = False) -> tuple[Call, Call]:
        """The hook's two calls for a new container, ready to be run: its network is built, and taken back."""
        packed = self.address()
        port = link.Port(self.bridge["index"], address_of(self.bridge["gateway"]), self.bridge["prefix"], packed)
        doors = host.doors(port, self.section["publish"] if published else ())
        enter = (host.enter(port, self.bridge["tag"]), *doors)
        name = f"plan-{self.count}"
        state, lease, script = (self.folder / f"{name}.{kind}" for kind in ("state", "lease", "plan"))
        inside = {**self.section, "inbound": INBOUND if published else [], "address": labels.dotted(packed)}
        steps = (*lock.behind(inside), *enter, *link.steps(port))
        script.write_bytes(plan.encode(steps))
        state.write_text(json.dumps({"ociVersion": "1.0.2", "id": name, "pid": guest.pid, "bundle": "/"}))
        lease.write_text(f"{name}\n")
        words = [str(self.hook), str(script)]
        errors = self.folder / "said"
        return Call(words, state, errors, {}), Call([*words, "undo", str(lease)], state, errors, {})

    def elements(self) -> int:
        """How many elements containers have in the host's lock."""
        told = json.loads(self.net.run("nft", "-j", "list", "ruleset"))["nftables"]
        every = [one.get("set") or one.get("map") for one in told]
        return sum(len(one.get("elem", ())) for one in every if one and not one["name"].startswith(("hosts_", "nets_")))


def wire(net: Net) -> Net:
    """A peer behind a host, on a wire of its own; it knows nobody but the host's address on that wire."""
    peer = Net()
    net.batch(
        f"link add out type veth peer name eth0 netns {peer.path}",
        f"address add {FAR_HOST}/24 dev out",
        "link set out up",
    )
    peer.batch(f"address add {FAR}/24 dev eth0", "link set eth0 up")
    return peer


def plain(net: Net, guest: Guest) -> None:
    """What ours is compared with: the same topology with a bridge as ip(8) makes it, a masquerade, and no filter."""
    net.batch(
        "link add br0 type bridge",
        "address add 10.99.0.1/22 dev br0",
        "link set br0 up",
        f"link add av0 type veth peer name eth0 netns {guest.pid}",
        "link set av0 master br0 up",
    )
    with net.inside():
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    net.run("nft", "-f", "-", text=MASQUERADE)
    lines = (
        "link set lo up",
        "address add 10.99.0.2/22 dev eth0",
        "link set eth0 up",
        "route add default via 10.99.0.1",
    )
    with guest.inside():
        tool("ip", "-batch", "-", text="\n".join(lines) + "\n")


def hook_of(library: Path) -> Path:
    """The native hook that belongs to an installed library, or to the tree."""
    installed = library / "agentshim-net"
    return installed if installed.is_file() else moby.REPOSITORY / "native" / "build" / "agentshim-net"


@contextmanager
def _back() -> Iterator[None]:
    """This thread returns to the network namespace in which it is now."""
    home = os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _setns(home)
        os.close(home)


@contextmanager
def _unshared() -> Iterator[None]:
    """This thread is in a new network namespace meanwhile."""
    with _back():
        if _libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare of a network namespace")
        yield


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns to a network namespace")
