"""What the kernel must be able to do, and what it should: each asked of the kernel itself, not of its version.

Belongs here: what an answer means for a container. Next door: `probes` asks; `network` has nf_tables.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator

from shim import kernel
from shim.cold.doctor import probes
from shim.cold.doctor.host import FAIL, OK, WARN, Finding, Host
from shim.dim import capabilities
from shim.errors import ShimError, reason

# Name, number in <linux/seccomp.h>, and what fails without it ('' where nothing of ours does).
ACTIONS = (
    ("kill_process", 0x80000000, "filters"),
    ("trap", 0x00030000, "filters"),
    ("errno", 0x00050000, "filters"),
    ("user_notif", 0x7FC00000, ""),
    ("trace", 0x7FF00000, ""),
    ("log", 0x7FFC0000, ""),
    ("allow", 0x7FFF0000, "filters"),
)
FLAGS = (("tsync", 0x1, "filters"), ("log", 0x2, ""), ("spec_allow", 0x4, ""), ("new_listener", 0x8, ""))
NAMESPACES = {
    "mnt": probes.NEW_NS,
    "cgroup": probes.NEW_CGROUP,
    "uts": probes.NEW_UTS,
    "ipc": probes.NEW_IPC,
    "pid": probes.NEW_PID,
    "net": probes.NEW_NET,
}
LOGGED = ("kill_process", "kill_thread", "trap", "errno")
CONTROLLERS = {"pids": "processes", "memory": "memory", "cpu": "cpus", "devices": "devices"}


AS_ROOT = "run agentshim doctor as root"


def asked(
    name: str, probe: Callable[[], object], found: str, without: str, todo: str, level: str = FAIL
) -> Iterator[Finding]:
    """A finding by a probe that raises where the kernel says no; `without`: what does not work then."""
    try:
        probe()
    except (OSError, ShimError) as error:
        said = reason(error) if isinstance(error, OSError) else str(error.asked)
        if os.geteuid() != 0:
            yield Finding(WARN, name, f"could not be checked: {said}", AS_ROOT)
        else:
            yield Finding(level, name, f"{said}: {without}", todo)
        return
    yield Finding(OK, name, found)


def seccomp(host: Host) -> Iterator[Finding]:
    """Actions, flags, and whether a loaded filter can be read."""
    for what, table, has in (("actions", ACTIONS, probes.has_action), ("flags", FLAGS, probes.has_flag)):
        missing = [(name, need) for name, number, need in table if not has(number)]
        level = FAIL if any(need for _, need in missing) else WARN if missing else OK
        lacks = ", ".join(name for name, _ in missing)
        shown = f"lacks {lacks}" if missing else ", ".join(name for name, *_ in table)
        yield Finding(level, f"kernel.seccomp-{what}", shown, "use a kernel of Linux 5.0 or newer" if missing else "")
    yield from asked(
        "kernel.seccomp-read",
        probes.read_filter,
        "the filter of a process can be read and compared",
        "the first container of each pair of profiles is refused",
        "install agentshim with its packages (make install), on a kernel with CONFIG_CHECKPOINT_RESTORE, as host root",
    )


def calls(host: Host) -> Iterator[Finding]:
    """System calls that we, or a delegate for us, rely on."""
    yield Finding(OK, "kernel.version", f"Linux {platform.release()} on {platform.machine()}")
    yield from asked("kernel.openat2", probes.openat2, "there", "runc is more easily raced", "Linux 5.6", WARN)
    yield from asked("kernel.pidfd", probes.pidfd, "there", "a process may be taken for another", "Linux 5.3", WARN)
    yield from asked(
        "kernel.memfd-noexec",
        probes.noexec_memfd,
        "memory files that cannot be executed",
        "under locked, agent and web no memory file can be made",
        "use Linux 6.3 or newer where programs need memfd_create",
        WARN,
    )


def namespaces(host: Host) -> Iterator[Finding]:
    """Whether namespaces can be made, and user namespaces among them."""
    missing = []
    for name, flag in NAMESPACES.items():
        try:
            probes.apart(flag, lambda: None)
        except OSError as error:
            missing.append(f"{name} ({reason(error)})")
    if missing and os.geteuid() != 0:
        yield Finding(WARN, "kernel.namespaces", "could not be checked", AS_ROOT)
    else:
        todo = "run as root of the host, on a kernel with these" if missing else ""
        shown = f"cannot make {', '.join(missing)}" if missing else ", ".join(NAMESPACES)
        yield Finding(FAIL if missing else OK, "kernel.namespaces", shown, todo)
    yield from asked(
        "kernel.user-namespaces",
        lambda: probes.apart(probes.NEW_USER, lambda: None),
        "there",
        "userns-remap does not work",
        "see /proc/sys/user/max_user_namespaces",
        WARN,
    )
    if not host.has("/proc/self/ns/time"):
        yield Finding(WARN, "kernel.time-namespaces", "not there", "Linux 5.6, where containers ask for them")


def cgroups(host: Host) -> Iterator[Finding]:
    """Which hierarchies there are, and the controllers that limits need."""
    line = r"^(?:\S+ ){4}(\S+) \S+ (?:\S+ )*?- (cgroup2?) \S+ (\S+)$"  # proc_pid_mountinfo(5)
    mounts = re.findall(line, host.text("/proc/self/mountinfo"), re.MULTILINE)
    v2 = next((place for place, kind, _ in mounts if kind == "cgroup2"), "")
    found = {word for _, kind, options in mounts if kind == "cgroup" for word in options.split(",")}
    if v2:
        found |= set(host.text(f"{v2}/cgroup.controllers").split())
    is_v1 = any(kind == "cgroup" for _, kind, _ in mounts)
    mode = "v1 and v2" if is_v1 and v2 else "v1" if is_v1 else "v2" if v2 else "none"
    wanted = [name for name in CONTROLLERS if is_v1 or name != "devices"]  # v2: by a program of the delegate's
    missing = [name for name in wanted if name not in found]
    if mode == "none":
        yield Finding(FAIL, "kernel.cgroups", "no hierarchy is mounted", "mount cgroup2 at /sys/fs/cgroup")
    elif missing:
        limits = ", ".join(CONTROLLERS[name] for name in missing)
        shown = f"{mode}, without {', '.join(missing)}: limits of {limits} do not hold"
        yield Finding(WARN, "kernel.cgroups", shown, "enable the controllers (kernel command line: cgroup_enable=)")
    else:
        yield Finding(OK, "kernel.cgroups", f"{mode}: {', '.join(wanted)}")


def modules(host: Host) -> Iterator[Finding]:
    """AppArmor and SELinux."""
    active, labels = kernel._modules()
    if not host.has("/sys/kernel/security/lsm"):
        enabled = host.text("/sys/module/apparmor/parameters/enabled").startswith("Y")
        enabled = enabled or host.has("/sys/fs/selinux/enforce")
        told = "one is enabled, and is not asked for" if enabled else "neither AppArmor nor SELinux shows"
        todo = "mount -t securityfs securityfs /sys/kernel/security"
        yield Finding(WARN, "kernel.lsm", f"could not be checked: no securityfs; {told}", todo)
    elif not active:
        yield Finding(WARN, "kernel.lsm", "neither AppArmor nor SELinux", "enable one: a layer less without")
    elif "apparmor" in active and not labels:
        todo = "start the engine once, which loads docker-default or its like"
        yield Finding(WARN, "kernel.lsm", "AppArmor, with no profile for containers loaded", todo)
    else:
        shown = ", ".join(f"{name} {labels.get(name, '')}".strip() for name in active)
        yield Finding(OK, "kernel.lsm", shown)


def denials(host: Host) -> Iterator[Finding]:
    """Whether the kernel can say which call a filter denied."""
    yield from asked(
        "kernel.audit",
        probes.audit_socket,
        "the kernel keeps audit records",
        "denied system calls leave no trace",
        "use a kernel with CONFIG_AUDIT, and no audit=0 on its command line",
        WARN,
    )
    logged = host.text("/proc/sys/kernel/seccomp/actions_logged").split()
    missing = [name for name in LOGGED if name not in logged]
    todo = "sysctl kernel.seccomp.actions_logged='" + " ".join([*logged, *missing]) + "'" if missing else ""
    shown = f"not logged: {', '.join(missing)}" if missing else ", ".join(logged)
    yield Finding(WARN if missing else OK, "kernel.seccomp-logged", shown, todo)


def sysctls(host: Host) -> Iterator[Finding]:
    """Host settings that change what a container without capabilities may do."""
    told = host.text("/proc/sys/net/ipv4/ip_unprivileged_port_start").strip()
    if told:
        yield Finding(
            OK, "kernel.port-start", f"ip_unprivileged_port_start {told} on the host, containers have their own"
        )
    else:
        todo = "Linux 4.11, or grant NET_BIND_SERVICE"
        yield Finding(
            WARN, "kernel.port-start", "no ip_unprivileged_port_start: ports below 1024 need a capability", todo
        )


def authority(host: Host) -> Iterator[Finding]:
    """Whether this root has all capabilities: a virtual machine or a container may lack some."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", host.text("/proc/self/status"), re.MULTILINE)
    held = int(found[1], 16) if found else 0
    lacks = [name for number, name in enumerate(capabilities.CAPABILITIES) if not held >> number & 1]
    if os.geteuid() != 0:
        yield Finding(WARN, "kernel.root", f"uid {os.geteuid()}: several checks need root", AS_ROOT)
    elif lacks:
        todo = "what needs them fails, under every runtime (SYS_RESOURCE: a negative oom_score_adj)"
        yield Finding(WARN, "kernel.root", f"root without {', '.join(lacks)}", todo)
    else:
        yield Finding(OK, "kernel.root", "root with every capability")
