"""The link: a container's own pair of interfaces, one end on its profile's bridge, made in place. Pure: a place on a
bridge in, steps of a plan out.

Belongs here: the messages of rtnetlink(7) that make both ends. Next door: `labels` has their names; `host` says which
packets pass; `lock` is inside; shim/cold makes the bridge; native/nethook.c replays the steps.

    The end inside is created there (VETH_INFO_PEER): moving an interface waits 18 ms.
    Both ends have numbers that we choose, since an address, a route, a neighbour and a forwarding entry name their
    interface by number. The kernel honours the peer's only where the other one is chosen too.
    No ARP: neighbours are permanent on both sides, the port learns nothing and floods nothing, and what comes from
    another hardware address than its own is dropped (locked: Linux 5.16; before it `host` alone does so).
    No route to the bridge's other ports: all goes by the gateway, where it is refused at once instead of after 3 s.
    IPv6 gets no address at either end.

`on_lan` is another way to a network: an interface of the container's own on a card of the host's (macvlan), made in
place as well. There is no bridge, and no packet of it passes the host's tables. In mode private the kernel carries
nothing to siblings or to the host. Whoever is on that LAN is found by ARP.
"""

from __future__ import annotations

from _struct import Struct

from hooks.attributes import attribute, nested, text
from hooks.labels import host_end, mac, number
from hooks.netlink import ACK, CREATE, EXCL, ROUTE, message
from hooks.plan import CONTAINER, HOST, KEEP, NETNS, ONLY_EMPTY, Step
from shim.lattice import Value

INSIDE = "eth0"
ETH = 1000  # its number: tunl0, sit0 and their like take the first of a new namespace
_OUTSIDE = b"\x06\xa5"  # of the host's end's hardware address: udev would change one that is made up

NEWLINK, DELLINK, NEWADDR, NEWROUTE, NEWNEIGH, DELNEIGH = 16, 17, 20, 24, 28, 29
REPLACE = 0x100
INET, BRIDGE, INET6 = 2, 7, 10  # address families
UP = 1

# if_link.h
HARDWARE, NAME, LINK, MASTER, LINKINFO, AF_SPEC, NET_NS_FD = 1, 3, 5, 10, 18, 26, 28
SEND_QUEUES, RECEIVE_QUEUES = 31, 32
KIND, DATA, SLAVE_KIND, SLAVE_DATA = 1, 2, 4, 5
VETH_PEER = 1
MACVLAN_MODE, PRIVATE = 1, 1
ADDR_GEN_MODE, NONE = 8, 1

# What a port of the bridge does
PORT = (
    (8, 0),  # learning
    (9, 0),  # flooding of unicasts
    (25, 0),  # never a way to multicast routers, whatever it says
    (27, 0),  # of multicasts
    (30, 0),  # of broadcasts
    (33, 1),  # isolated from the other ports
    (39, 1),  # locked: a hardware address that has no entry for this port is dropped. Older kernels skip it
)

# neighbour.h, if_addr.h, rtnetlink.h
NOARP, PERMANENT, OF_BRIDGE = 0x40, 0x80, 0x04
NOPREFIXROUTE = 0x200
MAIN, STATIC, EVERYWHERE, ON_LINK, UNICAST = 254, 4, 0, 253, 1

_LINK = Struct("=BxHiII")  # family, type, number, flags, which of them
NEIGHBOUR = Struct("=BxxxiHBB")  # family, number, state, flags, type
_ADDRESS = Struct("=BBBBI")  # family, prefix, flags, scope, number
_ROUTE = Struct("=8BI")  # family, prefix, source's, tos, table, protocol, scope, type, flags
_U32 = Struct("=I")
# A pair gets one queue for each processor otherwise, with an entry in /sys for each; it sends without a queue anyhow.
_QUEUES = attribute(SEND_QUEUES, _U32.pack(1)) + attribute(RECEIVE_QUEUES, _U32.pack(1))


