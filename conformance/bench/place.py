"""Where the benchmark runs: mount namespaces of its own, which vanish with it, however it ends.

Belongs here: keeping the host's /etc/agentshim, /run and engines out of it. Next door: `life` starts containers there.
/run and /var/lib become empty tmpfs (engines keep their bundles on one too), /etc an overlay with an agentshim of ours.
The delegate is chosen by a line of /etc/agentshim/config.toml, so each delegate has a namespace with a file of its own,
and with a /run/agentshim of its own: changing one file between two runs would measure recompiling instead.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_FS = 0x00000200
MS_REC, MS_PRIVATE = 0x4000, 1 << 18
PR_SET_CHILD_SUBREAPER = 36
HUGETLB = Path("/sys/fs/cgroup/hugetlb")
CONTROLLERS = Path("/sys/fs/cgroup")
EXPEDITED = Path("/sys/kernel/rcu_expedited")
STATE = Path("/run/agentshim")
SETTINGS = Path("/etc/agentshim")

_libc = ctypes.CDLL(None, use_errno=True)


class Place:
    """The namespaces by name; the process is in one of them at a time, and its children start there."""

    def __init__(self, keep_launch_conf: bool) -> None:
        """Leave the host's mounts for good: /run and /etc of this process are private from here on.

        `keep_launch_conf`: an installed launcher needs the host's; that of a source tree must not be led away by it.
        """
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # a container's init comes to us, as to containerd's shim
        self._doors: dict[str, int] = {}
        kept = _read(SETTINGS / "launch.conf") if keep_launch_conf else None
        _unshare()
        _mount("none", "/", None, MS_REC | MS_PRIVATE)
        _mount("bench", "/run", "tmpfs", 0, "mode=0755")
        _mount("bench", "/var/lib", "tmpfs", 0, "mode=0755")
        _overlay_etc()
        _mount_hugetlb()
        self._launch_conf = kept

    def furnish(self, name: str, config: str | None, policy: tuple[str, str] | None = None) -> None:
        """Make the namespace `name`, its config.toml holding `config` (None: there is none), with the host policy
        `policy` (name, text) if given, and be in it.
        """
        if self._doors:
            _unshare()
        STATE.mkdir(mode=0o700, exist_ok=True)
        _mount("bench", str(STATE), "tmpfs", 0, "mode=0700")
        _mount("bench", str(SETTINGS), "tmpfs", 0, "mode=0755")
        if self._launch_conf is not None:
            (SETTINGS / "launch.conf").write_bytes(self._launch_conf)
        if config is not None:
            (SETTINGS / "config.toml").write_text(config)
        if policy is not None:
            (SETTINGS / "policies").mkdir(mode=0o755)
            (SETTINGS / "policies" / f"{policy[0]}.toml").write_text(policy[1])
        self._doors[name] = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def enter(self, name: str) -> None:
        """Be in the namespace `name`. The process must have one thread; its working directory becomes /."""
        _check("setns", _libc.setns(self._doors[name], CLONE_NEWNS))


def own_cwd() -> None:
    """Give this thread a working directory of its own; else its chdir would be every thread's."""
    _check("unshare", _libc.unshare(CLONE_FS))


def forget_state() -> None:
    """Empty /run/agentshim of the present namespace, as after a boot."""
    for entry in STATE.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@contextmanager
def expedited() -> Iterator[None]:
    """The kernel hurries its grace periods meanwhile, where it can be told to. For the whole machine."""
    before = EXPEDITED.read_text()
    EXPEDITED.write_text("1")
    try:
        yield
    finally:
        EXPEDITED.write_text(before)


def sweep_cgroups(parent: str) -> None:
    """Remove the empty control groups that a delegate leaves under (and as) `parent`, in every hierarchy."""
    for top in [CONTROLLERS / parent, *CONTROLLERS.glob(f"*/{parent}")]:
        for folder in sorted((p for p in top.glob("**/") if p.is_dir()), reverse=True):
            try:
                folder.rmdir()
            except OSError:  # still in use: the delegate's own clean-up has failed, and has said so
                continue


def _overlay_etc() -> None:
    """An /etc that may be changed without the host seeing it, and that has an empty agentshim directory."""
    upper, scratch = Path("/run/etc-upper"), Path("/run/etc-scratch")
    upper.mkdir()
    scratch.mkdir()
    _mount("bench", "/etc", "overlay", 0, f"lowerdir=/etc,upperdir={upper},workdir={scratch}")
    shutil.rmtree(SETTINGS, ignore_errors=True)
    SETTINGS.mkdir(mode=0o755)


def _mount_hugetlb() -> None:
    """crun 1.8 refuses a hybrid v1 host whose hugetlb controller is not mounted; for all contenders alike."""
    offered = any(line.startswith("hugetlb\t") for line in Path("/proc/cgroups").read_text().splitlines())
    hybrid = (CONTROLLERS / "memory").is_dir()
    if offered and hybrid and not os.path.ismount(HUGETLB):
        HUGETLB.mkdir(exist_ok=True)
        try:
            _mount("cgroup", str(HUGETLB), "cgroup", 0, "hugetlb")
        except OSError:  # on the unified hierarchy already: crun will say what it misses
            return


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _unshare() -> None:
    _check("unshare", _libc.unshare(CLONE_NEWNS))


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _check(f"mount {target}", _libc.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3]))


def _check(what: str, answer: int) -> None:
    if answer != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
