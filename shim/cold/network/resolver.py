"""dnsmasq at a bridge's gateway: the one resolver of containers whose names are learned ([network] names = "learn").

It answers the names that policies list and nothing else, and puts the addresses that it answered into sets of the
host's lock. It is a process of dnsmasq's, not of ours: one for a profile, started with the bridge, ended with it, and
started anew by the next container's start if it has died. Until then, running containers resolve nothing, and reach
what they have asked for within the hour.

    Exact names only: subdomains are NXDOMAIN at once, or a container would tell what it likes to whoever serves them.
    Letters in capitals, the kind of record and the time of a question do reach whoever serves a listed name.
    What it answers, it does not keep for long, so that it asks again, and the sets are told, before they forget.
    Nothing of the host's own configuration, hosts file or leases is read.

Belongs here: its file and its process. Next door: `hooks.host_rules` has the sets; `hooks.host_state` looks whether it
lives; `net_up` and `net_down` call.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooks import host_rules, host_state, labels
from shim import kernel
from shim.cold.network import net_others
from shim.errors import HostError

if TYPE_CHECKING:
    from shim.cold.network.net_up import Host

NAME = "dnsmasq"
LEARNED = ".learned"
SECONDS = 5  # that it has to end by itself
KEPT = 60  # seconds that an answer is good for, here and inside: less than an element of a set is
# In front of what differs. bind-dynamic: what comes by another interface is not answered, a neighbour's on the LAN that
# has a route to the gateway, for one; bind-interfaces looks at the address alone. stop-dns-rebind: no private address
# is even answered, though the rules refuse it anyway.
FIXED = f"""port=53
bind-dynamic
except-interface=lo
no-resolv
no-hosts
no-poll
no-ident
stop-dns-rebind
filter-AAAA
cache-size=1000
max-ttl={KEPT}
max-cache-ttl={KEPT}
address=/#/
"""


def program() -> str:
    """Where dnsmasq is. HostError where it is not installed, or has no sets of nftables (before 2.87)."""
    found = net_others.program(NAME)
    if not found:
        todo = 'install the package dnsmasq-base, or set names = "pin"'
        raise HostError("network", NAME, "not installed", "dnsmasq(8), to learn names", todo)
    if " nftset" not in net_others.run([found, "--version"]).stdout:
        todo = 'install dnsmasq-base 2.87 or later, or set names = "pin"'
        raise HostError("network", found, "without nftset", "a dnsmasq that fills sets of nftables", todo)
    return found


def up(here: Host, state: dict[str, Any], learned: list[list[Any]], told: Callable[[str], None]) -> None:
    """The resolver of a profile, running with what all its policies list; ended where none lists a name.

    The policy of today has `learned`; containers of former ones may still be there (hooks.host_state: TAG.learned).
    """
    place = Path(here.directory, state["profile"])
    kept = place / f"{state['tag']}{LEARNED}"
    if learned:
        here.write(f"{state['profile']}/{kept.name}", json.dumps(learned).encode())
    else:
        kept.unlink(missing_ok=True)
    listed = dict(_listed(place))
    if not listed:
        return end(here.directory, state["profile"])
    text = configuration(state["bridge"], state["gateway"], listed, kernel.own_resolvers(), f"{place}/{NAME}.pid")
    digest = blake2b(text.encode(), digest_size=20).hexdigest()
    running, was = host_state.resolver(here.directory, state["profile"])
    if running and was == digest:
        return None
    end(here.directory, state["profile"])
    here.write(f"{state['profile']}/{NAME}.conf", text.encode())
    pid = _started(place, state["gateway"])
    here.write(f"{state['profile']}/{host_state.RESOLVER}", f"{pid} {host_state.started(str(pid))} {digest}".encode())
    where = f"at {state['gateway']} for {state['bridge']}"
    told(f"dnsmasq runs now {where}, process {pid}, until agentshim net down")
    return None


def _listed(place: Path) -> Iterator[tuple[str, list[list[Any]]]]:
    """Tag -> the learned names of each policy of a profile whose rules are there."""
    for path in sorted(place.glob(f"*{LEARNED}")):
        if path.with_suffix(".nft").exists():
            yield path.stem, json.loads(path.read_text())
        else:
            path.unlink(missing_ok=True)


def configuration(
    bridge: str, gateway: str, listed: dict[str, list[list[Any]]], upstream: list[str], pid_file: str
) -> str:
    """dnsmasq's file. `listed`: tag -> (protocol, name, first port, last port). HostError where nobody can be asked."""
    servers = [one for one in upstream if not one.startswith("fe80:") and one != gateway]
    if not servers:
        todo = "name one in /etc/resolv.conf"
        raise HostError("network", NAME, "no name server of this host's", "one that can be asked", todo)
    sets: dict[str, set[str]] = {}
    for tag, learned in listed.items():
        numbers = {kind: number for number, kind in enumerate(host_rules.groups(learned))}
        for protocol, name, first, last in learned:
            one = f"4#inet#{labels.TABLE}#{host_rules.learned_set(tag, numbers[protocol, first, last])}"
            sets.setdefault(name, set()).add(one)
    lines = [f"interface={bridge}", f"pid-file={pid_file}"]
    for name in sorted(sets):
        lines += [f"server=/{name}/{one}" for one in servers]
        lines += [f"address=/*.{name}/", f"nftset=/{name}/{','.join(sorted(sets[name]))}"]
    return FIXED + "\n".join(lines) + "\n"


def _started(place: Path, gateway: str) -> int:
    """The process; HostError, with dnsmasq's first line, where it does not start."""
    done = net_others.run([program(), f"--conf-file={place}/{NAME}.conf"])
    said = next(iter(done.stderr.splitlines()), "no word")
    try:
        if done.returncode == 0:
            return int(Path(place, f"{NAME}.pid").read_text())
    except (OSError, ValueError):
        said = "it does not say which process it is"
    todo = f"see what else listens at {gateway} port 53, and the system's log"
    raise HostError("network", NAME, said, "a resolver that starts", todo)


def end(directory: str, profile: str) -> None:
    """Ends the resolver of a profile, if it is there. HostError where it does not end."""
    place = Path(directory, profile)
    pid, _ = host_state.resolver(directory, profile)
    if pid:
        with suppress(ProcessLookupError):
            _ended(pid, directory, profile)
    for name in (host_state.RESOLVER, f"{NAME}.pid", f"{NAME}.conf"):
        Path(place, name).unlink(missing_ok=True)


def forget(directory: str, profile: str) -> None:
    """Its cache: what it answers from there is put into no set, and the sets may be new ones."""
    pid, _ = host_state.resolver(directory, profile)
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGHUP)


def _ended(pid: int, directory: str, profile: str) -> None:
    fd = os.pidfd_open(pid)
    try:
        if host_state.resolver(directory, profile)[0] != pid:  # its number may have come round before it was held
            return
        for word in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(fd, word)
            if select.select([fd], [], [], SECONDS)[0]:
                return
    finally:
        os.close(fd)
    raise HostError("network", NAME, f"process {pid} stays", "its end", "look at the host")
