"""`agentshim net refresh`: what a policy's names lead to now, in both locks, in /etc/hosts and in the record.

Belongs here: the look, and the change. Next door: `names` resolves, as at the start and as strictly; `hooks.lock` and
`hooks.host` say which grants are which elements. Policy is not read anew: the names are those of the record.

The kernel is compared with what it should have, not with what a record says that it has: a call that was killed is
put right by the next. Before the host's lock is opened, the container's plan is told, which takes back at its end what
is in it: an address that comes round brings nothing along.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from hooks import chains, grants, host, host_state, labels, link, netlink, nft, nft_ask, plan, records
from hooks.grants import address_of
from shim import docker, hostpaths, kernel, names, policy, state, wire
from shim.bundle import Directory
from shim.cold import audit
from shim.cold.network import net_agents, network_source
from shim.dim import invocation, network
from shim.errors import HostError, Invalid, Refused, ShimError, reason
from shim.verbs.lock import of_policy

Element = tuple[str, bytes, bytes]  # set, key, last key
Peer = tuple[str, str, int, int]  # protocol, address, first port, last port
Record = dict[str, Any]
Pins = dict[str, list[str]]
SETS = ("hosts", "outbound")


def main(every: list[Record], directory: str = host_state.DIRECTORY) -> int:
    """Each container; its exit code. What fails for one of several is said, and the others are refreshed."""
    code = 0
    for record in every:
        try:
            for line in refresh(record, directory):
                print(f"{record['id'][:12]} {line}", flush=True)
        except ShimError as error:
            if len(every) == 1:
                raise
            print(f"agentshim: {record['id'][:12]}: {error}", file=sys.stderr)
            code = 1
    return code


def is_named(record: Record) -> bool:
    """Whether names are pinned for a container."""
    return bool((record.get("network") or {}).get("names"))


def refresh(record: Record, directory: str = host_state.DIRECTORY) -> list[str]:
    """Looks up the names of a running container and changes its locks; what has changed, a line each.

    HostError, with all as it was, where a name does not resolve in time or the kernel does not take a change; Refused
    where a name leads to an address that is not public, or the host's, or that a container in the same network may not
    be given.
    """
    if not is_named(record):
        todo = 'there is nothing to refresh: only names are looked up ([network] names = "pin")'
        raise Invalid("network", "CONTAINER", f"{record['id']}, without names", "one whose policy names peers", todo)
    found = _asked(record)  # up to 10 s, and under no lock
    held = host_state.locked(f"{state.DIRECTORY}/lock")
    try:
        return _changed(_still(record), found, directory, held)
    finally:
        os.close(held)


def _asked(record: Record) -> Pins:
    """What the names lead to, as at the start."""
    there = record["network"].get("macvlan")
    ours = [ipaddress.ip_network(there["addresses"])] if there else []
    section = {
        "names": record["network"]["names"],
        "public": [str(block) for block in network_source.public(*ours)],
        "siblings": [str(block) for block in network_source.neighbours()],
    }
    engine = None
    if any("." not in one[1] for one in section["names"]):
        spec = wire.loads(state.asked(record["root"], record["id"]), "network", "config.json")
        assert isinstance(spec, dict)
        sources = kernel.gather(spec, record["bundle"], invocation.BOTTOM).sources
        engine = docker.asked(spec, sources, record["id"])
    return names.resolve(section, kernel.addresses(six=not record.get("address")), engine)  # as at the start


def _still(record: Record) -> Record:
    """The record as it is now; HostError where the container has ended."""
    now = state.load(record["root"], record["id"])
    if now is None or any(now[key] != record[key] for key in ("pid", "started")) or not state.init_of(now):
        raise HostError("network", record["id"], "no process", "a running container", "start it first")
    return now


def _changed(record: Record, found: Pins, directory: str, held: int) -> list[str]:
    """All that is to change, or nothing of it. `held`: the lock of all records."""
    place = f"/proc/{state.init_of(record)}/ns/net"
    before = record["network"]
    with ExitStack() as stack:
        doors = [Door(stack.enter_context(records.opened(place)), "the lock inside")]
        there = _granted(doors[0].kernel, place)
        six = f"{SETS[0]}6" in there
        pins = {name: [one for one in far if six or ":" not in one] for name, far in found.items()}
        section = _section(before, pins)
        doors[0].differ(set().union(*there.values()), set(_wanted(section, SETS[1] in there)))
        agent = before.get("address", "")
        if agent:
            doors.insert(0, Door(stack.enter_context(netlink.Socket(netlink.NETFILTER)), "the host's lock"))
            taken = set(_pinned_there(doors[0].kernel, agent))
            wanted = set(_pinned(agent, section["pinned"]))
            doors[0].differ(taken, wanted)
        others = _others(record, place, section)
        said = _said(record, pins)
        if agent and doors[0].forward:
            _tell_plan(record, directory, taken | wanted, held)
        _done(record, doors, [record, *others], section, held)
    left = sum(len(one) for one in found.values()) - sum(len(one) for one in pins.values())
    more = [f"{left} IPv6 addresses left out: this lock has IPv6 shut"] if left else []
    return [*(said or ["nothing new" + (", repaired" if any(door.forward for door in doors) else "")]), *more]


class Door:
    """One lock: what is to be sent to change it, and to change it back."""

    def __init__(self, kernel: netlink.Socket, name: str) -> None:
        self.kernel = kernel
        self.name = name
        self.forward: list[nft.Message] = []
        self.back: list[nft.Message] = []

    def differ(self, there: set[Element], wanted: set[Element]) -> None:
        """What is there -> what is wanted."""
        self.forward = _messages(there - wanted, wanted - there)
        self.back = _messages(wanted - there, there - wanted)

    def turn(self, messages: list[nft.Message]) -> None:
        """One transaction; HostError."""
        try:
            if messages:
                self.kernel.ask(nft.batch(messages), 1)
        except OSError as error:
            todo = "nothing was changed: try again"
            raise HostError("network", self.name, reason(error), "a lock that can be changed", todo) from error


def _messages(gone: set[Element], new: set[Element]) -> list[nft.Message]:
    ends = [nft.release(labels.TABLE, *one) for one in sorted(gone)]
    return ends + [nft.entry(labels.TABLE, *one) for one in sorted(new)]


def _granted(inside: netlink.Socket, place: str) -> dict[str, set[Element]]:
    """What the lock inside grants, by the sets that it has; HostError where there is none."""
    told = {name: records.elements(inside, name) for name in (*SETS, *(f"{one}6" for one in SETS))}
    if told[SETS[0]] is None:
        raise HostError("network", "namespace", place, "one with our table in it", "create it anew")
    return {name: {(name, *one[:2]) for one in every} for name, every in told.items() if every is not None}


def _wanted(section: Record, ranges: bool) -> Iterator[Element]:
    """What the lock inside is to grant, as `hooks.lock` puts it into sets. `ranges`: whether it has one for them. One
    without conntrack has none: neighbouring ports of an address, which may be of several names, stay apart there.
    """
    for suffix, keys in zip(("", "6"), grants.outbound(section), strict=True):
        hosts, wide = chains.split(keys if ranges else grants.apart(keys))
        yield from ((SETS[0] + suffix, first, b"") for first, _ in hosts)
        yield from ((SETS[1] + suffix, first, last) for first, last in wide)


def _pinned_there(outside: netlink.Socket, agent: str) -> Iterator[Element]:
    """What the host's lock has of it; HostError where it does not know the container."""
    here = address_of(agent)
    known, *told = (records.elements(outside, name) or () for name in ("policies_out", *net_agents.PINNED))
    if all(key != here for key, *_ in known):
        todo = "its rules or its elements are gone: agentshim net up"
        raise HostError("network", "the host's lock", f"nothing of {agent}", "the container's elements", todo)
    for name, every in zip(net_agents.PINNED, told, strict=True):
        yield from ((name, key, last) for key, last, *_ in every if host.address_in(name, key, b"") == here)


