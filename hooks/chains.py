"""The chains of the lock and their rules, in order. The rules for IPv4 and IPv6 are made by the same functions.

Belongs here: which packet is accepted, refused and counted, and why in this order. Next door: `stateless` does it
without conntrack, where that is enough; `lock` makes the sets and the transaction; `nft` the expressions. Words are
expressions, a rule is words one behind the other.

A flow has an original direction and a reply direction; conntrack tells which. Outbound flows are looked up by the far
address and port, inbound flows by our port, in both directions alike, as they lie in the packet at these hooks: behind
a DNAT on the way out, before it is taken back on the way in. For ICMP errors conntrack says whose flow they are about.

What most packets are is looked up first: those of IPv4, without options, of an outbound flow to one of @hosts. `alone`
keeps out of @hosts what a rule behind would refuse, and conntrack tells no direction of what is invalid; so these two
rules open nothing, and spare such a packet all the others.

Options of IPv4 and routing headers of IPv6 lead a packet on from the address that was looked up. A socket takes
segments from anybody, and on older kernels routes too. Packets that have any are refused, on lo as well; they are no
peer's, so they are not counted.
"""

from __future__ import annotations

from sys import byteorder

from hooks import nft
from hooks.nft import NETWORK, ORIGINAL, REPLY, TRANSPORT, compared, ct, lookup, masked, meta, payload, update

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hooks.grants import Keys

    Rules = dict[str, list[bytes]]  # chain -> its rules

GRANTS = ("hosts", "leased", "outbound")  # sets: one address and port each, until a time, ranges; the dearest last

# Not grantable, also not by "any": the first bytes of an address, and a mask where the prefix ends within a byte.
HARD4 = (
    (b"\xa9\xfe", b""),  # 169.254.0.0/16: link-local, with the metadata of most clouds
    (b"\x64\x64\x64\xc8", b""),  # 100.100.100.200: the metadata of Alibaba's
    (b"\x00", b""),  # 0.0.0.0/8: this host
    (b"\xe0\0\0\0", b"\xe0\0\0\0"),  # 224.0.0.0/3: multicast, reserved, broadcast
)
HARD6 = (
    (b"\xfe\x80" + bytes(14), b"\xff\xc0" + bytes(14)),  # fe80::/10: link-local
    (b"\xff", b""),  # ff00::/8: multicast
    (b"\xfd\x00\x0e\xc2" + bytes(10) + b"\x02\x54", b""),  # fd00:ec2::254: the metadata of AWS
    (b"\xfd\x20\x00\xce" + bytes(10) + b"\x02\x54", b""),  # fd20:ce::254: that of Google's
    (b"\x00\x64\xff\x9b" + bytes(8) + b"\xa9\xfe", b""),  # 64:ff9b::a9fe:0/112: 169.254.0.0/16 through NAT64
)
LOOPBACK4 = b"\x7f"


def is_hard(address: bytes) -> bool:
    """Whether the hard deny has these 4 or 16 bytes."""
    for value, mask in HARD6 if len(address) == 16 else HARD4:
        head = bytes([a & b for a, b in zip(address, mask, strict=True)]) if mask else address
        if head.startswith(value):
            return True
    return False


def alone(first: bytes, last: bytes) -> bool:
    """Whether a grant (keys of `hooks.grants`) belongs to the set of single hosts, which is looked up before all else:
    one address and one port, none that is refused whatever is granted, and none of lo, whose rules are others.
    """
    address = first[4:-4]
    return first == last and not is_hard(address) and (len(address) != 4 or not address.startswith(LOOPBACK4))


def split(keys: Keys) -> tuple[Keys, Keys]:
    """Those that are `alone`, and all others."""
    hosts: Keys = []
    ranges: Keys = []
    for key in keys:
        (hosts if alone(*key) else ranges).append(key)
    return hosts, ranges


RTN_LOCAL = 2
ROUTING = 43  # the extension header that says where a packet goes next


def _native(value: int) -> bytes:
    return value.to_bytes(4, byteorder)


def _state(bits: int) -> bytes:
    return ct(nft.STATE) + masked(_native(bits)) + compared(_native(0), nft.UNEQUAL)


