"""The host's interfaces, addresses and routes as rtnetlink(7) tells them, and the few changes that a bridge needs.

Belongs here: messages and their meaning. Next door: `net_up` decides; `hooks.link` makes the ports.
"""

from __future__ import annotations

from _struct import Struct
from collections.abc import Iterator
from typing import NamedTuple

from hooks.netlink import ACK, CREATE, DUMP, EXCL, Socket, attribute, attributes, message, nested, string, text

NEWLINK, DELLINK, GETLINK, NEWADDR, GETADDR, GETROUTE = 16, 17, 18, 20, 22, 26
INET, UP = 2, 1
# if_link.h, if_addr.h, rtnetlink.h
HARDWARE, NAME, LINKINFO, ALIAS, KIND, DATA, SNOOPING = 1, 3, 18, 20, 1, 2, 23
ADDRESS, LOCAL = 1, 2
DESTINATION, OUT = 1, 4
UNICAST, ROUTE_LOCAL = 1, 2

_LINK = Struct("=BxHiII")  # family, type, number, flags, which of them
_ADDRESS = Struct("=BBBBI")  # family, prefix, flags, scope, number
_ROUTE = Struct("=8BI")  # family, prefix, source's, tos, table, protocol, scope, type, flags
_U32 = Struct("=I")


class Link(NamedTuple):
    number: int
    name: str
    kind: str
    alias: str
    mac: bytes
    up: bool


class Net(NamedTuple):
    """An address or a route of the host's: which addresses, and by which interface (its number, 0 for none)."""

    address: int
    prefix: int
    number: int
    what: str


def links(kernel: Socket) -> list[Link]:
    """All interfaces. OSError as the kernel says."""
    out = []
    for payload in kernel.dump(message(GETLINK, DUMP, _LINK.pack(0, 0, 0, 0, 0))):
        _, _, number, flags, _ = _LINK.unpack_from(payload)
        told = dict(attributes(payload[_LINK.size :]))
        kind = dict(attributes(told.get(LINKINFO, b""))).get(KIND, b"")
        alias = string(told.get(ALIAS, b""))
        out.append(Link(number, string(told[NAME]), string(kind), alias, told.get(HARDWARE, b""), bool(flags & UP)))
    return out


def nets(kernel: Socket) -> Iterator[Net]:
    """All IPv4 addresses, with their subnets, and all routes that lead somewhere."""
    for payload in kernel.dump(message(GETADDR, DUMP, _ADDRESS.pack(INET, 0, 0, 0, 0))):
        _, prefix, _, _, number = _ADDRESS.unpack_from(payload)
        told = dict(attributes(payload[_ADDRESS.size :]))
        if own := told.get(LOCAL) or told.get(ADDRESS):
            yield Net(int.from_bytes(own, "big"), prefix, number, "address")
    for payload in kernel.dump(message(GETROUTE, DUMP, _ROUTE.pack(INET, 0, 0, 0, 0, 0, 0, 0, 0))):
        _, prefix, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(payload)
        told = dict(attributes(payload[_ROUTE.size :]))
        if kind in (UNICAST, ROUTE_LOCAL):  # what is black-holed is nobody's
            out = _U32.unpack(told[OUT])[0] if OUT in told else 0
            yield Net(int.from_bytes(told.get(DESTINATION, bytes(4)), "big"), prefix, out, "route")


def make(kernel: Socket, name: str, mac: bytes, alias: str) -> None:
    """A bridge that is down. Its alias says whose it is: set in the datagram that makes it, so that no end of ours can
    come in between. OSError where that fails; EEXIST where the name is there.
    """
    about = nested(LINKINFO, text(KIND, "bridge"), nested(DATA, attribute(SNOOPING, b"\0")))
    new = message(NEWLINK, ACK | CREATE | EXCL, _of(0) + text(NAME, name) + attribute(HARDWARE, mac) + about)
    kernel.ask(new + message(NEWLINK, ACK, _of(0) + text(NAME, name) + text(ALIAS, alias)), 2)


def change(kernel: Socket, index: int, mac: bytes) -> None:
    """Set an interface's hardware address."""
    kernel.ask(message(NEWLINK, ACK, _of(index) + attribute(HARDWARE, mac)), 1)


def up(kernel: Socket, index: int) -> None:
    """Set an interface up."""
    kernel.ask(message(NEWLINK, ACK, _LINK.pack(0, 0, index, UP, UP)), 1)


def give(kernel: Socket, index: int, address: bytes, prefix: int) -> None:
    """Give an interface an address, and with it the route to its subnet. EEXIST where it has it."""
    body = _ADDRESS.pack(INET, prefix, 0, 0, index) + attribute(LOCAL, address) + attribute(ADDRESS, address)
    kernel.ask(message(NEWADDR, ACK | CREATE | EXCL, body), 1)


def delete(kernel: Socket, index: int) -> None:
    """The end of an interface. ENODEV where there is none."""
    kernel.ask(message(DELLINK, ACK, _of(index)), 1)


def _of(index: int) -> bytes:
    return _LINK.pack(0, 0, index, 0, 0)
