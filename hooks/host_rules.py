"""The rules of the host's lock as text for nft(8), readable, and the same whoever is there. Pure.

Belongs here: tables, chains and sets of the host's network namespace, and those of each policy. Next door: `host` says
what they are for, and has the elements that containers add. Loaded when a bridge is made, never at a container's start.
"""

from __future__ import annotations

import ipaddress

from hooks.chains import HARD4, HARD6, split
from hooks.grants import FEW, KEY4, PROTOCOLS, apart, outbound
from hooks.host import MARK, REJECTED, ROWS_STAY
from hooks.labels import TABLE, dotted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from hooks.grants import Keys


def hard(six: bool = False) -> list[str]:
    """The hard deny of `chains`, as networks: a rule of it matches the first bytes of an address, or some of their
    bits.
    """
    out = []
    for first, mask in HARD6 if six else HARD4:
        bits = int.from_bytes(mask or b"\xff" * len(first), "big").bit_count()
        out.append(f"{ipaddress.ip_address(first.ljust(16 if six else 4, bytes(1)))}/{bits}")
    return out


GROUPS = 8  # sets of learned addresses that a policy may have: one for each protocol and range of ports
LEARNED = "{ type ipv4_addr; size 4096; flags dynamic,timeout; timeout 1h; }"

SETS = """\
add table bridge agentshim
add set bridge agentshim ports { type ifname . ether_addr . ipv4_addr; }
add table arp agentshim
add table inet agentshim
add set inet agentshim agents { type ipv4_addr; }
add map inet agentshim policies_out { type ipv4_addr : verdict; }
add map inet agentshim policies_in { type ipv4_addr : verdict; }
add set inet agentshim flows { type ipv4_addr; size 65535; flags dynamic; }
add set inet agentshim leased { type ipv4_addr . inet_proto . ipv4_addr . inet_service; flags timeout; }
add set inet agentshim pinned { type ipv4_addr . inet_proto . ipv4_addr . inet_service; }
add set inet agentshim pinned_wide { type ipv4_addr . inet_proto . ipv4_addr . inet_service; flags interval; }
add set inet agentshim services { type ipv4_addr . ipv4_addr . inet_proto . inet_service; }
add set inet agentshim services_wide { type ipv4_addr . ipv4_addr . inet_proto . inet_service; flags interval; }
add map inet agentshim published { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
add set inet agentshim served { type ipv4_addr . inet_proto . inet_service; }
"""
_STAY = f"size 65535; flags dynamic,timeout; timeout {ROWS_STAY // 1000}s;"
# What is rejected: whose it was, and who the peer was. And of whom how much has been told.
SETS += "".join(
    f"add set inet agentshim {name} {{ type ipv4_addr . inet_proto . ipv4_addr . inet_service; {_STAY} }}\n"
    f"add set inet agentshim {name}_told {{ type ipv4_addr; {_STAY} }}\n"
    for name in REJECTED
)

# Before all others: what is dropped here reaches neither conntrack nor the host's other tables. -300 is dstnat in the
# family bridge and raw in inet; 0 is where br_netfilter shows bridged packets to inet.
_FIRST = "priority -310; policy accept;"
_FILTER = "priority -5; policy accept;"
_GRANTED = ("leased", "pinned", "pinned_wide")
_TO = "ip saddr . meta l4proto . ip daddr . th dport"
_FROM = "ip daddr . meta l4proto . ip saddr . th sport"
_CALL = "ip daddr . meta l4proto . ip saddr . th dport"
_SERVED_TO = "ct status dnat ip daddr . meta l4proto . th dport @served accept"
_SERVED_FROM = "ct direction reply ct status dnat ip saddr . meta l4proto . th sport @served accept"
MOST_FLOWS = 8192  # at once, of one container: conntrack's table (262,144 here) is all the host's
_NO_IPV6 = "meta nfproto ipv6 drop"
_INVALID = "ct state invalid drop"
_HARD = f"ip daddr {{ {', '.join(hard())} }} goto deny_out"
# Of one address and way some 180 rows an hour, of 65,535 for all: to fill them takes 1,000 starts within it.
MOST_TOLD = "limit rate over 2/minute burst 64 packets"


