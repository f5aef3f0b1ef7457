"""Questions that only the kernel can answer, asked in a child that ends, with namespaces of its own where that matters.

Belongs here: system calls that change nothing of the host. Next door: `kernel` says what the answers mean.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import signal
import socket
from collections.abc import Callable
from typing import NoReturn

from hooks import lock, netlink, nft, nft_ask

NEW_NS, NEW_CGROUP, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    0x00020000,
    0x02000000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
SECONDS = 10  # for a child; the kernel answers in milliseconds
_SECCOMP = {"x86_64": 317, "aarch64": 277, "armv7l": 383}  # <asm/unistd.h>
_OPENAT2 = 437  # on every machine
_SET_FILTER, _GET_ACTION_AVAIL = 1, 2
_NO_NEW_PRIVS = 38
_NETLINK_AUDIT = 9
_MFD_NOEXEC_SEAL = 0x8
WIDE = [["tcp", "192.0.2.0/24", 443, 443], ["udp", "2001:db8::1/128", 53, 53]]
# A filter of one instruction: allow.
ALLOW_ALL = b"\x06\0\0\0\0\0\xff\x7f"

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def apart(flags: int, work: Callable[[], object]) -> None:
    """Runs `work` in a child with new namespaces. OSError as the child had it, ChildProcessError where it died."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _work(writing, flags, work)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if not said:
        raise ChildProcessError(errno.ECHILD, "the probe did not end as it should")
    number, text = json.loads(said)
    if number:
        raise OSError(number, text)


def _work(writing: int, flags: int, work: Callable[[], object]) -> NoReturn:
    said: tuple[int, str] = (errno.EIO, "the probe failed")
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        if flags:
            checked(_libc.unshare(flags))
        work()
        said = (0, "")
    except OSError as error:
        said = (error.errno or errno.EIO, os.strerror(error.errno or errno.EIO))
    finally:
        os.write(writing, json.dumps(said).encode())
        os._exit(0)


def checked(code: int) -> int:
    """`code`, or OSError where it is negative."""
    if code < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return code


def seccomp(operation: int, flags: int, argument: object) -> int:
    """seccomp(2). OSError; ENOSYS for a machine whose number is not known here."""
    number = _SECCOMP.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return checked(_libc.syscall(number, operation, flags, argument))


def has_action(value: int) -> bool:
    """Whether filters may answer so. OSError where the kernel does not say."""
    try:
        seccomp(_GET_ACTION_AVAIL, 0, ctypes.byref(ctypes.c_uint32(value)))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return False
        raise
    return True


def has_flag(value: int) -> bool:
    """Whether filters may be loaded so. A filter that is not there is asked for: EFAULT where the flag is known."""
    try:
        seccomp(_SET_FILTER, value, None)
    except OSError as error:
        if error.errno in (errno.EFAULT, errno.EINVAL):
            return error.errno == errno.EFAULT
        raise
    return False


def read_filter() -> None:
    """Reads the filter of a child that has one, as the first start of a container does. ShimError, OSError."""
    from shim.cold.seccomp import loaded_filter  # cffi

    holding, letting = os.pipe()
    told, telling = os.pipe()
    child = os.fork()
    if child == 0:
        _filtered(telling, holding, letting)
    os.close(telling)
    try:
        if os.read(told, 1) != b"+":
            raise OSError(errno.EINVAL, "no filter could be loaded")
        if loaded_filter.filters(child) != [ALLOW_ALL]:
            raise OSError(errno.EBADMSG, "what was read is not what was loaded")
    finally:
        os.close(letting)
        os.waitpid(child, 0)
        os.close(told)
        os.close(holding)


def _filtered(telling: int, holding: int, letting: int) -> NoReturn:
    try:
        os.close(letting)
        program = _Program(1, ALLOW_ALL)
        checked(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
        seccomp(_SET_FILTER, 0, ctypes.byref(program))
        os.write(telling, b"+")
        os.read(holding, 1)  # until the other end is closed
    finally:
        os._exit(0)


def openat2() -> None:
    """openat2(2) with RESOLVE_IN_ROOT. OSError."""
    how = (ctypes.c_uint64 * 3)(os.O_RDONLY | os.O_CLOEXEC, 0, 0x10)
    os.close(checked(_libc.syscall(_OPENAT2, -100, b"/", ctypes.byref(how), ctypes.sizeof(how))))


def pidfd() -> None:
    """pidfd_open(2). OSError."""
    os.close(os.pidfd_open(os.getpid()))


def audit_socket() -> None:
    """The kernel's audit, by its socket. OSError: EPROTONOSUPPORT where it is not there, or was turned off at boot."""
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_AUDIT).close()


def noexec_memfd() -> None:
    """memfd_create(2) with MFD_NOEXEC_SEAL. OSError: EINVAL before Linux 6.3."""
    os.close(os.memfd_create("doctor", _MFD_NOEXEC_SEAL | os.MFD_CLOEXEC))


def inet_lock() -> None:
    """The lock of a container that has one grant of each kind, as the hook makes it. OSError; needs a namespace."""
    anybody = {"mode": "confine", "outbound": WIDE, "inbound": [["tcp", 8000, 8001]], "dns": [], "icmp": True}
    (step,) = lock.steps(anybody, 16)
    with netlink.Socket(netlink.NETFILTER) as kernel:
        kernel.ask(step.do, step.acks)


def bridge_table() -> None:
    """A table of the family bridge, with a base chain."""
    name = "agentshim-doctor"
    every = (nft.new_table(name), nft.new_chain(name, "forward", nft.FORWARD))
    with netlink.Socket(netlink.NETFILTER) as kernel:
        kernel.ask(nft.mixed((nft_ask.BRIDGE, one) for one in every), 1)
