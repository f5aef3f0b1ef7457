"""wire: loads() against the json package as an oracle; what it takes, dumps() gives back."""

from __future__ import annotations

import json
import math
from typing import Any

from shim import spec, wire
from shim.errors import Invalid
from tests.fuzz import grow, world
from tests.fuzz.properties import Over, demand, only, target


def strict(data: bytes) -> Any:
    """What wire.loads should give, made with the json package; ValueError where it should not."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) != len(items):
            raise ValueError("repeated key")
        return dict(items)

    def integer(digits: str) -> int:
        if digits == "-0" or len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
            raise ValueError("integer")
        return int(digits)

    def number(digits: str) -> float:
        if not math.isfinite(float(digits)):
            raise ValueError("float")
        return float(digits)

    def constant(name: str) -> float:
        raise ValueError(name)

    how = {"object_pairs_hook": pairs, "parse_int": integer, "parse_float": number, "parse_constant": constant}
    value = json.JSONDecoder(**how).decode(data.decode())  # type: ignore[arg-type]
    _walk(value, 0)
    return value


def _walk(value: Any, depth: int) -> None:
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
        raise ValueError("string")
    if isinstance(value, list | dict):
        if depth == 128:
            raise ValueError("depth")
        for inner in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            _walk(inner, depth + 1)


@target
def target_wire(data: bytes) -> None:
    if data[:1] == b"\1":  # a tree, damaged; else the bytes as they are
        r = grow.Reader(data[1:])
        whole = grow.tree(r.pick(world.DOCUMENTS[:3]))
        for _ in range(1 + r.below(4)):
            grow.edit(whole, spec.SPEC, r, True)
        data = grow.text(whole).encode("utf-8", "surrogatepass")
    try:
        wanted, fine = strict(data), True
    except (ValueError, RecursionError):
        wanted, fine = None, False
    try:
        with only(Invalid):
            got = wire.loads(data, "fuzz", "input")
    except Over:
        demand(not fine, "refused what is strict JSON", data)
        return
    demand(fine, "took what is no strict JSON", data)
    demand(json.dumps(got) == json.dumps(wanted), "another value", got, wanted)
    again = wire.dumps(got)
    demand(again.isascii() and wire.loads(again, "fuzz", "again", ours=True) == got, "no round trip", again)
