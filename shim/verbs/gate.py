"""What every deciding verb asks before it decides: whose call it is, where we are, and what meets were proved."""

from __future__ import annotations

import posix
import sys

from shim import hostpaths, policy
from shim.dim import seccomp
from shim.errors import HostError, Refused, is_absence, unanswered
from shim.seccomp import cache

PROVED = policy.VAR + "/seccomp"
# All that decides what a proved meet is, and whether one is accepted.
MAKERS = (
    ("dim", ("seccomp",)),
    ("seccomp", ("check", "cubes", "emit", "model", "names", "profile", "reading", "resolve", "vocabulary", "words")),
    ("cold/seccomp", ("bpf", "first_filter", "inclusion", "libseccomp", "loaded_filter", "prove", "simulate")),
)
SEEN = ".seen"  # beside a proved meet: the delegate's own filter was read out of the kernel and compared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.runc import Delegate


def require_host_root() -> None:
    """Refused for a rootless engine: its files look like nobody's in here, so whose they are cannot be checked."""
    fd = posix.open("/proc/self/uid_map", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        words = posix.read(fd, 256).split()
    finally:
        posix.close(fd)
    if posix.geteuid() == 0 and words[:3] == [b"0", b"0", b"4294967295"]:
        return
    asked = f"uid {posix.geteuid()} in a user namespace" if words[2:3] != [b"4294967295"] else f"uid {posix.geteuid()}"
    todo = "run the engine as root (podman: sudo podman), or keep a rootless engine on its own runtime"
    raise Refused("user", "rootless", asked, "root of the host", todo)


def bring(group: str) -> None:
    """The modules of a group of `hot`, if we were started with it: they would be imported one by one otherwise."""
    late = getattr(sys.modules["__main__"], "late", None)
    if late:
        late(group)


def launcher() -> str:
    """Our own executable beside this package: <prefix>/bin/agentshim, or native/build/agentshim while developing.

    HostError if it is in neither place.
    """
    home = _home()
    return _first(f"{home}/native/build/agentshim", f"{home.rpartition('/lib/')[0]}/bin/agentshim")


def program(name: str) -> str:
    """A native program of ours that only we call: in our own directory, or in native/build. HostError as launcher."""
    home = _home()
    return _first(f"{home}/native/build/{name}", f"{home}/{name}")


def _home() -> str:
    return hostpaths.absolute(__file__).rpartition("/shim/")[0]


def _first(*places: str) -> str:
    for place in places:
        if posix.access(place, posix.X_OK):
            return place
    raise HostError("gate", places[-1], "not there", "a program of ours", "install it anew")


def is_seen(key: str) -> bool:
    """Whether a filter that a delegate loaded for this proved meet was compared with it: as a meet, a record that is
    not root's own, or for another key, is none.
    """
    return cache.load(PROVED, key + SEEN) is not None


def saw(key: str, probes: int) -> None:
    """Records that it was compared, by so many probes; where no disk takes that, the next start compares again."""
    _keep(key + SEEN, seccomp.TOP, {"probes": probes})


class Admitter:
    """Lets seccomp know the proved meet of two profiles: from the cache, else made and proved now.

    `unseen`: the key of the meet while no filter that this delegate really loaded has been compared with it, else ''.
    """

    __slots__ = ("_delegate", "unseen")

    def __init__(self, delegate: Delegate) -> None:
        self._delegate = delegate
        self.unseen = ""

    def __call__(self, asked: Any, ceiling: Any, mask: int) -> None:
        if seccomp.instant(asked, ceiling) is not None:
            return
        key = seccomp.pair_key(asked, ceiling, mask, f"{self._delegate.identity}:{_library()}:{_makers()}")
        granted = cache.load(PROVED, key)
        if granted is None:
            from shim.cold.seccomp import prove  # compiles with libseccomp: once for a pair of profiles

            granted, proof = prove.granted(asked, ceiling)
            _keep(key, granted, proof)
        if not is_seen(key):
            self.unseen = key
        seccomp.admit(asked, ceiling, granted)


def _library() -> str:
    """What libseccomp is now: an upgrade makes filters that nobody has proved. '' where a distribution keeps it
    elsewhere, or the delegate brings its own along.
    """
    for place in (f"/lib/{posix.uname().machine}-linux-gnu", "/usr/lib64", "/usr/lib"):
        try:
            there = posix.stat(f"{place}/libseccomp.so.2")
        except OSError as error:
            if not is_absence(error):
                raise unanswered("seccomp", place, error) from None
            continue
        return f"{there.st_dev}:{there.st_ino}:{there.st_mtime_ns}:{there.st_size}"
    return ""


def _makers() -> str:
    """What our own sources are now that make a meet and its proof: mended, they leave no proof of the old ones."""
    home = _home()
    return hostpaths.stamps([f"{home}/shim/{room}/{name}.py" for room, names in MAKERS for name in names])


def _keep(key: str, granted: Any, proof: dict[str, Any]) -> None:
    """Stores a proved meet. A disk that takes none makes the next start slow, not unsafe: it will prove again."""
    try:
        if not hostpaths.exists(policy.VAR):
            posix.mkdir(policy.VAR, 0o755)
        cache.store(PROVED, key, granted, proof)
        cache.prune(PROVED)
    except (OSError, HostError):
        pass
