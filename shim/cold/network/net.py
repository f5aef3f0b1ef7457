"""`agentshim flows|denied|why|lease`: what a container's network let through, what it did not, why, and for how long.

Everything is read out of the kernel's sets in the container's network namespace: no process of ours watches.
Next door: `hooks.records` reads and writes the sets, `verbs.lock` decided what is in them.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

from hooks import host_rules, host_state, labels, netlink, records
from hooks.grants import address_of
from shim import kernel, policy, state
from shim.audit import now
from shim.cold import audit
from shim.cold.explain import find
from shim.cold.network import leases, net_agents, network_source
from shim.cold.policy import compile
from shim.dim import network
from shim.errors import HostError, Invalid, Refused, ShimError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

FOLLOW = 1.0  # seconds between two looks
UNITS = {"s": 1, "m": 60, "h": 3600}
MOST_SECONDS = 24 * 3600
# What a fresh network namespace has by itself: lo, and what modules of tunnels put into each (net/ipv4, net/ipv6).
LINKS_OF_EVERYBODY = {
    "lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0",
}  # fmt: skip
PROXIED = "by the proxy, if its list has it"
LEARNED = "when the container has asked for it"


def main(verb: str, words: list[str]) -> int:
    """Runs one of the verbs; its exit code. Raises ShimError."""
    return {"flows": _flows, "denied": _denied, "why": _why, "lease": _lease}[verb](words)


def _flows(words: list[str]) -> int:
    return _listed("flows", "what the container reached", ("flows",), words)


def _denied(words: list[str]) -> int:
    from shim.cold import denied  # which has rows of other kinds, too

    return denied.main(words)


def rejected(record: dict[str, Any]) -> Iterator[tuple[Any, Any, str, dict[str, Any]]]:
    """What was rejected, out and in: what a row counts, its counts, and the row in words and in ECS."""
    around = Around(record)
    inside, at_host = records.read(_namespace(record)), beside(record)
    for kind in ("denied", "refused"):
        for row in _summed(inside[kind], at_host.get(kind, ())):
            allow = _answer(record, *row[:3], around)["allow"] if kind == "denied" else _inviting(record, row)
            line = _line(kind, row) + (f"\n    to allow: {allow}" if allow else "")
            yield (kind, *row[:3]), row[3:], line, {**_ecs(record, kind, row), "agentshim.allow": allow}


def _inviting(record: dict[str, Any], row: records.Row) -> str:
    """The line of policy that would let somebody in: nobody calls a network of ours but by a port that is published."""
    protocol, _, port, *_ = row
    if "address" in record["network"]:
        return f'[network] publish = ["127.0.0.1:{port}:{port}/{protocol}"]'
    return f'[network] inbound = ["{protocol}:{port}"]'


def beside(record: dict[str, Any], found: records.AtHost | None = None) -> records.Records:
    """The rows of the host's lock; {} where the network is not of our making, has just ended, or nobody can say since
    when the address is the container's. `found`: where the caller has asked for those of all.
    """
    section = record["network"]
    if "address" not in section:
        return {}
    address = address_of(section["address"])
    try:
        _, _, begun = host_state.owner(host_state.place_of(host_state.DIRECTORY, section["profile"], address))
        since = int(begun) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return {}
    every = records.at_host() if found is None else found
    return records.of_agent(every, address, since)


def _summed(*every: Iterable[records.Row]) -> list[records.Row]:
    """The rows of both locks, sorted: a peer that was refused by one and then by the other is one row."""
    counts: dict[tuple[str, str, int], tuple[int, int]] = {}
    for protocol, address, port, packets, size in chain(*every):
        before = counts.get((protocol, address, port), (0, 0))
        counts[protocol, address, port] = (before[0] + packets, before[1] + size)
    return [(*peer, *told) for peer, told in sorted(counts.items())]


def _listed(verb: str, about: str, kinds: tuple[str, ...], words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"agentshim {verb}", description=about)
    parser.add_argument("container", metavar="CONTAINER", help="an id, a unique prefix, or an engine's name")
    parser.add_argument("--json", action="store_true", help="one line of JSON a row, in ECS names")
    parser.add_argument("--follow", action="store_true", help="go on, and show what is new or has grown")
    options = parser.parse_args(words)
    record = _locked(find(options.container))
    shown: dict[tuple[str, str, str, int], tuple[int, int]] = {}
    while True:
        for kind in kinds:
            for row in records.read(_namespace(record))[kind]:
                if shown.get((kind, *row[:3])) != row[3:]:
                    shown[kind, *row[:3]] = row[3:]
                    print(json.dumps(_ecs(record, kind, row)) if options.json else _line(kind, row), flush=True)
        if not options.follow:
            return 0
        time.sleep(FOLLOW)


def _line(kind: str, row: Any) -> str:
    protocol, address, port, packets, size = row
    peer = f"{protocol} from {address} to port {port}" if kind == "refused" else f"{protocol} to {address}:{port}"
    return f"{'allowed' if kind == 'flows' else 'rejected'} {peer}: {packets} packets, {size} bytes"


def _ecs(record: dict[str, Any], kind: str, row: Any) -> dict[str, Any]:
    """A row in the names of the Elastic Common Schema 8."""
    protocol, address, port, packets, size = row
    end = {"source.ip": address} if kind == "refused" else {"destination.ip": address}
    return {
        "@timestamp": now(),
        "event.kind": "event",
        "event.category": ["network"],
        "event.action": "network_flow" if kind == "flows" else "network_denied",
        "event.outcome": "success" if kind == "flows" else "failure",
        "network.direction": "ingress" if kind == "refused" else "egress",
        "network.transport": protocol,
        **end,
        "destination.port": port,
        "network.packets": packets,
        "network.bytes": size,
        "container.id": record["id"],
        "rule.ruleset": record["policy"],
        "agentshim.digest": record["digest"],
    }


def _why(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="agentshim why", description="whether a peer may be reached, and by which rule"
    )
    parser.add_argument("container", metavar="CONTAINER", help="an id, a unique prefix, or an engine's name")
    parser.add_argument("peer", metavar="[PROTO:]HOST:PORT", help="tcp where no protocol is given")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(words)
    record = find(options.container)
    protocol, host, port = _peer(options.peer)
    pinned = (record.get("network") or {}).get("pins", {}).get(host.lower())
    answers = [_proxied(record, protocol, host.lower(), port) or _named(record, protocol, host.lower(), port)]
    if not answers[0]:
        around = Around(record)
        answers = [_answer(record, protocol, address, port, around) for address in pinned or _addresses(host)]
    for answer in answers:
        print(json.dumps(answer) if options.json else "{peer}: {verdict}: {rule}{line}".format(**_padded(answer)))
    return 0 if all(answer["verdict"] in ("allowed", PROXIED, LEARNED) for answer in answers) else 1


def _proxied(record: dict[str, Any], protocol: str, host: str, port: int) -> dict[str, str]:
    """The answer for a name that policy leaves to a proxy, {} for any other peer. The name is not resolved: whoever
    asks the proxy by name does not do so either.
    """
    for kind, name, low, high in (record.get("network") or {}).get("proxied", ()):
        if kind == protocol and name == host and low <= port <= high:
            rule = f"policy {record['policy']} leaves {kind}:{name}:{network_source.span(low, high)} to its proxy"
            return {"peer": _word(protocol, host, port), "verdict": PROXIED, "rule": rule, "allow": ""}
    return {}


def _named(record: dict[str, Any], protocol: str, host: str, port: int) -> dict[str, str]:
    """The answer for a name that is learned, {} for any other peer: whether one of its addresses, as this host finds
    them now, is one that a container was answered with.
    """
    for kind, name, low, high in (record.get("network") or {}).get("learned", ()):
        if kind == protocol and name == host and low <= port <= high:
            rule = f"policy {record['policy']} grants {kind}:{name}:{network_source.span(low, high)}"
            known = _learned(record, protocol, port)
            try:
                here = [one for one in _addresses(host) if one in known]
            except Invalid:
                here = []
            verdict, at = ("allowed", f", which led to {', '.join(here)}") if here else (LEARNED, "")
            return {"peer": _word(protocol, host, port), "verdict": verdict, "rule": rule + at, "allow": ""}
    return {}


def _learned(record: dict[str, Any], protocol: str, port: int) -> set[str]:
    """The addresses that learned names have led to, of those that may be reached on a port."""
    tag, found = labels.tag(net_agents.digest_of(record)), set()
    with netlink.Socket(netlink.NETFILTER) as host:
        for number, (kind, low, high) in enumerate(host_rules.groups(record["network"].get("learned", ()))):
            if kind == protocol and low <= port <= high:
                every = records.elements(host, host_rules.learned_set(tag, number)) or ()
                found |= {labels.dotted(far) for far, *_ in every}
    return found


def _padded(answer: dict[str, str]) -> dict[str, str]:
    return {**answer, "line": f"\n    to allow: {answer['allow']}" if answer["allow"] else ""}


class Around:
    """Where a container is, as it is now. `alone`: it has only lo; `own`: the host's addresses; `ours`: where our
    containers' addresses are from; `lan`: that of its card, where it has one there, and `siblings`: ours on it.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        pid = state.init_of(record)
        self.alone = bool(pid) and not _links(f"/proc/{pid}/ns/net") - LINKS_OF_EVERYBODY
        self.own = kernel.addresses()
        self.ours = [str(network_source.pool_of(policy.config().network_pool)), *_subnets()]
        there = (record.get("network") or {}).get("macvlan")
        self.siblings = there["addresses"] if there else ""
        self.lan = f"{there['gateway']}/{there['prefix']}" if there else ""

    def bar(self, here: Address) -> str:
        """What keeps packets to an address from it whatever is granted, in words; '' where nothing does."""
        if self.alone:
            return "the container has only lo"
        own = network.holds(self.own, str(here))
        if own and self.lan and here in ipaddress.ip_network(self.lan, strict=False):
            return "an address of this host's, which no card in macvlan mode reaches"
        blocks = [self.siblings] if self.siblings else []
        for block in blocks if own else [*blocks, *self.ours]:
            if here in ipaddress.ip_network(block):
                return f"{block} is our containers', which are not there for each other"
        return ""


