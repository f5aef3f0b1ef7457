"""The host's lock: who may send through our bridges, as whom, and to whom. Pure: a container's elements as one step of
a plan.

Belongs here: the elements of the tables agentshim (bridge, arp, inet) of the host's network namespace. Next door:
`host_rules` has the rules, `fingerprint` looks whether they are there; `link` makes the ports; `lock` is the second
lock, inside the container's.

    Rules are text, loaded when a bridge is made (shim/cold/network/net_up.py).
    A container adds elements of sets only, all in one transaction: it is all let through, or nothing of it.
    What is not looked up and found is refused, whichever hook sees it, and answered where somebody waits.
    Every packet is looked up, and so is every answer: a lease that ends cuts both directions.

A port is believed by `bridge`: name, hardware address and IPv4 source must be one element; then one bit of the packet's
mark says so to `inet`, which sees the bridge, not the port. Frames to 01:80:c2:00:00:0X reach the host as from the port
itself, around the bridge's hooks: hence the drops of all that comes in by a port's name, in `inet` and `arp`.
In the output hook the interface is the one before a DNAT: what leaves for a bridge is looked up once more behind it.
"""

from __future__ import annotations

from _struct import Struct

from hooks import nft, nft_ask
from hooks.grants import LAST_PORT, PROTOCOLS, address_of
from hooks.labels import TABLE, dotted, host_end, mac
from hooks.netlink import NETFILTER
from hooks.plan import HOST, ONLY_EMPTY, WHOLE, Step
from shim.errors import Invalid
from shim.lattice import merged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from hooks.link import Port
    from hooks.nft import Message

    Entry = tuple[int, str, bytes, bytes, bytes]  # family, set, key, last key, data

MARK = 0x00800000
REJECTED = ("denied", "refused")  # sets: what the host's lock counts, out and in, as the lock inside does
ROWS_STAY = 3600 * 1000  # ms

# name . hardware address . address; proto . address . port and the like: each field fills up its words of 4 bytes
PORT_KEY = Struct("=16s6s2x4s")
FLOW_KEY = Struct(">4sB3x4sH2x")  # agent, protocol, far address, far port
SERVICE_KEY = Struct(">4s4sB3xH2x")  # agent, address of ours, protocol, port
DOOR_KEY = Struct(">4sB3xH2x")  # address, protocol, port
DOOR = Struct(">4sH2x")


def enter(
    port: Port,
    tag: str,
    pinned: Iterable[tuple[str, str, int, int]] = (),
    services: Iterable[tuple[str, str, int, int]] = (),
) -> Step:
    """A container comes in: all its elements, or none. EEXIST where one of them is there: an address that is in use.

    `pinned`: (protocol, address, first port, last port), what names led to; IPv6 is left out, it is shut. `services`:
    the same of the host's own addresses, its gateway among them. Invalid on what is none of these.
    """
    every = entries(port, tag, pinned, services)
    told = f"{dotted(port.address)} at {host_end(port.address)}, policy {tag}: {len(every)} elements"
    return _step(ONLY_EMPTY, every, told)


def doors(port: Port, published: Iterable[tuple[str, int, int, str]]) -> tuple[Step, ...]:
    """What is published for it, no step where that is nothing: (address of the host, its port, the container's port,
    protocol). EEXIST where another container has such a door, whose it stays: doors are named by the host's side alone,
    so one is taken away only together with what is this container's own. Invalid on what is none.
    """
    here = port.address
    served: list[Entry] = []
    outer: list[Entry] = []
    for address, outside, inside, protocol in published:
        at, number = _own(address), _protocol(protocol)
        _ports(outside, outside), _ports(inside, inside)
        served.append((nft_ask.INET, "served", DOOR_KEY.pack(here, number, inside), b"", b""))
        inner = nft.value(DOOR.pack(here, inside))
        outer.append((nft_ask.INET, "published", DOOR_KEY.pack(at, number, outside), b"", inner))
    every = list(dict.fromkeys((*served, *outer)))  # one key twice would refuse itself
    return (_step(ONLY_EMPTY | WHOLE, every, f"{dotted(here)}: {len(every)} elements of doors"),) if every else ()


