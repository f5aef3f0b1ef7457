"""The network that agentshim makes for a container: its place on its policy's bridge, and what the hooks do there.

Belongs here: the plan of all steps. Next door: `verbs.lock` decided that there is such a network; shim/cold/net_up
makes the bridge and the host's rules, which stay; `hooks.host_state` has the addresses; `hooks.link`, `hooks.host` and
`hooks.lock` have the steps.
"""

from __future__ import annotations

from hooks import host, host_state, link, lock, netlink, plan
from hooks.grants import address_of
from shim import hostpaths, kernel, state
from shim.dim import network
from shim.errors import Refused, reason
from shim.lattice import at
from shim.verbs.lock import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.lattice import Spec
    from shim.policy import Config, Policy

LANS = state.DIRECTORY + "/macvlan"  # as host_state.DIRECTORY is for bridges
PICK = "agentshim.publish"  # annotation: which of the policy's to publish, comma-separated, as the policy writes them


def lay(locked: Lock, chosen: Policy, config: Config, spec: Spec, root: str, container: str) -> tuple[Lock, str]:
    """The lock with its plan, and the file that holds the container's address: unlink it where create fails.

    Refused where what is to be published is not listed; HostError where no address is left, or the bridge cannot be
    made.
    """
    section: dict[str, Any] = dict(locked.section)
    owner = state.name_of(root, container)
    before = state.load(root, container)
    if before and state.is_leaving(before):
        from shim.cold import net_down  # the last one of this id: its hook would take this one's plan for its own

        net_down.gc(mark=config.mark)
    if "macvlan" in section:
        return _on_lan(locked, section, chosen, owner)
    section["publish"] = _picked(section.get("publish", []), spec)
    _are_free(section["publish"])
    services = section.get("services", [])
    bridge = _bridge(chosen, config)
    address = host_state.take(host_state.DIRECTORY, chosen.name, owner)
    port = link.Port(bridge["index"], address_of(bridge["gateway"]), bridge["prefix"], address)
    section["gateway"] = bridge["gateway"]
    section["outbound"] = [*section["outbound"], *([p, bridge["gateway"], *ports] for p, *ports in services)]
    section["address"], section["profile"] = host.dotted(address), chosen.name
    enter = host.enter(port, host.tag(chosen.digest), section["pinned"], services)
    made = (enter, *host.doors(port, section["publish"]), *link.steps(port, hostpaths.exists("/proc/net/if_inet6")))
    steps = _kept((*lock.steps(_inside(section)), *made), section)
    file = f"{host_state.DIRECTORY}/{chosen.name}/{host_state.ADDRESSES}/{section['address']}"
    resolver = locked.resolver and locked.resolver % bridge["gateway"].encode()
    return Lock(plan.encode(steps), section, locked.hosts, locked.link, resolver), file


def _inside(section: dict[str, Any]) -> dict[str, Any]:
    """The section for the lock inside, which no resolver can fill: where names are learned, it lets through all public
    addresses but the host's own, on the ports of these names. The host's lock has the addresses that they led to: it is
    the exact one. So what is let through here for them is not in the record, as what the policy grants is.
    """
    if "learned" not in section:
        return section
    ports = sorted({(protocol, first, last) for protocol, _, first, last in section["learned"]})
    wide = [(protocol, block, first, last) for protocol, first, last in ports for block in section["public"]]
    return {**section, "outbound": [*section["outbound"], *network.without(wide, kernel.addresses())]}


def _on_lan(locked: Lock, section: dict[str, Any], chosen: Policy, owner: str) -> tuple[Lock, str]:
    """`lay` for an interface on a card of the host's: the lock inside is the only one."""
    there = section["macvlan"]
    parent = _parent(chosen.name, there)
    address = host_state.take(LANS, chosen.name, owner)
    port = link.Port(parent, address_of(there["gateway"]), there["prefix"], address)
    section["on_lan"] = host.dotted(address)
    steps = _kept((*lock.steps(section), *link.on_lan(port, hostpaths.exists("/proc/net/if_inet6"))), section)
    file = f"{LANS}/{chosen.name}/{host_state.ADDRESSES}/{section['on_lan']}"
    return Lock(plan.encode(steps), section, locked.hosts, locked.link), file


def _kept(steps: tuple[plan.Step, ...], section: dict[str, Any]) -> tuple[plan.Step, ...]:
    """With `auto` an engine's network is filtered where it is, all else is not what the policy wants."""
    return steps if section["mode"] == "auto" else plan.required(steps)


def _parent(profile: str, there: dict[str, Any]) -> int:
    """The number of the host's card, with a place for the profile's addresses."""
    from _socket import if_nametoindex  # 0.1 ms

    told = host_state.bridge(LANS, profile)
    same = told is not None and told["parent"] == there["parent"] and told["addresses"] == there["addresses"]
    if told and same and not host_state.forsaken(LANS, profile, state.DIRECTORY):
        try:
            if if_nametoindex(there["parent"]) == told["index"]:
                return int(told["index"])
        except OSError:
            pass  # told below
    from shim.cold import net_macvlan  # a few files: once for a policy

    return net_macvlan.up(profile, there)


def _are_free(published: list[list[Any]]) -> None:
    """Refused where a process of the host listens on what is to be published: its callers would come to us."""
    from _socket import AF_INET, SOCK_DGRAM, SOCK_STREAM, socket

    for address, outside, _, protocol in published:
        one = socket(AF_INET, SOCK_STREAM if protocol == "tcp" else SOCK_DGRAM)
        try:
            one.bind((address, outside))
        except OSError as error:
            asked = f"{address}:{outside}/{protocol}, {reason(error)}"
            todo = "end what listens there, or publish another port"
            raise Refused(network.NAME, "publish", asked, "a port of this host's that nobody has", todo) from None
        finally:
            one.close()


def _picked(listed: list[list[Any]], spec: Spec) -> list[list[Any]]:
    """What is published: all that policy lists, or what the annotation names of it."""
    asked = at(spec, "annotations", {}).get(PICK)
    if asked is None:
        return listed
    known = {"{}:{}:{}/{}".format(*one): one for one in listed}
    words = [word for word in asked.split(",") if word]
    for word in words:
        if word not in known:
            todo = "choose among them, or let the policy list it: [network] publish"
            raise Refused(network.NAME, PICK, word, ", ".join(known) or "nothing", todo)
    return [known[word] for word in words]


def _bridge(chosen: Policy, config: Config) -> dict[str, Any]:
    """The bridge of a policy, with the host's rules as they were made; made, or repaired, where something is amiss."""
    with netlink.Socket(netlink.NETFILTER) as socket:
        found = host_state.ready(host_state.DIRECTORY, chosen.name, chosen.digest, socket.dump)
    if host_state.forsaken(host_state.DIRECTORY, chosen.name, state.DIRECTORY):
        from shim.cold import net_down  # somebody was killed, or this host's /run is not: seldom

        net_down.gc(mark=config.mark)
    if found:
        return found
    from shim.cold import net_up  # nft and a few files: once for a policy

    return net_up.up(chosen.name, chosen.sections["network"], chosen.digest, pool=config.network_pool, mark=config.mark)