def _subnets() -> list[str]:
    """Those of the bridges that are there: one may be older than the pool, or have been given another."""
    try:
        profiles = os.listdir(host_state.DIRECTORY)
    except FileNotFoundError:
        return []
    return [one["subnet"] for name in profiles if (one := host_state.bridge(host_state.DIRECTORY, name))]


def _answer(record: dict[str, Any], protocol: str, address: str, port: int, around: Around) -> dict[str, str]:
    """Verdict, rule and the line that would allow it, for one address."""
    section = record.get("network")
    here = ipaddress.ip_address(address.partition("%")[0])
    verdict, rule, allow = "rejected", "no grant names it", _allowing(section, protocol, here, port)
    never = next((block for block in network_source.NEVER if here in ipaddress.ip_network(block)), "")
    if section is not None and never:
        rule, allow = f"{never} is cut off under every policy", ""
    elif section is not None and (here.is_loopback or address == section.get("address")):
        verdict, rule, allow = "allowed", f"the container's own {'loopback' if here.is_loopback else 'address'}", ""
        if str(here) == "127.0.0.11" and not section["dns"]:
            verdict, rule, allow = "rejected", "the engine's resolver is shut", '[network] dns = "engine"'
    elif bar := "" if here.is_loopback else around.bar(here):
        rule, allow = bar, _allowing({"mode": "none"}, protocol, here, port) if around.alone else ""
    elif section is None:
        verdict, rule, allow = "allowed", "the network is not filtered", ""
    elif "gateway" in section and network.holds(around.own, address):
        verdict, rule, allow = _at_host(record, protocol, here, port, allow)
    elif grant := _grant(section, protocol, here, port):
        verdict, rule, allow = "allowed", f"policy {record['policy']} grants {grant}", ""
    elif section.get("learned") and str(here) in _learned(record, protocol, port):
        verdict, rule, allow = "allowed", f"a name that policy {record['policy']} grants has led there", ""
    elif lease := _leased(record, protocol, address, port):
        verdict, rule, allow = "allowed", f"leased for {lease / 1000:.0f} s more", ""
    return {"peer": _word(protocol, address, port), "verdict": verdict, "rule": rule, "allow": allow}


