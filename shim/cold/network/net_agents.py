"""Who is on our bridges, and what the host's lock holds for them: owners of addresses, elements there and lacking.

Belongs here: the look at records, addresses, plans and sets; and putting back what somebody else has removed (nft flush
ruleset, a firewall that is loaded anew). Next door: `net_up` loads the rules first; `net_down` ends what nobody has.

What is put back is in the container's plan, whose second call takes it back at the end; of what its names led to, only
what `net refresh` has left open. Leases are in no plan: those that were lost stay so. What learned names led to is the
resolver's to add again, with its next answers.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from hooks import host, host_state, labels, link, netlink, nft, nft_ask, nft_read, plan
from hooks import records as sets
from hooks.attributes import attributes, string
from hooks.grants import address_of
from shim import state as records
from shim.bundle import Directory
from shim.cold import audit
from shim.errors import ShimError, reason

Element = tuple[int, str, bytes, bytes]  # family, set, key, last key
Told = Callable[[str], None]
PINNED = ("pinned", "pinned_wide")


class Agent(NamedTuple):
    """A container that is on a bridge: `file` keeps its address."""

    record: dict[str, Any]
    address: bytes
    file: Path

    @property
    def name(self) -> str:
        """As people call it."""
        return str(self.record["id"])[:12]


class Entry(NamedTuple):
    """What an element holds, the name of a chain or fields, and what makes it."""

    data: bytes
    message: nft.Message


def alive() -> set[str]:
    """Who has an address and is there, or on its way: the name of its record, as hooks.host_state.take is given it; of
    those that joined a network the claim, which tells a container from another one of that name.
    """
    every = [one for one in records.records() if one.get("address")]
    return {str(one.get("claim") or records.name_of(one["root"], one["id"])) for one in every}


def owners(directory: str, profile: str, living: Callable[[], set[str]]) -> dict[str, bool]:
    """The addresses of a bridge that are taken -> whether by somebody who lives, be it one that joined."""
    return {name: any(one.values()) for name, one in holders(directory, profile, living).items()}


def holders(directory: str, profile: str, living: Callable[[], set[str]]) -> dict[str, dict[Path, bool]]:
    """The addresses of a bridge that are taken -> its file and the claims on it -> whether its owner, or who joined,
    lives.
    """
    place = Path(directory, profile, host_state.ADDRESSES)
    files = [path for path in sorted(place.glob("[0-9]*")) if path.suffix != host_state.LEASED]
    taken = {
        file.name: {file: _owner(file)} | {Path(one): _claimant(one) for one in host_state.claims(str(file))}
        for file in files
    }
    # Who takes an address writes its record before it ends: asked in this order, one of both is seen.
    names = living() if taken else set()
    return {
        name: {path: is_running or owner in names for path, (owner, is_running) in one.items()}
        for name, one in taken.items()
    }


def let_go(file: Path, parts: dict[Path, bool]) -> None:
    """Ends what the dead have of an address, as native/nethook.c does: claims, the plan, the address. Under `hold`."""
    claims = {path: lives for path, lives in parts.items() if path != file}
    gone = [path for path, lives in claims.items() if not lives]
    gone += [] if any(claims.values()) else [plan_of(file)]
    for path in (*gone, *([] if any(parts.values()) else [file])):
        path.unlink(missing_ok=True)
    if not parts[file] and any(claims.values()):
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.pwrite(fd, host_state.ENDED.encode(), 0)
        finally:
            os.close(fd)


def strays(place: Path, taken: Collection[str]) -> list[Path]:
    """What a kill has left of those who joined, in the directory of a profile, where the address is nobody's."""
    return [path for path in (place / host_state.MEMBERS).glob("*") if ".".join(path.name.split(".")[:4]) not in taken]


def digest_of(record: dict[str, Any]) -> str:
    """Of the policy that a container's network was made for: of its own, or of the one whose network it joined."""
    return str((record.get("network") or {}).get("digest") or record["digest"])


def plan_of(file: Path) -> Path:
    """Where the plan of an address is for those who joined."""
    return Path(host_state.members_of(str(file)), file.name + records.LOCK)