class Port(Value):
    """A container's place on a bridge: the number of the bridge's interface, the 4 bytes of the gateway, which is the
    bridge's own address, the prefix length of its subnet, and the 4 bytes of the container's address in it.
    """

    __slots__ = ("bridge", "gateway", "prefix", "address")

    def __init__(self, bridge: int, gateway: bytes, prefix: int, address: bytes) -> None:
        self.bridge = bridge
        self.gateway = gateway
        self.prefix = prefix
        self.address = address


def steps(port: Port, six: bool = True) -> tuple[Step, ...]:
    """The link of one container, up at the end. `six`: the kernel has IPv6 (/proc/net/if_inet6 is there)."""
    name = host_end(port.address)
    here = ".".join(map(str, port.address))
    both = HOST | ONLY_EMPTY
    at_bridge = [
        neighbour(kind, port.bridge, port.address, flags) for kind, flags in ((NEWNEIGH, REPLACE), (DELNEIGH, 0))
    ]
    port_set = [_link(number(port.address), _port(), _no_ipv6(six)), _forwarding(port.address)]
    turned_on = [_up(number(port.address))]
    return (
        _step(both | KEEP, [_pair(port)], f"veth {name} to {INSIDE}", _delete(port.address)),
        _step(both | KEEP, port_set, f"port {name}: isolated, learns and floods nothing"),
        _step(both, at_bridge[:1], f"neighbour {here}, permanent", at_bridge[1]),
        _step(CONTAINER | ONLY_EMPTY, _inside(port, six), f"lo and {INSIDE} up, {here}/{port.prefix}, routes"),
        _step(both | KEEP, turned_on, f"{name} up"),
    )


def on_lan(port: Port, six: bool = True) -> tuple[Step, ...]:
    """The same on a LAN: `port.bridge` is the number of the host's card, `gateway` and `prefix` are the LAN's."""
    here = ".".join(map(str, port.address))
    words = f"lo and {INSIDE} up, {here}/{port.prefix}, routes"
    return (
        # Undone by the step behind it, from where the interface is.
        _step(HOST | ONLY_EMPTY | KEEP, [_macvlan(port)], f"macvlan {INSIDE} on interface {port.bridge}, private"),
        _step(CONTAINER | ONLY_EMPTY, [_up(1)], "lo up", _removed(INSIDE)),
        _step(CONTAINER | ONLY_EMPTY, _inside_lan(port, six), words),
    )


def _step(room: int, messages: list[bytes], words: str, undo: bytes = b"") -> Step:
    """Every message wants an answer."""
    return Step(room, ROUTE, b"".join(messages), undo, len(messages), words)


def _pair(port: Port) -> bytes:
    """Both ends, the host's on the bridge; EEXIST where its name or number is there: the address is not free yet."""
    peer = attribute(
        VETH_PEER,
        _LINK.pack(0, 0, ETH, 0, 0)
        + text(NAME, INSIDE)
        + attribute(HARDWARE, mac(port.address))
        + attribute(NET_NS_FD, _U32.pack(NETNS))
        + _QUEUES,
    )
    body = (
        _LINK.pack(0, 0, number(port.address), 0, 0)
        + text(NAME, host_end(port.address))
        + attribute(HARDWARE, _OUTSIDE + port.address)
        + attribute(MASTER, _U32.pack(port.bridge))
        + _QUEUES
        + nested(LINKINFO, text(KIND, "veth"), nested(DATA, peer))
    )
    return message(NEWLINK, ACK | CREATE | EXCL, body)


def _macvlan(port: Port) -> bytes:
    """The interface inside, by way of the host's card; ENODEV where that is gone."""
    body = (
        _LINK.pack(0, 0, ETH, 0, 0)
        + text(NAME, INSIDE)
        + attribute(HARDWARE, mac(port.address))
        + attribute(LINK, _U32.pack(port.bridge))
        + attribute(NET_NS_FD, _U32.pack(NETNS))
        + nested(LINKINFO, text(KIND, "macvlan"), nested(DATA, attribute(MACVLAN_MODE, _U32.pack(PRIVATE))))
    )
    return message(NEWLINK, ACK | CREATE | EXCL, body)


