"""The `network` section as policies write it -> as `dim.network` and `hooks.lock` read it, with the lock's plan made:
it depends on nothing that a start knows, but for what names lead to and the host's name servers.

Belongs here: words to addresses, and what may not be granted by a bare word. Next door: schema/policy.json has the
grammar of the words.
"""

from __future__ import annotations

import base64
import ipaddress
from typing import Any

from hooks import host_rules, lock, plan
from shim.dim import network
from shim.errors import Invalid

Block = ipaddress.IPv4Network | ipaddress.IPv6Network

# Not grantable, nor a part of it: where metadata services live, link-local, multicast, "this network".
NEVER = (*host_rules.hard(), *host_rules.hard(six=True))
# The host, its neighbours and other containers may be there: grantable for a reason that is given.
PRIVATE = (
    "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15",
    "168.63.129.16/32",  # Azure's own: settings of the machine, beside its name server
    "::1/128", "2002::/16", "64:ff9b:1::/48", "fc00::/7", "fec0::/10",
)  # fmt: skip
ANYWHERE = ("0.0.0.0/0", "2000::/3")
SIBLINGS = "grant another peer: containers are not there for each other"
IN_POOL = f"{SIBLINGS}; the host is granted in host_services; config.toml says where the pool is: network_pool"
# Modes, keys that say nothing there, and what to do
GRANTS = ("outbound", "inbound", "publish", "host_services", "dns", "icmp", "names")
IDLE = (
    (("engine", "none"), GRANTS, 'set mode = "auto" for a filter that lets them through, or drop them'),
    (("dead-end",), ("outbound", "dns", "icmp", "names"), 'set mode = "isolated" for a way out, or drop them'),
    (("confine",), ("publish", "host_services"), 'publish with the engine (-p) and inbound, or set mode = "isolated"'),
)


def expand(section: Any, reasoned: set[str], pool: str = "") -> Any:
    """The compiled section. `reasoned`: the peers that were given with a `why`; `pool`: where containers on bridges of
    ours get their addresses, which are granted to nobody. Invalid, naming the word.
    """
    if section == "top":
        return section
    section = section or {}
    mode = section.get("mode", "auto")
    for without, idle, todo in IDLE:
        if mode in without and (given := [key for key in idle if section.get(key)]):
            raise Invalid(network.NAME, "mode", f"{mode}, with {', '.join(given)}", "what it can carry", todo)
    if "macvlan" in section:
        return _on_lan(section, mode, reasoned, pool)
    if mode == "engine":
        return {"mode": mode}
    out = section.get("outbound", ())
    named = sorted(grant for one in out if (grant := _named(one)))
    publish = sorted(_published(one) for one in section.get("publish", ()))
    granted = sorted(grant for one in out if not _named(one) for grant in _peers(one, one in reasoned))
    compiled = {
        "mode": mode,
        "outbound": _apart(granted, pool_of(pool), IN_POOL) if pool else granted,
        "inbound": _inbound(section.get("inbound", ()), publish),
        "dns": section.get("dns") == "engine",
        "icmp": section.get("icmp", False),
    }
    if mode == "isolated" and (six := [one for one in out if "[" in one]):
        todo = 'set mode = "confine" where the engine brings IPv6, or grant IPv4 addresses'
        raise Invalid(network.NAME, "outbound", six[0], "IPv4, in a network that agentshim builds", todo)
    if section.get("names") == "proxy" and not (compiled["outbound"] or section.get("host_services")):
        todo = 'grant it: host_services = ["tcp:3128"], or its address in outbound or [[network.add]]'
        raise Invalid(network.NAME, "names", "proxy, and nothing would be reached", "a proxy's address", todo)
    if publish:
        compiled["publish"] = publish
    if services := sorted(_listener(one) for one in section.get("host_services", ())):
        compiled["services"] = services
    if named and section.get("names") == "proxy":
        return {**compiled, "proxied": named}  # its word on them, not ours: nothing is resolved or granted
    if section.get("names") == "learn":
        return _learned(section, compiled, named)
    if named:  # what they lead to is known when a container starts
        compiled.update(names=named, public=[str(block) for block in public()])
        if any("." not in one[1] for one in named):
            compiled["siblings"] = [str(block) for block in neighbours()]
        return compiled
    made = plan.encode(lock.steps(compiled))  # refused here, not at each start, where it grants too much
    if mode in ("auto", "confine"):  # a network of ours has its container's address in its plan
        compiled["plan"] = base64.b64encode(made).decode()
    return compiled


def _learned(section: dict[str, Any], compiled: dict[str, Any], named: list[list[Any]]) -> dict[str, Any]:
    """The compiled section where names are asked for by the container, and their addresses known to the host's lock: it
    may ask one resolver, which is at the gateway, and that answers these names.
    """
    if compiled["mode"] != "isolated":
        todo = 'set mode = "isolated", or names = "pin"'
        raise Invalid(network.NAME, "names", f"learn, in mode {compiled['mode']}", "mode isolated", todo)
    if compiled["dns"]:
        todo = 'drop dns = "engine", or set names = "pin"'
        raise Invalid(network.NAME, "names", "learn, with another resolver", "one resolver", todo)
    if not named:
        raise Invalid(network.NAME, "names", "learn, without a name", "a name in outbound", 'drop names = "learn"')
    for _, name, *_ in named:
        if "." not in name:
            todo = 'set names = "pin" for names of services on the engine\'s network'
            raise Invalid(network.NAME, "outbound", name, "a name with a dot, where names are learned", todo)
    if len(groups := host_rules.groups(named)) > host_rules.GROUPS:
        todo = "let names share ports, or write ranges"
        most = f"{host_rules.GROUPS} of them, for learned names"
        raise Invalid(network.NAME, "outbound", f"{len(groups)} kinds of protocol and ports", most, todo)
    services = [*compiled.get("services", []), *([protocol, 53, 53] for protocol in network.PROTOCOLS)]
    wide = [str(block) for block in public() if block.version == 4]
    unique = [list(one) for one in sorted({tuple(one) for one in named})]
    return {**compiled, "learned": unique, "public": wide, "services": sorted(map(list, set(map(tuple, services))))}


