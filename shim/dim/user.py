"""The identity a process starts with: kept or refused, never guessed, since another uid breaks images.

A value is a set of identities: everyone, everyone but uid 0, one, or nobody. Order: ⊆. That uid 1000 is below uid 0
is not claimed: without DAC_OVERRIDE each of the two owns files that the other cannot write.
`additionalGids` and `umask` belong to the identity and are kept with it.
"""

from __future__ import annotations

from shim.errors import Refused
from shim.lattice import Decrease, Value, at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.kernel import Facts
    from shim.lattice import Section, Spec

NAME = "user"
KEYS = ("process.user",)


class User(Value):
    """`who`: 'any', 'non-root', 'nobody', or a (uid, gid) pair."""

    __slots__ = ("who",)

    def __init__(self, who: str | tuple[int, int]) -> None:
        self.who = who


TOP = User("any")
NON_ROOT = User("non-root")
BOTTOM = User("nobody")


def leq(a: User, b: User) -> bool:
    return meet(a, b) == a


def meet(a: User, b: User) -> User:
    if a == b or b == TOP:
        return a
    if a == TOP:
        return b
    one, other = (a, b) if isinstance(a.who, tuple) else (b, a)
    if isinstance(one.who, tuple) and other == NON_ROOT and one.who[0] != 0:
        return one
    return BOTTOM


def from_spec(spec: Spec, facts: Facts) -> User:
    user = at(spec, KEYS[0], {})
    return User((user.get("uid", 0), user.get("gid", 0)))


def from_policy(section: Section) -> User:
    if section is None:
        return BOTTOM
    return TOP if section == "top" or section.get("allow") == "any" else NON_ROOT


def apply_to_spec(spec: Spec, value: User, facts: Facts) -> Spec:
    """The spec as it is: `refusals` has stopped whatever this would have to change."""
    return spec


def explain(asked: User, ceiling: User, granted: User) -> list[Decrease]:
    if asked == granted:
        return []
    return [Decrease(KEYS[0], _shown(asked), _shown(granted), "this policy runs no root", '[user] allow = "any"')]


def refusals(asked: User, granted: User) -> list[Exception]:
    if asked == granted:
        return []
    todo = 'run as another user (docker run --user 1000), or set [user] allow = "any" in the policy'
    return [Refused(NAME, KEYS[0], _shown(asked), "non-root", todo)]


def _shown(value: User) -> str:
    return value.who if isinstance(value.who, str) else f"uid {value.who[0]} gid {value.who[1]}"
