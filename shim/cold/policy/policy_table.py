"""The table of all that the policies hold, as the README and agentshim-policy(5) show it.

Belongs here: words for sections. Next door: `policies` prints it; a test holds the README to it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from shim import policy
from shim.cold.network import network_source
from shim.cold.policy.policy_joins import Resolved, resolve
from shim.cold.seccomp import seccomp_source
from shim.dim import capabilities, network, seccomp

ORDER = ("locked", "agent", "web", "dev", "identity")
TOP, NOTHING = "all", "none"
Section = dict[str, Any]


def table() -> str:
    """The built-in policies as a Markdown table: a row for each thing they hold, a column for each policy."""
    config = policy.Config({}, "/nonexistent", "/nonexistent")
    found = [resolve(name, config) for name in ORDER]
    head = ["", *(f"`{one.name}`{' (default)' if one.name == config.default else ''}" for one in found)]
    for one in found:
        if isinstance(one.sections["seccomp"], dict):
            one.sections["seccomp"] = {**one.sections["seccomp"], "families": _families(one)}
    rows = [[title, *_cells([_cell(one, section, words) for one in found])] for title, section, words in ROWS]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cells(cells: list[str]) -> list[str]:
    """Long text only once: the columns after agent's say `as agent`, and what they add."""
    agent = cells[ORDER.index("agent")]
    if len(agent) < 60:
        return cells
    out = []
    for index, cell in enumerate(cells):
        same = index > ORDER.index("agent") and set(agent.split(", ")) <= set(cell.split(", "))
        added = [one for one in cell.split(", ") if one not in agent.split(", ")]
        out.append(", ".join(["as agent", *added]) if same else cell)
    return out


def _cell(one: Resolved, section: str, words: Callable[[Section], str]) -> str:
    value = one.sections.get(section)
    if value == "top":
        return TOP
    return NOTHING if value is None else words(value) or NOTHING


def _capabilities(section: Section) -> str:
    ambient = section.get("ambient", ())
    return ", ".join(f"{name}{' (ambient too)' if name in ambient else ''}" for name in section.get("grant", ()))


def _scratch(section: Section) -> str:
    if section.get("rootfs") == "writable":
        return "the root's own /tmp, executable"
    entries = sorted(section.get("scratch", {}).items())
    return ", ".join(f"{path} {_bytes(one['size'])}{'' if one['exec'] else ' noexec'}" for path, one in entries)


def _volumes(section: Section) -> str:
    words = {"rw": "read-write", "ro": "read-only", "none": "refused"}[section.get("volumes", "none")]
    words += "" if section.get("exec") else ", noexec"
    words += ", nosuid, nodev" if section.get("volumes", "none") != "none" else ""
    return words + "".join(f"; {path} always read-write" for path in section.get("workspace", ()))


def _families(one: Resolved) -> list[str]:
    """The socket families that the policy's profile opens under its capabilities, asked of the profile itself."""
    section = seccomp_source.expand(one.sections["seccomp"], one.directory)
    mask = capabilities.from_policy(one.sections["capabilities"]).sets[0]
    rules = (seccomp.resolve(seccomp.from_policy(section), mask).raw or {})["syscalls"]
    allowing = [rule for rule in rules if "socket" in rule["names"] and rule["action"] == "SCMP_ACT_ALLOW"]
    numbers = {arg["value"] for rule in allowing for arg in rule.get("args", ()) if arg["index"] == 0}
    if any(not any(arg["index"] == 0 for arg in rule.get("args", ())) for rule in allowing):
        return ["all"]
    return [socket.AddressFamily(number).name[3:] for number in sorted(numbers)]


def _limits(section: Section) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(section.items()))


def _resources(section: Section) -> str:
    rest = [f"{name} {_bytes(section[name])}" for name in ("memory", "memory_swap") if name in section]
    return ", ".join([*rest, *(f"cpus {section[name]}" for name in ("cpus",) if name in section)]) or "as asked"


def _invocation(section: Section) -> str:
    return ", ".join(f"{k}={v}" for k, v in sorted(section.items()) if v and k not in ("why", "doc"))


def _bytes(number: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if number >> shift and not number & ((1 << shift) - 1):
            return f"{number >> shift} {unit}"
    return f"{number} B"


def _names(key: str) -> Callable[[Section], str]:
    return lambda section: ", ".join(section.get(key, ()))


def _network(section: Section) -> str:
    if section.get("mode") == "engine":
        return "the engine's"
    word = "any" in section.get("outbound", ())
    named = {**section, "outbound": [] if word else section.get("outbound", [])}
    told = network.words(network.from_policy(network_source.expand(named, set(named["outbound"]))))
    return told.replace("outbound nobody", "outbound any public address") if word else told


# title, section, words for a section that is neither bottom nor top; "" reads as none
ROWS: tuple[tuple[str, str, Callable[[Section], str]], ...] = (
    ("capabilities", "capabilities", _capabilities),
    ("gain by set-uid files", "capabilities", lambda s: "yes" if s.get("new_privileges") else "no"),
    ("root file system", "paths", lambda s: s.get("rootfs", "readonly")),
    ("scratch (tmpfs)", "paths", _scratch),
    ("masked paths", "paths", lambda s: str(len(s.get("masked", ())))),
    ("user", "user", lambda s: s["allow"]),
    ("processes", "resources", lambda s: str(s.get("pids", "unlimited"))),
    ("memory, cpus", "resources", _resources),
    ("rlimits, at most", "rlimits", _limits),
    ("least oom_score_adj", "scheduling", lambda s: str(s.get("oom_score_adj", 0))),
    ("volumes", "mounts", _volumes),
    ("sockets of the host", "mounts", _names("sockets")),
    ("namespaces of other containers", "namespaces", _names("shared")),
    ("namespaces of the host", "namespaces", _names("host")),
    ("devices besides the OCI defaults", "devices", lambda s: ", ".join(d["path"] for d in s.get("add", ()))),
    ("LSM labels", "lsm", lambda s: ", ".join(sorted({s.get(m, "confined") for m in ("apparmor", "selinux")}))),
    ("sysctl", "sysctl", _names("allow")),
    ("hooks besides the engines' own", "hooks", _names("allow")),
    ("annotations to the delegate", "annotations", lambda s: "yes" if s.get("unsafe") else ""),
    ("from the engine's call", "invocation", _invocation),
    ("seccomp profile", "seccomp", lambda s: str(s.get("profile", s.get("file", "")))),
    ("socket families", "seccomp", _names("families")),
    ("network", "network", _network),
)
