"""Namespaces: for each kind, a new one < one shared with another container < any shared one < the host's.

Two different shared namespaces are incomparable: their meet is a new one. A path may still be the host's own
namespace (dockerd 20.10 names it `netns/default`), so `facts.namespaces` compares inodes with the host's.
Id maps belong to a new user namespace and are kept with it. Source: namespaces(7), runtime-spec config-linux.md.
"""

from __future__ import annotations

from shim.errors import Invalid, Refused
from shim.lattice import REASON, Decrease, Value, at, with_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.kernel import Facts
    from shim.lattice import Section, Spec

NAME = "namespaces"
KEYS = ("linux.namespaces", "linux.uidMappings", "linux.gidMappings", "linux.timeOffsets")
KINDS = ("mount", "pid", "network", "ipc", "uts", "cgroup", "user", "time")
NEW, SHARED, HOST = "new", "shared", "host"


class Namespaces(Value):
    """`kinds`: for each of KINDS 'new', 'at:<device>:<inode>' of one shared namespace, 'shared' for any, or 'host'."""

    __slots__ = ("kinds",)

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.kinds = kinds


TOP = Namespaces((HOST,) * len(KINDS))
BOTTOM = Namespaces((NEW,) * len(KINDS))


def leq(a: Namespaces, b: Namespaces) -> bool:
    return all(_leq(x, y) for x, y in zip(a.kinds, b.kinds))


def meet(a: Namespaces, b: Namespaces) -> Namespaces:
    return Namespaces(tuple(x if _leq(x, y) else y if _leq(y, x) else NEW for x, y in zip(a.kinds, b.kinds)))


def from_spec(spec: Spec, facts: Facts) -> Namespaces:
    asked: dict[str, str] = {}
    for entry in at(spec, KEYS[0], ()):
        kind, path = entry.get("type"), entry.get("path") or ""
        if kind not in KINDS:
            raise Invalid(NAME, KEYS[0], kind, f"one of {', '.join(KINDS)}", "name a namespace that Linux has")
        if kind in asked:
            raise Invalid(NAME, KEYS[0], f"{kind} twice", "each kind once", "remove one of the two")
        asked[kind] = facts.namespaces.get((kind, path), "at:" + path) if path else NEW
    return Namespaces(tuple(asked.get(kind, HOST) for kind in KINDS))


def from_policy(section: Section) -> Namespaces:
    if section == "top":
        return TOP
    if section is None:
        return BOTTOM
    host, shared = section.get("host", ()), section.get("shared", ())
    return Namespaces(tuple(HOST if kind in host else SHARED if kind in shared else NEW for kind in KINDS))


def apply_to_spec(spec: Spec, value: Namespaces, facts: Facts) -> Spec:
    asked = from_spec(spec, facts)
    made = [kind for kind, before, after in zip(KINDS, asked.kinds, value.kinds) if before != after]
    if not made:
        return spec
    kept = [entry for entry in at(spec, KEYS[0], ()) if entry["type"] not in made]
    return with_key(spec, KEYS[0], kept + [{"type": kind} for kind in made])


def explain(asked: Namespaces, ceiling: Namespaces, granted: Namespaces) -> list[Decrease]:
    out = []
    for kind, before, after in zip(KINDS, asked.kinds, granted.kinds):
        if before != after:
            host = before == HOST
            why = "the host's own namespace is never lent" if host else "sharing another container's is not allowed"
            allow = f'[namespaces] {"host" if host else "shared"} = ["{kind}"]' + (REASON if host else "")
            out.append(Decrease(f"{KEYS[0]}.{kind}", before, after, why, allow))
    return out


def refusals(asked: Namespaces, granted: Namespaces) -> list[Exception]:
    """A user namespace cannot be made on the container's behalf: its id maps decide who owns the image's files."""
    user = KINDS.index("user")
    if asked.kinds[user] == granted.kinds[user]:
        return []
    todo = "run the engine with user namespaces (dockerd --userns-remap)"
    return [Refused(NAME, "linux.namespaces.user", asked.kinds[user], granted.kinds[user], todo)]


def _leq(a: str, b: str) -> bool:
    if a in (b, NEW) or b == HOST:
        return True
    return b == SHARED and a.startswith("at:")
