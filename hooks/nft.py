"""nf_tables as netlink messages: tables, chains, sets, elements, rules and the expressions that rules are made of.

Belongs here: linux/netfilter/nf_tables.h, in as far as it is used here. Next door: `lock` and `host` say which rules
and elements; `netlink` knows messages and attributes. An expression is bytes, a rule is expressions one behind the
other, a batch is messages that happen together or not at all.

Registers: 1 is one of 16 bytes, 9 to 14 are the words of 4 bytes behind its first, so that a key of fields lies in 1,
9, 10 … as the kernel compares it. Register 0 is the verdict.
"""

from __future__ import annotations

from hooks.attributes import attribute, nested, text, u32, u64
from hooks.netlink import ACK, APPEND, CREATE, EXCL, message
from hooks.nft_ask import ARP, BRIDGE, INET, SUBSYSTEM, head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Message = tuple[int, int, bytes]  # type, flags, payload behind the nfnetlink header

BEGIN, END = 16, 17
NEWTABLE, DELTABLE, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM, DELSETELEM = 0, 2, 3, 6, 9, 12, 14
FIRST_REGISTER, NEXT_REGISTER = 1, 9

# Hooks, verdicts, set flags
INPUT, FORWARD, OUTPUT = 1, 2, 3
DROP, ACCEPT, JUMP, GOTO = 0, 1, -3, -4
INTERVAL, TIMEOUT, DYNAMIC, CONCAT = 0x4, 0x10, 0x20, 0x80

# Data types as nft(8) numbers them: only for whoever lists the set
IPV4_ADDR, IPV6_ADDR, INET_PROTO, INET_SERVICE = 7, 8, 12, 13
WIDTHS = {IPV4_ADDR: 4, IPV6_ADDR: 16, INET_PROTO: 1, INET_SERVICE: 2}

# Keys of meta and ct, states and directions, bases of payload, comparisons
IIF, OIF, NFPROTO, L4PROTO = 4, 5, 15, 16
STATE, DIRECTION, PROTOCOL, PROTO_SRC, PROTO_DST, SRC_IP, SRC_IP6 = 0, 1, 10, 11, 12, 19, 21
INVALID, ESTABLISHED, RELATED, NEW = 1, 2, 4, 8
ORIGINAL, REPLY = 0, 1
NETWORK, TRANSPORT = 1, 2
EQUAL, UNEQUAL, LEAST, MOST = 0, 1, 5, 3

PER_MESSAGE = 500  # elements: a list is one attribute of at most 64 KiB, and an element is up to 76 bytes

_FAMILIES = {family: head(family) for family in (INET, ARP, BRIDGE)}
_BATCH = head(0, SUBSYSTEM >> 8)


# Messages


def batch(every: Iterable[Message]) -> bytes:
    """All of `every`, of tables inet, in one transaction, with one acknowledgement: of the last, since an error of any
    comes before it.
    """
    return mixed((INET, one) for one in every)


def mixed(every: Iterable[tuple[int, Message]]) -> bytes:
    """As `batch`, each message for the tables of a family."""
    whole = list(every)
    last = len(whole)
    parts = [message(BEGIN, 0, _BATCH)]
    for place, (family, (kind, flags, payload)) in enumerate(whole, 1):
        body = _FAMILIES[family] + payload
        parts.append(message(SUBSYSTEM | kind, flags | ACK if place == last else flags, body, place))
    parts.append(message(END, 0, _BATCH, last + 1))
    return b"".join(parts)


def new_table(table: str) -> Message:
    """EEXIST where it is there already: that namespace is confined, and by another plan."""
    return NEWTABLE, CREATE | EXCL, text(1, table) + u32(2, 0)


def drop_table(table: str) -> Message:
    """The table with all that is in it."""
    return DELTABLE, 0, text(1, table)


def new_chain(table: str, name: str, hook: int | None = None) -> Message:
    """A regular chain; or, with `hook`, a base chain of type filter, priority 0 and policy drop."""
    payload = text(1, table) + text(3, name)
    if hook is not None:
        payload += nested(4, u32(1, hook), u32(2, 0)) + u32(5, DROP) + text(7, "filter")
    return NEWCHAIN, CREATE, payload


def new_rules(table: str, chain: str, every: list[bytes]) -> list[Message]:
    """Rules behind those that the chain has, each given as its expressions."""
    head = text(1, table) + text(2, chain)
    return [(NEWRULE, CREATE | APPEND, head + nested(4, expressions)) for expressions in every]


def new_set(
    table: str, name: str, number_: int, fields: tuple[int, ...], flags: int, size: int = 0, counted: bool = False
) -> Message:
    """A set of concatenated `fields` (data types above), unlimited where `size` is 0; `counted`: packets and bytes for
    each element. `number_` is its own within the batch. With INTERVAL each field may be a range (pipapo: Linux 5.6).
    """
    kind = 0
    length = 0
    for field in fields:
        kind = kind << 6 | field
        length += (WIDTHS[field] + 3) & ~3
    payload = text(1, table) + text(2, name)
    described = u32(1, size) if size else b""
    if flags & INTERVAL:
        flags |= CONCAT
        described += nested(2, *[nested(1, u32(1, WIDTHS[field])) for field in fields])
    payload += u32(3, flags) + u32(4, kind) + u32(5, length) + nested(9, described) + u32(10, number_)
    return NEWSET, CREATE, payload + _COUNTER_OF_SET if counted else payload


