"""Grants as keys of kernel sets: what the section `network` lists, taken apart so that no two keys overlap.

Belongs here: addresses and ports as numbers and as bytes of a set's key. Next door: `lock` puts them into its table,
`records` reads keys back. A set of ranges refuses elements that overlap, and what people write does overlap
(a network on one port, one of its hosts on all): networks are nested or apart, so taking from each network the ports
that a wider one has leaves the same grants in keys that are apart.
"""

from __future__ import annotations

from _struct import Struct

from shim.errors import Invalid
from shim.lattice import merged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Range = tuple[int, int]
    Keys = list[tuple[bytes, bytes]]  # first and last
    Nets = dict[tuple[int, int, int], list[Range]]  # protocol, address, prefix length -> ports

PROTOCOLS = {"tcp": 6, "udp": 17}
NAMES = {number: name for name, number in PROTOCOLS.items()}
LAST_PORT = 65535
DNS = 53
FEW = 64  # keys more, where ports of an address are kept apart: 2 µs of a start each, but a range costs every packet

# proto . address . port and proto . port: each field fills up its words of 4 bytes
KEY4 = Struct(">B3x4sH2x")
KEY6 = Struct(">B3x16sH2x")
KEY = Struct(">B3xH2x")
KEYS = {4: KEY4, 16: KEY6}


def outbound(network: dict[str, Any]) -> tuple[Keys, Keys]:
    """The keys that are granted, of IPv4 and of IPv6. Invalid where an address, a port or a protocol is none."""
    nets: dict[int, Nets] = {4: {}, 16: {}}
    asked = network.get("outbound", [])
    if asked == "any":
        asked = [(proto, net, 0, LAST_PORT) for proto in PROTOCOLS for net in ("0.0.0.0/0", "::/0")]
    if network.get("dns"):
        asked = [*asked, *[(proto, at, DNS, DNS) for at in network.get("resolvers", []) for proto in PROTOCOLS]]
    for proto, net, first, last in asked:
        width, address, prefix = parsed(net)
        nets[width].setdefault((_protocol(proto), address, prefix), []).append(_ports(first, last, "outbound"))
    return _keys(nets[4], 4), _keys(nets[16], 16)


def inbound(network: dict[str, Any]) -> Keys:
    """The keys proto . port that may be reached from outside."""
    asked = network.get("inbound", [])
    if asked == "any":
        asked = [(proto, 0, LAST_PORT) for proto in PROTOCOLS]
    ports: dict[int, list[Range]] = {}
    for proto, first, last in asked:
        ports.setdefault(_protocol(proto), []).append(_ports(first, last, "inbound"))
    return [
        (KEY.pack(proto, first), KEY.pack(proto, last))
        for proto, ranges in ports.items()
        for first, last in merged(ranges)
    ]


def address_of(text: str) -> bytes:
    """The 4 or 16 bytes of one address; Invalid where it is none."""
    width, address, prefix = parsed(text)
    if prefix != width * 8:
        raise Invalid("network", "address", text, "one address", "write it without a prefix length")
    return address.to_bytes(width, "big")


def parsed(net: str) -> tuple[int, int, int]:
    """(bytes of an address, first address, prefix length) of "203.0.113.0/24", "2001:db8::1", …"""
    text, slash, length = net.partition("/")
    packed = _packed6(text) if ":" in text else _packed4(text)
    bits = len(packed) * 8
    if not packed or (slash and not (length.isascii() and length.isdigit() and int(length) <= bits)):
        raise Invalid("network", "address", net, "an address or a network", "write it as 203.0.113.0/24 or 2001:db8::1")
    prefix = int(length) if slash else bits
    return len(packed), int.from_bytes(packed, "big") >> (bits - prefix) << (bits - prefix), prefix


def _packed4(text: str) -> bytes:
    """4 bytes; none where it is no dotted quad. A leading zero is octal to some readers: no address here."""
    try:
        parts = [int(part) for part in text.split(".")]
        return bytes(parts) if len(parts) == 4 and ".".join(map(str, parts)) == text else b""
    except ValueError:
        return b""


def _packed6(text: str) -> bytes:
    from _socket import inet_pton  # 0.1 ms: only a policy with IPv6 grants pays it

    try:
        return inet_pton(10, text)
    except (OSError, ValueError):
        return b""


def _protocol(name: str) -> int:
    if name not in PROTOCOLS:
        raise Invalid("network", "protocol", name, "tcp or udp", "correct the grant")
    return PROTOCOLS[name]


def _ports(first: int, last: int, key: str) -> Range:
    if not 0 <= first <= last <= LAST_PORT:
        raise Invalid(
            "network", key, f"ports {first}-{last}", f"0 to {LAST_PORT}, the first first", "correct the grant"
        )
    return first, last


def _keys(nets: Nets, width: int) -> Keys:
    pack = KEYS[width].pack
    bits = width * 8
    out: Keys = []
    for (proto, address, prefix), ports in disjoint(nets, bits).items():
        lowest = address.to_bytes(width, "big")
        highest = (address | (1 << bits - prefix) - 1).to_bytes(width, "big")
        out += [(pack(proto, lowest, first), pack(proto, highest, last)) for first, last in ports]
    return out


def apart(keys: Keys, most: int = 1 << 32) -> Keys:
    """The same grants, of IPv4 keys of one address with each port by itself; as they are where that would make more
    than `most` keys more.
    """
    out: Keys = []
    more = 0
    for first, last in keys:
        if len(first) != KEY4.size or first[4:8] != last[4:8]:
            out.append((first, last))
            continue
        protocol, address, port = KEY4.unpack(first)
        end = KEY4.unpack(last)[2]
        more += end - port
        if more > most:
            return keys
        singles = [KEY4.pack(protocol, address, one) for one in range(port, end + 1)]
        out += zip(singles, singles, strict=True)
    return out


def disjoint(nets: Nets, bits: int) -> Nets:
    """The same addresses and ports, each once: a network keeps the ports that no wider network of its protocol has."""
    lengths = sorted({prefix for _, _, prefix in nets})
    out: Nets = {}
    for (proto, address, prefix), ports in sorted(nets.items()):
        wider: list[Range] = []
        for length in lengths:
            if length < prefix:
                wider += nets.get((proto, address >> (bits - length) << (bits - length), length), ())
        left = minus(merged(ports), merged(wider))
        if left:
            out[proto, address, prefix] = left
    return out


def minus(ranges: list[Range], taken: list[Range]) -> list[Range]:
    """The numbers of `ranges` that are not in `taken`; both merged."""
    out: list[Range] = []
    for low, last in ranges:
        first = low
        for start, end in taken:
            if end >= first and start <= last:
                if start > first:
                    out.append((first, start - 1))
                first = end + 1
        if first <= last:
            out.append((first, last))
    return out
