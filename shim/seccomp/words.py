"""Comparisons of 64-bit words as cubes, and what is left of them where the kernel takes an argument for an int.

The kernel cuts an int argument to its low 32 bits; the filter sees all 64. Rounding makes both see the same. Next door:
`cubes` is the algebra, `reading` decides when to round which way.
"""

from __future__ import annotations

from shim.seccomp.vocabulary import FULL64, LOW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.seccomp.cubes import Cube, Cubes


def low_only(cube: Cube, wide: frozenset[int] | None) -> Cube | None:
    """The part of `cube` that means the same when the kernel cuts its int arguments to 32 bits; None if nothing does.

    wide: the arguments of 64 bits, which are left alone. An int stays where its high half is not looked at, and is
    required to be zero where it is.
    """
    out = []
    for index, mask, value in cube:
        if mask > LOW and not (wide and index in wide):
            if value > LOW:
                return None
            mask |= FULL64 ^ LOW
        out.append((index, mask, value))
    return tuple(out)


def tight(cubes: Cubes) -> Cubes:
    """The part of a set whose compared words have a high half of zero, where only the low one was looked at."""
    high = FULL64 ^ LOW
    return tuple(tuple((i, mask | high if mask <= LOW else mask, v) for i, mask, v in cube) for cube in cubes)


def any_high(cube: Cube, wide: frozenset[int] | None) -> Cube:
    """`cube` widened to all vectors that the kernel cuts to one inside it."""
    out = []
    for index, mask, value in cube:
        if mask > LOW and value <= LOW and not (wide and index in wide):
            mask &= LOW
            if not mask:
                continue
        out.append((index, mask, value))
    return tuple(out)


def compare(op: str, value: int, two: int) -> tuple[tuple[int, int], ...]:
    """The (mask, value) pairs whose union is `argument op value`, on 64 bits without sign; op without SCMP_CMP_."""
    if op == "EQ":
        return ((FULL64, value),)
    if op == "MASKED_EQ":
        return ((value, two),) if not two & ~value else ()
    if op == "LT":
        return _below(value)
    if op == "LE":
        return _below(value + 1)
    if op == "GT":
        return _above(value)
    if op == "GE":
        return _above(value - 1) if value else ((0, 0),)
    return _below(value) + _above(value)


def _below(value: int) -> tuple[tuple[int, int], ...]:
    """All words < value: a prefix for each bit set in it."""
    if value > FULL64:
        return ((0, 0),)
    return tuple((FULL64 ^ ((1 << b) - 1), (value ^ (1 << b)) >> b << b) for b in range(63, -1, -1) if value >> b & 1)


def _above(value: int) -> tuple[tuple[int, int], ...]:
    """All words > value: a prefix for each bit clear in it."""
    return tuple(
        (FULL64 ^ ((1 << b) - 1), (value | (1 << b)) >> b << b) for b in range(63, -1, -1) if not value >> b & 1
    )
