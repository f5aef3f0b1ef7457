"""Attributes of netlink messages: to write, and to read.

Belongs here: what lies behind a message's head, whatever the family (linux/netlink.h). Next door: `netlink` has the
heads and asks; `nft` knows nf_tables, `link` rtnetlink.
"""

from __future__ import annotations

from _struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NESTED = 0x8000
_KIND = 0x3FFF  # without NESTED and the bit for network byte order

_ATTRIBUTE = Struct("=HH")
_U32 = Struct(">I")
_U64 = Struct(">Q")
_PADS = (b"", b"\0", b"\0\0", b"\0\0\0")


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to 4. Needs len(payload) < 65,532: the length is 16 bits."""
    size = len(payload) + 4
    return _ATTRIBUTE.pack(size, kind) + payload + _PADS[-size & 3]


def nested(kind: int, *attributes: bytes) -> bytes:
    """One attribute that holds others."""
    return attribute(kind | NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """A string with its NUL."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """32 bits in network order, as all of nfnetlink."""
    return attribute(kind, _U32.pack(value))


def u64(kind: int, value: int) -> bytes:
    """64 bits in network order."""
    return attribute(kind, _U64.pack(value))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind without its flags, payload) of each attribute; ValueError where a length does not fit."""
    at = 0
    while at < len(data):
        if len(data) - at < 4:
            raise ValueError("a netlink attribute cut off in its header")
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < 4 or size > len(data) - at:
            raise ValueError(f"a netlink attribute of {size} bytes where {len(data) - at} are left")
        yield kind & _KIND, data[at + 4 : at + size]
        at += (size + 3) & ~3


def number(payload: bytes) -> int:
    """An integer of any width in network order."""
    return int.from_bytes(payload, "big")


def string(payload: bytes) -> str:
    """A string without its NUL; bytes that are no UTF-8 stay visible."""
    return payload.rstrip(b"\0").decode("utf-8", "backslashreplace")
