"""The bundle that Docker 20.10 makes for `docker run --network none busybox true`, and its root file system.

Belongs here: what is asked. Next door: `life` runs it. One thing is left out on purpose: dockerd's own prestart hook
(libnetwork-setkey), which needs a dockerd and would cost every contender the same.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from conformance.bench import moby

ID = "@ID@"  # stands for the container's id in a template
CGROUP = "agentshim-bench"  # the parent of every container's control group
BUSYBOX = Path("/bin/busybox")

CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
]
MASKED = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
# destination, type, source, options
MOUNTS = [
    ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
    ("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
    ("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
    ("/sys/fs/cgroup", "cgroup", "cgroup", "ro,nosuid,noexec,nodev"),
    ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
    ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=67108864"),
]
BOUND = ("/etc/resolv.conf", "/etc/hostname", "/etc/hosts")
# major, minor of the character devices that Docker's default rules allow besides denying all
DEVICES = [(1, 5), (1, 3), (1, 9), (1, 8), (5, 0), (5, 1)]
APPLETS = ("true", "sleep", "sh")
# Every place that Docker or a policy of ours mounts on exists already: making it is not what is measured.
FOLDERS = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var/tmp", "work", "home")


def process(*args: str) -> dict[str, Any]:
    """`process` as Docker asks for it, in config.json and (with other args) in exec's process.json."""
    return {
        "user": {"uid": 0, "gid": 0, "additionalGids": [10]},
        "args": list(args),
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=bench"],
        "cwd": "/",
        "capabilities": {name: CAPABILITIES for name in ("bounding", "effective", "permitted")},
        "oomScoreAdj": 0,
    }


def config(work: Path, *args: str, seccomp: bool = True) -> dict[str, Any]:
    """config.json of a bundle whose root file system and bound files are those of `furnish(work)`."""
    linux: dict[str, Any] = {
        "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
        "resources": {"devices": _devices(), "blockIO": {}},
        "cgroupsPath": f"/{CGROUP}/{ID}",
        "namespaces": [{"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc")],
        "maskedPaths": MASKED,
        "readonlyPaths": READONLY,
    }
    if seccomp:
        linux["seccomp"] = moby.resolved(CAPABILITIES)
    return {
        "ociVersion": "1.0.2-dev",
        "process": process(*args),
        "root": {"path": str(work / "rootfs")},
        "hostname": "bench",
        "mounts": [*_mounts(), *_bound(work)],
        "linux": linux,
    }


def template(spec: dict[str, Any]) -> bytes:
    """`spec` as dockerd writes it: one line of JSON."""
    return json.dumps(spec, separators=(",", ":")).encode()


def rare(spec: dict[str, Any], number: int) -> dict[str, Any]:
    """`spec` with a seccomp profile that nobody has seen before: one allowed name, the `number`th, is missing."""
    profile = dict(spec["linux"]["seccomp"])
    first, *rest = profile["syscalls"]
    keep = number % len(first["names"])
    profile["syscalls"] = [{**first, "names": first["names"][:keep] + first["names"][keep + 1 :]}, *rest]
    return {**spec, "linux": {**spec["linux"], "seccomp": profile}}


def furnish(work: Path) -> None:
    """Make `work`/rootfs out of the host's static busybox, and the files that Docker binds over it."""
    root = work / "rootfs"
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (work / "etc").mkdir()
    for name in BOUND:
        (root / name[1:]).touch()
        (work / name[1:]).write_text("127.0.0.1 localhost\n" if name == "/etc/hosts" else "bench\n")


def _mounts() -> list[dict[str, Any]]:
    return [
        {"destination": where, "type": kind, "source": source, "options": options.split(",")}
        for where, kind, source, options in MOUNTS
    ]


def _bound(work: Path) -> list[dict[str, Any]]:
    return [
        {"destination": name, "type": "bind", "source": str(work / name[1:]), "options": ["rbind", "rprivate"]}
        for name in BOUND
    ]


def _devices() -> list[dict[str, Any]]:
    allowed = [{"allow": True, "type": "c", "major": a, "minor": b, "access": "rwm"} for a, b in DEVICES]
    return [{"allow": False, "access": "rwm"}, *allowed]