ACCEPT, DROP = nft.verdict(nft.ACCEPT), nft.verdict(nft.DROP)
TCP, UDP = (meta(nft.L4PROTO) + compared(bytes((number,))) for number in (6, 17))
RESET = payload(TRANSPORT, 13, 1) + masked(b"\4") + compared(b"\4")
OUT_LO, IN_LO = (meta(key) + compared(_native(1)) for key in (nft.OIF, nft.IIF))
INVALID, RELATED, NEW = _state(nft.INVALID), _state(nft.RELATED), _state(nft.NEW)
HERE4, HERE6 = (meta(nft.NFPROTO) + compared(bytes((number,))) for number in (2, 10))
PLAIN4 = payload(NETWORK, 0, 1) + compared(b"\x45")  # version 4, and five words of header: no options
LED_ON4 = HERE4 + payload(NETWORK, 0, 1) + masked(b"\x0f") + compared(b"\5", nft.UNEQUAL)
LED_ON6 = HERE6 + nft.extended(ROUTING) + compared(b"\1")
FIRST_WAY, WAY_BACK = (ct(nft.DIRECTION) + compared(bytes((side,))) for side in (ORIGINAL, REPLY))
_L4 = meta(nft.L4PROTO)
_FLOW = ct(nft.PROTOCOL, 1)
OUR_PORT = ct(nft.PROTO_SRC, 9, REPLY)


class Family:
    """One address family: the suffix of its sets and chains, and the words that depend on it.

    `here`: the packet is of this family, said anew in each rule for whoever lists them; `to`, `of`: that, and load the
    key protocol . far address . far port of a packet that goes out, or comes in; `about`: of the outbound flow that an
    ICMP error is about; `caller`: protocol . far address . our port of a packet that comes in; `error`, `ping`, `pong`:
    kinds of ICMP; `hard`: the hard deny, without verdicts.
    """

    __slots__ = ("suffix", "here", "to", "of", "about", "caller", "error", "ping", "pong", "hard")

    def __init__(self, suffix: str, here: bytes, offsets: tuple[int, int], width: int, kinds: tuple[int, ...]) -> None:
        source, destination = offsets
        port = nft.NEXT_REGISTER + width // 4
        icmp, ping, pong = kinds
        address_key = nft.SRC_IP6 if suffix else nft.SRC_IP
        self.suffix = suffix
        self.here = here
        far, near = payload(NETWORK, destination, width, 9), payload(NETWORK, source, width, 9)
        self.to = here + _L4 + far + payload(TRANSPORT, 2, 2, port)
        self.of = here + _L4 + near + payload(TRANSPORT, 0, 2, port)
        self.caller = here + _L4 + near + payload(TRANSPORT, 2, 2, port)
        self.about = _FLOW + ct(address_key, 9, REPLY) + ct(nft.PROTO_SRC, port, REPLY)
        self.error = _L4 + compared(bytes((icmp,)))
        kind = here + self.error + payload(TRANSPORT, 0, 1)
        self.ping, self.pong = kind + compared(bytes((ping,))), kind + compared(bytes((pong,)))
        self.hard = [here + _prefix(destination, *one) for one in (HARD6 if suffix else HARD4)]


def _prefix(offset: int, value: bytes, mask: bytes) -> bytes:
    return payload(NETWORK, offset, len(value)) + (masked(mask) if mask else b"") + compared(value)


def family4() -> Family:
    """IPv4: source at 12, destination at 16; ICMP is 1, echo request 8, reply 0."""
    return Family("", HERE4, (12, 16), 4, (1, 8, 0))


def family6() -> Family:
    """IPv6: source at 8, destination at 24; ICMPv6 is 58, echo request 128, reply 129."""
    return Family("6", HERE6, (8, 24), 16, (58, 128, 129))


def rules(six: bool, dns: bool, icmp: bool) -> Rules:
    """Every chain with its rules. `six`: IPv6 is open as far as granted, else shut; `dns`: the engine's resolver on lo
    may be asked; `icmp`: echo in and out.
    """
    v4, v6 = family4(), family6()
    redirect = HERE4 + v4.error + payload(TRANSPORT, 0, 1) + compared(b"\5")
    return {
        "led_on": led_on(),
        "deny": denied(v4),
        "lo": lo(dns),
        "back": _back(v4, icmp),
        **_six(v6, six, icmp),
        "output": [
            PLAIN4 + FIRST_WAY + v4.to + lookup("hosts") + update("flows") + ACCEPT,
            HERE6 + nft.verdict(nft.GOTO, "output6"),
            OUT_LO + nft.verdict(nft.GOTO, "lo"),
            LED_ON4 + nft.verdict(nft.GOTO, "led_on"),
            INVALID + DROP,
            *_output(v4, icmp),
        ],
        "input": [
            PLAIN4 + WAY_BACK + v4.of + lookup("hosts") + ACCEPT,
            HERE6 + nft.verdict(nft.GOTO, "input6"),
            IN_LO + ACCEPT,
            LED_ON4 + DROP,
            INVALID + DROP,
            redirect + DROP,
            *_input(v4, icmp),
        ],
        "forward": [DROP],
    }


