"""Each door of each built-in policy has two locks, or a stated reason; and the table sees it when a lock is taken away.

Next door: tests/root/test_two_locks.py tries the doors on the kernel, with one lock and with none.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shim import policy, product
from shim.cold.policy import two_locks
from shim.cold.policy.doors import DOORS, EVERY, Door
from shim.cold.seccomp import bpf, libseccomp
from shim.dim import capabilities, invocation, seccomp
from shim.seccomp.vocabulary import ERRNO, NATIVE
from tests.unit.policy_host import Host, make_host
from tests.unit.seccomp_inputs import rule

pytestmark = pytest.mark.skipif(platform.machine() not in NATIVE, reason="LOUD: no table of calls for this machine")
NAMES = [door.name for door in DOORS]
MASKED = 'masked = ["/proc/keys", "/proc/kmsg", "/sys/firmware"]'


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return make_host(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", two_locks.ORDER)
def test_two_locks_or_a_reason(name: str) -> None:
    assert two_locks.weak(name, two_locks.locks(two_locks.value_of(name))) == []


def test_every_built_in_policy_that_takes_anything_is_asked() -> None:
    assert {*two_locks.ORDER, policy.TOP_POLICY} == set(policy.BUILTIN)
    assert EVERY.split() == list(two_locks.ORDER)


def test_the_policy_that_takes_nothing_shuts_nothing() -> None:
    assert set(two_locks.locks(two_locks.value_of(policy.TOP_POLICY)).values()) == {()}


@pytest.mark.parametrize("dimension", [name for name, _ in two_locks.LOCKS])
@pytest.mark.parametrize("name", two_locks.ORDER)
def test_each_lock_is_its_dimensions_own(name: str, dimension: str) -> None:
    """A dimension that is opened altogether is no lock any more; the others stay (but rules that need capabilities)."""
    value = two_locks.value_of(name)
    before, after = two_locks.locks(value), two_locks.locks({**value, dimension: product.TOP[dimension]})
    assert dimension not in {one for found in after.values() for one in found}
    for door in NAMES:
        left = set(before[door]) - {dimension} - ({"seccomp"} if dimension == "capabilities" else set())
        assert left <= set(after[door]), door


def test_each_dimension_shuts_something() -> None:
    """A row of LOCKS that never holds would pass every other test here."""
    found = two_locks.locks({**two_locks.value_of("locked"), "network": product.BOTTOM["network"]})
    assert {one for names in found.values() for one in names} == {name for name, _ in two_locks.LOCKS}


# A join, and all doors that it leaves with fewer locks than the table wants.
MUTANTS = {
    'capabilities.add = [{ names = ["SYS_ADMIN"], why = "xxx", doc = "https://x" }]': {
        "bpf, beyond filters of own sockets",
        "join a namespace",
        "make a namespace",
        "mount",
        "mount by the calls of Linux 5.2",
        "perf of the kernel and of others",
        "pivot_root",
        "quotas (quotactl)",
        "swap",
        "watch a whole file system (fanotify)",
    },
    # the profile's own rule opens with the capability
    'capabilities.add = [{ names = ["NET_RAW"], why = "xxx", doc = "https://x" }]': {
        "raw sockets",
        "packet sockets and XDP",
    },
    'capabilities.add = [{ names = ["SYS_RAWIO"], why = "xxx", doc = "https://x" }]': {
        "memory and ports by device",
        "ports by iopl and ioperm",
        "the kernel's memory in /proc/kcore",
    },
    "capabilities.new_privileges = true": {"gain by set-uid files on volumes", "gain by set-uid files of the image"},
    'seccomp.add = [{ names = ["bpf"], why = "xxx", doc = "https://x" }]': {"bpf, beyond filters of own sockets"},
    'seccomp.add = [{ names = ["@io-uring"], why = "xxx", doc = "https://x" }]': {"io_uring"},
    'seccomp.add = [{ names = ["@i386"], why = "xxx", doc = "https://x" }]\nseccomp.architectures = ["x86"]': {
        "raw sockets",
        "packet sockets and XDP",
        "audit",
        "sockets of the hypervisor (vsock)",
        "the kernel's ciphers (AF_ALG)",
    },
    f"paths.{MASKED}": {
        "the kernel's memory in /proc/kcore",
        "debugfs, tracefs, pinned bpf, crash records",
        "firmware's tables and power meters in /sys",
    },
    'paths.readonly = ["/proc/sys"]': {"/proc/sysrq-trigger"},
    'namespaces.host = ["network"]\nnamespaces.why = "xxx"\nnamespaces.doc = "https://x"': {
        "change the host's network",
        "connect to what listens on the host's loopback",
        "abstract UNIX sockets of the host",
    },
    'namespaces.host = ["pid"]\nnamespaces.why = "xxx"\nnamespaces.doc = "https://x"': {
        "trace or read a process of the host",
        "signal a process of the host",
    },
    'devices.add = [{ path = "/dev/fuse", type = "c", major = 10, minor = 229, access = "rw", why = "xxx" }]': {
        "open the node of a device on a volume",
        "open the node of a device in the image",
    },
    'mounts = "top"\nwhy = "xxx"\ndoc = "https://x"': {
        "debugfs, tracefs, pinned bpf, crash records",
        "gain by set-uid files on volumes",
        "limits of other containers",
        "open the node of a device on a volume",
        "raise own limits",
        "write to /sys",
    },
    "invocation.no_new_keyring = true": {"keys of the engine's session"},
}


@pytest.mark.parametrize("join", MUTANTS)
def test_a_lock_that_is_taken_away_is_missed(join: str, host: Host) -> None:
    host.policy("mutant", f'base = "agent"\n{join}\n')
    found = two_locks.locks(two_locks.value_of("mutant", host.config()))
    assert {line.partition(": ")[0] for line in two_locks.weak("agent", found)} == MUTANTS[join]


NEW = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)  # CLONE_NEW*
# name -> rules of a filter that allows all else, of a policy that is agent otherwise; the door that they leave open.
HALVES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "one flag alone": (
        [rule("clone3", "ERRNO"), *(rule("clone unshare", "ERRNO", (0, "EQ", flag)) for flag in NEW)],
        "make a namespace",
    ),
    "one flag, and no other of a namespace": (
        [
            rule("clone3", "ERRNO"),
            *(rule("clone unshare", "ERRNO", (0, "MASKED_EQ", sum(NEW), flag)) for flag in NEW),
        ],
        "make a user namespace",
    ),
    "a node without permissions": (
        [
            *(rule("mknod", "ERRNO", (1, "EQ", kind)) for kind in (0x2000, 0x6000)),
            *(rule("mknodat", "ERRNO", (2, "EQ", kind)) for kind in (0x2000, 0x6000)),
        ],
        "make the node of a device and open it",
    ),
    "a type of socket without SOCK_CLOEXEC": (
        [rule("socket", "ERRNO", (0, "EQ", family), (1, "EQ", 3)) for family in (2, 10)],
        "raw sockets",
    ),
}
ROUNDED = [rule("socket", "ERRNO", (0, "EQ", 38)), rule("socketcall", "ERRNO")]


def of_rules(rules: list[dict[str, Any]], host: Host) -> dict[str, tuple[str, ...]]:
    """The locks of agent with a filter that allows all but `rules`."""
    tree = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}
    (host.etc / "policies/half.json").write_text(json.dumps(tree))
    host.policy("half", 'base = "agent"\n[seccomp]\nfile = "half.json"\n')
    return two_locks.locks(two_locks.value_of("half", host.config()))


@pytest.mark.parametrize("name", HALVES)
def test_a_denial_of_some_arguments_is_no_lock(name: str, host: Host) -> None:
    """The very numbers that are denied are not all that opens the door: flags and permissions come together."""
    rules, door = HALVES[name]
    assert "seccomp" not in of_rules(rules, host)[door]


def test_a_lock_is_what_is_granted_not_what_is_written(host: Host) -> None:
    """A family is an int, and the file denies it without high bits: the meet denies it with all of them."""
    assert of_rules(ROUNDED, host)["the kernel's ciphers (AF_ALG)"] == ("seccomp",)


def test_one_grant_that_opens_both_locks() -> None:
    """tests/root/test_two_locks.py shows the same on the kernel."""
    doors = ["the kernel's log by syslog(2)", "chroot", "make the node of a device and open it", "raw sockets"]
    assert two_locks.one_grant(two_locks.value_of("agent")) == doors


def test_a_reason_that_holds_no_more_is_missed() -> None:
    """The strictest policy in the place of another: its locks are not those of the reasons given for that one."""
    assert "kernel parameters in /proc/sys: paths, user" in two_locks.weak(
        "agent", two_locks.locks(two_locks.value_of("locked"))
    )


def test_a_policy_of_the_host_has_a_column(host: Host) -> None:
    """A policy of the host has a column as well; it has no reasons, since it has none of ours."""
    host.policy("open", 'base = "agent"\ncapabilities = "top"\nwhy = "xxx"\ndoc = "https://x"\n')
    shown = two_locks.table(["agent", "open"], host.config())
    assert "| door | `agent` | `open` |\n" in shown
    assert "| mount | capabilities, seccomp | seccomp alone |\n" in shown
    assert "| raw sockets | capabilities, seccomp | open |\n" in shown
    assert "\n- io_uring (agent): every user may" in shown
    assert "\n- one grant opens both locks: the kernel's log by syslog(2), chroot, " in shown


@pytest.mark.parametrize("door", DOORS, ids=NAMES)
def test_every_word_means_something(door: Door) -> None:
    """A misspelt call would count as denied, a misspelt device as shut."""
    for word in door.calls.split():
        found = two_locks._CALL.fullmatch(word)
        assert found and any(libseccomp.number(found[1], abi) >= 0 for abi in libseccomp.TOKENS), word
    assert set(door.caps.split()) <= set(capabilities.CAPABILITIES)
    assert all(two_locks._NODE.fullmatch(word) for word in door.nodes.split())
    assert set(door.flags.split()) <= set(invocation.FLAGS)
    assert all(few.policies and set(few.policies.split()) <= set(two_locks.ORDER) for few in door.few)
    assert all(set(few.locks.split()) <= {name for name, _ in two_locks.LOCKS} for few in door.few)


@pytest.mark.parametrize("name", two_locks.ORDER)
def test_the_compiled_filter_denies_what_the_cubes_say(name: str) -> None:
    """The slow way: vectors of each door that is shut, and of each that is not, through the BPF of what is granted."""
    value = two_locks.value_of(name)
    filters, random = two_locks.Filters(value), Random(0)
    ceiling = seccomp.resolve(value["seccomp"], value["capabilities"].sets[0])
    raw = seccomp.meet(seccomp.TOP, ceiling).raw
    assert raw is not None
    abi = NATIVE[platform.machine()]
    program = bpf.decode(libseccomp.compile(raw, platform.machine(), 1))
    open_doors = 0
    for word in {word for door in DOORS for word in door.calls.split()}:
        call, args = two_locks._CALL.findall(word)[0]
        number = libseccomp.number(call, abi)
        if number < 0:
            continue
        fixed = {index: (mask, number) for index, mask, number in two_locks.cube(args)}
        passed = 0
        for _ in range(200):
            vector = [random.choice((0, 1, 2, 17, random.getrandbits(64))) for _ in range(6)]
            for index, (mask, bits) in fixed.items():
                vector[index] = vector[index] & ~mask | bits
            answer = bpf.run(program, 0, bpf.words_of(libseccomp.TOKENS[abi], number, vector))
            passed += bpf.severity(answer) > ERRNO
        assert not (passed and filters.deny(word)), word
        open_doors += passed > 0
    assert open_doors or name == "locked"


def test_names_are_unique() -> None:
    assert len(set(NAMES)) == len(NAMES)
