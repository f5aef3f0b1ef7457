"""What a network of ours costs: at a container's create and delete, and to build beside others' ways.

Belongs here: the rows of the group `networks`. Next door: `network_packets` has those of `throughput`, `network_lab`
makes hosts, containers and peers out of namespaces, `network_rivals` knows the others' ways, `network_docker` Docker's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from conformance.bench import network_docker, place
from conformance.bench.life import Contender, Failed, timed
from conformance.bench.network_lab import CONFINED, EMPTY, OURS, Net, Ours, guest, hook_of, scratch, section
from conformance.bench.network_rivals import NEEDS, Netavark, Plugins, Script, Way, found
from conformance.bench.turns import AT_ONCE, QUIET, Bench, Row, Samples

CROWD = 200
OFTEN = 40  # 3 ms of a create that varies by 10: many rounds, else no interval is on one side of the limit
LINKS = Path("/run/bench-links")
NAMES = {
    OURS: "agentshim, isolated",
    CONFINED: "agentshim, filtered in place",
    EMPTY: "agentshim, empty network",
    "hook": "agentshim-net",
    "netavark": "netavark",
    "cni": "CNI bridge, firewall, portmap",
    "script": "`ip -batch` + `nft -f`",
    "docker-cell": "agentshim, isolated, in dockerd",
    "docker-open": "agentshim, empty network, in dockerd",
    "docker-bridge": "runc, Docker's bridge",
    "docker-none": "runc, empty network, in dockerd",
    "isolated network": "isolated network",
    "Docker's bridge": "Docker's bridge",
    "plain": "veth bridge, no filter",
    "docker": "Docker's bridge",
    "ten": "10 grants",
    "thousand": "1,000 grants",
    "tenth": "10 networks granted",
    "ranges": "1,000 networks granted",
}
AGAINST = {"netavark": 0.1, "cni": None, "script": None}  # the greatest ratio of ours to each


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
    why = {
        "netavark": "netavark",
        "cni": "CNI",
        "script": "anyone (nor ours)",
        "iptables": "netavark, CNI and Docker's bridge",
        "dockerd": "Docker's bridge",
    }
    return [f"against {why[name]}: install the package {NEEDS[name][1]}" for name in NEEDS if found(name) is None]


# A container's create and delete


def networks(bench: Bench) -> Iterator[Row]:
    """create and delete, the building alone beside others' ways, a crowd, and under dockerd beside its bridge."""
    if not found("script"):
        return
    host = Net()
    with host.inside():
        yield from _created(bench)
    yield from _built(bench)
    with host.inside():
        yield from _crowd(bench, host)
        if network_docker.possible():
            yield from network_docker.started(bench)
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

    samples = bench.interleave({name: partial(one, name) for name in deletes}, bench.rounds * OFTEN, QUIET)
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
    with scratch() as folder, ExitStack() as stack:
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
