"""What a network of ours costs per packet: streams, round trips and datagrams, beside a bridge without a filter.

Belongs here: the rows of the group `throughput`. Next door: `network_lab` makes the namespaces, `traffic.c` sends.

How packets are timed. Every host is the same: container, bridge, masquerade, wire, peer; both ends are pinned to a CPU
each. conntrack is at work on all of them, and br_netfilter where the kernel has it. A round trip is mostly two
wake-ups, and a stream goes in segments of 64 KiB, as on any veth pair with its offloads on, as fast as two CPUs copy
them: 5 % of the 11 µs that a segment takes here is 0.55 µs, which is what one more conntrack costs. At the rate of a
link, below what the CPUs could, a stream takes longer only where rules cost more time than the link leaves. The row
that says most of a rule is that of datagrams which nobody reads: all that veth, bridge and rules do runs on the
sender's CPU, and is paid for each datagram. That they arrive is asked of the kernel each time, by which grant before.

Where in memory a host's tables lie can move its packets by 2 % for as long as it lives, and no number of rounds
on it would tell: so hosts are made anew every few rounds.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from conformance.bench import network_docker
from conformance.bench.life import Failed
from conformance.bench.network_lab import (
    FAR,
    OURS,
    PORT,
    Member,
    Net,
    Ours,
    guest,
    hook_of,
    plain,
    scratch,
    section,
    tool,
    wire,
)
from conformance.bench.network_rivals import found
from conformance.bench.turns import Bench, Row, Samples

# What is sent -> title, how much of it (MiB, round trips, datagrams), unit
TRAFFIC: dict[str, tuple[str, int, str]] = {
    "push": ("{} MiB sent by TCP", 32, "x"),
    "fetch": ("{} MiB received by TCP", 32, "x"),
    "link": ("{} MiB sent by TCP at 10 Gbit/s", 32, "x"),
    "tcp": ("round trip, TCP", 1_000, "ns"),
    "udp": ("round trip, UDP", 1_000, "ns"),
    "hole": ("datagram, one way", 100_000, "ns"),
}
# They vary by 10 % from one second to the next, and the limit is at 5: many short samples in turns tell more than a few
# long ones.
OFTEN = {"push": 2, "fetch": 2, "link": 2, "tcp": 6, "udp": 6}
# Hosts -> of [network], how many grants, and whether they are networks; none: no lock
GRANTS = {"ten": (10, False), "thousand": (1000, False), "tenth": (10, True), "ranges": (1000, True)}
NEAR = 1.05  # to a bridge without a filter
# "No more": less than what two runs of the same differ by
NO_MORE = 1.03
# Ours, theirs, limit; PER_PACKET where the packet is all that costs
COMPARED = (("ten", "plain", NEAR), ("ten", "docker", None))
PER_PACKET = (("thousand", "ten", NO_MORE), ("ranges", "tenth", NO_MORE))
BATCH = 3  # rounds on the same hosts


class World:
    """A host, a container behind it that is called the near end, and a peer with the far end of `traffic`."""

    def __init__(self, program: Path, host: Net, near: Member, stack: ExitStack) -> None:
        self.program, self.near = program, near
        self.far = wire(host)
        stack.callback(self.far.close)
        with self.far.inside():
            server = subprocess.Popen([program, "serve", str(PORT)], stdout=subprocess.PIPE)
        stack.callback(_ended, server)
        if server.stdout is None or server.stdout.readline() != b"ready\n":
            raise Failed("traffic serve: it does not listen")

    def send(self, mode: str, amount: int) -> float:
        """What `traffic` says: ns."""
        before = self._arrived()
        with self.near.inside():
            took = float(tool(str(self.program), mode, FAR, str(PORT), str(amount)))
        if mode == "hole" and (there := self._arrived() - before) < amount:
            raise Failed(f"{there} of {amount} datagrams arrive")
        return took

    def _arrived(self) -> int:
        """Packets that the peer's sockets have been given, whether they took them or not."""
        lines = self.far.run("cat", "/proc/net/snmp").splitlines()
        names, values = (line.split() for line in lines if line.startswith("Ip:"))
        return int(dict(zip(names, values, strict=True))["InDelivers"])


