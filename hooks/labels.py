"""Names and numbers that follow: from a container's address those of its interfaces, from a policy's digest that of its
chains. So nothing is asked back, and what is left over is found again. Hot: without messages.
"""

from __future__ import annotations

from shim.errors import Invalid

TABLE = "agentshim"  # of ours in the host's families, and in a container's network namespace
_NUMBERS = 0x20000000  # of host ends: far from those that the kernel counts up to
_INSIDE = b"\x02\xa5"  # of hardware addresses: locally administered
TAG = 12  # characters of a digest


def host_end(address: bytes) -> str:
    """The name of the host's end of a container's pair of interfaces."""
    return "av" + address.hex()


def number(address: bytes) -> int:
    """The number of the host's end: one for each address of a network of at least /8."""
    return _NUMBERS | int.from_bytes(address[1:], "big")


def mac(address: bytes) -> bytes:
    """The hardware address of whoever has an address on a bridge: a container's eth0, and the bridge itself."""
    return _INSIDE + address


def dotted(address: bytes) -> str:
    """4 bytes as people write them."""
    return ".".join(map(str, address))


def tag(digest: str) -> str:
    """What a policy's chains and sets are named by: the first 12 hex digits of its digest."""
    text = digest.rpartition(":")[2][:TAG]
    if len(text) != TAG or text.strip("0123456789abcdef"):
        raise Invalid("network", "digest", digest, "hex digits", "report this; nothing was loaded")
    return text
