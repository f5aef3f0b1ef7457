"""The measurement as text: a header that says on what, and a markdown table. Next door: `rows` measures."""

from __future__ import annotations

import argparse
import ctypes.util
import os
import platform
import subprocess
from pathlib import Path

from conformance.bench.imports import stale
from conformance.bench.network_rivals import found
from conformance.bench.turns import Bench, Row

BR_NETFILTER = Path("/proc/sys/net/bridge")
NAMES = {
    "shim": "agentshim (runc)",
    "runc": "runc, Docker's bundle",
    "runc-granted": "runc, our granted config",
    "shim-crun": "agentshim (crun)",
    "crun": "crun, Docker's bundle",
    "shim-bare": "agentshim (runc)",
    "runc-bare": "runc",
    "none": "no filter",
    "moby": "moby's profile",
    "ours": "`agent`",
    "meet": "moby ∧ agent",
    "alone": "the meet alone",
    "nothing": "nothing",
    "miss": "cache miss",
    "hit": "cache hit",
}


def header(bench: Bench, options: argparse.Namespace) -> str:
    """Machine and versions, one fact a line."""
    facts = {
        "kernel": platform.release(),
        "CPUs": f"{len(os.sched_getaffinity(0))}, load {os.getloadavg()[0]:.1f} at the start",
        "runc": _version(bench.delegate),
        "crun": _version(options.crun) if options.crun else "absent: its rows are left out",
        "libseccomp": _libseccomp(),
        "python": f"{_version(options.python)}, {_byte_code(options.library)}",
        "agentshim": bench.cast["shim"].program,
        "networks": _networks(),
        "rounds": f"{bench.rounds}, seed {bench.seed}, bundles and root file system on tmpfs",
    }
    return "\n".join(f"- {key}: {value}" for key, value in facts.items())


def table(rows: list[Row]) -> str:
    """The rows as markdown. A limit on a rate is a least one, all others are greatest ones."""
    lines = [
        "| work | ours | ms | against | ms | ours to theirs | 95 % | limit | held | n |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(row: Row) -> str:
    cells = [
        row.work,
        NAMES[row.ours],
        _sample(row.ours_ms, row.unit),
        NAMES[row.theirs] if row.group not in ("looks", "steps", "execs", "updates") else "runc, same container",
        _sample(row.theirs_ms, row.unit),
        _amount(row.found.point, row.unit),
        f"{_amount(row.found.low, row.unit)} … {_amount(row.found.high, row.unit)}",
        "" if row.limit is None else ("≥ " if row.unit == "rate" else "≤ ") + _amount(row.limit, row.unit),
        row.held,
        str(row.samples),
    ]
    return "| " + " | ".join(cells) + " |"


def _sample(value: float, unit: str) -> str:
    return f"{value:.0f} ns" if unit == "ns" else f"{value:.0f}" if unit == "count" else f"{value:.1f}"


def _amount(value: float, unit: str) -> str:
    return f"{value:+.1f} ms" if unit == "ms" else f"{value:.2f}" + (" rate" if unit == "rate" else "")


def _version(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    return (done.stdout or done.stderr or "unknown\n").splitlines()[0]


def _networks() -> str:
    """The rivals that say who they are; and br_netfilter, by which every bridge runs the rules for IP, too."""
    there = [_version(program) for name in ("netavark", "dockerd") if (program := found(name))]
    return ", ".join([*there, "br_netfilter " + ("at work" if BR_NETFILTER.is_dir() else "absent")])


def _byte_code(library: Path) -> str:
    missing = stale(library)
    return f"WITHOUT BYTE CODE FOR {missing} MODULES: run make first" if missing else "byte code present"


def _libseccomp() -> str:
    name = ctypes.util.find_library("seccomp")
    if name is None:
        return "absent"
    library = ctypes.CDLL(name)
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    return ".".join(str(part) for part in library.seccomp_version().contents)
