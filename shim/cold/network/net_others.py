"""What other programs' rules do to ours: an accept in one table does not undo a drop in another.

Docker sets the policy of `filter FORWARD` to drop and leaves the chain DOCKER-USER to the host's owner: our bridges are
accepted there, and our own tables decide. A restart of dockerd keeps the chain, a flush of it is found by `net show`.
iptables has two back ends, with a DOCKER-USER each: where both hold one, both are asked.
Next door: `net_up` calls; `hooks.host_rules` has our own rules.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from shim.errors import HostError

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
CHAIN = "DOCKER-USER"
ACCEPTS: list[tuple[str, ...]] = [("-i", "as-+", "-j", "ACCEPT"), ("-o", "as-+", "-j", "ACCEPT")]
LEGACY_TABLES = "/proc/net/ip_tables_names"  # to ask iptables-legacy makes its tables: not where there are none
SECONDS = 20


def program(name: str) -> str | None:
    """Where a program of the host is: in its own directories, whatever PATH the caller has."""
    return shutil.which(name, path=PATH)


def nft(text: str) -> None:
    """Loads `text`, whole or nothing of it. HostError, with nft's first line, where it is refused."""
    done = run([nft_program(), "-f", "-"], text)
    if done.returncode:
        said = next(iter(done.stderr.splitlines()), "no word")
        todo = "if another version made our tables: agentshim net down --all, then net up"
        raise HostError("network", "nft", said, "rules that are taken", todo)


def nft_program() -> str:
    """Where nft is; HostError where it is not installed."""
    found = program("nft")
    if not found:
        raise HostError("network", "nft", "not installed", "nft(8)", "install the package nftables")
    return found


def run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """One of the host's programs, in English; HostError where it does not end."""
    environment = {"PATH": PATH, "LC_ALL": "C"}
    try:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError("network", command[0], str(error), "a program that answers", "look at the host") from None


def docker_user() -> dict[str, list[tuple[str, ...]]]:
    """iptables program -> which of ACCEPTS its chain DOCKER-USER lacks; only programs that have the chain."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for name in ("iptables-nft", "iptables-legacy"):
        path = program(name)
        if path and (name != "iptables-legacy" or _legacy()):
            done = run([path, "-w", "-S", CHAIN])
            if done.returncode == 0:
                there = {line.strip() for line in done.stdout.splitlines()}
                found[path] = [one for one in ACCEPTS if " ".join(("-A", CHAIN, *one)) not in there]
    return found


def accept() -> list[str]:
    """Adds what is lacking, in front; what was done, one line each."""
    said = []
    for path, lacking in docker_user().items():
        for one in lacking:
            done = run([path, "-w", "-I", CHAIN, "1", *one])
            if done.returncode:
                todo = f"add it by hand: {path} -I {CHAIN} 1 {' '.join(one)}"
                raise HostError("network", CHAIN, done.stderr.strip(), "a rule that is taken", todo)
            said.append(f"{Path(path).name}: {CHAIN} {' '.join(one)}")
    return said


def unaccept() -> None:
    """Takes back what `accept` adds, as often as it is there."""
    for path, lacking in docker_user().items():
        for one in set(ACCEPTS) - set(lacking):
            while run([path, "-w", "-D", CHAIN, *one]).returncode == 0:
                pass


def drops() -> list[str]:
    """Other tables' chains that drop what is forwarded unless a rule of theirs accepts it; Docker's own left out."""
    done = run([nft_program(), "-j", "list", "chains"])
    listed: list[dict[str, Any]] = json.loads(done.stdout or '{"nftables": []}')["nftables"]
    every = [one["chain"] for one in listed if "chain" in one]
    docker = {(one["family"], one["table"]) for one in every if one["name"] == CHAIN}
    return [
        f"{one['family']} {one['table']} {one['name']}"
        for one in every
        if one.get("hook") == "forward" and one.get("policy") == "drop" and one["family"] in ("ip", "inet")
        if (one["family"], one["table"]) not in docker
    ]


def _legacy() -> bool:
    try:
        return "filter" in Path(LEGACY_TABLES).read_text().split()
    except OSError:
        return False
