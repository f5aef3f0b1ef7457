"""Which lock the container's network gets before its first instruction: one of its own, or that which is there already.

A network namespace is locked once, by the first container in it that a policy filters. Who joins it later asks for what
that lock lets through: it may be allowed less or more, but the lock is for all, so it is met with each of them, and a
join that would need another lock is refused. Belongs here: the decision. Next door: `hooks.lock` has the steps,
native/nethook.c takes them.
"""

from __future__ import annotations

from shim import docker, kernel, state
from shim.dim import namespaces, network
from shim.errors import Refused
from shim.lattice import Value
from shim.verbs import gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.kernel import Facts
    from shim.lattice import Section, Spec
    from shim.product import Product


class Lock(Value):
    """`plan`: the file for the hook, b'' where nothing is to be done; `section`: what the network is filtered by, None
    for one that is not; `hosts`: the container's /etc/hosts, b'' where it stays as it is; `link`: 'isolated' or
    'dead-end' where agentshim makes the network (`verbs.link`), '' where the engine does, or nobody; `resolver`: its
    /etc/resolv.conf, likewise; `lease`: the file that keeps the address of a network of agentshim's that is joined.
    """

    __slots__ = ("plan", "section", "hosts", "link", "resolver", "lease")

    def __init__(
        self,
        plan: bytes,
        section: Section,
        hosts: bytes = b"",
        link: str = "",
        resolver: bytes = b"",
        lease: str = "",
    ) -> None:
        self.plan = plan
        self.section = section
        self.hosts = hosts
        self.link = link
        self.resolver = resolver
        self.lease = lease


OPEN = Lock(b"", None)
CARRIED = ("outbound", "names", "publish", "services", "dns")  # what a network of ours is made for


def decide(spec: Spec, ceiling: Product, section: Section, facts: Facts, mode: str, container: str) -> Lock:
    """The lock under a policy's network `section`; tells `facts` what passes already. Refused where a join would need
    another one, or where the engine's network is not what the policy wants. `ceiling`: the policy's.
    """
    mine = ceiling[network.NAME]
    if mode == "audit":
        return OPEN
    there = _granted(spec, ceiling, facts)
    members = _members(there) if there.startswith("at:") else []
    if members:
        return _joined(members, mine, facts)
    if mine.open:
        return OPEN
    if there == namespaces.HOST:
        todo = 'take "network" out of [namespaces] host, or set [network] mode = "engine"'
        raise Refused(network.NAME, "mode", "the host's own network", "one that can be filtered", todo)
    if mode == "strict":
        facts.network = mine  # a spec cannot say that it wants less: what is taken was not asked
    strangers = kernel.inhabitants(there, "network") if there.startswith("at:") else []
    if strangers:
        todo = "start those in it under agentshim first, or give this container a network of its own"
        asked = f"the network of process {strangers[0]}, which agentshim did not start"
        raise Refused(network.NAME, "join", asked, "one that can be filtered for all in it", todo)
    engine = docker.asked(spec, facts.sources, container)
    link = _link(spec, section, there, engine, facts)
    if engine and engine.attaches:  # Docker itself ignores -p elsewhere
        _published(engine, mine)
    return _filled(spec, section, facts, link, engine)


def _link(spec: Spec, section: dict[str, Any], there: str, engine: docker.Asked | None, facts: Facts) -> str:
    """Whether agentshim makes the network, and which: 'isolated', 'dead-end' or ''. Refused where the policy wants one
    and the engine makes its own.
    """
    wanted = section["mode"]
    # Without its files dockerd's hook alone tells that it is there: then it is taken to bring a network.
    engines = there != namespaces.NEW or (engine.attaches if engine else docker.has_hook(spec))
    if wanted in ("isolated", "dead-end"):
        if not engines:
            return str(wanted)
        todo = 'start it with --network none, or set [network] mode = "auto" to filter the engine\'s in place'
        raise Refused(network.NAME, "mode", "a network of the engine's", f"{wanted}, which agentshim makes", todo)
    if wanted != "auto" or engines or not any(section.get(key) for key in CARRIED):
        return ""  # a lease on a network that is not there would carry nothing: then nothing is built
    asked = namespaces.from_spec(spec, facts).kinds[namespaces.KINDS.index("network")]
    return "" if asked == namespaces.HOST else "isolated"  # whoever wanted the host's meant another one than ours


def _published(engine: docker.Asked, mine: network.Network) -> None:
    """Refused where a port was to be published that nobody could reach: -p."""
    for protocol, port in engine.ports:
        room = network.PROTOCOLS.index(protocol) if protocol in network.PROTOCOLS else -1
        if room < 0 or not any(first <= port <= last for first, last in mine.inbound[room]):
            todo = f'[network] inbound = ["{protocol}:{port}"], or drop -p'
            raise Refused(network.NAME, "inbound", f"-p of {port}/{protocol}", network.listening(mine.inbound), todo)


