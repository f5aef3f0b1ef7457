"""Doors to the host and to the kernel that a program in a container may try, and what would shut each. Rows of data.

Belongs here: for each door, what a dimension must take away so that this alone keeps it shut, with the reason where a
policy has fewer than two such locks. Next door: `two_locks` asks the policies' own values. What an engine may ask for a
container (hooks, volumes, sockets, annotations) is no door of a program's: the dimensions refuse it one by one.
Labels of AppArmor and SELinux shut many of these once more, where the host has them: they are not counted.
Source: the man pages of section 2, capabilities(7), namespaces(7), proc(5); others are named where they are needed.
"""

from __future__ import annotations

from typing import NamedTuple


class Few(NamedTuple):
    """In each of `policies`, `locks` and no others shut the door ("" for none: it is open), and `why` that is so."""

    policies: str
    locks: str
    why: str


class Door(NamedTuple):
    """`name`; then, by dimension, words of which all must be shut for it to count as a lock, "" where it is none.

    caps: none of these capabilities in any set. gain: no_new_privs. calls: denied whatever the arguments are, or
    wherever those in brackets are: a number is that of the low 32 bits, MASK:NUMBER that of these bits, _ any. kinds:
    namespaces that are not the host's. masked, readonly: paths (masked does for both). nodes: devices b or c
    MAJOR:MINOR, * for any, that may not be opened. mounts: classes of dim.mounts that are refused, or CLASS-RIGHT.
    flags: options of the engine's call that are not passed on. root: no uid 0. network: what leaves is filtered.
    """

    name: str
    caps: str = ""
    gain: bool = False
    calls: str = ""
    kinds: str = ""
    masked: str = ""
    readonly: str = ""
    nodes: str = ""
    mounts: str = ""
    flags: str = ""
    root: bool = False
    network: bool = False
    few: tuple[Few, ...] = ()


INTERNET = "socket(2) socket(10) socketcall"
EVERY, ROOTS = "locked agent web dev", "agent web dev"
TRACE = "ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp process_madvise"
# clone(2): NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWPID, NEWNET; NEWTIME is unshare's and clone3's alone.
NEW = "clone3 unshare(0x80:0x80) " + " ".join(
    f"{call}({flag:#x}:{flag:#x})"
    for flag in (1 << 17, 1 << 25, 1 << 26, 1 << 27, 1 << 29, 1 << 30)
    for call in ("clone", "unshare")
)
# S_IFMT, of it S_IFBLK and S_IFCHR
NODES = "mknod(_,0xf000:0x6000) mknod(_,0xf000:0x2000) mknodat(_,_,0xf000:0x6000) mknodat(_,_,0xf000:0x2000)"
# Of any protocol; socket(2): SOCK_RAW, and SOCK_PACKET, beside flags
RAW = "socket(2,0xf:3) socket(10,0xf:3) socketcall"
PACKET = "socket(17) socket(44) socket(2,0xf:10) socketcall"
# Disks; memory, ports, the kernel's log; terminals of the host; misc (fuse, kvm, tun, loop-control, …); input; graphics
HARDWARE = "b*:* c1:1 c1:2 c1:4 c1:11 c4:* c5:1 c10:* c13:* c226:*"
UID_0 = "uid 0 owns these files and needs no capability; the mount is read-only, and to mount has two locks of its own"

