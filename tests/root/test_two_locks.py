"""Doors with two locks, tried on the kernel: either lock alone keeps each of them shut, and without both it opens.

The attempts are harmless where they go through: wrong numbers, paths that are not there, the container's own name. Next
door: tests/house/test_two_locks.py computes the table.
"""

from __future__ import annotations

import json
import os
import platform

import pytest

from shim.cold.policy.doors import DOORS
from shim.cold.seccomp import libseccomp
from shim.seccomp.vocabulary import NATIVE
from tests.root.debian import Debian, Maker
from tests.unit import seccomp_inputs as inputs

pytestmark = pytest.mark.skipif(platform.machine() not in NATIVE, reason="LOUD: no table of calls for this machine")

# door -> an attempt: a system call with its arguments, in Python.
ATTEMPTS = {
    "load a module": "init_module, 0, 0, text('')",
    "load another kernel (kexec)": "kexec_load, 0, 0, 0, 0",
    "reboot": "reboot, 0, 0, 0, 0",
    "bpf, beyond filters of own sockets": "bpf, 11, zeros, 16",  # BPF_PROG_GET_NEXT_ID
    "perf of the kernel and of others": "perf_event_open, perf, -1, 0, -1, 0",  # all of a processor's
    "stop the kernel at page faults (userfaultfd)": "userfaultfd, 0",
    "the kernel's log by syslog(2)": "syslog, 8, 0, 0",  # SYSLOG_ACTION_CONSOLE_LEVEL, no such level
    "ports by iopl and ioperm": "iopl, 3",
    "set the clock": "adjtimex, tick",  # ADJ_TICK, no such tick
    "swap": "swapon, text('/nowhere'), 0",
    "accounting (acct)": "acct, text('/nowhere')",
    "mount": "mount, text('none'), text('/tmp'), text('tmpfs'), 0, 0",
    "mount by the calls of Linux 5.2": "fsopen, text('tmpfs'), 0",
    "pivot_root": "pivot_root, text('/'), text('/')",
    "chroot": "chroot, text('/')",
    "join a namespace": "setns, own, 0",
    "make a namespace": "unshare, 0x04000000",  # CLONE_NEWUTS
    "set the host's name": "sethostname, text('x'), 1",
    "open files by handle, outside the root": "open_by_handle_at, -100, handle, 0",
    "watch a whole file system (fanotify)": "fanotify_init, 4, 0",  # FAN_CLASS_CONTENT
    "make the node of a device and open it": "mknodat, -100, text('/tmp/node'), 0o60000, 0x700",
    "hang up terminals of others": "vhangup",
    "raw sockets": "socket, 2, 3, 1",
    "packet sockets and XDP": "socket, 17, 3, 0x300",
}  # fmt: skip
PROGRAM = r"""
import ctypes, errno, json, os, struct
libc = ctypes.CDLL(None, use_errno=True)
text = lambda word: ctypes.c_char_p(word.encode())
zeros = bytes(512)
perf = struct.pack("=IIQ", 1, 112, 0) + bytes(96)
tick = struct.pack("=I", 0x4000) + bytes(508)
handle = struct.pack("=Ii", 8, 255) + bytes(8)
own = os.open("/proc/self/ns/uts", os.O_RDONLY)
def attempt(number, *words):
    pid = os.fork()
    if pid == 0:
        ctypes.set_errno(0)
        os._exit(ctypes.get_errno() if libc.syscall(number, *words) == -1 else 0)
    return errno.errorcode.get(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "0")
print(json.dumps({ATTEMPTS}))
"""
DENIED = {"EPERM", "EACCES"}
GRANTED = "xxx: a lock is taken away"
OPEN = f'base = "agent"\nwhy = "{GRANTED}"\ndoc = "https://x"\n'


def program() -> str:
    lines = []
    for door, attempt in ATTEMPTS.items():
        call, _, words = attempt.partition(",")
        number = libseccomp.number(call, NATIVE[os.uname().machine])
        lines.append(f"{door!r}: attempt({number}, {words})")
    return PROGRAM.replace("ATTEMPTS", ", ".join(lines))


def wanted() -> list[str]:
    """All capabilities that a door of the table mentions."""
    return sorted({f"CAP_{cap}" for door in DOORS for cap in door.caps.split()})


def tried(box: Maker, policy: str) -> dict[str, str]:
    """What the kernel answers to each attempt in a container that asks for every capability and for no filter."""
    one = box(policy, seccomp=None)
    one.config["process"]["capabilities"] = {name: wanted() for name in ("bounding", "effective", "permitted")}
    (one.work / "attempts.py").write_text(program())
    done = one.run("python3", "attempts.py")
    assert done.code == 0, str(done)
    found: dict[str, str] = json.loads(done.out)
    return found


# Their filter's rules open with the capability: one grant is both locks, while a capability won later is not.
WITH_CAPABILITY = {
    "the kernel's log by syslog(2)",
    "chroot",
    "make the node of a device and open it",
    "raw sockets",
}


@pytest.fixture(scope="module")
def opened(debian: Debian) -> dict[str, str]:
    """Policies that are agent without one of the two locks, and without both."""
    filter_of_agent = inputs.ours("agent").raw  # as it is resolved without any capability
    (debian.policies / "agent.json").write_text(json.dumps(filter_of_agent))
    return {
        "the filter alone": debian.policy("filter-alone", f'{OPEN}capabilities = "top"\nseccomp.file = "agent.json"\n'),
        "capabilities granted": debian.policy("granted", f'{OPEN}capabilities = "top"\n'),
        "capabilities alone": debian.policy("capabilities-alone", f'{OPEN}seccomp = "top"\n'),
        "neither": debian.policy("neither-lock", f'{OPEN}capabilities = "top"\nseccomp = "top"\n'),
    }


def passed(found: dict[str, str]) -> dict[str, str]:
    """What was not denied, where this kernel has it at all."""
    return {door: answer for door, answer in found.items() if answer not in {*DENIED, "ENOSYS"}}


def test_what_is_tried() -> None:
    both = {door.name for door in DOORS if door.caps and door.calls}
    assert set(ATTEMPTS) <= both
    # No attempt is known that fails without the capability, is harmless with it, and needs no second user.
    left = {"trace another user's process in the container", "move the pages of others", "quotas (quotactl)", "audit"}
    assert both - set(ATTEMPTS) == left


def test_both(box: Maker) -> None:
    assert passed(tried(box, "agent")) == {}


@pytest.mark.parametrize("lock", ["capabilities alone", "the filter alone"])
def test_either(lock: str, box: Maker, opened: dict[str, str]) -> None:
    assert passed(tried(box, opened[lock])) == {}


def test_rules_that_open_with_the_capability(box: Maker, opened: dict[str, str]) -> None:
    assert set(passed(tried(box, opened["capabilities granted"]))) == WITH_CAPABILITY


def test_neither(box: Maker, opened: dict[str, str]) -> None:
    """Otherwise an attempt that fails for a reason of its own would prove nothing above."""
    found = tried(box, opened["neither"])
    assert not {door: answer for door, answer in found.items() if answer in DENIED}, found
