"""Programs against programs, over all arguments: is one, for a call, nowhere more permissive than others? Exact.

What a filter asks of arguments are tests of one word each: `word & mask` against a constant. The result's branches are
walked, then a side's with what that branch has settled of the words; where both can be taken by one vector and the side
is harder, that vector is the answer. No constant is left out, however many there are.

Next door: `simulate` says which calls are asked, and runs vectors besides; `bpf` runs a program.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from shim.cold.seccomp import bpf
from shim.seccomp import words
from shim.seccomp.vocabulary import ERRNO, LOW

STEPS = 4_000_000  # of all walks of a pair of programs, about a second a million; engines' profiles take 10,000
_WORDS = 16  # of struct seccomp_data
_CONSTANT = -1  # in place of a word's index

Cubes = tuple[tuple[int, int], ...]  # (mask, value) of one word of 32 bits


class Undecided(Exception):
    """The programs have too many branches to be compared in time, or an instruction that no libseccomp writes."""


class Budget:
    """Steps that are left."""

    __slots__ = ("_left",)

    def __init__(self, steps: int) -> None:
        self._left = steps

    def spend(self, steps: int) -> None:
        """Undecided where so many are not left."""
        self._left -= steps
        if self._left < 0:
            raise Undecided


class Known:
    """What a branch has settled of each word: the bits of it that are fixed, and cubes that it is not in.

    Changed in place, and undone by `mark` and `back`: a branch costs no copy.
    """

    __slots__ = ("_trail", "mask", "outside", "value")

    def __init__(self, number: int, arch: int) -> None:
        self.mask = [LOW, LOW] + [0] * (_WORDS - 2)
        self.value = [number, arch] + [0] * (_WORDS - 2)
        self.outside: list[dict[tuple[int, int], None]] = [{} for _ in range(_WORDS)]  # sets that keep their order
        self._trail: list[tuple[int, int, int, int]] = []

    def mark(self) -> int:
        return len(self._trail)

    def back(self, mark: int) -> None:
        """Forget whatever was learnt since `mark`."""
        while len(self._trail) > mark:
            word, self.mask[word], self.value[word], count = self._trail.pop()
            outside = self.outside[word]
            while len(outside) > count:
                outside.popitem()

    def learn(self, word: int, inside: tuple[int, int] | None, outside: Cubes) -> bool:
        """`word` is in the one cube and in none of the others. False where none is, as far as a quick look tells."""
        mask, value, known = self.mask[word], self.value[word], self.outside[word]
        self._trail.append((word, mask, value, len(known)))
        for one in outside:
            known[one] = None
        if inside:
            mask, value = mask | inside[0], value | inside[1]
        # Where a cube that the word is not in leaves one bit to differ in, it differs there: ranges are made of such.
        todo = iter(known if inside else outside)
        while cube := next(todo, None):
            other, bits = cube
            if (value ^ bits) & mask & other:
                continue
            free = other & ~mask
            if not free:
                return False
            if not free & (free - 1):
                mask, value = mask | free, value | (~bits & free)
                todo = iter(known)
        self.mask[word], self.value[word] = mask, value
        return True

    def says(self, code: int, k: int, word: int, mask: int) -> bool | None:
        """Whether a jump on `word` & mask is taken; None where both can be, as far as a quick look tells."""
        fixed, value = self.mask[word] & mask, self.value[word] & mask
        if code == bpf.JEQ:
            if k & ~mask or (value ^ k) & fixed or (mask, k) in self.outside[word]:
                return False
            return True if fixed == mask else None
        if code == bpf.JSET:
            k &= mask
            if value & k or (k, 0) in self.outside[word]:
                return True
            return False if fixed & k == k else None
        least = k + (code == bpf.JGT)
        if value >= least:
            return True
        return False if value | (mask & ~fixed) < least else None

    def solved(self, budget: Budget) -> list[int] | None:
        """A vector of words that the branch is taken for; None where there is none."""
        found = []
        for mask, value, outside in zip(self.mask, self.value, self.outside, strict=True):
            word = _outside(mask, value, tuple(outside), budget)
            if word is None:
                return None
            found.append(word)
        return found


def _outside(mask: int, value: int, cubes: Cubes, budget: Budget) -> int | None:
    """A word that is in the cube (mask, value) and in none of the others; None where there is none.

    What is left beside one of the others is a piece for each bit that it alone fixes: of all that are in the way, the
    one with the fewest such bits first, or disjoint pieces would be made by the million.
    """
    todo = [(mask, value)]
    while todo:
        mask, value = todo.pop()
        budget.spend(1 + len(cubes) // 8)
        narrow, split, hit = 33, (0, 0), False
        for other, bits in cubes:
            if (value ^ bits) & mask & other:
                continue
            free = other & ~mask
            if not free:
                break
            hit |= value & other == bits
            if free.bit_count() < narrow:
                narrow, split = free.bit_count(), (free, bits)
        else:
            if not hit:
                return value
            free, bits = split
            while free:
                bit = free & -free
                free ^= bit
                todo.append((mask | bit, value | (~bits & bit)))
                mask, value = mask | bit, value | (bits & bit)
    return None


class Side:
    """A program and where it begins to read arguments for a call, or its answer as ~answer; `least` and `most`: the
    ranks of the hardest and the gentlest answer behind each instruction.
    """

    __slots__ = ("least", "most", "outcome", "program")

    def __init__(self, program: bpf.Program, outcome: int, ranks: tuple[bytes, bytes]) -> None:
        self.program = program
        self.outcome = outcome
        self.least, self.most = ranks

    def hardest(self) -> int:
        return bpf.severity(~self.outcome) if self.outcome < 0 else self.least[self.outcome]


def ranks(program: bpf.Program) -> tuple[bytes, bytes]:
    """For each instruction, the ranks of the hardest and of the gentlest answer that may come behind it."""
    least, most = bytearray(len(program)), bytearray(len(program))
    for at in range(len(program) - 1, -1, -1):  # jumps lead forward
        code, yes, no, k = program[at]
        if code == bpf.RET:
            least[at] = most[at] = bpf.severity(k)
        elif code & 7 == 5 and code != bpf.JA:
            one, other = at + 1 + yes, at + 1 + no
            least[at], most[at] = min(least[one], least[other]), max(most[one], most[other])
        else:
            after = at + 1 + (k if code == bpf.JA else 0)
            least[at], most[at] = least[after], most[after]
    return bytes(least), bytes(most)


def gentler(
    result: Side, sides: list[Side], number: int, arch: int, highs: frozenset[int], budget: Budget
) -> tuple[list[int], bool] | None:
    """Words of struct seccomp_data that `result` answers more gently than a side, None where there are none; and
    whether that side was asked with zeros for the words `highs`, which the kernel cuts off. Undecided.
    """
    known = Known(number, arch)
    worst = min(side.hardest() for side in sides)
    for mine in _answers(result, known, worst + 1, True, frozenset(), budget):
        rank = bpf.severity(mine)
        cuts = rank > ERRNO and any(known.mask[word] != LOW or known.value[word] for word in highs)
        for cut in (frozenset(), highs) if cuts else (frozenset(),):
            for side in sides:
                if side.hardest() < rank:
                    for _ in _answers(side, known, rank, False, cut, budget):
                        found = known.solved(budget)
                        if found:
                            return found, bool(cut)
    return None


def _answers(side: Side, known: Known, rank: int, gentle: bool, zeros: frozenset[int], budget: Budget) -> Iterator[int]:
    """Every answer of at least `rank` (gentle), or below it (not), that the program can give to a vector that is as
    `known` says; while it is handed out, `known` tells of the vectors that get it. `zeros`: words that are read as 0.
    """
    if side.outcome < 0:
        yield ~side.outcome
        return
    program, wanted = side.program, _wanted(side.most if gentle else side.least, rank, gentle)
    begin = known.mark()
    at, word, held = side.outcome, _CONSTANT, 0  # held: the accumulator's mask of the word, or its value
    todo: list[tuple[int, int, int, int, tuple[int, int] | None, Cubes]] = []
    steps, alive = 0, True
    while True:
        code, yes, no, k = program[at]
        at += 1
        steps += 1
        if code == bpf.LD:
            word, held = (_CONSTANT, 0) if k >> 2 in zeros else (k >> 2, LOW)
        elif code == bpf.AND:
            held &= k
        elif code == bpf.JA:
            at += k
        elif code == bpf.LD_IMM:
            word, held = _CONSTANT, k
        elif code == bpf.RET:
            yield k
        elif code & 7 != 5:  # OR, which no libseccomp writes behind a load of an argument
            raise Undecided
        else:
            taken = _constant(code, k, held) if word < 0 else known.says(code, k, word, held)
            if taken is None:
                (inside, outside), other = _parted(code, k, held)
                if wanted[at + yes]:
                    todo.append((at + yes, word, held, known.mark(), inside, outside))
                alive = known.learn(word, *other)
                taken = False
            at += yes if taken else no
        while code == bpf.RET or not alive or not wanted[at]:
            budget.spend(1 + steps)
            steps = 0
            if not todo:
                known.back(begin)
                return
            at, word, held, mark, inside, outside = todo.pop()
            known.back(mark)
            code, alive = bpf.LD, known.learn(word, inside, outside)


@lru_cache(1024)
def _wanted(reach: bytes, rank: int, gentle: bool) -> bytes:
    """For each instruction whether an answer of at least `rank` (gentle), or below it, may come behind it."""
    return bytes((there >= rank) == gentle for there in reach)


def _constant(code: int, k: int, held: int) -> bool:
    if code == bpf.JSET:
        return bool(held & k)
    return held == k if code == bpf.JEQ else held >= k + (code == bpf.JGT)


@lru_cache(1024)
def _parted(code: int, k: int, mask: int) -> tuple[tuple[tuple[int, int] | None, Cubes], ...]:
    """What a jump on `word` & mask tells of the word, taken and not taken: the cube that it is in, those that it is
    not in.
    """
    if code == bpf.JEQ:
        return ((mask, k), ()), (None, ((mask, k),))
    if code == bpf.JSET:
        return (None, ((k & mask, 0),)), ((k & mask, 0), ())
    ops = ("LE", "GT") if code == bpf.JGT else ("LT", "GE")
    low, high = (tuple((some & mask, bits) for some, bits in words.compare(op, k, 0) if not bits & ~mask) for op in ops)
    return (None, low), (None, high)
