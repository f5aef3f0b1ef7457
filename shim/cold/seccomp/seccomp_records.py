"""What the kernel writes of system calls that a filter denied: audit records of type 1326 (SECCOMP), found and read.

    audit: type=1326 audit(1795328800.281:1413): auid=… uid=0 gid=0 ses=… pid=14036 comm="sh" exe="/bin/busybox" sig=0
    arch=c000003e syscall=272 compat=0 ip=0x7f82 code=0x50000

seccomp(2): a denial that ends in an errno or a signal handler is logged only where the filter was loaded with
SECCOMP_FILTER_FLAG_LOG and the action is in /proc/sys/kernel/seccomp/actions_logged; one that kills is always logged.
The kernel writes no arguments, and no container. Without an auditd the record goes to the kernel's own log, where a
rate limit (ten in five seconds) drops others and counts them; with one, to its file. The audit socket has all of them,
but only from when it is opened (linux/audit.h: AUDIT_NLGRP_READLOG).

Belongs here: the kernel's words. Next door: `denied` says whose they are.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from shim.cold.seccomp import libseccomp
from shim.errors import ShimError

KMSG = "/dev/kmsg"
AUDITD = "/var/log/audit/audit.log"
LOGGED = "/proc/sys/kernel/seccomp/actions_logged"
TYPE = 1326  # linux/audit.h: AUDIT_SECCOMP
NETLINK_AUDIT, READLOG, HEADER = 9, 1, 16  # linux/netlink.h, linux/audit.h, bytes of struct nlmsghdr
X32 = 0x40000000  # __X32_SYSCALL_BIT
ARCHES = {token: name for name, token in libseccomp.TOKENS.items() if name != "SCMP_ARCH_X32"}
# seccomp(2), the upper half of a filter's answer: what the kernel calls it, and whether the call was let through.
ACTIONS = {
    0x80000000: ("kill_process", False),
    0x00000000: ("kill_thread", False),
    0x00030000: ("trap", False),
    0x00050000: ("errno", False),
    0x7FC00000: ("user_notif", False),
    0x7FF00000: ("trace", False),
    0x7FFC0000: ("log", True),
}
# How a record begins at each source. Anchored: programs choose the text inside other lines of the kernel and of auditd.
KERNEL, FILE, NETLINK = "kernel", "file", "netlink"
_HEADS = {
    KERNEL: r"audit: type=1326 ",
    FILE: r"(?:node=\S+ )?type=(?:SECCOMP|1326) msg=",
    NETLINK: "",  # there the message's type says it
}
# The fields in the kernel's order (kernel/auditsc.c, audit_seccomp), to the end of the text. A label of a security
# module may have spaces (AppArmor: "name (enforce)"); names that a workload chooses have none outside quotes.
_NAME = r'("[^"\s]*"|[0-9A-F]*|\(null\)|\?)'
_FIELDS = (
    r"audit\((\d+)\.(\d+):(\d+)\): ?auid=\S+ uid=(\d+) gid=\d+ ses=\S+(?: subj=.*?)?"
    rf" pid=(\d+) comm={_NAME}(?: exe={_NAME})?"
    r" sig=-?\d+ arch=([0-9a-f]+) syscall=(-?\d+) compat=\d+ ip=0x[0-9a-f]+ code=0x([0-9a-f]+)\s*"
)
_RECORDS = {source: re.compile(head + _FIELDS, re.ASCII) for source, head in _HEADS.items()}
_SUPPRESSED = re.compile(r"kauditd_printk_skb: (\d+) callbacks suppressed")


@dataclass(frozen=True)
class Record:
    """One denial. `when`: unix seconds; `serial`: the kernel's number of the record; `pid`: of the process, on the
    host; `call`: the system call's name, its number where libseccomp knows none; `action`: a word of ACTIONS.
    """

    when: float
    serial: int
    pid: int
    uid: int
    comm: str
    exe: str
    arch: str
    call: str
    action: str
    allowed: bool


def parse(text: str, source: str) -> Record | None:
    """A record from a line of the kernel's log, of auditd's, or a message of the audit socket, as `source` says
    (KERNEL, FILE, NETLINK); None if it is none, or torn.
    """
    found = _RECORDS[source].fullmatch(text.partition("\x1d")[0])  # behind it auditd repeats numbers as names
    if found is None:
        return None
    seconds, fraction, serial, uid, pid, comm, exe, machine, number, answer = found.groups()
    code = int(answer, 16) & 0xFFFF0000
    action, allowed = ACTIONS.get(code, (f"0x{code:x}", False))
    try:
        arch, call = _call(int(machine, 16), int(number))
        when = int(seconds) + float(f"0.{fraction}")
        return Record(when, int(serial), int(pid), int(uid), _word(comm), _word(exe or ""), arch, call, action, allowed)
    except ValueError:
        return None


def _call(arch: int, number: int) -> tuple[str, str]:
    """(ABI, name of the call) as linux/audit.h and libseccomp have them."""
    name = ARCHES.get(arch)
    if name == "SCMP_ARCH_X86_64" and number & X32:
        name = "SCMP_ARCH_X32"
    try:
        call = libseccomp.name(number, name) if name else None
    except ShimError:  # no libseccomp here
        call = None
    return (name or f"0x{arch:x}").removeprefix("SCMP_ARCH_").lower(), call or str(number)


def _word(value: str) -> str:
    """A string that a workload chooses: the kernel quotes it, or writes it as hexadecimal where it is not plain."""
    if value.startswith('"'):
        return value[1:-1]
    if value in ("", "(null)", "?"):
        return ""
    return bytes.fromhex(value).decode("utf-8", "backslashreplace")


class Kernel:
    """The kernel's log, read on and on. `lost`: records that its rate limit has dropped, as far as it says; `missing`:
    why there is nothing to read, ''; `overwritten`: whether older lines have gone.
    """

    def __init__(self) -> None:
        self.lost = 0
        self.overwritten = False
        self.missing = ""
        self._fd = -1
        try:
            self._fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self.missing = f"{KMSG}: {os.strerror(error.errno or 0)}"

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def records(self) -> Iterator[Record]:
        """What is new since the last look."""
        first = True
        while self._fd >= 0:
            try:
                line = os.read(self._fd, 8192)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EPIPE:  # the ring went on without us
                    self.overwritten = True
                    continue
                self.missing = f"{KMSG}: {os.strerror(error.errno or 0)}"
                return
            head, _, text = line.decode("utf-8", "backslashreplace").partition(";")
            words = head.split(",")
            if first:
                self.overwritten |= words[1] != "0"
                first = False
            # Facility 0 is the kernel itself: whoever writes to /dev/kmsg gets another (dev-kmsg, kernel's ABI).
            if int(words[0]) >> 3:
                continue
            if found := _SUPPRESSED.match(text):
                self.lost += int(found[1])
            elif (record := parse(text.partition("\n")[0], KERNEL)) is not None:
                yield record


def of_auditd() -> Iterator[Record]:
    """What an auditd has written, in the files that it has kept, oldest first."""
    for name in sorted(glob.glob(AUDITD + "*"), key=lambda one: os.stat(one).st_mtime_ns):
        try:
            with open(name, encoding="utf-8", errors="backslashreplace") as file:
                yield from (record for line in file if (record := parse(line, FILE)) is not None)
        except OSError:
            continue


class Socket:
    """The audit socket: every record from now on, whoever else reads. `missing`: why it cannot be had, ''."""

    def __init__(self) -> None:
        self.missing = ""
        self.lost = False
        self._socket: socket.socket | None = None
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_AUDIT)
            self._socket.bind((0, 1 << (READLOG - 1)))
        except OSError as error:
            self.close()
            self.missing = f"audit socket: {os.strerror(error.errno or 0)}"

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def records(self, seconds: float) -> Iterator[Record]:
        """What comes within so many seconds, at once. `lost`: the kernel had to drop some; its reader unsets it."""
        end = time.monotonic() + seconds
        while self._socket is not None and (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                data, (sender, _) = self._socket.recvfrom(1 << 16)
            except TimeoutError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost = True
                continue
            kind = int.from_bytes(data[4:6], sys.byteorder)
            if kind == TYPE and sender == 0:  # the kernel itself (netlink(7)); a port number is a program's
                text = data[HEADER:].rstrip(b"\0").decode("utf-8", "backslashreplace")
                if (record := parse(text, NETLINK)) is not None:
                    yield record


def unlogged(action: str) -> str:
    """Why the kernel logs no denial with this `action` (a word of ACTIONS), '' if it does."""
    try:
        with open(LOGGED, encoding="ascii") as file:
            words = file.read().split()
    except OSError:
        return "this kernel has no log of denials (Linux 4.14, CONFIG_SECCOMP_FILTER)"
    if action not in words:
        return f"{action} is not in {LOGGED}: sysctl kernel.seccomp.actions_logged"
    with open("/proc/cmdline", encoding="utf-8", errors="replace") as file:
        if {"audit=0", "audit=off"} & set(file.read().split()):
            return "the kernel was started with audit=0"
    return ""