def led_on() -> list[bytes]:
    """What refuses, without a record."""
    return [TCP + nft.reject_reset(), nft.reject_prohibited()]


def lo(dns: bool) -> list[bytes]:
    """127.0.0.11 is not accepted with the rest of lo: Docker's resolver answers there, and forwards from the host's
    network: a tunnel through any lock.
    """
    resolver = HERE4 + payload(NETWORK, 16, 4) + compared(b"\x7f\0\0\x0b") + nft.verdict(nft.GOTO, "deny")
    return [LED_ON4 + nft.verdict(nft.GOTO, "led_on"), *([] if dns else [resolver]), ACCEPT]


def shut6() -> list[bytes]:
    """IPv6 on its way out, where nothing of it is granted."""
    return [nft.counter(), *led_on()]


def _six(v6: Family, six: bool, icmp: bool) -> Rules:
    """IPv6, on lo as it is."""
    led = LED_ON6 + nft.verdict(nft.GOTO, "led_on")
    out, into = [led, OUT_LO + ACCEPT, INVALID + DROP], [IN_LO + ACCEPT, LED_ON6 + DROP, INVALID + DROP]
    if not six:
        return {"output6": [*out, *shut6()], "input6": [*into, nft.counter(), DROP]}
    # Router and neighbour solicitation and advertisement, without which no address is reached: 133 to 136.
    kind = HERE6 + v6.error + payload(TRANSPORT, 0, 1)
    discovery = kind + compared(b"\x85", nft.LEAST) + compared(b"\x88", nft.MOST) + ACCEPT
    # IPv6 takes any source (IPV6_FREEBIND needs no right): on lo a packet to itself would make conntrack believe that
    # a stranger has called, and the answer go out; elsewhere it would go out in a neighbour's name. What the kernel
    # itself answers by lo in a stranger's name is not new.
    foreign = HERE6 + NEW + nft.source_kind() + compared(_native(RTN_LOCAL), nft.UNEQUAL)
    return {
        "deny6": denied(v6),
        "back6": _back(v6, icmp),
        "output6": [foreign + DROP, *out, discovery, *_output(v6, icmp)],
        "input6": [*into, discovery, *_input(v6, icmp)],
    }


def _output(family: Family, icmp: bool) -> list[bytes]:
    suffix = family.suffix
    deny = nft.verdict(nft.GOTO, "deny" + suffix)
    count = update("flows" + suffix) + ACCEPT
    return [
        *[hard + deny for hard in family.hard],
        RELATED + TCP + RESET + ACCEPT,  # only the kernel's own: it answers what the input chain rejects
        WAY_BACK + nft.verdict(nft.JUMP, "back" + suffix),
        *[family.to + lookup(name + suffix) + count for name in GRANTS],
        *([family.ping + ACCEPT] if icmp else []),
        deny,
    ]


def _back(family: Family, icmp: bool) -> list[bytes]:
    """Answers to those who called; what goes out in another flow is looked up as any packet."""
    return [
        _L4 + payload(TRANSPORT, 0, 2, 9) + lookup("inbound") + ACCEPT,
        RELATED + family.error + _FLOW + OUR_PORT + lookup("inbound") + ACCEPT,
        *([family.pong + ACCEPT] if icmp else []),
    ]


def _input(family: Family, icmp: bool) -> list[bytes]:
    suffix = family.suffix
    count = family.caller + update("refused" + suffix)
    error = RELATED + family.error
    return [
        *[WAY_BACK + family.of + lookup(name + suffix) + ACCEPT for name in GRANTS],
        *[WAY_BACK + error + family.about + lookup(name + suffix) + ACCEPT for name in GRANTS],
        FIRST_WAY + _L4 + payload(TRANSPORT, 2, 2, 9) + lookup("inbound") + ACCEPT,
        FIRST_WAY + error + _FLOW + OUR_PORT + lookup("inbound") + ACCEPT,
        *([WAY_BACK + family.pong + ACCEPT, family.ping + ACCEPT] if icmp else []),
        TCP + count,
        TCP + nft.reject_reset(),
        UDP + count,
        DROP,
    ]


def denied(family: Family) -> list[bytes]:
    """What counts and refuses."""
    count = family.to + update("denied" + family.suffix)
    return [TCP + count, TCP + nft.reject_reset(), UDP + count, nft.reject_prohibited()]
