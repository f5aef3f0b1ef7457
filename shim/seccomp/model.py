"""What a profile means: for each system call, which argument vectors get which action. The order and the meet of it.

A Model maps a call to an Entry: for each severity a set of cubes, the vectors whose action is at least that. Sets shrink
as severity grows, so the order is ⊆ and the meet is ∩, pointwise; `leq(a, b)` and `meet(a, b) == a` agree.

The reading is the strictest that a delegate may give to the JSON, so that a meet of readings is below both filters:
 * of several rules that match, the most restrictive action (libseccomp lets an unconditional rule beat conditional ones
   and overlapping ranges allow their overlap);
 * two conditions on one argument: all must hold to allow, any one denies (delegates turn the rule into an OR);
 * int arguments: a denial looks at the low 32 bits only, an allow requires the high half to be zero or ignored;
 * a rule gentler than the default counts only where it overlaps no rule of another action (a fault of libseccomp 2.5.4);
 * numbers without a name in `names` are denied; NOTIFY and TRACE are denied with ENOSYS, the kernel's own answer where
   nobody listens.
Next door: `cubes` is the arithmetic, `emit` writes a Model as OCI JSON.
"""

from __future__ import annotations

from shim.seccomp import cubes
from shim.seccomp.vocabulary import (
    ACTIONS,
    ALLOW,
    ENOSYS,
    EPERM,
    ERRNO,
    FLAG_LOG,
    FLAG_SPEC_ALLOW,
    KILL_THREAD,
    LOG,
    LOW,
    NARROW,
    NATIVE,
    TRAP,
    WIDE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.seccomp.cubes import Cubes

    # (at least KILL_THREAD, TRAP, ERRNO), at least LOG, LOG or ALLOW for that, errno of a denial
    Entry = tuple[tuple[Cubes, Cubes, Cubes], Cubes, int, int]
    # action, errno, cubes read to allow, cubes read to deny, the action as it was written
    Rule = tuple[int, int, Cubes, Cubes, str]

SOFT = (cubes.EVERY, cubes.EVERY, cubes.EVERY)
_HARD = (KILL_THREAD, TRAP, ERRNO)


class Model:
    """archs: ABIs that may call at all; calls: name -> Entry; rest: the Entry of all other names;
    spec_allow: speculation mitigations are left off; log: denials are logged.
    """

    __slots__ = ("archs", "calls", "log", "rest", "spec_allow")

    def __init__(
        self, archs: frozenset[str], calls: dict[str, Entry], rest: Entry, spec_allow: bool, log: bool
    ) -> None:
        self.archs = archs
        self.calls = calls
        self.rest = rest
        self.spec_allow = spec_allow
        self.log = log


def uniform(action: int, errno: int) -> Entry:
    """The Entry of a call that gets one action for all arguments."""
    if action >= LOG:
        return SOFT, cubes.EVERY, action, errno
    hard = tuple(cubes.EVERY if action >= level else cubes.NONE for level in _HARD)
    return (SOFT if action == ERRNO else hard), cubes.NONE, ALLOW, errno  # type: ignore[return-value]


def of(raw: dict[str, Any], machine: str) -> Model:
    """The Model of a checked OCI seccomp object, on a host whose uname -m is `machine`."""
    cubes.budget()
    archs = frozenset(raw.get("architectures") or ()) | {NATIVE[machine]}
    narrow = not NARROW.isdisjoint(archs)
    action, errno = _action(raw["defaultAction"], raw.get("defaultErrnoRet"))
    by_name: dict[str, list[Rule]] = {}
    for rule in raw.get("syscalls") or ():
        read = _rule(rule, narrow)
        for name in rule["names"]:
            by_name.setdefault(name, []).append(read)
    flags = raw.get("flags")
    rest, calls = _rest(action, errno)
    for name, rules in by_name.items():
        calls[name] = _entry(name, rules, action, errno, narrow)
    # An absent list of flags is SPEC_ALLOW to newer runc (1.2) and to crun.
    return Model(archs, calls, rest, flags is None or FLAG_SPEC_ALLOW in flags, bool(flags) and FLAG_LOG in flags)


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
    calls = {
        name: _meet(a.calls.get(name, a.rest), b.calls.get(name, b.rest), strict_errno)
        for name in sorted({**a.calls, **b.calls})
    }
    rest = _meet(a.rest, b.rest, gentle_errno)
    return Model(a.archs & b.archs, calls, rest, a.spec_allow and b.spec_allow, a.log or b.log)


def strict_errno(a: int, b: int) -> int:
    """The errno of a call that both deny: ENOSYS wins, since libc falls back on it alone."""
    return ENOSYS if ENOSYS in (a, b) else gentle_errno(a, b)


def gentle_errno(a: int, b: int) -> int:
    """The errno of the default action, which a conditional allow's remainder gets too: EPERM wins, 0 (success) loses."""
    return min(a, b, key=lambda errno: (errno != EPERM, errno == 0, errno))


def _leq(a: Entry, b: Entry) -> bool:
    if a is b:
        return True
    if a[1] and a[2] > b[2]:
        return False
    return cubes.leq(a[1], b[1]) and all(cubes.leq(x, y) for x, y in zip(a[0], b[0], strict=True))


def _meet(a: Entry, b: Entry, errno_of: Any) -> Entry:
    errno = _errno_of(a, b, errno_of)
    try:
        grant = _granted(a[1], b[1])
        hard = SOFT if a[0] is b[0] is SOFT else tuple(cubes.meet(x, y) for x, y in zip(a[0], b[0], strict=True))
    except cubes.TooMany:
        return uniform(min(_lowest(a), _lowest(b)), errno)
    return hard, grant, min(a[2], b[2]) if grant else ALLOW, errno  # type: ignore[return-value]


def _granted(a: Cubes, b: Cubes) -> Cubes:
    """a ∩ b; of ints without high bits only where the whole is too many cubes (deny-list ∧ containers-common)."""
    try:
        return cubes.meet(a, b)
    except cubes.TooMany:
        return cubes.meet(cubes.tight(a), cubes.tight(b))


def _errno_of(a: Entry, b: Entry, errno_of: Any) -> int:
    """Who denies wholly decides about the errno; where both or neither do, `errno_of` does."""
    if not a[1] and b[1]:
        return a[3]
    if a[1] and not b[1]:
        return b[3]
    return int(errno_of(a[3], b[3]))


def _lowest(entry: Entry) -> int:
    """The most restrictive action that some vector of `entry` gets, at most ERRNO."""
    return next((level - 1 for level, upper in zip(_HARD, entry[0], strict=True) if upper != cubes.EVERY), ERRNO)


def _action(name: str, errno: int | None) -> tuple[int, int]:
    action = ACTIONS[name]
    if ERRNO < action < LOG:
        return ERRNO, ENOSYS
    return action, EPERM if errno is None else errno


def _rest(action: int, errno: int) -> tuple[Entry, dict[str, Entry]]:
    """The Entry of names without rules: where that grants, it grants the names that we know."""
    if action < LOG:
        return uniform(action, errno), {}
    from shim.seccomp.names import NAMES  # 0.3 ms, for deny-lists only

    return uniform(ERRNO, ENOSYS), dict.fromkeys(NAMES.split(), uniform(action, EPERM))


def _rule(rule: dict[str, Any], narrow: bool) -> Rule:
    """Read one rule: the cubes on which it allows, and those on which it denies."""
    action, errno = _action(rule["action"], rule.get("errnoRet"))
    args = rule.get("args")
    if not args:
        return action, errno, cubes.EVERY, cubes.EVERY, rule["action"]
    every = [_condition(arg, narrow) for arg in args]
    allow = deny = cubes.EVERY
    try:
        if action >= LOG:
            for one, _ in every:
                allow = _product(allow, one)
        elif len({arg["index"] for arg in args}) < len(args):
            deny = tuple(cube for _, one in every for cube in one)
        else:
            for _, one in every:
                deny = _product(deny, one)
        if action < LOG:
            for one, _ in every:  # what a gentler denial leaves open to a harder one
                allow = _product(allow, one)
    except cubes.TooMany:
        allow, deny = cubes.NONE, cubes.EVERY
    return action, errno, allow, deny, rule["action"]


def _product(a: Cubes, b: Cubes) -> Cubes:
    out = tuple(c for x in a for y in b if (c := cubes.meet_cube(x, y)) is not None)
    if len(out) > cubes.LIMIT * 8:
        raise cubes.TooMany
    return out


def _condition(arg: dict[str, Any], narrow: bool) -> tuple[Cubes, Cubes]:
    """One condition as cubes, read to allow and read to deny."""
    index, op, value, two = arg["index"], arg["op"][9:], arg["value"], arg.get("valueTwo", 0)
    if narrow and (two if op == "MASKED_EQ" else value) > LOW:
        return cubes.NONE, cubes.EVERY  # libseccomp cuts the constant to 32 bits for those ABIs
    allow = tuple(((index, mask, word),) if mask else () for mask, word in cubes.compare(op, value, two))
    if op == "MASKED_EQ" and not allow:
        return cubes.NONE, (((index, value, two & value),) if value else (),)
    return allow, allow


def _entry(name: str, rules: list[Rule], action: int, errno: int, narrow: bool) -> Entry:
    """The Entry of one call from its rules and the default action."""
    fixed = [rule for rule in rules if rule[2] is cubes.EVERY and rule[3] is cubes.EVERY]
    if len(fixed) == len(rules):
        least = min(fixed, key=lambda rule: (rule[0], rule[1] != ENOSYS))
        return uniform(least[0], least[1])
    wide = frozenset() if narrow else frozenset(index for call, index in WIDE if call == name)
    levels = [rule[0] for rule in rules] + ([] if fixed else [action])
    code = min((rule[1] for rule in rules if rule[0] <= ERRNO), key=lambda one: (one != ENOSYS, one), default=errno)
    try:
        if not fixed:
            rules = _clear(rules, action)
        grant = _upper(rules, bool(fixed), action, LOG, wide)
        low = min(levels)
        hard = SOFT if low >= ERRNO else tuple(_upper(rules, bool(fixed), action, at, wide) for at in _HARD)
    except cubes.TooMany:
        return uniform(min(*levels, ERRNO), code)
    best = LOG if LOG in levels else ALLOW
    return hard, grant, best if grant else ALLOW, code  # type: ignore[return-value]


def _clear(rules: list[Rule], action: int) -> list[Rule]:
    """Conditional rules without those gentler than the default that overlap one of another action.

    libseccomp 2.5.4 can send a vector that matches such a rule to the default, by way of the other rule's branch.
    """
    kinds = {rule[4:] + rule[1:2] for rule in rules}
    if len(kinds) == 1:
        return rules
    out = []
    for one in rules:
        others = (two[3] for two in rules if two[4:] + two[1:2] != one[4:] + one[1:2])
        if one[0] <= action or not any(cubes.overlap(one[2], other) for other in others):
            out.append(one)
    return out


def _upper(rules: list[Rule], fixed: bool, action: int, level: int, wide: frozenset[int]) -> Cubes:
    """The vectors on which every matching rule's action is at least `level`, rounded down."""
    deny = [cubes.any_high(cube, wide) for rule in rules if rule[0] < level for cube in rule[3]]
    if () in deny or (not fixed and action < level and all(rule[0] < level for rule in rules)):
        return cubes.NONE
    if fixed or action >= level:
        base = cubes.EVERY
    else:
        allow = [cubes.low_only(cube, wide) for rule in rules if rule[0] >= level for cube in rule[2]]
        base = cubes.spare({cube for cube in allow if cube is not None})
    if not deny:
        return base
    left = (cubes.low_only(cube, wide) for cube in cubes.minus(base, cubes.spare(set(deny))))
    return cubes.spare({cube for cube in left if cube is not None})
