"""Labels of the Linux security modules. Order: one label < confined (any label) < unconfined.

Two different labels are incomparable: their meet is `nothing`, which refuses. A label is written only where its module
is active, since a delegate fails otherwise; where it is not, every value is the same and nothing is asked.
Source: apparmor(7), selinux(8), runtime-spec config.md "apparmorProfile", "selinuxLabel".
"""

from __future__ import annotations

from shim.errors import Refused
from shim.lattice import Decrease, Value, at, with_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.kernel import Facts
    from shim.lattice import Section, Spec

NAME = "lsm"
KEYS = ("process.apparmorProfile", "process.selinuxLabel", "linux.mountLabel")
MODULES = ("apparmor", "selinux")
UNCONFINED, CONFINED, NOTHING = "unconfined", "confined", "nothing"


class Labels(Value):
    """`labels`: for each of MODULES 'unconfined', 'confined' (any label), a label, or 'nothing' (no process at all)."""

    __slots__ = ("labels",)

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels


TOP = Labels((UNCONFINED, UNCONFINED))
BOTTOM = Labels((NOTHING, NOTHING))


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
        if before != after and module in facts.security_modules:
            label = facts.default_labels.get(module) if after == CONFINED else after
            if label is None:
                todo = f"load a profile for containers, or name one in [lsm] {module}"
                raise Refused(NAME, key, before, "confined, and no default label is loaded", todo)
            out = with_key(out, key, label)
    return out


def explain(asked: Labels, ceiling: Labels, granted: Labels) -> list[Decrease]:
    return [
        Decrease(key, before, after, f"{module} confines every container", f'[lsm] {module} = "{before}"')
        for key, module, before, after in zip(KEYS, MODULES, asked.labels, granted.labels)
        if before != after
    ]


def refusals(asked: Labels, granted: Labels) -> list[Exception]:
    return [
        Refused(NAME, key, before, "another label", f"ask for the policy's {module} label, or change [lsm] {module}")
        for key, module, before, after in zip(KEYS, MODULES, asked.labels, granted.labels)
        if after == NOTHING and before != after
    ]


def _asked(spec: Spec, key: str, module: str, facts: Facts) -> str:
    label = at(spec, key, "")
    if module not in facts.security_modules:
        # An inactive module confines nobody; the least label keeps every comparison true without writing any.
        return label or facts.default_labels.get(module, "inactive")
    return label if label and label != "unconfined" else UNCONFINED


def _meet(a: str, b: str) -> str:
    for one, other in ((a, b), (b, a)):
        if one == other or other == UNCONFINED or (other == CONFINED and one != UNCONFINED):
            return one
    return NOTHING