def _pinned(agent: str, pinned: Iterable[Any]) -> Iterator[Element]:
    port = link.Port(0, bytes(4), 0, address_of(agent))
    for _, name, key, last, _ in host.entries(port, "", pinned, ()):
        if name in net_agents.PINNED:
            yield name, key, last


def _peers(section: Record, pins: Pins) -> dict[Peer, str]:
    """The grants that names have led to -> the first name of each."""
    found: dict[Peer, str] = {}
    for protocol, name, first, last in section["names"]:
        for address in pins.get(name, ()):
            found.setdefault((protocol, address, first, last), name)
    return found


def _section(before: Record, pins: Pins) -> Record:
    """The record's section with other pins, as `verbs.lock` and `verbs.link` make it."""
    old, new = (_peers(before, one) for one in (before["pins"], pins))
    found = [list(one) for one in new]
    out = [one for one in before["outbound"] if tuple(one) not in old]
    section = {**before, "pins": pins, "outbound": [*out, *found]}
    if "pinned" in before:
        resolvers = before.get("resolvers", ())
        section["pinned"] = found + [[p, one, 53, 53] for one in resolvers for p in network.PROTOCOLS]
    return section


def _others(record: Record, place: str, section: Record) -> list[Record]:
    """Who else is in this network; Refused where one of them may not reach what is opened."""
    namespace = kernel.namespace_of(place.split("/")[2], "network")
    lives = [(one, pid) for one in state.records() if one.get("network") and (pid := state.init_of(one))]
    others = [one for one, pid in lives if kernel.namespace_of(pid, "network") == namespace]
    others = [one for one in others if (one["root"], one["id"]) != (record["root"], record["id"])]
    granted = network.from_policy(of_policy(section))
    for other in (*others, *([record] if record.get("claim") else ())):
        ceiling = network.from_policy(policy.load(other["policy"], policy.config()).sections["network"])
        if not network.leq(granted, ceiling):
            asked = f"what {record['id']} may reach now, for {other['id']} in the same network"
            todo = f"end {other['id']}, or widen its policy"
            raise Refused("network", "refresh", asked, f"what its policy {other['policy']} allows", todo)
    return others