def _allowing(section: dict[str, Any] | None, protocol: str, here: Address, port: int) -> str:
    """The line of policy that would allow a peer."""
    word, section = _word(protocol, str(here), port), section or {}
    if str(here) == section.get("gateway"):
        return f'[network] host_services = ["{protocol}:{port}"]'
    carried = 'mode = "isolated"' if section.get("mode") in ("none", "dead-end") else ""
    if any(here in ipaddress.ip_network(block) for block in network_source.PRIVATE):
        return f'{f"[network] {carried}, and " if carried else ""}[[network.add]] to = "{word}", with why and doc'
    return f'[network] {f"{carried}, " if carried else ""}outbound = ["{word}"]'


def _at_host(record: dict[str, Any], protocol: str, here: Address, port: int, allow: str) -> tuple[str, str, str]:
    """Verdict, rule and line for an address of the host's, from a bridge of ours: what was one when the container
    started and was granted by itself, or is leased.
    """
    section = record["network"]
    for kind, block, low, high in section["at_host"]:
        if kind == protocol and low <= port <= high and here in ipaddress.ip_network(block):
            word = f"{kind}:{block}:{network_source.span(low, high)}"
            return "allowed", f"policy {record['policy']} grants {word}, of this host's", ""
    if lease := _leased(record, protocol, str(here), port):
        return "allowed", f"leased for {lease / 1000:.0f} s more", ""
    if _grant(section, protocol, here, port):
        return "rejected", "this host has the address since: create it anew, and grant the address by itself", allow
    return "rejected", "an address of this host's, which no grant names by itself", allow