DOORS = (
    # processes
    Door("trace or read a process of the host", calls=TRACE, kinds="pid"),
    Door("trace another user's process in the container", caps="SYS_PTRACE", calls=TRACE),
    Door(
        "signal a process of the host",
        kinds="pid",
        few=(Few(EVERY, "namespaces", "what has no number here cannot be named; uid 0 may signal uid 0 without KILL"),),
    ),
    Door("move the pages of others", caps="SYS_NICE", calls="move_pages migrate_pages"),
    Door("gain by set-uid files on volumes", gain=True, mounts="volume-SUID"),
    Door(
        "gain by set-uid files of the image",
        gain=True,
        few=(Few(EVERY, "capabilities", "no_new_privs; the bounding set besides, which is of the same dimension"),),
    ),
    # the kernel
    Door("load a module", caps="SYS_MODULE", calls="init_module finit_module delete_module"),
    Door("load another kernel (kexec)", caps="SYS_BOOT", calls="kexec_load kexec_file_load"),
    Door("reboot", caps="SYS_BOOT", calls="reboot", kinds="pid"),
    Door("bpf, beyond filters of own sockets", caps="BPF SYS_ADMIN PERFMON NET_ADMIN", calls="bpf"),
    Door("perf of the kernel and of others", caps="PERFMON SYS_ADMIN", calls="perf_event_open"),
    Door("stop the kernel at page faults (userfaultfd)", caps="SYS_PTRACE", calls="userfaultfd"),
    Door(
        "io_uring",
        calls="io_uring_setup io_uring_enter io_uring_register",
        few=(Few(EVERY, "seccomp", "every user may; the host's kernel.io_uring_disabled would be a second lock"),),
    ),
    Door("the kernel's log by syslog(2)", caps="SYSLOG", calls="syslog"),
    Door("the kernel's log in /proc/kmsg", caps="SYSLOG", masked="/proc/kmsg"),
    Door("the kernel's memory in /proc/kcore", caps="SYS_RAWIO", masked="/proc/kcore"),
    Door(
        "the kernel's addresses in /proc/kallsyms",
        caps="SYSLOG",
        masked="/proc/kallsyms",
        few=(Few(ROOTS, "capabilities", "debuggers and profilers read the names; the addresses are zero"),),
    ),
    Door("memory and ports by device", caps="SYS_RAWIO", nodes="c1:1 c1:2 c1:4"),
    Door("ports by iopl and ioperm", caps="SYS_RAWIO", calls="iopl ioperm"),
    Door("set the clock", caps="SYS_TIME", calls="settimeofday clock_settime adjtimex clock_adjtime"),
    Door("swap", caps="SYS_ADMIN", calls="swapon swapoff"),
    Door("accounting (acct)", caps="SYS_PACCT", calls="acct"),
    Door("quotas (quotactl)", caps="SYS_ADMIN", calls="quotactl quotactl_fd"),
    Door("kernel parameters in /proc/sys", readonly="/proc/sys", root=True, few=(Few(ROOTS, "paths", UID_0),)),
    Door("/proc/sysrq-trigger", readonly="/proc/sysrq-trigger", root=True, few=(Few(ROOTS, "paths", UID_0),)),
    Door("write to /sys", mounts="sysfs-WRITE", root=True, few=(Few(ROOTS, "mounts", UID_0),)),
    Door(
        "firmware's tables and power meters in /sys",
        masked="/sys/firmware /sys/devices/virtual/powercap",
        few=(Few(EVERY, "paths", "they tell and do not act (CVE-2020-8694); most of them root alone may read"),),
    ),
    Door(
        "debugfs, tracefs, pinned bpf, crash records",
        masked="/sys/kernel/debug /sys/kernel/tracing /sys/kernel/security /sys/fs/bpf /sys/fs/pstore",
        mounts="sysfs-HOST_VIEW authority other",
    ),
    # namespaces and mounts
    Door("mount", caps="SYS_ADMIN", calls="mount umount2"),
    Door(
        "mount by the calls of Linux 5.2",
        caps="SYS_ADMIN",
        calls="fsopen fsconfig fsmount fspick open_tree move_mount mount_setattr",
    ),
    Door("pivot_root", caps="SYS_ADMIN", calls="pivot_root"),
    Door(
        "chroot",
        caps="SYS_CHROOT",
        calls="chroot",
        few=(Few("dev", "", "apk runs scripts in its root, even if that is /; nothing gains by set-uid there"),),
    ),
    Door("join a namespace", caps="SYS_ADMIN", calls="setns"),
    Door("make a namespace", caps="SYS_ADMIN", calls=NEW),
    Door(
        "make a user namespace",
        calls="clone3 clone(0x10000000:0x10000000) unshare(0x10000000:0x10000000)",
        few=(Few(EVERY, "seccomp", "every user may; the host's user.max_user_namespaces would be a second lock"),),
    ),
    Door("set the host's name", caps="SYS_ADMIN", calls="sethostname setdomainname", kinds="uts"),
    Door(
        "System V and POSIX queues and memory of the host",
        kinds="ipc",
        few=(Few(EVERY, "namespaces", "a key or a name means something in its own namespace alone"),),
    ),
    # control groups
    Door("limits of other containers", kinds="cgroup", mounts="cgroup-WRITE"),
    Door("release_agent (CVE-2022-0492)", caps="SYS_ADMIN", kinds="cgroup", mounts="cgroup-WRITE"),
    Door("raise own limits", mounts="cgroup-WRITE", root=True, few=(Few(ROOTS, "mounts", UID_0),)),
    # files and devices
    Door("open files by handle, outside the root", caps="DAC_READ_SEARCH", calls="open_by_handle_at"),
    Door("watch a whole file system (fanotify)", caps="SYS_ADMIN", calls="fanotify_init fanotify_mark"),
    Door("make the node of a device and open it", caps="MKNOD", calls=NODES, nodes=HARDWARE),
    Door("open the node of a device on a volume", nodes=HARDWARE, mounts="volume-DEV"),
    Door(
        "open the node of a device in the image",
        nodes=HARDWARE,
        few=(Few(EVERY, "devices", "a root file system cannot be given nodev in config.json"),),
    ),
    Door("hang up terminals of others", caps="SYS_TTY_CONFIG", calls="vhangup"),
    Door(
        "type into a terminal that others read",
        calls="ioctl(_,0x5412) ioctl(_,0x541c)",  # TIOCSTI, TIOCLINUX
        few=(Few(EVERY, "seccomp", "from Linux 6.2 SYS_ADMIN as well, where dev.tty.legacy_tiocsti is 0"),),
    ),
    # keys
    Door("keys of the engine's session", calls="keyctl add_key request_key", flags="no_new_keyring"),
    Door(
        "keys of the same user on the host",
        calls="keyctl add_key request_key",
        few=(Few(EVERY, "seccomp", "key rings are a user's, not a container's; /proc/keys is masked, but only lists"),),
    ),
    # sockets
    Door("raw sockets", caps="NET_RAW", calls=RAW),
    Door("packet sockets and XDP", caps="NET_RAW", calls=PACKET),
    Door("change the host's network", caps="NET_ADMIN", kinds="network"),
    Door("audit", caps="AUDIT_WRITE AUDIT_CONTROL AUDIT_READ", calls="socket(16,_,9) socketcall"),
    Door(
        "connect to what listens on the host's loopback",
        calls=INTERNET,
        kinds="network",
        few=(Few(ROOTS, "namespaces", "they are there to use the network; the loopback is the namespace's own"),),
    ),
    Door(
        "reach link-local hosts (metadata services)",
        calls=INTERNET,
        network=True,
        few=(
            Few(ROOTS, "network", "sockets are there to be used; in a network of ours the host's rules are the second"),
        ),
    ),
    Door(
        "abstract UNIX sockets of the host",
        kinds="network",
        few=(Few(EVERY, "namespaces", "every policy has AF_UNIX; engines use paths since CVE-2020-15257"),),
    ),
    Door(
        "sockets of the hypervisor (vsock)",
        calls="socket(40) socketcall",
        few=(Few(EVERY, "seccomp", "no capability and no namespace governs the family"),),
    ),
    Door(
        "the kernel's ciphers (AF_ALG)",
        calls="socket(38) socketcall",
        few=(Few(EVERY, "seccomp", "no capability and no namespace governs the family"),),
    ),
)  # fmt: skip
