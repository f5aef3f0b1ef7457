"""What nf_tables says of itself: requests for dumps, and what is in their answers.

Next door: `nft` makes tables, sets and rules; `netlink.Socket.dump` asks.
"""

from __future__ import annotations

from _struct import Struct

from hooks.netlink import DUMP, attributes, message, number, string, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Element = tuple[bytes, bytes, int, int, int, int]  # key, last key, timeout ms, expires ms, packets, bytes

SUBSYSTEM = 10 << 8
GETTABLE, GETCHAIN, GETRULE, GETSETELEM = 1, 4, 7, 13
INET, IP, ARP, BRIDGE = 1, 2, 3, 7  # families; 0 in a request for a dump: all of them

NFNETLINK = Struct(">BBH")  # family, version, resource
_SIZE = NFNETLINK.size


def list_elements(table: str, name: str, family: int = INET) -> bytes:
    """The request for a dump of a set: for `netlink.Socket.dump`."""
    return message(SUBSYSTEM | GETSETELEM, DUMP, NFNETLINK.pack(family, 0, 0) + text(1, table) + text(2, name))


def list_rules(table: str, family: int) -> bytes:
    """The request for a dump of a table's rules; there are none where there is no table."""
    return message(SUBSYSTEM | GETRULE, DUMP, NFNETLINK.pack(family, 0, 0) + text(1, table))


def chain_named(family: int, table: str, name: str) -> bytes:
    """The request for one chain: for `netlink.Socket.get`; ENOENT where it is not there."""
    return message(SUBSYSTEM | GETCHAIN, 0, NFNETLINK.pack(family, 0, 0) + text(1, table) + text(3, name))


def list_tables(family: int) -> bytes:
    """The request for a dump of a family's tables."""
    return message(SUBSYSTEM | GETTABLE, DUMP, NFNETLINK.pack(family, 0, 0))


def elements(payloads: Iterable[bytes]) -> list[Element]:
    """The elements of a set, in no order, each once (a walk over a table that grows shows some of them twice)."""
    found: dict[bytes, Element] = {}
    for payload in payloads:
        for kind, value in attributes(payload[_SIZE:]):
            if kind == 3:
                for _, one in attributes(value):
                    element = _decoded(one)
                    found[element[0]] = element
    return list(found.values())


def entries(payloads: Iterable[bytes]) -> dict[tuple[bytes, bytes], bytes]:
    """(key, last key) -> data of the elements of a map: the name of a verdict's chain, or the fields."""
    found: dict[tuple[bytes, bytes], bytes] = {}
    for payload in payloads:
        for kind, value in attributes(payload[_SIZE:]):
            if kind == 3:
                for _, one in attributes(value):
                    fields = dict(attributes(one))
                    found[_data(fields[1]), _data(fields.get(10, b""))] = _target(fields.get(2, b""))
    return found


def bodies(payloads: Iterable[bytes]) -> list[tuple[int, bytes]]:
    """(family, what is said) without the rest of the heads: they hold the number of the last change of any table."""
    return [(payload[0], payload[_SIZE:]) for payload in payloads]


def chain_state(payload: bytes) -> tuple[int, int]:
    """(handle, how many rules it has and how many jump to it) of the answer to `chain_named`."""
    fields = dict(attributes(payload[_SIZE:]))
    return number(fields[2]), number(fields[6])


def chain_of(body: bytes) -> str:
    """The chain of a rule in a dump of them."""
    return string(dict(attributes(body))[2])


def flags_of(payloads: Iterable[bytes], table: str) -> list[tuple[int, int]]:
    """(family, flags) of the tables of a name in a dump of tables; flag 1: dormant, no rule of it is asked."""
    found = [(family, dict(attributes(body))) for family, body in bodies(payloads)]
    return [(family, number(fields[2])) for family, fields in found if string(fields[1]) == table]


def _target(nest: bytes) -> bytes:
    fields = dict(attributes(nest))
    return dict(attributes(fields[2])).get(2, b"").rstrip(b"\0") if 2 in fields else fields.get(1, b"")


def _decoded(data: bytes) -> Element:
    fields = dict(attributes(data))
    counts = _counts(fields[7]) if 7 in fields else (0, 0)
    return _data(fields[1]), _data(fields.get(10, b"")), number(fields.get(4, b"")), number(fields.get(5, b"")), *counts


def _data(nest: bytes) -> bytes:
    return dict(attributes(nest)).get(1, b"")


def _counts(expression: bytes) -> tuple[int, int]:
    inner = dict(attributes(dict(attributes(expression)).get(2, b"")))
    return number(inner.get(2, b"")), number(inner.get(1, b""))
