"""The proof of a meet: the compiled result lets nothing through that either compiled side stops.

Both sides and the result are compiled with the machine's libseccomp as a delegate does, and simulated: every number of
every ABI, and where arguments matter, vectors of the constants that the programs compare, their neighbours, high bits and
random words with a fixed seed. Looser anywhere: Bug, and the container is not started.

`granted` is what a cache miss pays (100 ms); it also lowers a meet that would outgrow a filter, and says so.
"""

from __future__ import annotations

import random
from typing import Any

from shim.cold import bpf, libseccomp
from shim.dim import seccomp
from shim.errors import Bug, Refused
from shim.seccomp import emit
from shim.seccomp.profile import Profile, machine
from shim.seccomp.vocabulary import ACTION_NAMES, ACTIONS, ALLOW, KILL_THREAD, LOW, NARROW, NATIVE, WIDE

SEED = 20250101
VECTORS = 240  # a call whose arguments matter, and ABI
# Room for what a delegate puts in front: runc's ENOSYS stub has about ten instructions an ABI.
MOST_INSTRUCTIONS = bpf.MOST_INSTRUCTIONS - 96

_MOST_LOWERED = 8  # calls: beyond, a profile is not worth saving
_ZEROS = (0, 0, 0, 0, 0, 0)
_X32 = 0x40000000
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
    (cut as the kernel cuts ints, or the same), and the two answers.
    """

    def __init__(
        self, arch: int, number: int, sent: tuple[int, ...], seen: tuple[int, ...], answer: int, bound: int
    ) -> None:
        super().__init__(arch, number, sent, seen, answer, bound)
        self.arch, self.number, self.sent, self.seen, self.answer, self.bound = arch, number, sent, seen, answer, bound

    def __str__(self) -> str:
        sent = ", ".join(hex(value) for value in self.sent)
        return f"call {self.number} of ABI {self.arch:#x} ({sent}) answers {self.answer:#x}, bound {self.bound:#x}"


def granted(asked: Profile, ceiling: Profile, optimize: tuple[int, ...] = (2,)) -> tuple[Profile, dict[str, Any]]:
    """meet(asked, ceiling), proved, and the record of the proof (libseccomp, instructions, probes, dropped calls).

    optimize: libseccomp's levels that the delegate may use, 1 (crun) and 2 (runc). Bug where the proof fails; Refused
    where no filter small enough is left.
    """
    result = seccomp.meet(asked, ceiling)
    if result.is_top:
        return result, {}
    host = machine()
    sides = [side for side in (asked, ceiling) if not side.is_top]
    record: dict[str, Any] = {"libseccomp": "%d.%d.%d" % libseccomp.version(), "dropped": []}
    while True:
        programs = [compiled([result, *sides], host, level) for level in optimize]
        record["instructions"] = max(len(program) for program, *_ in programs)
        if record["instructions"] > MOST_INSTRUCTIONS:
            result = narrowed(result, record["dropped"])
            continue
        try:
            loaded = tokens(result, host)
            record["probes"] = sum(compare(program, others, host, loaded) for program, *others in programs)
        except Looser as found:
            result = _lowered(result, sides, found, host, record["dropped"])
            continue
        return result, record


def _lowered(result: Profile, sides: list[Profile], found: Looser, host: str, dropped: list[str]) -> Profile:
    """`result` with one call denied, where libseccomp gave a side's JSON a harder filter than any reading of it has.

    libseccomp 2.5.4 does so where conditions on one argument have several actions ("TRAP if > 2^63, KILL if < 181" traps
    2^31 + 1), and for some small profiles of several ABIs. Bug for any other difference: that one is ours.
    """
    abi = next((arch for arch, token in libseccomp.TOKENS.items() if token == found.arch), "")
    call = libseccomp.name(found.number, abi)
    if call is None or len(dropped) > _MOST_LOWERED or not any(_misread(side, found, host) for side in sides):
        raise Bug("seccomp", "linux.seccomp", str(found), "no looser than either side", "report this") from found
    if call not in dropped:
        dropped.append(call)
    assert result.raw is not None
    default = ACTIONS[result.raw["defaultAction"]]
    mine = [ACTIONS[rule["action"]] for rule in result.raw["syscalls"] if call in rule["names"]]
    least = min(*mine, bpf.severity(found.bound), default)
    rules = []
    for rule in result.raw["syscalls"]:
        left = [name for name in rule["names"] if name != call]
        if left:
            rules.append({**rule, "names": left})
    if least < default:
        rules.append({"names": [call], "action": ACTION_NAMES[least]})
    return Profile({**result.raw, "syscalls": rules})


def _misread(side: Profile, found: Looser, host: str) -> bool:
    """Whether the filter of `side` answers the vector more harshly than that of its own meaning does."""
    meaning = Profile({**emit.emit(side.model, host), "architectures": [NATIVE[host]]})
    answers = []
    for profile in (meaning, side):
        (program,) = compiled([profile], host, 1)
        answers.append(bpf.severity(bpf.run(program, 0, bpf.words_of(found.arch, found.number, found.seen))))
    return answers[0] > answers[1]


def compiled(profiles: list[Profile], host: str, optimize: int) -> list[bpf.Program]:
    """The programs that a delegate loads for `profiles` (not TOP)."""
    jobs = [(profile.raw, optimize) for profile in profiles if profile.raw is not None]
    return [bpf.decode(data) for data in libseccomp.compiled(jobs, host)]


def narrowed(result: Profile, dropped: list[str]) -> Profile:
    """`result` with the conditions of its widest call gone, which is then denied and added to `dropped`."""
    assert result.raw is not None
    widths: dict[str, int] = {}
    for rule in result.raw["syscalls"]:
        if rule.get("args"):
            widths[rule["names"][0]] = widths.get(rule["names"][0], 0) + len(rule["args"])
    if not widths:
        asked = f"more than {MOST_INSTRUCTIONS} instructions"
        raise Refused("seccomp", "linux.seccomp", asked, bpf.MOST_INSTRUCTIONS, "ask for a smaller profile")
    widest = max(sorted(widths), key=lambda name: widths[name])
    dropped.append(widest)
    return Profile(_without_conditions(result.raw, widest))


def _without_conditions(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """`raw` with one call denied for all arguments, as hard as it was for any."""
    parted = [rule for rule in raw["syscalls"] if rule.get("args") and name in rule["names"]]
    least = min((ACTIONS[rule["action"]] for rule in parted), default=ALLOW)
    rules = [rule for rule in raw["syscalls"] if rule not in parted]
    if least < ACTIONS[raw["defaultAction"]]:
        rules.append({"names": [name], "action": ACTION_NAMES[least]})
    return {**raw, "syscalls": rules}


def compare(
    program: bpf.Program,
    sides: list[bpf.Program],
    host: str,
    loaded: frozenset[int],
    seed: int = SEED,
    vectors: int = VECTORS,
) -> int:
    """The number of probes made. Looser at the first call that `program` treats more gently than one of `sides`.

    loaded: tokens of the ABIs that `program` serves. The others it must kill, by thread or process: libseccomp does not
    let a delegate choose, and a kill is as good as the other.
    """
    probes = 0
    chance = random.Random(seed)
    for arch, numbers in _ABIS[host].items():
        result = bpf.outcomes(program, arch, set(numbers))
        bounds = [bpf.outcomes(side, arch, set(numbers)) for side in sides]
        for number, outcome in result.items():
            ends = [bound[number] for bound in bounds]
            probes += len(ends)
            if _foreign(arch, number, loaded):
                if outcome >= 0 or bpf.severity(~outcome) > KILL_THREAD:
                    raise Looser(arch, number, _ZEROS, _ZEROS, ~outcome, 0)
            elif outcome < 0 and (bpf.severity(~outcome) == 0 or all(end < 0 for end in ends)):
                _fixed(arch, number, outcome, ends)
            elif any(end >= 0 or bpf.severity(~end) < 7 for end in ends):
                every = [(program, outcome), *zip(sides, ends, strict=True)]
                probes += _vectors(arch, number, every, chance, vectors)
    return probes


def _foreign(arch: int, number: int, loaded: frozenset[int]) -> bool:
    """Whether the call belongs to an ABI that the result leaves out; -1, a tracer's skipped call, belongs to none."""
    x32 = number & _X32 and arch == libseccomp.TOKENS["SCMP_ARCH_X86_64"]
    if x32 and number != 0xFFFFFFFF:
        return libseccomp.TOKENS["SCMP_ARCH_X32"] not in loaded
    return arch not in loaded


