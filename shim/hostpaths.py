"""What a path of the host means to a container that gets it: a volume, the engine's own file, or host authority.

Belongs here: the tables of paths and the walk that finds what a path really is. Next door: `dim.mounts` says what each
class may do.
"""

from __future__ import annotations

import _stat as stat
import posix

from shim import mountinfo
from shim.errors import is_absence, unanswered
from shim.lattice import Value
from shim.mountinfo import is_below as _below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# Nothing of these is lent, nor what lies below, nor a directory that contains one of them.
AUTHORITY = (
    "/proc",
    "/sys",
    "/dev",
    "/boot",
    "/root",
    "/run",
    "/etc",
    "/var/spool",
    "/var/backups",
    "/var/mail",
    "/var/crash",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/lib/agentshim",
    "/var/lib/dpkg",
    "/var/lib/rpm",
    "/var/lib/systemd",
    "/var/lib/etcd",
    "/lost+found",
)
# Harmless below /etc, and what every program reads anyway: lent read-only.
READABLE = (
    "/etc/localtime",
    "/etc/timezone",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ca-certificates",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
)
# The host's programs and its records: lent read-only, since uid 0 owns them inside as well as outside.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/var/lib", "/var/cache", "/var/log", "/nix")
# Directories of storage drivers: what stands before one in the path of a root file system is an engine's own.
DRIVERS = ("overlay2", "overlay", "vfs", "btrfs", "fuse-overlayfs", "aufs", "devicemapper", "zfs")
# Where engines keep their containers' files when they are installed as they come.
ENGINES = (
    "/var/lib/docker",
    "/run/docker",
    "/run/containerd",
    "/var/lib/containerd",
    "/var/lib/containers/storage",
    "/run/containers/storage",
)
# What engines mount by themselves, as it follows a container's directory; OWN_FILES only of that container.
ENGINE_FILES = (*([name] for name in ("resolv.conf", "hostname", "hosts", ".containerenv", "shm")), ["mounts", "shm"])
OWN_FILES = (["passwd"], ["group"], ["run"])


class Source(Value):
    """`kind`: a class of dim.mounts; `real`: the path without links; `steady`: nobody but root can put something else
    in its place; `directory`: others may be mounted below it.
    """

    __slots__ = ("kind", "real", "steady", "directory")

    def __init__(self, kind: str, real: str, steady: bool = True, directory: bool = True) -> None:
        self.kind = kind
        self.real = real
        self.steady = steady
        self.directory = directory


