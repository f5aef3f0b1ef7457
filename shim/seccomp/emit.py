"""A Model as OCI JSON: deny-default, ALLOW rules whose overlap is harmless, denials by number, in canonical order.

No rule has two conditions on one argument, equals the default, or stands beside an unconditional rule of its call: what
libseccomp would lose or turn around (`policy lint` names those) is never written. Next door: `model` is the meaning.
"""

from __future__ import annotations

from shim.seccomp import cubes
from shim.seccomp.model import SOFT, lowest
from shim.seccomp.vocabulary import (
    ACTION_NAMES,
    ENOSYS,
    ERRNO,
    FALLBACK,
    FLAG_LOG,
    FLAG_SPEC_ALLOW,
    FULL64,
    KILL_PROCESS,
    KILL_THREAD,
    NATIVE,
    TRAP,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.seccomp.cubes import Cube, Cubes
    from shim.seccomp.model import Entry, Model

    Action = tuple[int, int]  # severity, errno
    Regions = list[tuple[Action, Cubes]]

# Calls that reach the kernel by a number of their own and through socketcall(2) or ipc(2), where conditions are lost.
_MULTIPLEXED = (
    "accept accept4 bind connect getpeername getsockname getsockopt listen msgctl msgget msgrcv msgsnd recv recvfrom "
    "recvmmsg recvmsg semctl semget semop semtimedop send sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget "
    "shutdown socket socketpair"
)


def emit(model: Model, machine: str, cut: set[str] | None = None) -> dict[str, Any]:
    """The OCI seccomp object of `model`; its listener, if any, is gone. Calls that take too many rules are denied, and
    added to `cut`.
    """
    default = _default(model)
    plain: dict[Action, list[str]] = {}
    parted: list[dict[str, Any]] = []
    for name, entry in sorted(_with_fallbacks(model).items()):
        try:
            regions = _regions(entry, default)
        except cubes.TooMany:
            regions = [((lowest(entry), 0), cubes.EVERY)]
            if cut is not None:
                cut.add(name)
        for action, where in regions:
            if where == cubes.EVERY:
                if action != default:
                    plain.setdefault(action, []).append(name)
            else:
                parted += [_rule([name], action, cube) for cube in where]
    rules = [_rule(names, action, ()) for action, names in sorted(plain.items(), reverse=True)]
    profile: dict[str, Any] = {"defaultAction": ACTION_NAMES[default[0]]}
    if default[0] == ERRNO:
        profile["defaultErrnoRet"] = default[1]
    profile["architectures"] = _architectures(model, machine)
    if model.listed:  # then always written, empty or not: an absent list means SPEC_ALLOW to crun and newer runc
        profile["flags"] = [FLAG_LOG] * model.log + [FLAG_SPEC_ALLOW] * model.spec_allow
    profile["syscalls"] = rules + parted
    return profile


def _default(model: Model) -> Action:
    (action, _), *_ = _regions(model.rest, (-1, 0))
    return action


def _with_fallbacks(model: Model) -> dict[str, Entry]:
    """The calls, with ENOSYS for whatever is denied and new enough that libc falls back from it on ENOSYS alone."""
    calls = dict(model.calls)
    for name in FALLBACK.split():
        entry = calls.get(name, model.rest)
        if not entry[1] and entry[0] is SOFT:
            calls[name] = (SOFT, cubes.NONE, entry[2], ENOSYS)
    return calls


def _regions(entry: Entry, default: Action) -> Regions:
    """The parts of the argument space and their actions, without the part that the default covers.

    A call that is denied for all arguments keeps its own errno; a remainder beside other parts gets the default's.
    TooMany.
    """
    hard, grant, action, errno = entry
    if grant == cubes.EVERY:
        return [((action, 0), cubes.EVERY)]
    if hard is SOFT:
        return [((action, 0), grant), *_remainder(grant, errno, default)] if grant else [((ERRNO, errno), cubes.EVERY)]
    cubes.budget()
    steps = zip((KILL_PROCESS, KILL_THREAD, TRAP, ERRNO), (cubes.EVERY, *hard), (*hard, grant), strict=True)
    parts = [((level, errno if level == ERRNO else 0), cubes.minus(a, b)) for level, a, b in steps]
    parts.append(((action, 0), grant))
    every = [part for part in parts if part[1]]
    if len(every) == 1:
        return [(every[0][0], cubes.EVERY)]
    return [part for part in every if part[0][0] != default[0]]


def _remainder(grant: Cubes, errno: int, default: Action) -> Regions:
    """What `grant` leaves open where the default action is harder than this call's own denial."""
    if default[0] >= ERRNO:
        return []
    try:
        cubes.budget()
        return [((ERRNO, errno), cubes.minus(cubes.EVERY, grant))]
    except cubes.TooMany:
        return []


def _rule(names: list[str], action: Action, cube: Cube) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": ACTION_NAMES[action[0]]}
    if action[0] == ERRNO:
        rule["errnoRet"] = action[1]
    if cube:
        rule["args"] = [_condition(*part) for part in cube]
    return rule


def _condition(index: int, mask: int, value: int) -> dict[str, Any]:
    if mask == FULL64:
        return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _architectures(model: Model, machine: str) -> list[str]:
    """Native first. i386 is dropped where socketcall or ipc would open what a rule on their own number closes."""
    native = NATIVE[machine]
    others = sorted(model.archs - {native})
    if "SCMP_ARCH_X86" in others and not _multiplexed_alike(model):
        others.remove("SCMP_ARCH_X86")
    return [native, *others]


def _multiplexed_alike(model: Model) -> bool:
    """Whether each call that socketcall(2) or ipc(2) can make is allowed, or denied, for all arguments like them.

    libseccomp writes a rule for `socket` on i386 for socketcall too, and leaves its conditions out there.
    """
    sockets = [model.calls.get(name, model.rest) for name in ("socketcall", "ipc")]
    entries = [model.calls.get(name, model.rest) for name in _MULTIPLEXED.split()]
    return all(entry[1] == cubes.EVERY for entry in entries + sockets)
