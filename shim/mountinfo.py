"""What is mounted where: /proc/<pid>/mountinfo, and what a path really is, whatever name leads to it.

A path is identified by its file system and its path inside that: a bind mount of /etc at /srv/alias has another name
and the same identity. Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import posix

from shim.errors import HostError, reason
from shim.lattice import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    Identity = tuple[str, str]  # major:minor, path inside the file system


class Mount(Value):
    """`place`: where; `kind`: the file system's type; `device`, `root`: its identity; `readonly`: here."""

    __slots__ = ("place", "kind", "device", "root", "readonly")

    def __init__(self, place: str, kind: str, device: str, root: str, readonly: bool = False) -> None:
        self.place = place
        self.kind = kind
        self.device = device
        self.root = root
        self.readonly = readonly


def table(pid: int | str = "self") -> list[Mount]:
    """The mounts that a process sees, later ones over earlier. HostError if it is gone."""
    path = f"/proc/{pid}/mountinfo"
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError as error:
        raise HostError("mountinfo", path, reason(error), "a process", "try again") from None
    data = b""
    while chunk := posix.read(fd, 1 << 16):
        data += chunk
    posix.close(fd)
    return [_parsed(line) for line in data.decode("utf-8", "surrogateescape").split("\n") if line]


def identity(mounts: list[Mount], path: str) -> Identity:
    """What the real path `path` is."""
    holding = [mount for mount in mounts if is_below(path, mount.place)]
    best = max(reversed(holding), key=lambda mount: len(mount.place))  # of two at one place, the later one is on top
    return best.device, joined(best.root, path[len(best.place.rstrip("/")) :])


def below(mounts: list[Mount], path: str) -> list[Mount]:
    """What is mounted below `path`: a recursive bind brings it along."""
    return [mount for mount in mounts if mount.place != path and is_below(mount.place, path)]


def overlap(a: Identity, b: Identity) -> bool:
    """Whether one of the two contains the other."""
    return a[0] == b[0] and (is_below(a[1], b[1]) or is_below(b[1], a[1]))


def is_below(path: str, place: str) -> bool:
    """Whether `path` is `place` or lies below it."""
    return path == place or path.startswith(place.rstrip("/") + "/")


def joined(root: str, rest: str) -> str:
    return (root.rstrip("/") + rest) or "/"


def _parsed(line: str) -> Mount:
    words = line.split(" ")
    kind = words[words.index("-", 6) + 1]
    return Mount(_plain(words[4]), kind, words[2], _plain(words[3]), "ro" in words[5].split(","))


def _plain(text: str) -> str:
    """Without the kernel's octal escapes of blank, tab, newline and backslash."""
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, character)
    return text