# Neighbours are permanent on both sides. A frame that the bridge hands to the port itself would still be answered, and
# whoever asks would fill the host's table of neighbours.
ARP = {
    "input": ["type filter hook input priority 0; policy accept;", 'iifname "av*" drop', 'iifname "as-*" drop'],
    "output": ["type filter hook output priority 0; policy accept;", 'oifname "av*" drop', 'oifname "as-*" drop'],
}


def tables(mark: int = MARK) -> str:
    """The tables, for `nft -f`: one transaction, the same whatever was there; elements of sets stay. `mark`: the bit
    that says whom we believe. Packets keep their other bits.
    """
    bit = f"{mark:#010x}"
    believe, forget = f"meta mark set meta mark | {bit}", f"meta mark set meta mark & {0xFFFFFFFF ^ mark:#010x}"
    marked, bare = f"meta mark & {bit} == {bit}", f"meta mark & {bit} == 0"
    parts = [SETS]
    parts += _chains("bridge", _bridge(marked, bare, believe, forget))
    parts += _chains("arp", ARP)
    parts += _chains("inet", _inet(marked, bare, forget))
    return "".join(parts)


def _chains(family: str, chains: dict[str, list[str]]) -> list[str]:
    """Chains first, emptied, then their rules: they name each other."""
    out = []
    for name, rules in chains.items():
        base = f" {{ {rules[0]} }}" if rules[0].startswith("type ") else ""
        out.append(f"add chain {family} {TABLE} {name}{base}\nflush chain {family} {TABLE} {name}\n")
    for name, rules in chains.items():
        out += [f"add rule {family} {TABLE} {name} {one}\n" for one in rules if not one.startswith("type ")]
    return out


def _bridge(marked: str, bare: str, believe: str, forget: str) -> dict[str, list[str]]:
    """A frame with a VLAN tag is not of the type ip; IP options (source routes) are for nobody."""
    return {
        "prerouting": [
            f"type filter hook prerouting {_FIRST}",
            'iifname "av*" goto from_port',
            f"{marked} {forget}",
        ],
        "from_port": [
            f"ether type ip ip hdrlength 5 iifname . ether saddr . ip saddr @ports {believe} accept",
            "drop",
        ],
        "input": [f"type filter hook input {_FIRST}", f'{bare} iifname "av*" drop'],
        "forward": [f"type filter hook forward {_FIRST}", 'iifname "av*" drop', 'oifname "av*" drop'],
        "output": [f"type filter hook output {_FIRST}", 'ether type != ip oifname "av*" drop'],
    }


def _inet(marked: str, bare: str, forget: str) -> dict[str, list[str]]:
    return {
        "arrival": [
            f"type filter hook prerouting {_FIRST}",
            f'{marked} iifname "as-*" meta nfproto ipv4 accept',
            'iifname "as-*" drop',
            'iifname "av*" drop',
            f"{marked} {forget}",
        ],
        **_forward(bare),
        **_host(bare),
        **_nat(marked),
        **_deny(),
    }


def _forward(bare: str) -> dict[str, list[str]]:
    too_many = f"add @flows {{ ip saddr ct count over {MOST_FLOWS} }}"
    return {
        "forward": [
            f"type filter hook forward {_FILTER}",
            'iifname "as-*" goto from_agent',
            'oifname "as-*" goto to_agent',
        ],
        "from_agent": [
            f"{bare} drop",
            'oifname "as-*" goto deny_out',
            # Most packets are these: a flow that has begun behind all the rules below is looked up first
            "ct state established ct direction original ip saddr vmap @policies_out",
            _NO_IPV6,
            _INVALID,
            _HARD,
            f"ct state new ct status & confirmed == 0 {too_many} goto deny_out",
            "ct direction reply goto served_from",
            "ct state != established ip saddr vmap @policies_out",
            *(f"{_TO} @{name} accept" for name in _GRANTED),
            "goto deny_out",
        ],
        "served_from": [_SERVED_FROM, "goto deny"],
        "to_agent": [
            "ct direction reply ip daddr vmap @policies_in",
            _NO_IPV6,
            _INVALID,
            # conntrack knows a flow that was let through; the lock inside looks up whether it still is
            "ct state related jump errors",
            "ct direction reply goto answers",
            _SERVED_TO,
            "goto deny_in",
        ],
        "errors": ["icmp type 3 accept", "icmp type 11-12 accept", "return"],  # no redirects
        "answers": [*(f"{_FROM} @{name} accept" for name in _GRANTED), "goto deny"],
    }


