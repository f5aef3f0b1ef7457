"""Sandboxes in a container: bwrap, unshare(1) and Chromium's own fail clearly under `agent`, and work where a policy of
the host grants user namespaces.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from conformance.room import wait_for
from shim import kernel
from shim.cold.seccomp import libseccomp
from shim.dim import invocation
from shim.seccomp.vocabulary import NATIVE
from tests.root.debian import Box, Debian, Maker, finished

USER = 1000  # root without SETFCAP may not map itself into a namespace, whatever the filter says (Linux 5.12)
POLICY = """base = "agent"

[[seccomp.add]]
names = ["@user-namespaces"]
why = "bwrap and browsers shut what they load into user namespaces"
doc = "https://docs.kernel.org/admin-guide/namespaces/index.html"
"""
INTENT = """base = "agent"

[[intents]]
name = "user-namespaces"
why = "bwrap and browsers shut what they load into user namespaces"
doc = "https://docs.kernel.org/admin-guide/namespaces/index.html"
"""
BWRAP = "bwrap --unshare-all --ro-bind / / --dev /dev --tmpfs /tmp"
CHROMIUM = "chromium-headless-shell --disable-gpu"
PAGE = "data:text/html,<p id=x></p><script>document.getElementById('x').textContent=6*7</script>"
DUMP = f'{CHROMIUM} --dump-dom "{PAGE}" && echo done'
UNSHARE = "unshare --user --map-root-user --mount sh -c 'mount -t tmpfs none /mnt && echo done'"

# name: the program, a script, and what its user reads under agent
SANDBOXES = {
    "bwrap": ("bwrap", f"{BWRAP} echo done", "bwrap: No permissions to create new namespace"),
    "unshare": ("unshare", UNSHARE, "unshare: unshare failed: Operation not permitted"),
    "chromium": ("chromium-headless-shell", DUMP, "No usable sandbox!"),
}


def installed(name: str) -> tuple[str, str]:
    """The script and the denial of a sandbox that this host has."""
    program, script, told = SANDBOXES[name]
    if not shutil.which(program):
        pytest.skip(f"LOUD: no {program} on this host: its sandbox is NOT tested")
    return script, told


@pytest.fixture(params=SANDBOXES)
def sandbox(request: pytest.FixtureRequest) -> tuple[str, str]:
    return installed(request.param)


@pytest.fixture(scope="module")
def granting(debian: Debian) -> str:
    """The policy, on a host that lets its own users do as much."""
    probe = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "unshare", "--user", "--map-root-user"]
    host = debian.room.run([*probe, "--mount", "mount", "-t", "tmpfs", "none", "/mnt"])
    if host.code != 0 or "apparmor" in kernel.process_facts(invocation.BOTTOM).security_modules:
        pytest.skip(f"LOUD: this host denies user namespaces, or mounts in them, to all: {host.err.strip()}")
    return debian.policy("sandboxes", POLICY)


# Chromium makes no sandbox for root, here or anywhere.
@pytest.mark.parametrize("name, uid", [*((name, USER) for name in SANDBOXES), ("bwrap", 0), ("unshare", 0)])
def test_denied_under_agent(name: str, uid: int, box: Maker) -> None:
    script, told = installed(name)
    done = box("agent", uid=uid, seccomp=None).bash(script)
    assert done.code != 0 and "done" not in done.out and told in done.err, str(done)


def test_works_where_a_policy_grants_user_namespaces(sandbox: tuple[str, str], granting: str, box: Maker) -> None:
    """The engine asks for no filter, as under `docker run --security-opt seccomp=unconfined`."""
    done = box(granting, uid=USER, seccomp=None).bash(sandbox[0])
    finished(done)
    assert "chromium" not in sandbox[0] or '<p id="x">42</p>' in done.out, str(done)


def test_works_by_the_intent(debian: Debian, granting: str, box: Maker) -> None:
    script, _ = installed("bwrap")
    finished(box(debian.policy("sandboxes-intent", INTENT), uid=USER, seccomp=None).bash(script))


def test_the_filter_that_the_engine_asks_counts_as_well(sandbox: tuple[str, str], granting: str, box: Maker) -> None:
    """granted = asked ∧ ceiling: Docker's own profile has no user namespaces without SYS_ADMIN."""
    done = box(granting, uid=USER).bash(sandbox[0])
    assert done.code != 0 and sandbox[1] in done.err, str(done)


