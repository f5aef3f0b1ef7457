"""Capabilities: five bit sets and the right to gain more by execve. Order: each set ⊆, and noNewPrivileges is lower.

All five sets are met: lowering only the bounding set leaves delegates failing to start. An absent
`process.capabilities` is no capability at all in runc and crun, so it is the empty value; `exec` differs, and its
verb fills the container's own sets in before it asks here.
Source: capabilities(7). Profiles of seccomp may ask for capabilities, so the names are in `seccomp.vocabulary`.
"""

from __future__ import annotations

from shim.lattice import Decrease, Value, at, listed, with_key
from shim.seccomp.vocabulary import CAPABILITIES as CAPABILITIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from shim.kernel import Facts
    from shim.lattice import Section, Spec

NAME = "capabilities"
KEYS = ("process.capabilities", "process.noNewPrivileges")

BIT = {name: 1 << index for index, name in enumerate(CAPABILITIES)}
ALL = (1 << len(CAPABILITIES)) - 1
SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")


class Capabilities(Value):
    """`sets`: five bit masks in the order of SETS; `gain`: execve may raise them (noNewPrivileges is false)."""

    __slots__ = ("sets", "gain")

    def __init__(self, sets: tuple[int, ...], gain: bool) -> None:
        self.sets = sets
        self.gain = gain


TOP = Capabilities((ALL,) * 5, True)
BOTTOM = Capabilities((0,) * 5, False)


def leq(a: Capabilities, b: Capabilities) -> bool:
    return all(x & ~y == 0 for x, y in zip(a.sets, b.sets)) and a.gain <= b.gain


def meet(a: Capabilities, b: Capabilities) -> Capabilities:
    return Capabilities(tuple(x & y for x, y in zip(a.sets, b.sets)), a.gain and b.gain)


def from_spec(spec: Spec, facts: Facts) -> Capabilities:
    asked = at(spec, "process.capabilities", {})
    sets = tuple(_mask(asked.get(name) or ()) for name in SETS)
    return Capabilities(sets, not at(spec, "process.noNewPrivileges", False))


def from_policy(section: Section) -> Capabilities:
    if section == "top":
        return TOP
    if section is None:
        return BOTTOM
    grant = mask_of(section.get("grant", ()))
    ambient = mask_of(section.get("ambient", ())) & grant
    # Ambient must be inheritable to exist at all; nothing else needs the inheritable set (CVE-2022-24769).
    return Capabilities((grant, grant, grant, ambient, ambient), bool(section.get("new_privileges", False)))


def apply_to_spec(spec: Spec, value: Capabilities, facts: Facts) -> Spec:
    if from_spec(spec, facts) == value and _plain(at(spec, KEYS[0], {})):
        return spec
    written = {name: names_of(mask) for name, mask in zip(SETS, value.sets)}
    out = with_key(spec, "process.capabilities", written)
    return with_key(out, "process.noNewPrivileges", None if value.gain else True)


def explain(asked: Capabilities, ceiling: Capabilities, granted: Capabilities) -> list[Decrease]:
    lost = 0
    for before, after in zip(asked.sets, granted.sets):
        lost |= before & ~after
    out = []
    if lost:
        kept = granted.sets[SETS.index("permitted")]
        out.append(
            Decrease(
                KEYS[0],
                _shown(asked.sets[0] | asked.sets[2]),
                _shown(kept),
                f"not granted: {_shown(lost)}",
                f'[capabilities] add = [{{ names = [{_quoted(lost)}], why = "…", doc = "https://…" }}]',
            )
        )
    if asked.gain and not granted.gain:
        why = "execve of a set-uid file or one with file capabilities must not raise power"
        out.append(Decrease(KEYS[1], "false", "true", why, "[capabilities] new_privileges = true"))
    return out


def refusals(asked: Capabilities, granted: Capabilities) -> list[Exception]:
    return []


def names_of(mask: int) -> list[str]:
    """The names in `mask` as OCI writes them, lowest bit first."""
    return ["CAP_" + name for name in CAPABILITIES if mask & BIT[name]]


def mask_of(names: list[str] | tuple[str, ...]) -> int:
    """The bits of policy names (without CAP_)."""
    mask = 0
    for name in names:
        mask |= BIT[name]
    return mask


def _plain(asked: dict[str, Any]) -> bool:
    """Whether every name is one of ours to the letter. libcap, which crun uses, reads "21" and "CAP_KILL+x" as names
    too: what this table does not know must not be left for a delegate to understand.
    """
    return all(name[:4] == "CAP_" and name[4:] in BIT for names in asked.values() for name in names or ())


def _mask(names: Iterable[str]) -> int:
    mask = 0
    for name in names:
        upper = name.upper()
        mask |= BIT.get(upper[4:] if upper.startswith("CAP_") else upper, 0)
    return mask


def _shown(mask: int) -> str:
    return "all" if mask == ALL else listed(name[4:] for name in names_of(mask))


def _quoted(mask: int) -> str:
    return ", ".join(f'"{name[4:]}"' for name in names_of(mask))
