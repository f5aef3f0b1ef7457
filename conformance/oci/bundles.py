"""Bundles as Docker writes them, made by hand.

Belongs here: a config.json as data and directories to run it from. Next door: `cli` runs it.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

CAPS = [
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
ENV = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
SAFE = ["nosuid", "noexec", "nodev"]
SPEC: dict[str, Any] = {
    "ociVersion": "1.0.2-dev",
    "process": {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": ["sh"],
        "env": ENV,
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPS),
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
    },
    "root": {"path": "rootfs"},
    "hostname": "conformance",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": SAFE},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        },
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*SAFE, "ro"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": SAFE},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*SAFE, "mode=1777", "size=64m"]},
    ],
    "annotations": {"org.example.conformance": "kept"},
    "linux": {
        "resources": {"devices": [{"allow": False, "access": "rwm"}], "memory": {"limit": 268435456}},
        "namespaces": [{"type": name} for name in ("mount", "network", "uts", "pid", "ipc")],
        "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    },
}


def spec(*args: str, cgroup: str = "") -> dict[str, Any]:
    """A config of one's own that runs `args`; `cgroup` is linux.cgroupsPath."""
    out = copy.deepcopy(SPEC)
    out["process"]["args"] = list(args or ("sh", "-c", "exit 0"))
    if cgroup:
        out["linux"]["cgroupsPath"] = cgroup
    return out


def sleeper(cgroup: str = "") -> dict[str, Any]:
    """A config whose process waits for signals: TERM ends it with 5."""
    return spec("sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.05; done", cgroup=cgroup)


def _linked(source: str, target: str, *, follow_symlinks: bool = False) -> str:
    """Copies by hard link: no test writes to a file that the root came with."""
    os.link(source, target, follow_symlinks=follow_symlinks)
    return target


class Bundle:
    """A directory with config.json and a root file system of its own."""

    def __init__(self, path: Path, rootfs: Path, config: dict[str, Any]) -> None:
        path.mkdir(parents=True)
        path.chmod(0o755)
        shutil.copytree(rootfs, path / "rootfs", symlinks=True, copy_function=_linked)
        self.path = path
        self.config = path / "config.json"
        self.write(config)

    def write(self, config: dict[str, Any] | str | bytes) -> None:
        """Replace config.json by an object, or by these very characters or bytes."""
        data = json.dumps(config) if isinstance(config, dict) else config
        self.config.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))

    def read(self) -> Any:
        """config.json as it is now."""
        return json.loads(self.config.read_bytes())