@pytest.fixture
def limited(debian: Debian, granting: str) -> Iterator[str]:
    debian.configure(limit="dev")
    yield granting
    debian.configure()


def test_a_policy_above_the_hosts_limit_starts_nothing(limited: str, box: Maker) -> None:
    done = box(limited, uid=USER, seccomp=None).bash("echo done")
    assert done.code == 1 and done.out == "", str(done)
    assert done.err.startswith("policy: sandboxes: seccomp: asked ") and "raise limit" in done.err, str(done)


def test_a_fresh_proc_is_the_kernels_to_refuse_while_proc_is_masked(granting: str, debian: Debian, box: Maker) -> None:
    """mount_too_revealing(): a namespace may see no more of /proc than its maker does. bwrap can bind the one there."""
    if not shutil.which("bwrap"):
        pytest.skip("LOUD: no bwrap on this host")
    fresh, bound = f"{BWRAP} --proc /proc", f"{BWRAP} --bind /proc /proc"
    done = box(granting, uid=USER, seccomp=None).bash(f"{fresh} echo done")
    assert done.code != 0 and "Can't mount proc on /newroot/proc: Operation not permitted" in done.err, str(done)
    finished(box(granting, uid=USER, seccomp=None).bash(f"{bound} echo done"))
    bare = debian.policy("sandboxes-bare", f"{POLICY}\n[paths]\nmasked = []\nreadonly = []\n")
    finished(box(bare, uid=USER, seccomp=None, maskedPaths=[], readonlyPaths=[]).bash(f"{fresh} echo done"))


# What root of a nested namespace, who has every capability in it, still may not.
SHUT = """
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(*words):
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(*words) == -1 else "done"
def made(*words):
    try:
        socket.socket(*words).close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
print(open("/proc/self/status").read().partition("CapEff:")[2].split()[0])
print(made(socket.AF_PACKET, socket.SOCK_RAW), made(socket.AF_INET, socket.SOCK_RAW, 1), made(socket.AF_ALG, 5))
print(*(call(number) for number in (NUMBERS)))
"""
CALLS = ("ptrace", "bpf", "keyctl", "perf_event_open", "init_module", "open_by_handle_at", "userfaultfd", "reboot")


def test_what_stays_shut_in_a_nested_namespace(granting: str, box: Maker) -> None:
    numbers = [str(libseccomp.number(name, NATIVE[os.uname().machine])) for name in CALLS]
    one = box(granting, uid=USER, seccomp=None)
    (one.work / "shut.py").write_text(SHUT.replace("NUMBERS", ", ".join(numbers)))
    done = one.bash("unshare --user --map-root-user --net python3 shut.py")
    assert done.code == 0, str(done)
    caps, sockets, calls = done.out.splitlines()
    assert int(caps, 16).bit_count() > 30, "root has every capability there"
    assert sockets.split() == ["EPERM"] * 3
    assert calls.split() == ["EPERM"] * len(CALLS)


def namespaces(pids: list[int]) -> set[str]:
    return {os.readlink(f"/proc/{pid}/ns/user") for pid in pids if os.path.exists(f"/proc/{pid}/ns/user")}


def shut_in(box: Box, pid: int) -> set[str]:
    """User namespaces of a container's processes that are not the container's own."""
    return namespaces(box.pids()) - namespaces([pid])


def test_chromium_shuts_its_pages_into_namespaces_of_their_own(granting: str, box: Maker) -> None:
    """Seen from the host: it did not merely start."""
    if not shutil.which("chromium-headless-shell"):
        pytest.skip("LOUD: no chromium-headless-shell on this host: Chromium's sandbox is NOT tested")
    one = box(granting, uid=USER, seccomp=None)
    pid = one.start(*CHROMIUM.split(), "--remote-debugging-port=9222", PAGE)
    assert wait_for(lambda: shut_in(one, pid), 20, "a process of Chromium's in another user namespace")
