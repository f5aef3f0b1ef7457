"""Our own profiles: what each denies and allows, asked of the compiled filter, and which doors they shut."""

from __future__ import annotations

import functools
import itertools
import platform
from typing import Any

import pytest

from shim.cold.seccomp import bpf, libseccomp, lint_seccomp, seccomp_toml
from shim.dim import seccomp
from shim.seccomp import cubes
from shim.seccomp.vocabulary import NATIVE
from tests.unit import seccomp_inputs as inputs

HOST = platform.machine()
pytestmark = pytest.mark.skipif(HOST not in NATIVE, reason="LOUD: no table of calls for this machine")
EPERM, ENOSYS, ALLOWED = 1, 38, 0

STREAM, DGRAM, RAW, SEQPACKET, CLOEXEC, NONBLOCK = 1, 2, 3, 5, 0o2000000, 0o4000
UNIX, INET, INET6, NETLINK, PACKET, ALG, VSOCK, XDP, BLUETOOTH = 1, 2, 10, 16, 17, 38, 40, 44, 31
HIGH = 1 << 32

# Denied by every policy, whatever the arguments (issue of the profiles, part 3).
NEVER = """
ptrace process_vm_readv process_vm_writev bpf perf_event_open keyctl add_key request_key mount umount2 pivot_root setns
userfaultfd open_by_handle_at kexec_load kexec_file_load init_module finit_module delete_module swapon swapoff reboot
settimeofday clock_settime adjtimex acct quotactl iopl ioperm modify_ldt lookup_dcookie vhangup kcmp fanotify_init
fanotify_mark name_to_handle_at sethostname setdomainname
"""
NEVER_ENOSYS = """
clone3 io_uring_setup io_uring_enter io_uring_register pidfd_getfd fsopen fsconfig fsmount fspick open_tree move_mount
mount_setattr process_madvise quotactl_fd memfd_secret
"""
NAMESPACES = {"NEWNS": 17, "NEWCGROUP": 25, "NEWUTS": 26, "NEWIPC": 27, "NEWUSER": 28, "NEWPID": 29, "NEWNET": 30}

NEWER = {
    "file_getattr",
    "file_setattr",
    "getxattrat",
    "listmount",
    "listxattrat",
    "lsm_get_self_attr",
    "lsm_list_modules",
    "lsm_set_self_attr",
    "mseal",
    "open_tree_attr",
    "removexattrat",
    "setxattrat",
    "statmount",
}


@functools.cache
def program(name: str, caps: str) -> bpf.Program:
    raw = seccomp.meet(seccomp.TOP, inputs.ours(name, caps)).raw
    assert raw is not None
    return bpf.decode(libseccomp.compile(raw, HOST, 1))


def errno(policy: str, call: str, *args: int, caps: str = "") -> int:
    """What `policy` answers: 0 if the call goes through."""
    number = libseccomp.number(call, NATIVE[HOST])
    assert number >= 0, call
    words = bpf.words_of(libseccomp.TOKENS[NATIVE[HOST]], number, (*args, 0, 0, 0, 0, 0, 0)[:6])
    answer = bpf.run(program(policy, caps), 0, words)
    if answer == 0x7FFF0000:
        return ALLOWED
    assert answer & 0xFFFF0000 == 0x50000
    return answer & 0xFFFF


def known(names: str) -> list[str]:
    return [name for name in names.split() if libseccomp.number(name, NATIVE[HOST]) >= 0]


@pytest.mark.parametrize("policy", inputs.OURS)
def test_what_no_policy_allows(policy: str) -> None:
    every = " ".join(
        f"CAP_{cap}"[4:] for cap in ("SYS_ADMIN", "SYS_PTRACE", "BPF", "SYS_MODULE", "SYS_TIME", "NET_RAW")
    )
    for caps in ("", every):
        assert {name: errno(policy, name, caps=caps) for name in known(NEVER)} == dict.fromkeys(known(NEVER), EPERM)
        wanted = dict.fromkeys(known(NEVER_ENOSYS), ENOSYS)
        assert {name: errno(policy, name, caps=caps) for name in known(NEVER_ENOSYS)} == wanted


@pytest.mark.parametrize("policy", inputs.OURS)
@pytest.mark.parametrize("flag", NAMESPACES)
def test_namespaces_by_clone_and_unshare(policy: str, flag: str) -> None:
    bit = 1 << NAMESPACES[flag]
    assert errno(policy, "clone", bit | 17) == errno(policy, "clone", HIGH | bit) == EPERM
    assert errno(policy, "unshare", bit) == errno(policy, "unshare", bit | 0x400) == EPERM


