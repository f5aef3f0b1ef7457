"""Names of peers: resolved on the host when a container starts, and told to it in /etc/hosts.

So a container with names needs no DNS at all: nothing can leave by it, and what a name leads to cannot be changed from
outside after the look. Belongs here: the look, and the file. Next door: `verbs.lock` grants what was found.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # `signal` loads enum: 3 ms
import posix

from shim import bundle, docker, hostpaths, wire
from shim.dim import mounts, network
from shim.errors import HostError, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.lattice import Spec

SECONDS = 10  # for all names of a container; the resolver's own patience is 5 a server
PLACE, RESOLVERS = "/etc/hosts", "/etc/resolv.conf"
MOST_BYTES = 1 << 16  # a pipe holds as much: the child never waits for us
RESOLVER = b"nameserver %s\noptions ndots:0 timeout:2 attempts:2\n"  # where names are learned
MARK = b"# agentshim: the peers that its policy names\n"
LOCAL = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def resolve(section: dict[str, Any], own: list[network.Block], engine: docker.Asked | None) -> dict[str, list[str]]:
    """Name -> its addresses, of the compiled section's `names`. HostError where one does not resolve in time, Refused
    where one leads to an address that is not in `public`, or is the host's `own`: whoever owns the name would choose
    among its neighbours. A name without a dot is that of a sibling on the network that the `engine` makes,
    which nobody else can name: it leads into `siblings`.
    """
    found: dict[str, list[str]] = {}
    wanted = {one[1] for one in section["names"]}
    short = {name for name in wanted if "." not in name}
    near = docker.siblings(engine, short) if engine and short else {}
    far = _asked(sorted(wanted - short)) if wanted - short else {}
    for name in sorted(wanted):
        addresses = near.get(name, []) if name in short else far[name]
        if not addresses:
            todo = "start that service first, on the same network" if name in short else "correct it, or the resolver"
            raise HostError("network", f"outbound {name}", "no address", f"one within {SECONDS} s", todo)
        blocks = [network.block(one) for one in section["siblings" if name in short else "public"]]
        for address in addresses:
            if network.holds(own, address) or not network.holds(blocks, address):
                todo = "grant the address itself in [[network.add]], with why and doc, if it is meant"
                raise Refused("network", f"outbound {name}", address, "public addresses, for a name", todo)
        found[name] = addresses
    return found


def hosts(spec: Spec, sources: dict[str, Any], pins: dict[str, list[str]]) -> bytes:
    """The container's /etc/hosts with the names in it: the engine's own if it mounts one, else a plain one.

    `sources`: what each source of a mount is, as it was classified: of what is not an engine's, or could be exchanged
    by others since, nothing is read.
    """
    told = _engines(spec, sources, PLACE)
    before = told if told is not None and len(told) <= MOST_BYTES else LOCAL
    lines = "".join(f"{address}\t{name}\n" for name, addresses in pins.items() for address in addresses)
    return before.partition(MARK)[0].rstrip(b"\n") + b"\n" + MARK + lines.encode()


def servers(spec: Spec, sources: dict[str, Any], own: list[network.Block]) -> list[str]:
    """Name servers that the engine tells the container of and that are the host's `own` addresses: podman's, which
    answers on its bridge. No other of that file is believed: it is lent writable, and may be kept over a restart.
    """
    told = _engines(spec, sources, RESOLVERS) or b""
    lines = [line.split() for line in told.decode("ascii", "replace").split("\n")]
    named = [line[1] for line in lines if line[:1] == ["nameserver"] and len(line) == 2]
    return [one for one in named if _is_of(one, own)]


def _is_of(text: str, own: list[network.Block]) -> bool:
    try:
        return "/" not in text and network.holds(own, text)
    except (OSError, ValueError):
        return False


def _engines(spec: Spec, sources: dict[str, Any], place: str) -> bytes | None:
    """The file that the engine mounts at `place`; None where there is none, or it is not the engine's alone."""
    found = None
    for mount in spec.get("mounts") or ():
        source = sources.get(mount.get("source") or "")
        if mounts.destination_of(mount) == place and source and source.kind == "engine" and source.steady:
            folder, name = hostpaths.split(source.real)
            found = bundle.Directory(folder, shared=True).read(name)[0]
    return found


def _asked(wanted: list[str]) -> dict[str, list[str]]:
    """A child asks, since nothing stops the C library's resolver but the end of its process."""
    reading, writing = posix.pipe2(posix.O_CLOEXEC)
    child = posix.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        try:
            posix.write(writing, wire.dumps({name: _addresses(name) for name in wanted})[:MOST_BYTES])
        finally:
            posix._exit(0)
    posix.close(writing)
    data = b""
    while chunk := posix.read(reading, MOST_BYTES):
        data += chunk
    posix.close(reading)
    posix.waitpid(child, 0)
    told = wire.loads(data, "network", "names") if data else {}
    return {name: told.get(name) or [] for name in wanted}  # type: ignore[attr-defined]


def _addresses(name: str) -> list[str]:
    from _socket import SOCK_STREAM, getaddrinfo

    try:
        return sorted({str(one[4][0]).partition("%")[0] for one in getaddrinfo(name, None, 0, SOCK_STREAM)})
    except OSError:
        return []
