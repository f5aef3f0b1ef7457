"""The lock as text for nft(8), written by hand from the contract: what `hooks.lock` makes must list the same.

nft 1.0.6 can list, but not read, `ct reply proto-src` within a key, nor a key of bytes of a header. These are left
out of the text, and expected as listings: `unreadable` tells them by the key, `related` and `about` have them.
"""

from __future__ import annotations

from typing import Any

HARD = {
    "": ["169.254.0.0/16", "100.100.100.200", "0.0.0.0/8", "224.0.0.0/3"],
    "6": ["fe80::/10", "ff00::/8", "fd00:ec2::254", "fd20:ce::254", "64:ff9b::a9fe:0/112"],
}
GRANTS = ("hosts", "leased", "outbound")
TO = "meta l4proto . ip daddr . th dport"
PROTO_SRC = {"ct": {"key": "proto-src", "dir": "reply"}}


def unreadable(rule: Any) -> bool:
    return "proto-src" in repr(rule) or "'concat': [{'payload': {'base'" in repr(rule)


def text(elements: dict[str, list[str]], six: bool, dns: bool, icmp: bool, rows: int = 4096) -> str:
    """`elements`: of hosts, outbound (and hosts6, outbound6) and inbound, as nft writes them."""
    families = ["", "6"] if six else [""]
    lines = ["table inet agentshim {"]
    for f in families:
        key = f"type inet_proto . ipv{f or 4}_addr . inet_service;"
        lines.append(f"set outbound{f} {{ {key} flags interval; {_elements(elements.get('outbound' + f))} }}")
        lines.append(f"set hosts{f} {{ {key} {_elements(elements.get('hosts' + f))} }}")
        lines.append(f"set leased{f} {{ {key} flags timeout; size 1024; }}")
        for name, most in (("flows", rows), ("denied", min(rows, 1024)), ("refused", min(rows, 1024))):
            lines.append(f"set {name}{f} {{ {key} flags dynamic; size {most}; counter; }}")
    lines.append(
        f"set inbound {{ type inet_proto . inet_service; flags interval; {_elements(elements.get('inbound'))} }}"
    )
    for name, rules in chains(six, dns, icmp).items():
        lines += [f"chain {name} {{", *rules, "}"]
    return "\n".join([*lines, "}"])


def _elements(every: list[str] | None) -> str:
    return f"elements = {{ {', '.join(every)} }}" if every else ""


def chains(six: bool, dns: bool, icmp: bool) -> dict[str, list[str]]:
    refusal = ["meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited"]
    led_on = "meta nfproto ipv4 ip hdrlength != 5 goto led_on"
    out = {"deny": _deny(""), "led_on": refusal, "back": _back("", icmp)}
    out["lo"] = [led_on, *([] if dns else ["ip daddr 127.0.0.11 goto deny"]), "accept"]
    out["output"] = [
        "type filter hook output priority filter; policy drop;",
        f"@nh,0,8 0x45 ct direction original {TO} @hosts update @flows {{ {TO} }} accept",
        "meta nfproto ipv6 goto output6",
        "oif 1 goto lo",
        led_on,
        "ct state invalid drop",
        *_output("", icmp),
    ]
    out["input"] = [
        "type filter hook input priority filter; policy drop;",
        "@nh,0,8 0x45 ct direction reply meta l4proto . ip saddr . th sport @hosts accept",
        "meta nfproto ipv6 goto input6",
        "iif 1 accept",
        "meta nfproto ipv4 ip hdrlength != 5 drop",
        "ct state invalid drop",
        "icmp type redirect drop",
        *_input("", icmp),
    ]
    out["forward"] = ["type filter hook forward priority filter; policy drop;", "drop"]
    to6 = ["exthdr rt exists goto led_on", "oif 1 accept", "ct state invalid drop"]
    of6 = ["iif 1 accept", "exthdr rt exists drop", "ct state invalid drop"]
    if six:
        foreign = "meta nfproto ipv6 ct state new fib saddr type != local drop"
        out["deny6"] = _deny("6")
        out["back6"] = _back("6", icmp)
        out["output6"] = [foreign, *to6, "icmpv6 type 133-136 accept", *_output("6", icmp)]
        out["input6"] = [*of6, "icmpv6 type 133-136 accept", *_input("6", icmp)]
    else:
        out["output6"] = [*to6, "counter", *refusal]
        out["input6"] = [*of6, "counter", "drop"]
    return dict(sorted(out.items(), key=lambda item: ("put" in item[0], item[0])))


def _output(f: str, icmp: bool) -> list[str]:
    key = f"meta l4proto . ip{f} daddr . th dport"
    count = f"update @flows{f} {{ {key} }} accept"
    echo = "icmpv6" if f else "icmp"
    return [
        *(f"ip{f} daddr {net} goto deny{f}" for net in HARD[f]),
        "ct state related meta l4proto tcp tcp flags & rst == rst accept",
        f"ct direction reply jump back{f}",
        *(f"{key} @{name}{f} {count}" for name in GRANTS),
        *([f"{echo} type echo-request accept"] if icmp else []),
        f"goto deny{f}",
    ]


def _back(f: str, icmp: bool) -> list[str]:
    echo = "icmpv6" if f else "icmp"
    return ["meta l4proto . th sport @inbound accept", *([f"{echo} type echo-reply accept"] if icmp else [])]


