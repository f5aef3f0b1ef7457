"""The machine's libseccomp: OCI profile -> the BPF that a delegate would load.

Why not pyseccomp: it is this same ctypes binding behind 27 ms of ldconfig and gcc, and a host needs no pip package to
start a container (pyseccomp is the tests' second opinion). Belongs here: the delegates' ways of feeding libseccomp,
read in the behaviour of runc 1.1.5 and crun 1.8.1. Next door: `bpf` knows what a program does.
"""

from __future__ import annotations

import ctypes
import errno
import marshal
import os
import resource
import select
import signal
import time
from typing import Any, NoReturn

from shim.errors import HostError, Invalid
from shim.seccomp.vocabulary import EPERM, NATIVE

# <linux/seccomp.h>
_RETURN = {
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
# <seccomp.h>, enum scmp_compare
_COMPARE = {"NE": 1, "LT": 2, "LE": 3, "EQ": 4, "GE": 5, "GT": 6, "MASKED_EQ": 7}
# <linux/audit.h>, AUDIT_ARCH_*; x32 is libseccomp's own
TOKENS = {
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_ARM": 0x40000028,
}
_ATTRIBUTE_OPTIMIZE = 8
_UNKNOWN = -1  # __NR_SCMP_ERROR
_MEMORY = 2 << 30  # bytes that a compilation may take
_CHILDREN = 2


class _Argument(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise HostError(
            "seccomp", "libseccomp.so.2", "it does not load", "libseccomp 2.5", "install libseccomp2"
        ) from error
    library.seccomp_version.restype = ctypes.POINTER(_Version)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_arch_remove.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    library.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    library.seccomp_syscall_resolve_num_arch.argtypes = (ctypes.c_uint32, ctypes.c_int)
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    adder = library.seccomp_rule_add_array
    adder.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    return library


_library: list[ctypes.CDLL] = []


def library() -> ctypes.CDLL:
    """The loaded library; HostError where it is missing."""
    if not _library:
        _library.append(_load())
    return _library[0]


def version() -> tuple[int, int, int]:
    found = library().seccomp_version().contents
    return found.major, found.minor, found.micro


def number(name: str, arch: str) -> int:
    """The call's number on `arch`: -1 where libseccomp has no such name, below -1 where that ABI has no such call."""
    return int(library().seccomp_syscall_resolve_name_arch(TOKENS[arch], name.encode()))


def name(number: int, arch: str) -> str | None:
    """The name of a call's number on `arch`, None where it has none."""
    text = library().seccomp_syscall_resolve_num_arch(TOKENS.get(arch, 0), number)
    return ctypes.string_at(text).decode() if text else None  # 20 bytes leak: the library wants free(3)


def compile(raw: dict[str, Any], machine: str, optimize: int) -> bytes:
    """The program, an array of struct sock_filter, that a delegate loads for the checked OCI object `raw`.

    optimize: 2, a binary tree, is what runc sets above 32 rules, crun leaves 1. Invalid names the rule that libseccomp
    refuses, as the delegate would.
    """
    lib = library()
    default = _return(raw["defaultAction"], raw.get("defaultErrnoRet"))
    context = lib.seccomp_init(default)
    if not context:
        raise Invalid("seccomp", "linux.seccomp.defaultAction", raw["defaultAction"], "an action", "correct it")
    try:
        lib.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, optimize)
        for arch in raw.get("architectures") or ():
            if arch in TOKENS and lib.seccomp_arch_add(context, TOKENS[arch]) not in (0, -errno.EEXIST):
                raise Invalid("seccomp", "linux.seccomp.architectures", arch, "an ABI of this host", "remove it")
        _other_machine(lib, context, machine)
        for index, rule in enumerate(raw.get("syscalls") or ()):
            _add(lib, context, f"linux.seccomp.syscalls[{index}]", rule, default, machine)
        return _exported(lib, context)
    finally:
        lib.seccomp_release(context)


def compiled(jobs: list[tuple[dict[str, Any], int]], machine: str, seconds: float = 5.0) -> list[bytes]:
    """compile() of each (OCI object, optimize), in child processes that may take `seconds` altogether.

    libseccomp 2.5.4 never comes to an end on some profiles of six rules, and a delegate would hang on them too:
    Invalid. A child costs 1 ms; two of them halve the time, most of what a proof takes.
    """
    library()
    end = time.monotonic() + seconds
    children: list[tuple[int, int]] = []
    try:
        for start in range(min(_CHILDREN, len(jobs))):
            children.append(_begun(jobs[start::_CHILDREN], machine))
        data = [_all_of(reader, end) for reader, _ in children]
    finally:
        for reader, child in children:
            os.close(reader)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    parts = [_programs(part, seconds) for part in data]
    return [parts[at % _CHILDREN][at // _CHILDREN] for at in range(len(jobs))]


def _begun(jobs: list[tuple[dict[str, Any], int]], machine: str) -> tuple[int, int]:
    """The end of a pipe to read from, and the child that writes to it."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _work(jobs, machine, writer)
    os.close(writer)
    return reader, child


def _programs(data: bytes | None, seconds: float) -> list[bytes]:
    """What a child has written, or what went wrong in it."""
    if data is None:
        raise Invalid(
            "seccomp", "linux.seccomp.syscalls", f"libseccomp took {seconds} s", "an end", "simplify the rules"
        )
    if not data:
        raise HostError("seccomp", "libseccomp", "it crashed", "a program", "simplify the profile's rules")
    found: Any = marshal.loads(data)
    if isinstance(found, tuple):
        raise (Invalid if found[0] == "Invalid" else HostError)(*found[1])
    return list(found)


def _work(jobs: list[tuple[dict[str, Any], int]], machine: str, writer: int) -> NoReturn:
    """The child: write a list of programs, or what went wrong as (kind, arguments), and end without cleaning up."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        try:
            out: Any = [compile(raw, machine, optimize) for raw, optimize in jobs]
        except (Invalid, HostError) as error:
            out = (type(error).__name__, tuple(str(part) for part in error.args))
        view = memoryview(marshal.dumps(out, 2))
        while view:
            view = view[os.write(writer, view) :]
    finally:
        os._exit(0)


def _all_of(reader: int, end: float) -> bytes | None:
    """Everything up to the end of the pipe; None where that does not come before `end`, on the monotonic clock."""
    out = bytearray()
    while True:
        left = end - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return None
        part = os.read(reader, 1 << 16)
        if not part:
            return bytes(out)
        out += part


def _other_machine(lib: ctypes.CDLL, context: int, machine: str) -> None:
    """Take the host's own ABI away where a profile is compiled for another machine (tests)."""
    host = NATIVE.get(os.uname().machine, "")
    if machine != os.uname().machine:
        lib.seccomp_arch_add(context, TOKENS[NATIVE[machine]])
        lib.seccomp_arch_remove(context, TOKENS[host])


def _add(lib: ctypes.CDLL, context: int, key: str, rule: dict[str, Any], default: int, machine: str) -> None:
    """Add one rule as delegates do: not if it equals the default, unknown names skipped, repeated arguments apart."""
    action = _return(rule["action"], rule.get("errnoRet"))
    if action == default:
        return
    args = rule.get("args") or []
    groups = [args]
    if len({arg["index"] for arg in args}) < len(args):
        groups = [[arg] for arg in args]
    arrays = [_arguments(group) for group in groups]
    for call in rule["names"]:
        nr = lib.seccomp_syscall_resolve_name_arch(TOKENS[NATIVE[machine]], call.encode())
        if nr == _UNKNOWN:
            continue
        for array in arrays:
            result = lib.seccomp_rule_add_array(context, action, nr, len(array), array)
            if result:
                raise Invalid(
                    "seccomp", key, f"{call}: {os.strerror(-result)}", "a rule libseccomp takes", "correct it"
                )


def _arguments(args: list[dict[str, Any]]) -> Any:
    array = (_Argument * len(args))()
    for slot, arg in zip(array, args, strict=True):
        slot.arg, slot.op = arg["index"], _COMPARE[arg["op"][9:]]
        slot.a, slot.b = arg["value"], arg.get("valueTwo", 0)
    return array


def _return(action: str, code: int | None) -> int:
    base = _RETURN[action]
    return base | (EPERM if code is None else code) if action in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") else base


def _exported(lib: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp")
    try:
        result = lib.seccomp_export_bpf(context, fd)
        if result:
            raise HostError("seccomp", "seccomp_export_bpf", os.strerror(-result), "a program", "report this")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _table() -> str:
    """The text of `shim.seccomp.names.NAMES`, from this machine's libseccomp."""
    found = set()
    for arch in TOKENS:
        base = 0x40000000 if arch == "SCMP_ARCH_X32" else 0
        found |= {text for nr in range(1100) if (text := name(base + nr, arch))}
    return " ".join(sorted(found))


if __name__ == "__main__":
    print(_table())
