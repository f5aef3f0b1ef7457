"""The host that the plan's targets plan on: a few sources, namespaces and programs, each class once.

Belongs here: facts without any look at a real host, the built-in policies as ceilings, and small documents to start
from. Next door: `oracle` judges with the same tables, `targets` uses both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shim import hostpaths
from shim.dim import mounts, namespaces
from shim.kernel import Facts
from tests.fuzz import vocabulary

REPOSITORY = Path(__file__).resolve().parents[2]
COMPILED = REPOSITORY / "shim/policies/compiled"
SMALL_SECCOMP = {
    "architectures": [],
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "flags": [],
    "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": ["read", "write", "clone", "socket", "exit_group"]}],
}


def policies() -> dict[str, dict[str, Any]]:
    """The sections of the built-in policies by name."""
    out = {}
    for name in ("agent", "locked", "web", "dev", "identity"):
        sections = json.loads((COMPILED / f"{name}.json").read_text())["sections"]
        source = json.dumps(SMALL_SECCOMP, sort_keys=True, separators=(",", ":"))
        out[name] = {**sections, "seccomp": "top", "network": sections["network"]}
        out[name]["small"] = {"digest": "small", "caps": 0, "source": source}
    return out


KINDS_OF = {
    "/srv/data": "volume",
    "/srv/loose": "volume",
    "/run/app.sock": "socket",
    "/var/run/docker.sock": "socket",
    "/usr/bin/docker-init": "system",
    "/usr": "system",
    "/e/hosts": "engine",
    "/gone": "missing",
    "": "missing",
}
HOST_NAMESPACES = ("/ns/host", "/proc/1/ns/net", "/proc/self/ns/net")
PROGRAMS = {"/usr/bin/dockerd": "/usr/bin/dockerd", "/opt/hook": "/opt/hook", "/proc/1/exe": "/usr/bin/dockerd"}
WORLD: dict[str, Any] = {
    "host": HOST_NAMESPACES,
    "volumes": {source for source, kind in KINDS_OF.items() if kind == "volume"},
    "sockets": {source for source, kind in KINDS_OF.items() if kind == "socket"},
    "system": {source for source, kind in KINDS_OF.items() if kind == "system"},
    "engines": {source for source, kind in KINDS_OF.items() if kind == "engine"},
    "programs": PROGRAMS,
    "hooks": (),
}


def facts_of(spec: Any) -> Facts:
    """The facts that `kernel.gather` would bring for `spec`, from this module's tables."""
    facts = Facts()
    facts.bundle, facts.launcher, facts.locker = "/bundle", "/usr/bin/agentshim", "/usr/lib/agentshim/agentshim-net"
    root = spec["root"]["path"]
    kind = "volume" if root.startswith("rootfs") else "authority"
    facts.sources[mounts.root_key(root)] = hostpaths.Source(kind, "/bundle/" + root)
    for mount in spec.get("mounts") or ():
        source = mount.get("source") or ""
        if mounts.is_bind(mount):
            facts.sources[source] = hostpaths.Source(KINDS_OF.get(source, "authority"), source)
    for entry in (spec.get("linux") or {}).get("namespaces") or ():
        if entry.get("path"):
            there = namespaces.HOST if entry["path"] in HOST_NAMESPACES else f"at:4:{hash(entry['path']) % 7}"
            facts.namespaces[entry["type"], entry["path"]] = there
    facts.nodes = {"/dev/null": ("c", 1, 3), "/etc/passwd": ("", 0, 0), "/dev/sda": ("b", 8, 0)}
    facts.programs = {**PROGRAMS}
    return facts


SPEC: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "user": {"uid": 0, "gid": 0},
        "args": ["sh"],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": {
            name: ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"] for name in ("bounding", "effective", "permitted")
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": False,
    },
    "root": {"path": "rootfs", "readonly": False},
    "hostname": "h",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {"destination": "/work", "type": "bind", "source": "/srv/data", "options": ["rbind", "rw"]},
    ],
    "annotations": {"a": "b"},
    "linux": {
        "namespaces": [{"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc", "cgroup")],
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 10, "minor": 229}],
            "memory": {"limit": 268435456},
            "pids": {"limit": 100},
        },
        "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}],
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "sysctl": {"net.ipv4.ip_forward": "0"},
    },
}
EMPTY: dict[str, Any] = {"ociVersion": "1.0.2", "process": {"args": ["x"], "cwd": "/"}, "root": {"path": "rootfs"}}
HUNGRY: dict[str, Any] = {
    "ociVersion": "1.1.0",
    "process": {
        "args": ["x"],
        "cwd": "/",
        "capabilities": {
            name: list(vocabulary.CAPS) for name in ("bounding", "effective", "permitted", "inheritable", "ambient")
        },
        "oomScoreAdj": -500,
        "scheduler": {"policy": "SCHED_FIFO", "priority": 5},
    },
    "root": {"path": "rootfs"},
    "mounts": [
        {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "rshared", "dev", "suid"]},
        {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind"]},
    ],
    "annotations": {"run.oci.handler": "krun", "org.systemd.property.X": "y"},
    "linux": {
        "resources": {"devices": [{"allow": True, "access": "rwm"}], "unified": {"pids.max": "max", "memory.low": "5"}},
        "sysctl": {"kernel.core_pattern": "|/x"},
        "personality": {"domain": "LINUX32"},
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["ptrace"], "action": "SCMP_ACT_ERRNO"}]},
        "namespaces": [
            {"type": "mount"},
            {"type": "network", "path": "/proc/1/ns/net"},
            {"type": "pid", "path": "/ns/a"},
        ],
    },
}


def golden() -> list[dict[str, Any]]:
    """What Docker and podman really wrote, without the profile, which other tests know."""
    out = []
    for path in sorted((REPOSITORY / "tests/golden/specs").glob("*.json")):
        whole = json.loads(path.read_text())
        whole.get("linux", {}).pop("seccomp", None)
        out.append(whole)
    return out


DOCUMENTS = [SPEC, EMPTY, HUNGRY, *golden()]
