"""The host's interfaces, addresses and routes as rtnetlink(7) tells them, and the few changes that a bridge needs.

Belongs here: messages and their meaning. Next door: `net_up` decides; `hooks.link` makes the ports.
"""

from __future__ import annotations

import sys
from _struct import Struct
from collections.abc import Iterator
from typing import NamedTuple

from hooks import link
from hooks.attributes import attribute, attributes, nested, string, text
from hooks.netlink import ACK, CREATE, DUMP, EXCL, Socket, message

NEWLINK, DELLINK, GETLINK, NEWADDR, GETADDR, GETROUTE, GETNEIGH = 16, 17, 18, 20, 22, 26, 30
NEWQDISC, NEWTFILTER = 36, 44
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
_TRAFFIC = Struct("=B3xiIII")  # family, number, handle, parent, info (of a filter: priority, protocol)
_CODE = Struct("=HBBI")  # struct sock_filter
# pkt_sched.h, pkt_cls.h, if_ether.h, filter.h
CLSACT, INGRESS, QDISC = 0xFFFFFFF1, 0xFFFFFFF2, 0xFFFF0000
TRAFFIC_KIND, TRAFFIC_OPTIONS, BPF_LENGTH, BPF_CODE, BPF_FLAGS, DIRECT = 1, 2, 4, 5, 8, 1
EVERY_PROTOCOL, FIRST = 0x0003, 1
LOAD, JUMP_SET, RETURN, MARK_OF_PACKET = 0x20, 0x45, 0x06, 0xFFFFF014
TC_OK, TC_DROP = 0, 2


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


def gate(kernel: Socket, index: int, mark: int) -> None:
    """What comes up through a bridge must have a bit of the mark, which the table bridge gives, else it is dropped:
    asked by tc (cls_bpf), which stays where somebody flushes nf_tables, and goes with the bridge. OSError.
    """
    head = _TRAFFIC.pack(0, index, QDISC, CLSACT, 0)
    try:
        kernel.ask(message(NEWQDISC, ACK | CREATE | EXCL, head + text(TRAFFIC_KIND, "clsact")), 1)
    except FileExistsError:
        pass
    code = ((LOAD, 0, 0, MARK_OF_PACKET), (JUMP_SET, 0, 1, mark), (RETURN, 0, 0, TC_OK), (RETURN, 0, 0, TC_DROP))
    options = nested(
        TRAFFIC_OPTIONS,
        attribute(BPF_LENGTH, len(code).to_bytes(2, sys.byteorder)),
        attribute(BPF_CODE, b"".join(_CODE.pack(*one) for one in code)),
        attribute(BPF_FLAGS, _U32.pack(DIRECT)),
    )
    protocol = int.from_bytes(EVERY_PROTOCOL.to_bytes(2, "big"), sys.byteorder)
    head = _TRAFFIC.pack(0, index, FIRST, INGRESS, FIRST << 16 | protocol)
    kernel.ask(message(NEWTFILTER, ACK | CREATE, head + text(TRAFFIC_KIND, "bpf") + options), 1)


def neighbours(kernel: Socket, index: int) -> list[bytes]:
    """The IPv4 addresses on an interface that the kernel was told of, for ever. OSError as it says."""
    found = []
    for payload in kernel.dump(message(GETNEIGH, DUMP, link.NEIGHBOUR.pack(INET, 0, 0, 0, 0))):
        _, number, state, _, _ = link.NEIGHBOUR.unpack_from(payload)
        if number == index and state & link.PERMANENT:
            found.append(dict(attributes(payload[link.NEIGHBOUR.size :]))[DESTINATION])
    return found


def forget(kernel: Socket, index: int, address: bytes) -> None:
    """The end of such an address. ENOENT where it is gone already."""
    kernel.ask(link.neighbour(link.DELNEIGH, index, address), 1)


def delete(kernel: Socket, index: int) -> None:
    """The end of an interface. ENODEV where there is none."""
    kernel.ask(message(DELLINK, ACK, _of(index)), 1)


def _of(index: int) -> bytes:
    return _LINK.pack(0, 0, index, 0, 0)
