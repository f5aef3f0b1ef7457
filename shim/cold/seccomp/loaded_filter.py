"""The filter that a delegate really loaded, read out of the kernel, and the proof of a meet repeated on it.

A delegate may bring its own libseccomp, and runc puts a stub for unknown calls in front: what counts is in the kernel.
Read with PTRACE_SECCOMP_GET_FILTER (Linux 4.4, CONFIG_CHECKPOINT_RESTORE): needs CAP_SYS_ADMIN and a caller without a
filter of its own. Next door: `prove` compares programs.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from shim.cold.seccomp import bpf, prove
from shim.cold.seccomp.simulate import Looser, Undecided, compare
from shim.errors import Bug, HostError
from shim.seccomp.profile import Profile, machine

_SEIZE, _INTERRUPT, _DETACH, _GET_FILTER = 0x4206, 0x4207, 17, 0x420C
_WALL = 0x40000000  # __WALL: threads too
_INSTRUCTION = 8  # bytes


def verify(programs: list[bytes], asked: Profile, ceiling: Profile) -> int:
    """The number of probes made on `programs`, arrays of struct sock_filter that a process has or will have, all of
    them; they must let nothing through that a side stops. Bug where they do, or where there are none.
    """
    host = machine()
    sides = [side for side in (asked, ceiling) if not side.is_top]
    if not sides:
        return 0
    bounds = prove.compiled(sides, host, 1)
    loaded = [bpf.decode(data) for data in programs]
    if not loaded:
        raise Bug("seccomp", "the loaded filter", "no filter", "the granted one", "report this")
    return _compared(loaded, bounds, asked, ceiling, host)


def _compared(loaded: list[bpf.Program], bounds: list[bpf.Program], asked: Profile, ceiling: Profile, host: str) -> int:
    """Compare each filter with the bounds; the kernel takes the hardest answer, so one below all of them suffices."""
    served = [prove.tokens(side, host) for side in (asked, ceiling) if not side.is_top]
    common = served[0] & served[-1]
    failure: Looser | Undecided | None = None
    for program in loaded:
        try:
            return compare(program, bounds, host, common, stub=True)
        except (Looser, Undecided) as found:
            failure = found
    raise Bug("seccomp", "the loaded filter", str(failure), "no looser than either side", "report this") from failure


def filters(pid: int) -> list[bytes]:
    """The filters of a thread, the latest first, each an array of struct sock_filter. It is stopped for a moment.

    HostError where the kernel does not show them.
    """
    lib, ffi = _module()
    _ptrace(lib, "PTRACE_SEIZE", _SEIZE, pid, 0, ffi.NULL)
    try:
        _ptrace(lib, "PTRACE_INTERRUPT", _INTERRUPT, pid, 0, ffi.NULL)
        os.waitpid(pid, _WALL)
        out: list[bytes] = []
        while (count := lib.shim_ptrace(_GET_FILTER, pid, len(out), ffi.NULL)) >= 0:
            room = ffi.new(f"char[{count * _INSTRUCTION}]")
            _ptrace(lib, "PTRACE_SECCOMP_GET_FILTER", _GET_FILTER, pid, len(out), room)
            out.append(bytes(ffi.buffer(room)))
        if -count not in (errno.ENOENT, errno.EINVAL if not out else errno.ENOENT):  # EINVAL: it has no filter at all
            raise _host("PTRACE_SECCOMP_GET_FILTER", pid, -count)
        return out
    finally:
        lib.shim_ptrace(_DETACH, pid, 0, ffi.NULL)


def _module() -> tuple[Any, Any]:
    """shim._sys, whose own module lies among the packages that a start does not see."""
    from shim.cold import site

    site.enable()
    try:
        from shim._sys import ffi, lib
    except ImportError:
        todo = "install agentshim with its packages (make install)"
        raise HostError("seccomp", "shim._sys", "it does not load", "the module and cffi", todo) from None
    return lib, ffi


def _ptrace(lib: Any, name: str, request: int, pid: int, address: int, data: object) -> None:
    code = lib.shim_ptrace(request, pid, address, data)
    if code < 0:
        raise _host(name, pid, -code)


def _host(name: str, pid: int, code: int) -> HostError:
    return HostError(
        "seccomp", name, f"{os.strerror(code)} for process {pid}", "to read its filter", "run as host root"
    )