def new_elements(table: str, name: str, keys: list[tuple[bytes, bytes]]) -> list[Message]:
    """(first key, last key) each; the last is empty in a set without ranges."""
    head = text(1, table) + text(2, name)
    out: list[Message] = []
    for start in range(0, len(keys), PER_MESSAGE):
        part = [_element(first, last) for first, last in keys[start : start + PER_MESSAGE]]
        out.append((NEWSETELEM, CREATE, head + nested(3, *part)))
    return out


def entry(table: str, name: str, key: bytes, last: bytes = b"", data: bytes = b"") -> Message:
    """One element that must not be there yet: EEXIST. `last`: of a range; `data`: of a map, see `chain` and `value`."""
    parts = [nested(1, attribute(1, key)), *([nested(10, attribute(1, last))] if last else []), data]
    return NEWSETELEM, CREATE | EXCL, text(1, table) + text(2, name) + nested(3, nested(1, *parts))


def chain(name: str) -> bytes:
    """The data of a verdict map: a chain, which comes back where it has no rule for the packet."""
    return nested(2, nested(2, u32(1, JUMP & 0xFFFFFFFF), text(2, name)))


def value(data: bytes) -> bytes:
    """The data of any other map: its fields, each padded to 4."""
    return nested(2, attribute(1, data))


def lease(table: str, name: str, key: bytes, milliseconds: int) -> Message:
    """One element that the kernel ends; EEXIST where the key is there: its time would not be set anew (before 6.12)."""
    element = nested(1, nested(1, attribute(1, key)), u64(4, milliseconds))
    return NEWSETELEM, CREATE | EXCL, text(1, table) + text(2, name) + nested(3, element)


def release(table: str, name: str, key: bytes, last: bytes = b"") -> Message:
    """The end of one element; ENOENT where it is not there."""
    return DELSETELEM, 0, text(1, table) + text(2, name) + nested(3, _element(key, last))


def _element(first: bytes, last: bytes) -> bytes:
    if last:
        return nested(1, nested(1, attribute(1, first)), nested(10, attribute(1, last)))
    return nested(1, nested(1, attribute(1, first)))


# Expressions


def _expression(name: str, *parts: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *parts))


def meta(key: int, register: int = 1) -> bytes:
    """Load what is known of a packet besides its bytes: interface, family, protocol."""
    return _expression("meta", u32(2, key), u32(1, register))


def ct(key: int, register: int = 1, direction: int | None = None) -> bytes:
    """Load what conntrack knows of the packet's flow; the rule ends here where the packet is not tracked."""
    side = b"" if direction is None else attribute(3, bytes((direction,)))
    return _expression("ct", u32(2, key), u32(1, register), side)


def source_kind(register: int = 1) -> bytes:
    """Load what the routing table says of the packet's source address: fib saddr type, a number of rtnetlink(7)."""
    return _expression("fib", u32(1, register), u32(2, 3), u32(3, 1))


def payload(base: int, offset: int, length: int, register: int = 1) -> bytes:
    """Load bytes of a header; the rule ends here where the packet has none there (a later fragment)."""
    return _expression("payload", u32(1, register), u32(2, base), u32(3, offset), u32(4, length))


def extended(header: int, register: int = 1) -> bytes:
    """Load whether an IPv6 packet has an extension header, by its number: 1 or 0; the rule ends here for any other."""
    return _expression("exthdr", u32(1, register), attribute(2, bytes((header,))), *_PRESENCE)


def masked(mask: bytes, register: int = 1) -> bytes:
    """The register, and only these bits of it."""
    size = len(mask)
    both = nested(4, attribute(1, mask)), nested(5, attribute(1, bytes(size)))
    return _expression("bitwise", u32(1, register), u32(2, register), u32(3, size), u32(6, 0), *both)


def compared(value: bytes, how: int = EQUAL, register: int = 1) -> bytes:
    """Go on only where the register is so; bytes as they lie in the register."""
    return _expression("cmp", u32(1, register), u32(2, how), nested(3, attribute(1, value)))


def lookup(name: str) -> bytes:
    """Go on only where the key from register 1 on is in the set."""
    return _expression("lookup", u32(2, FIRST_REGISTER), text(1, name), u32(5, 0))


def update(name: str) -> bytes:
    """Count the packet at the key from register 1 on, adding it; the rule ends here where the set is full."""
    return _expression("dynset", u32(4, FIRST_REGISTER), u32(3, 1), text(1, name))


def verdict(code: int, chain: str = "") -> bytes:
    """ACCEPT or DROP; JUMP or GOTO with a chain."""
    target = text(2, chain) if chain else b""
    return _expression("immediate", u32(1, 0), nested(2, nested(2, u32(1, code & 0xFFFFFFFF), target)))


def counter() -> bytes:
    """Count the packets of a rule."""
    return _expression("counter", u64(1, 0), u64(2, 0))


def reject_reset() -> bytes:
    """Answer with a TCP RST: connect fails at once. Only where the packet is known to be TCP."""
    return _expression("reject", u32(1, 1))


def reject_prohibited() -> bytes:
    """Answer with ICMP or ICMPv6 "administratively prohibited"."""
    return _expression("reject", u32(1, 2), attribute(2, b"\3"))


_PRESENCE = u32(3, 0), u32(4, 1), u32(5, 1)  # offset, length, NFT_EXTHDR_F_PRESENT
_COUNTER_OF_SET = nested(17, text(1, "counter"), nested(2))
