"""Rules between dimensions: what one of them has lost makes a right in another meaningless or dangerous.

Each rule is a row of data and may only lower. A dimension whose ceiling is TOP is left alone: the host's owner has
said that nothing is to be taken there. Belongs here: relations of two dimensions. Next door: `dim`, one each.
"""

from __future__ import annotations

from shim.dim import capabilities, namespaces, network
from shim.dim.capabilities import BIT, Capabilities
from shim.dim.namespaces import Namespaces
from shim.lattice import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.product import Product


class Rule(Value):
    """`id`: how it is named; `when`: on the whole product; `room`, `lower`: what it lowers and how; `why`: shown."""

    __slots__ = ("id", "when", "room", "lower", "why")

    def __init__(
        self, id: str, when: Callable[[Product], bool], room: str, lower: Callable[[Any], Any], why: str
    ) -> None:
        self.id = id
        self.when = when
        self.room = room
        self.lower = lower
        self.why = why


def _not_new(kind: str) -> Callable[[Product], bool]:
    index = namespaces.KINDS.index(kind)
    return lambda product: bool(product[namespaces.NAME].kinds[index] != namespaces.NEW)


def _without(*names: str) -> Callable[[Capabilities], Capabilities]:
    mask = 0
    for name in names:
        mask |= BIT[name]
    return lambda value: Capabilities(tuple(one & ~mask for one in value.sets), value.gain)


def _nested(value: Capabilities) -> Capabilities:
    """effective ⊆ permitted ⊆ bounding, ambient ⊆ inheritable ∩ permitted: the kernel refuses anything else."""
    bounding, effective, permitted, inheritable, ambient = value.sets
    permitted &= bounding
    sets = (bounding, effective & permitted, permitted, inheritable, ambient & inheritable & permitted)
    return Capabilities(sets, value.gain)


def _named_or_new(value: Namespaces) -> Namespaces:
    kinds = (namespaces.NEW if kind == namespaces.SHARED else kind for kind in value.kinds)
    return Namespaces(tuple(kinds))


RULES = (
    Rule(
        "no-namespace-named",
        lambda product: True,
        namespaces.NAME,
        _named_or_new,
        "the host's namespace was asked and any container's is allowed, but none was named",
    ),
    Rule(
        "network-lent",
        _not_new("network"),
        capabilities.NAME,
        _without("NET_ADMIN", "NET_RAW"),
        "a network namespace that others use must not be changed or listened to from here",
    ),
    Rule(
        "network-filtered",
        lambda product: not product[network.NAME].open,
        capabilities.NAME,
        _without("NET_ADMIN", "NET_RAW"),
        "whoever may change the filter, or send packets past it, is not filtered",
    ),
    Rule(
        "pid-lent",
        _not_new("pid"),
        capabilities.NAME,
        _without("SYS_PTRACE"),
        "processes of another container are in sight and must not be traced",
    ),
    Rule(
        "ipc-lent",
        _not_new("ipc"),
        capabilities.NAME,
        _without("IPC_OWNER"),
        "message queues and shared memory of another container are in sight",
    ),
    Rule(
        "sets-nested",
        lambda product: True,
        capabilities.NAME,
        _nested,
        "the kernel takes effective only inside permitted, and ambient only inside both others",
    ),
)


def lower(value: Product, ceiling: Product, tops: Product) -> Product:
    """`value` after every rule that applies: below `value`, and unchanged by a second pass."""
    out = dict(value)
    for rule in RULES:
        if ceiling[rule.room] != tops[rule.room] and rule.when(out):
            out[rule.room] = rule.lower(out[rule.room])
    return out
