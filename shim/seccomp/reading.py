"""OCI JSON -> a Model: the strictest reading that a delegate may have of a profile.

A meet of such readings is below both filters:
 * of several rules that match, the most restrictive action (libseccomp lets an unconditional rule beat conditional ones
   and overlapping ranges allow their overlap);
 * two conditions on one argument: all must hold to allow, any one denies (delegates turn the rule into an OR);
 * int arguments: a denial looks at the low 32 bits only, an allow requires the high half to be zero or ignored;
 * a rule gentler than the default counts only where it overlaps no rule of another action (a fault of libseccomp
 2.5.4);
 * numbers without a name in `names` are denied; NOTIFY and TRACE are denied with ENOSYS, the kernel's own answer where
   nobody listens.

Next door: `check` has refused what is malformed, `words` rounds, `model` is the order.
"""

from __future__ import annotations

from shim.seccomp import cubes, words
from shim.seccomp.model import HARD, SOFT, Model, uniform
from shim.seccomp.vocabulary import (
    ACTIONS,
    ALLOW,
    ENOSYS,
    EPERM,
    ERRNO,
    FLAG_LOG,
    FLAG_SPEC_ALLOW,
    LOG,
    LOW,
    NARROW,
    NATIVE,
    WIDE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.seccomp.cubes import Cubes
    from shim.seccomp.model import Entry

    # action, errno, cubes read to allow, cubes read to deny, the action as it was written
    Rule = tuple[int, int, Cubes, Cubes, str]


def of(raw: dict[str, Any], machine: str) -> Model:
    """The Model of a checked OCI seccomp object, on a host whose uname -m is `machine`."""
    cubes.budget()
    archs = frozenset(raw.get("architectures") or ()) | {NATIVE[machine]}
    narrow = not NARROW.isdisjoint(archs)
    action, errno = _action(raw["defaultAction"], raw.get("defaultErrnoRet"))
    by_name: dict[str, list[Rule]] = {}
    cut: set[str] = set()
    for rule in raw.get("syscalls") or ():
        read = _rule(rule, narrow, cut)
        for name in rule["names"]:
            by_name.setdefault(name, []).append(read)
    flags: list[str] | None = raw.get("flags")
    rest, calls = _rest(action, errno)
    for name, rules in by_name.items():
        calls[name] = _entry(name, rules, action, errno, narrow, cut)
    # An absent list of flags is SPEC_ALLOW to newer runc (1.2) and to crun.
    if flags is None:
        return Model(archs, calls, rest, spec_allow=True, log=False, listed=False, cut=frozenset(cut))
    return Model(archs, calls, rest, FLAG_SPEC_ALLOW in flags, FLAG_LOG in flags, listed=True, cut=frozenset(cut))


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


def _rule(rule: dict[str, Any], narrow: bool, cut: set[str]) -> Rule:
    """Read one rule: the cubes on which it allows, and those on which it denies; its names are added to `cut` if they
    are too many, and then it allows nothing.
    """
    action, errno = _action(rule["action"], rule.get("errnoRet"))
    args = rule.get("args")
    if not args:
        return action, errno, cubes.EVERY, cubes.EVERY, rule["action"]
    every = [_condition(arg, narrow) for arg in args]
    twice = len({arg["index"] for arg in args}) < len(args)
    allow = deny = cubes.EVERY
    try:
        for one, other in every:
            allow = _product(allow, one)
            deny = deny if twice else _product(deny, other)
        if twice:
            deny = tuple(cube for _, one in every for cube in one)
    except cubes.TooMany:
        cut.update(rule["names"])
        allow, deny = cubes.NONE, cubes.EVERY
    return action, errno, allow, deny, rule["action"]


def condition_cubes(rule: dict[str, Any]) -> Cubes:
    """The vectors that a delegate may match a rule with, each argument read on 64 bits."""
    return _rule(rule, False, set())[3]


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
    allow = tuple(((index, mask, word),) if mask else () for mask, word in words.compare(op, value, two))
    if op == "MASKED_EQ" and not allow:
        return cubes.NONE, (((index, value, two & value),) if value else (),)
    return allow, allow


def _entry(name: str, rules: list[Rule], action: int, errno: int, narrow: bool, cut: set[str]) -> Entry:
    """The Entry of one call from its rules and the default action; it is denied, and added to `cut`, where its cubes
    are too many.
    """
    fixed = [rule for rule in rules if rule[2] is cubes.EVERY and rule[3] is cubes.EVERY]
    if len(fixed) == len(rules):
        least = min(fixed, key=lambda rule: (rule[0], rule[1] != ENOSYS))
        return uniform(least[0], least[1])
    wide = frozenset() if narrow else frozenset(index for call, index in WIDE if call == name)
    # How hard a denial is does not depend on what the kernel would have seen: no rounding, but for ABIs of 32 bits.
    every = wide if narrow else frozenset(range(6))
    levels = [rule[0] for rule in rules] + ([] if fixed else [action])
    code = min((rule[1] for rule in rules if rule[0] <= ERRNO), key=lambda one: (one != ENOSYS, one), default=errno)
    try:
        if not fixed:
            rules = _clear(rules, action)
        grant = _upper(rules, bool(fixed), action, LOG, wide)
        low = min(levels)
        hard = SOFT if low >= ERRNO else tuple(_upper(rules, bool(fixed), action, at, every) for at in HARD)
    except cubes.TooMany:
        cut.add(name)
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
    deny = [words.any_high(cube, wide) for rule in rules if rule[0] < level for cube in rule[3]]
    if () in deny or (not fixed and action < level and all(rule[0] < level for rule in rules)):
        return cubes.NONE
    if fixed or action >= level:
        base = cubes.EVERY
    else:
        allow = [words.low_only(cube, wide) for rule in rules if rule[0] >= level for cube in rule[2]]
        base = cubes.spare({cube for cube in allow if cube is not None})
    if not deny:
        return base
    left = (words.low_only(cube, wide) for cube in cubes.minus(base, cubes.spare(set(deny))))
    return cubes.spare({cube for cube in left if cube is not None})
