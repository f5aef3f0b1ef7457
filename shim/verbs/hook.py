"""Our createRuntime hook: what was mounted must be what was checked.

Runs in the host's namespaces while the container's init waits, after its mounts and before its first instruction. What
is mounted at each place must have the identity that `create` saw for that place, wherever a name led in between, or be
a file system of the container's own where such a one belongs; and a namespace that was lent must be the one that
`create` saw. A failure stops the container.
"""

from __future__ import annotations

import sys

from shim import kernel, mountinfo, state, wire
from shim.errors import HostError, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.argv import Call
    from shim.mountinfo import Mount

# The container's own file systems and where they may be; below a place, only a part of itself (a mask, a pty).
OWN = {"proc": "/proc", "sysfs": "/sys", "mqueue": "/dev/mqueue", "devpts": "/dev"}
# One superblock for every container: which part is seen is the cgroup namespace's affair, and it is read-only.
GROUPS = ("cgroup", "cgroup2")
NODES = ("/null", "/zero", "/full", "/random", "/urandom", "/tty")  # bound from the host in a user namespace


def run(call: Call) -> int:
    """`agentshim hook ROOT ID [filter]`, with the OCI state on stdin. Refused if something was exchanged, Bug if the
    filter that was loaded is looser than the one that was proved.
    """
    root, container, *what = call.args
    record = state.load(root, container)
    if record is None:
        raise HostError("hook", container, "no record", "the one of its create", "create the container anew")
    told = wire.loads(sys.stdin.buffer.read(), "hook", "state")
    pid = int(told["pid"])  # type: ignore[index]
    if what == [kernel.FILTER]:
        return _check_filter(record, pid, str(told["status"]))  # type: ignore[index]
    pins = record["pins"]
    _check_namespaces(pid, pins["namespaces"])
    if pins["mounts"]:
        check_mounts(mountinfo.table(pid), mountinfo.table(), record["rootfs"], pins["mounts"], pins["loose"])
    return 0


def _check_filter(record: dict[str, Any], pid: int, status: str) -> int:
    """As at the first `start` after a create; `run` has none."""
    if status != "created":  # a later runc may call us when the program runs already: it is ended
        raise HostError("hook", "poststart", status, "a container that waits", "use create and start")
    from shim.cold.seccomp import first_filter, loaded_filter

    first_filter.compare(record, loaded_filter.filters(pid))
    return 0


def _check_namespaces(pid: int, pins: list[list[Any]]) -> None:
    for kind, expected in pins:
        found = kernel.namespace_of(pid, kind)
        if found != expected:
            todo = "its path was exchanged while the container was made: find out by whom, then try again"
            raise Refused("namespaces", kind, found, expected, todo)


def check_mounts(
    inside: list[Mount], host: list[Mount], rootfs: str, expected: list[list[Any]], loose: list[list[Any]]
) -> None:
    """Refused unless every mount below `rootfs` is the container's own at its place, or what was checked for its place.

    `expected`, `loose`: as in create's pins. A volume that a link of the image led elsewhere is refused: its place was
    not checked.
    """
    of_host = {mount.device for mount in host}
    if all(mount.place != rootfs for mount in inside):
        asked, todo = "no mount there", "report this: the delegate runs its hooks elsewhere; nothing was started"
        raise HostError("mounts", rootfs, asked, "the container's root, where a hook sees it", todo)
    for mount in inside:
        if not mountinfo.is_below(mount.place, rootfs):
            continue
        place = mount.place[len(rootfs.rstrip("/")) :] or "/"
        fine = _is_expected(mount, place, expected) or [[mount.device, mount.root], mount.readonly] in loose
        if not fine and [[mount.device, mount.root], False] not in loose and not _is_own(mount, place, of_host):
            todo = (
                "mount it at a path without links of the image; if there are none, its source was exchanged meanwhile"
            )
            asked = f"{mount.root} of device {mount.device} ({mount.kind})"
            raise Refused("mounts", place, asked, "what was checked for this place", todo)


def _is_expected(mount: Mount, place: str, expected: list[list[Any]]) -> bool:
    """Whether the mount is the source that was checked for exactly this place, or what a bind brings along below it."""
    best = max((one for one, _ in expected if mountinfo.is_below(place, one)), key=len, default="/")
    for one, identities in expected:
        there = [list(identity) for identity in identities]
        if one == best and [mount.device, mount.root] in (there[:1] if place == one else there[1:]):
            return True
    return False


def _is_own(mount: Mount, place: str, of_host: set[str]) -> bool:
    """Whether the mount is of a file system that was made for this container, where such a one belongs."""
    if mount.kind in GROUPS:
        return mountinfo.is_below(place, "/sys/fs/cgroup")
    if mount.kind == "devtmpfs":
        return mount.root in NODES and place == "/dev" + mount.root
    if mount.device in of_host:
        return False
    if mount.kind in OWN:
        top = OWN[mount.kind]
        part = mount.kind == "devpts" or mount.root == (place[len(top) :] or "/")
        return mountinfo.is_below(place, top) and part
    return mount.kind == "tmpfs"
