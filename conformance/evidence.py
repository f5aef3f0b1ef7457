"""Evidence from inside a container: what the kernel says, never what a config.json asked for.

Belongs here: one shell script that any image with a shell can run, and the parser of its output. Attempts are harmless
where they succeed (a dummy file, a tmpfs in the container's own mount namespace). Next door: `columns` says what is
expected of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
CAP_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

SCRIPT = r"""
echo '=== status'; cat /proc/self/status
echo '=== mountinfo'; cat /proc/self/mountinfo
echo '=== namespaces'; for n in cgroup ipc mnt net pid user uts; do echo "$n: $(readlink /proc/self/ns/$n)"; done
echo '=== limits'; cat /proc/self/limits
echo '=== attempts'
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "$name: yes"; else echo "$name: no"; fi; }
try write-root touch /asc.probe
try write-tmp touch /tmp/asc.probe
try mount mount -t tmpfs none /mnt
try mknod mknod /tmp/asc.node c 1 3
try chown chown 12:34 /tmp/asc.probe
try setgid su -s /bin/true nobody
try hostname hostname asc-probe
try net-admin ip link add asc-probe type dummy
try user-namespace unshare -U true
try chroot chroot / true
try core-pattern sh -c ': >> /proc/sys/kernel/core_pattern'
try sysrq sh -c ': >> /proc/sysrq-trigger'
c=/sys/fs/cgroup; [ -e $c/cgroup.controllers ] || c=$c/pids  # v1: above is a tmpfs of the container's own
try cgroup-write mkdir $c/asc.probe
try nice nice -n -5 true
try kcore sh -c 'head -c 16 /proc/kcore | grep -q .'
rm -f /asc.probe /tmp/asc.probe /tmp/asc.node; rmdir $c/asc.probe 2>/dev/null
echo '=== end'
"""


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo: where, of what type, with which per-mount options, from which source and root."""

    point: str
    kind: str
    options: frozenset[str]
    root: str


@dataclass(frozen=True)
class Evidence:
    """The kernel's word on one process of a container."""

    status: dict[str, str]
    mounts: dict[str, Mount]
    namespaces: dict[str, int]
    limits: tuple[str, ...]
    attempts: dict[str, bool]

    @property
    def caps(self) -> dict[str, int]:
        """The five capability sets as bit masks."""
        return {name: int(self.status[name], 16) for name in CAP_SETS}

    @property
    def no_new_privs(self) -> bool:
        return self.status["NoNewPrivs"] == "1"

    @property
    def seccomp(self) -> int:
        """0 none, 2 filter."""
        return int(self.status["Seccomp"])

    @property
    def succeeded(self) -> frozenset[str]:
        """The attempts that the kernel let through."""
        return frozenset(name for name, done in self.attempts.items() if done)

    def shared_with(self, other: dict[str, int]) -> set[str]:
        """The namespaces that are the same as in `other`."""
        return {name for name, inode in self.namespaces.items() if other.get(name) == inode}


def parsed(text: str) -> Evidence:
    """The output of SCRIPT as Evidence; ValueError when it did not run to its end."""
    if "=== end" not in text:
        raise ValueError(f"the probe did not finish: {text!r}")
    blocks = dict(block.split("\n", 1) for block in text.replace("\r", "").split("=== ")[1:])
    mounts = [_mount(line) for line in blocks["mountinfo"].splitlines()]
    return Evidence(
        status=_pairs(blocks["status"]),
        mounts={mount.point: mount for mount in mounts},
        namespaces={name: int(link.split("[")[1].rstrip("]")) for name, link in _pairs(blocks["namespaces"]).items()},
        limits=tuple(blocks["limits"].splitlines()),
        attempts={name: word == "yes" for name, word in _pairs(blocks["attempts"]).items()},
    )


def _pairs(block: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in block.splitlines())}


def _mount(line: str) -> Mount:
    """proc(5): id parent dev root point options optional... - type source super-options."""
    before, _, after = line.partition(" - ")
    words = before.split()
    return Mount(point=words[4], kind=after.split()[0], options=frozenset(words[5].split(",")), root=words[3])


def of_process(pid: int | str) -> dict[str, int]:
    """Namespace inodes of a process of the host."""
    return {name: os.stat(f"/proc/{pid}/ns/{name}").st_ino for name in NAMESPACES}


def status_of(pid: int) -> dict[str, str]:
    """/proc/<pid>/status of a process of the host."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return _pairs(file.read())
