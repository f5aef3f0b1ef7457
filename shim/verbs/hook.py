"""Our createRuntime hook: what was mounted must be what was checked.

Runs in the host's namespaces while the container's init waits, after its mounts and before its first instruction. What
is mounted in the container and is of a file system of the host must have an identity that `create` saw, wherever a name
led in between; where a link of the image led a volume elsewhere, not over the kernel's own file systems; and a
namespace that was lent must be the one that `create` saw. A failure stops the container.
"""

from __future__ import annotations

import sys

from shim import kernel, mountinfo, state, wire
from shim.dim import devices, mounts
from shim.errors import HostError, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.argv import Call
    from shim.mountinfo import Mount

# One superblock for every container: which part is seen is the cgroup namespace's affair, and it is read-only.
SHARED_KINDS = ("cgroup", "cgroup2")
NODES = ("/null", "/zero", "/full", "/random", "/urandom", "/tty")  # bound from the host in a user namespace


def run(call: Call) -> int:
    """`agentshim hook ROOT ID`, with the OCI state on stdin. Refused if something was exchanged."""
    root, container = call.args
    record = state.load(root, container)
    if record is None:
        raise HostError("hook", container, "no record", "the one of its create", "create the container anew")
    told = wire.loads(sys.stdin.buffer.read(), "hook", "state")
    pid = int(told["pid"])  # type: ignore[index]
    pins = record["pins"]
    _check_namespaces(pid, pins["namespaces"])
    if pins["mounts"]:
        expected = {(device, path) for device, path in pins["mounts"]}
        check_mounts(mountinfo.table(pid), mountinfo.table(), record["rootfs"], expected, pins["places"])
    return 0


def _check_namespaces(pid: int, pins: list[list[Any]]) -> None:
    for kind, expected in pins:
        found = kernel.namespace_of(pid, kind)
        if found != expected:
            todo = "its path was exchanged while the container was made: find out by whom, then try again"
            raise Refused("namespaces", kind, found, expected, todo)


def check_mounts(
    inside: list[Mount], host: list[Mount], rootfs: str, expected: set[tuple[str, str]], places: list[str]
) -> None:
    """Refused unless every mount below `rootfs` is fresh, or is `expected` and where it may be."""
    of_host = {mount.device for mount in host}
    for mount in inside:
        if not mountinfo.is_below(mount.place, rootfs) or mount.device not in of_host or mount.kind in SHARED_KINDS:
            continue
        place = mount.place[len(rootfs.rstrip("/")) :] or "/"
        if mount.kind == "devtmpfs" and mount.root in NODES and place == "/dev" + mount.root:
            continue
        if (mount.device, mount.root) not in expected:
            todo = "its source was exchanged while the container was made: find out by whom, then try again"
            raise Refused("mounts", place, f"{mount.root} of {mount.device}", "what was checked", todo)
        if place not in places and mounts.is_over_kernel(place):
            todo = "a link of the image leads there: mount the volume at a path without links"
            raise Refused("mounts", place, mount.root, "no volume over the kernel's own", todo)