def _grant(section: dict[str, Any], protocol: str, here: Any, port: int) -> str:
    for kind, name, low, high in section.get("names", ()):
        if kind == protocol and low <= port <= high and str(here) in section["pins"][name]:
            return f"{kind}:{name}:{network_source.span(low, high)}, which led there when it was last looked up"
    for kind, block, low, high in section["outbound"]:
        if kind == protocol and low <= port <= high and here in ipaddress.ip_network(block):
            return f"{kind}:{block}:{network_source.span(low, high)}"
    if section["dns"] and port == 53 and str(here) in section.get("resolvers", ()):
        return "the engine's resolver"
    return ""


def _leased(record: dict[str, Any], protocol: str, address: str, port: int) -> int:
    """Milliseconds that a lease has left, 0 without one."""
    there = records.leases(_namespace(record))
    return next((one[4] for one in there if one[:3] == (protocol, address, port)), 0)


def _lease(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="agentshim lease", description="grants that the kernel ends")
    verbs = parser.add_subparsers(dest="verb", required=True)
    grant = verbs.add_parser("egress", help="let a container reach a peer for a while")
    grant.add_argument("container", metavar="CONTAINER")
    grant.add_argument("peer", metavar="PROTO:HOST:PORT")
    grant.add_argument("--ttl", required=True, metavar="10m", help="how long: s, m or h; 24 h at most")
    grant.add_argument("--why", required=True, metavar="TEXT", help="for the audit log")
    revoke = verbs.add_parser("revoke", help="end one now")
    revoke.add_argument("container", metavar="CONTAINER")
    revoke.add_argument("peer", metavar="PROTO:HOST:PORT")
    listing = verbs.add_parser("list", help="those that run")
    listing.add_argument("container", metavar="CONTAINER", nargs="?")
    listing.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(words)
    return {"egress": _granted, "revoke": _revoked, "list": _leases}[options.verb](options)