def _said(record: Record, pins: Pins) -> list[str]:
    """What changes, in words; each is in the audit log before it is in the kernel."""
    before, now = (_peers(record["network"], one) for one in (record["network"]["pins"], pins))
    lines = []
    for action, verb, some, rest in (("pin_opened", "may reach", now, before), ("pin_closed", "may not", before, now)):
        for (protocol, address, first, last), name in some.items():
            if (protocol, address, first, last) in rest:
                continue
            far = f"[{address}]" if ":" in address else address
            peer = f"{protocol}:{far}:{first}" + ("" if first == last else f"-{last}")
            audit.write(action, record, peer=peer, why=name)
            lines.append(f"{verb} {peer}, " + ("where" if some is now else "where no longer") + f" {name} leads")
    return lines


def _tell_plan(record: Record, directory: str, pinned: set[Element], held: int) -> None:
    """The plan takes back, at the container's end, all that the host's lock has or is about to have."""
    section = record["network"]
    bridge = host_state.bridge(directory, section["profile"])
    if bridge is None:
        raise HostError("network", section["profile"], "no bridge", "that of the container", "agentshim net up")
    port = link.Port(0, address_of(bridge["gateway"]), 0, address_of(section["address"]))
    fixed = host.entries(port, labels.tag(net_agents.digest_of(record)), (), section["at_host"])
    every = [one[:4] for one in fixed] + [(nft_ask.INET, *one) for one in sorted(pinned)]
    undo = nft.mixed(host.drop(every))
    for file in net_agents.plans_of(Path(record["address"])):
        kept = Directory(str(file.parent))
        try:
            steps = [
                plan.Step(one.room, one.family, one.do, undo, one.acks, one.words) if _is_enter(one) else one
                for one in plan.decode(kept.read(file.name)[0])
            ]
            kept.replace(file.name, plan.encode(steps), os.fstat(held))
        finally:
            os.close(kept.fd)


def _is_enter(step: plan.Step) -> bool:
    """Whether it is the step of `hooks.host.enter`: in the host's netfilter there are only doors beside it."""
    return step.where == plan.HOST and step.family == netlink.NETFILTER and not step.room & plan.WHOLE


def _done(record: Record, doors: list[Door], members: list[Record], section: Record, held: int) -> None:
    """Locks, /etc/hosts, records: each taken back where a later one fails."""
    turned: list[Door] = []
    old = record["network"]["pins"]
    try:
        for door in doors:
            door.turn(door.forward)
            turned.append(door)
        if not state.init_of(record):  # its plan may have been undone already, without what was opened just now
            raise HostError("network", record["id"], "no process", "a running container", "it has just ended")
        for one in members:
            _tell_container(one, section["pins"])
        _keep(members, section, held)
    except BaseException:
        for back in (
            *(partial(door.turn, door.back) for door in reversed(turned)),
            *(partial(_tell_container, one, old) for one in members),
        ):
            with suppress(ShimError):  # each, and the first error is the one to show
                back()
        raise


def _tell_container(record: Record, pins: Pins) -> None:
    """Its /etc/hosts, in place: it is mounted there. HostError where it cannot be written."""
    path = state.hosts_path(record["root"], record["id"])
    if not hostpaths.exists(path):
        return
    lines = names.hosts({}, {}, pins).partition(names.MARK)[2]
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            data = os.pread(fd, 2 * names.MOST_BYTES, 0).partition(names.MARK)[0] + names.MARK + lines
            if os.pwrite(fd, data, 0) != len(data):
                raise OSError(28, "")  # ENOSPC
            os.ftruncate(fd, len(data))
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError("network", path, reason(error), "a writable /run", "make room there") from None


def _keep(members: list[Record], section: Record, held: int) -> None:
    """What was decided, in the record of each who is in this network."""
    changed = {key: section[key] for key in ("pins", "outbound", "pinned") if key in section}
    kept = Directory(state.DIRECTORY)
    try:
        for one in members:
            new = {**one, "network": {**one["network"], **changed}}
            kept.replace(state.name_of(one["root"], one["id"]) + state.RECORD, wire.dumps(new), os.fstat(held))
    finally:
        os.close(kept.fd)
