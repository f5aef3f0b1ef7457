"""The exact comparison of programs: against every vector, on programs small enough; and plants that samples miss."""

from __future__ import annotations

import itertools
import platform
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.cold.seccomp import bpf, inclusion, libseccomp, loaded_filter, prove, simulate
from shim.cold.seccomp.simulate import Looser
from shim.dim import seccomp
from shim.errors import Bug
from shim.seccomp.profile import Profile
from shim.seccomp.vocabulary import ERRNO
from tests.unit import seccomp_inputs as inputs
from tests.unit.seccomp_inputs import profile, rule

HOST = platform.machine()
x86_64 = pytest.mark.skipif(HOST != "x86_64", reason="LOUD: the tables of this test are those of x86-64")
ANSWERS = (0x7FFF0000, 0x7FFC0000, 0x00050001, 0x80000000)

# --- against every vector

WORDS = (4, 6, 5)  # of struct seccomp_data: the low halves of two arguments, and a high one
HIGH = 5
# Masks and constants have two bits: a word of three can be all that programs tell apart.
EVERY = list(itertools.product(range(8), repeat=len(WORDS)))


def made(chance: random.Random) -> bpf.Program:
    """A load, then loads, masks and jumps forward as they come, then answers."""
    answers = chance.choices(ANSWERS, k=chance.randint(2, 4))
    size = chance.randint(2, 14)
    out = [(bpf.LD, 0, 0, 4 * chance.choice(WORDS))]
    for at in range(1, size):
        left = size + len(answers) - 1 - at
        match chance.randrange(8):
            case 0 | 1:
                out.append((bpf.LD, 0, 0, 4 * chance.choice(WORDS)))
            case 2:
                out.append((bpf.AND, 0, 0, chance.randrange(4)))
            case 3:
                out.append((bpf.JA, 0, 0, chance.randrange(min(left, 2))))
            case _:
                code = chance.choice((bpf.JEQ, bpf.JEQ, bpf.JGT, bpf.JGE, bpf.JSET))
                out.append((code, chance.randrange(left), chance.randrange(min(left, 3)), chance.randrange(4)))
    return (*out, *((bpf.RET, 0, 0, answer) for answer in answers))


def by_high(zero: bpf.Program, other: bpf.Program) -> bpf.Program:
    """One program where the high word is zero, another elsewhere."""
    return ((bpf.LD, 0, 0, 4 * HIGH), (bpf.JEQ, 0, len(zero), 0), *zero, *other)


def words_of(values: tuple[int, ...]) -> list[int]:
    words = [0] * 16
    for word, value in zip(WORDS, values, strict=True):
        words[word] = value
    return words


def looser(one: bpf.Program, two: bpf.Program, values: tuple[int, ...], cut: bool) -> bool:
    """Whether `one` is gentler with these words than `two` is, or, above ERRNO, than `two` is without the high one."""
    words = words_of(values)
    mine = bpf.severity(bpf.run(one, 0, words))
    if cut and mine > ERRNO:
        words[HIGH] = 0
    return mine > bpf.severity(bpf.run(two, 0, words))


@pytest.mark.parametrize("cut", [False, True])
def test_it_finds_a_vector_where_there_is_one_and_only_there(cut: bool) -> None:
    highs = frozenset((HIGH,)) if cut else frozenset()
    counts = {True: 0, False: 0, "only if cut": 0}
    for seed in range(1500):
        chance = random.Random(seed)
        one, two = made(chance), made(chance)
        if not seed % 4:  # then no vector tells them apart but one with high bits, as the kernel cuts it
            one, two = by_high(((bpf.RET, 0, 0, 0x80000000),), one), by_high(two, ((bpf.RET, 0, 0, 0x7FFF0000),))
        sides = [inclusion.Side(program, 0, inclusion.ranks(program)) for program in (one, two)]
        found = inclusion.gentler(sides[0], sides[1:], 0, 0, highs, inclusion.Budget(10**6))
        plain = any(looser(one, two, values, False) for values in EVERY)
        there = plain or (cut and any(looser(one, two, values, True) for values in EVERY))
        assert bool(found) == there, seed
        if found:
            words, zeros = found
            assert looser(one, two, tuple(words[word] for word in WORDS), zeros), seed
        counts[there] += 1
        counts["only if cut"] += there and not plain
    assert min(counts[True], counts[False]) > 300 and (counts["only if cut"] > 100) == cut, counts


cubes = st.tuples(st.integers(0, 31), st.integers(0, 31)).map(lambda cube: (cube[0], cube[0] & cube[1]))


@given(cubes, st.lists(cubes, max_size=12))
def test_a_word_inside_one_cube_and_outside_of_others(inside: tuple[int, int], outside: list[tuple[int, int]]) -> None:
    def fits(word: int) -> bool:
        return word & inside[0] == inside[1] and not any(word & mask == value for mask, value in outside)

    found = inclusion._outside(*inside, tuple(outside), inclusion.Budget(10**6))
    assert (found is None) == (not any(map(fits, range(32))))
    assert found is None or fits(found)


# --- plants: what a sample of a filter's constants does not see


Plant = tuple[Profile, Profile, Profile]


def pairs(values: list[tuple[int, int]]) -> Profile:
    """The sockets of these families and protocols, each pair alone."""
    rules = [rule("socket", "ALLOW", (0, "EQ", family), (2, "EQ", protocol)) for family, protocol in values]
    return profile("ERRNO", rule("read write openat", "ALLOW"), *rules)


