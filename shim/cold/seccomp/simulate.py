"""Programs against programs: is one nowhere more permissive than others?

Asked: every number of every ABI; where arguments matter, all vectors at once by `inclusion`, and besides, as a second
opinion that shares no code with it, some: of the constants that the programs compare, their neighbours, high bits and
random words of a fixed seed. Next door: `bpf` runs a program, `prove` says what must hold.
"""

from __future__ import annotations

import random

from shim.cold.seccomp import bpf, inclusion, libseccomp
from shim.errors import Bug
from shim.seccomp.vocabulary import ERRNO, KILL_THREAD, LOW, NARROW, WIDE

SEED = 20250101
VECTORS = 240  # a call whose arguments matter, and ABI

_ZEROS = (0, 0, 0, 0, 0, 0)
_ENOSYS = 0x00050026
_X32 = 0x40000000
_HIGHS = (0, 1, 0x80000000, 0xFFFFFFFF)
_PLAIN = tuple(range(640))
_EDGES = (0x3FFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# Every ABI that a machine's kernel can run, and one that none can.
_ABIS = {
    "x86_64": {
        0xC000003E: (*_PLAIN, *(_X32 + number for number in _PLAIN), *_EDGES),
        0x40000003: (*_PLAIN, *_EDGES),
        0x4000003E: (0, 1),
        0x5A5A5A5A: (0, 1),
    },
    "aarch64": {
        0xC00000B7: (*_PLAIN, *_EDGES),
        0x40000028: (*_PLAIN, *range(0xF0000, 0xF0010), *_EDGES),
        0x5A5A5A5A: (0, 1),
    },
}


class Looser(Exception):
    """The result is more permissive than a side: ABI token, number, arguments, the arguments as the side was asked
    (cut as the kernel cuts ints, or the same), the two answers, and the side's index; -1 where the ABI is one that the
    result leaves out, whatever the sides say.
    """

    def __init__(
        self, arch: int, number: int, sent: tuple[int, ...], seen: tuple[int, ...], answer: int, bound: int, side: int
    ) -> None:
        super().__init__(arch, number, sent, seen, answer, bound, side)
        self.arch, self.number, self.sent, self.seen = arch, number, sent, seen
        self.answer, self.bound, self.side = answer, bound, side

    def __str__(self) -> str:
        sent = ", ".join(hex(value) for value in self.sent)
        return f"call {self.number} of ABI {self.arch:#x} ({sent}) answers {self.answer:#x}, bound {self.bound:#x}"


class Undecided(Exception):
    """A call whose filters have too many branches to be compared: ABI token, number."""

    def __init__(self, arch: int, number: int) -> None:
        super().__init__(arch, number)
        self.arch, self.number = arch, number

    def __str__(self) -> str:
        return f"call {self.number} of ABI {self.arch:#x}, whose rules have too many branches"


def compare(
    program: bpf.Program,
    sides: list[bpf.Program],
    host: str,
    loaded: frozenset[int],
    seed: int = SEED,
    vectors: int = VECTORS,
    stub: bool = False,
) -> int:
    """The number of probes made. Looser at the first call that `program` treats more gently than one of `sides`;
    Undecided at one of which that cannot be said.

    loaded: tokens of the ABIs that `program` serves. The others it must kill, by thread or process: libseccomp does not
    let a delegate choose, and a kill is as good as the other. stub: runc's own ENOSYS for numbers without a call in
    front of the filter is fine too.
    """
    probes = 0
    chance = random.Random(seed)
    budget = inclusion.Budget(inclusion.STEPS)
    ranks = [inclusion.ranks(each) for each in (program, *sides)]
    for arch, numbers in _ABIS[host].items():
        result = bpf.outcomes(program, arch, set(numbers))
        bounds = [bpf.outcomes(side, arch, set(numbers)) for side in sides]
        for number, outcome in result.items():
            ends = [bound[number] for bound in bounds]
            probes += len(ends)
            if stub and ~outcome == _ENOSYS and (_foreign(arch, number, loaded) or not _called(arch, number)):
                continue
            if _foreign(arch, number, loaded):
                if outcome >= 0 or bpf.severity(~outcome) > KILL_THREAD:
                    raise Looser(arch, number, _ZEROS, _ZEROS, ~outcome, 0, -1)
            elif outcome < 0 and (bpf.severity(~outcome) == 0 or all(end < 0 for end in ends)):
                _fixed(arch, number, outcome, ends)
            elif any(end >= 0 or bpf.severity(~end) < 7 for end in ends):
                every = [(program, outcome), *zip(sides, ends, strict=True)]
                _exactly(arch, number, every, ranks, budget)
                probes += _vectors(arch, number, every, chance, vectors)
    return probes


def _foreign(arch: int, number: int, loaded: frozenset[int]) -> bool:
    """Whether the call belongs to an ABI that the result leaves out; -1, a tracer's skipped call, belongs to none."""
    if abi_of(arch, number) == "SCMP_ARCH_X32" and number != 0xFFFFFFFF:
        return libseccomp.TOKENS["SCMP_ARCH_X32"] not in loaded
    return arch not in loaded


def abi_of(arch: int, number: int) -> str:
    """The ABI of a call: x32 has the token of x86-64 and a bit in the number. '' for one that we do not know."""
    abi = next((name for name, token in libseccomp.TOKENS.items() if token == arch), "")
    return "SCMP_ARCH_X32" if abi == "SCMP_ARCH_X86_64" and number >= _X32 else abi


def _called(arch: int, number: int) -> bool:
    """Whether libseccomp knows a call by that number."""
    return number < _X32 and libseccomp.name(number, abi_of(arch, number)) is not None


def _fixed(arch: int, number: int, outcome: int, ends: list[int]) -> None:
    """All are decided by number, or the result is as hard as can be."""
    mine = bpf.severity(~outcome)
    for side, end in enumerate(ends):
        if end < 0 and mine > bpf.severity(~end):
            raise Looser(arch, number, _ZEROS, _ZEROS, ~outcome, ~end, side)


def _exactly(
    arch: int,
    number: int,
    every: list[tuple[bpf.Program, int]],
    ranks: list[tuple[bytes, bytes]],
    budget: inclusion.Budget,
) -> None:
    """Compare on all argument vectors at once, as `_vectors` does on some."""
    wide = _wide(arch, number)
    highs = frozenset((bpf.ARGS >> 2) + 2 * index + 1 for index in range(6) if index not in wide)
    result, *sides = (inclusion.Side(*one, each) for one, each in zip(every, ranks, strict=True))
    try:
        found = inclusion.gentler(result, sides, number, arch, highs, budget)
    except inclusion.Undecided:
        raise Undecided(arch, number) from None
    if not found:
        return
    words, cut = found
    sent = tuple(words[at] | words[at + 1] << 32 for at in range(bpf.ARGS >> 2, len(words), 2))
    _asked(arch, number, sent, (sent, _cut(sent, wide)) if cut else (sent,), every)
    shown = f"call {number} of ABI {arch:#x} ({', '.join(map(hex, sent))})"
    raise Bug("seccomp", "the comparison of filters", shown, "a vector that tells them apart", "report this")


def _vectors(arch: int, number: int, every: list[tuple[bpf.Program, int]], chance: random.Random, count: int) -> int:
    """Compare on argument vectors; every: (program, outcome), the result first.

    On a 64-bit ABI each side is asked twice: as the vector is, and as the kernel will see it, ints cut to 32 bits:
    what a side would stop if it were asked plainly must not pass with high bits set.
    """
    wide = _wide(arch, number)
    probes = 0
    for sent in vectors_of(every, chance, count):
        cut = _cut(sent, wide)
        probes += _asked(arch, number, sent, (sent, cut) if cut != sent else (sent,), every)
    return probes


def _cut(sent: tuple[int, ...], wide: frozenset[int]) -> tuple[int, ...]:
    """The arguments as the kernel takes them."""
    return tuple(value if index in wide else value & LOW for index, value in enumerate(sent))


def _asked(
    arch: int,
    number: int,
    sent: tuple[int, ...],
    ways: tuple[tuple[int, ...], ...],
    every: list[tuple[bpf.Program, int]],
) -> int:
    """Run one vector: the result as it is `sent`, each side in every way. The number of probes; Looser."""
    probes = 0
    words = bpf.words_of(arch, number, sent)
    mine = answer(*every[0], words)
    rank = bpf.severity(mine)
    for seen in ways if rank > ERRNO else ways[:1]:
        if seen is not sent:
            words = bpf.words_of(arch, number, seen)
        for side, (program, outcome) in enumerate(every[1:]):
            bound = answer(program, outcome, words)
            probes += 1
            if rank > bpf.severity(bound):
                raise Looser(arch, number, sent, seen, mine, bound, side)
    return probes


def _wide(arch: int, number: int) -> frozenset[int]:
    """The arguments of a call that the kernel takes as they are; registers of 32 bits have nothing to cut, x32's do."""
    abi = abi_of(arch, number)
    if abi in NARROW and abi != "SCMP_ARCH_X32":
        return frozenset(range(6))
    call = libseccomp.name(number, abi)
    return frozenset(index for name, index in WIDE if name == call)


def answer(program: bpf.Program, outcome: int, words: list[int]) -> int:
    return ~outcome if outcome < 0 else bpf.run(program, outcome, words)


def vectors_of(every: list[tuple[bpf.Program, int]], chance: random.Random, count: int) -> list[tuple[int, ...]]:
    """About `count` argument vectors that tell the programs apart if anything does; every: the result first.

    First what the sides compare for equality, with all kinds of high halves, in combination; then words near what any
    program compares, beside those; then random combinations.
    """
    words: dict[int, set[int]] = {}
    keys: list[set[int]] = [{0} for _ in range(6)]
    for position, (program, outcome) in enumerate(every):
        if outcome < 0:
            continue
        for offset, pairs in bpf.constants(program, outcome).items():
            words.setdefault(offset, set()).update(value for pair in pairs for value in _near(*pair, chance))
            if position and not offset & 4 and offset >= bpf.ARGS:
                keys[(offset - bpf.ARGS) >> 3].update(constant for _, constant in pairs)
    choices = [_choices(words, index, chance) for index in range(6)]
    exact = [sorted(some) for some in keys]
    out = []
    for index in range(6):
        if len(choices[index]) > 1:
            out += [_beside(exact, index, high << 32 | low, chance) for low in exact[index] for high in _HIGHS]
    if len(out) > 2 * count:
        out = chance.sample(out, 2 * count)
    near = [(index, value) for index in range(6) if len(choices[index]) > 1 for value in choices[index]]
    for index, value in chance.sample(near, min(len(near), count)):
        out.append(_beside(exact, index, value, chance))
    return out + [tuple(chance.choice(some) for some in choices) for _ in range(count // 4)]


def _beside(exact: list[list[int]], index: int, value: int, chance: random.Random) -> tuple[int, ...]:
    """A vector with `value` at `index` and something that the sides look for in the other places."""
    return tuple(value if at == index else chance.choice(some) for at, some in enumerate(exact))


def _near(mask: int, constant: int, chance: random.Random) -> tuple[int, ...]:
    """Words near a comparison: the constant, its neighbours, one bit off inside the mask, other bits outside."""
    outside = ~mask & 0xFFFFFFFF
    inside = constant ^ (mask & -mask)
    return (
        constant,
        (constant - 1) & 0xFFFFFFFF,
        (constant + 1) & 0xFFFFFFFF,
        constant | outside,
        constant | (outside & chance.getrandbits(32)),
        inside,
        inside | (outside & chance.getrandbits(32)),
    )


def _choices(words: dict[int, set[int]], index: int, chance: random.Random) -> list[int]:
    """64-bit candidates for one argument from what is compared of its two halves; [0] where nothing is."""
    offset = bpf.ARGS + 8 * index
    low, high = words.get(offset, set()), words.get(offset + 4, set())
    if not low and not high:
        return [0]
    lows = sorted(low | {0, 1, 0xFFFFFFFF, chance.getrandbits(32)})
    highs = sorted(high | {0, 1, 0x80000000, 0xFFFFFFFF, chance.getrandbits(32)})
    out = list(lows) + [chance.choice(highs) << 32 | value for value in lows]
    return out + [value << 32 | chance.choice(lows) for value in highs]
