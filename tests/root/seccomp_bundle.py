"""Bundles for the root tests of seccomp: a static program under a given profile, by the delegate alone.

Next door: `debian` starts programs through agentshim, under whole policies.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from shim.seccomp.profile import Profile

DELEGATES = ("runc", "crun")


def write(bundle: Path, profile: Profile, args: list[str], mounts: list[dict[str, Any]], **process: Any) -> None:
    """A bundle that runs `args`; its root file system is <bundle>/rootfs, made here if it is missing."""
    rootfs = bundle / "rootfs"
    for point in ("proc", "dev", "sys", "tmp", *(mount["destination"].strip("/") for mount in mounts)):
        (rootfs / point).mkdir(parents=True, exist_ok=True)
    spec = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/tmp"],
            "cwd": "/tmp",
            "noNewPrivileges": True,
            "capabilities": {},
            **process,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["mode=1777"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=512m", "mode=1777"]},
            *mounts,
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
            **({} if profile.is_top else {"seccomp": profile.raw}),
        },
    }
    (bundle / "config.json").write_text(json.dumps(spec))


def run(delegate: str, bundle: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A container's whole life; its output and exit code."""
    command = [delegate, "--root", str(bundle / f"state-{delegate}"), "run", "--bundle", str(bundle), name(bundle)]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    finally:
        delete = [delegate, "--root", str(bundle / f"state-{delegate}"), "delete", "--force", name(bundle)]
        subprocess.run(delete, check=False, capture_output=True)


def name(bundle: Path) -> str:
    return f"seccomp-{os.getpid()}-{bundle.name}"
