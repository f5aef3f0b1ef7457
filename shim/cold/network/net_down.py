"""`agentshim net down` and `net gc`: bridges, rules, elements and addresses that nobody has any more.

Belongs here: who is still there, and what goes. Next door: `net_up` makes; native/nethook.c takes back a container's
own elements and its address at its end, so that `gc` finds only what a kill or a crash has left, and leases that ended
with their container; `net_agents` looks who is there.

An address is free when nothing in the kernel speaks of it: elements go first, then the file. Both under the lock that
whoever takes an address holds: it is not taken in between.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hooks import fingerprint, host, host_rules, host_state, labels, nft, nft_ask, nft_read
from shim import state as records
from shim.cold.network import bridges, net_agents, net_others, net_up, resolver
from shim.cold.network.net_agents import Element, alive, elements, hold, holders, let_go, owners, strays
from shim.cold.network.net_up import Host
from shim.errors import HostError, Refused, reason

GRACE = 600  # seconds that a policy's rules stay behind its last container: one may be on its way


def gc(
    directory: str = host_state.DIRECTORY,
    living: Callable[[], set[str]] = alive,
    grace: float = GRACE,
    mark: int = host.MARK,
) -> dict[str, int]:
    """Ends what has no owner: how many elements, addresses and policies' rules that was."""
    counts = {"elements": 0, "addresses": 0, "policies": 0}
    if not Path(directory).is_dir():
        return counts
    with Host(directory) as here:
        for profile in here.profiles():
            elements, addresses = _collected(here, profile, living)
            counts["elements"] += elements
            counts["addresses"] += addresses
        counts["elements"] += _dropped(here, _of_nobody(here))
        counts["policies"] = _forgotten(here, grace, mark)
    return counts


def _collected(here: Host, profile: str, living: Callable[[], set[str]]) -> tuple[int, int]:
    """(elements, addresses) of one bridge that were nobody's."""
    place = Path(here.directory, profile, host_state.ADDRESSES)
    subnet = _subnet(here, profile)
    if subnet is None or not place.is_dir():
        return 0, 0
    held = [host_state.locked(str(place / host_state.LOCK))]
    try:
        parts = holders(here.directory, profile, living)
        taken = {name: any(one.values()) for name, one in parts.items()}
        ended = [name for name, one in parts.items() if not all(one.values())]
        some = {name: fd for name in ended if (fd := hold(place / name)) is not None}
        held += some.values()
        stale = [one for one in elements(here.netfilter, subnet) if not taken.get(str(_address(one)))]
        count = _dropped(here, [one for one, _ in stale])
        for name in some:
            let_go(place / name, parts[name])
        for path in strays(place.parent, taken):
            path.unlink(missing_ok=True)
        _forget(here, profile, taken)
        for path in place.glob("*" + host_state.LEASED):
            if not taken.get(path.stem):
                path.unlink(missing_ok=True)
        # An address or a template on its way, of a process that was killed
        for path in (*place.glob(".[0-9]*"), *place.parent.glob(f".{host_state.PLAN}.[0-9]*")):
            if not host_state.started(path.name.rpartition(".")[2]):
                path.unlink(missing_ok=True)
        return count, sum(not taken[name] for name in some)
    finally:
        for one in held:
            os.close(one)


def _forget(here: Host, profile: str, taken: dict[str, bool]) -> None:
    """Ends what the kernel was told of neighbours that are gone: a container that was killed leaves it."""
    there = here.links.get(str(here.state(profile).get("bridge")))
    if there is None:
        return
    for address in bridges.neighbours(here.route, there.number):
        if not taken.get(labels.dotted(address)):
            with suppress(FileNotFoundError):  # its own hook was faster
                bridges.forget(here.route, there.number, address)


def _address(one: tuple[Element, bytes]) -> ipaddress.IPv4Address:
    (_, name, key, _), data = one
    return ipaddress.IPv4Address(host.address_in(name, key, data))


def _of_nobody(here: Host) -> list[Element]:
    """Elements of agents in no subnet that we know of."""
    subnets = [subnet for one in here.profiles() if (subnet := _subnet(here, one))]
    return [one[0] for one in elements(here.netfilter) if not any(_address(one) in subnet for subnet in subnets)]


def _subnet(here: Host, profile: str) -> ipaddress.IPv4Network | None:
    told = here.state(profile).get("subnet")
    return ipaddress.IPv4Network(told) if told else None


def _dropped(here: Host, every: Iterable[Element]) -> int:
    """Ends elements, each for itself: one that is gone already must not keep the others."""
    count = 0
    for message in host.drop(every):
        try:
            here.netfilter.ask(nft.mixed([message]), 1)
            count += 1
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HostError("network", "elements", reason(error), "sets that can be changed", "try again") from error
    return count


