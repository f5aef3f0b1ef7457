"""Verdicts: does evidence keep within a ceiling, and are two pieces of evidence the same?

Belongs here: comparison only. Next door: `evidence` gathers, `columns` holds the ceilings.
"""

from __future__ import annotations

import re
from typing import Any

from conformance.columns import Ceiling
from conformance.evidence import Evidence

# room: key: asked X, ceiling Y: what to do
REFUSAL = re.compile(r"\b[a-z_]+: [^\n]+: asked [^\n]+, ceiling [^\n]+: [^\n]+")


def excess(found: Evidence, ceiling: Ceiling, host: dict[str, int]) -> list[str]:
    """Every way in which `found` is not what `ceiling` says, in words; `host` are the host's namespace inodes."""
    wrong = [f"{name} {caps:#x}" for name, caps in found.caps.items() if caps & ~ceiling.caps]
    wrong += [f"{name} not empty" for name in ("CapInh", "CapAmb") if found.caps[name]]
    wrong += [] if found.no_new_privs == ceiling.no_new_privs else [f"NoNewPrivs {found.no_new_privs}"]
    wrong += [] if found.seccomp == 2 else [f"Seccomp {found.seccomp}"]
    wrong += [f"host's {name} namespace" for name in sorted(found.shared_with(host) - {"user"})]
    return wrong + _of_files(found, ceiling) + _of_attempts(found, ceiling)


def _of_files(found: Evidence, ceiling: Ceiling) -> list[str]:
    """The root file system and /tmp; the request asked for a writable root."""
    wrong = []
    if ("ro" in found.mounts["/"].options) != ceiling.root_readonly:
        wrong.append(f"/ is {sorted(found.mounts['/'].options)}")
    if ceiling.root_readonly:
        tmp = found.mounts.get("/tmp")
        if tmp is None or tmp.kind != "tmpfs" or not {"nosuid", "nodev"} <= tmp.options:
            wrong.append(f"/tmp is {tmp}")
    return wrong


def _of_attempts(found: Evidence, ceiling: Ceiling) -> list[str]:
    """What was tried: everything listed must work, everything else must fail."""
    more = [f"{name} worked" for name in sorted(found.succeeded - ceiling.attempts)]
    less = [f"{name} did not work" for name in sorted(ceiling.attempts - found.succeeded)]
    return more + less


def normal(found: Evidence, host: dict[str, int]) -> dict[str, Any]:
    """Evidence without what differs between any two containers: ids in paths, pids, inodes."""
    return {
        "caps": found.caps,
        "no_new_privs": found.no_new_privs,
        "seccomp": found.status["Seccomp"],
        "signals": (found.status["SigBlk"], found.status["SigIgn"]),
        "ids": (found.status["Uid"], found.status["Gid"], found.status["Groups"]),
        "mounts": {point: (one.kind, sorted(one.options), _anonymous(one.root)) for point, one in found.mounts.items()},
        "host namespaces": sorted(found.shared_with(host)),
        "limits": found.limits,
        "attempts": found.attempts,
    }


def _anonymous(path: str) -> str:
    """A path without container ids: 64 hex digits, or the c<number> of our own containerd tests."""
    return re.sub(r"[0-9a-f]{64}|(?<=/)c\d+$", "ID", path)


def difference(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The keys in which two normal forms differ, with both values."""
    return [f"{key}: {one[key]!r} != {other[key]!r}" for key in one if one[key] != other[key]]
