"""Limits of the control group. Order: smaller limits are lower; absent, zero and negative numbers are unlimited.

Weights and shares are carried: they divide what is there and bound nothing. Keys that reach beyond the container
(network class ids, cache allocation, a cgroup path out of its place, cgroup v2 files that override a limit) are
claims: allowed together or not at all. v1 and v2 meet here only: `unified` names v2 files, everything else is v1's
vocabulary, which delegates translate. Source: runtime-spec config-linux.md "Control groups", cgroup-v2.rst.
"""

from __future__ import annotations

from shim.errors import Invalid, Refused
from shim.lattice import REASON, Decrease, Value, at, least, least_leq, with_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.kernel import Facts
    from shim.lattice import Section, Spec

NAME = "resources"
_R = "linux.resources."
KEYS = (
    _R + "pids",
    _R + "memory",
    _R + "cpu",
    _R + "blockIO",
    _R + "hugepageLimits",
    _R + "network",
    _R + "rdma",
    _R + "unified",
    "linux.cgroupsPath",
    "linux.intelRdt",
)
# Each limit: its name, its OCI key, and the cgroup v2 file that would override it.
LIMITS = (
    ("pids", "pids.limit", "pids.max"),
    ("memory", "memory.limit", "memory.max"),
    ("memory_swap", "memory.swap", "memory.swap.max"),
    ("cpus", "cpu.quota", "cpu.max"),
)
# v2 files that can only bound the container, or divide: carried.
HARMLESS_FILES = (
    "memory.high",
    "cpu.weight",
    "cpu.weight.nice",
    "io.weight",
    "io.bfq.weight",
    "io.max",
    "cpuset.cpus",
    "cpuset.mems",
    "cpu.idle",
)
CLAIMS = (
    "memory.disableOOMKiller",
    "cpu.realtimeRuntime",
    "cpu.realtimePeriod",
    "network.classID",
    "network.priorities",
)
LEAST_CPUS = 10000  # millionths: a quota of 1 ms in a period of 100 ms
PERIOD = 100000  # µs: the kernel's default for cpu.cfs_period_us


class Resources(Value):
    """`limits`: in the order of LIMITS, None for unlimited; bytes, tasks, and millionths of a processor.
    `claims`: names that are asked, None for any.
    """

    __slots__ = ("limits", "claims")

    def __init__(self, limits: tuple[int | None, ...], claims: frozenset[str] | None) -> None:
        self.limits = limits
        self.claims = claims


TOP = Resources((None,) * len(LIMITS), None)
BOTTOM = Resources((0,) * len(LIMITS), frozenset())


def leq(a: Resources, b: Resources) -> bool:
    limits = all(least_leq(x, y) for x, y in zip(a.limits, b.limits))
    return limits and (b.claims is None or (a.claims is not None and a.claims <= b.claims))


def meet(a: Resources, b: Resources) -> Resources:
    limits = tuple(least(x, y) for x, y in zip(a.limits, b.limits))
    claims = b.claims if a.claims is None else a.claims if b.claims is None else a.claims & b.claims
    return Resources(limits, claims)


def from_spec(spec: Spec, facts: Facts) -> Resources:
    resources = at(spec, "linux.resources", {})
    unified = resources.get("unified") or {}
    limits = []
    for _, key, v2_file in LIMITS:
        limit = _cpus(resources) if v2_file == "cpu.max" else _limited(at(resources, key))
        if v2_file in unified:
            # Written after the v1 names, so it replaces them; which of the two a delegate keeps is its own affair.
            limit = _greater(limit, _v2(v2_file, unified[v2_file]), at(resources, key) is not None)
        limits.append(limit)
    return Resources(tuple(limits), frozenset(_claims(spec, facts, resources, unified)))


def from_policy(section: Section) -> Resources:
    if section == "top":
        return TOP
    if section is None:
        return BOTTOM
    cpus = section.get("cpus")
    micro = None if cpus is None else int(cpus * 1000000)
    return Resources((section.get("pids"), section.get("memory"), section.get("memory_swap"), micro), frozenset())


def apply_to_spec(spec: Spec, value: Resources, facts: Facts) -> Spec:
    asked = from_spec(spec, facts)
    out = spec
    for (_, key, v2_file), before, after in zip(LIMITS, asked.limits, value.limits):
        if before != after and after is not None:
            out = _limit(out, key, v2_file, after)
    for claim in (
        sorted((asked.claims or frozenset()) - (value.claims or frozenset())) if value.claims is not None else ()
    ):
        out = _without(out, claim)
    return out


def explain(asked: Resources, ceiling: Resources, granted: Resources) -> list[Decrease]:
    out = []
    for (name, key, _), before, after in zip(LIMITS, asked.limits, granted.limits):
        if before != after:
            shown = "unlimited" if before is None else str(before)
            limit = before if name != "cpus" or before is None else f"{before / 1e6:g}"  # a policy counts processors
            allow = f"[resources] without {name}" if before is None else f"[resources] {name} = {limit}"
            out.append(Decrease(_R + key, shown, str(after), "the policy's limit is lower", allow))
    for claim in sorted((asked.claims or frozenset()) - (granted.claims or frozenset())):
        out.append(Decrease(claim, "set", "removed", "it reaches beyond the container", 'resources = "top"' + REASON))
    return out