def _on_lan(section: dict[str, Any], mode: str, reasoned: set[str], ours: str) -> dict[str, Any]:
    """The compiled section of a network on a LAN: other agents there are grantable to nobody, as on a bridge."""
    if mode != "isolated":
        raise Invalid(network.NAME, "macvlan", f"mode {mode}", "mode isolated", 'set mode = "isolated"')
    if section.get("names") == "learn":
        todo = 'drop macvlan, or set names = "pin"'
        raise Invalid(network.NAME, "macvlan", "names = learn beside it", "a network with the host's lock", todo)
    for key in ("publish", "host_services"):
        if section.get(key):
            todo = "reach the container at its own address (inbound), or drop macvlan: the host is not reached by it"
            raise Invalid(network.NAME, "macvlan", f"{key} beside it", "what a LAN carries", todo)
    there, pool = _lan(section["macvlan"])
    rest = {key: value for key, value in section.items() if key != "macvlan"}
    compiled: dict[str, Any] = expand(rest, reasoned, ours)
    compiled["outbound"] = _apart(compiled["outbound"], pool, SIBLINGS)
    if "public" in compiled:
        compiled["public"] = [str(block) for block in public(pool)]
    compiled.pop("plan", None)  # for another network
    return {**compiled, "macvlan": there}


def pool_of(text: str) -> ipaddress.IPv4Network:
    """config.toml's network_pool; Invalid where it is no network."""
    try:
        return ipaddress.IPv4Network(text)
    except ValueError as error:
        todo = 'write it like "10.207.0.0/16"'
        raise Invalid("config", "network_pool", text, f"an IPv4 network ({error})", todo) from None


def _apart(grants: list[list[Any]], pool: ipaddress.IPv4Network, todo: str) -> list[list[Any]]:
    """Grants without our containers' addresses; Invalid where one has no others."""
    out = []
    for protocol, text, *ports in grants:
        left = _less(ipaddress.ip_network(text), pool)
        if not left:
            ceiling = f"addresses outside {pool}, our containers'"
            asked = f"{protocol}:{text.removesuffix('/32')}:{span(*ports)}"
            raise Invalid(network.NAME, "outbound", asked, ceiling, todo)
        out += [[protocol, str(part), *ports] for part in sorted(left)]
    return out


def _lan(asked: dict[str, Any]) -> tuple[dict[str, Any], ipaddress.IPv4Network]:
    """What is kept of it, and the block of our addresses; Invalid where they are not of that LAN, or its gateway's."""
    try:
        pool, gateway = ipaddress.IPv4Network(asked["addresses"]), ipaddress.IPv4Address(asked["gateway"])
        lan = ipaddress.IPv4Network(f"{gateway}/{asked['prefix']}", strict=False)
    except ValueError as error:
        todo = 'write it like addresses = "192.0.2.64/26", gateway = "192.0.2.1", prefix = 24'
        raise Invalid(network.NAME, "macvlan", str(error), "IPv4 addresses and a block of them", todo) from None
    if not pool.subnet_of(lan) or gateway in pool or pool.num_addresses < 4:
        asked_for = f"addresses {pool}, gateway {gateway}/{asked['prefix']}"
        todo = "choose a block of the LAN's own that its DHCP server gives to nobody"
        raise Invalid(network.NAME, "macvlan", asked_for, f"4 addresses of {lan} or more, without the gateway", todo)
    return {"parent": asked["parent"], "addresses": str(pool), "gateway": str(gateway), "prefix": lan.prefixlen}, pool


def neighbours() -> list[Block]:
    """Where an engine's own networks are: private, and neither metadata nor loopback."""
    return [block for block in _networks(PRIVATE) if block.version == 4 and not block.is_loopback]


def _inbound(words: Any, publish: list[list[Any]]) -> Any:
    """What may be reached from outside; what is published may."""
    if "any" in words:
        return "any"
    return sorted([*(_listener(one) for one in words), *([proto, port, port] for _, _, port, proto in publish)])


def _published(word: str) -> list[Any]:
    """[address and port of the host, port of the container, protocol]."""
    text, _, protocol = word.partition("/")
    address, _, ports = text.partition(":")
    outer, _, inner = ports.partition(":")
    block = _block(address, word)
    if block.is_unspecified or block.num_addresses != 1:
        raise Invalid(network.NAME, "publish", word, "one address of this host", "write it like 127.0.0.1:8080:80/tcp")
    return [address, _ports(outer, word)[0], _ports(inner, word)[0], protocol]


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


def public(*ours: Block) -> list[Block]:
    """What is in ANYWHERE and in neither NEVER nor PRIVATE; nor in `ours`."""
    left = _networks(ANYWHERE)
    for gone in (*_networks((*NEVER, *PRIVATE)), *ours):
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


def span(first: int, last: int) -> str:
    """Ports as policies write them."""
    return f"{first}" if first == last else f"{first}-{last}"


def _ports(text: str, word: str) -> list[int]:
    first, _, last = text.partition("-")
    low, high = int(first), int(last or first)
    if not 1 <= low <= high <= 65535:
        raise Invalid(network.NAME, "ports", word, "1 to 65535, the lower one first", "correct it")
    return [low, high]
