"""Resource limits of processes: a soft and a hard number for each type. Order: both numbers ≤.

A type that a spec does not name is inherited through the delegate, so what we were started with is what is asked.
Source: getrlimit(2), runtime-spec config.md "rlimits".
"""

from __future__ import annotations

from shim.errors import Invalid
from shim.lattice import Decrease, Value, at, least, least_leq

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.kernel import Facts
    from shim.lattice import Section, Spec

NAME = "rlimits"
KEYS = ("process.rlimits",)

# RLIMIT_x -> number, in the order of asm-generic/resource.h.
TYPES = (
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
)
INFINITY = 2**64 - 1


class Rlimits(Value):
    """`limits`: one (soft, hard) for each of TYPES; None is unlimited."""

    __slots__ = ("limits",)

    def __init__(self, limits: tuple[tuple[int | None, int | None], ...]) -> None:
        self.limits = limits


TOP = Rlimits(((None, None),) * len(TYPES))
BOTTOM = Rlimits(((0, 0),) * len(TYPES))


def leq(a: Rlimits, b: Rlimits) -> bool:
    return all(least_leq(x[0], y[0]) and least_leq(x[1], y[1]) for x, y in zip(a.limits, b.limits))


def meet(a: Rlimits, b: Rlimits) -> Rlimits:
    return Rlimits(tuple((least(x[0], y[0]), least(x[1], y[1])) for x, y in zip(a.limits, b.limits)))


def from_spec(spec: Spec, facts: Facts) -> Rlimits:
    limits = list(facts.rlimits)
    named = set()
    for entry in at(spec, KEYS[0], ()):
        kind, soft, hard = entry.get("type"), _number(entry, "soft"), _number(entry, "hard")
        if kind not in TYPES:
            raise Invalid(NAME, KEYS[0], kind, "a type of getrlimit(2)", "name a limit that Linux has")
        if kind in named:
            raise Invalid(NAME, KEYS[0], f"{kind} twice", "each type once", "remove one of the two")
        if (soft is None and hard is not None) or (soft or 0) > (hard if hard is not None else INFINITY):
            raise Invalid(NAME, KEYS[0], f"{kind} soft {soft}", f"at most hard {hard}", "lower the soft limit")
        named.add(kind)
        limits[TYPES.index(kind)] = (soft, hard)
    return Rlimits(tuple(limits))


def from_policy(section: Section) -> Rlimits:
    if section == "top":
        return TOP
    if section is None:
        return BOTTOM
    return Rlimits(tuple((section.get(kind[7:].lower()),) * 2 for kind in TYPES))


def apply_to_spec(spec: Spec, value: Rlimits, facts: Facts) -> Spec:
    if from_spec(spec, facts) == value:
        return spec
    asked = {entry["type"] for entry in at(spec, KEYS[0], ())}
    written = [
        {"type": kind, "hard": INFINITY if hard is None else hard, "soft": INFINITY if soft is None else soft}
        for kind, (soft, hard), inherited in zip(TYPES, value.limits, facts.rlimits)
        if kind in asked or (soft, hard) != inherited
    ]
    return {**spec, "process": {**spec["process"], "rlimits": written}}


def explain(asked: Rlimits, ceiling: Rlimits, granted: Rlimits) -> list[Decrease]:
    return [
        Decrease(
            f"{KEYS[0]}.{kind}",
            _pair(before),
            _pair(after),
            "the policy's limit is lower",
            f"[rlimits] {kind[7:].lower()} = {before[1]}"
            if before[1] is not None
            else f"[rlimits] no {kind[7:].lower()}",
        )
        for kind, before, after in zip(TYPES, asked.limits, granted.limits)
        if before != after
    ]


def refusals(asked: Rlimits, granted: Rlimits) -> list[Exception]:
    return []


def _number(entry: dict[str, int], which: str) -> int | None:
    number = entry.get(which, 0)
    return None if number == INFINITY else number


def _pair(limit: tuple[int | None, int | None]) -> str:
    return "/".join("unlimited" if number is None else str(number) for number in limit)
