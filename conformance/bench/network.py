"""What a network of ours costs: at a container's create and delete, to build beside others' ways, and per packet.

Belongs here: the rows of the groups `networks` and `throughput`. Next door: `network_lab` makes hosts, containers and
peers out of namespaces, `network_rivals` knows the others' ways, `traffic.c` sends.

How packets are timed. Every host is the same: container, bridge, masquerade, wire, peer; both ends are pinned to a CPU
each. A round trip is mostly two wake-ups, and a stream goes in segments of up to 64 KiB, as on any veth pair with its
offloads on: so both say little of a rule's cost. The row that does is that of datagrams which nobody reads: all veth,
bridge and rules runs on the sender's CPU. That they arrive, and by which grant, is asked of the kernel first.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from conformance.bench import place
from conformance.bench.life import Contender, Failed, timed
from conformance.bench.network_lab import FAR, PORT, Net, Ours, guest, hook_of, plain, section, tool, wire
from conformance.bench.network_rivals import NEEDS, Netavark, Plugins, Script, Way, found
from conformance.bench.turns import AT_ONCE, QUIET, Bench, Row, Samples

CROWD = 200
# Contenders; the first is also the name of the mount namespace of all three
OURS, CONFINED, EMPTY = "shim-cell", "shim-confined", "shim-open"
LINKS = Path("/run/bench-links")
NAMES = {
    OURS: "agentshim, isolated",
    CONFINED: "agentshim, filtered in place",
    EMPTY: "agentshim, empty network",
    "hook": "agentshim-net",
    "netavark": "netavark",
    "cni": "CNI bridge, firewall, portmap",
    "script": "`ip -batch` + `nft -f`",
    "plain": "veth bridge, no filter",
    "ten": "10 grants",
    "thousand": "1,000 grants",
    "tenth": "10 networks granted",
    "ranges": "1,000 networks granted",
}
AGAINST = {"netavark": 0.1, "cni": None, "script": None}  # the greatest ratio of ours to each
# What is sent -> title, how much of it (MiB, round trips, datagrams), unit, limit against the bridge without a filter
TRAFFIC: dict[str, tuple[str, int, str, float | None]] = {
    "push": ("{} MiB sent by TCP", 1024, "x", 1.05),
    "fetch": ("{} MiB received by TCP", 1024, "x", 1.05),
    "tcp": ("round trip, TCP", 10_000, "ns", 1.05),
    "udp": ("round trip, UDP", 10_000, "ns", 1.05),
    "hole": ("datagram, one way", 200_000, "ns", None),
}
GRANTS = ("udp", "hole")  # with which 1,000 grants are compared with 10
# "No more": less than what two runs of the same differ by
NO_MORE = 1.03


def contenders(where: place.Place, ours: Contender, delegate: str) -> dict[str, Contender]:
    """agentshim under three host policies, chosen by the name that it is called by: with a network of ours, with one
    that is filtered where it is, and with one that stays as it is, empty. One namespace for all: several files of
    configuration in turn would be compiled each time.
    """
    peers = ", ".join(f'"tcp:203.0.113.{n}:443"' for n in range(1, 11))
    asks = {
        "cell": f'mode = "isolated"\noutbound = [{peers}]\n',
        "confined": f'mode = "confine"\noutbound = [{peers}]\ninbound = ["tcp:8080"]\n',
        "open": 'mode = "engine"\n',
    }
    head = 'schema = 1\nname = "{0}"\nabout = "what agent is, but for its network"\nbase = "agent"\n[network]\n'
    text = {name: head.format(name) + rest for name, rest in asks.items()}
    config = f'delegate = "{delegate}"\ndefault = "cell"\nnames = {json.dumps(list(text))}\n'
    where.furnish(OURS, config, ("cell", text["cell"]))
    for policy in text:
        (place.SETTINGS / "policies" / f"{policy}.toml").write_text(text[policy])
    LINKS.mkdir()
    made = {}
    for policy in asks:
        link = LINKS / f"agentshim-{policy}"
        link.symlink_to(ours.program)
        name = f"shim-{policy}"
        made[name] = replace(ours, name=name, program=str(link), root=ours.root.with_name(name), place=OURS)
    return made


def absent() -> list[str]:
    """What cannot be compared here, and which package would bring it: lines for the table."""
    why = {"netavark": "netavark", "cni": "CNI", "script": "anyone (nor ours)", "iptables": "netavark and CNI"}
    return [f"against {why[name]}: install the package {NEEDS[name][1]}" for name in NEEDS if found(name) is None]


# A container's create and delete


def networks(bench: Bench) -> Iterator[Row]:
    """create and delete, the building alone beside others' ways, and a crowd."""
    if not found("script"):
        return
    host = Net()
    with host.inside():
        yield from _created(bench)
    yield from _built(bench)
    with host.inside():
        yield from _crowd(bench, host)
    host.close()


