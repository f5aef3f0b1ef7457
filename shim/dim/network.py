"""Network: who may be reached from inside, and who may reach in, whatever interfaces an engine brings.

Order: ⊆ of the (protocol, address, port) that pass; an unfiltered network is above all that are filtered. A spec asks
for an unfiltered one: engines know no filter. What is granted is not written into the spec: `verbs.create` hands it to
the native hook, which locks the container's network namespace before its first instruction.
Not grantable at all, so not in the order: link-local addresses (metadata services), multicast, "this network".
"""

from __future__ import annotations

from shim.lattice import Decrease, Value, merged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from shim.kernel import Facts
    from shim.lattice import Section, Spec

    Grant = tuple[str, str, int, int]
    Block = tuple[int, int, int]  # bits of an address, first and last address
    Ports = tuple[tuple[int, int], ...]  # disjoint ranges with a gap between any two, ascending
    Map = tuple[tuple[int, int, Ports], ...]  # addresses first..last and their ports: ascending, none could be one

NAME = "network"
KEYS = ()
PROTOCOLS = ("tcp", "udp")
WIDTHS = (32, 128)  # bits of an address, by IP version
ROOMS = tuple((protocol, width) for width in WIDTHS for protocol in PROTOCOLS)
EVERY: Ports = ((0, 65535),)
SHOWN = 4  # blocks of addresses that one line names


class Network(Value):
    """`open`: unfiltered, and then all else is full; `outbound`: a Map for each of ROOMS; `inbound`, `services`: Ports
    for each of PROTOCOLS, the container's that may be reached and the host's that it may reach; `dns`: the engine's
    resolver may be asked; `icmp`: echo, in and out.

    Of a policy's section the ports and addresses are read when somebody asks: a start that is met with an unfiltered
    network never does, and a thousand grants take 10 ms.
    """

    __slots__ = ("open", "outbound", "inbound", "services", "dns", "icmp", "_section")
    _section: dict[str, Any]

    def __init__(
        self,
        open: bool,
        outbound: tuple[Map, ...],
        inbound: tuple[Ports, ...],
        services: tuple[Ports, ...],
        dns: bool,
        icmp: bool,
    ) -> None:
        self.open = open
        self.outbound = outbound
        self.inbound = inbound
        self.services = services
        self.dns = dns
        self.icmp = icmp
        self._section = {}

    @classmethod
    def of(cls, section: dict[str, Any]) -> Network:
        """What a section lets through, see `from_policy`."""
        out = cls.__new__(cls)
        out.open, out.dns, out.icmp = False, section.get("dns", False), section.get("icmp", False)
        out._section = section
        return out

    def __getattr__(self, name: str) -> Any:
        """A slot that is empty yet."""
        if name not in ("outbound", "inbound", "services"):
            raise AttributeError(name)
        self.outbound, self.inbound, self.services = _read(self._section)
        return getattr(self, name)

    def key(self) -> tuple[object, ...]:
        return self.open, self.outbound, self.inbound, self.services, self.dns, self.icmp

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Network) or self.open != other.open:
            return self is other
        return self.key() == other.key()

    __hash__ = Value.__hash__


ANYWHERE: tuple[Map, ...] = tuple(((0, (1 << width) - 1, EVERY),) for _, width in ROOMS)
TOP = Network(True, ANYWHERE, (EVERY, EVERY), (EVERY, EVERY), True, True)
BOTTOM = Network(False, ((),) * len(ROOMS), ((), ()), ((), ()), False, False)


def leq(a: Network, b: Network) -> bool:
    return meet(a, b) == a


def meet(a: Network, b: Network) -> Network:
    if a.open or b.open or a is b:
        return b if a.open else a
    outbound = tuple(_meet_maps(x, y) for x, y in zip(a.outbound, b.outbound))
    inbound = tuple(_meet_ports(x, y) for x, y in zip(a.inbound, b.inbound))
    services = tuple(_meet_ports(x, y) for x, y in zip(a.services, b.services))
    return Network(False, outbound, inbound, services, a.dns and b.dns, a.icmp and b.icmp)


def from_spec(spec: Spec, facts: Facts) -> Network:
    return facts.network


