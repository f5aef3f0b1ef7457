"""Sets of argument vectors as unions of cubes, closed under intersection and difference.

A cube is a tuple of (argument, mask, value), ascending by argument, at most one an argument, mask not zero and value
inside mask: the vectors whose argument & mask == value for each of them. () is every vector. A set is a tuple of cubes;
they may overlap. Pure arithmetic of 64-bit words. Next door: `words` makes cubes of comparisons and knows the kernel's
ints.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Cube = tuple[tuple[int, int, int], ...]
    Cubes = tuple[Cube, ...]

EVERY: Cubes = ((),)
NONE: Cubes = ()


class TooMany(Exception):
    """A set has outgrown LIMIT cubes, or the budget is used up: the caller rounds towards deny."""


LIMIT = 512
_left = [0]


def budget(steps: int = 200_000) -> None:
    """Allow so many steps from here on (about 1 µs each): a hostile profile must not hold up its host."""
    _left[0] = steps


def _spend(steps: int) -> None:
    _left[0] -= steps
    if _left[0] < 0:
        raise TooMany


def meet_cube(a: Cube, b: Cube) -> Cube | None:
    """a ∩ b, or None where it is empty."""
    if not a or not b:
        return a or b
    out = []
    i = j = 0
    while i < len(a) and j < len(b):
        x, y = a[i], b[j]
        if x[0] < y[0]:
            out.append(x)
            i += 1
        elif y[0] < x[0]:
            out.append(y)
            j += 1
        else:
            if (x[2] ^ y[2]) & x[1] & y[1]:
                return None
            out.append((x[0], x[1] | y[1], x[2] | y[2]))
            i += 1
            j += 1
    return (*out, *a[i:], *b[j:])


def inside(a: Cube, b: Cube) -> bool:
    """a ⊆ b, for single cubes."""
    i = 0
    for index, mask, value in b:
        while i < len(a) and a[i][0] < index:
            i += 1
        if i == len(a) or a[i][0] != index or mask & ~a[i][1] or (a[i][2] ^ value) & mask:
            return False
    return True


def minus_cube(a: Cube, b: Cube) -> Cubes:
    """a − b as disjoint cubes, one for each bit that b fixes and a leaves free."""
    if meet_cube(a, b) is None:
        return (a,)
    out = []
    common = a
    for index, mask, value in b:
        free = mask & ~_mask(common, index)
        while free:
            bit = 1 << (free.bit_length() - 1)
            free ^= bit
            out.append(_fixed(common, index, bit, (value & bit) ^ bit))
            common = _fixed(common, index, bit, value & bit)
    return tuple(out)


def minus(a: Cubes, b: Cubes) -> Cubes:
    """a − b. TooMany where the pieces outgrow LIMIT."""
    for cube in b:
        _spend(len(a))
        pieces: list[Cube] = []
        for one in a:
            pieces.extend(minus_cube(one, cube))
        if len(pieces) > LIMIT:
            raise TooMany
        a = tuple(pieces)
        if not a:
            break
    return a


def covered(cube: Cube, cubes: Iterable[Cube]) -> bool:
    """cube ⊆ the union of `cubes`."""
    near = []
    for one in cubes:
        _spend(1)
        if inside(cube, one):
            return True
        if meet_cube(cube, one) is not None:
            near.append(one)
    if len(near) < 2:
        return False
    return not _escapes(cube, near)


def _escapes(cube: Cube, near: list[Cube]) -> bool:
    """Whether a part of `cube` lies outside all of `near`; depth first, since most that escape do so at once."""
    todo = [(cube, 0)]
    while todo:
        piece, at = todo.pop()
        while at < len(near) and meet_cube(piece, near[at]) is None:
            at += 1
        if at == len(near):
            return True
        pieces = minus_cube(piece, near[at])
        _spend(1 + len(pieces))
        todo += [(one, at + 1) for one in reversed(pieces)]
    return False


def leq(a: Cubes, b: Cubes) -> bool:
    """a ⊆ b. TooMany where the budget does not suffice to say."""
    return a == b or all(covered(cube, b) for cube in a)


def meet(a: Cubes, b: Cubes) -> Cubes:
    """a ∩ b: one of them where it lies in the other, else the products without what is redundant."""
    if leq(a, b):
        return a
    if leq(b, a):
        return b
    _spend(len(a) * len(b))
    return spare({c for x in a for y in b if (c := meet_cube(x, y)) is not None})


def overlap(a: Cubes, b: Cubes) -> bool:
    """Whether a ∩ b is not empty."""
    _spend(len(a) * len(b))
    return any(meet_cube(x, y) is not None for x in a for y in b)


def spare(cubes: Iterable[Cube]) -> Cubes:
    """The same set without cubes that wider ones cover, in canonical order: widest first, then by value."""
    kept: list[Cube] = []
    for cube in sorted(cubes, key=_order):
        if not covered(cube, kept):
            kept.append(cube)
            if len(kept) > LIMIT:
                raise TooMany
    return tuple(kept)


def _mask(cube: Cube, index: int) -> int:
    for one, mask, _ in cube:
        if one == index:
            return mask
    return 0


def _fixed(cube: Cube, index: int, bit: int, value: int) -> Cube:
    """`cube` with one more bit of argument `index` fixed."""
    out = []
    done = False
    for one, mask, old in cube:
        if one == index:
            out.append((one, mask | bit, old | value))
            done = True
        elif one > index and not done:
            out.append((index, bit, value))
            out.append((one, mask, old))
            done = True
        else:
            out.append((one, mask, old))
    if not done:
        out.append((index, bit, value))
    return tuple(out)


def _order(cube: Cube) -> tuple[int, Cube]:
    return sum(mask.bit_count() for _, mask, _ in cube), cube
