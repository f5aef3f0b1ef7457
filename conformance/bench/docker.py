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
# Docker's own layout, since a runtime may tell an engine's files from a host's by where they are. All containers share
# one root file system and one set of files; in the real layout each has its own directories of 64 digits.
BUNDLES = Path("/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby")
ROOT = Path("/var/lib/docker/overlay2") / ("be" * 32) / "merged"
FILES = Path("/var/lib/docker/containers") / ("be" * 32)

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
SPARE = ("inotify_", "io_", "mq_", "msg", "sem", "shm", "timer_")
# Every place that Docker or a policy of ours mounts on exists already: making it is not what is measured.
FOLDERS = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var/tmp", "work", "home")


def process(*args: str) -> dict[str, Any]:
    """`process` as Docker asks for it, in config.json and (with other args) in exec's process.json."""
    return {
        "user": {"uid": 0, "gid": 0, "additionalGids": [10]},
        "args": list(args),
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=bench"],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
        "oomScoreAdj": 0,
    }


def config(*args: str) -> dict[str, Any]:
    """config.json of a bundle whose root file system and bound files are those of `furnish`."""
    linux: dict[str, Any] = {
        "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
        "resources": {"devices": _devices(), "blockIO": {}},
        "cgroupsPath": f"/{CGROUP}/{ID}",
        "namespaces": [{"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc")],
        "maskedPaths": MASKED,
        "readonlyPaths": READONLY,
        "seccomp": moby.resolved(CAPABILITIES),
    }
    return {
        "ociVersion": "1.0.2-dev",
        "process": process(*args),
        "root": {"path": str(ROOT)},
        "hostname": "bench",
        "mounts": [*_mounts(), *_bound()],
        "linux": linux,
    }


def template(spec: dict[str, Any]) -> bytes:
    """`spec` as dockerd writes it: one line of JSON."""
    return json.dumps(spec, separators=(",", ":")).encode()


def rare(spec: dict[str, Any], number: int) -> dict[str, Any]:
    """`spec` with a seccomp profile that nobody has seen before: the `number`th of the names that neither a runtime
    nor the workload needs is missing.
    """
    profile = dict(spec["linux"]["seccomp"])
    first, *rest = profile["syscalls"]
    spare = [name for name in first["names"] if name.startswith(SPARE)]
    names = [name for name in first["names"] if name != spare[number % len(spare)]]
    profile["syscalls"] = [{**first, "names": names}, *rest]
    return {**spec, "linux": {**spec["linux"], "seccomp": profile}}


def furnish() -> None:
    """Make the root file system out of the host's static busybox, and the files that Docker binds over it."""
    for folder in FOLDERS:
        (ROOT / folder).mkdir(parents=True)
    shutil.copy(BUSYBOX, ROOT / "bin" / "busybox")
    for applet in APPLETS:
        (ROOT / "bin" / applet).symlink_to("busybox")
    (ROOT / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (ROOT / "etc/group").write_text("root:x:0:\n")
    FILES.mkdir(parents=True)
    for name in BOUND:
        (ROOT / name[1:]).touch()
        (FILES / Path(name).name).write_text("127.0.0.1 localhost\n" if name == "/etc/hosts" else "bench\n")


def _mounts() -> list[dict[str, Any]]:
    return [
        {"destination": where, "type": kind, "source": source, "options": options.split(",")}
        for where, kind, source, options in MOUNTS
    ]


def _bound() -> list[dict[str, Any]]:
    options = ["rbind", "rprivate"]
    return [
        {"destination": name, "type": "bind", "source": str(FILES / Path(name).name), "options": options}
        for name in BOUND
    ]


def _devices() -> list[dict[str, Any]]:
    allowed = [{"allow": True, "type": "c", "major": a, "minor": b, "access": "rwm"} for a, b in DEVICES]
    return [{"allow": False, "access": "rwm"}, *allowed]