def refusals(asked: Resources, granted: Resources) -> list[Exception]:
    """A control group elsewhere cannot be replaced by one that we chose, since the engine looks for it by name; a limit
    of nothing cannot be written.
    """
    lost = (asked.claims or frozenset()) - (granted.claims or frozenset())
    out: list[Exception] = []
    if "linux.cgroupsPath" in lost:
        todo = "let the engine choose the container's own group (--cgroup-parent names one above it)"
        out.append(Refused(NAME, "linux.cgroupsPath", "a group in use, the root or a path with ..", "a new one", todo))
    for (name, key, _), before, after in zip(LIMITS, asked.limits, granted.limits):
        # Zero is how a spec says unlimited, and the kernel takes no quota below a millisecond.
        if before != after and after is not None and after < (LEAST_CPUS if name == "cpus" else 1):
            todo = f"set {name} under [resources] in the policy"
            out.append(Refused(NAME, _R + key, "unlimited" if before is None else before, after, todo))
    return out


def met_update(asked: dict[str, Any], ceiling: Resources, facts: Facts) -> dict[str, Any]:
    """An update's resources, lowered: only keys that are present are met, since a key that is absent changes nothing
    and writing the ceiling over a lower limit would raise it.
    """
    spec: Spec = {"linux": {"resources": asked}}
    value = from_spec(spec, facts)
    unified = asked.get("unified") or {}
    limits = tuple(
        top if _present(asked, key, v2_file, unified) else before
        for (_, key, v2_file), before, top in zip(
            LIMITS, value.limits, tuple(least(x, y) for x, y in zip(value.limits, ceiling.limits))
        )
    )
    claims = meet(value, ceiling).claims
    lowered = at(apply_to_spec(spec, Resources(limits, claims), facts), "linux.resources", {})
    return lowered if isinstance(lowered, dict) else {}


def _present(asked: dict[str, Any], key: str, v2_file: str, unified: dict[str, str]) -> bool:
    # Zero is "unchanged" in an update (runc update(8)); a period alone stretches the quota that is there.
    return v2_file in unified or bool(at(asked, key)) or (key == "cpu.quota" and bool(at(asked, "cpu.period")))


def _limited(number: int | None) -> int | None:
    return number if number is not None and number > 0 else None


def _cpus(resources: dict[str, Any]) -> int | None:
    """Millionths of a processor, rounded up: what is written back may only be less."""
    quota = _limited(at(resources, "cpu.quota"))
    if quota is None:
        return None
    period: int = at(resources, "cpu.period", 0) or PERIOD
    burst: int = at(resources, "cpu.burst", 0)
    return -(-(quota + burst) * 1000000 // period)


def _v2(name: str, text: str) -> int | None:
    words = text.split()
    try:
        if not words or words[0] == "max":
            return None
        if name == "cpu.max":
            return -(-int(words[0]) * 1000000 // (int(words[1]) if len(words) > 1 else PERIOD))
        return int(words[0])
    except (ValueError, ZeroDivisionError):
        raise Invalid(NAME, f"{_R}unified.{name}", text, "a number or max", "write it as cgroup v2 does") from None


def _greater(v1: int | None, v2: int | None, v1_present: bool) -> int | None:
    if not v1_present:
        return v2
    return None if v1 is None or v2 is None else max(v1, v2)


def _limit(spec: Spec, key: str, v2_file: str, limit: int) -> Spec:
    """`spec` with the limit at `key`; a v2 file that would override it goes."""
    unified = {k: v for k, v in at(spec, _R + "unified", {}).items() if k != v2_file}
    if at(spec, _R + "unified") is not None:
        spec = with_key(spec, _R + "unified", unified or None)
    if key != "cpu.quota":
        return with_key(spec, _R + key, limit)
    spec = with_key(with_key(spec, _R + "cpu.burst", None), _R + "cpu.period", PERIOD)
    return with_key(spec, _R + key, limit * PERIOD // 1000000)


def _claims(spec: Spec, facts: Facts, resources: dict[str, Any], unified: dict[str, str]) -> list[str]:
    out = [claim for claim in CLAIMS if at(resources, claim)]
    limit_files = [v2_file for _, _, v2_file in LIMITS]
    out += ["unified." + name for name in unified if name not in limit_files and name not in HARMLESS_FILES]
    if at(spec, "linux.intelRdt"):
        out.append("linux.intelRdt")
    if facts.group_in_use or not is_inside(at(spec, "linux.cgroupsPath", "")):
        out.append("linux.cgroupsPath")
    return out


def _without(spec: Spec, claim: str) -> Spec:
    if claim.startswith("unified."):
        kept = {k: v for k, v in at(spec, _R + "unified", {}).items() if k != claim[8:]}
        return with_key(spec, _R + "unified", kept or None)
    return with_key(spec, claim if claim.startswith("linux.") else _R + claim, None)


def is_inside(path: str) -> bool:
    """Whether a cgroup path is empty or names a group below the root without going up."""
    if not path:
        return True
    parts = path.split("/")
    return ".." not in parts and any(part not in ("", ".") for part in parts)
