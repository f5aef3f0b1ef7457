"""Limits as the kernel holds them; the one place of the suite that knows cgroup v1 from v2."""

from __future__ import annotations

from pathlib import Path

UNLIMITED = 1 << 62  # v1 writes PAGE_COUNTER_MAX where v2 writes "max"
ROOT = Path("/sys/fs/cgroup")
V2 = (ROOT / "cgroup.controllers").exists()


def memory(pid: int) -> int | None:
    """Bytes of memory that the cgroup of `pid` may use; None is unlimited."""
    return _number(_file(pid, "memory", "memory.limit_in_bytes", "memory.max"))


def processes(pid: int) -> int | None:
    """Tasks that the cgroup of `pid` may hold; None is unlimited."""
    return _number(_file(pid, "pids", "pids.max", "pids.max"))


def cpus(pid: int) -> float | None:
    """CPUs that the cgroup of `pid` may use; None is unlimited."""
    if V2:
        quota, period = _file(pid, "cpu", "", "cpu.max").split()
    else:
        quota, period = (_file(pid, "cpu", f"cpu.cfs_{name}_us", "") for name in ("quota", "period"))
    return None if quota in ("max", "-1") else int(quota) / int(period)


def frozen(pid: int) -> bool:
    """Is the cgroup of `pid` frozen?"""
    if V2:
        return "frozen 1" in _file(pid, "", "", "cgroup.events")
    return _file(pid, "freezer", "freezer.state", "") == "FROZEN"


def _file(pid: int, controller: str, one: str, two: str) -> str:
    """The text of file `one` (v1) or `two` (v2) of the cgroup that `pid` is in."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        number, names, path = line.split(":", 2)
        if V2 and number == "0":
            return (ROOT / path[1:] / two).read_text().strip()
        if not V2 and controller in names.split(","):
            return (ROOT / names / path[1:] / one).read_text().strip()
    raise LookupError(f"pid {pid} is in no cgroup with the controller {controller}")


def _number(text: str) -> int | None:
    return None if text == "max" or int(text) >= UNLIMITED else int(text)
