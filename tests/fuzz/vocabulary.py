"""Words that mean something in a spec, good and bad, by the key where they stand.

Belongs here: tables. Next door: `grow` picks from them.
"""

from __future__ import annotations

LETTERS = 'aZ09_+,-./ =:*"\\\n\x00\xe9\u017f\u212a\ud800\u2028'
CAPS = [
    "CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_NET_BIND_SERVICE", "CAP_SETUID", "CAP_SYS_PTRACE", "CAP_NET_RAW",
    "CAP_MKNOD", "CAP_SYS_CHROOT", "CAP_BPF", "CAP_KILL", "CAP_FOWNER", "cap_sys_admin", "SYS_ADMIN",
    "CAP_BOGUS", "21", "CAP_KILL+x", "CAP_", "", "CAP_CHECKPOINT_RESTORE", "CAP_LAST_CAP", "ALL",
    "CAP_\u017fYS_ADMIN",
]  # fmt: skip
PATHS = [
    "/proc/keys", "/proc/kcore", "/sys/firmware", "/proc/sys", "/x", "/", "", "proc", "/proc/../x",
    "/proc/kcore/",
]  # fmt: skip
DESTINATIONS = [
    "/work", "/work/sub", "/data", "/tmp", "/dev/shm", "/proc", "/sys", "//proc//", "/proc/../x", "work", "/",
    "", "/dev", "/dev/null", "/dev/pts", "/dev/mqueue", "/proc/self", "/sys/fs/cgroup", "/etc/hosts", "/./dev",
    "/workspace",
]  # fmt: skip
SOURCES = [
    "/srv/data", "/srv/loose", "/run/app.sock", "/etc", "/usr/bin/docker-init", "/e/hosts", "/proc",
    "/dev/shm", "/gone", "proc", "tmpfs", "", "rootfs", "/", "/usr", "/var/run/docker.sock", "../x", "/tmp/..",
    "/proc/self/root", "agentshim-scratch",
]  # fmt: skip
OPTIONS = [
    "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "bind", "rbind", "rro", "rrw", "rnoexec",
    "rexec", "shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", "size=5",
    "mode=1777", "remount", "copy-symlink", "RO", "ro ", "", "idmap", "tmpcopyup", "size", "lowerdir=/",
    "rsuid", "rdev", "atime", "context=x",
]  # fmt: skip
ANNOTATIONS = [
    "a", "bundle", "run.oci.handler", "run.oci.hooks.stderr", "krun.x", "org.systemd.property.X",
    "agentshim.policy", "org.criu.config", "module.wasm.image/variant", "BUNDLE", "run.oci",
    "io.kubernetes.cri-o.Devices",
]  # fmt: skip
SYSCTLS = [
    "net.ipv4.ip_forward", "kernel.shmmax", "net/ipv4/ip_forward", "kernel.core_pattern", "", "net.",
    "fs.mqueue.x",
]  # fmt: skip
NAMESPACES = [
    "mount", "pid", "network", "ipc", "uts", "user", "cgroup", "time", "net", "Mount", "mnt", "",
]  # fmt: skip
NAMESPACE_PATHS = [
    "/ns/host", "/ns/a", "/ns/b", "/proc/1/ns/net", "/proc/self/ns/net", "", "x", "/gone",
]  # fmt: skip
FILES = [
    "pids.max", "memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "memory.low", "io.max", "x",
    "cgroup.procs",
]  # fmt: skip
HOOK_PATHS = [
    "/usr/bin/dockerd", "/opt/hook", "/tmp/evil", "/proc/1/exe", "", "x", "/usr/bin/agentshim",
]  # fmt: skip

