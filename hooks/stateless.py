"""The chains of the lock inside where the host's lock has conntrack, and each peer is known by its address and port:
every packet is judged by its own bytes. Where no rule asks for conntrack, the kernel has none in that namespace.

Belongs here: which packet is accepted, refused and counted, and why in this order. Next door: `chains`, the same lock
with conntrack, for an engine's network, for ranges, and for whoever is called: what goes out there as an answer cannot
be told from what begins.

What comes in beyond what conntrack would let in, where nobody else is in the way: what whoever writes a peer's address
and port as source sends unasked, but for a SYN; and an ICMP error about a packet to a peer, from anybody, which a UDP
socket that is not connected believes. Nothing of it is refused to an agent that has asked the peer for it.
"""

from __future__ import annotations

from hooks import nft
from hooks.chains import (
    ACCEPT,
    DROP,
    HERE6,
    IN_LO,
    LED_ON4,
    LED_ON6,
    OUT_LO,
    PLAIN4,
    TCP,
    UDP,
    denied,
    family4,
    led_on,
    lo,
    shut6,
)
from hooks.nft import TRANSPORT, compared, lookup, masked, payload, update

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hooks.chains import Rules

GRANTS = ("hosts", "leased")
CALL = TCP + payload(TRANSPORT, 13, 1) + masked(b"\x12") + compared(b"\2")  # SYN without ACK
# Behind the 8 bytes of an ICMP error, the head of the packet that it is about, and the first 8 bytes of what that held.
ERROR = payload(TRANSPORT, 0, 1) + masked(b"\xf7") + compared(b"\3")  # 3, not reached, and 11, time exceeded
ABOUT = (
    payload(TRANSPORT, 8, 1)
    + compared(b"\x45")
    + payload(TRANSPORT, 17, 1)
    + payload(TRANSPORT, 24, 4, 9)
    + payload(TRANSPORT, 30, 2, 10)
)


def rules(dns: bool) -> Rules:
    """Every chain with its rules. `dns`: the engine's resolver on lo may be asked."""
    v4 = family4()
    led = nft.verdict(nft.GOTO, "led_on")
    deny, peer, unasked = (nft.verdict(nft.GOTO, name) for name in ("deny", "peer", "unasked"))
    count, refused = update("flows") + ACCEPT, v4.caller + update("refused")
    return {
        "led_on": led_on(),
        "deny": denied(v4),
        "lo": lo(dns),
        "output6": [LED_ON6 + led, OUT_LO + ACCEPT, *shut6()],
        "unasked": [CALL + refused, UDP + refused, DROP],
        "peer": [CALL + unasked, ACCEPT],
        "errors": [ERROR + ABOUT + lookup(name) + ACCEPT for name in GRANTS] + [DROP],
        "output": [
            PLAIN4 + v4.to + lookup("hosts") + count,
            HERE6 + nft.verdict(nft.GOTO, "output6"),
            OUT_LO + nft.verdict(nft.GOTO, "lo"),
            LED_ON4 + led,
            *[hard + deny for hard in v4.hard],
            v4.to + lookup("leased") + count,
            deny,
        ],
        "input": [
            IN_LO + ACCEPT,
            PLAIN4 + v4.of + lookup("hosts") + peer,
            HERE6 + nft.counter() + DROP,
            LED_ON4 + DROP,
            v4.of + lookup("leased") + peer,
            v4.error + nft.verdict(nft.GOTO, "errors"),
            unasked,
        ],
        "forward": [DROP],
    }