def _forgotten(here: Host, grace: float, mark: int) -> int:
    """Rules of policies that no container has, and no bridge gives to the next one."""
    wanted = {here.state(one).get("tag") for one in here.profiles()}
    there = elements(here.netfilter)
    wanted |= {data.decode().rpartition("_")[2] for (_, name, _, _), data in there if name == "policies_out"}
    # After a flush no element tells: what a running container has is put back only where its policy's rules are.
    wanted |= {labels.tag(net_agents.digest_of(one)) for one in records.records() if one.get("address")}
    for path in Path(here.directory).glob("*/*.nft"):
        if path.stem not in wanted and path.stat().st_mtime <= time.time() - grace:
            path.unlink()  # first, so that no repair loads them anew
    return _unloaded(here, mark)


def _unloaded(here: Host, mark: int) -> int:
    """Ends the rules of policies that are on disk no more; how many."""
    kept = {path.stem for path in Path(here.directory).glob("*/*.nft")}
    gone = sorted(_loaded(here) - kept)
    if gone:
        net_up.load_rules(here, mark)
        net_others.nft("".join(host_rules.no_policy(tag) for tag in gone))
        net_up.kept_again(here, mark)
    return len(gone)


def _loaded(here: Host) -> set[str]:
    """The tags of the policies in the kernel."""
    chains = set(map(nft_read.chain_of, here.netfilter.dump(nft_ask.list_rules(labels.TABLE, nft_ask.INET))))
    return {name[4:] for name in chains if name.startswith("out_")}


def down(
    profiles: list[str],
    directory: str = host_state.DIRECTORY,
    force: bool = False,
    living: Callable[[], set[str]] = alive,
    mark: int = host.MARK,
) -> list[str]:
    """Ends the bridges of `profiles`, and with the last one all that is ours; what was done, one line each.

    Refused where containers live on one of them, unless `force`: they lose their network.
    """
    with Host(directory) as here:
        for profile in profiles:
            lives = [one for one, mine in owners(directory, profile, living).items() if mine]
            if lives and not force:
                todo = "end them first, or add --force: they lose their network"
                asked = f"to end it under {len(lives)} containers ({', '.join(lives[:3])})"
                raise Refused("network", net_up.name_of(profile), asked, "an empty bridge", todo)
        said = [line for profile in profiles if (line := _ended(here, profile, mark))]
        if not here.profiles():
            said += _all_ended(here)
    return said


def _ended(here: Host, profile: str, mark: int) -> str:
    """The bridge first: then there is nobody whom the rules that go could still keep out."""
    place = Path(here.directory, profile)
    there = here.links.get(net_up.name_of(profile))
    if not place.is_dir() and not (there and there.alias == net_up.ALIAS + profile):
        return ""
    subnet = _subnet(here, profile)
    resolver.end(here.directory, profile)
    if there and there.alias == net_up.ALIAS + profile:
        try:
            bridges.delete(here.route, there.number)
        except OSError as error:
            raise HostError("network", there.name, reason(error), "a bridge that can be ended", "try again") from error
    count = _dropped(here, [one for one, _ in elements(here.netfilter, subnet)]) if subnet else 0
    shutil.rmtree(place, ignore_errors=True)
    _unloaded(here, mark)
    return f"{net_up.name_of(profile)}: gone, with {count} elements"


def _all_ended(here: Host) -> list[str]:
    """Tables, accepts and files; but not while a bridge of ours is there without a file that tells of it."""
    here.look()
    if left := sorted(one.name for one in here.links.values() if net_up.is_ours(one)):
        return [f"{', '.join(left)} stay, and the rules with them: agentshim net down PROFILE"]
    every = [f"{one} {labels.TABLE}" for one in ("inet", "arp", "bridge")]
    net_others.nft("".join(f"add table {one}\ndelete table {one}\n" for one in every))
    net_others.unaccept()
    Path(here.directory, host_state.RULES).unlink(missing_ok=True)
    return [f"tables {labels.TABLE}: gone; net.ipv4.ip_forward stays as it is"]


def shown(directory: str = host_state.DIRECTORY, living: Callable[[], set[str]] = alive) -> list[dict[str, Any]]:
    """Each bridge: what it is, who is on it; whether it is up and forwards, its rules and Docker's accepts are as they
    were; and for how many running containers elements are lacking.
    """
    if not Path(directory).is_dir():
        return []
    with Host(directory) as here:
        kept, _, tags = host_state.rules(directory)
        whole = fingerprint.intact(here.netfilter, kept)
        accepted = not any(net_others.docker_user().values())
        cut = net_agents.cut_off(directory, here.netfilter)
        return [
            {
                **_shown(here, one, living),
                "rules": whole and here.state(one).get("tag") in tags,
                "docker": accepted,
                "cut_off": [agent.name for agent in cut if agent.file.parent.parent.name == one],
            }
            for one in here.profiles()
        ]


def _shown(here: Host, profile: str, living: Callable[[], set[str]]) -> dict[str, Any]:
    told, name = here.state(profile), net_up.name_of(profile)
    there = here.links.get(name)
    up = there is not None and there.number == told.get("index") and host_state.carries(here.netfilter, name)
    return {
        "profile": profile,
        "bridge": name,
        "subnet": told.get("subnet", ""),
        "addresses": sum(owners(here.directory, profile, living).values()),
        "up": up,
    }