class Places:
    """Classifies paths for one container: its bundle and root tell where the engine keeps its own."""

    __slots__ = ("_engine", "_ids", "_own", "_table")

    def __init__(self, bundle: str, root: str) -> None:
        self._own = (real(bundle), real(root))
        self._engine = (*ENGINES, *_engine_directories(*self._own))
        # Engines name a container's directories by its 64 hexadecimal digits.
        self._ids = {part for own in self._own for part in own.split("/") if len(part) == 64}
        self._table: list[mountinfo.Mount] = []

    def classify(self, path: str) -> Source:
        """What `path` is; follows links, so the answer holds for the file found now: `expected` lets a hook compare."""
        if not path:
            return Source("missing", "")
        if ".." in path.split("/"):
            return Source("other", path)  # the kernel walks it, runc folds it: two meanings
        found, steady = resolve(path)
        try:
            there = posix.stat(found)
        except OSError:
            return Source("missing", found)
        kind = self._kind(found, there.st_mode)
        if kind == "volume" and self._is_alias(found):
            kind = "authority"
        return Source(kind, found, steady, stat.S_ISDIR(there.st_mode))

    def expected(self, path: str) -> list[mountinfo.Identity]:
        """The identities that a recursive bind of the real path `path` may bring: its own, and of what is below it."""
        below = [(mount.device, mount.root) for mount in mountinfo.below(self._mounts(), path)]
        return [mountinfo.identity(self._mounts(), path), *below]

    def _mounts(self) -> list[mountinfo.Mount]:
        self._table = self._table or mountinfo.table()
        return self._table

    def _is_alias(self, found: str) -> bool:
        """Whether `found`, or what is mounted below it, is a part of what is not lent, under another name."""
        held = [mountinfo.identity(self._mounts(), one) for one in (*AUTHORITY, *self._engine) if exists(one)]
        named = [mountinfo.identity(self._mounts(), one) for one in self._named_volumes(found)]
        return any(
            mountinfo.overlap(one, other)
            for one in self.expected(found)
            for other in held
            if not any(mountinfo.is_below(one[1], volume[1]) and one[0] == volume[0] for volume in named)
        )

    def _named_volumes(self, found: str) -> list[str]:
        return [found] if self._is_volume_of_engine(found) else []

    def root(self, path: str) -> Source:
        """What a root file system is: 'authority' if it contains what is not lent or is part of the host's own."""
        source = self.classify(path)
        found = source.real
        inner = any(_below(one, found) for one in (*AUTHORITY, *self._engine, self._own[0]))
        engines = _below(found, self._own[0]) or any(driver in found.split("/") for driver in DRIVERS)
        host = not engines and any(_below(found, one) for one in (*AUTHORITY, *self._engine, *SYSTEM))
        kind = "authority" if inner or host else "missing" if source.kind == "missing" else "volume"
        return Source(kind, found, source.steady)

    def _kind(self, real: str, mode: int) -> str:
        if stat.S_ISSOCK(mode):
            return "socket"
        if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
            return "device"
        if self._is_engine_file(real):
            return "engine"
        if self._is_volume_of_engine(real):
            return "volume"
        # What contains something that is not lent; and the container's own root, where earlier mounts of the same
        # container lie by the time it is mounted.
        holds = any(_below(one, real) for one in (*AUTHORITY, *self._engine, *self._own))
        if holds or _below(real, self._own[1]):
            return "authority"
        if any(_below(real, one) for one in READABLE):
            return "system"
        if any(_below(real, one) for one in (*AUTHORITY, *self._engine)):
            return "authority"
        return "system" if any(_below(real, one) for one in SYSTEM) else "volume"

    def _inside_engine(self, found: str) -> list[list[str]]:
        """What follows an engine's directory in `found`, in parts, for each engine that it lies in."""
        return [found[len(one) + 1 :].split("/") for one in self._engine if found.startswith(one + "/")]

    def _is_engine_file(self, found: str) -> bool:
        """A file that an engine made for containers, by its exact place; secrets only of this container."""
        for parts in self._inside_engine(found):
            head, container, rest = parts[0], parts[1:2], parts[2:]
            if head == "containers" and container and len(container[0]) == 64:
                place = rest
            elif (head.endswith("-containers") and rest[:1] == ["userdata"]) or (
                head == "io.containerd.grpc.v1.cri" and container == ["sandboxes"] and len(rest) == 2
            ):
                place = rest[1:]
            else:
                continue
            own = container[0] in self._ids
            if place in ENGINE_FILES or (own and (place in OWN_FILES or "secrets" in place[:2])):
                return True
        return False

    def _is_volume_of_engine(self, found: str) -> bool:
        """A named volume, <engine>/volumes/<name>/_data and below (Docker, podman); a pod's files (kubelet)."""
        named = any(parts[0] == "volumes" and parts[2:3] == ["_data"] for parts in self._inside_engine(found))
        return named or found.startswith("/var/lib/kubelet/pods/")


def resolve(path: str) -> tuple[str, bool]:
    """The real path of `path`, and whether only root can change where it leads.

    Each directory on the way, through links too, must be root's and not writable by others, unless it is sticky and
    the next component is root's (/tmp). What does not exist is not steady; more than 40 links are (ELOOP) not either.
    """
    todo = [part for part in reversed(path.split("/")) if part]
    here, steady, links = "", True, 0
    parent: posix.stat_result | None = None  # of `here`; None after a turn
    while todo:
        part = todo.pop()
        if part in (".", ".."):
            here, parent = (here.rpartition("/")[0], None) if part == ".." else (here, parent)
            continue
        child = f"{here}/{part}"
        try:
            parent, there = parent or posix.lstat(here or "/"), posix.lstat(child)
        except OSError as error:
            if not is_absence(error):
                raise unanswered("host", child, error) from None
            return _folded([child, *reversed(todo)]), False
        loose = bool(parent.st_mode & 0o022)
        sticky_and_roots = bool(parent.st_mode & stat.S_ISVTX) and there.st_uid == 0
        steady = steady and parent.st_uid == 0 and (not loose or sticky_and_roots)
        if not stat.S_ISLNK(there.st_mode):
            here, parent = child, there
            continue
        links += 1
        # A link of /proc leads into another process's root, which its text does not say.
        if links > 40 or child.startswith("/proc/"):
            return _folded([child, *reversed(todo)]), False
        target = posix.readlink(child)
        here, parent = ("", None) if target[:1] == "/" else (here, parent)
        todo.extend(one for one in reversed(target.split("/")) if one)
    return here or "/", steady


