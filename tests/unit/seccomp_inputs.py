"""Profiles that the seccomp tests share: the shared data resolved as engines do, ours, and deny-lists."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from shim.cold import seccomp_source
from shim.dim import seccomp
from shim.seccomp import resolve
from shim.seccomp.profile import Profile

SHARED = Path(os.environ.get("AGENTSHIM_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "seccomp"
NATIVE, X86, X32 = "SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"
OURS = ("locked", "agent", "web", "dev")

# What engines grant by default, as their profiles are resolved.
DOCKER = (
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL "
    "AUDIT_WRITE"
)
PODMAN = "CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT"


def mask(caps: str) -> int:
    return sum(resolve.BITS[f"CAP_{cap}"] for cap in caps.split())


@functools.cache
def shared(name: str, caps: str) -> dict[str, Any]:
    """A profile of the shared data as an engine writes it into a spec: resolved, with all ABIs of the machine."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"LOUD: {path} is missing; set AGENTSHIM_SHARED: the meet is NOT tested on real profiles")
    tree = seccomp_source.normal(json.loads(path.read_bytes()), name)
    raw = resolve.resolve(tree, mask(caps), "x86_64", (6, 18))
    raw["architectures"] = [NATIVE, X86, X32]
    del raw["flags"]
    return raw


def moby(more: str = "") -> Profile:
    return Profile(shared("moby-default.json", f"{DOCKER} {more}".strip()))


def containers_common(caps: str = PODMAN) -> Profile:
    return Profile(shared("containers-common.json", caps))


@functools.cache
def section(name: str, add: tuple[str, ...] = ()) -> Any:
    return seccomp_source.expand({"profile": name, "add": list(add)}, "/")


def ours(name: str, caps: str = "", add: tuple[str, ...] = ()) -> Profile:
    return seccomp.resolve(seccomp.from_policy(section(name, add)), mask(caps))


def rule(names: str, action: str, *conditions: tuple[Any, ...], errno: int | None = None) -> dict[str, Any]:
    """A rule; conditions: (index, operator, value[, second value])."""
    out: dict[str, Any] = {"names": names.split(), "action": f"SCMP_ACT_{action}"}
    if errno is not None:
        out["errnoRet"] = errno
    if conditions:
        keys = ("index", "op", "value", "valueTwo")
        out["args"] = [dict(zip(keys, (c[0], f"SCMP_CMP_{c[1]}", *c[2:]))) for c in conditions]
    return out


def profile(default: str, *rules: dict[str, Any], archs: tuple[str, ...] = (NATIVE,), **more: Any) -> Profile:
    return Profile(
        {
            "defaultAction": f"SCMP_ACT_{default}",
            "architectures": list(archs),
            "flags": [],
            "syscalls": list(rules),
            **more,
        }
    )


UNIX_ONLY = profile("ALLOW", rule("socket", "ERRNO", (0, "NE", 1)))
NO_PACKET = profile("ALLOW", rule("socket", "ERRNO", (0, "EQ", 17)), rule("ptrace bpf mount", "ERRNO"))
NO_NETLINK = profile("ALLOW", rule("socket", "ERRNO", (0, "EQ", 16)), rule("keyctl ptrace", "KILL"))
NO_NAMESPACES = profile("ALLOW", rule("clone unshare", "ERRNO", (0, "MASKED_EQ", 0x10000000, 0x10000000)))
NO_TIOCSTI = profile("ALLOW", rule("ioctl", "ERRNO", (1, "EQ", 0x5412)))
RANGES = profile(
    "ERRNO", rule("socket", "ALLOW", (0, "LT", 38)), rule("socket", "ALLOW", (0, "GT", 40)), rule("read", "ALLOW")
)
DENY_LISTS = {
    "unix": UNIX_ONLY,
    "packet": NO_PACKET,
    "netlink": NO_NETLINK,
    "clone": NO_NAMESPACES,
    "tiocsti": NO_TIOCSTI,
}
