"""Kernel parameters of the container's own namespaces: an allow-list of names. Order: ⊆ of (name, value) pairs.

The delegate refuses parameters whose namespace is the host's; this allow-list also holds where it is shared.
Source: runtime-spec config-linux.md "sysctl", namespaces(7).
"""

from __future__ import annotations

from shim.lattice import REASON, Decrease, Value, at, with_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.kernel import Facts
    from shim.lattice import Section, Spec

NAME = "sysctl"
NAMEABLE = ("net.", "fs.mqueue.", "kernel.shm", "kernel.msg", "kernel.sem")  # schema/policy.json knows no others
KEYS = ("linux.sysctl",)


class Sysctl(Value):
    """`pairs`: asked (name, value) pairs, or None where any is meant; `names`: allowed names, trailing * a prefix,
    None for all. A value from a spec has names None; one from a policy has pairs None.
    """

    __slots__ = ("pairs", "names")

    def __init__(self, pairs: frozenset[tuple[str, str]] | None, names: frozenset[str] | None) -> None:
        # A concrete set of pairs already says everything: names would be a second spelling of the same value.
        self.pairs = pairs if pairs is None or names is None else frozenset(p for p in pairs if _matches(p[0], names))
        self.names = names if pairs is None else None


TOP = Sysctl(None, None)
BOTTOM = Sysctl(frozenset(), None)


def leq(a: Sysctl, b: Sysctl) -> bool:
    return meet(a, b) == a


def meet(a: Sysctl, b: Sysctl) -> Sysctl:
    if a.pairs is not None and b.pairs is not None:
        return Sysctl(a.pairs & b.pairs, None)
    if a.pairs is None and b.pairs is None:
        return _names_meet(a, b)
    pairs, names = (a.pairs, b.names) if a.pairs is not None else (b.pairs, a.names)
    return Sysctl(pairs, names)


def from_spec(spec: Spec, facts: Facts) -> Sysctl:
    return Sysctl(frozenset((slash_free(name), value) for name, value in at(spec, KEYS[0], {}).items()), None)


def from_policy(section: Section) -> Sysctl:
    if section == "top":
        return TOP
    allow = frozenset(section.get("allow", ())) if section else frozenset()
    return Sysctl(None, allow) if allow else BOTTOM


def apply_to_spec(spec: Spec, value: Sysctl, facts: Facts) -> Spec:
    if value.pairs is None or from_spec(spec, facts) == value:
        return spec
    kept = {name: v for name, v in at(spec, KEYS[0], {}).items() if (slash_free(name), v) in value.pairs}
    return with_key(spec, KEYS[0], kept or None)


def explain(asked: Sysctl, ceiling: Sysctl, granted: Sysctl) -> list[Decrease]:
    lost = (asked.pairs or frozenset()) - (granted.pairs or frozenset())
    return [
        Decrease(f"{KEYS[0]}.{name}", value, "not set", "not on the policy's list", _allow(name))
        for name, value in sorted(lost)
    ]


def refusals(asked: Sysctl, granted: Sysctl) -> list[Exception]:
    return []


def slash_free(name: str) -> str:
    """One spelling of a parameter: delegates turn dots into slashes, so net/ipv4/x and net.ipv4.x are the same."""
    return name.replace("/", ".")


def _allow(name: str) -> str:
    plain = all(c.isascii() and (c.islower() or c.isdigit() or c in "_.") for c in name)
    return f'[sysctl] allow = ["{name}"]' if plain and name.startswith(NAMEABLE) else 'sysctl = "top"' + REASON


def _matches(name: str, allowed: frozenset[str]) -> bool:
    return name in allowed or any(one[-1:] == "*" and name.startswith(one[:-1]) for one in allowed)


def _names_meet(a: Sysctl, b: Sysctl) -> Sysctl:
    """Two allow-lists: what each admits of the other's entries (a prefix lies within a shorter prefix)."""
    if a.names is None or b.names is None:
        return b if a.names is None else a
    both = {n for n in a.names if _matches(n, b.names)} | {n for n in b.names if _matches(n, a.names)}
    return Sysctl(None, frozenset(both)) if both else BOTTOM
