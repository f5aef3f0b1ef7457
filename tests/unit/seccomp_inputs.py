"""Profiles that the seccomp tests share: the shared data resolved as engines do, others in their shapes that are made
here, our policies', and deny-lists.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from shim.cold.seccomp import libseccomp, seccomp_source
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


# What an engine's list leaves out but for a capability; its other calls are those that this libseccomp knows.
UNLISTED = (
    "acct add_key bpf clone3 delete_module finit_module fsconfig fsmount fsopen fspick init_module io_uring_enter "
    "io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mount "
    "mount_setattr move_mount nfsservctl open_by_handle_at open_tree perf_event_open pivot_root quotactl reboot "
    "request_key setns swapoff swapon syslog umount2 unshare uselib userfaultfd vhangup"
)
ALL_ABIS = (NATIVE, X86, X32)
AF_NETLINK, AF_ALG, AF_KCM = 16, 38, 41
NETLINK_AUDIT = 9
NEW_NAMESPACES = 0x7E020000  # the flags of clone(2) that begin with CLONE_NEW, without NEWTIME


def listed(*conditional: str) -> str:
    """All calls of x86-64 but UNLISTED and those whose arguments a profile looks at, and i386's for many in one."""
    but = {*UNLISTED.split(), *conditional}
    known = (libseccomp.name(number, NATIVE) for number in range(512))
    return " ".join(["socketcall", "ipc", *(name for name in known if name and name not in but)])


@functools.cache
def by_ranges(also: str = "") -> Profile:
    """In the shape of Docker's: one long list for three ABIs, families by ranges, clone(2) by a mask of flags; also:
    calls of UNLISTED that a capability brings.
    """
    return profile(
        "ERRNO",
        rule(f"{listed('clone', 'personality', 'socket')} {also}", "ALLOW"),
        *(rule("personality", "ALLOW", (0, "EQ", value)) for value in (0, 0x0040000, 2**32 - 1)),
        rule("socket", "ALLOW", (0, "LT", AF_ALG)),
        rule("socket", "ALLOW", (0, "EQ", AF_KCM)),
        rule("socket", "ALLOW", (0, "GT", AF_KCM)),
        rule("clone", "ALLOW", (0, "MASKED_EQ", NEW_NAMESPACES, 0)),
        rule("clone3", "ERRNO", errno=38),
        archs=ALL_ABIS,
    )


@functools.cache
def by_exceptions() -> Profile:
    """In the shape of podman's: what is unknown has another errno than what is denied, and of NETLINK's protocols one
    is left out, by an EQ of two arguments and the NE of each.
    """
    return profile(
        "ERRNO",
        rule(UNLISTED, "ERRNO", errno=1),
        rule(listed("personality", "socket"), "ALLOW"),
        *(rule("personality", "ALLOW", (0, "EQ", value)) for value in (0, 8, 2**32 - 1)),
        rule("socket", "ERRNO", (0, "EQ", AF_NETLINK), (2, "EQ", NETLINK_AUDIT), errno=22),
        rule("socket", "ALLOW", (2, "NE", NETLINK_AUDIT)),
        rule("socket", "ALLOW", (0, "NE", AF_NETLINK)),
        archs=ALL_ABIS,
        defaultErrnoRet=38,
    )


def dockers() -> Profile:
    """What Docker asks: its own profile where the shared data are, else one in its shape."""
    return moby() if SHARED.is_dir() else by_ranges()


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
