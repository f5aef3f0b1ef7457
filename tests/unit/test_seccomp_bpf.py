"""The interpreter against a slow one, our compilation against pyseccomp's, and the table of names."""

from __future__ import annotations

import os
import platform
import random
import struct
import tempfile

import pytest

from shim.cold.seccomp import bpf, libseccomp, simulate
from shim.errors import Bug, Invalid
from shim.seccomp import names
from tests.unit import seccomp_inputs as inputs
from tests.unit.seccomp_inputs import profile, rule

X86_64 = libseccomp.TOKENS[inputs.NATIVE]
HOST = platform.machine()
pytestmark = pytest.mark.skipif(HOST != "x86_64", reason="LOUD: numbers and tokens here are those of x86-64")


def slow(data: bytes, arch: int, number: int, args: tuple[int, ...]) -> int:
    """A filter run on struct seccomp_data byte by byte, as bpf(4) describes it, sharing no code with ours."""
    memory = struct.pack("=IIQ6Q", number, arch, 0, *args)
    a, pc = 0, 0
    while True:
        code, jt, jf, k = struct.unpack_from("=HBBI", data, 8 * pc)
        pc += 1
        kind = code & 0x07
        if kind == 0x00:
            a = struct.unpack_from("=I", memory, k)[0] if code & 0xE0 == 0x20 else k
        elif kind == 0x04:
            a = {0x50: a & k, 0x40: a | k}[code & 0xF0]
        elif kind == 0x06:
            return int(k)
        elif code & 0xF0 == 0x00:
            pc += k
        else:
            taken = {0x10: a == k, 0x20: a > k, 0x30: a >= k, 0x40: bool(a & k)}[code & 0xF0]
            pc += jt if taken else jf


PROFILES = {
    "moby": inputs.moby,
    "containers-common": inputs.containers_common,
    "agent": lambda: inputs.ours("agent"),
    "ranges": lambda: inputs.RANGES,
    "clone": lambda: inputs.NO_NAMESPACES,
    "unix": lambda: inputs.UNIX_ONLY,
}


@pytest.mark.parametrize("optimize", [1, 2])
@pytest.mark.parametrize("name", PROFILES)
def test_the_interpreter_agrees_with_a_slow_one(name: str, optimize: int) -> None:
    raw = PROFILES[name]().raw  # type: ignore[no-untyped-call]
    assert raw is not None
    data = libseccomp.compile(raw, HOST, optimize)
    program = bpf.decode(data)
    chance = random.Random(5)
    numbers = {*range(480), 0x40000000, 0x40000029, 2**32 - 1}
    for arch in (X86_64, 0x40000003, 0x1234):
        outcomes = bpf.outcomes(program, arch, numbers)
        for number in numbers:
            for args in [(chance.choice((0, 1, 2, 16, 38, 39, 2**32, 2**32 + 1, chance.getrandbits(64))),) * 6] * 2:
                expected = slow(data, arch, number, args)
                words = bpf.words_of(arch, number, args)
                assert bpf.run(program, 0, words) == expected
                assert simulate.answer(program, outcomes[number], words) == expected


def test_what_the_kernel_cuts_is_asked_again_where_registers_hold_64_bits() -> None:
    socket, mmap, x32 = 41, 9, 0x40000000
    assert simulate._wide(X86_64, socket) == simulate._wide(X86_64, x32 + socket) == frozenset()
    assert simulate._wide(X86_64, mmap) == simulate._wide(X86_64, x32 + mmap) == frozenset((0, 1, 5))
    assert simulate._wide(libseccomp.TOKENS[inputs.X86], 359) == frozenset(range(6))


def test_an_instruction_of_no_filter_is_refused() -> None:
    with pytest.raises(Bug):
        bpf.decode(struct.pack("=HBBI", 0x87, 0, 0, 0))
    with pytest.raises(Bug):
        bpf.decode(struct.pack("=HBBI", 0x15, 9, 0, 0))


@pytest.mark.parametrize("name", ["moby", "agent", "ranges", "clone"])
def test_pyseccomp_compiles_the_same(name: str) -> None:
    pyseccomp = pytest.importorskip("pyseccomp", reason="LOUD: no second opinion on compilation")
    raw = PROFILES[name]().raw  # type: ignore[no-untyped-call]
    assert raw is not None
    returns = {"SCMP_ACT_ALLOW": pyseccomp.ALLOW}
    tokens = {inputs.NATIVE: "X86_64", inputs.X86: "X86", inputs.X32: "X32"}

    def action(what: str, errno: int | None) -> int:
        return int(returns.get(what) or pyseccomp.ERRNO(1 if errno is None else errno))

    default = action(raw["defaultAction"], raw.get("defaultErrnoRet"))
    context = pyseccomp.SyscallFilter(default)
    for arch in raw["architectures"]:
        if arch != inputs.NATIVE:
            context.add_arch(getattr(pyseccomp.Arch, tokens[arch]))
    for one in raw["syscalls"]:
        made = action(one["action"], one.get("errnoRet"))
        args = [
            pyseccomp.Arg(arg["index"], getattr(pyseccomp, arg["op"][9:]), arg["value"], arg.get("valueTwo", 0))
            for arg in one.get("args") or ()
        ]
        for call in one["names"]:
            try:
                number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, call)
            except ValueError:
                continue
            if made != default and number != -1:
                context.add_rule(made, number, *args)
    with tempfile.TemporaryFile() as file:
        context.export_bpf(file)
        assert os.pread(file.fileno(), 1 << 20, 0) == libseccomp.compile(raw, HOST, 1)


def test_rules_that_libseccomp_refuses_are_named() -> None:
    """An identical condition with another action: runc and crun fail the container too."""
    bad = profile("ALLOW", rule("read", "ERRNO", (0, "EQ", 1)), rule("write read", "KILL", (0, "EQ", 1)))
    with pytest.raises(Invalid, match=r"linux\.seccomp\.syscalls\[1\]: asked read"):
        libseccomp.compiled([(bad.raw or {}, 1)], HOST)


ENDLESS = profile(
    "ALLOW",
    rule("unshare getpid mmap socket personality", "TRAP", (0, "LE", 2)),
    rule("getpid", "KILL_PROCESS", (0, "MASKED_EQ", 2**63, 9)),
    rule("getpid write", "TRACE", (1, "LT", 16), (2, "GT", 2**63), (0, "NE", 2**32)),
    rule("socketcall ioctl", "LOG", (1, "GT", 0)),
    rule("ioctl", "LOG"),
    rule("read getpid", "KILL_PROCESS", (0, "NE", 2**32), (2, "LE", 3)),
)


def test_a_compilation_without_end_is_cut_short() -> None:
    """libseccomp 2.5.4 loops for ever on six rules; whether this one does or not, the answer comes."""
    told = ""
    try:
        done = bool(libseccomp.compiled([(ENDLESS.raw or {}, 1)], HOST, seconds=0.5))
    except Invalid as error:
        done, told = False, str(error)
    assert done or ("0.5 s" in told and libseccomp.version() == (2, 5, 4))


def test_the_table_of_names_holds_all_that_libseccomp_knows() -> None:
    known, table = set(libseccomp._table().split()), set(names.NAMES.split())
    if libseccomp.version() == (2, 5, 4):
        assert known == table
    assert not table - known, "names that this libseccomp does not know"
