"""The algebra of cubes against sets of vectors written out: two arguments of four bits."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.seccomp import cubes, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.seccomp.cubes import Cube, Cubes

VECTORS = list(itertools.product(range(16), range(16)))
FULL64 = 2**64 - 1


@st.composite
def some_cube(draw: st.DrawFn) -> Cube:
    out = []
    for index in (0, 1):
        mask = draw(st.integers(0, 15))
        if mask:
            out.append((index, mask, draw(st.integers(0, 15)) & mask))
    return tuple(out)


some_cubes = st.lists(some_cube(), max_size=4).map(tuple)


def member(vector: tuple[int, ...], some: Cubes) -> bool:
    return any(all(vector[i] & mask == value for i, mask, value in cube) for cube in some)


@given(some_cubes, some_cubes)
def test_the_operations_are_those_of_sets(a: Cubes, b: Cubes) -> None:
    cubes.budget()
    both, rest, spare = cubes.meet(a, b), cubes.minus(a, b), cubes.spare(a)
    for vector in VECTORS:
        assert member(vector, both) == (member(vector, a) and member(vector, b))
        assert member(vector, rest) == (member(vector, a) and not member(vector, b))
        assert member(vector, spare) == member(vector, a)
    assert cubes.leq(a, b) == all(member(vector, b) for vector in VECTORS if member(vector, a))
    assert cubes.overlap(a, b) == any(member(vector, both) for vector in VECTORS)


@given(some_cubes, some_cubes)
def test_a_meet_with_something_greater_is_the_same_text(a: Cubes, b: Cubes) -> None:
    cubes.budget()
    assert cubes.meet(a, cubes.EVERY) == a
    if cubes.leq(a, b):
        assert cubes.meet(a, b) == a


EDGES = (0, 1, 2, 37, 38, 39, 0x5412, 2**31, 2**32 - 1, 2**32, 2**32 + 38, 2**63, FULL64 - 1, FULL64)
COMPARE = {
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
}


@pytest.mark.parametrize("op", COMPARE)
def test_comparisons_are_those_of_unsigned_64_bit_words(op: str) -> None:
    for value, word in itertools.product(EDGES, EDGES):
        pairs = words.compare(op, value, 0)
        assert any(word & mask == bits for mask, bits in pairs) == COMPARE[op](word, value), (op, value, word)
        assert len(pairs) <= 64


def test_a_masked_comparison_that_can_never_hold_is_empty() -> None:
    assert words.compare("MASKED_EQ", 0xF0, 0x10) == ((0xF0, 0x10),)
    assert words.compare("MASKED_EQ", 0xF0, 0x01) == ()


@given(some_cube(), st.integers(0, FULL64), st.integers(0, FULL64))
def test_rounding_down_is_inside_and_the_kernel_sees_the_same(cube: Cube, first: int, second: int) -> None:
    high = tuple((i, mask | mask << 40, value | value << 40) for i, mask, value in cube)
    for one in (cube, high):
        low = words.low_only(one, None)
        if low is None:
            continue
        for vector in ((first, second), (first & 0xFFFFFFFF, second)):
            if member(vector, (low,)):
                assert member(vector, (one,))
                assert member(tuple(word & 0xFFFFFFFF for word in vector), (low,))


@given(some_cube(), st.integers(0, FULL64), st.integers(0, FULL64))
def test_rounding_up_holds_whatever_the_kernel_cuts_into_it(cube: Cube, first: int, second: int) -> None:
    wide = words.any_high(cube, None)
    assert cubes.inside(cube, wide)
    cut = (first & 0xFFFFFFFF, second & 0xFFFFFFFF)
    if member(cut, (cube,)):
        assert member((first, second), (wide,))


def test_a_denial_of_not_equal_is_one_cube_not_sixty_four() -> None:
    cubes.budget()
    not_one = tuple(((0, mask, value),) for mask, value in words.compare("NE", 1, 0))
    assert cubes.minus(cubes.EVERY, not_one) == (((0, FULL64, 1),),)


def test_work_without_end_is_cut_short() -> None:
    many = tuple(((0, FULL64, n), (1, FULL64, n * 7), (2, FULL64, n * 13)) for n in range(200))
    cubes.budget(20_000)
    with pytest.raises(cubes.TooMany):
        cubes.minus(cubes.EVERY, many)
