"""The words of an OCI seccomp object, as tables. No decision is made here.

Sources: OCI runtime-spec config-linux.md (1.3.0), seccomp(2), <linux/audit.h>.
"""

from __future__ import annotations

# Severity of an action: what the kernel prefers when several filters answer (seccomp(2), most restrictive first).
KILL_PROCESS, KILL_THREAD, TRAP, ERRNO, NOTIFY, TRACE, LOG, ALLOW = range(8)

ACTIONS = {
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    "SCMP_ACT_KILL_THREAD": KILL_THREAD,
    "SCMP_ACT_KILL": KILL_THREAD,
    "SCMP_ACT_TRAP": TRAP,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_NOTIFY": NOTIFY,
    "SCMP_ACT_TRACE": TRACE,
    "SCMP_ACT_LOG": LOG,
    "SCMP_ACT_ALLOW": ALLOW,
}
ACTION_NAMES = {
    KILL_PROCESS: "SCMP_ACT_KILL_PROCESS",
    KILL_THREAD: "SCMP_ACT_KILL_THREAD",
    TRAP: "SCMP_ACT_TRAP",
    ERRNO: "SCMP_ACT_ERRNO",
    NOTIFY: "SCMP_ACT_NOTIFY",
    TRACE: "SCMP_ACT_TRACE",
    LOG: "SCMP_ACT_LOG",
    ALLOW: "SCMP_ACT_ALLOW",
}

OPERATORS = frozenset(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))

FLAGS = frozenset(
    f"SECCOMP_FILTER_FLAG_{name}"
    for name in ("TSYNC", "LOG", "SPEC_ALLOW", "NEW_LISTENER", "TSYNC_ESRCH", "WAIT_KILLABLE_RECV")
)
FLAG_LOG = "SECCOMP_FILTER_FLAG_LOG"
FLAG_SPEC_ALLOW = "SECCOMP_FILTER_FLAG_SPEC_ALLOW"

ARCHITECTURES = frozenset(
    f"SCMP_ARCH_{name}"
    for name in (
        "X86", "X86_64", "X32", "ARM", "AARCH64", "MIPS", "MIPS64", "MIPS64N32", "MIPSEL", "MIPSEL64", "MIPSEL64N32",
        "PPC", "PPC64", "PPC64LE", "S390", "S390X", "PARISC", "PARISC64", "RISCV64", "LOONGARCH64", "M68K", "SH",
        "SHEB",
    )
)  # fmt: skip

# uname -m -> the ABI that a delegate always loads, listed or not.
NATIVE = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}

# Where libseccomp compares the low 32 bits of a register only; x32 is among them though its registers hold 64.
NARROW = frozenset(f"SCMP_ARCH_{name}" for name in ("X86", "X32", "ARM", "MIPS", "MIPS64N32", "MIPSEL", "MIPSEL64N32",
                                                    "PPC", "S390", "PARISC", "M68K", "SH", "SHEB"))  # fmt: skip

EPERM, ENOSYS, MAX_ERRNO = 1, 38, 4095
LOW = 0xFFFFFFFF
FULL64 = 0xFFFFFFFFFFFFFFFF

# Most rules and names that a profile may have: a filter holds 4,096 instructions (BPF_MAXINSNS), and a rule takes one.
MAX_RULES = 4096
MAX_NAMES = 32768

# Arguments of 64 bits that conditions are written for in practice; every other is taken for an int, of which the kernel
# sees 32 bits. An argument that is missing here only makes a profile's meaning smaller.
WIDE = frozenset(
    {
        ("mmap", 0), ("mmap", 1), ("mmap", 5), ("mprotect", 0), ("mprotect", 1), ("munmap", 1), ("mremap", 1),
        ("mremap", 2), ("read", 2), ("write", 2), ("lseek", 1), ("ftruncate", 1), ("truncate", 1), ("fallocate", 2),
        ("fallocate", 3), ("sendfile", 3), ("getrandom", 1), ("brk", 0), ("arch_prctl", 1), ("prctl", 1), ("prctl", 2),
        ("prctl", 3), ("prctl", 4), ("sendto", 2), ("recvfrom", 2), ("unshare", 0),
    }
)  # fmt: skip

# Calls of Linux 5.1 and later (number 424 on), and clone3: libc and runtimes fall back from them on ENOSYS alone.
FALLBACK = (
    "cachestat clone3 close_range epoll_pwait2 faccessat2 fchmodat2 file_getattr file_setattr fsconfig fsmount fsopen "
    "fspick futex_requeue futex_wait futex_waitv futex_wake getxattrat io_uring_enter io_uring_register io_uring_setup "
    "landlock_add_rule landlock_create_ruleset landlock_restrict_self listmount listxattrat lsm_get_self_attr "
    "lsm_list_modules lsm_set_self_attr map_shadow_stack memfd_secret mount_setattr move_mount mseal open_tree "
    "open_tree_attr openat2 pidfd_getfd pidfd_open pidfd_send_signal process_madvise process_mrelease quotactl_fd "
    "removexattrat rseq set_mempolicy_home_node setxattrat statmount statx"
)

# Rules may ask for them. In the order of linux/capability.h (Linux 6.18): the index is the bit.
CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)
