"""Labels of the Linux security modules. Order: nothing < one label < confined (any label) < unconfined.

Two different labels are incomparable: their meet is `nothing`. For a process that refuses, since no other label was
asked. For `mountLabel`, which labels the files of the container's own mounts and is met with what the policy says of
selinux, it is written: the mounts then have the kernel's own labels. There an absent label asks nothing, active or not.
A process's label is written only where its module is active, since a delegate fails otherwise; where it is not, an
absent one asks nothing.
Source: apparmor(7), selinux(8), runtime-spec config.md "apparmorProfile", "selinuxLabel", config-linux.md "mountLabel".
"""

from __future__ import annotations

from shim.errors import Refused
from shim.lattice import REASON, Decrease, Value, at, with_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.kernel import Facts
    from shim.lattice import Section, Spec

NAME = "lsm"
MOUNT = "linux.mountLabel"
KEYS = ("process.apparmorProfile", "process.selinuxLabel", MOUNT)
MODULES = ("apparmor", "selinux", "selinux")  # whose label each of KEYS is
UNCONFINED, CONFINED, NOTHING = "unconfined", "confined", ""  # no spec can spell an empty label


class Labels(Value):
    """`labels`: for each of KEYS 'unconfined', 'confined' (any label), a label, or '' (nothing)."""

    __slots__ = ("labels",)

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels


TOP = Labels((UNCONFINED,) * len(KEYS))
BOTTOM = Labels((NOTHING,) * len(KEYS))


def leq(a: Labels, b: Labels) -> bool:
    return all(_meet(x, y) == x for x, y in zip(a.labels, b.labels))


def meet(a: Labels, b: Labels) -> Labels:
    return Labels(tuple(_meet(x, y) for x, y in zip(a.labels, b.labels)))


def from_spec(spec: Spec, facts: Facts) -> Labels:
    return Labels(tuple(_asked(spec, key, module, facts) for key, module in zip(KEYS, MODULES)))


def from_policy(section: Section) -> Labels:
    if section == "top":
        return TOP
    return BOTTOM if section is None else Labels(tuple(section.get(module, CONFINED) for module in MODULES))


def apply_to_spec(spec: Spec, value: Labels, facts: Facts) -> Spec:
    out = spec
    asked = from_spec(spec, facts)
    for key, module, before, after in zip(KEYS, MODULES, asked.labels, value.labels):
        if before == after:
            continue
        if key == MOUNT:
            out = with_key(out, key, None)
        elif module in facts.security_modules:
            label = facts.default_labels.get(module) if after == CONFINED else after
            if label is None:
                todo = f"load a profile for containers, or name one in [lsm] {module}"
                raise Refused(NAME, key, before, "confined, and no default label is loaded", todo)
            out = with_key(out, key, label)
    return out


def explain(asked: Labels, ceiling: Labels, granted: Labels) -> list[Decrease]:
    return [
        Decrease(key, before, after or "nothing", _why(key, module), _allow(key, module, before))
        for key, module, before, after in zip(KEYS, MODULES, asked.labels, granted.labels)
        if before != after
    ]


def refusals(asked: Labels, granted: Labels) -> list[Exception]:
    return [
        Refused(NAME, key, before, "another label", f"ask for the policy's {module} label, or change [lsm] {module}")
        for key, module, before, after in zip(KEYS, MODULES, asked.labels, granted.labels)
        if after == NOTHING and before != after and key != MOUNT
    ]


def _asked(spec: Spec, key: str, module: str, facts: Facts) -> str:
    label: str = at(spec, key, NOTHING)
    if key == MOUNT or label not in (NOTHING, UNCONFINED):
        return label
    return UNCONFINED if module in facts.security_modules else NOTHING  # an inactive module confines nobody


def _why(key: str, module: str) -> str:
    return "the policy names another label, or none" if key == MOUNT else f"{module} confines every container"


def _allow(key: str, module: str, before: str) -> str:
    if before == UNCONFINED:
        return 'lsm = "top"' + REASON
    return f'[lsm] {module} = "{CONFINED if key == MOUNT else before}"'


def _meet(a: str, b: str) -> str:
    for one, other in ((a, b), (b, a)):
        if one == other or other == UNCONFINED or (other == CONFINED and one != UNCONFINED):
            return one
    return NOTHING
