"""The line that tells of a long proof: on a terminal only, and gone in the end."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

# argv: seconds that each comparison takes longer, and whether it fails. Prints what is left of the alarm.
SLOW = """
import signal, sys, time
from shim.cold.seccomp import prove
from shim.errors import Bug
from shim.seccomp.profile import Profile
compare = prove.compare
def slow(*args):
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        time.sleep(0.01)
    if sys.argv[2] == "fails":
        raise Bug("seccomp", "x", "x", "x", "x")
    return compare(*args)
prove.compare = slow
read = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}
deny = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["bpf"], "action": "SCMP_ACT_ERRNO"}]}
try:
    prove.granted(Profile(read), Profile(deny), (1,))
except Bug:
    pass
print(signal.getitimer(signal.ITIMER_REAL), signal.getsignal(signal.SIGALRM) is signal.SIG_DFL)
"""
ERASED = b"\r\x1b[K"


def said(seconds: float, how: str = "holds", terminal: bool = True) -> bytes:
    """What comes out on stderr, a terminal or a pipe."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-c", SLOW, str(seconds), how]
    try:
        repository = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=repository, stdout=subprocess.PIPE, stderr=theirs, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout == "(0.0, 0.0) True\n"
        os.set_blocking(ours, False)
        try:
            return os.read(ours, 1 << 16)
        except BlockingIOError:
            return b""
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("how", ["holds", "fails"])
def test_a_long_proof_says_so_on_a_terminal_and_erases_it(how: str) -> None:
    first, *more = said(1.2, how).split(b"\ragentshim: proving the seccomp profile, ")
    assert first == b"" and more and more[-1].endswith(ERASED)
    assert more[0].startswith(b"0 s") and more[-1].startswith(b"1 s")


def test_a_short_proof_says_nothing() -> None:
    assert said(0) == b""


def test_nobody_is_told_where_there_is_no_terminal() -> None:
    assert said(1.2, terminal=False) == b""
