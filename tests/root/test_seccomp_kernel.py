"""The kernel's own answer: classic attempts from a small C program in a container, and the filter that was loaded."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.cold.seccomp import loaded_filter, prove
from shim.dim import seccomp
from shim.errors import Bug
from shim.seccomp.profile import Profile
from tests.root import seccomp_bundle
from tests.unit import seccomp_inputs as inputs

EPERM, ENOSYS, SIGSYS = "1", "38", "signal 31"
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: containers cannot be started"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="LOUD: the probe makes calls of i386 and x32"),
]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attempts as a static program."""
    out = tmp_path_factory.mktemp("probe") / "probe"
    source = Path(__file__).with_name("probe.c")
    flags = ["-static", "-O1", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion"]
    subprocess.run(["cc", *flags, "-o", out, source], check=True)
    return out


@pytest.fixture(params=seccomp_bundle.DELEGATES)
def delegate(request: pytest.FixtureRequest) -> str:
    if not shutil.which(request.param):
        pytest.skip(f"LOUD: no {request.param} on this host")
    return str(request.param)


# What every policy of ours answers, whatever was asked.
ALWAYS = {
    "socket-unix": "0",
    "socket-netlink-audit": EPERM,
    "socket-packet": EPERM,
    "socket-alg": EPERM,
    "socket-vsock": EPERM,
    "socket-xdp": EPERM,
    "socket-packet-high-bits": EPERM,
    "socket-unix-high-bits": EPERM,
    "socket-raw": EPERM,
    "io-uring": ENOSYS,
    "clone3-newuser": ENOSYS,
    "clone-newuser": EPERM,
    "unshare-newuser": EPERM,
    "unshare-files": "0",
    "setns": EPERM,
    "mount": EPERM,
    "fsopen": ENOSYS,
    "ptrace-seize": EPERM,
    "bpf": EPERM,
    "keyctl": EPERM,
    "userfaultfd": EPERM,
    "perf": EPERM,
    "open-by-handle": EPERM,
    "tiocsti": EPERM,
    "tiocsti-high-bits": EPERM,
    "memfd-noexec": "0",
    "mknod-block": EPERM,
    "int80-socketcall": SIGSYS,
    "int80-getpid": SIGSYS,
    "x32-socket": SIGSYS,
}
BY_POLICY = {
    "locked": {"socket-inet": EPERM, "socket-netlink-route": EPERM, "memfd-exec": EPERM},
    "agent": {"socket-inet": "0", "socket-netlink-route": "0", "memfd-exec": EPERM},
    "web": {"socket-inet": "0", "socket-netlink-route": "0", "memfd-exec": EPERM},
    "dev": {"socket-inet": "0", "socket-netlink-route": "0", "memfd-exec": "0"},
}


def attempts(delegate: str, bundle: Path, probe: Path, profile: Profile) -> dict[str, str]:
    seccomp_bundle.write(bundle, profile, ["/probe"], [])
    shutil.copy(probe, bundle / "rootfs" / "probe")
    done = seccomp_bundle.run(delegate, bundle)
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("policy", inputs.OURS)
def test_classic_attempts(policy: str, delegate: str, probe: Path, tmp_path: Path) -> None:
    sys_admin = "bpf fsopen mount open_by_handle_at perf_event_open setns unshare"
    wide = inputs.moby("SYS_ADMIN") if inputs.SHARED.is_dir() else inputs.by_ranges(sys_admin)
    for asked in (wide, seccomp.TOP):
        granted, _ = prove.granted(asked, inputs.ours(policy))
        got = attempts(delegate, tmp_path, probe, granted)
        wanted = {**ALWAYS, **BY_POLICY[policy]}
        assert {name: got[name] for name in wanted} == wanted
        # A number without a name: runc's stub says ENOSYS, our default EPERM.
        assert got["number-4095"] in (EPERM, ENOSYS)


def test_each_attempt_gets_through_or_elsewhere_without_a_filter(delegate: str, probe: Path, tmp_path: Path) -> None:
    """Take the control away, and the probe must turn red: no answer above may be the kernel's own."""
    got = attempts(delegate, tmp_path, probe, seccomp.TOP)
    expected_of_the_kernel = {
        "mount",
        "bpf",
        "perf",
        "open-by-handle",
        "userfaultfd",
        "mknod-block",
        "socket-raw",
        "setns",
    }
    same = {name for name, answer in ALWAYS.items() if answer not in ("0", SIGSYS) and got[name] == answer}
    # Without capabilities the kernel itself denies these: another lock on the same door.
    assert same <= expected_of_the_kernel | {"socket-packet", "socket-packet-high-bits", "socket-xdp", "fsopen"}
    assert got["int80-getpid"] == "0"


@pytest.fixture
def started(delegate: str, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    yield delegate, tmp_path
    command = [
        delegate,
        "--root",
        str(tmp_path / f"state-{delegate}"),
        "delete",
        "--force",
        seccomp_bundle.name(tmp_path),
    ]
    subprocess.run(command, check=False, capture_output=True)


def life(delegate: str, bundle: Path, *verb: str) -> str:
    command = [delegate, "--root", str(bundle / f"state-{delegate}"), *verb, seccomp_bundle.name(bundle)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True).stdout


def sleeping(delegate: str, bundle: Path, granted: Profile) -> int:
    """The pid of a created container whose program would sleep."""
    seccomp_bundle.write(bundle, granted, ["/bin/busybox", "sleep", "60"], [])
    (bundle / "rootfs" / "bin").mkdir(exist_ok=True)
    shutil.copy(shutil.which("busybox") or "", bundle / "rootfs" / "bin" / "busybox")
    command = [delegate, "--root", str(bundle / f"state-{delegate}"), "create", "--bundle", str(bundle)]
    subprocess.run(
        [*command, seccomp_bundle.name(bundle)], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    return int(json.loads(life(delegate, bundle, "state"))["pid"])


def test_the_loaded_filter_is_the_proved_one(started: tuple[str, Path]) -> None:
    delegate, bundle = started
    asked, ceiling = inputs.dockers(), inputs.ours("agent")
    granted, record = prove.granted(asked, ceiling)
    pid = sleeping(delegate, bundle, granted)
    if delegate == "runc":  # it loads the filter before `created`; crun only on its way to the program
        assert loaded_filter.verify(loaded_filter.filters(pid), asked, ceiling) > 5000
    life(delegate, bundle, "start")
    time.sleep(0.5)
    (program,) = loaded_filter.filters(pid)
    assert len(program) // 8 <= record["instructions"] + 96
    assert loaded_filter.verify(loaded_filter.filters(pid), asked, ceiling) > 5000


def test_a_looser_loaded_filter_is_found(started: tuple[str, Path]) -> None:
    delegate, bundle = started
    pid = sleeping(delegate, bundle, inputs.dockers())
    life(delegate, bundle, "start")
    time.sleep(0.5)
    with pytest.raises(Bug, match="no looser than either side"):
        loaded_filter.verify(loaded_filter.filters(pid), inputs.dockers(), inputs.ours("agent"))


def test_a_process_without_a_filter_is_found() -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(Bug, match="no filter"):
            loaded_filter.verify(loaded_filter.filters(sleeper.pid), inputs.dockers(), inputs.ours("agent"))
        assert Path(f"/proc/{sleeper.pid}/stat").read_text().split()[2] in "SR", "it goes on as before"
    finally:
        sleeper.kill()
        sleeper.wait()
