"""What nf_tables is asked: requests for a chain, a table, and for dumps of rules and elements. Hot: without _struct.

Next door: `netlink.Socket` asks; `nft_read` reads what is answered; `nft` makes tables, sets and rules.
"""

from __future__ import annotations

from sys import byteorder

from hooks.netlink import DUMP, message

SUBSYSTEM = 10 << 8
GETTABLE, GETCHAIN, GETRULE, GETSETELEM = 1, 4, 7, 13
INET, IP, ARP, BRIDGE = 1, 2, 3, 7  # families
HEAD = 4  # bytes of a struct nfgenmsg


def head(family: int, resource: int = 0) -> bytes:
    """A struct nfgenmsg: family, version 0, and the resource in network order (linux/netfilter/nfnetlink.h)."""
    return bytes((family, 0, resource >> 8, resource & 255))


def list_elements(table: str, name: str, family: int = INET) -> bytes:
    """The request for a dump of a set: for `netlink.Socket.dump`."""
    return message(SUBSYSTEM | GETSETELEM, DUMP, head(family) + _text(1, table) + _text(2, name))


def list_rules(table: str, family: int) -> bytes:
    """The request for a dump of a table's rules; there are none where there is no table."""
    return message(SUBSYSTEM | GETRULE, DUMP, head(family) + _text(1, table))


def chain_named(family: int, table: str, name: str) -> bytes:
    """The request for one chain: for `netlink.Socket.get`; ENOENT where it is not there."""
    return message(SUBSYSTEM | GETCHAIN, 0, head(family) + _text(1, table) + _text(3, name))


def table_named(family: int, name: str) -> bytes:
    """The request for one table: for `netlink.Socket.get`; ENOENT where it is not there."""
    return message(SUBSYSTEM | GETTABLE, 0, head(family) + _text(1, name))


def _text(kind: int, value: str) -> bytes:
    """As `attributes.text`."""
    data = value.encode() + b"\0"
    size = len(data) + 4
    return size.to_bytes(2, byteorder) + kind.to_bytes(2, byteorder) + data + bytes(-size & 3)
