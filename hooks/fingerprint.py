"""Whether the host's rules are as they were loaded: asked at each create, so without what makes or reads rules. Hot.

Next door: `host_rules` has the rules; `host_state` keeps the fingerprint that was taken when they were loaded.
"""

from __future__ import annotations

from hooks.labels import TABLE
from hooks.netlink import HEADER
from hooks.nft_ask import ARP, BRIDGE, HEAD, INET, list_rules, table_named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hooks.netlink import Socket

_WHO = HEADER - 8  # where a message's sequence and port are; the table's family and the number of a change follow


def taken(kernel: Socket) -> bytes:
    """All our rules, and whether they are asked, as the kernel tells them: it changes with every change, also of ours.
    Some 300 bytes a rule: to compare them takes less than a digest would.
    """
    told: list[bytes] = []
    for family in (BRIDGE, ARP, INET):  # of all families at once the kernel names the rules of one table
        try:
            told.append(kernel.get(table_named(family, TABLE))[HEAD:])  # dormant: none of its rules is asked
        except FileNotFoundError:
            told.append(b"none")
        for part in kernel.parts(list_rules(TABLE, family)):
            # Not told: who asked, and how often any table was changed. Elsewhere these bytes stand by chance alone, and
            # then the rules are loaded once more.
            told.append(part.replace(part[_WHO : HEADER + HEAD], b""))
    return b"".join(told)


def intact(kernel: Socket, kept: bytes) -> bool:
    """Whether nobody has flushed or changed our rules since `kept` was taken. OSError where the kernel does not say."""
    # A second look where the first one differs: a container that came or went meanwhile changed the heads on the way.
    return taken(kernel) == kept or taken(kernel) == kept
