"""A room of our own: a private mount namespace in which engines, delegates and agentshim are run.

Belongs here: what the host must not notice. /etc, /var/lib and /var/log are overlays (users, subuid and /etc/agentshim
are ours), /run and /dev/shm start empty, and the v1 hugetlb controller that crun insists on is mounted. Nothing has to
be restored afterwards: the namespace goes with its last process, even when the tests are killed. The network and pid
namespaces stay the host's, since agentshim compares with them. Next door: `engines.harness` starts engines in a room.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

CGROUPS = Path("/sys/fs/cgroup")
PODMANS = "libpod_parent"  # podman puts its monitors there, whatever its containers' parent is
CLONE_NEWNS = 0x00020000  # linux/sched.h
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Result:
    """What a command left behind: its argv, exit code (negative: died by that signal), stdout and stderr."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str

    def __str__(self) -> str:
        words, out, err = (_short(text) for text in (" ".join(self.argv), self.out, self.err))
        return f"$ {words}\nexit {self.code}\n--- stdout\n{out}\n--- stderr\n{err}"

    __repr__ = __str__


def _short(text: str, limit: int = 1200) -> str:
    """The two ends of a long text."""
    return text if len(text) <= limit else f"{text[: limit // 2]} […] {text[-limit // 2 :]}"


class Room:
    """Runs commands inside the namespace behind `fd`; `base` is its directory, at the same path inside and outside."""

    def __init__(self, base: Path, fd: int) -> None:
        self.base = base
        self.left: list[str] = []
        self._fd = fd

    def _enter(self, cwd: str) -> Callable[[], None]:
        def enter() -> None:
            if _libc.setns(self._fd, CLONE_NEWNS) != 0:
                raise OSError(ctypes.get_errno(), "setns into the room")
            os.chdir(cwd)

        return enter

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str = "/", **how: Any
    ) -> subprocess.Popen[str]:
        """Start `argv` inside; `env` is added to a small fixed environment."""
        full = {"PATH": PATH, "HOME": str(self.base), "LC_ALL": "C.UTF-8", "TERM": "xterm", **(env or {})}
        return subprocess.Popen(list(argv), env=full, preexec_fn=self._enter(cwd), text=True, errors="replace", **how)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 60,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        **how: Any,
    ) -> Result:
        """Run `argv` inside to its end, or kill it after `timeout` seconds and raise TimeoutExpired."""
        pipe = subprocess.PIPE
        stdin = subprocess.DEVNULL if input is None else pipe
        with self.popen(argv, env=env, cwd=cwd, stdin=stdin, stdout=pipe, stderr=pipe, **how) as child:
            try:
                out, err = child.communicate(input, timeout)
            except subprocess.TimeoutExpired:
                child.kill()
                raise
        return Result(tuple(argv), child.returncode, out, err)

    def processes(self) -> list[int]:
        """Pids of all that lives here: by mount namespace (engines, monitors) or by cgroup (container workloads)."""
        mine = os.fstat(self._fd).st_ino
        return [pid for pid in pids() if _inode(f"/proc/{pid}/ns/mnt") == mine or self.base.name in _cgroups(pid)]

    def clear(self) -> list[str]:
        """Kill what still lives in the room; returns what had to be killed, as pid and command line."""
        left = {pid: _command(pid) for pid in self.processes()}
        for pid in left:
            with_pid_alive(pid, signal.SIGKILL)
        wait_for(lambda: not self.processes(), 5, "processes of the room to end")
        return [f"{pid}: {command}" for pid, command in left.items() if command]


def pids() -> Iterator[int]:
    """Every process id that /proc shows."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _inode(path: str) -> int:
    """The inode that the magic link at `path` leads to; 0 when the process is gone."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _cgroups(pid: int) -> str:
    """/proc/<pid>/cgroup as text; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""


def _command(pid: int) -> str:
    """The command line of `pid`; empty when it is gone or dead."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def with_pid_alive(pid: int, sig: int) -> bool:
    """Send `sig` to `pid`; False when it has already gone."""
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        return False
    return True


def wait_for(done: Callable[[], object], seconds: float, what: str, pause: float = 0.02) -> Any:
    """Poll until `done()` is true and return its value; TimeoutError naming `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := done()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(pause)
    return value


SETUP = """
set -eu
mount --make-rprivate /
mkdir -p over run config
mount -t tmpfs -o mode=755 tmpfs over  # an overlay cannot be written to an overlay, which may be what / is
mkdir over/etc over/etc.work over/lib over/lib.work over/log over/log.work
mount -t overlay overlay -o lowerdir=/etc,upperdir=$PWD/over/etc,workdir=$PWD/over/etc.work /etc
mount -t overlay overlay -o lowerdir=/var/lib,upperdir=$PWD/over/lib,workdir=$PWD/over/lib.work /var/lib
mount -t overlay overlay -o lowerdir=/var/log,upperdir=$PWD/over/log,workdir=$PWD/over/log.work /var/log
rm -rf /var/lib/agentshim /var/log/agentshim
mkdir -p /etc/agentshim; chmod 755 /etc/agentshim
mount --bind config /etc/agentshim
mount --bind run /run
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
if [ ! -e /sys/fs/cgroup/cgroup.controllers ] && ! grep -q ' /sys/fs/cgroup/hugetlb ' /proc/self/mountinfo; then
    mkdir -p /sys/fs/cgroup/hugetlb && mount -t cgroup -o hugetlb cgroup /sys/fs/cgroup/hugetlb || true
fi
echo ready; read -r _ || true
"""


@contextmanager
def room(prefix: str = "asc-") -> Iterator[Room]:
    """Make a room under the temporary directory, and remove all of it afterwards.

    Its path is short, since a socket's path holds 108 bytes, and of root's alone, since agentshim wants bundles so.
    """
    # hexadecimal: the name is a containerd namespace, a cgroup and a bridge as well
    base = Path(os.environ.get("CONFORMANCE_TMP", "/tmp")) / f"{prefix}{os.urandom(4).hex()}"
    base.mkdir(mode=0o711)  # userns-remapped and rootless users traverse it
    new_parents = [PODMANS] if not list(CGROUPS.glob(f"*/{PODMANS}")) else []
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", SETUP]
    with subprocess.Popen(argv, cwd=base, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as setup:
        try:
            fd = _opened(setup, setup.stdout)
        finally:
            assert setup.stdin is not None
            setup.stdin.close()
    here = Room(base, fd)
    try:
        yield here
    finally:
        here.left = here.clear()
        os.close(fd)
        _remove_cgroups(base.name, *new_parents)
        shutil.rmtree(base, ignore_errors=True)


def _remove_cgroups(*names: str) -> None:
    """Remove the empty cgroups with these names, in every hierarchy, with what is below them."""
    for top in (top for name in names for top in (*CGROUPS.glob(name), *CGROUPS.glob(f"*/{name}"))):
        for here, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):
                os.rmdir(here)


def _opened(setup: subprocess.Popen[str], stdout: IO[str] | None) -> int:
    """A descriptor of the namespace that `setup` has prepared."""
    assert stdout is not None
    if stdout.readline() != "ready\n":
        raise RuntimeError("the private mount namespace could not be prepared: root and overlayfs are needed")
    return os.open(f"/proc/{setup.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
