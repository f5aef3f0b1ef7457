"""asked ∧ ceiling = granted, written as a new spec and checked on the very bytes that will be read. Pure: no IO.

Belongs here: the way of one request through the product. Next door: `kernel` gathered the facts, `bundle` writes.
"""

from __future__ import annotations

from shim import coherence, product, wire
from shim.dim import capabilities, seccomp
from shim.errors import Bug, Refused, ShimError, joined
from shim.lattice import Value, at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.kernel import Facts
    from shim.lattice import Decrease, Spec
    from shim.product import Product

    Admit = Callable[[Any, Any, int], None]  # asked and ceiling profile, capability mask: proves and remembers the meet

FIRST, LAST, AFTER = "createRuntime", "poststart", "poststop"


class Plan(Value):
    """`asked`, `ceiling`, `granted`: product values over `dims`; `spec`: what to write; `data`: its bytes, None if
    nothing changed.
    """

    __slots__ = ("asked", "ceiling", "granted", "spec", "data", "dims")

    def __init__(
        self,
        asked: Product,
        ceiling: Product,
        granted: Product,
        spec: Spec,
        data: bytes | None,
        dims: tuple[Any, ...],
    ) -> None:
        self.asked = asked
        self.ceiling = ceiling
        self.granted = granted
        self.spec = spec
        self.data = data
        self.dims = dims

    def losses(self) -> list[tuple[str, Decrease]]:
        """(dimension, Decrease) of all that was taken. Names system calls one by one: not for a container's start."""
        return product.explain(self.asked, self.ceiling, self.granted, self.dims)


def make(
    asked_spec: Spec,
    ceiling: Product,
    facts: Facts,
    admit: Admit,
    mode: str = "enforce",
    dims: tuple[Any, ...] = product.DIMENSIONS,
    hooks: tuple[dict[str, Any], ...] = (),
) -> Plan:
    """The plan for one spec, or for one process of a running container (`dims` = product.EXEC).

    `mode`: 'enforce' lowers, 'strict' refuses what would be lowered, 'audit' changes nothing. `hooks`: ours, appended
    after all others. Refused where a loss may not be silent; Bug where the bytes are not below asked and ceiling.
    """
    asked = product.from_spec(asked_spec, facts, dims)
    top, granted = granted_of(asked, ceiling, admit, dims)
    if mode == "audit":
        return Plan(asked, top, granted, asked_spec, None, dims)
    refused = product.refusals(asked, granted, dims)
    if mode == "strict":
        refused += _excesses(product.explain(asked, top, granted, dims))
    if refused:
        raise joined(refused)
    out = product.apply_to_spec(asked_spec, granted, facts, dims)
    out = _with_hosts(_with_hooks(out, hooks, facts), facts)
    data = None
    if out is not asked_spec:
        data = wire.dumps(out)
        check(data, asked, top, facts, dims)
    return Plan(asked, top, granted, out, data, dims)


def granted_of(asked: Product, ceiling: Product, admit: Admit, dims: tuple[Any, ...]) -> tuple[Product, Product]:
    """(ceiling, granted): the ceiling with its system calls resolved for the capabilities that are left, and the
    coherent meet of both.
    """
    others = tuple(dim for dim in dims if dim is not seccomp)
    granted = coherence.lower(product.meet(asked, ceiling, others), ceiling, product.TOP) if seccomp in dims else None
    if granted is None:
        return ceiling, product.meet(asked, ceiling, others)
    mask = granted[capabilities.NAME].sets[0] & granted[capabilities.NAME].sets[1]
    top = {**ceiling, seccomp.NAME: seccomp.resolve(ceiling[seccomp.NAME], mask)}
    admit(asked[seccomp.NAME], top[seccomp.NAME], mask)
    granted[seccomp.NAME] = seccomp.meet(asked[seccomp.NAME], top[seccomp.NAME])
    return top, granted


def check(data: bytes, asked: Product, ceiling: Product, facts: Facts, dims: tuple[Any, ...]) -> None:
    """Reads `data` as the delegate will, and requires that it asks no more than `asked` and `ceiling`: else Bug."""
    try:
        # The invocation is not in the bytes: `runc.execute` writes what was granted of it.
        written = product.from_spec(_parsed(data), facts, tuple(dim for dim in dims if dim.KEYS))
    except ShimError as error:
        raise Bug("plan", "spec", str(error), "a spec that we can read", "report this; nothing was run") from error
    for bound, name in ((ceiling, "ceiling"), (asked, "request")):
        wider = [room for room in product.above(written, bound) if room in written]
        if wider:
            shown = ", ".join(wider)
            raise Bug("plan", shown, "more than allowed", f"the {name}", "report this; nothing was run")


def _parsed(data: bytes) -> Spec:
    value = wire.loads(data, "plan", "spec", ours=True)
    return value  # type: ignore[return-value]


def with_last_look(made: Plan, hook: dict[str, Any], facts: Facts) -> Plan:
    """`made` with a poststart hook of ours: runc runs it while the container's init, with its filter, waits to exec."""
    out = {**made.spec, "hooks": {**at(made.spec, "hooks", {}), LAST: [*at(made.spec, "hooks." + LAST, []), hook]}}
    data = wire.dumps(out)
    check(data, made.asked, made.ceiling, facts, made.dims)
    return Plan(made.asked, made.ceiling, made.granted, out, data, made.dims)


def _with_hooks(out: Spec, hooks: tuple[dict[str, Any], ...], facts: Facts) -> Spec:
    """`out` with our hooks last, once, however often it has been through here; without one that is not wanted."""
    before = every = at(out, "hooks", {})
    for kind in (FIRST, LAST, AFTER):
        asked = every.get(kind) or []
        wanted = [one for one in asked if not facts.is_our_hook(one)]
        wanted += [one for one in hooks if kind == (AFTER if facts.is_unlock(one) else FIRST)]
        if wanted != asked:
            every = {**every, kind: wanted}
    return out if every is before else {**out, "hooks": every}


def _with_hosts(out: Spec, facts: Facts) -> Spec:
    """`out` with our /etc/hosts as the last mount, where the container gets one, and no other of ours."""
    asked = out.get("mounts") or []
    wanted = [*(one for one in asked if not facts.is_hosts(one)), *facts.hosts]
    return out if wanted == asked else {**out, "mounts": wanted}


def _excesses(losses: list[tuple[str, Decrease]]) -> list[Refused]:
    return [Refused(room, loss.key_path, loss.asked, loss.granted, f"allow it: {loss.allow}") for room, loss in losses]