def _host(bare: str) -> dict[str, list[str]]:
    services = ("services", "services_wide")
    return {
        "input": [f"type filter hook input {_FILTER}", 'iifname "av*" drop', 'iifname "as-*" goto to_host'],
        "to_host": [
            _NO_IPV6,
            _INVALID,
            f"{bare} drop",
            _SERVED_FROM,
            "ct direction reply goto deny",
            "ip daddr 127.0.0.0/8 goto deny_out",  # grantable to nobody: route_localnet lets it in where doors are
            *(f"ip saddr . ip daddr . meta l4proto . th dport @{name} accept" for name in services),
            f"{_TO} @leased accept",
            "goto deny_out",
        ],
        "output": [f"type filter hook output {_FILTER}", 'oifname "as-*" goto from_host'],
        "from_host": [
            _NO_IPV6,
            "ct state related tcp flags & rst == rst accept",  # only the kernel's own: it answers what we reject
            "ct state related jump errors",
            *(f"ct direction reply ip daddr . ip saddr . meta l4proto . th sport @{name} accept" for name in services),
            f"ct direction reply {_FROM} @leased accept",
            _SERVED_TO,
            "goto deny_in",
        ],
        "postrouting": ["type filter hook postrouting priority 90; policy accept;", 'oifname "as-*" goto departure'],
        "departure": [_NO_IPV6, "ct direction reply accept", "ct state related accept", _SERVED_TO, "drop"],
    }


def _nat(marked: str) -> dict[str, list[str]]:
    """One before what is usual: a port that is published here is not another's. Loopback is the host's alone."""
    doors = [
        f"fib daddr type local meta l4proto {name} dnat ip to ip daddr . meta l4proto . th dport map @published"
        for name in PROTOCOLS
    ]
    return {
        "nat_output": ["type nat hook output priority -101; policy accept;", *doors],
        "nat_arrival": [
            "type nat hook prerouting priority -101; policy accept;",
            'iifname "as-*" accept',
            "ip daddr 127.0.0.0/8 accept",
            *doors,
        ],
        "nat_departure": [
            "type nat hook postrouting priority 99; policy accept;",
            'oifname "as-*" ct status dnat masquerade',
            f'oifname != "as-*" {marked} masquerade',
        ],
    }


def _deny() -> dict[str, list[str]]:
    """What rejects, and what counts before: the lock inside counts what it rejects itself, and of a network of ours it
    rejects no call, nor what leaves for an address that a learned name might have led to. Answers are in no row.
    """
    counted = {
        f"deny_{way}": [
            "ct direction reply goto deny",
            "meta l4proto != { tcp, udp } goto deny",
            f"{agent} != @agents goto deny",  # nobody is there: whoever tries all addresses would fill the rows
            f"{key} @{name} goto deny",  # and is counted by its row
            f"update @{name}_told {{ {agent} {MOST_TOLD} }} goto deny",
            f"add @{name} {{ {key} counter }}",
            "goto deny",
        ]
        for way, key, name, agent in (("out", _TO, "denied", "ip saddr"), ("in", _CALL, "refused", "ip daddr"))
    }
    return {**counted, "deny": ["meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited"]}


