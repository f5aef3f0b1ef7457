"""One install or uninstall at a time, and what a run that was killed has left.

Belongs here: the lock and the sweep. Next door: `changes` compares before it renames, which alone would let two runs
read the same file, and the second take away what the first has written.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
from collections.abc import Iterable, Iterator

from shim.cold.install import changes
from shim.errors import HostError, reason

LOCK = "/run/agentshim-install.lock"


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Waits until no other run reads or writes an engine's file. HostError where there can be no lock."""
    try:
        fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        todo = "make it a file that root can open, or remove it"
        raise HostError("install", LOCK, reason(error), "a lock: one run at a time", todo) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def sweep(paths: Iterable[str]) -> None:
    """Removes the temporary files for `paths` of runs that are dead. To be called alone: none is of a run that lives,
    but for one in another PID namespace.
    """
    for path in paths:
        stem = changes.temporary(path, "")
        for found in glob.glob(glob.escape(stem) + "*"):
            pid = found.removeprefix(stem)
            if pid.isascii() and pid.isdecimal() and (int(pid) == os.getpid() or not os.path.exists(f"/proc/{pid}")):
                with contextlib.suppress(OSError):  # what is in the way of the run will say so there
                    os.unlink(found)
