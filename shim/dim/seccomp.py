"""System calls and their arguments. Order: a <= b iff every call that passes a passes b, with no gentler denial.

The order is that of `shim.seccomp.model`: the strictest reading of the JSON, so that a meet lies below both compiled
filters. TOP is no filter, BOTTOM kills at the first call. Values are equal where their meaning is; the errno of a
denial is no authority and may differ between equal values.

Not held: nothing in the model's order. Against compiled filters a meet is a lower bound (proved), not the greatest:
numbers without a name are denied, overlaps within one profile and int arguments are rounded towards deny, TRACE and
NOTIFY become ENOSYS, an ABI with socketcall is dropped where conditions on sockets could not be kept.

Here: the door, and what a start may pay. Next door: `shim.seccomp` (meaning, meet, cache), `cold.seccomp` (the proof).
"""

from __future__ import annotations

import posix

from shim.lattice import Decrease, at, with_key
from shim.seccomp.check import check
from shim.seccomp.profile import Policy, Profile, digest, machine
from shim.seccomp.vocabulary import NATIVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.errors import Refused
    from shim.kernel import Facts
    from shim.lattice import Section, Spec
    from shim.seccomp.model import Model

NAME = "seccomp"
KEYS = ("linux.seccomp",)
TOP = Profile(None, "top")
BOTTOM = Profile(
    {
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "architectures": [NATIVE.get(posix.uname().machine, "SCMP_ARCH_X86_64")],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [],
    }
)

# Meets that the verb has settled for this process: digests of both sides -> what was proved and is now granted.
_settled: dict[tuple[str, str], Profile] = {}


def leq(a: Profile, b: Profile) -> bool:
    if b.is_top or a.digest == b.digest:
        return True
    if a.is_top:
        return False
    if any(b.digest in sides and granted.digest == a.digest for sides, granted in _settled.items()):
        return True
    from shim.seccomp import model  # a cache hit does without

    return model.leq(a.model, b.model)


def meet(a: Profile, b: Profile) -> Profile:
    known = instant(a, b)
    if known is not None:
        return known
    from shim.seccomp import emit, model  # a cache hit does without

    host = machine()
    if a.is_top:
        return _emitted(b.model, host)
    # Engines create a bundle again that we have lowered before: it stays as it is, to the letter. Only what is in our
    # own canonical form may: the meaning of any other JSON is rounded towards deny, the JSON itself is not.
    for side, other in ((a, b), (b, a)):
        if emit.emit(side.model, host) == side.raw and model.leq(side.model, other.model):
            return side
    return _emitted(model.meet(a.model, b.model), host)


def _emitted(meaning: Model, host: str) -> Profile:
    """The Profile of a meaning; `proof` says what had to be left out of it."""
    from shim.seccomp import emit, model  # as above

    cut = set(meaning.cut)
    out = Profile(emit.emit(meaning, host, cut))
    if cut:
        out.proof = {"dropped": dict.fromkeys(sorted(cut), model.TOO_MANY)}
    return out


def instant(a: Profile, b: Profile) -> Profile | None:
    """The meet where it costs nothing: the ceiling is TOP, both are one, or `admit` has settled it. None otherwise."""
    if b.is_top:
        return a
    if a.digest == b.digest:
        return b
    return _settled.get((a.digest, b.digest))


def admit(asked: Profile, ceiling: Profile, granted: Profile) -> None:
    """Settle meet(asked, ceiling) for this process: `granted` was proved to lie below both, now or in an earlier
    one.
    """
    _settled[asked.digest, ceiling.digest] = granted


def pair_key(asked: Profile, ceiling: Profile, capability_mask: int, delegate: str) -> str:
    """The cache's key of a meet: both sides, the capabilities and the kernel that the ceiling was resolved for, and the
    delegate.
    """
    host = posix.uname()
    parts = (asked.digest, ceiling.digest, str(capability_mask), delegate, host.machine, host.release)
    return digest(*(part.encode() for part in parts))


def from_spec(spec: Spec, facts: Facts) -> Profile:
    raw = at(spec, KEYS[0])
    if not raw and raw in (None, {}):  # an empty object is no filter to the delegates
        return TOP
    asked = Profile(raw)
    if all(asked.digest != granted.digest for granted in _settled.values()):  # to the letter what was checked and met
        check(raw)
    return asked


def from_policy(section: Section) -> Profile:
    """`section` as cold.seccomp_source.expand wrote it: {"digest": hex, "caps": mask, "source": JSON text}."""
    if section is None:
        return BOTTOM
    if section == "top":
        return TOP
    return Policy(section["source"], section["digest"], section["caps"])


def resolve(value: Profile, capability_mask: int) -> Profile:
    """A policy's value under the capabilities (bits of linux/capability.h) that the container is granted."""
    return value.under(capability_mask) if isinstance(value, Policy) else value


def apply_to_spec(spec: Spec, value: Profile, facts: Facts) -> Spec:
    raw = value.raw
    if raw is at(spec, KEYS[0]):
        return spec
    return with_key(spec, KEYS[0], raw)


def refusals(asked: Profile, granted: Profile) -> list[Refused]:
    return []


def explain(asked: Profile, ceiling: Profile, granted: Profile) -> list[Decrease]:
    # A call that our reading of what is asked has left out already is lost, and equal in meaning.
    if granted is asked or (asked == granted and not (granted.proof or {}).get("dropped")):
        return []
    from shim.seccomp import explanation  # for `explain` and the audit line of a miss

    return explanation.decreases(asked, ceiling, granted)