def plans_of(file: Path) -> list[Path]:
    """The plans of those in the network of an address: its owner's, while that lives, and that of whoever joined."""
    own = Path(records.DIRECTORY, _owner(file)[0] + records.LOCK)
    return [path for path in (own, plan_of(file)) if path.exists()]


def _claimant(claim: str) -> tuple[str, bool]:
    """As `_owner`, where the claim itself is the name."""
    _, pid, started = host_state.claimant(claim)
    return claim, host_state.started(pid) == int(started) != 0


def _owner(path: Path) -> tuple[str, bool]:
    """Whose record it is, and whether the process that took the address is still there."""
    try:
        name, pid, started = host_state.owner(str(path))
        return name, host_state.started(pid) == int(started) != 0 and not name.startswith(host_state.ENDED)
    except FileNotFoundError:
        return "", False
    except (OSError, ValueError):
        return "", True  # in doubt: not ours to free


def hold(path: Path) -> int | None:
    """An address's file, locked: a poststop hook that comes late waits. None where one was faster."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    fcntl.flock(fd, fcntl.LOCK_EX)
    if os.fstat(fd).st_nlink == 0:  # it was released while we waited
        os.close(fd)
        return None
    return fd


def elements(kernel: netlink.Socket, subnet: ipaddress.IPv4Network | None = None) -> list[tuple[Element, bytes]]:
    """All elements of agents in a subnet (of all where it is None), with the data of those of maps."""
    found = []
    for family, name in host.ELEMENTS:
        try:
            told = nft_read.entries(kernel.dump(nft_ask.list_elements(labels.TABLE, name, family)))
        except FileNotFoundError:
            continue  # no table
        for (key, last), data in told.items():
            if subnet is None or ipaddress.IPv4Address(host.address_in(name, key, data)) in subnet:
                found.append(((family, name, key, last), data))
    return found


def agents(directory: str) -> list[Agent]:
    """The containers on our bridges that run: who has stopped needs nothing, whatever he still has.

    The interface tells that the hook has done its steps, elements first: of one on its way they are not put in before
    it, which would find them taken.
    """
    found: dict[Path, Agent] = {}
    for record in records.records():
        file = Path(str(record.get("address") or ""))
        if file.parts[: len(Path(directory).parts)] == Path(directory).parts:
            one = Agent(record, address_of(file.name), file)
            if (file not in found or not record.get("claim")) and _is_there(one):
                found[file] = one  # whoever joined stands for an owner that has ended
    return list(found.values())


def _is_there(one: Agent) -> bool:
    claim = one.record.get("claim")
    owner, is_running = _claimant(claim) if claim else _owner(one.file)
    mine = Path(claim).exists() if claim else owner == records.name_of(one.record["root"], one.record["id"])
    init = records.init_of(one.record)
    runs = is_running if init == 0 else not host_state.is_over(str(init))
    return mine and runs and Path(host_state.INTERFACES, labels.host_end(one.address)).exists()


def _steps(one: Agent) -> tuple[plan.Step, ...]:
    """Its plan. ShimError where that is lost or torn."""
    own = Path(records.lock_path(one.record["root"], one.record["id"]))
    file = plan_of(one.file) if one.record.get("claim") else own
    kept = Directory(str(file.parent))
    try:
        return plan.decode(kept.read(file.name)[0])
    finally:
        os.close(kept.fd)


def wanted(one: Agent) -> dict[Element, Entry]:
    """What the host's lock is to hold for a container. ShimError where its plan is lost or torn."""
    steps = [step for step in _steps(one) if step.where == plan.HOST and step.family == netlink.NETFILTER]
    begun = {key: entry for step in steps for key, entry in _in(step.do)}
    taken_back = {key for step in steps for key, _ in _in(step.undo)}
    out = {key: entry for key, entry in begun.items() if key[1] not in PINNED}
    port = link.Port(0, bytes(4), 0, one.address)
    for family, name, first, last, _ in host.entries(port, "", one.record["network"]["pinned"], ()):
        key = (family, name, first, last)
        if name in PINNED and key in taken_back:
            out[key] = Entry(b"", nft.entry(labels.TABLE, name, first, last))
    return out