def _granted(options: argparse.Namespace) -> int:
    record = _locked(find(options.container))
    protocol, host, port = _peer(options.peer)
    seconds = _seconds(options.ttl)
    if len(options.why.strip()) < 3:
        raise Invalid("lease", "--why", options.why, "a reason of 3 characters at least", "say what it is for")
    addresses = _addresses(host)
    around = Around(record)
    for address in addresses:
        _bounded(protocol, address, port, address != host, around)
    _carried(record, around)
    leases.settle(record)
    leases.granted(record, options.peer, addresses, seconds)
    try:
        for address in addresses:
            _let(record, (protocol, address, port), seconds, options.why)
    except (ShimError, OSError):
        _forget(record, options.peer, [(protocol, address, port) for address in addresses])
        raise
    return 0


def _let(record: dict[str, Any], peer: tuple[str, str, int], seconds: int, why: str) -> None:
    """Grants one lease, once it is recorded. What the kernel refuses after that is recorded as well."""
    protocol, address, port = peer
    told: dict[str, Any] = {"peer": f"{protocol}:{address}:{port}", "ttl": seconds, "why": why}
    audit.write("lease_granted", record, **told)
    try:
        records.lease_add(_namespace(record), *peer, seconds * 1000, _agent(record, leased=True))
    except (ShimError, OSError) as error:
        try:
            audit.write("lease_granted", record, failed=error, **told)
        except HostError as trouble:  # what failed first is what is raised
            sys.stderr.write(f"not recorded: {trouble}\n")
        raise
    print(f"{record['id'][:12]} may reach {told['peer']} for {seconds} s")


def _forget(record: dict[str, Any], asked: str, peers: list[tuple[str, str, int]]) -> None:
    """Takes off the list of leases those that the kernel does not have: they have not been, so they do not expire."""
    with suppress(ShimError, OSError):
        there = {one[:3] for one in records.leases(_namespace(record))}
        leases.revoked(record, asked, [address for protocol, address, port in peers
                                       if (protocol, address, port) not in there])  # fmt: skip


def _carried(record: dict[str, Any], around: Around) -> None:
    """Refused where nothing can leave the container, whatever is leased: it would be a promise, and no more."""
    mode = record["network"].get("mode")
    if mode == "dead-end":
        todo = 'set [network] mode = "isolated", and start it again'
        raise Refused("lease", "CONTAINER", f"{record['id']}, mode dead-end", "a network with a way out", todo)
    if _namespace(record) and around.alone:
        todo = "start it again with a network: a policy that grants something, or one of the engine's"
        raise Refused("lease", "CONTAINER", f"{record['id']}, which has only lo", "a network with a way out", todo)


def _links(namespace: str) -> set[str]:
    """The network interfaces of a process, whose namespace is at /proc/PID/ns/net."""
    path = namespace.removesuffix("ns/net") + "net/dev"
    with open(path, encoding="utf-8", errors="replace") as file:
        return {line.rpartition(":")[0].strip() for line in file.readlines()[2:]}


def _revoked(options: argparse.Namespace) -> int:
    record = _locked(find(options.container))
    protocol, host, port = _peer(options.peer)
    there = {one[:3] for one in records.leases(_namespace(record))}
    # What the name led to when it was granted; now it may lead elsewhere.
    addresses = leases.addresses(record, options.peer) or _addresses(host)
    ended = [address for address in addresses if (protocol, address, port) in there]
    done: list[str] = []
    try:
        for address in ended:
            records.lease_del(_namespace(record), protocol, address, port, _agent(record))
            done.append(address)
    finally:  # whatever failed: what has ended is off the list, then recorded
        leases.revoked(record, options.peer, done)
        for address in done:
            print(f"{record['id'][:12]} may no longer reach {protocol}:{address}:{port}")
            audit.write("lease_revoked", record, peer=f"{protocol}:{address}:{port}")
    if not ended:
        raise Invalid("lease", "PEER", options.peer, "a lease that runs", "see `agentshim lease list`")
    return 0


