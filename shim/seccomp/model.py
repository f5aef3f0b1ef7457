"""What a profile means: for each system call, which argument vectors get which action. The order and the meet of it.

A Model maps a call to an Entry: for each severity a set of cubes, the vectors whose action is at least that. Sets
shrink as severity grows, so the order is ⊆ and the meet is ∩, pointwise; `leq(a, b)` and `meet(a, b) == a` agree.

The errno of a denial is no authority: it is carried along, not compared.

Next door: `reading` makes a Model of OCI JSON, `emit` writes one as OCI JSON, `cubes` is the arithmetic.
"""

from __future__ import annotations

from shim.seccomp import cubes, words
from shim.seccomp.vocabulary import ALLOW, ENOSYS, EPERM, ERRNO, KILL_THREAD, LOG, TRAP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.seccomp.cubes import Cubes

    # (at least KILL_THREAD, TRAP, ERRNO), at least LOG, LOG or ALLOW for that, errno of a denial
    Entry = tuple[tuple[Cubes, Cubes, Cubes], Cubes, int, int]

SOFT = (cubes.EVERY, cubes.EVERY, cubes.EVERY)
HARD = (KILL_THREAD, TRAP, ERRNO)
# Why a call that both sides allow for some arguments is denied for all.
TOO_MANY = "its rules make more conditions on arguments than can be compared"


class Model:
    """archs: ABIs that may call at all; calls: name -> Entry; rest: the Entry of all other names;
    spec_allow: speculation mitigations are left off; log: denials are logged; listed: that was said, and is not the
    delegate's own default (runc before 1.2 refuses a list that is not empty); cut: names that were denied because
    their cubes are too many.
    """

    __slots__ = ("archs", "calls", "cut", "listed", "log", "rest", "spec_allow")

    def __init__(
        self,
        archs: frozenset[str],
        calls: dict[str, Entry],
        rest: Entry,
        spec_allow: bool,
        log: bool,
        listed: bool,
        cut: frozenset[str],
    ) -> None:
        self.cut = cut
        self.archs = archs
        self.calls = calls
        self.rest = rest
        self.spec_allow = spec_allow
        self.log = log
        self.listed = listed


def uniform(action: int, errno: int) -> Entry:
    """The Entry of a call that gets one action for all arguments."""
    if action >= LOG:
        return SOFT, cubes.EVERY, action, errno
    hard = tuple(cubes.EVERY if action >= level else cubes.NONE for level in HARD)
    return (SOFT if action == ERRNO else hard), cubes.NONE, ALLOW, errno  # type: ignore[return-value]


def leq(a: Model, b: Model) -> bool:
    """Whether whatever passes `a` passes `b`, and no gentler denial is in `a`."""
    cubes.budget()
    if not a.archs <= b.archs or a.spec_allow > b.spec_allow or b.log > a.log or not _leq(a.rest, b.rest):
        return False
    try:
        return all(_leq(a.calls.get(name, a.rest), b.calls.get(name, b.rest)) for name in {**a.calls, **b.calls})
    except cubes.TooMany:
        return False


def meet(a: Model, b: Model) -> Model:
    """The greatest Model below both; where the cubes outgrow their budget, a call is denied instead."""
    cubes.budget()
    rest = _meet(a.rest, b.rest, gentle_errno)
    sides = (a, b), (b, a)
    cut = {
        name for one, other in sides for name in one.cut if name in other.cut or other.calls.get(name, other.rest)[1]
    }
    calls = {}
    for name in sorted({**a.calls, **b.calls}):
        pair = a.calls.get(name, a.rest), b.calls.get(name, b.rest)
        try:
            calls[name] = _meet(*pair, strict_errno)
        except cubes.TooMany:
            cut.add(name)
            calls[name] = uniform(min(map(lowest, pair)), _errno_of(*pair, strict_errno))
    flags = a.spec_allow and b.spec_allow, a.log or b.log, a.listed or b.listed
    return Model(a.archs & b.archs, calls, rest, *flags, frozenset(cut))


def strict_errno(a: int, b: int) -> int:
    """The errno of a call that both deny: ENOSYS wins, since libc falls back on it alone."""
    return ENOSYS if ENOSYS in (a, b) else gentle_errno(a, b)


def gentle_errno(a: int, b: int) -> int:
    """The errno of the default action, which a conditional allow's remainder gets too: EPERM wins, 0 (success)
    loses.
    """
    return min(a, b, key=lambda errno: (errno != EPERM, errno == 0, errno))


def _leq(a: Entry, b: Entry) -> bool:
    if a is b:
        return True
    if a[1] and a[2] > b[2]:
        return False
    return cubes.leq(a[1], b[1]) and all(cubes.leq(x, y) for x, y in zip(a[0], b[0], strict=True))


def _meet(a: Entry, b: Entry, errno_of: Any) -> Entry:
    grant = _granted(a[1], b[1])
    hard = SOFT if a[0] is b[0] is SOFT else tuple(cubes.meet(x, y) for x, y in zip(a[0], b[0], strict=True))
    return hard, grant, min(a[2], b[2]) if grant else ALLOW, _errno_of(a, b, errno_of)  # type: ignore[return-value]


def _granted(a: Cubes, b: Cubes) -> Cubes:
    """a ∩ b; of ints without high bits only where the whole is too many cubes (deny-list ∧ containers-common)."""
    try:
        return cubes.meet(a, b)
    except cubes.TooMany:
        return cubes.meet(words.tight(a), words.tight(b))


def _errno_of(a: Entry, b: Entry, errno_of: Any) -> int:
    """Who denies wholly decides about the errno; where both or neither do, `errno_of` does."""
    if not a[1] and b[1]:
        return a[3]
    if a[1] and not b[1]:
        return b[3]
    return int(errno_of(a[3], b[3]))


def lowest(entry: Entry) -> int:
    """The most restrictive action that some vector of `entry` gets, at most ERRNO."""
    return next((level - 1 for level, upper in zip(HARD, entry[0], strict=True) if upper != cubes.EVERY), ERRNO)