def _in(batch: bytes) -> Iterator[tuple[Element, Entry]]:
    """The elements that a batch adds or ends."""
    for kind, flags, _, payload in netlink.messages(batch):
        if kind >> 8 << 8 == nft_ask.SUBSYSTEM:
            body = payload[nft_ask.HEAD :]
            name = string(dict(attributes(body))[2])
            message = (kind & 0xFF, flags & ~(netlink.REQUEST | netlink.ACK), body)
            for (key, last), data in nft_read.entries([payload]).items():
                yield (payload[0], name, key, last), Entry(data, message)


def cut_off(directory: str, kernel: netlink.Socket) -> list[Agent]:
    """The running containers for which the host's lock does not hold what it should."""
    every = agents(directory)
    there = dict(elements(kernel)) if every else {}
    return [one for one in every if _is_cut(one, there) and _is_there(one)]  # it may have ended meanwhile


def _is_cut(one: Agent, there: dict[Element, bytes]) -> bool:
    try:
        return any(there.get(key) != entry.data for key, entry in wanted(one).items())
    except ShimError:
        return True


def restore(directory: str, kernel: netlink.Socket, told: Told) -> None:
    """Puts back what the host's lock lacks for running containers; what was lost is told, a line each.

    Under the lock of Host. A container whose elements the kernel does not take stays cut off, which is told, too.
    """
    if not agents(directory):
        return
    with ExitStack() as stack:
        for place in Path(directory).glob(f"*/{host_state.ADDRESSES}"):
            stack.callback(os.close, host_state.locked(str(place / host_state.LOCK)))
        records_lock = host_state.locked(f"{records.DIRECTORY}/lock")  # of `net refresh`, which changes plans and pins
        stack.callback(os.close, records_lock)
        every = []
        for one in agents(directory):
            if (fd := hold(one.file)) is not None:
                stack.callback(os.close, fd)
                every += [one] if _is_there(one) else []
        there = dict(elements(kernel)) if every else {}
        for one in every:
            for line in _put_back(one, there, kernel):
                told(f"{one.name}: {line}")


def neighbours(directory: str, profile: str, kernel: netlink.Socket) -> None:
    """Who has which address on a bridge that was down, which made the kernel forget them. OSError."""
    for one in agents(directory):
        if one.file.parent.parent.name == profile:
            with suppress(ShimError):  # told by `restore`
                for step in _steps(one):
                    if step.family == netlink.ROUTE and step.released:
                        kernel.ask(step.do, step.acks)


def _put_back(one: Agent, there: dict[Element, bytes], kernel: netlink.Socket) -> Iterator[str]:
    try:
        every = wanted(one)
        lost = {key: entry for key, entry in every.items() if key not in there}
        others = [key for key, entry in every.items() if there.get(key, entry.data) != entry.data]
        # A door is named by the host's side: one that leads elsewhere is another container's by now.
        ours = [key for key in others if key[1] != "published"]
        if len(ours) < len(others):
            yield "what it published is another's by now, and stays so"
            lost = {key: entry for key, entry in lost.items() if key[1] not in ("published", "served")}
        fresh = [(key[0], every[key].message) for key in (*lost, *ours)]
        if fresh:
            kernel.ask(nft.mixed([*host.drop(ours), *fresh]), 1)
            yield f"{len(fresh)} elements of its own are back in the host's lock, which somebody had removed"
            yield from _leases_lost(one, there)
    except (ShimError, OSError) as error:
        why = reason(error) if isinstance(error, OSError) else f"{error.key}: {error.asked}"
        yield f"it stays cut off ({why}): create it anew"


def _leases_lost(one: Agent, there: dict[Element, bytes]) -> Iterator[str]:
    """The lock inside has them still."""
    with suppress(ShimError):
        pid = records.init_of(one.record)
        for protocol, address, port, *_ in sets.leases(f"/proc/{pid}/ns/net") if pid else ():
            far = address_of(address)
            if len(far) != 4:
                continue  # shut on the host
            key = (nft_ask.INET, "leased", host.flow_key(one.address, protocol, far, port), b"")
            if key not in there:
                peer = f"{protocol}:{address}:{port}"
                yield f"the lease of {peer} is lost: grant it anew"
                audit.write("lease_lost", one.record, peer=peer)