def _leases(options: argparse.Namespace) -> int:
    every = [find(options.container)] if options.container else state.records()
    leases.settle_all()
    for record in [one for one in every if one.get("network") and (options.container or state.init_of(one))]:
        for protocol, address, port, timeout, left in records.leases(_namespace(record)):
            row = {"container": record["id"], "peer": f"{protocol}:{address}:{port}", "ttl": timeout, "left": left}
            text = f"{record['id'][:12]} {row['peer']}: {left / 1000:.0f} s of {timeout / 1000:.0f} s left"
            print(json.dumps(row) if options.json else text)
    return 0


def _bounded(protocol: str, address: str, port: int, named: bool, around: Around) -> None:
    """Refused unless the host limit lets a policy grant the peer, for the reason that was given here; the reason is
    good for an address, not for whatever a name leads to. Refused, too, where no packet gets there.
    """
    word, config = _word(protocol, address, port), policy.config()
    asked = {"mode": "confine", "outbound": [word]}
    section = network_source.expand(asked, set() if named else {word}, config.network_pool)
    if named and network.holds(around.own, address):
        raise Refused("lease", "PEER", f"{word}, this host", "public addresses, for a name", "give the address itself")
    if not around.alone and (bar := around.bar(ipaddress.ip_address(address))):
        raise Refused("lease", "PEER", f"{word}: {bar}", "what its network carries", "lease another peer")
    limit = network.from_policy(compile.limits(config)["network"])
    if not network.leq(network.from_policy(section), limit):
        todo = f"raise limit in config.toml above {config.limit}"
        raise Refused("lease", "PEER", word, f"what the host limit {config.limit} allows", todo)


def _agent(record: dict[str, Any], leased: bool = False) -> bytes:
    """The container's address where the host has a lock for it, b'' where the network is not of our making. `leased`: a
    lease is about to be written there, so that the address must not go to another one before that has ended.
    """
    text = record["network"].get("address", "")
    address = address_of(text) if text else b""
    if address and leased:
        host_state.leased(host_state.DIRECTORY, record["network"]["profile"], address)
    return address


def _locked(record: dict[str, Any]) -> dict[str, Any]:
    if record.get("network") is None:
        todo = 'start it under a policy with [network] mode = "confine"'
        raise Invalid(network.NAME, "CONTAINER", f"{record['id']}, unfiltered", "one whose network is filtered", todo)
    return record


def _namespace(record: dict[str, Any]) -> str:
    pid = state.init_of(record)
    if not pid:
        raise HostError(network.NAME, record["id"], "no process", "a running container", "start it first")
    return f"/proc/{pid}/ns/net"


def _word(protocol: str, address: str, port: int) -> str:
    """A peer as policies write it."""
    return f"{protocol}:{f'[{address}]' if ':' in address else address}:{port}"


def _peer(text: str) -> tuple[str, str, int]:
    """(protocol, host, port) of "tcp:203.0.113.5:443", "[2001:db8::1]:53" or "example.com:443"."""
    head, _, port = text.rpartition(":")
    protocol, host = "tcp", head
    if head.startswith(("tcp:", "udp:")):
        protocol, host = head[:3], head[4:]
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise Invalid(network.NAME, "PEER", text, "[PROTO:]HOST:PORT", "write it like tcp:203.0.113.5:443")
    return protocol, host.strip("[]"), int(port)


def _addresses(host: str) -> list[str]:
    """A host's addresses as this host resolves them, now."""
    try:
        return sorted({str(one[4][0]) for one in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    except OSError as error:
        raise Invalid(network.NAME, "PEER", host, "an address, or a name that resolves", str(error)) from None


def _seconds(text: str) -> int:
    unit = UNITS.get(text[-1:], 0)
    if not (unit and text[:-1].isascii() and text[:-1].isdigit() and 0 < int(text[:-1]) * unit <= MOST_SECONDS):
        raise Invalid("lease", "--ttl", text, "1s to 24h", "write it like 90s, 10m or 2h")
    return int(text[:-1]) * unit