def _filled(spec: Spec, section: dict[str, Any], facts: Facts, link: str, engine: docker.Asked | None) -> Lock:
    """The lock with what only this start knows: what names lead to, the host's name servers and addresses."""
    kept = {key: value for key, value in section.items() if key not in ("plan", "public", "siblings")}
    if "learned" in section:  # whoever joins is measured by it
        kept["public"] = section["public"]
    own = kernel.addresses(six=not link)  # a network of ours is IPv4 alone
    kept["outbound"] = network.without(section["outbound"], own)  # whoever means the host names its address
    if "plan" in section and not section["dns"] and not link and kept["outbound"] is section["outbound"]:
        from binascii import a2b_base64  # as below: an unfiltered network pays for none of it

        return Lock(a2b_base64(section["plan"]), kept)
    if link:
        kept["outbound"] = [one for one in kept["outbound"] if ":" not in one[1]]
    # What names lead to, and the host's name servers, may be others at each start.
    hosts = resolver = b""
    kept["pins"], kept["resolvers"] = {}, []
    if section["dns"] or "names" in section or "learned" in section:
        gate.bring("names")
        from shim import names

        resolver = names.RESOLVER if "learned" in section else b""
        if section["dns"]:
            asked = kernel.resolvers() + ([] if link or engine else names.servers(spec, facts.sources, own))
            six = any(":" in one[1] for one in kept["outbound"])  # a name server alone opens no IPv6
            kept["resolvers"] = [one for one in asked if six or ":" not in one]
        if "names" in section:
            pins = names.resolve(section, own, engine)
            kept["pins"] = {name: [one for one in told if not link or ":" not in one] for name, told in pins.items()}
            hosts = names.hosts(spec, facts.sources, kept["pins"])
    found = [[p, one, *ports] for p, name, *ports in section.get("names", ()) for one in kept["pins"][name]]
    kept["outbound"] = [*kept["outbound"], *found]
    if link:
        kept["pinned"] = found + [[p, one, 53, 53] for one in kept["resolvers"] for p in network.PROTOCOLS]
        kept["at_host"] = network.within([*kept["outbound"], *kept["pinned"]], own)
        return Lock(b"", kept, hosts, link, resolver)
    gate.bring("steps")
    from shim.verbs import steps

    return Lock(steps.confined(kept), kept, hosts, link, resolver)


def _granted(spec: Spec, ceiling: Product, facts: Facts) -> str:
    """The network namespace that the container will get: 'new', 'at:device:inode', or 'host'."""
    met = namespaces.meet(namespaces.from_spec(spec, facts), ceiling[namespaces.NAME])
    granted = met.kinds[namespaces.KINDS.index("network")]
    return namespaces.NEW if granted == namespaces.SHARED else granted  # the host's was asked, and is not to be had


def _members(namespace: str) -> list[tuple[dict[str, Any], int]]:
    """The records of the containers that live in a network namespace, and their first processes."""
    found = [(record, state.init_of(record)) for record in state.records()]
    return [(record, pid) for record, pid in found if pid and kernel.namespace_of(pid, "network") == namespace]


def _joined(members: list[tuple[dict[str, Any], int]], mine: network.Network, facts: Facts) -> Lock:
    """The lock of those who are there, if this policy allows all that it lets through."""
    locked = next(((one, pid) for one, pid in members if one.get("network")), None)
    section = None
    if locked:
        from hooks import records

        records.leases(f"/proc/{locked[1]}/ns/net")  # HostError unless the kernel has the lock that the record tells of
        section = {"digest": locked[0]["digest"], **locked[0]["network"]}  # of the policy that it was made for
    lease = next((str(one["address"]) for one, _ in members if one.get("address")), "")
    if section and not lease:
        section.pop("names", None)  # `net refresh` looks them up for whom they were pinned
    facts.network = network.from_policy(of_policy(section) if section else "top")
    if network.leq(facts.network, mine):
        return Lock(b"", section, lease=lease)
    policies = ", ".join(sorted({str(one["policy"]) for one, _ in members}))
    asked = f"the network of {members[0][0]['id']}, filtered by {policies if section else 'nothing'}"
    todo = "start it under a policy with the same [network], or give it a network of its own"
    raise Refused(network.NAME, "join", asked, "a network that lets through no more than its own policy", todo)


def of_policy(section: dict[str, Any]) -> dict[str, Any]:
    """A lock's section as a policy has it: `services` says what of the host is granted, at whichever gateway, and what
    names led to is granted already.
    """
    out = {**section, "outbound": [one for one in section["outbound"] if one[1] != section.get("gateway")]}
    out.pop("names", None)
    return out