def from_policy(section: Section) -> Network:
    """The section's `outbound`: (protocol, CIDR, first port, last port); `names`: (protocol, name, first port, last
    port), which lead into `public` or `siblings`, `learned` likewise; `inbound`: "any" or (protocol, first port, last
    port), `services` likewise; `dns`, `icmp`. Mode "engine" filters nothing; the others say how the container comes by
    a network, not what passes.
    """
    if section is None:
        return BOTTOM
    return TOP if section == "top" or section["mode"] == "engine" else Network.of(section)


def _read(section: dict[str, Any]) -> tuple[tuple[Map, ...], tuple[Ports, ...], tuple[Ports, ...]]:
    """(outbound, inbound, services) of a section."""
    out, into = section.get("outbound", ()), section.get("inbound", ())
    rooms: dict[tuple[str, int], list[tuple[int, int, int, int]]] = {room: [] for room in ROOMS}
    # A name may lead to any public address, a sibling's to any private one: what it led to is in the lock.
    named = [
        (protocol, cidr, *ports)
        for protocol, name, *ports in (*section.get("names", ()), *section.get("learned", ()))
        for cidr in section["public" if "." in name else "siblings"]
    ]
    for protocol, cidr, first, last in (*out, *named):
        width, low, high = block(cidr)
        rooms[protocol, width].append((low, high, first, last))
    outbound = tuple(_map(rooms[room]) for room in ROOMS)
    inbound, services = (_each(ports) for ports in (into, section.get("services", ())))
    return outbound, inbound, services


def apply_to_spec(spec: Spec, value: Network, facts: Facts) -> Spec:
    """The spec as it is: `verbs.create` gives the value to the hook."""
    return spec


def explain(asked: Network, ceiling: Network, granted: Network) -> list[Decrease]:
    out = []
    if asked.outbound != granted.outbound:
        why = "no peer may be reached but those that are named"
        allow = '[network] outbound = ["tcp:ADDRESS:PORT"]'
        out.append(Decrease("outbound", _peers(asked), _peers(granted), why, allow))
    if asked.inbound != granted.inbound:
        before, after = (listening(value.inbound) for value in (asked, granted))
        out.append(
            Decrease("inbound", before, after, "no port is open but those named", '[network] inbound = ["tcp:PORT"]')
        )
    for name, line in (("dns", '[network] dns = "engine"'), ("icmp", "[network] icmp = true")):
        if getattr(asked, name) and not getattr(granted, name):
            why = "a resolver forwards what it is asked" if name == "dns" else "an echo carries what it is given"
            out.append(Decrease(name, "open", "shut", why, line))
    if asked != granted and not out:
        why = "what is neither TCP nor UDP, the host's own services, and what nobody may be granted"
        out.append(Decrease("other", "open", "shut", why, '[network] mode = "engine"'))
    return out


def refusals(asked: Network, granted: Network) -> list[Exception]:
    return []


def block(cidr: str) -> Block:
    """(bits, first, last address) of "203.0.113.0/24" or an IPv6 one, as `inet_pton` reads it."""
    from _socket import AF_INET, AF_INET6, inet_pton

    text, _, bits = cidr.partition("/")
    packed = inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    width = len(packed) * 8
    size = 1 << width - int(bits or width)
    first = int.from_bytes(packed, "big") & ~(size - 1)
    return width, first, first + size - 1


def _each(ports: Any) -> tuple[Ports, ...]:
    """ "any" or (protocol, first port, last port), by protocol."""
    return tuple(
        EVERY if ports == "any" else _ports(r[1:] for r in ports if r[0] == protocol) for protocol in PROTOCOLS
    )


def _ports(ranges: Iterable[tuple[int, int]]) -> Ports:
    return tuple(merged(ranges))


def _meet_ports(a: Ports, b: Ports) -> Ports:
    return _ports((max(x[0], y[0]), min(x[1], y[1])) for x in a for y in b if x[0] <= y[1] and y[0] <= x[1])


def _map(grants: list[tuple[int, int, int, int]]) -> Map:
    """Grants (first, last address, first, last port) as one function from addresses to ports."""
    cuts = sorted({point for low, high, _, _ in grants for point in (low, high + 1)})
    coming = sorted(grants, reverse=True)
    here: list[tuple[int, int, int, int]] = []
    pieces = []
    for i, low in enumerate(cuts[:-1]):
        here = [grant for grant in here if grant[1] >= low]  # few: a start walks through all public blocks
        while coming and coming[-1][0] == low:
            here.append(coming.pop())
        pieces.append((low, cuts[i + 1] - 1, _ports((grant[2], grant[3]) for grant in here)))
    return _merged(pieces)


