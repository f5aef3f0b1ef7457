"""`agentshim net up|down|gc|show|export|refresh|names`: bridges, and all filtered networks of this host, for people and
Prometheus.

Next door: `net` looks at one container; `net_up` and `net_down` make and end bridges.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from collections.abc import Iterator
from typing import Any

from hooks import host_state, records
from shim import policy, state
from shim.cold.explain import find
from shim.cold.network import leases, net, net_down, net_macvlan, net_refresh, net_up, network_source
from shim.cold.policy import policies
from shim.dim import network
from shim.errors import HostError, Invalid, Refused, ShimError, reason
from shim.verbs import lock

# The sets of a lock: verdict and direction as labels have them.
SETS = (("flows", "allowed", "egress"), ("denied", "rejected", "egress"), ("refused", "rejected", "ingress"))


def main(words: list[str], directory: str = host_state.DIRECTORY) -> int:
    """Runs the command; its exit code. Raises ShimError. `directory`: where the state of bridges is."""
    options = _parser().parse_args(words)
    verbs = {
        "show": _show,
        "up": _up,
        "down": _down,
        "gc": _gc,
        "export": _export,
        "refresh": _refresh,
        "names": _names,
    }
    return verbs[options.verb](options, directory)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agentshim net", description="filtered networks of this host")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("show", help="each bridge; each container, its policy and what passes")
    up = verbs.add_parser("up", help="make bridges, or repair what somebody changed")
    up.add_argument("profiles", nargs="*", metavar="PROFILE", help="a policy with a bridge (default: all of them)")
    up.add_argument("--pool", metavar="NET", help="where new subnets are from (default: network_pool)")
    down = verbs.add_parser("down", help="end bridges that nobody is on")
    down.add_argument("profiles", nargs="*", metavar="PROFILE")
    down.add_argument("--all", action="store_true", help="every bridge, and with the last one the rules")
    down.add_argument("--force", action="store_true", help="though containers lose their network")
    verbs.add_parser("gc", help="end elements and addresses whose container is gone")
    refresh = verbs.add_parser("refresh", help="look up again what names lead to, for long runs")
    refresh.add_argument("containers", nargs="*", metavar="CONTAINER", help="an id, a unique prefix, or a name")
    refresh.add_argument("--all", action="store_true", help="every running container whose policy names peers")
    names = verbs.add_parser("names", help="the names that a policy leaves to a proxy, for the proxy's list")
    names.add_argument("policy", metavar="POLICY")
    export = verbs.add_parser("export", help="what the kernel counted, once; for a timer")
    export.add_argument("--prometheus", required=True, metavar="FILE", help="a textfile of node_exporter's, by rename")
    return parser


def _show(options: argparse.Namespace, directory: str) -> int:
    for one in net_down.shown(directory):
        wrong = [
            "" if one["up"] else "not up",
            "" if one["rules"] else "rules changed by somebody: run agentshim net up",
            "" if one["docker"] else "not accepted in DOCKER-USER: run agentshim net up",
            f"elements of {len(one['cut_off'])} containers are lacking: run agentshim net up" if one["cut_off"] else "",
        ]
        state = "; ".join(word for word in wrong if word) or "up, rules as loaded"
        print(f"{one['bridge']}  {one['subnet']}  {one['addresses']} containers  {state}")
    for line in net_macvlan.shown():
        print(line)
    for record, _ in locked():
        print(f"{record['id'][:12]}  {record['policy']}: {network.words(network.from_policy(_plain(record)))}")
    return 0


def _up(options: argparse.Namespace, directory: str) -> int:
    config = policy.config()
    loaded = [policy.load(name, config) for name in options.profiles] or _those_with_a_bridge(config)
    bridged = [one for one in loaded if _mode(one) in net_up.MODES]
    if options.profiles and bridged != loaded:
        other = next(one for one in loaded if one not in bridged)
        todo = f"choose another policy, or set [network] mode in {other.name} to one of these"
        raise Invalid("net", other.name, _mode(other) or "no network", f"a mode of {', '.join(net_up.MODES)}", todo)
    for one in bridged:
        if lan := one.sections["network"].get("macvlan"):
            net_macvlan.up(one.name, lan)
            print(f"{lan['parent']}  {lan['addresses']}  gateway {lan['gateway']}, policy {one.name}, macvlan")
            continue
        pool = _pool(options.pool or config.network_pool)
        made = net_up.up(one.name, one.sections["network"], one.digest, directory, pool, config.mark)
        print(f"{made['bridge']}  {made['subnet']}  gateway {made['gateway']}, policy {one.name}")
    if not bridged:
        print(f"no policy has a network of its own (mode {', '.join(net_up.MODES)})")
    return 0


def _those_with_a_bridge(config: policy.Config) -> list[policy.Policy]:
    """The policies of which a container gets a network of ours; one that is void has no container."""
    found = []
    for name in policies.names(config):
        try:
            one = policy.load(name, config)
        except (Invalid, Refused):
            continue
        if _mode(one) in ("isolated", "dead-end") or (
            _mode(one) == "auto" and any(one.sections["network"].get(key) for key in lock.CARRIED)
        ):
            found.append(one)
    return found


def _mode(one: policy.Policy) -> str:
    section = one.sections.get("network")
    return str(section.get("mode", "")) if isinstance(section, dict) else str(section or "")


def _pool(text: str) -> str:
    try:
        pool = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise Invalid("net", "--pool", text, f"an IPv4 network ({error})", f"write it like {net_up.POOL}") from None
    if not pool.is_private or pool.prefixlen > net_up.PREFIX:
        ceiling = f"private addresses, a /{net_up.PREFIX} at least"
        raise Invalid("net", "--pool", text, ceiling, f"write it like {net_up.POOL}")
    return text


def _down(options: argparse.Namespace, directory: str) -> int:
    if bool(options.profiles) == options.all:
        raise Invalid("net", "down", " ".join(options.profiles) or "nothing", "PROFILE … or --all", "name one of both")
    there = [one["profile"] for one in net_down.shown(directory)]
    if missing := [name for name in options.profiles if name not in there]:
        raise Invalid("net", "PROFILE", missing[0], ", ".join(there) or "no bridge at all", "see agentshim net show")
    for line in net_down.down(
        there if options.all else options.profiles, directory, options.force, mark=policy.config().mark
    ):
        print(line)
    return 0


def _gc(options: argparse.Namespace, directory: str) -> int:
    counts = net_down.gc(directory, mark=policy.config().mark)
    print(", ".join(f"{count} {name}" for name, count in counts.items()) + " that were nobody's any more: gone")
    if addresses := net_macvlan.gc():
        print(f"{addresses} addresses on LANs that were nobody's any more: gone")
    if ended := leases.settle_all():
        print(f"{ended} leases had ended: recorded")
    return 0


def _refresh(options: argparse.Namespace, directory: str) -> int:
    if bool(options.containers) == options.all:
        given = " ".join(options.containers) or "nothing"
        raise Invalid("net", "refresh", given, "CONTAINER … or --all", "name one of both")
    if options.all:
        every = [one for one, _ in locked() if net_refresh.is_named(one)]
    else:
        every = [find(name) for name in dict.fromkeys(options.containers)]
    return net_refresh.main(every, directory)


def _names(options: argparse.Namespace, directory: str) -> int:
    section = policy.load(options.policy, policy.config()).sections.get("network")
    proxied = section.get("proxied", ()) if isinstance(section, dict) else ()
    for protocol, name, first, last in proxied:
        print(f"{protocol} {name} {network_source.span(first, last)}")
    if not proxied:
        todo = 'no name is left to a proxy ([network] names = "proxy")'
        print(f"agentshim: network: policy {options.policy}: {todo}", file=sys.stderr)
    return 0


def _export(options: argparse.Namespace, directory: str) -> int:
    _written(options.prometheus, "".join(f"{line}\n" for line in metrics()))
    return 0


def locked() -> Iterator[tuple[dict[str, Any], str]]:
    """The containers whose network is filtered and that live: record, and the path of the network namespace."""
    for record in state.records():
        pid = state.init_of(record) if record.get("network") else 0
        if pid:
            yield record, f"/proc/{pid}/ns/net"


def metrics() -> list[str]:
    """Lines of the text format 0.0.4: sums by container, verdict, direction and protocol, so that a workload's choice
    of peers does not become labels.
    """
    packets: dict[str, int] = {}
    sizes: dict[str, int] = {}
    leases: dict[str, int] = {}
    lately: dict[str, int] = {}
    rejected = records.at_host()
    for record, place in locked():
        owner = f'container="{record["id"]}",policy="{record["policy"]}"'
        try:
            found, leased, at_host = records.read(place), records.leases(place), net.beside(record, rejected)
        except ShimError:
            continue  # it ended while we looked
        leases[owner] = len(leased)
        for kind, verdict, direction in SETS:
            for protocol, _, _, count, size in found[kind]:
                labels = f'{owner},verdict="{verdict}",direction="{direction}",protocol="{protocol}"'
                packets[labels] = packets.get(labels, 0) + count
                sizes[labels] = sizes.get(labels, 0) + size
            for protocol, _, _, count, _ in at_host.get(kind, ()):
                labels = f'{owner},direction="{direction}",protocol="{protocol}"'
                lately[labels] = lately.get(labels, 0) + count
    out = []
    for name, kind, about, values in (
        ("agentshim_network_packets_total", "counter", "packets that a policy allowed or rejected", packets),
        ("agentshim_network_bytes_total", "counter", "their bytes, IP headers included", sizes),
        (
            "agentshim_network_rejected_by_host_packets",
            "gauge",
            "packets that the host's rules rejected, in rows that have begun within the hour",
            lately,
        ),
        ("agentshim_network_leases", "gauge", "leases that run", leases),
    ):
        out += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        out += [f"{name}{{{labels}}} {value}" for labels, value in sorted(values.items())]
    return out


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """The section without its names: what they led to is among its peers."""
    return {key: value for key, value in record["network"].items() if key != "names"}


def _written(path: str, text: str) -> None:
    """The file, whole or as it was: node_exporter reads at any time."""
    part = f"{path}.{os.getpid()}"
    try:
        with open(part, "x", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    except OSError as error:
        if os.path.exists(part):
            os.unlink(part)
        raise HostError("net", path, reason(error), "a file that can be written", "name another one") from None
