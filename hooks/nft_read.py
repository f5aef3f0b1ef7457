"""What nf_tables answers: the elements of its sets, and whose a rule is.

Next door: `nft_ask` has the questions; `nft` makes tables, sets and rules.
"""

from __future__ import annotations

from hooks.attributes import attributes, number, string
from hooks.nft_ask import HEAD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Element = tuple[bytes, bytes, int, int, int, int]  # key, last key, timeout ms, expires ms, packets, bytes


def elements(payloads: Iterable[bytes]) -> list[Element]:
    """The elements of a set, in no order, each once (a walk over a table that grows shows some of them twice)."""
    found: dict[bytes, Element] = {}
    for payload in payloads:
        for kind, value in attributes(payload[HEAD:]):
            if kind == 3:
                for _, one in attributes(value):
                    element = _decoded(one)
                    found[element[0]] = element
    return list(found.values())


def entries(payloads: Iterable[bytes]) -> dict[tuple[bytes, bytes], bytes]:
    """(key, last key) -> data of the elements of a map: the name of a verdict's chain, or the fields."""
    found: dict[tuple[bytes, bytes], bytes] = {}
    for payload in payloads:
        for kind, value in attributes(payload[HEAD:]):
            if kind == 3:
                for _, one in attributes(value):
                    fields = dict(attributes(one))
                    found[_data(fields[1]), _data(fields.get(10, b""))] = _target(fields.get(2, b""))
    return found


def chain_of(payload: bytes) -> str:
    """The chain of a rule in a dump of them."""
    return string(dict(attributes(payload[HEAD:]))[2])


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