def _fixed(arch: int, number: int, outcome: int, ends: list[int]) -> None:
    """All are decided by number, or the result is as hard as can be."""
    mine = bpf.severity(~outcome)
    for end in ends:
        if end < 0 and mine > bpf.severity(~end):
            raise Looser(arch, number, _ZEROS, _ZEROS, ~outcome, ~end)


def _vectors(arch: int, number: int, every: list[tuple[bpf.Program, int]], chance: random.Random, count: int) -> int:
    """Compare on argument vectors; every: (program, outcome), the result first.

    On a 64-bit ABI each side is asked twice: as the vector is, and as the kernel will see it, ints cut to 32 bits: what a
    side would stop if it were asked plainly must not pass with high bits set.
    """
    wide = _wide(arch, number)
    probes = 0
    for sent in vectors_of(every, chance, count):
        words = bpf.words_of(arch, number, sent)
        mine = answer(*every[0], words)
        rank = bpf.severity(mine)
        cut = tuple(value if index in wide else value & LOW for index, value in enumerate(sent))
        for seen in (sent,) if cut == sent else (sent, cut):
            if seen is cut:
                words = bpf.words_of(arch, number, cut)
            for program, outcome in every[1:]:
                bound = answer(program, outcome, words)
                probes += 1
                if rank > bpf.severity(bound):
                    raise Looser(arch, number, sent, seen, mine, bound)
    return probes


