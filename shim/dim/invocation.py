"""Authority that is asked outside config.json: the engine's environment, descriptors, options and rare verbs.

Order: fewer are lower. NOTIFY_SOCKET makes the delegate add a mount after config.json was read; LISTEN_FDS and
--preserve-fds hand descriptors in; --no-pivot leaves the old root within reach; --no-new-keyring shares the host's.
"""

from __future__ import annotations

from shim.errors import Refused
from shim.lattice import REASON, Decrease, Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.kernel import Facts
    from shim.lattice import Section, Spec

NAME = "invocation"
KEYS = ()
FLAGS = ("notify_socket", "no_pivot", "no_new_keyring", "rootless", "subcgroup", "criu")
COUNTS = ("listen_fds", "preserve_fds")
REFUSED = frozenset(("rootless", "subcgroup", "criu"))  # the rest is left out of the call
MANY = 1 << 20  # more descriptors than a process can have


class Invocation(Value):
    """`flags`: those of FLAGS that are asked; `counts`: descriptors in the order of COUNTS; `verbs`: of
    checkpoint and restore.
    """

    __slots__ = ("flags", "counts", "verbs")

    def __init__(self, flags: frozenset[str], counts: tuple[int, ...], verbs: frozenset[str]) -> None:
        self.flags = flags
        self.counts = counts
        self.verbs = verbs


TOP = Invocation(frozenset(FLAGS), (MANY, MANY), frozenset(("checkpoint", "restore")))
BOTTOM = Invocation(frozenset(), (0, 0), frozenset())


def leq(a: Invocation, b: Invocation) -> bool:
    return a.flags <= b.flags and a.verbs <= b.verbs and all(x <= y for x, y in zip(a.counts, b.counts))


def meet(a: Invocation, b: Invocation) -> Invocation:
    return Invocation(a.flags & b.flags, tuple(min(x, y) for x, y in zip(a.counts, b.counts)), a.verbs & b.verbs)


def from_spec(spec: Spec, facts: Facts) -> Invocation:
    return facts.invocation


def from_policy(section: Section) -> Invocation:
    if section == "top":
        return TOP
    if section is None:
        return BOTTOM
    flags = frozenset(name for name in FLAGS if section.get(name))
    return Invocation(flags, tuple(section.get(n, 0) for n in COUNTS), frozenset(section.get("verbs", ())))


def apply_to_spec(spec: Spec, value: Invocation, facts: Facts) -> Spec:
    """The spec as it is: `runc.exec_delegate` writes this value into argv and the environment."""
    return spec


def explain(asked: Invocation, ceiling: Invocation, granted: Invocation) -> list[Decrease]:
    out = []
    for name in sorted(asked.flags - granted.flags):
        allow = 'invocation = "top"' if name in REFUSED else f"[invocation] {name} = true"
        out.append(Decrease(name, "set", "not passed on", "it adds to config.json", allow + REASON))
    for name, before, after in zip(COUNTS, asked.counts, granted.counts):
        if before != after:
            why = "descriptors reach past every path rule"
            out.append(Decrease(name, str(before), str(after), why, f"[invocation] {name} = {before}"))
    for verb in sorted(asked.verbs - granted.verbs):
        why = "a process image holds authority"
        out.append(Decrease(verb, "a process image", "refused", why, f'[invocation] verbs = ["{verb}"]{REASON}'))
    return out


def refusals(asked: Invocation, granted: Invocation) -> list[Exception]:
    verbs = [
        Refused(
            NAME,
            verb,
            "a process image",
            "never under this policy",
            f'[invocation] verbs = ["{verb}"]{REASON} allows it',
        )
        for verb in sorted(asked.verbs - granted.verbs)
    ]
    todo = 'call without it; only invocation = "top" in the policy allows it'
    lost = (asked.flags - granted.flags) & REFUSED
    return [*verbs, *(Refused(NAME, name, "set", "never under this policy", todo) for name in sorted(lost))]
