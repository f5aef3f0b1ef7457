"""Annotations: those that give a delegate orders are authority; all others are words. Order: ⊆ of pairs.

The unsafe ones are what the delegates' own `features` call potentially unsafe, and what older versions obey without
saying so. Source: runtime-spec features.md "potentiallyUnsafeConfigAnnotations"; runc(8), crun(1), krun.
"""

from __future__ import annotations

from shim.lattice import REASON, Decrease, Value, at, with_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.kernel import Facts
    from shim.lattice import Section, Spec

NAME = "annotations"
KEYS = ("annotations",)

# A trailing dot or * is a prefix.
UNSAFE = (
    "bundle",  # runc: where it says the bundle is
    "org.criu.config",  # runc, crun: a CRIU configuration file, read as root
    "org.systemd.property.*",  # runc, crun: properties of the container's unit
    "run.oci.*",  # crun: handlers, hooks, devices, mounts, seccomp
    "module.wasm.*",  # crun
    "krun.*",  # crun's libkrun handler
    "io.kubernetes.cri-o.userns-mode",  # acted on before us by CRI-O; nothing below may act on it again
    "io.kubernetes.cri-o.Devices",
    "io.katacontainers.*",
)


class Annotations(Value):
    """`unsafe`: the unsafe (name, value) pairs, or None for any. Safe ones are not authority and not in the value."""

    __slots__ = ("unsafe",)

    def __init__(self, unsafe: frozenset[tuple[str, str]] | None) -> None:
        self.unsafe = unsafe


TOP = Annotations(None)
BOTTOM = Annotations(frozenset())


def leq(a: Annotations, b: Annotations) -> bool:
    return meet(a, b) == a


def meet(a: Annotations, b: Annotations) -> Annotations:
    if a.unsafe is None or b.unsafe is None:
        return b if a.unsafe is None else a
    return Annotations(a.unsafe & b.unsafe)


def from_spec(spec: Spec, facts: Facts) -> Annotations:
    return Annotations(frozenset(pair for pair in at(spec, KEYS[0], {}).items() if is_unsafe(pair[0])))


def from_policy(section: Section) -> Annotations:
    return TOP if section == "top" or (section and section.get("unsafe")) else BOTTOM


def apply_to_spec(spec: Spec, value: Annotations, facts: Facts) -> Spec:
    if value.unsafe is None or from_spec(spec, facts) == value:
        return spec
    kept = {k: v for k, v in spec["annotations"].items() if not is_unsafe(k) or (k, v) in value.unsafe}
    return with_key(spec, KEYS[0], kept)


def explain(asked: Annotations, ceiling: Annotations, granted: Annotations) -> list[Decrease]:
    lost = (asked.unsafe or frozenset()) - (granted.unsafe or frozenset())
    why = "it gives the delegate orders that no dimension sees"
    return [
        Decrease(f"annotations.{k}", v, "removed", why, "[annotations] unsafe = true" + REASON) for k, v in sorted(lost)
    ]


def refusals(asked: Annotations, granted: Annotations) -> list[Exception]:
    return []


def is_unsafe(name: str) -> bool:
    """Whether a delegate may act on the annotation `name`."""
    return name in UNSAFE or any(one[-1] == "*" and name.startswith(one[:-1]) for one in UNSAFE)