@pytest.mark.parametrize("policy", inputs.OURS)
def test_threads_forks_and_a_thread_of_its_own(policy: str) -> None:
    assert errno(policy, "clone", 0x3D0F00) == errno(policy, "clone", 0x1200011) == ALLOWED
    assert errno(policy, "unshare", 0x200) == errno(policy, "unshare", 0x40600) == ALLOWED
    assert errno(policy, "unshare", 0x80) == EPERM, "NEWTIME"
    assert errno(policy, "unshare", HIGH) == EPERM


FAMILIES: dict[str, dict[int, Any]] = {
    "locked": {UNIX: (STREAM, DGRAM, SEQPACKET)},
    "agent": {UNIX: (STREAM, DGRAM, SEQPACKET), INET: (STREAM, DGRAM), INET6: (STREAM, DGRAM), NETLINK: (RAW, DGRAM)},
}
FAMILIES["web"] = FAMILIES["dev"] = FAMILIES["agent"]


@pytest.mark.parametrize("policy", inputs.OURS)
def test_sockets_by_family_type_and_high_bits(policy: str) -> None:
    for family, kind in itertools.product(range(64), range(8)):
        wanted = ALLOWED if kind in FAMILIES[policy].get(family, ()) else EPERM
        for flags in (0, CLOEXEC, CLOEXEC | NONBLOCK):
            assert errno(policy, "socket", family, kind | flags, 0) == wanted, (family, kind)
        assert errno(policy, "socket", family | HIGH, kind, 0) == EPERM
        assert errno(policy, "socket", family, kind | HIGH, 0) == EPERM
        assert errno(policy, "socket", family, kind, HIGH) == EPERM
        assert errno(policy, "socket", family, kind | 0x100, 0) == EPERM


def test_protocols() -> None:
    assert [errno("agent", "socket", NETLINK, RAW, p) for p in range(4)] == [0, EPERM, EPERM, EPERM], "ROUTE only"
    assert errno("agent", "socket", INET, STREAM, 6) == errno("agent", "socket", INET6, DGRAM, 17) == ALLOWED
    for protocol in (1, 132, 136, 262):
        assert errno("agent", "socket", INET, STREAM, protocol) == EPERM
    assert errno("agent", "socket", INET, DGRAM, 1) == EPERM != errno("dev", "socket", INET, DGRAM, 1)
    assert errno("dev", "socket", INET6, DGRAM, 58) == ALLOWED


def test_raw_sockets_need_the_capability_and_packet_sockets_are_never_there() -> None:
    assert errno("agent", "socket", INET, RAW, 1) == EPERM
    assert errno("agent", "socket", INET, RAW, 1, caps="NET_RAW") == ALLOWED
    for policy, family in itertools.product(inputs.OURS, (PACKET, ALG, VSOCK, XDP, BLUETOOTH)):
        assert errno(policy, "socket", family, RAW, 0x300, caps="NET_RAW SYS_ADMIN NET_ADMIN") == EPERM


@pytest.mark.parametrize("policy", inputs.OURS)
def test_pairs_of_sockets_are_unix(policy: str) -> None:
    assert errno(policy, "socketpair", UNIX, STREAM | CLOEXEC, 0) == ALLOWED
    assert errno(policy, "socketpair", 30, STREAM, 0) == EPERM, "TIPC"


@pytest.mark.parametrize("policy", inputs.OURS)
def test_typing_into_a_terminal(policy: str) -> None:
    """CVE-2017-5226; with high bits CVE-2019-10063."""
    for request in (0x5412, 0x541C):
        assert errno(policy, "ioctl", 0, request) == errno(policy, "ioctl", 0, HIGH | request) == EPERM
    for request in (0x5401, 0x5411, 0x5413, 0x541B, 0x541D, 0x5452, 0x80045430, 0xFFFFFFFF80045430):
        assert errno(policy, "ioctl", 0, request) == ALLOWED, hex(request)


def test_executable_memory_files_where_tmp_is_not_executable() -> None:
    for policy in ("locked", "agent", "web"):
        assert errno(policy, "memfd_create", 0, 1) == EPERM
        assert errno(policy, "memfd_create", 0, 0x10) == EPERM, "MFD_EXEC"
        assert errno(policy, "memfd_create", 0, 9) == ALLOWED, "MFD_NOEXEC_SEAL"
    assert errno("dev", "memfd_create", 0, 1) == ALLOWED


