"""Whether the host's rules are as they were loaded: asked at each create, so without what makes rules. Hot.

Next door: `host_rules` has the rules; `host_state` keeps the fingerprint that was taken when they were loaded.
"""

from __future__ import annotations

from _blake2 import blake2b

from hooks.nft_read import ARP, BRIDGE, INET, bodies, flags_of, list_rules, list_tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Dump = Callable[[bytes], list[bytes]]  # netlink.Socket.dump

TABLE = "agentshim"
EVERY = 0  # family, of tables


def taken(dump: Dump) -> bytes:
    """A digest of all our rules and of whether they are asked: it changes with every change, also of ours."""
    told = blake2b(digest_size=20)
    for family, flags in flags_of(dump(list_tables(EVERY)), TABLE):
        told.update(b"%d %d " % (family, flags))
    for family in (BRIDGE, ARP, INET):  # of all families at once the kernel names the rules of one table
        for _, body in bodies(dump(list_rules(TABLE, family))):
            told.update(body)
    return told.digest()


def intact(dump: Dump, kept: bytes) -> bool:
    """Whether nobody has flushed or changed our rules since `kept` was taken. OSError where the kernel does not say."""
    return taken(dump) == kept