def policy(tag: str, section: dict[str, Any]) -> str:
    """The chains and sets of one policy, for `nft -f`, behind `tables`. Names are not in it: what they lead to is
    pinned for each container; or, where they are learned, a resolver adds it to sets that a reload leaves alone, and
    only what is in the section's `public` opens anything: whoever owns a name may let it lead to a neighbour of ours.
    An address stays for an hour behind the last answer, or the last packet to it: a stream in use is not cut.
    IPv6 is shut.
    """
    keys, _ = outbound({**section, "outbound": section.get("outbound", ())})
    field = "type inet_proto . ipv4_addr . inet_service;"
    out = []
    for name, flags in ((f"hosts_{tag}", ""), (f"nets_{tag}", " flags interval;")):
        out.append(f"add set inet {TABLE} {name} {{ {field}{flags} }}\nflush set inet {TABLE} {name}\n")
    granted = dict(zip(("hosts", "nets"), split(apart(keys, FEW)), strict=True))
    for name, some in granted.items():
        out += _elements(f"{name}_{tag}", some)
    learned = groups(section.get("learned", ()))
    out += [f"add set inet {TABLE} {learned_set(tag, number)} {LEARNED}\n" for number, _ in enumerate(learned)]

    def accepted(name: str, way: str) -> list[str]:
        return [f"meta l4proto . ip {way} @{name}_{tag} accept"] if granted[name] else []

    to, of = "daddr . th dport", "saddr . th sport"
    ping, pong = ([f"icmp type echo-{one} accept"] if section.get("icmp") else [] for one in ("request", "reply"))
    chains = {
        # What most packets are comes first: @hosts has no address of the hard deny.
        f"out_{tag}": [*accepted("hosts", to), _HARD, *accepted("nets", to), *ping],
        f"in_{tag}": [*accepted("hosts", of), *accepted("nets", of), *pong],
    }
    for side in ("out", "in"):
        chains[f"{side}_{tag}"] += [*_learned(tag, side, learned, section), "return"]
    return "".join(out + _chains("inet", chains))


def groups(learned: Iterable[Any]) -> list[tuple[str, int, int]]:
    """The kinds (protocol, first port, last port) of learned names, each with a set of its own, in the sets' order."""
    return sorted({(protocol, first, last) for protocol, _, first, last in learned})


def learned_set(tag: str, number: int) -> str:
    """The set of the addresses that names of one of `groups` were answered with."""
    return f"learned_{tag}_{number}"


def _learned(tag: str, side: str, learned: list[tuple[str, int, int]], section: dict[str, Any]) -> list[str]:
    """The rules for what names led to, behind all literal grants."""
    if not learned:
        return []
    far, port = ("daddr", "dport") if side == "out" else ("saddr", "sport")
    rules = [f"ip {far} != {{ {', '.join(section['public'])} }} return"]
    for number, (protocol, first, last) in enumerate(learned):
        name = learned_set(tag, number)
        renew = f" update @{name} {{ ip daddr timeout 1h }}" if side == "out" else ""
        ports = f"meta l4proto {protocol} th {port} {first}-{last}"
        rules.append(f"ip {far} @{name} {ports}{renew} accept")
    return rules


def no_policy(tag: str) -> str:
    """The end of one policy's chains and sets; nft refuses where a container still has them."""
    chains = [f"{word} chain inet {TABLE} {side}_{tag}\n" for word in ("flush", "delete") for side in ("out", "in")]
    # nft 1.0.6 has no `destroy`: what is not there is added first.
    learned = [f"{TABLE} {learned_set(tag, number)}" for number in range(GROUPS)]
    gone = [f"add set inet {one} {LEARNED}\ndelete set inet {one}\n" for one in learned]
    return "".join(chains + [f"delete set inet {TABLE} {name}_{tag}\n" for name in ("hosts", "nets")] + gone)


def _elements(name: str, keys: Keys) -> list[str]:
    if not keys:
        return []
    return [f"add element inet {TABLE} {name} {{ {', '.join(_shown(*key) for key in keys)} }}\n"]


def _shown(first: bytes, last: bytes) -> str:
    (protocol, low, port), (_, high, end) = KEY4.unpack(first), KEY4.unpack(last)
    addresses = dotted(low) if low == high else f"{dotted(low)}-{dotted(high)}"
    return f"{protocol} . {addresses} . {port if port == end else f'{port}-{end}'}"