def _input(f: str, icmp: bool) -> list[str]:
    answer = f"ct direction reply meta l4proto . ip{f} saddr . th sport"
    count = f"update @refused{f} {{ meta l4proto . ip{f} saddr . th dport }}"
    echo = "icmpv6" if f else "icmp"
    return [
        *(f"{answer} @{name}{f} accept" for name in GRANTS),
        "ct direction original meta l4proto . th dport @inbound accept",
        *([f"ct direction reply {echo} type echo-reply accept", f"{echo} type echo-request accept"] if icmp else []),
        f"meta l4proto tcp {count}",
        "meta l4proto tcp reject with tcp reset",
        f"meta l4proto udp {count}",
        "drop",
    ]


def _deny(f: str) -> list[str]:
    count = f"update @denied{f} {{ meta l4proto . ip{f} daddr . th dport }}"
    return [
        f"meta l4proto tcp {count}",
        "meta l4proto tcp reject with tcp reset",
        f"meta l4proto udp {count}",
        "reject with icmpx admin-prohibited",
    ]


def stateless(hosts: list[str], dns: bool) -> str:
    """The lock that does without conntrack."""
    key = "type inet_proto . ipv4_addr . inet_service;"
    refusal = ["meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited"]
    led_on = "meta nfproto ipv4 ip hdrlength != 5 goto led_on"
    count = f"update @flows {{ {TO} }} accept"
    of = "meta l4proto . ip saddr . th sport"
    refused = "update @refused { meta l4proto . ip saddr . th dport }"
    call = "meta l4proto tcp @th,104,8 & 0x12 == 2"
    chains = {
        "deny": _deny(""),
        "led_on": refusal,
        "unasked": [f"{call} {refused}", f"meta l4proto udp {refused}", "drop"],
        "peer": [f"{call} goto unasked", "accept"],
        "errors": ["drop"],
        "lo": [led_on, *([] if dns else ["ip daddr 127.0.0.11 goto deny"]), "accept"],
        "output6": ["exthdr rt exists goto led_on", "oif 1 accept", "counter", *refusal],
        "output": [
            "type filter hook output priority filter; policy drop;",
            f"@nh,0,8 0x45 {TO} @hosts {count}",
            "meta nfproto ipv6 goto output6",
            "oif 1 goto lo",
            led_on,
            *(f"ip daddr {net} goto deny" for net in HARD[""]),
            f"{TO} @leased {count}",
            "goto deny",
        ],
        "input": [
            "type filter hook input priority filter; policy drop;",
            "iif 1 accept",
            f"@nh,0,8 0x45 {of} @hosts goto peer",
            "meta nfproto ipv6 counter drop",
            "meta nfproto ipv4 ip hdrlength != 5 drop",
            f"{of} @leased goto peer",
            "meta l4proto icmp goto errors",
            "goto unasked",
        ],
        "forward": ["type filter hook forward priority filter; policy drop;", "drop"],
    }
    lines = ["table inet agentshim {", f"set hosts {{ {key} {_elements(hosts)} }}"]
    lines.append(f"set leased {{ {key} flags timeout; size 1024; }}")
    lines += [
        f"set {name} {{ {key} flags dynamic; size {most}; counter; }}"
        for name, most in (("flows", 4096), ("denied", 1024), ("refused", 1024))
    ]
    for name, rules in chains.items():
        lines += [f"chain {name} {{", *rules, "}"]
    return "\n".join([*lines, "}"])


def about() -> list[tuple[str, list[Any]]]:
    """(chain, expressions) of the rules of `stateless` for ICMP errors: of kind 3 or 11, about an IPv4 packet without
    options; its protocol, destination, and the port there.
    """
    key = [_bytes(*place) for place in ((17, 1), (24, 4), (30, 2))]
    kind = _match({"&": [_bytes(0, 1), 0xF7]}, 3)
    first = _match(_bytes(8, 1), 0x45)
    accept = {"accept": None}
    return [("errors", [kind, first, _match({"concat": key}, f"@{name}"), accept]) for name in ("hosts", "leased")]


def _bytes(place: int, count: int) -> Any:
    return {"payload": {"base": "th", "offset": place * 8, "len": count * 8}}


def _match(left: Any, right: Any, op: str = "==") -> Any:
    return {"match": {"op": op, "left": left, "right": right}}


def related(six: bool) -> list[tuple[str, list[Any]]]:
    """(chain, expressions) of the rules for ICMP errors, which nft lists but does not read."""
    out: list[tuple[str, list[Any]]] = []
    for f in ["", "6"] if six else [""]:
        far = {"ct": {"key": f"ip{f} saddr", "dir": "reply"}}
        ours = [{"ct": {"key": "protocol"}}, PROTO_SRC]
        out += [
            ("back" + f, _error(f, "", ours, "@inbound")),
            *(("input" + f, _error(f, "reply", [ours[0], far, ours[1]], f"@{name}{f}")) for name in GRANTS),
            ("input" + f, _error(f, "original", ours, "@inbound")),
        ]
    return out


def _error(f: str, direction: str, key: list[Any], name: str) -> list[Any]:
    return [
        *([_match({"ct": {"key": "direction"}}, direction)] if direction else []),
        _match({"ct": {"key": "state"}}, "related", "in"),
        _match({"meta": {"key": "l4proto"}}, "ipv6-icmp" if f else "icmp"),
        _match({"concat": key}, name),
        {"accept": None},
    ]
