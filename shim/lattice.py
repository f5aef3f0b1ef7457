"""The protocol of a dimension, and the few building blocks that dimensions share.

A dimension is a partial order of authority: a <= b iff whatever a container under a can do, one under b can.
Every module in `dim` has the same door:

    NAME                          the dimension's name, as `explain` and refusals show it
    KEYS                          the OCI keys it owns, as dotted paths ("process.capabilities")
    TOP, BOTTOM                   the greatest and the least value
    leq(a, b) -> bool             the order; pinned to meet(a, b) == a
    meet(a, b)                    a lower bound of both, the greatest where the module does not say otherwise
    from_spec(spec, facts)        what an OCI spec asks; Invalid on malformed input; `spec` is not changed
    from_policy(section)          what a policy's section allows ("top", or a mapping); BOTTOM for None
    apply_to_spec(spec, value, facts)  a new spec whose owned keys say `value`; shares what it does not change
    refusals(asked, granted)      the losses that may not happen silently, as Refused; most dimensions have none
    explain(asked, ceiling, granted)   one Decrease for each loss, none where nothing was lost

Belongs here: what no single dimension owns. Next door: `product` runs all dimensions pointwise.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Spec = dict[str, Any]
    Section = Any


class Value:
    """An immutable record compared by its slots. Subclasses name their fields in __slots__ and set them once."""

    __slots__: tuple[str, ...] = ()

    def key(self) -> tuple[object, ...]:
        """The fields in order: equality, hash and repr follow from them."""
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash((type(self), self.key()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"


class Decrease(Value):
    """One strict loss: the OCI key, what was asked, what is granted, why, and the policy line that would allow it."""

    __slots__ = ("key_path", "asked", "granted", "why", "allow")

    def __init__(self, key_path: str, asked: str, granted: str, why: str, allow: str) -> None:
        self.key_path = key_path
        self.asked = asked
        self.granted = granted
        self.why = why
        self.allow = allow


# What a policy line says besides, where it allows what is dangerous: for its writer to fill in.
REASON = ', why = "…", doc = "https://…"'


class Everything:
    """The set of all things, where a set is open-ended: TOP of an allow-list, BOTTOM of a deny-list.

    Usable where a frozenset is: `in`, `<=`, `&`, `|` are defined against frozensets and itself.
    """

    __slots__ = ()

    def __contains__(self, item: object) -> bool:
        return True

    def __repr__(self) -> str:
        return "EVERYTHING"

    def __reduce__(self) -> str:
        return "EVERYTHING"


EVERYTHING = Everything()

if TYPE_CHECKING:
    Names = frozenset[str] | Everything


def names_leq(a: Names, b: Names) -> bool:
    """a ⊆ b, where either may be EVERYTHING."""
    if isinstance(b, Everything):
        return True
    return not isinstance(a, Everything) and a <= b


def names_meet(a: Names, b: Names) -> Names:
    """a ∩ b, where either may be EVERYTHING."""
    if isinstance(a, Everything):
        return b
    return a if isinstance(b, Everything) else a & b


def names_join(a: Names, b: Names) -> Names:
    """a ∪ b: the meet of two deny-lists."""
    if isinstance(a, Everything) or isinstance(b, Everything):
        return EVERYTHING
    return a | b


def least(a: int | None, b: int | None) -> int | None:
    """The smaller of two limits; None is unlimited, the greatest."""
    if a is None:
        return b
    return a if b is None or a <= b else b


def least_leq(a: int | None, b: int | None) -> bool:
    """a <= b as limits; None is unlimited."""
    return b is None or (a is not None and a <= b)


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers in ranges (first, last) that are sorted and neither overlap nor touch."""
    out: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(last, out[-1][1]))
        else:
            out.append((first, last))
    return out


def with_key(spec: Spec, path: str, value: Any) -> Spec:
    """A copy of `spec` whose key at dotted `path` is `value`; None removes it. Copies only along the path.

    A missing parent is made, unless there is nothing to remove.
    """
    head, _, rest = path.partition(".")
    out = dict(spec)
    if rest:
        inner = out.get(head)
        if inner is None and value is None:
            return spec
        out[head] = with_key(inner or {}, rest, value)
    elif value is None:
        out.pop(head, None)
    else:
        out[head] = value
    return out


def at(spec: Spec, path: str, default: Any = None) -> Any:
    """The value at dotted `path`; `default` where it or a parent is absent or null."""
    here: Any = spec
    for name in path.split("."):
        if not isinstance(here, dict):
            return default
        here = here.get(name)
        if here is None:
            return default
    return here


def listed(names: Iterable[object]) -> str:
    """Names as a reader wants them: sorted, comma-separated, 'none' when empty."""
    return ", ".join(sorted(str(name) for name in names)) or "none"
