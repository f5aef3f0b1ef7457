"""The lock: the nf_tables table `agentshim` in a container's own network namespace, which refuses all but what policy
grants. Pure: the compiled section `network` in, one step of a plan out.

Belongs here: the sets, and the one transaction. Next door: `chains` has the rules, `stateless` those that stand behind
the host's lock; `grants` makes keys of grants; `plan` writes the step for the hook; `records` reads the sets.

It holds against whoever has neither NET_ADMIN nor NET_RAW over this namespace: packet sockets go around the output
hook. Interface names and addresses play no part, for an engine may attach them later; lo is always 1. The rules keep:

    Every packet of an outbound flow is looked up, and so is every answer to it: a lease that ends cuts both directions
    of an established flow. Hence no "ct state established accept".
    Answers to inbound flows go out only from ports that are granted inbound; whoever grants none needs no conntrack.
    The hard deny comes before every grant and every answer, but for @hosts, which has no such address.
    A flow is counted and accepted by one rule: where @flows is full, nothing new goes out.
    What is refused on its way out is answered (a RST, or ICMP): a connect fails at once instead of in minutes.
"""

from __future__ import annotations

from hooks import nft, stateless
from hooks.chains import rules, split
from hooks.grants import FEW, apart, inbound, outbound
from hooks.labels import TABLE
from hooks.netlink import NETFILTER
from hooks.plan import CONTAINER, ONLY_BUILT, ONLY_EMPTY, Step
from shim.errors import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hooks.chains import Rules
    from hooks.grants import Keys

    Network = dict[str, Any]

LEASES = 1024
ROWS = 4096
REFUSED_ROWS = 1024  # nothing but a record ends where these are full, and the kernel clears 16 bytes for each row
MOST = 10_000  # keys: what a plan file holds, with room for addresses of 16 bytes

BASE = {"output": nft.OUTPUT, "input": nft.INPUT, "forward": nft.FORWARD}


def steps(network: Network, rows: int = ROWS) -> tuple[Step, ...]:
    """The plan of one container; none where its section leaves the network to the engine.

    `rows`: how many destinations @flows may hold, and at most each set that counts refusals. Invalid on a malformed
    grant, Refused on more grants than a plan holds.
    """
    if network["mode"] == "engine":
        return ()
    out4, out6, into = _keys(network)
    chains = rules(bool(out6), bool(network.get("dns")), bool(network.get("icmp")))
    return (step(sets(out4, out6, into, rows), chains, words(network)),)


def behind(network: Network, rows: int = ROWS) -> tuple[Step, ...]:
    """As `steps`, for a network of ours, where the host's lock has conntrack: without it, if it is needed for nothing
    else. With `auto` a plan has both: the lock of a network that an engine has built meanwhile is its only one.
    """
    out4, out6, into = _keys(network)
    hosts, ranges = split(apart(out4, FEW))
    # `net refresh` may have a range of ports to add for a name that leads nowhere today.
    wide = ranges or any(first != last for *_, first, last in network.get("names", ()))
    if out6 or into or wide or network.get("icmp"):
        return steps(network, rows)
    told = f"{words(network)}, without conntrack"
    ours = step(hosts_of("", nft.IPV4_ADDR, hosts, rows, 1), stateless.rules(bool(network.get("dns"))), told)
    if network["mode"] != "auto":
        return (ours,)
    return (ours.only(ONLY_EMPTY), *[one.only(ONLY_BUILT) for one in steps(network, rows)])


def _keys(network: Network) -> tuple[Keys, Keys, Keys]:
    """The keys of what goes out by IPv4, by IPv6, and comes in."""
    (out4, out6), into = outbound(network), inbound(network)
    count = len(out4) + len(out6) + len(into)
    if count > MOST:
        raise Refused("network", "outbound", f"{count} grants", f"{MOST} grants", "write networks instead of hosts")
    return out4, out6, into


def step(made: list[nft.Message], chains: Rules, told: str) -> Step:
    """Table, sets and rules as one transaction, undone as a whole."""
    every = [nft.new_table(TABLE), *made]
    every += [nft.new_chain(TABLE, name, BASE.get(name)) for name in chains]
    for name, chain in chains.items():
        every += nft.new_rules(TABLE, name, chain)
    return Step(CONTAINER, NETFILTER, nft.batch(every), nft.batch([nft.drop_table(TABLE)]), 1, told)


def sets(out4: Keys, out6: Keys, into: Keys, rows: int) -> list[nft.Message]:
    """The sets and the elements that they start with. Those of IPv6 only where something of it is granted."""
    every = _sets_of("", nft.IPV4_ADDR, out4, rows, 1)
    if out6:
        every += _sets_of("6", nft.IPV6_ADDR, out6, rows, 11)
    every.append(nft.new_set(TABLE, "inbound", 21, (nft.INET_PROTO, nft.INET_SERVICE), nft.INTERVAL))
    return every + nft.new_elements(TABLE, "inbound", into)


def _sets_of(suffix: str, address: int, granted: Keys, rows: int, number: int) -> list[nft.Message]:
    """Grants of one address and one port are in a hash of their own, where a thousand cost a packet what one costs; a
    set of 1,000 ranges takes 2.5 µs more than one of 10 (measured at 1.3 µs for a datagram that is granted by @hosts).
    """
    hosts, ranges = split(granted)
    return [
        *hosts_of(suffix, address, hosts, rows, number),
        nft.new_set(TABLE, "outbound" + suffix, number + 5, _fields(address), nft.INTERVAL),
        *nft.new_elements(TABLE, "outbound" + suffix, ranges),
    ]


def hosts_of(suffix: str, address: int, hosts: Keys, rows: int, number: int) -> list[nft.Message]:
    """All sets but the ranges."""
    fields = _fields(address)
    fewer = min(rows, REFUSED_ROWS)
    counting = [
        nft.new_set(TABLE, name + suffix, number + place, fields, nft.DYNAMIC, most, counted=True)
        for place, (name, most) in enumerate((("flows", rows), ("denied", fewer), ("refused", fewer)), 2)
    ]
    return [
        nft.new_set(TABLE, "hosts" + suffix, number, fields, 0),
        *nft.new_elements(TABLE, "hosts" + suffix, [(first, b"") for first, _ in hosts]),
        nft.new_set(TABLE, "leased" + suffix, number + 1, fields, nft.TIMEOUT, LEASES),
        *counting,
    ]


def _fields(address: int) -> tuple[int, ...]:
    return nft.INET_PROTO, address, nft.INET_SERVICE


def words(network: Network) -> str:
    """The section in one line."""
    told = [_grants(key, network.get(key, [])) for key in ("outbound", "inbound")]
    told += [f"{key} {'open' if network.get(key) else 'shut'}" for key in ("dns", "icmp")]
    return f"table inet {TABLE}: {', '.join(told)}"


def _grants(key: str, asked: Any) -> str:
    return f"{key} any" if asked == "any" else f"{key} {len(asked)} grants" if asked else f"{key} nothing"
