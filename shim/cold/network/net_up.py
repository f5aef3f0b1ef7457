"""`agentshim net up`, also called by a container's start that finds no bridge, or rules that somebody has changed.

Belongs here: one bridge and one subnet a profile, the rules, the host's settings; each made only where it is lacking,
so that a call which was killed is repaired by the next. Next door: `net_down` takes back; `bridges` and `net_others` do
what is said here; `hooks.host_rules` has the rules; `hooks.host_state` the files.

The order is that nothing is open in between: rules first, then the bridge, down; it is up when it is set right. What a
start reads (bridge.json) comes last.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from hooks import fingerprint, host, host_rules, host_state, labels, netlink
from shim import wire
from shim.bundle import Directory
from shim.cold.network import bridges, net_agents, net_others, resolver
from shim.errors import HostError, Invalid, reason

POOL = "10.207.0.0/16"
PREFIX = 22  # 1,021 containers a profile; a bridge takes 1,023 ports
MODES = ("isolated", "dead-end", "auto")  # with a bridge
ALIAS = "agentshim "
LONGEST = 15  # characters of an interface's name
DEFAULT = 8  # a route to more than 2^24 addresses is a default route, whatever it is called
SETTINGS = "/proc/sys/net"
# Of a bridge, each before it is up. send_redirects: a redirect would say where a sibling is. IPv6 may not be there.
OF_BRIDGE = {
    "ipv6/conf/{}/disable_ipv6": "1",
    "ipv4/conf/{}/send_redirects": "0",
    "ipv4/conf/{}/accept_redirects": "0",
    "ipv4/conf/{}/accept_source_route": "0",
    "ipv4/conf/{}/forwarding": "1",
}

Network = ipaddress.IPv4Network


def say(line: str) -> None:
    """What was changed outside of what is ours."""
    print(f"agentshim: network: {line}", file=sys.stderr)


def up(
    profile: str,
    section: dict[str, Any],
    digest: str,
    directory: str = host_state.DIRECTORY,
    pool: str = POOL,
    mark: int = host.MARK,
    told: Callable[[str], None] = say,
) -> dict[str, Any]:
    """The bridge of a profile, as hooks.host_state.bridge reads it; made, or repaired, or found to be right.

    `section`: network of its compiled policy, and `digest` the policy's. HostError, with the host as safe as before,
    where the bridge's name or subnet is another's, nft is missing, or the kernel does not take something.
    """
    net_others.nft_program()
    learned = section.get("learned", [])
    if learned:
        resolver.program()
    with Host(directory) as here:
        state = here.state(profile)
        state.update(_named(profile), **_place(profile, state, here, ipaddress.IPv4Network(pool)))
        state.update(tag=labels.tag(digest), published=bool(section.get("publish")), learned=bool(learned))
        _kept(here, profile, {**state, "index": 0}, host_rules.policy(state["tag"], section))
        load_rules(here, mark, told)
        state["index"] = _bridge(here, state, mark)
        _settings(here, state, section, told)
        resolver.up(here, state, learned, told)
        for line in net_others.accept():
            told(f"accepted for our bridges in {line}")
        state["docker"] = host_state.docker(here.netfilter)
        here.write(f"{profile}/{host_state.BRIDGE}", wire.dumps(state))
        return state


class Host:
    """What is there, read once under the lock that is held until the end: interfaces, addresses, routes, our files."""

    def __init__(self, directory: str) -> None:
        try:
            for path in (Path(directory).parent, Path(directory)):
                path.mkdir(0o700, exist_ok=True)
        except OSError as error:
            raise HostError("network", directory, reason(error), "a writable /run", "make it writable") from None
        self.directory = directory
        self.lock = host_state.locked(f"{directory}/{host_state.LOCK}")
        self.route = netlink.Socket(netlink.ROUTE)
        self.netfilter = netlink.Socket(netlink.NETFILTER)
        self.look()

    def look(self) -> None:
        """Reads interfaces, addresses and routes anew."""
        self.links = {one.name: one for one in bridges.links(self.route)}
        self.nets = list(bridges.nets(self.route))

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        for kernel in (self.route, self.netfilter):
            kernel.__exit__()
        os.close(self.lock)

    def profiles(self) -> list[str]:
        """Those that have, or are getting, a bridge."""
        return sorted(path.name for path in Path(self.directory).iterdir() if path.is_dir())

    def state(self, profile: str) -> dict[str, Any]:
        """bridge.json, also of a bridge that is not finished; empty where there is none."""
        try:
            found = wire.loads(Path(self.directory, profile, host_state.BRIDGE).read_bytes(), "network", profile)
        except (OSError, Invalid):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, name: str, data: bytes) -> None:
        """A file of ours, whole or as it was."""
        path = Path(self.directory, name)
        if path.exists() and path.read_bytes() == data:
            return
        kept = Directory(str(path.parent))
        try:
            kept.tidy(path.name)
            kept.replace(path.name, data, os.fstat(self.lock))
        finally:
            os.close(kept.fd)

    def ours(self) -> dict[int, str]:
        """Numbers of the bridges that are ours -> profile."""
        return {one.number: one.alias.removeprefix(ALIAS) for one in self.links.values() if is_ours(one)}


def is_ours(one: bridges.Link) -> bool:
    return one.kind == "bridge" and one.alias.startswith(ALIAS)


def name_of(profile: str) -> str:
    """The bridge's name: as- and the profile, or its first characters and four hex digits of its hash."""
    name = f"as-{profile}"
    return name if len(name) <= LONGEST else f"as-{profile[:7]}-{blake2b(profile.encode()).hexdigest()[:4]}"