def denials(values: list[int], high: bool) -> Profile:
    """All sockets but of these families; `high`: whatever the high bits are, as a meet has them."""
    how = [(0, "MASKED_EQ", 2**32 - 1, value) if high else (0, "EQ", value) for value in values]
    return profile("ALLOW", *(rule("socket", "ERRNO", one) for one in how))


def one_pair_more(n: int, chance: random.Random) -> Plant:
    """(side, a right result, a loose one): the family of one pair beside the protocol of another."""
    right = [(k, 11 * k + 5) for k in range(n)]
    one, other = chance.sample(right, 2)
    return pairs(right), pairs(right), pairs([*right, (one[0], other[1])])


def one_denial_less(n: int, chance: random.Random) -> Plant:
    right = [17 * k + 3 for k in range(n)]
    left = chance.sample(right, n - 1)
    return denials(right, False), denials(right, True), denials(left, True)


def compared(side: Profile, result: Profile, level: int) -> int:
    program, bound = prove.compiled([result, side], HOST, level)
    return simulate.compare(program, [bound], HOST, prove.tokens(result, HOST))


@x86_64
@pytest.mark.parametrize("n", [3, 5, 10, 50, 200])
@pytest.mark.parametrize("plant", [one_pair_more, one_denial_less])
def test_one_rule_among_many(plant: object, n: int) -> None:
    """Each of ten plants, at both levels; and the right result passes."""
    assert callable(plant)
    for seed, level in itertools.product(range(10), (1, 2)):
        side, right, loose = plant(n, random.Random(seed))
        with pytest.raises(Looser):
            compared(side, loose, level)
        if not seed:
            assert compared(side, right, level) > 1000


@x86_64
@pytest.mark.parametrize("n", [3, 5, 10, 50, 200])
@pytest.mark.parametrize("plant", [one_pair_more, one_denial_less])
def test_a_meet_with_such_a_plant_is_refused(plant: object, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(plant)
    side, _, loose = plant(n, random.Random(n))
    monkeypatch.setattr(seccomp, "meet", lambda a, b: Profile(loose.raw))
    for sides in ((side, profile("ALLOW", rule("bpf", "ERRNO"))), (seccomp.TOP, side)):
        with pytest.raises(Bug, match="no looser than either side"):
            prove.granted(*sides)


# --- where it would take too long


@x86_64
def test_what_cannot_be_compared_in_time_is_denied_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    right = [(k, 11 * k + 5) for k in range(40)]
    asked, ceiling = pairs(right), profile("ERRNO", rule("read socket", "ALLOW"))
    assert prove.granted(asked, ceiling)[1]["dropped"] == {}
    monkeypatch.setattr(inclusion, "STEPS", 100)
    result, record = prove.granted(Profile(asked.raw), ceiling)
    assert record["dropped"] == {"socket": prove.UNDECIDED} and result.proof == record
    assert result.model.calls["read"][1] and "socket" not in str(result.raw)
    programs = prove.compiled([asked], HOST, 1)
    with pytest.raises(Bug, match="too many branches"):
        loaded_filter._compared(programs, programs, asked, asked, HOST)


@x86_64
def test_what_stays_undecided_when_denied_is_killed() -> None:
    raw = profile("ERRNO", rule("read socket", "ALLOW")).raw
    dropped: dict[str, str] = {}
    found = simulate.Undecided(libseccomp.TOKENS[inputs.NATIVE], 41)
    once = prove._undecided(Profile(raw), found, dropped)
    twice = prove._undecided(once, found, dropped)
    assert dropped == {"socket": prove.UNDECIDED}
    assert once.raw == {**(raw or {}), "syscalls": [rule("read", "ALLOW")]}
    assert twice.raw == {**(raw or {}), "syscalls": [rule("read", "ALLOW"), rule("socket", "KILL_PROCESS")]}
    with pytest.raises(Bug, match="can be proved"):
        prove._undecided(once, simulate.Undecided(found.arch, 639), dropped)


def test_an_instruction_that_it_does_not_follow_is_no_answer() -> None:
    program = ((bpf.LD, 0, 0, 16), (bpf.OR, 0, 0, 1), (bpf.JEQ, 0, 1, 1), *((bpf.RET, 0, 0, k) for k in ANSWERS[:2]))
    side = inclusion.Side(program, 0, inclusion.ranks(program))
    hard = inclusion.Side(((bpf.RET, 0, 0, 0),), ~0, (b"\0", b"\0"))
    with pytest.raises(inclusion.Undecided):
        inclusion.gentler(side, [hard], 0, 0, frozenset(), inclusion.Budget(100))


@x86_64
def test_a_vector_that_tells_nothing_apart_is_a_bug_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it finds is run through both programs; never refused, and never granted, on its word alone."""
    monkeypatch.setattr(inclusion, "gentler", lambda *_: ([0] * 16, False))
    side = pairs([(1, 2)])
    with pytest.raises(Bug, match="a vector that tells them apart"):
        compared(side, Profile(side.raw), 1)


@x86_64
def test_engines_profiles_take_a_small_part_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ceiling = inputs.by_ranges(), inputs.by_exceptions()
    monkeypatch.setattr(inclusion, "STEPS", inclusion.STEPS // 100)
    assert prove.granted(asked, ceiling)[1]["dropped"] == {}
    assert libseccomp.version() >= (2, 5, 0)
