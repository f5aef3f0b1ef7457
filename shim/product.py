"""All dimensions as one: the product order, pointwise. A product value is a dict from a dimension's NAME to its value.

Belongs here: the list of dimensions and loops over it. Next door: `coherence` relates two dimensions.
"""

from __future__ import annotations

from shim.dim import annotations as notes
from shim.dim import (
    capabilities,
    devices,
    hooks,
    invocation,
    lsm,
    mounts,
    namespaces,
    network,
    paths,
    process,
    resources,
    rlimits,
    scheduling,
    seccomp,
    sysctl,
    user,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.kernel import Facts
    from shim.lattice import Decrease, Spec

    Product = dict[str, Any]

# `paths` before `mounts`: both write the list of mounts, and each ignores the other's entries.
DIMENSIONS: tuple[Any, ...] = (
    capabilities,
    seccomp,
    paths,
    mounts,
    namespaces,
    devices,
    resources,
    lsm,
    user,
    rlimits,
    sysctl,
    hooks,
    notes,
    scheduling,
    process,
    invocation,
    network,
)
# What an exec'd process can ask of its own; the rest it shares with the container. Its user is not bounded by the
# container's: both are bounded by the policy.
EXEC = (capabilities, lsm, user, rlimits, scheduling, process, invocation)
TOP = {dim.NAME: dim.TOP for dim in DIMENSIONS}
BOTTOM = {dim.NAME: dim.BOTTOM for dim in DIMENSIONS}


def leq(a: Product, b: Product) -> bool:
    """Whether `a` is below `b` in every dimension that `a` has."""
    return not above(a, b)


def above(a: Product, b: Product) -> list[str]:
    """The dimensions in which `a` is not below `b`."""
    return [dim.NAME for dim in DIMENSIONS if dim.NAME in a and not dim.leq(a[dim.NAME], b[dim.NAME])]


def meet(a: Product, b: Product, dims: tuple[Any, ...] = DIMENSIONS) -> Product:
    return {dim.NAME: dim.meet(a[dim.NAME], b[dim.NAME]) for dim in dims}


def from_spec(spec: Spec, facts: Facts, dims: tuple[Any, ...] = DIMENSIONS) -> Product:
    return {dim.NAME: dim.from_spec(spec, facts) for dim in dims}


def from_policy(sections: dict[str, Any], dims: tuple[Any, ...] = DIMENSIONS) -> Product:
    """The ceiling that a policy's compiled `sections` describe; a section that is missing is BOTTOM."""
    return {dim.NAME: dim.from_policy(sections.get(dim.NAME)) for dim in dims}


def apply_to_spec(spec: Spec, value: Product, facts: Facts, dims: tuple[Any, ...] = DIMENSIONS) -> Spec:
    for dim in dims:
        spec = dim.apply_to_spec(spec, value[dim.NAME], facts)
    return spec


def refusals(asked: Product, granted: Product, dims: tuple[Any, ...] = DIMENSIONS) -> list[Any]:
    return [refusal for dim in dims for refusal in dim.refusals(asked[dim.NAME], granted[dim.NAME])]


def explain(
    asked: Product, ceiling: Product, granted: Product, dims: tuple[Any, ...] = DIMENSIONS
) -> list[tuple[str, Decrease]]:
    """(dimension, Decrease) of every loss."""
    out = []
    for dim in dims:
        before, top, after = asked[dim.NAME], ceiling[dim.NAME], granted[dim.NAME]
        out += [(dim.NAME, loss) for loss in dim.explain(before, top, after)]
    return out