def _wide(arch: int, number: int) -> frozenset[int]:
    """The arguments of a call that the kernel takes as they are; on ABIs of 32 bits there is nothing to cut."""
    abi = next((name for name, token in libseccomp.TOKENS.items() if token == arch), "")
    if abi in NARROW or number & _X32:
        return frozenset(range(6))
    call = libseccomp.name(number, abi)
    return frozenset(index for name, index in WIDE if name == call)


def answer(program: bpf.Program, outcome: int, words: list[int]) -> int:
    return ~outcome if outcome < 0 else bpf.run(program, outcome, words)


def vectors_of(every: list[tuple[bpf.Program, int]], chance: random.Random, count: int) -> list[tuple[int, ...]]:
    """At most about `count` argument vectors that tell the programs apart if anything does.

    Each candidate of each argument is tried twice at least: beside constants of the others, and beside random ones.
    """
    words: dict[int, set[int]] = {}
    for program, outcome in every:
        if outcome >= 0:
            for offset, pairs in bpf.constants(program, outcome).items():
                words.setdefault(offset, set()).update(value for pair in pairs for value in _near(*pair, chance))
    choices = [_choices(words, index, chance) for index in range(6)]
    live = [index for index in range(6) if len(choices[index]) > 1]
    out = []
    for index in live:
        for value in choices[index]:
            for _ in range(2):
                vector = [chance.choice(some) for some in choices]
                vector[index] = value
                out.append(tuple(vector))
    if len(out) > count:
        out = chance.sample(out, count // 2)
    out += [tuple(chance.choice(some) for some in choices) for _ in range(max(count // 4, count - len(out)) // 2)]
    return out


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
    out = [value for value in lows] + [chance.choice(highs) << 32 | value for value in lows]
    return out + [value << 32 | chance.choice(lows) for value in highs]


def tokens(profile: Profile, host: str) -> frozenset[int]:
    """The ABIs that a delegate loads `profile` for, as audit tokens."""
    assert profile.raw is not None
    archs = {NATIVE[host], *(profile.raw.get("architectures") or ())}
    return frozenset(token for arch, token in libseccomp.TOKENS.items() if arch in archs)