def throughput(bench: Bench) -> Iterator[Row]:
    """Through our bridge and both locks, through a bridge without a filter, and through Docker's."""
    if not found("script"):
        return
    bench.where.enter(OURS)
    batches: list[dict[str, Samples]] = []
    with scratch() as folder, ExitStack() as stack:
        program = folder / "traffic"
        tool("cc", "-O2", "-o", str(program), str(Path(__file__).with_name("traffic.c")))
        lasting = _docker(bench, program, stack)
        for begin in range(0, bench.rounds, BATCH):
            batches.append(_batch(bench, folder / str(begin), lasting, min(BATCH, bench.rounds - begin)))
    for mode, (title, _, unit) in TRAFFIC.items():
        samples = _joined([one[mode] for one in batches])
        for ours, theirs, limit in compared(mode):
            yield from bench.row("throughput", title.format(_amount(bench, mode)), samples, ours, theirs, limit, unit)


def compared(mode: str) -> tuple[tuple[str, str, float | None], ...]:
    """Ours, theirs, limit: what is compared by what `traffic` sends."""
    return (*COMPARED, *PER_PACKET) if mode == "hole" else COMPARED


def _batch(bench: Bench, folder: Path, lasting: Mapping[str, World], rounds: int) -> dict[str, Samples]:
    """Rounds of all that is sent, on hosts that are new."""
    folder.mkdir()
    with ExitStack() as stack:
        worlds = {**{name: _world(bench, folder, name, stack) for name in ("plain", *GRANTS)}, **lasting}
        _check(worlds)
        return {mode: _sent(bench, worlds, mode, rounds) for mode in TRAFFIC}


def _sent(bench: Bench, worlds: Mapping[str, World], mode: str, rounds: int) -> Samples:
    amount = _amount(bench, mode)
    per = 1.0 if TRAFFIC[mode][2] == "ns" else 1e6  # a stream's row is in ms

    def one(world: World) -> float:
        return world.send(mode, amount) / per

    named = {name for row in compared(mode) for name in row[:2]}
    samples = {name: partial(one, world) for name, world in worlds.items() if name in named}
    return bench.interleave(samples, rounds * OFTEN.get(mode, 1))


def _amount(bench: Bench, mode: str) -> int:
    return TRAFFIC[mode][1] // (10 if bench.rounds < 10 else 1)


def _joined(batches: list[Samples]) -> Samples:
    """One after the other, of those that never failed."""
    names = [name for name in batches[0] if all(name in one for one in batches)]
    return {name: [took for one in batches for took in one[name]] for name in names}


def _check(worlds: Mapping[str, World]) -> None:
    """That we measure what we say: a lock counts what it lets through, and elsewhere there is none."""
    for name, world in worlds.items():
        world.send("hole", 1000)
        with world.near.inside():
            rules = tool("nft", "list", "ruleset")
        if (f"udp . {FAR} . {PORT + 8} counter packets 1000" in rules) != (name in GRANTS):
            raise Failed(f"{name}: the lock does not tell of 1,000 datagrams: {rules[:200]}")


# Hosts


def _world(bench: Bench, folder: Path, name: str, stack: ExitStack) -> World:
    near = stack.enter_context(guest())
    if name == "plain":
        host = Net()
        plain(host, near)
    else:
        count, wide = GRANTS[name]
        ours = Ours(hook_of(bench.library), folder / name, section(count, wide))
        host = ours.net
        with host.inside():
            ours.join(near)[0]()
    stack.callback(host.close)
    return World(folder.with_name("traffic"), host, near, stack)


def _docker(bench: Bench, program: Path, stack: ExitStack) -> dict[str, World]:
    """The one that lasts: a dockerd takes seconds to start."""
    if network_docker.possible():
        try:
            return {"docker": World(program, *stack.enter_context(network_docker.lodger(bench)), stack)}
        except Failed as failure:
            bench.failures.append(f"docker: {failure}")
    return {}


def _ended(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.communicate()