# The last word of a key -> texts that mean something there.
WORDS: dict[str, list[str]] = {
    "bounding": CAPS,
    "effective": CAPS,
    "permitted": CAPS,
    "inheritable": CAPS,
    "ambient": CAPS,
    "maskedPaths": PATHS,
    "readonlyPaths": PATHS,
    "ociVersion": ["1.0.2", "1.3.0", "1.", "2.0.0", "", "1.0.2-dev", "0.5"],
    "destination": DESTINATIONS,
    "source": SOURCES,
    "options": OPTIONS,
    "annotations": ANNOTATIONS,
    "sysctl": SYSCTLS,
    "unified": FILES,
    "cgroupsPath": ["", "/a/b", "/", "../x", "a/../../b", "x.slice:y:z", "./", "/a/./b", ":"],
    "rootfsPropagation": ["shared", "rslave", "private", "rprivate", "slave", "x", ""],
    "cwd": ["/", "/proc/self/fd/7", "/a/../b", "", "x", "/proc", "//proc/1/cwd", "/tmp"],
    "apparmorProfile": ["l1", "l2", "unconfined", ""],
    "selinuxLabel": ["l1", "l2", "unconfined", ""],
    "mountLabel": ["l1", "l2", "unconfined", ""],
    "access": ["r", "rw", "rwm", "m", "", "x", "rr"],
    "args": [
        "sh", "", "libnetwork-setkey", "-exec-root=/var/run/docker", "hook", "agentshim", "agentshim-net",
        "/r", "c",
    ],
    "env": ["PATH=/bin", "LD_PRELOAD=/x", "HOME=/", "", "=", "X"],
    "policy": ["SCHED_OTHER", "SCHED_FIFO", "SCHED_BATCH", "SCHED_DEADLINE", "x", ""],
    "class": ["IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE", "x"],
    "domain": ["LINUX", "LINUX32", "x"],
    "defaultAction": ["SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", "SCMP_ACT_KILL", "SCMP_ACT_LOG", "x"],
    "action": ["SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", "SCMP_ACT_KILL", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "x"],
    "names": ["read", "clone", "unshare", "socket", "ptrace", "no_such_call", ""],
    "op": ["SCMP_CMP_EQ", "SCMP_CMP_NE", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_GE", "x"],
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "x"],
    "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "x", "ADDR_NO_RANDOMIZE"],
    "netDevices": ["eth0", "lo", ""],
}  # fmt: skip
# The same for keys whose meaning depends on where they stand.
WORDS_AT: dict[str, list[str]] = {
    "linux.namespaces.type": NAMESPACES,
    "linux.namespaces.path": NAMESPACE_PATHS,
    "mounts.type": [
        "bind", "tmpfs", "proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts", "overlay", "none", "ext4",
        "",
    ],
    "process.rlimits.type": ["RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_CPU", "RLIMIT_X", "rlimit_core", ""],
    "linux.devices.type": ["c", "b", "u", "p", "a", "x", ""],
    "linux.devices.path": ["/dev/fuse", "/dev/null", "/dev/x", "/dev/../etc/x", "x", "/etc/passwd", "/dev/sda"],
    "linux.resources.devices.type": ["a", "b", "c", "u", "p", "x", ""],
    "root.path": ["rootfs", "/", "", "../x", "/usr", "rootfs/"],
    "linux.sysctl.": ["0", "1", "|/x", ""],
    "linux.resources.unified.": [
        "max", "5", "max 100000", "100000 50000", "-1", "0", "x", "", "1 0", "5 max", "007", "1_0",
    ],
    "annotations.": ["v", "locked", "identity", "", "true"],
}  # fmt: skip
NUMBERS = [
    0, 1, 3, 5, 8, 10, 229, 1000, 4096, 65536, 100000, 150000, 2147483647, 2147483648, 4294967295, 4294967296,
    9223372036854775807, 9223372036854775808, 18446744073709551615, 18446744073709551616, -1, -2, -1000,
    -2147483648, -9223372036854775808, -9223372036854775809,
]  # fmt: skip
# What is no JSON, or is read in several ways.
TOKENS = [
    "NaN", "Infinity", "-Infinity", "-0", "01", "+1", "0x10", "1e3", "1.0", "1E400", "1.", ".5", "1_0", "-0.0",
    "1e-1", "null", "true", "false", "nul", "TRUE", '"1000"', '"\\ud800"', '"\\u0000"', '"\\ud83d\\ude00"',
    '"\\x41"', "[]", "{}", "[null]", '{"":null}', "/**/1", "1//", "999999999999999999999999999999", "[[[[]]]]",
    '{"a":1,"a":2}', "", "'x'", '"\t"', "\ufeff1",
]  # fmt: skip