def _delete(address: bytes) -> bytes:
    """The host's end, and with it the other: right where a create fails, 32 ms each."""
    return _removed(host_end(address))


def _removed(name: str) -> bytes:
    return message(DELLINK, ACK, _LINK.pack(0, 0, 0, 0, 0) + text(NAME, name))


def _link(index: int, *attributes: bytes) -> bytes:
    return message(NEWLINK, ACK, _LINK.pack(0, 0, index, 0, 0) + b"".join(attributes))


def _up(index: int) -> bytes:
    return message(NEWLINK, ACK, _LINK.pack(0, 0, index, UP, UP))


def _port() -> bytes:
    flags = [attribute(kind, bytes((value,))) for kind, value in PORT]
    return nested(LINKINFO, text(SLAVE_KIND, "bridge"), nested(SLAVE_DATA, *flags))


def _no_ipv6(six: bool) -> bytes:
    """No address made up for it. Refused when a link is created, and where the kernel was started without IPv6."""
    return nested(AF_SPEC, nested(INET6, attribute(ADDR_GEN_MODE, bytes((NONE,))))) if six else b""


def _forwarding(address: bytes) -> bytes:
    """Where the bridge sends what is for the container: static, as it learns nothing."""
    body = NEIGHBOUR.pack(BRIDGE, number(address), NOARP, OF_BRIDGE, 0) + attribute(2, mac(address))
    return message(NEWNEIGH, ACK | CREATE | EXCL, body)


def neighbour(kind: int, index: int, address: bytes, flags: int = 0) -> bytes:
    """Who has an address. REPLACE: one that a crash left says the same, for it follows from the address."""
    known = attribute(1, address) + (attribute(2, mac(address)) if kind == NEWNEIGH else b"")
    more = flags | (CREATE if kind == NEWNEIGH else 0)
    return message(kind, ACK | more, NEIGHBOUR.pack(INET, index, PERMANENT, 0, 0) + known)


def _inside(port: Port, six: bool) -> list[bytes]:
    """All of the container's side. The route to the gateway comes before that through it, and both behind `up`."""
    return [
        _up(1),
        *([_link(ETH, _no_ipv6(six))] if six else []),
        _own(port),
        _up(ETH),
        neighbour(NEWNEIGH, ETH, port.gateway, EXCL),
        _route(32, ON_LINK, attribute(1, port.gateway)),
        _route(0, EVERYWHERE, attribute(5, port.gateway)),
    ]


def _inside_lan(port: Port, six: bool) -> list[bytes]:
    """Whoever is on the LAN is reached directly; all others by the gateway."""
    bits = 32 - port.prefix
    net = (int.from_bytes(port.gateway, "big") >> bits << bits).to_bytes(4, "big")
    return [
        *([_link(ETH, _no_ipv6(six))] if six else []),
        _own(port),
        _up(ETH),
        _route(port.prefix, ON_LINK, attribute(1, net)),
        _route(0, EVERYWHERE, attribute(5, port.gateway)),
    ]


def _own(port: Port) -> bytes:
    """The address, without the route to its subnet that the kernel would add."""
    body = _ADDRESS.pack(INET, port.prefix, 0, 0, ETH)
    body += attribute(2, port.address) + attribute(1, port.address) + attribute(8, _U32.pack(NOPREFIXROUTE))
    return message(NEWADDR, ACK | CREATE | EXCL, body)


def _route(prefix: int, scope: int, where: bytes) -> bytes:
    body = _ROUTE.pack(INET, prefix, 0, 0, MAIN, STATIC, scope, UNICAST, 0) + where + attribute(4, _U32.pack(ETH))
    return message(NEWROUTE, ACK | CREATE | EXCL, body)
