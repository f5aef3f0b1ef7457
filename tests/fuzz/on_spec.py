"""spec: check() against models of how runc and crun read the same bytes (readers.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from shim import spec, wire
from shim.errors import Invalid
from tests.fuzz import grow, readers, world
from tests.fuzz.properties import demand, only, target

Check = Callable[[object, str], tuple[dict[str, Any], list[str]]]
SHAPES: tuple[tuple[spec.Object, Check], ...] = (
    (spec.SPEC, spec.check),
    (spec.PROCESS, spec.check_process),
    (spec.RESOURCES, spec.check_resources),
)


def document(r: grow.Reader, hard: bool) -> tuple[Any, int]:
    """A tree and which of SHAPES it should have."""
    which = {5: 1, 6: 2}.get(r.below(8), 0)
    base = r.pick(world.DOCUMENTS[:3] if r.often() else world.DOCUMENTS)
    found = base if which == 0 else base["process"] if which == 1 else base.get("linux", {}).get("resources", {})
    whole = grow.tree(found)
    for _ in range(r.below(6)):
        grow.edit(whole, SHAPES[which][0], r, hard)
    return whole, which


@target
def target_spec(data: bytes) -> None:
    r = grow.Reader(data)
    unknown = "drop" if r.below(4) == 3 else "refuse"
    whole, which = document(r, True)
    shape, check = SHAPES[which]
    text = grow.text(whole).encode("utf-8", "surrogatepass")
    with only(Invalid):
        new, dropped = check(wire.loads(text, "fuzz", "input"), unknown)
    demand(unknown == "drop" or not dropped, "dropped, but was to refuse", dropped)
    demand(check(new, "refuse") == (new, []), "a second look differs", new)
    for name, reader in (("runc", readers.go), ("crun", readers.yajl)):
        try:
            theirs = reader(_plain(text), shape)
        except readers.Fails:
            continue  # it refuses what we take: nothing is run
        demand(theirs == new, f"{name} reads these bytes otherwise", text, theirs, new)


def _plain(data: bytes) -> Any:
    """The tree of strict JSON, its objects as Pairs, so that the models see order and repeated keys."""

    def pairs(items: list[tuple[str, Any]]) -> grow.Pairs:
        return grow.Pairs([key, value] for key, value in items)

    return json.loads(data, object_pairs_hook=pairs)
