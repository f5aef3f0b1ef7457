"""Whether filtered networks can be made, and what of the host gets in their way.

Belongs here: nf_tables, and who else uses it. Next door: `hooks` makes the rules; `probes` asks the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hooks import netlink
from shim.cold.doctor import probes
from shim.cold.doctor.host import FAIL, OK, WARN, Finding, Host
from shim.cold.doctor.kernel import asked

BRIDGES = "as-"  # our bridges, by the beginning of their names
TABLE = "agentshim"
CALLS = "/proc/sys/net/bridge/bridge-nf-call-iptables"


def network(host: Host) -> Iterator[Finding]:
    """All there is to say of the network: what a lock needs, what our own bridges need, and who else marks packets."""
    yield from asked(
        "network.inet",
        lambda: probes.apart(probes.NEW_NET, probes.inet_lock),
        "nf_tables: base chains, sets of ranges, sets that count",
        'only a policy with [network] mode = "engine" can start',
        "use Linux 5.6 or newer with CONFIG_NF_TABLES_INET, NFT_CT, NFT_FIB_INET; as host root",
    )
    yield from asked(
        "network.bridge",
        lambda: probes.apart(probes.NEW_NET, probes.bridge_table),
        "nf_tables: the family bridge",
        "no network of our own can be made",
        "load the module nft_meta_bridge, on a kernel with CONFIG_NF_TABLES_BRIDGE",
        WARN,
    )
    yield from _tables(host)
    yield from _bridges(host)
    nft = host.program("nft")
    if not nft:
        todo = "install nftables: it shows what the kernel holds, and makes networks of our own"
        yield Finding(WARN, "network.nft", "no nft", todo)
    else:
        yield Finding(OK, "network.nft", host.run(nft, "--version").strip() or nft)
        yield from _marks(host, nft)


def _tables(host: Host) -> Iterator[Finding]:
    """The rules of our own networks, compared in the kernel with what was loaded."""
    told = rules(host)
    if told is None and not _bridges_of(host):
        yield Finding(OK, "network.tables", "no network of our own yet")
    elif told:
        yield Finding(OK, "network.tables", "as they were loaded")
    else:
        found = "bridges without rules" if told is None else "somebody has changed or flushed our rules"
        yield Finding(FAIL, "network.tables", found, "agentshim net up")
    if lacking := cut_off(host):
        found = f"lacks elements of {', '.join(lacking)}: it is cut off, or more is open"
        yield Finding(FAIL, "network.elements", found, "agentshim net up")
    else:
        yield Finding(OK, "network.elements", "all of running containers")


def rules(host: Host) -> bool | None:
    """Whether the host's rules are as they were loaded; None where none were, or where this installation makes none."""
    try:
        from hooks import fingerprint, host_state
    except ImportError:
        return None
    kept, *_ = host_state.rules(host.at(host_state.DIRECTORY))
    if not kept:
        return None
    with netlink.Socket(netlink.NETFILTER) as kernel:
        return bool(fingerprint.intact(kernel, kept))


def cut_off(host: Host) -> list[str]:
    """The running containers for which the host's lock does not hold what it should."""
    try:
        from hooks import host_state
        from shim.cold.network import net_agents
    except ImportError:
        return []
    with netlink.Socket(netlink.NETFILTER) as kernel:
        return [one.name for one in net_agents.cut_off(host.at(host_state.DIRECTORY), kernel)]


def _bridges_of(host: Host) -> list[str]:
    return [one for one in host.names("/sys/class/net") if one.startswith(BRIDGES)]


def _bridges(host: Host) -> Iterator[Finding]:
    """What our own bridges need of others: accepts in DOCKER-USER, no chain that drops, no iptables on what they
    bridge. Nothing is asked without a bridge: to ask iptables may load its modules.
    """
    ours = _bridges_of(host)
    calls = host.text(CALLS).strip()
    if ours and calls == "1":
        todo = f"echo 0 > {CALLS}, or accept our bridges in iptables too"
        yield Finding(WARN, "network.br-netfilter", "iptables sees what our bridges carry", todo)
    else:
        yield Finding(OK, "network.br-netfilter", f"bridge-nf-call-iptables {calls}" if calls else "not loaded")
    if not ours:
        yield Finding(OK, "network.docker-user", "no bridge of ours")
        return
    from shim.cold.network import net_others

    lacking = {path: accepts for path, accepts in net_others.docker_user().items() if accepts}
    for path, accepts in lacking.items():
        found = "; ".join(" ".join(one) for one in accepts)
        yield Finding(FAIL, "network.docker-user", f"lacks {found}: dockerd drops it", "agentshim net up", path)
    if not lacking:
        yield Finding(OK, "network.docker-user", "accepts our bridges, or is not there")
    for chain in net_others.drops():
        yield Finding(WARN, "network.forward", "drops what is forwarded", "accept as-* in it, in and out", chain)


def _marks(host: Host, nft: str) -> Iterator[Finding]:
    """Who else sets marks on packets: Cilium, kube-proxy, a VPN. Ours use a mask."""
    tables, found = "", []
    for line in host.run(nft, "list", "ruleset").splitlines():
        words = line.split()
        tables = " ".join(words[1:3]) if words[:1] == ["table"] else tables
        if re.search(r"\b(meta|ct) mark set\b|-j (CONN)?MARK\b", line) and tables.partition(" ")[2] != TABLE:
            found.append(tables)
    others = ", ".join(dict.fromkeys(found))
    todo = "see that its mask and that of agentshim's networks share no bit" if others else ""
    yield Finding(WARN if others else OK, "network.marks", f"set in {others}" if others else "nobody else's", todo)
