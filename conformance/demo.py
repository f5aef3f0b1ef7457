"""`make demo`: one real container, run by real runc through agentshim, that asks for everything and gets little.

It asks as `docker run --privileged --pid=host` does. What it got is read by the kernel's own words from inside.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
LAUNCHER = REPOSITORY / "native" / "build" / "agentshim"
BUSYBOX = Path("/bin/busybox")
SCRIPT = """
echo "--- inside the container, as the kernel tells it"
grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status
echo "processes in sight: $(ls -d /proc/[0-9]* | wc -l)"
touch /etc/owned 2>&1; touch /tmp/ok && echo "/tmp is writable"
mount -t tmpfs none /mnt 2>&1; unshare -U true 2>&1; mknod /tmp/sda b 8 0 2>&1
ip -o link | cut -d: -f2
"""


def main() -> int:
    """Exit code of the container; anything but 0 is a fault."""
    if os.geteuid() != 0:
        sys.stderr.write("demo: run it as root: containers are made here\n")
        return 1
    bundle = Path(tempfile.mkdtemp(prefix="agentshim-demo-", dir="/run"))
    try:
        _bundle(bundle)
        print("--- agentshim explain: what is asked, what is granted, and why", flush=True)
        subprocess.run([LAUNCHER, "explain", str(bundle)], check=True)
        done = subprocess.run([LAUNCHER, "run", "--bundle", str(bundle), f"demo-{os.getpid()}"], check=False)
        return done.returncode
    finally:
        shutil.rmtree(bundle)


def _bundle(bundle: Path) -> None:
    root = bundle / "rootfs"
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "mnt"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    names = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in set(names) - {"busybox"}:
        (root / "bin" / name).symlink_to("busybox")
    (bundle / "config.json").write_text(json.dumps(_privileged()))


def _privileged() -> dict[str, Any]:
    """What an engine writes for --privileged --pid=host --network=host: every capability, no filter, no masks."""
    sys.path.insert(0, str(REPOSITORY))
    from shim.dim import capabilities

    everything = capabilities.names_of(capabilities.ALL)
    kernel = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", SCRIPT],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), everything),
        },
        "root": {"path": "rootfs"},
        "hostname": "demo",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": kernel},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755", "size=65536k"],
            },
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*kernel, "rw"]},
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            "resources": {"devices": [{"allow": True, "access": "rwm"}]},
        },
    }


if __name__ == "__main__":
    sys.exit(main())