def _named(profile: str) -> dict[str, Any]:
    return {"profile": profile, "bridge": name_of(profile), "prefix": PREFIX}


def _place(profile: str, state: dict[str, Any], here: Host, pool: Network) -> dict[str, Any]:
    """The bridge's gateway and subnet; HostError where its name, or they, are another's."""
    _names_are_free(profile, here)
    own = name_of(profile)
    had = state.get("subnet") or _subnet_of(here, own)
    foreign = [one for one in here.nets if one.number not in here.ours() and one.prefix >= DEFAULT]
    if had:
        subnet = ipaddress.IPv4Network(had)
        if other := _overlapped(subnet, foreign):
            raise HostError("network", own, f"{subnet}", f"addresses apart from {other}", "end one of both")
    else:
        subnet = _free(here, profile, pool, foreign)
    return {"subnet": str(subnet), "gateway": str(subnet[1])}


def _names_are_free(profile: str, here: Host) -> None:
    """No interface of another's has a name that our rules mean."""
    for one in here.links.values():
        if (one.name == name_of(profile) and one.alias != ALIAS + profile) or _is_foreign(one):
            todo = f"rename it (ip link set {one.name} name …): our rules are for as-… and av…"
            raise HostError("network", one.name, f"an interface of another's ({one.kind or 'no kind'})", "ours", todo)


def _is_foreign(one: bridges.Link) -> bool:
    """Whether our rules would cut off what is not ours."""
    port = one.kind == "veth" and len(one.name) == 10 and not one.name[2:].strip("0123456789abcdef")
    return (one.name.startswith("as-") and not is_ours(one)) or (one.name.startswith("av") and not port)


def _subnet_of(here: Host, name: str) -> str:
    """What a bridge of ours has, of which no file tells any more."""
    there = here.links.get(name)
    found = [one for one in here.nets if there and one.number == there.number and one.what == "address"]
    return str(_network(found[0])) if found else ""


def _free(here: Host, profile: str, pool: Network, foreign: list[bridges.Net]) -> Network:
    """The first subnet of the pool that nobody has. HostError naming what is in the way."""
    taken = [ipaddress.IPv4Network(told["subnet"]) for one in here.profiles() if (told := here.state(one))]
    taken += [_network(one) for one in here.nets if one.number in here.ours() and one.what == "address"]
    other = ""
    for subnet in pool.subnets(new_prefix=PREFIX) if pool.prefixlen <= PREFIX else ():
        if any(subnet.overlaps(one) for one in taken):
            continue
        found = _overlapped(subnet, foreign)
        if not found:
            return subnet
        other = other or found
    lacking = f"a /{PREFIX} of {pool}: {f'{other} is in the way' if other else 'all are taken'}"
    raise HostError("network", profile, "a subnet", lacking, "agentshim net down PROFILE, or give it another --pool")


def _overlapped(subnet: Network, foreign: list[bridges.Net]) -> str:
    return next((f"the {one.what} {_network(one)}" for one in foreign if subnet.overlaps(_network(one))), "")


def _network(one: bridges.Net) -> Network:
    return ipaddress.IPv4Network((one.address, one.prefix), strict=False)


def _kept(here: Host, profile: str, state: dict[str, Any], text: str) -> None:
    """The subnet and the policy's rules on disk, before anything of them is in the kernel."""
    for path in (Path(here.directory, profile), Path(here.directory, profile, host_state.ADDRESSES)):
        path.mkdir(0o700, exist_ok=True)
    if here.state(profile).get("subnet") != state["subnet"]:
        here.write(f"{profile}/{host_state.BRIDGE}", wire.dumps(state))
    path = Path(here.directory, profile, f"{state['tag']}.nft")
    if not path.exists() or path.read_text() != text:
        here.write(f"{profile}/{path.name}", text.encode())