def _created(bench: Bench) -> Iterator[Row]:
    deletes: Samples = {OURS: [], CONFINED: [], EMPTY: []}

    def one(name: str) -> float:
        container = bench.fresh(name)
        try:
            took = timed(container.create)
            container.start()
            container.wait()
            deletes[name].append(timed(container.delete))
            return took
        finally:
            container.discard()

    samples = bench.interleave({name: partial(one, name) for name in deletes}, bench.rounds, QUIET)
    ends = {name: deletes[name][1:] for name in samples}
    for name, what in ((OURS, "isolated network"), (CONFINED, "network filtered in place")):
        yield from bench.row("networks", f"`create`, {what}", samples, name, EMPTY, 3, "ms")
        yield from bench.row("networks", f"`delete`, {what}", ends, name, EMPTY, 1, "ms")


def _crowd(bench: Bench, host: Net) -> Iterator[Row]:
    """Lives in batches that take turns, as in `rows.crowd`; what they leave is a failure, too."""
    batches = 5 if bench.rounds >= 10 else 2
    size = CROWD // batches if bench.rounds >= 10 else 16

    samples = bench.interleave({name: partial(bench.crowd, name, size) for name in (OURS, EMPTY)}, batches)
    title = f"{batches * size} lives with an isolated network, {AT_ONCE} at a time"
    yield from bench.row("networks", title, samples, OURS, EMPTY, None, "rate")
    bench.where.enter(OURS)
    left = [path.name for path in Path("/run/agentshim/net/cell/addresses").iterdir() if path.name[0] != "."]
    listed = [line for line in host.run("nft", "list", "set", "bridge", "agentshim", "ports").split() if "av" in line]
    if left or listed:
        raise Failed(f"lives that ended left the addresses {left}, the elements {listed}")


# The building alone


def _built(bench: Bench) -> Iterator[Row]:
    """Networks for namespaces that are there: what an engine waits for, from the start of the program to its end."""
    bench.where.enter(OURS)
    with _folder() as folder, ExitStack() as stack:
        ways = _ways(bench, folder)
        for way in ways.values():
            stack.callback(way.net.close)
            member = stack.enter_context(guest())  # stays, and with it the bridge
            with way.net.inside():
                way.join(member)[0]()
        for published in (False, True):
            yield from _turns(bench, ways, published)


def _ways(bench: Bench, folder: Path) -> dict[str, Way]:
    hook, grants = hook_of(bench.library), section(publish=True)
    ways: dict[str, Way] = {
        "hook": Ours(hook, folder / "hook", grants),
        "script": Script(hook, folder / "script", grants),
    }
    if found("iptables") and found("netavark"):
        ways["netavark"] = Netavark(folder / "netavark")
    if found("iptables") and found("cni"):
        ways["cni"] = Plugins(folder / "cni")
    return ways


def _turns(bench: Bench, ways: Mapping[str, Way], published: bool) -> Iterator[Row]:
    ends: Samples = {name: [] for name in ways}

    def one(name: str) -> float:
        way = ways[name]
        with guest() as member, way.net.inside():
            build, end = way.join(member, published)
            took = timed(build)
            ends[name].append(timed(end))
            return took

    samples = bench.interleave({name: partial(one, name) for name in ways}, bench.rounds, QUIET)
    port = ", a port published" if published else ""
    for title, taken in (("network built", samples), ("network taken back", {k: ends[k][1:] for k in samples})):
        for name, limit in AGAINST.items():
            if name in samples:
                yield from bench.row("networks", title + port, taken, "hook", name, limit)