@pytest.mark.parametrize("policy", inputs.OURS)
def test_nodes_of_devices(policy: str) -> None:
    for kind, wanted in ((0o010000, 0), (0o100000, 0), (0o140000, 0), (0, 0), (0o060000, EPERM), (0o020000, EPERM)):
        assert errno(policy, "mknodat", 0, 0, kind | 0o666) == wanted
        assert errno(policy, "mknodat", 0, 0, kind | 0o666, caps="MKNOD") == ALLOWED
        if HOST == "x86_64":
            assert errno(policy, "mknod", 0, kind | 0o666 | 1 << 16) == wanted, "mode is cut to 16 bits"


@pytest.mark.parametrize("policy", inputs.OURS)
def test_capabilities_open_what_they_are_for(policy: str) -> None:
    for call, cap in (("chroot", "SYS_CHROOT"), ("syslog", "SYSLOG")):
        assert errno(policy, call) == EPERM and errno(policy, call, caps=cap) == ALLOWED


def test_the_policies_are_ordered() -> None:
    every = " ".join(seccomp_caps())
    for low, high in (("locked", "agent"), ("agent", "web"), ("web", "dev")):
        for caps in ("", every):
            assert seccomp.leq(inputs.ours(low, caps), inputs.ours(high, caps))
            assert not seccomp.leq(inputs.ours(high, caps), inputs.ours(low, caps))


def seccomp_caps() -> list[str]:
    from shim.seccomp.vocabulary import CAPABILITIES

    return list(CAPABILITIES)


def test_more_capabilities_never_take_away() -> None:
    for policy in inputs.OURS:
        assert seccomp.leq(inputs.ours(policy), inputs.ours(policy, " ".join(seccomp_caps())))


def test_what_the_delegates_init_needs_before_it_runs_the_program() -> None:
    """Calls that runc 1.1.5 and crun 1.8.1 make between loading the filter and execve."""
    needed = """
    brk capget capset chdir clone close close_range epoll_create1 epoll_ctl epoll_pwait eventfd2 execve exit_group fcntl
    fstat fstatfs futex getdents64 getpid getppid gettid getuid ioctl lseek madvise mmap mprotect munmap nanosleep
    newfstatat openat pipe2 prctl pread64 read readlinkat rt_sigaction rt_sigprocmask rt_sigreturn sched_yield setgid
    setgroups setresgid setresuid setsid setuid sigaltstack statx tgkill umask unlinkat wait4 write
    """
    for policy in inputs.OURS:
        assert [name for name in known(needed) if errno(policy, name)] == []


@pytest.mark.parametrize("policy", inputs.OURS)
def test_nothing_a_delegate_would_lose(policy: str) -> None:
    assert lint_seccomp.lint(policy) == []


@pytest.mark.parametrize("policy", inputs.OURS)
def test_every_rule_has_a_reason_and_every_name_exists(policy: str) -> None:
    for file in seccomp_toml._chain(policy):
        for entry in file.get("allow", ()):
            assert entry["why"]
    raw = inputs.ours(policy).raw
    assert raw is not None
    unknown = {name for one in raw["syscalls"] for name in one["names"] if libseccomp.number(name, NATIVE[HOST]) == -1}
    if libseccomp.version() == (2, 5, 4):
        assert unknown == NEWER, "newer than libseccomp 2.5.4; anything else is misspelt"


# Which calls each door needs, asked of the profiles' meaning. All locks: shim.cold.policy.two_locks.
DOORS = {
    "ptrace": "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd",
    "bpf": "bpf perf_event_open",
    "mount": "mount umount2 pivot_root fsopen fsmount move_mount open_tree mount_setattr",
    "modules": "init_module finit_module delete_module kexec_load kexec_file_load",
    "time": "settimeofday clock_settime adjtimex clock_adjtime",
    "keyrings": "add_key keyctl request_key",
    "files by handle": "open_by_handle_at name_to_handle_at",
    "io_uring": "io_uring_setup io_uring_enter io_uring_register",
    "host": "reboot swapon swapoff acct syslog iopl ioperm sethostname setdomainname",
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("policy", inputs.OURS)
def test_doors_that_seccomp_shuts(policy: str, door: str) -> None:
    value = inputs.ours(policy)
    open_ = [name for name in DOORS[door].split() if value.model.calls.get(name, value.model.rest)[1] != cubes.NONE]
    assert open_ == []