def _meet_maps(a: Map, b: Map) -> Map:
    return _merged(
        (max(x[0], y[0]), min(x[1], y[1]), _meet_ports(x[2], y[2]))
        for x in a
        for y in b
        if x[0] <= y[1] and y[0] <= x[1]
    )


def _merged(pieces: Iterable[tuple[int, int, Ports]]) -> Map:
    out: list[tuple[int, int, Ports]] = []
    for first, last, ports in pieces:
        if out and out[-1][2] == ports and out[-1][1] + 1 == first:
            out[-1] = (out[-1][0], last, ports)
        elif ports:
            out.append((first, last, ports))
    return tuple(out)


def holds(blocks: list[Block], cidr: str) -> bool:
    """Whether all of an address, or of a network, is in one of the blocks."""
    width, low, high = block(cidr)
    return any(width == one[0] and one[1] <= low and high <= one[2] for one in blocks)


def within(grants: list[Grant], blocks: list[Block]) -> list[Grant]:
    """Those of single IPv4 addresses that are in one of the blocks."""
    single = {_address(low, width) for width, low, high in blocks if low == high and width == WIDTHS[0]}
    wide = [one for one in blocks if one[0] == WIDTHS[0] and one[1] != one[2]]
    return [
        grant
        for grant in grants
        if _is_single(grant[1]) and ((address := grant[1].partition("/")[0]) in single or holds(wide, address))
    ]


def without(grants: list[Grant], blocks: list[Block]) -> list[Grant]:
    """Grants (protocol, CIDR, first port, last port) less networks, unless one address is granted for itself; the same
    list where there is nothing to take.
    """
    out, taken = [], False
    for grant in grants:
        if _is_single(grant[1]):
            out.append(grant)
            continue
        left = [block(grant[1])]
        for gone in blocks:
            parts = [part for one in left for part in _around(one, gone)]
            left, taken = parts, taken or parts != left
        out += [
            (grant[0], f"{_address(low, width)}/{width - (high - low).bit_length()}", *grant[2:])
            for width, low, high in left
        ]
    return out if taken else grants


def _is_single(cidr: str) -> bool:
    """Whether it is one address, as it is written."""
    address, _, bits = cidr.partition("/")
    return bits in ("", "128" if ":" in address else "32")


def _around(one: Block, gone: Block) -> list[Block]:
    """A network without another, as halves of halves: one of both holds the other, or they are apart."""
    width, low, high = one
    own, first, last = gone
    if own != width or last < low or high < first:
        return [one]
    out = []
    while low < first or last < high:
        middle = (low + high) // 2
        if last <= middle:
            out.append((width, middle + 1, high))
            high = middle
        else:
            out.append((width, low, middle))
            low = middle + 1
    return out


def words(value: Network) -> str:
    """The value on one line, as `explain` shows it."""
    if value.open:
        return "unfiltered"
    more = [name for name in ("dns", "icmp") if getattr(value, name)]
    services = [f"host services {listening(value.services)}"] if value.services != ((), ()) else []
    return "; ".join((f"outbound {_peers(value)}", f"inbound {listening(value.inbound)}", *services, *more))


def _peers(value: Network) -> str:
    if value.outbound == ANYWHERE:
        return "anyone"
    blocks = [(protocol, width, *one) for (protocol, width), room in zip(ROOMS, value.outbound) for one in room]
    shown = [
        f"{protocol} {_address(first, width)}{'' if first == last else '-' + _address(last, width)}:{_spans(ports)}"
        for protocol, width, first, last, ports in blocks[:SHOWN]
    ]
    return ", ".join(shown) + (f" and {len(blocks) - SHOWN} more" if len(blocks) > SHOWN else "") or "nobody"


def listening(ports: tuple[Ports, ...]) -> str:
    """Ports by protocol on one line."""
    named = [f"{protocol} {_spans(spans)}" for protocol, spans in zip(PROTOCOLS, ports) if spans]
    return "every port" if ports == (EVERY, EVERY) else ", ".join(named) or "no port"


def _spans(ports: Ports) -> str:
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ports)


def _address(number: int, width: int) -> str:
    from _socket import AF_INET, AF_INET6, inet_ntop

    return inet_ntop(AF_INET if width == WIDTHS[0] else AF_INET6, number.to_bytes(width // 8, "big"))