# Packets


class World:
    """A host, a container behind it that is called the near end, and a peer with the far end of `traffic`."""

    def __init__(self, bench: Bench, folder: Path, name: str, stack: ExitStack) -> None:
        self.program = folder / "traffic"
        self.near = stack.enter_context(guest())
        net = self._host(bench, folder / name, name)
        stack.callback(net.close)
        self.far = wire(net)
        stack.callback(self.far.close)
        with self.far.inside():
            server = subprocess.Popen([self.program, "serve", str(PORT)], stdout=subprocess.PIPE)
        stack.callback(_ended, server)
        if server.stdout is None or server.stdout.readline() != b"ready\n":
            raise Failed("traffic serve: it does not listen")

    def _host(self, bench: Bench, folder: Path, name: str) -> Net:
        if name == "plain":
            net = Net()
            plain(net, self.near)
            return net
        grants = section(10 if name in ("ten", "tenth") else 1000, wide=name in ("tenth", "ranges"))
        ours = Ours(hook_of(bench.library), folder, grants)
        with ours.net.inside():
            ours.join(self.near)[0]()
        return ours.net

    def send(self, mode: str, amount: int) -> float:
        """What `traffic` says: ns."""
        with self.near.inside():
            return float(tool(str(self.program), mode, FAR, str(PORT), str(amount)))

    def arrived(self) -> int:
        """Packets that the peer's sockets have been given, whether they took them or not."""
        lines = self.far.run("cat", "/proc/net/snmp").splitlines()
        names, values = (line.split() for line in lines if line.startswith("Ip:"))
        return int(dict(zip(names, values, strict=True))["InDelivers"])


def throughput(bench: Bench) -> Iterator[Row]:
    """Streams, round trips and datagrams through our bridge and both locks, and through a bridge without a filter."""
    if not found("script"):
        return
    bench.where.enter(OURS)
    with _folder() as folder, ExitStack() as stack:
        _build(folder)
        worlds = {name: World(bench, folder, name, stack) for name in ("plain", "ten", "thousand", "tenth", "ranges")}
        _check(worlds)
        small = 10 if bench.rounds < 10 else 1
        for mode, (title, amount, unit, limit) in TRAFFIC.items():
            amount //= small
            per = 1e6 if unit == "x" else 1.0  # a stream's row is in ms

            def one(world: World, mode: str = mode, amount: int = amount, per: float = per) -> float:
                return world.send(mode, amount) / per

            compared = worlds if mode in GRANTS else {name: worlds[name] for name in ("plain", "ten")}
            samples = bench.interleave({name: partial(one, world) for name, world in compared.items()}, bench.rounds)
            title = title.format(amount)
            yield from bench.row("throughput", title, samples, "ten", "plain", limit, unit)
            if mode in GRANTS:
                yield from bench.row("throughput", title, samples, "thousand", "ten", NO_MORE, unit)
                yield from bench.row("throughput", title, samples, "ranges", "tenth", None, unit)


def _check(worlds: Mapping[str, World]) -> None:
    """That we measure what we say: datagrams arrive, and by a grant where there is a lock."""
    for name, world in worlds.items():
        before = world.arrived()
        world.send("hole", 1000)
        if world.arrived() - before < 1000:
            raise Failed(f"{name}: {world.arrived() - before} of 1,000 datagrams arrive")
        with world.near.inside():
            rules = tool("nft", "list", "ruleset")
        if (f"udp . {FAR} . {PORT + 8} counter packets 1000" in rules) == (name == "plain"):
            raise Failed(f"{name}: the lock does not tell of 1,000 datagrams: {rules[:200]}")


def _build(folder: Path) -> None:
    source = Path(__file__).with_name("traffic.c")
    tool("cc", "-O2", "-o", str(folder / "traffic"), str(source))


def _ended(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.communicate()


@contextmanager
def _folder() -> Iterator[Path]:
    """Ours alone: /run is."""
    folder = Path("/run/bench-networks")
    tool("rm", "-rf", str(folder))
    folder.mkdir(mode=0o700)
    yield folder
