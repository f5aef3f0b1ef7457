"""How the delegates read JSON, as models of their own: an oracle that shares nothing with `wire` and `spec` but names.

`go`: encoding/json of Go 1.19 into structs, as runc 1.1.5: keys under any case, the last of a repeated one, a wrong
type is an error. `yajl`: libocispec's generated readers, as crun 1.8.1: exact keys, the first of a repeated one, a
wrong type is as absent, strings end at U+0000. Both were held against the real programs (test_delegates.py).
The value that both give for a tree of `grow` has no nulls in objects and no unknown keys, as that of spec.check.
"""

from __future__ import annotations

from typing import Any

from shim import spec
from tests.fuzz.grow import Pairs, Raw

KELVIN_AND_LONG_S = str.maketrans({"\u212a": "k", "\u017f": "s"})


class Fails(Exception):
    """The delegate refuses the document."""


def _folded(key: str) -> str:
    return key.translate(KELVIN_AND_LONG_S).lower()


def go(value: Any, shape: Any) -> Any:
    """What runc makes of a tree; Fails where it stops."""
    if isinstance(value, Raw):
        raise Fails
    if isinstance(shape, spec.Object):
        if not isinstance(value, Pairs):
            raise Fails
        out: dict[str, Any] = {}
        for key, inner in value:
            name = key if key in shape.fields else next((n for n in shape.fields if _folded(n) == _folded(key)), None)
            if name is not None and inner is not None:
                out[name] = go(inner, shape.fields[name])
        return out
    if isinstance(shape, spec.Map):
        if not isinstance(value, Pairs):
            raise Fails
        return {key: go(inner, shape.inner) for key, inner in value}
    if isinstance(shape, spec.List):
        if not isinstance(value, list) or isinstance(value, Pairs):
            raise Fails
        return [go(inner, shape.inner) for inner in value]
    if isinstance(shape, tuple):
        if type(value) is not int or not shape[0] <= value <= shape[1]:
            raise Fails
        return value
    if isinstance(shape, spec.Platform):
        return value
    if type(value) is not shape:
        raise Fails
    return value


def yajl(value: Any, shape: Any) -> Any:
    """What crun makes of a tree; Fails where it stops. _ABSENT for what it does not see."""
    if isinstance(value, Raw):
        raise Fails
    if isinstance(shape, spec.Object):
        if not isinstance(value, Pairs):
            return _ABSENT
        out: dict[str, Any] = {}
        for key, inner in value:
            name = key.partition("\0")[0]
            if name in shape.fields and name not in out and inner is not None:
                out[name] = yajl(inner, shape.fields[name])
        return {key: inner for key, inner in out.items() if inner is not _ABSENT}
    if isinstance(shape, spec.Map):
        if not isinstance(value, Pairs):
            return _ABSENT
        return {key.partition("\0")[0]: yajl(inner, shape.inner) for key, inner in value}
    if isinstance(shape, spec.List):
        if not isinstance(value, list) or isinstance(value, Pairs):
            return _ABSENT
        return [yajl(inner, shape.inner) for inner in value]
    if isinstance(shape, tuple):
        if type(value) is not int:
            return _ABSENT
        if not shape[0] <= value <= shape[1]:
            raise Fails
        return value
    if isinstance(shape, spec.Platform):
        return value
    if type(value) is not shape:
        return _ABSENT
    return value.partition("\0")[0] if isinstance(value, str) else value


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


_ABSENT = _Absent()
