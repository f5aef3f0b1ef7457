"""The network that agentshim makes for a container: its place on its policy's bridge, and what the hooks do there.

Belongs here: where the container is put, and its plan, which is that of the policy's last one but for the address. Next
door: `verbs.lock` decided that there is such a network; `verbs.steps` makes a plan anew; shim/cold/network makes
bridge and host's rules, which stay; `hooks.host_state` has the addresses.
"""

from __future__ import annotations

import fcntl
import posix

from hooks import host_state, labels, netlink, template
from shim import hostpaths, kernel, state
from shim.dim import network
from shim.errors import HostError, Refused, ShimError, reason
from shim.lattice import at as value_at
from shim.verbs import gate
from shim.verbs.lock import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.lattice import Spec
    from shim.policy import Config, Policy
    from shim.verbs.steps import At

LANS = state.DIRECTORY + "/macvlan"  # as host_state.DIRECTORY is for bridges
PICK = "agentshim.publish"  # annotation: which of the policy's to publish, comma-separated, as the policy writes them


def lay(locked: Lock, chosen: Policy, config: Config, spec: Spec, root: str, container: str) -> tuple[Lock, str]:
    """The lock with its plan, and the file that holds the container's address: unlink it where create fails.

    Refused where what is to be published is not listed; HostError where no address is left, or the bridge cannot be
    made.
    """
    section: dict[str, Any] = dict(locked.section)
    six = hostpaths.exists("/proc/net/if_inet6")
    if "macvlan" in section:
        there = section["macvlan"]
        directory, name, own = LANS, "on_lan", section
        bridge = None
        at = (_parent(chosen.name, there), there["gateway"], there["prefix"], six)
    else:
        section["publish"] = _picked(section.get("publish", []), spec)
        _are_free(section["publish"])
        bridge = _bridge(chosen, config)
        gateway = bridge["gateway"]
        section["gateway"], section["profile"] = gateway, chosen.name
        services = [[protocol, gateway, *ports] for protocol, *ports in section.get("services", [])]
        section["outbound"], section["at_host"] = [*section["outbound"], *services], [*section["at_host"], *services]
        directory, name, own = host_state.DIRECTORY, "address", _inside(section)
        at = (bridge["index"], gateway, bridge["prefix"], six)
    address = host_state.take(directory, chosen.name, state.name_of(root, container), bridge)
    file = host_state.place_of(directory, chosen.name, address)
    try:
        made = _plan(directory, chosen, own, at, address)
    except BaseException:
        host_state.give_back(directory, chosen.name, address)
        raise
    section[name] = labels.dotted(address)
    resolver = locked.resolver and locked.resolver % section["gateway"].encode()
    return Lock(made, section, locked.hosts, locked.link, resolver), file


def join(lease: str, owner: str) -> tuple[str, str, str]:
    """A claim on the network whose address the file `lease` keeps: while there is one, that address is nobody else's,
    and the host's lock stays as it is. `owner`: as for host_state.take.

    For the poststop hook (native/nethook.c): a plan, which outlives the network's first container, the lease, and the
    claim: unlink it where create fails. HostError where the network has just ended.
    """
    place, _, address = lease.rpartition("/")
    members = host_state.members_of(lease)
    plan = f"{members}/{address}{state.LOCK}"
    claim = f"{members}/{address}.{posix.getpid()}.{host_state.started('self')}.{owner}"
    held = [host_state.locked(f"{place}/{host_state.LOCK}")]  # of gc
    try:
        held.append(host_state.locked(f"{state.DIRECTORY}/lock"))  # of `net refresh`, which changes plans
        held.append(posix.open(lease, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW))
        fcntl.flock(held[-1], fcntl.LOCK_EX)  # of the hooks
        first = posix.read(held[-1], 64).decode().partition(" ")[0]
        if not hostpaths.exists(members):
            posix.mkdir(members, 0o700)
        if not first.startswith(host_state.ENDED):  # then its plan is that of today
            part = f"{members}/.{posix.getpid()}"
            state.unlink(part)
            posix.link(f"{state.DIRECTORY}/{first}{state.LOCK}", part)
            posix.rename(part, plan)
            state.unlink(part)  # rename(2) leaves it where both are one file
        elif not hostpaths.exists(plan):
            raise FileNotFoundError(2, "")
        posix.link(lease, claim)
    except OSError as error:
        todo = "create it anew, with whatever has that network"
        raise HostError("network", lease, reason(error), "a network that somebody lives in", todo) from None
    finally:
        for one in held:
            posix.close(one)
    return plan, lease, claim


def withdraw(claim: str, mark: int) -> None:
    """The end of a claim whose container was never run, and of the network where all others have ended meanwhile."""
    try:
        fd = posix.open(claim, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # of the hooks, which count claims
        state.unlink(claim)
        alone = posix.fstat(fd).st_nlink == 1 and posix.read(fd, 1).decode() == host_state.ENDED
    finally:
        posix.close(fd)
    if alone:
        from shim.cold.network import net_down

        try:
            net_down.gc(mark=mark)
        except ShimError:
            pass  # a later create, or `net gc`, does; why nothing was run is what is to be told


def _plan(directory: str, chosen: Policy, section: dict[str, Any], at: At, address: bytes) -> bytes:
    """The plan of a container at an address: like the last one's of this policy, or made anew."""
    key = template.key((section, at, chosen.digest))
    plan = template.filled(host_state.template(directory, chosen.name), key, address)
    if plan:
        return plan
    gate.bring("steps")
    from shim.verbs import steps  # and all that makes messages

    made = template.of(key, lambda address: steps.linked(section, at, chosen.digest, address))
    if made:
        host_state.keep(directory, chosen.name, made)
    return steps.linked(section, at, chosen.digest, address)


def _inside(section: dict[str, Any]) -> dict[str, Any]:
    """The section for the lock inside, which no resolver can fill: where names are learned, it lets through all public
    addresses but the host's own, on the ports of these names. The host's lock has the addresses that they led to: it is
    the exact one. So what is let through here for them is not in the record, as what the policy grants is.
    """
    if "learned" not in section:
        return section
    ports = sorted({(protocol, first, last) for protocol, _, first, last in section["learned"]})
    wide = [(protocol, block, first, last) for protocol, first, last in ports for block in section["public"]]
    return {**section, "outbound": [*section["outbound"], *network.without(wide, kernel.addresses(six=False))]}


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
    from shim.cold.network import net_macvlan  # a few files: once for a policy

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
    asked = value_at(spec, "annotations", {}).get(PICK)
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
        found = host_state.ready(host_state.DIRECTORY, chosen.name, chosen.digest, socket)
    if host_state.forsaken(host_state.DIRECTORY, chosen.name, state.DIRECTORY):
        from shim.cold.network import net_down  # somebody was killed, or this host's /run is not: seldom

        net_down.gc(mark=config.mark)
    if found:
        return found
    from shim.cold.network import net_up  # nft and a few files: once for a policy

    return net_up.up(chosen.name, chosen.sections["network"], chosen.digest, pool=config.network_pool, mark=config.mark)
