"""Networks on a card of the host's (macvlan): which block of addresses is whose policy's, and the card's number.

Belongs here: the directory of their addresses, kept like that of bridges (`hooks.host_state`) and apart from it. Next
door: `hooks.link` makes the interface; `network_source` has checked what policy says. Nothing of it is in the host's
tables, and nothing has to be made before: `net up` tells what is lacking, `net gc` frees addresses.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hooks import host_state
from shim import state, wire
from shim.bundle import Directory
from shim.cold.network.net_agents import alive, hold, holders, let_go, owners, strays
from shim.errors import HostError, Invalid, reason
from shim.verbs.link import LANS

DIRECTORY = LANS


def up(profile: str, there: dict[str, Any], directory: str = DIRECTORY) -> int:
    """The number of the card; addresses of the profile's can be taken. HostError where the card is not there, or the
    block is also another profile's.

    `there`: macvlan of the compiled policy.
    """
    try:
        index = socket.if_nametoindex(there["parent"])
    except OSError as error:
        raise HostError("network", f"macvlan {there['parent']}", reason(error), "an interface", "correct it") from None
    for path in (Path(directory).parent, Path(directory)):
        path.mkdir(0o700, exist_ok=True)
    held = host_state.locked(f"{directory}/{host_state.LOCK}")
    try:
        _alone(profile, there, directory)
        place = Path(directory, profile)
        for path in (place, place / host_state.ADDRESSES):
            path.mkdir(0o700, exist_ok=True)
        block = ipaddress.IPv4Network(there["addresses"])
        # `host_state.take` leaves alone the first, the last and the gateway: here the first once more.
        told = {"profile": profile, "bridge": there["parent"], "gateway": str(block[0]), "prefix": block.prefixlen}
        data = wire.dumps({**told, "index": index, "parent": there["parent"], "addresses": there["addresses"]})
        kept = Directory(str(place))
        try:
            if not (place / host_state.BRIDGE).exists() or kept.read(host_state.BRIDGE)[0] != data:
                kept.replace(host_state.BRIDGE, data, os.fstat(held))
        finally:
            os.close(kept.fd)
        if host_state.forsaken(directory, profile, state.DIRECTORY):
            _collected(directory, profile, alive)
        return index
    finally:
        os.close(held)


def gc(directory: str = DIRECTORY, living: Callable[[], set[str]] = alive) -> int:
    """Frees addresses that nobody has any more; how many."""
    return sum(_collected(directory, profile, living) for profile in profiles(directory))


def profiles(directory: str = DIRECTORY) -> list[str]:
    """Those with addresses on a LAN."""
    place = Path(directory)
    return sorted(path.name for path in place.iterdir() if path.is_dir()) if place.is_dir() else []


def shown(directory: str = DIRECTORY, living: Callable[[], set[str]] = alive) -> list[str]:
    """A line for each."""
    lines = []
    for profile in profiles(directory):
        told = _told(directory, profile)
        count = sum(owners(directory, profile, living).values())
        lines.append(
            f"{told.get('parent', '?')}  {told.get('addresses', '?')}  {count} containers  macvlan of {profile}"
        )
    return lines


def _alone(profile: str, there: dict[str, Any], directory: str) -> None:
    """HostError where another profile gives away addresses of the same block."""
    block = ipaddress.IPv4Network(there["addresses"])
    for other in profiles(directory):
        addresses = _told(directory, other).get("addresses") if other != profile else None
        if addresses and ipaddress.IPv4Network(addresses).overlaps(block):
            todo = f"give each policy a block of its own, or remove {directory}/{other} when its containers have ended"
            raise HostError("network", f"macvlan of {profile}", f"{block}", f"addresses apart from {other}'s", todo)


def _told(directory: str, profile: str) -> dict[str, Any]:
    try:
        told = wire.loads(host_state.read(f"{directory}/{profile}/{host_state.BRIDGE}"), "network", profile)
    except (OSError, Invalid):
        return {}
    return told if isinstance(told, dict) else {}


def _collected(directory: str, profile: str, living: Callable[[], set[str]]) -> int:
    place = Path(directory, profile, host_state.ADDRESSES)
    if not place.is_dir():
        return 0
    held = host_state.locked(str(place / host_state.LOCK))
    try:
        parts = holders(directory, profile, living)
        for name, one in parts.items():
            if not all(one.values()) and (fd := hold(place / name)) is not None:
                let_go(place / name, one)
                os.close(fd)
        for path in strays(place.parent, parts):
            path.unlink(missing_ok=True)
        return sum(not any(one.values()) for one in parts.values())
    finally:
        os.close(held)
