"""What a meet took away, in words of bounded length. Needed by `explain` and for an audit line, not by a start."""

from __future__ import annotations

from shim.lattice import REASON, Decrease
from shim.seccomp import cubes, model
from shim.seccomp.profile import Profile
from shim.seccomp.vocabulary import LOG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "linux.seccomp"
_SHOWN = 12
_WHY = "the policy's profile does not allow them"
_SHORTER = "fewer conditions on arguments, in the profile that is asked or in the policy's"
_TOP = 'seccomp = "top"' + REASON
_ALLOW = '[seccomp] add = [{ names = ["…"]' + REASON + " }]"


def decreases(asked: Profile, ceiling: Profile, granted: Profile) -> list[Decrease]:
    """One Decrease for each kind of loss: calls, arguments, ABIs, flags, gentler denials."""
    dropped: dict[str, str] = (granted.proof or {}).get("dropped") or {}
    if asked.is_top:
        return [_loss("no filter", _counted(granted), "nothing was filtered", _TOP), *_dropped(dropped)]
    if granted.is_top:
        return []
    before, after = asked.model, granted.model
    return [*_dropped(dropped), *_calls(before, after, dropped), *_frame(before, after)]


def _dropped(dropped: dict[str, str]) -> Iterator[Decrease]:
    """What no policy takes: calls that no filter could be made for, or none that is proved, by reason."""
    for why in dict.fromkeys(dropped.values()):
        names = sorted(name for name, reason in dropped.items() if reason == why)
        yield _loss(listed(names), "denied", why, _SHORTER)


def _calls(before: model.Model, after: model.Model, dropped: dict[str, str]) -> Iterator[Decrease]:
    gone, parted, harder = [], [], []
    cubes.budget()
    for name in sorted({**before.calls, **after.calls}.keys() - dropped):
        old, new = before.calls.get(name, before.rest), after.calls.get(name, after.rest)
        if old[1] and not new[1]:
            gone.append(name)
        elif not _leq(old[1], new[1]) or (new[1] and new[2] < old[2]):
            parted.append(name)
        elif not all(_leq(x, y) for x, y in zip(old[0], new[0], strict=True)):
            harder.append(name)
    if gone:
        yield _loss(listed(gone), "denied", _WHY, _ALLOW)
    if parted:
        yield _loss(listed(parted), "denied or logged for some arguments", _WHY, _ALLOW)
    if harder or not all(_leq(x, y) for x, y in zip(before.rest[0], after.rest[0], strict=True)):
        yield _loss(listed(harder or ["all others"]), "denied harder", "the policy's profile traps or kills", _ALLOW)


def _frame(before: model.Model, after: model.Model) -> Iterator[Decrease]:
    lost = before.archs - after.archs
    if lost:
        why = "other ABIs bypass rules on arguments (socketcall, x32)"
        yield _loss(listed(sorted(lost)), listed(sorted(after.archs)), why, '[seccomp] architectures = ["…"]')
    if before.spec_allow and not after.spec_allow:
        yield _loss(
            "SPEC_ALLOW, or flags absent",
            "no SPEC_ALLOW",
            "speculation mitigations stay on",
            _TOP,
        )
    if after.log and not before.log:
        yield _loss("no log", "denials are logged", "the policy's profile logs", "[seccomp] log = false")


def listed(names: list[str]) -> str:
    """The first names and how many there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _leq(a: cubes.Cubes, b: cubes.Cubes) -> bool:
    try:
        return cubes.leq(a, b)
    except cubes.TooMany:
        return False


def _counted(profile: Profile) -> str:
    calls = profile.model.calls.values()
    return f"{sum(1 for entry in calls if entry[1] and entry[2] >= LOG)} calls allowed"


def _loss(asked: str, granted: str, why: str, allow: str) -> Decrease:
    return Decrease(KEY, asked, granted, why, allow)
