"""Classic BPF of seccomp: what a program answers. Written from seccomp(2) and bpf(4), for the instructions that
filters use.

`outcomes` splits all numbers of a ABI over the program at once, since most calls are decided by number alone (1 ms for
472 calls; one by one, a linear program takes 100 ms); what reads arguments is left at the instruction where it starts
to, and `run` goes on from there. Nothing is allocated in a step of `run`. Next door: `prove` compares programs.
"""

from __future__ import annotations

import struct

from shim.errors import Bug
from shim.seccomp.vocabulary import ALLOW, ERRNO, KILL_PROCESS, KILL_THREAD, LOG, NOTIFY, TRACE, TRAP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Program = tuple[tuple[int, int, int, int], ...]  # code, jt, jf, k

MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS

LD, LDX_IMM, JA, RET, RET_A, TAX, TXA = 0x20, 0x01, 0x05, 0x06, 0x16, 0x07, 0x87
LD_IMM, LD_MEM, LDX_MEM, ST, STX = 0x00, 0x60, 0x61, 0x02, 0x03
JEQ, JGT, JGE, JSET = 0x15, 0x25, 0x35, 0x45
AND, OR, ADD, SUB, XOR, LSH, RSH = 0x54, 0x44, 0x04, 0x14, 0xA4, 0x64, 0x74
_KNOWN = frozenset((LD, JA, RET, JEQ, JGT, JGE, JSET, AND, OR, LD_IMM))

NR, ARCH, ARGS = 0, 4, 16  # offsets in struct seccomp_data

_SEVERITY = {
    0x80000000: KILL_PROCESS,
    0x00000000: KILL_THREAD,
    0x00030000: TRAP,
    0x00050000: ERRNO,
    0x7FC00000: NOTIFY,
    0x7FF00000: TRACE,
    0x7FFC0000: LOG,
    0x7FFF0000: ALLOW,
}


def severity(answer: int) -> int:
    """The rank of a filter's answer, KILL_PROCESS 0 to ALLOW 7; the kernel takes unknown ones for KILL_PROCESS."""
    return _SEVERITY.get(answer & 0xFFFF0000, KILL_PROCESS)


def decode(data: bytes) -> Program:
    """struct sock_filter[] -> instructions. Bug where one is not among those that seccomp filters use."""
    program = tuple(struct.iter_unpack("=HBBI", data))
    for at, (code, yes, no, k) in enumerate(program):
        target = at + 1 + (k if code == JA else max(yes, no) if code & 7 == 5 else 0)
        if code not in _KNOWN or (code != RET and target >= len(program)):
            raise Bug("seccomp", f"instruction {at}", hex(code), "an instruction of libseccomp", "report this")
    return program


def run(program: Program, start: int, words: Sequence[int]) -> int:
    """The answer for struct seccomp_data as sixteen 32-bit words, from instruction `start` (which loads, or is 0)."""
    at = start
    a = 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == 0x15:  # JEQ, the most frequent
            at += yes if a == k else no
        elif code == 0x20:  # LD
            a = words[k >> 2]
        elif code == 0x35:  # JGE
            at += yes if a >= k else no
        elif code == 0x25:  # JGT
            at += yes if a > k else no
        elif code == 0x54:  # AND
            a &= k
        elif code == 0x06:  # RET
            return k
        elif code == 0x45:  # JSET
            at += yes if a & k else no
        elif code == 0x05:  # JA
            at += k
        elif code == 0x44:  # OR
            a |= k
        else:  # LD_IMM
            a = k


def outcomes(program: Program, arch: int, numbers: set[int]) -> dict[int, int]:
    """For each number of the ABI with token `arch`: the answer as ~answer (negative), or the instruction >= 0 from
    which `run` decides with the arguments.
    """
    out: dict[int, int] = {}
    todo: list[tuple[int, int | None, set[int]]] = [(0, 0, set(numbers))]
    while todo:
        at, a, left = todo.pop()  # a is None while it holds the number
        while left:
            code, yes, no, k = program[at]
            at += 1
            if code == LD:
                if k not in (NR, ARCH):
                    out.update(dict.fromkeys(left, at - 1))
                    break
                a = arch if k == ARCH else None
            elif code == RET:
                out.update(dict.fromkeys(left, ~k))
                break
            elif code == JA:
                at += k
            elif a is not None:
                a, at = _step(code, yes, no, k, a, at)
            else:
                hit = _split(code, k, left)
                if hit:
                    todo.append((at + yes, None, hit))
                at += no
    return out


def words_of(arch: int, number: int, args: Sequence[int]) -> list[int]:
    """struct seccomp_data as 32-bit words, little-endian; the instruction pointer is 0."""
    words = [number & 0xFFFFFFFF, arch, 0, 0]
    for value in args:
        words += (value & 0xFFFFFFFF, value >> 32)
    return words


def constants(program: Program, start: int) -> dict[int, set[tuple[int, int]]]:
    """What is compared from `start` on: offset of the word -> (mask, constant)."""
    out: dict[int, set[tuple[int, int]]] = {}
    seen = set()
    todo = [(start, NR, 0xFFFFFFFF)]
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        at, word, mask = state
        code, yes, no, k = program[at]
        if code == LD:
            todo.append((at + 1, k, 0xFFFFFFFF))
        elif code == AND:
            todo.append((at + 1, word, mask & k))
        elif code == JA:
            todo.append((at + 1 + k, word, mask))
        elif code & 7 == 5:
            out.setdefault(word, set()).add((mask, k))
            todo += ((at + 1 + yes, word, mask), (at + 1 + no, word, mask))
    return out


def _step(code: int, yes: int, no: int, k: int, a: int, at: int) -> tuple[int, int]:
    """One instruction on a known accumulator: the new one, and where to go on."""
    if code in (AND, OR, LD_IMM):
        return (a & k if code == AND else a | k if code == OR else k), at
    hit = a == k if code == JEQ else a > k if code == JGT else a >= k if code == JGE else bool(a & k)
    return a, at + (yes if hit else no)


def _split(code: int, k: int, left: set[int]) -> set[int]:
    """Take out of `left` the numbers for which the jump is taken."""
    if code == JEQ:
        if k not in left:
            return set()
        left.discard(k)
        return {k}
    if code in (JGT, JGE):
        hit = {number for number in left if number >= k + (code == JGT)}
    elif code == JSET:
        hit = {number for number in left if number & k}
    else:
        raise Bug("seccomp", "bpf", hex(code), "a jump on the number", "report this")
    left -= hit
    return hit