def load_rules(here: Host, mark: int = host.MARK, told: Callable[[str], None] = say) -> None:
    """Tables, all policies that are on disk, and running containers' elements, in the kernel as they should be."""
    text, tags = _rules(here, mark)
    digest = _digest(text)
    kept, was, _ = host_state.rules(here.directory)
    if was == digest and fingerprint.intact(here.netfilter, kept):
        return net_agents.restore(here.directory, here.netfilter, told)
    Path(here.directory, host_state.RULES).unlink(missing_ok=True)  # rules that are right again look as before
    net_others.nft(text)
    now = fingerprint.taken(here.netfilter)
    for profile in here.profiles():
        resolver.forget(here.directory, profile)
    net_agents.restore(here.directory, here.netfilter, told)
    return _keep(here, now, digest, tags)  # last: who finds it looks no further


def kept_again(here: Host, mark: int = host.MARK) -> None:
    """The rules that are in the kernel now are the right ones: some policies' have gone."""
    text, tags = _rules(here, mark)
    _keep(here, fingerprint.taken(here.netfilter), _digest(text), tags)


def _rules(here: Host, mark: int) -> tuple[str, list[str]]:
    policies = {path.stem: path.read_text() for path in sorted(Path(here.directory).glob("*/*.nft"))}
    return host_rules.tables(mark) + "".join(policies.values()), list(policies)


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=20).hexdigest()


def _keep(here: Host, now: bytes, digest: str, tags: list[str]) -> None:
    here.write(host_state.RULES, f"{' '.join([digest, *tags])}\n".encode() + now)


def _bridge(here: Host, state: dict[str, Any], mark: int) -> int:
    """The number of the bridge, which is up with its address."""
    name, gateway = state["bridge"], ipaddress.IPv4Address(state["gateway"]).packed
    mac = labels.mac(gateway)
    try:
        if name not in here.links:
            bridges.make(here.route, name, mac, ALIAS + state["profile"])
            here.look()
        there = here.links[name]
        if there.mac != mac:
            bridges.change(here.route, there.number, mac)
        for setting, value in OF_BRIDGE.items():
            _set(setting.format(name), value)
        has = [one for one in here.nets if one.number == there.number and one.what == "address"]
        if not any(one.address == int.from_bytes(gateway, "big") and one.prefix == PREFIX for one in has):
            bridges.give(here.route, there.number, gateway, PREFIX)
        if state["learned"]:
            _gate(here, there.number, mark)
        if not there.up:
            bridges.up(here.route, there.number)
            net_agents.neighbours(here.directory, state["profile"], here.route)
        return there.number
    except OSError as error:
        raise HostError("network", name, reason(error), "a bridge", "look at: ip -d link, dmesg") from error


def _gate(here: Host, number: int, mark: int) -> None:
    """A lock that no flush of rules opens, for policies that learn names: the lock inside is wide there."""
    try:
        bridges.gate(here.route, number, mark)
    except OSError as error:
        todo = 'use a kernel with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF, or set names = "pin"'
        raise HostError("network", "tc", reason(error), "a filter on the bridge, to learn names", todo) from error


def _settings(here: Host, state: dict[str, Any], section: dict[str, Any], told: Callable[[str], None]) -> None:
    """Of the host: loopback by the bridge only where something is published; forwarding where somebody is reached."""
    local = f"ipv4/conf/{state['bridge']}/route_localnet"
    lives = any(Path(here.directory, state["profile"], host_state.ADDRESSES).glob("[0-9]*"))
    if state["published"] or not lives:
        _set(local, "1" if state["published"] else "0")
    named = section.get("names") or section.get("learned")
    reached = section.get("outbound") or named or section.get("icmp")
    outside = any(not one[0].startswith("127.") for one in section.get("publish", ()))
    if (reached or outside) and _set("ipv4/ip_forward", "1"):
        told("net.ipv4.ip_forward is on now: this host routes, also for others; it was off")
    for chain in net_others.drops() if reached else ():
        told(f"{chain} drops what is forwarded: accept as-* in it, in and out, or nothing outside is reached")


def _set(name: str, value: str) -> bool:
    """Whether a setting had to be changed. HostError where the kernel has it and does not take it."""
    path = Path(SETTINGS, name)
    try:
        if path.read_text().strip() == value:
            return False
        path.write_text(value)
        return True
    except FileNotFoundError:
        if name.startswith("ipv6"):
            return False  # a kernel without it
        raise HostError("network", name, "not there", f"a setting that is {value}", "look at the host") from None
    except OSError as error:
        raise HostError(
            "network", name, reason(error), f"a setting that is {value}", "make /proc/sys writable"
        ) from None
