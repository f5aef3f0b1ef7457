"""The `network` section as policies write it -> as `dim.network` and `hooks.lock` read it, with the lock's plan made:
it depends on nothing that a start knows, but for what names lead to and the host's name servers.

Belongs here: words to addresses, and what may not be granted by a bare word. Next door: schema/policy.json has the
grammar of the words.
"""

from __future__ import annotations

import base64
import ipaddress
from typing import Any

from hooks import chains, lock, plan
from shim.dim import network
from shim.errors import Invalid

Block = ipaddress.IPv4Network | ipaddress.IPv6Network


def _cidr(value: bytes, mask: bytes, size: int) -> str:
    """The block that a rule of the lock's hard deny matches: the first bytes of an address, or some bits of them."""
    bits = int.from_bytes(mask or b"\xff" * len(value), "big").bit_count()
    return f"{ipaddress.ip_address(value + bytes(size - len(value)))}/{bits}"


# Not grantable, nor a part of it: where metadata services live, link-local, multicast, "this network".
NEVER = (*(_cidr(*one, 4) for one in chains.HARD4), *(_cidr(*one, 16) for one in chains.HARD6))
# The host, its neighbours and other containers may be there: grantable for a reason that is given.
PRIVATE = (
    "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15",
    "::1/128", "2002::/16", "64:ff9b:1::/48", "fc00::/7", "fec0::/10",
)  # fmt: skip
ANYWHERE = ("0.0.0.0/0", "2000::/3")


def expand(section: Any, reasoned: set[str]) -> Any:
    """The compiled section. `reasoned`: the peers that were given with a `why`. Invalid, naming the word."""
    if section is None or section == "top":
        return section
    out = section.get("outbound", ())
    into = section.get("inbound", ())
    mode = section.get("mode", "confine")
    if mode == "engine":
        if idle := sorted(section.keys() - {"mode"}):
            todo = 'set mode = "confine", or drop them'
            raise Invalid(network.NAME, "mode", f"engine, with {', '.join(idle)}", "a filter for what is granted", todo)
        return {"mode": mode}
    named = sorted(grant for one in out if (grant := _named(one)))
    compiled = {
        "mode": mode,
        "outbound": sorted(grant for one in out if not _named(one) for grant in _peers(one, one in reasoned)),
        "inbound": "any" if "any" in into else sorted(_listener(one) for one in into),
        "dns": section.get("dns") == "engine",
        "icmp": section.get("icmp", False),
    }
    if named:  # what they lead to is known when a container starts: any public address, for all that is known here
        return {**compiled, "names": named, "public": [str(block) for block in public()]}
    compiled["plan"] = base64.b64encode(plan.encode(lock.steps(compiled))).decode()
    return compiled


def _named(word: str) -> list[Any]:
    """(protocol, name, first port, last port) of a peer that is given by a name, [] of any other."""
    protocol, _, rest = word.partition(":")
    name, _, ports = rest.rpartition(":")
    if word == "any" or name[:1] == "[" or not any(char.isalpha() for char in name):
        return []
    return [protocol, name.lower(), *_ports(ports, word)]


def _peers(word: str, reasoned: bool) -> list[list[Any]]:
    """A word's grants: (protocol, block, first port, last port). "any" is every public address."""
    if word == "any":
        return [[protocol, str(block), 1, 65535] for protocol in network.PROTOCOLS for block in public()]
    protocol, _, rest = word.partition(":")
    text, _, ports = rest.rpartition(":")
    block = _block(text.strip("[]"), word)
    for never in _networks(NEVER):
        if block.version == never.version and block.subnet_of(never):  # type: ignore[arg-type]
            todo = "grant another peer: from these, a container is cut off under every policy"
            raise Invalid(network.NAME, "outbound", word, f"addresses outside {never}", todo)
    if not reasoned and any(block.version == one.version and block.overlaps(one) for one in _networks(PRIVATE)):
        todo = f'[[network.add]] to = "{word}", with why and doc: it may be the host or a neighbour'
        raise Invalid(network.NAME, "outbound", word, "public addresses, where no reason is given", todo)
    return [[protocol, str(block), *_ports(ports, word)]]


def public() -> list[Block]:
    """What is in ANYWHERE and in neither NEVER nor PRIVATE."""
    left = _networks(ANYWHERE)
    for gone in _networks((*NEVER, *PRIVATE)):
        left = [part for one in left for part in _less(one, gone)]
    return left


def _less(block: Block, gone: Block) -> list[Block]:
    if block.version != gone.version or not block.overlaps(gone):
        return [block]
    return [] if block.subnet_of(gone) else list(block.address_exclude(gone))  # type: ignore[arg-type]


def _networks(texts: tuple[str, ...]) -> list[Block]:
    return [ipaddress.ip_network(text) for text in texts]


def _listener(word: str) -> list[Any]:
    protocol, _, ports = word.partition(":")
    return [protocol, *_ports(ports, word)]


def _block(text: str, word: str) -> Block:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise Invalid(network.NAME, "outbound", word, f"an address or a block ({error})", "correct it") from None


def _ports(text: str, word: str) -> list[int]:
    first, _, last = text.partition("-")
    low, high = int(first), int(last or first)
    if not 1 <= low <= high <= 65535:
        raise Invalid(network.NAME, "ports", word, "1 to 65535, the lower one first", "correct it")
    return [low, high]