def device(path: str) -> tuple[str, int, int] | None:
    """(type, major, minor) of what the host has at `path`, type '' for no device; None where nothing is."""
    try:
        there = posix.stat(path)
    except OSError as error:
        if not is_absence(error):
            raise unanswered("host", path, error) from None
        return None
    kind = "b" if stat.S_ISBLK(there.st_mode) else "c" if stat.S_ISCHR(there.st_mode) else ""
    return kind, posix.major(there.st_rdev), posix.minor(there.st_rdev)


def real(path: str) -> str:
    """`path` without links, as far as it exists; relative to the working directory. As os.path.realpath, without `os`
    and what it imports (1.5 ms of every start).
    """
    return resolve(absolute(path))[0]


def absolute(path: str) -> str:
    """`path` from the root on; nothing is folded, since `..` behind a link is not what it looks like."""
    return path if path[:1] == "/" else join(posix.getcwd(), path)


def join(directory: str, path: str) -> str:
    """`path` as seen from `directory`: itself if it is absolute."""
    return path if path[:1] == "/" else f"{directory.rstrip('/')}/{path}"


def split(path: str) -> tuple[str, str]:
    """(directory, name) of an absolute path."""
    directory, _, name = path.rpartition("/")
    return directory or "/", name


def exists(path: str) -> bool:
    """Whether something is at `path`, a link that leads nowhere included. HostError where the kernel does not say."""
    try:
        posix.lstat(path)
    except OSError as error:
        if not is_absence(error):
            raise unanswered("host", path, error) from None
        return False
    return True


def stamps(paths: Iterable[str]) -> str:
    """What files are now: size, mtime in ns and inode of each. HostError where one is not there."""
    told = []
    for path in paths:
        try:
            there = posix.stat(path)
        except OSError as error:
            raise unanswered("host", path, error) from None
        told.append(f"{there.st_size}.{there.st_mtime_ns}.{there.st_ino}")
    return ":".join(told)


def _folded(parts: list[str]) -> str:
    """Where a path that does not exist would be, if nothing on it were a link."""
    out: list[str] = []
    for part in "/".join(parts).split("/"):
        if part == "..":
            del out[-1:]
        elif part not in ("", "."):
            out.append(part)
    return "/" + "/".join(out)


def is_roots(there: posix.stat_result) -> bool:
    """Whether a file is root's and nobody else can write it."""
    return there.st_uid == 0 and not there.st_mode & 0o022


def program(path: str) -> str:
    """The real path of a program of root's that nobody else can change, '' if `path` is not one.

    Links are followed, /proc/<pid>/exe among them: what it names now is what is checked.
    """
    try:
        there = posix.stat(path)
        found = posix.readlink(path) if path.startswith("/proc/") else real(path)
        named = posix.stat(found)
    except OSError:
        return ""
    if not stat.S_ISREG(there.st_mode) or not is_roots(there) or not resolve(found)[1]:
        return ""
    return found if (named.st_dev, named.st_ino) == (there.st_dev, there.st_ino) else ""


def _engine_directories(bundle: str, root: str) -> tuple[str, ...]:
    """Where this container's engine keeps its state: what precedes a storage driver's name in the root's path, and
    what precedes containerd's or podman's name for its bundles.
    """
    found = []
    parts = root.split("/")
    for driver in DRIVERS:
        if driver in parts[2:]:
            found.append("/".join(parts[: parts.index(driver, 2)]))
            break
    parts = bundle.split("/")
    for position, part in enumerate(parts):
        if position >= 2 and (part.startswith("io.containerd.") or part.endswith("-containers")):
            found.append("/".join(parts[:position]))
            break
    return tuple(found)
