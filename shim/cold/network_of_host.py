"""`agentshim net show|export`: all filtered networks of this host, for people and for Prometheus.

Next door: `net` looks at one container.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

from hooks import records
from shim import state
from shim.dim import network
from shim.errors import HostError, ShimError, reason

# The sets of a lock: verdict and direction as labels have them.
SETS = (("flows", "allowed", "egress"), ("denied", "rejected", "egress"), ("refused", "rejected", "ingress"))


def main(words: list[str]) -> int:
    """Runs the command; its exit code. Raises ShimError."""
    parser = argparse.ArgumentParser(prog="agentshim net", description="filtered networks of this host")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("show", help="each container, its policy and what passes")
    export = verbs.add_parser("export", help="what the kernel counted, once; for a timer")
    export.add_argument("--prometheus", required=True, metavar="FILE", help="a textfile of node_exporter's, by rename")
    options = parser.parse_args(words)
    if options.verb == "show":
        for record, _ in locked():
            print(f"{record['id'][:12]}  {record['policy']}: {network.words(network.from_policy(_plain(record)))}")
        return 0
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
    for record, place in locked():
        owner = f'container="{record["id"]}",policy="{record["policy"]}"'
        try:
            found, leased = records.read(place), records.leases(place)
        except ShimError:
            continue  # it ended while we looked
        leases[owner] = len(leased)
        for kind, verdict, direction in SETS:
            for protocol, _, _, count, size in found[kind]:
                labels = f'{owner},verdict="{verdict}",direction="{direction}",protocol="{protocol}"'
                packets[labels] = packets.get(labels, 0) + count
                sizes[labels] = sizes.get(labels, 0) + size
    out = []
    for name, kind, about, values in (
        ("agentshim_network_packets_total", "counter", "packets that a policy allowed or rejected", packets),
        ("agentshim_network_bytes_total", "counter", "their bytes, IP headers included", sizes),
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