def _step(bits: int, every: list[Entry], told: str) -> Step:
    do = nft.mixed((family, nft.entry(TABLE, *element)) for family, element in ((one[0], one[1:]) for one in every))
    undo = nft.mixed((family, nft.release(TABLE, name, key, last)) for family, name, key, last, _ in every)
    return Step(HOST | bits, NETFILTER, do, undo, 1, told)


def entries(
    port: Port,
    tag: str,
    pinned: Iterable[tuple[str, str, int, int]],
    services: Iterable[tuple[str, str, int, int]],
) -> list[Entry]:
    """The elements of one container, but for its doors."""
    here = port.address
    every: list[Entry] = [
        (nft_ask.BRIDGE, "ports", PORT_KEY.pack(host_end(here).encode(), mac(here), here), b"", b""),
        (nft_ask.INET, "agents", here, b"", b""),
        (nft_ask.INET, "policies_out", here, b"", nft.chain(f"out_{tag}")),
        (nft_ask.INET, "policies_in", here, b"", nft.chain(f"in_{tag}")),
    ]
    for (number, far), ports in _merged(pinned).items():
        every += [_ranged("pinned", *(FLOW_KEY.pack(here, number, far, one) for one in ends)) for ends in ports]
    for (number, far), ports in _merged(services).items():
        every += [_ranged("services", *(SERVICE_KEY.pack(here, far, number, one) for one in ends)) for ends in ports]
    return list(dict.fromkeys(every))


def _merged(grants: Iterable[tuple[str, str, int, int]]) -> dict[tuple[int, bytes], list[tuple[int, int]]]:
    """(protocol, address) -> ports that do not overlap, as a set of ranges wants it."""
    found: dict[tuple[int, bytes], list[tuple[int, int]]] = {}
    for protocol, address, first, last in grants:
        far = address_of(address)
        if len(far) == 4:
            found.setdefault((_protocol(protocol), far), []).append(_ports(first, last))
    return {key: merged(ranges) for key, ranges in found.items()}


def _ranged(name: str, first: bytes, last: bytes) -> Entry:
    """One port is in a hash; a range in a set of ranges, of which the kernel makes a copy for each change."""
    one = first == last
    return nft_ask.INET, name if one else f"{name}_wide", first, b"" if one else last, b""


def flow_key(agent: bytes, protocol: str, far: bytes, port: int) -> bytes:
    """The key of @leased and @pinned."""
    return FLOW_KEY.pack(agent, _protocol(protocol), far, port)


def _protocol(name: str) -> int:
    if name not in PROTOCOLS:
        raise Invalid("network", "protocol", name, "tcp or udp", "correct the grant")
    return PROTOCOLS[name]


def _ports(first: int, last: int) -> tuple[int, int]:
    if not 0 < first <= last <= LAST_PORT:
        raise Invalid("network", "ports", f"{first}-{last}", f"1 to {LAST_PORT}, the first first", "correct the grant")
    return first, last


def _own(address: str) -> bytes:
    packed = address_of(address)
    if len(packed) != 4 or packed == bytes(4):
        raise Invalid("network", "publish", address, "one IPv4 address of this host", "write it like 127.0.0.1")
    return packed


def address_in(name: str, key: bytes, data: bytes) -> bytes:
    """Whose element it is: the agent's address in an element of the set or map `name`."""
    if name == "ports":
        return PORT_KEY.unpack(key)[2]  # type: ignore[no-any-return]
    return data[:4] if name == "published" else key[:4]


ELEMENTS = (
    (nft_ask.BRIDGE, "ports"),
    *((nft_ask.INET, name) for name in ("agents", "policies_out", "policies_in", "leased", "pinned", "pinned_wide")),
    *((nft_ask.INET, name) for name in ("services", "services_wide", "published", "served")),
)


def drop(every: Iterable[tuple[int, str, bytes, bytes]]) -> list[tuple[int, Message]]:
    """Messages that end elements: (family, set, key, last key)."""
    return [(family, nft.release(TABLE, name, key, last)) for family, name, key, last in every]
