"""Our createRuntime hook: what was mounted must be what was checked.

Runs in the host's namespaces while the container's init waits, after its mounts and before its first instruction. For
each pinned destination the file found there, from within the container's own mount namespace and without following a
link out of its root, must have the device and inode that `create` saw; a namespace that was lent must be the one that
it saw. A failure stops the container.
"""

from __future__ import annotations

import posix
import sys

from shim import kernel, state, wire
from shim.errors import HostError, Refused

RESOLVE_IN_ROOT = 0x10  # linux/openat2.h, Linux 5.6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.argv import Call


def run(call: Call) -> int:
    """`agentshim hook ROOT ID`, with the OCI state on stdin. Refused if a source was exchanged."""
    root, container = call.args
    record = state.load(root, container)
    if record is None:
        raise HostError("hook", container, "no record", "the one of its create", "create the container anew")
    told = wire.loads(sys.stdin.buffer.read(), "hook", "state")
    pid = int(told["pid"])  # type: ignore[index]
    _check_namespaces(pid, record["pins"]["namespaces"])
    _check_mounts(pid, record["rootfs"], record["pins"]["mounts"])
    return 0


def _check_namespaces(pid: int, pins: list[list[Any]]) -> None:
    for kind, expected in pins:
        found = kernel.namespace_of(pid, kind)
        if found != expected:
            todo = "its path was exchanged while the container was made: find out by whom, then try again"
            raise Refused("namespaces", kind, found, expected, todo)


def _check_mounts(pid: int, rootfs: str, pins: list[list[Any]]) -> None:
    # Not yet pivoted: the container's root is still a path below the init's.
    inside = posix.open(f"/proc/{pid}/root{rootfs}", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    for destination, device, inode in pins:
        found = _open_inside(inside, destination)
        there = posix.fstat(found)
        posix.close(found)
        if (there.st_dev, there.st_ino) != (device, inode):
            asked = f"device {there.st_dev} inode {there.st_ino}"
            todo = "its source was exchanged while the container was made: find out by whom, then try again"
            raise Refused("mounts", destination, asked, f"device {device} inode {inode}", todo)


def _open_inside(root: int, path: str) -> int:
    """A descriptor of `path` below `root`, links resolved as if `root` were /; HostError if it cannot be had."""
    from shim.cold import site  # cffi's own module lies among the packages; only containers with pins come here

    site.enable()
    from shim._sys import lib

    fd = lib.shim_openat2(root, path.encode(), posix.O_PATH | posix.O_CLOEXEC, 0, RESOLVE_IN_ROOT)
    if fd < 0:
        todo = "check that the delegate mounted it"
        raise HostError("hook", path, posix.strerror(-fd), "the mounted source", todo)
    return fd
