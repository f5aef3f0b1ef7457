"""An engine's file on disk: read if root alone may change it, replaced whole or not at all, undone if a step fails.

Belongs here: bytes, links and directories, as steps with describe(), apply() and undo(). Next door: `engines` says what
is in the files; `install` says which steps there are.
A symbolic link is refused, not followed: what stands behind it is often made by somebody else (NixOS, a configuration
manager, a volume of the cluster), who would put it back, and a rename over the link would cut it off without a word.
So would it a file's other names (hard links).
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from shim import policy
from shim.errors import HostError, Invalid, Refused, reason

BOM = b"\xef\xbb\xbf"
BACKUP = ".before-agentshim"
DEFERRED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class File:
    """What was read: `data` as on disk, `text` with \\n alone; `crlf`: every line ended in \\r\\n; `status`: None where
    there is no file.
    """

    path: str
    data: bytes = b""
    text: str = ""
    crlf: bool = False
    status: os.stat_result | None = None

    def encoded(self, text: str) -> bytes:
        """`text` with the line ends that the file has."""
        return text.replace("\n", "\r\n").encode() if self.crlf else text.encode()


class Step(Protocol):
    """One change of the host."""

    def describe(self) -> Iterator[str]:
        """Lines, each with its end: what `apply` does."""

    def apply(self) -> None:
        """HostError if it cannot be done; nothing is then changed."""

    def undo(self) -> None:
        """Back to what was before `apply`, which may have failed half way."""


def read(path: str) -> File:
    """The file at `path`, an empty one where there is none.

    Refused for a link, of either kind, or for what is no file; HostError where others than root can change it, or a
    directory above it, or where it cannot be read; Invalid where it is not UTF-8, or begins with a byte order mark.
    """
    check_place(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return File(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            target = os.path.realpath(path)
            todo = f"change it where it is made, or name that file: --config {target}"
            raise Refused("install", path, f"a symbolic link to {target}", "a file", todo) from None
        raise failed(path, error) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("install", path, "no regular file", "a file", "put a file there, or name one with --config")
        if status.st_nlink > 1:
            todo = f"make it a file of its own: cp -p {path} {path}.own && mv {path}.own {path}"
            raise Refused("install", path, f"a file with {status.st_nlink} names (hard links)", "one name", todo)
        _check_owner(path, status)
        with open(fd, "rb", closefd=False) as file:
            return _decoded(path, file.read(), status)
    finally:
        os.close(fd)


def check_place(path: str) -> None:
    """HostError unless only root can change the directories above `path`, as far as they exist."""
    directory = os.path.dirname(path)
    while not os.path.lexists(directory):
        directory = os.path.dirname(directory)
    try:
        policy.check_chain(directory)
    except HostError as error:
        raise HostError("install", error.key, error.asked, error.ceiling, error.todo) from None


def _check_owner(path: str, status: os.stat_result) -> None:
    if status.st_uid not in policy.OWNERS:
        todo = f"chown root {path}: who can write it decides what the engine runs as root"
        raise HostError("install", path, f"owner uid {status.st_uid}", "owner root", todo)
    if status.st_mode & 0o022:
        todo = f"chmod go-w {path}: who can write it decides what the engine runs as root"
        raise HostError("install", path, f"mode {stat.S_IMODE(status.st_mode):04o}", "writable by root alone", todo)


def _decoded(path: str, data: bytes, status: os.stat_result) -> File:
    if data.startswith(BOM):
        todo = "save it without: engines take it for a syntax error"
        raise Invalid("install", f"{path}:1", "a byte order mark", "plain UTF-8", todo)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Invalid("install", f"{path}:{line}", f"byte {data[error.start]:#04x}", "UTF-8", "correct it") from None
    crlf = "\r\n" in text and text.count("\r\n") == text.count("\n")
    return File(path, data, text.replace("\r\n", "\n") if crlf else text, crlf, status)


def aside(path: str) -> str:
    """Where what belongs to `path` but must not be read as it lies: beside it, and outside of a directory of drop-ins,
    since CRI-O reads whatever is in its own.
    """
    directory, name = os.path.split(path)
    if directory.endswith(".d"):
        above, directory = os.path.split(directory)
        return f"{above}/{directory}.{name}"
    return path


def backup_of(path: str) -> str:
    """Where the file as it was before us is kept."""
    return aside(path) + BACKUP


def diff(path: str, before: bytes | None, after: bytes | None) -> Iterator[str]:
    """A unified diff, as patch(1) reads it."""
    old, new = ((one or b"").decode("utf-8", "replace").splitlines(keepends=True) for one in (before, after))
    was, becomes = (path if one is not None else os.devnull for one in (before, after))
    for line in difflib.unified_diff(old, new, was, becomes):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


@dataclass(frozen=True)
class Dress:
    """Who owns a file, who may read it, and its extended attributes (an SELinux label, ACLs)."""

    uid: int
    gid: int
    mode: int
    attributes: tuple[tuple[str, bytes], ...]

    @classmethod
    def of(cls, path: str) -> Dress:
        """What the file `path` wears. OSError."""
        status = os.stat(path)
        attributes = tuple((name, os.getxattr(path, name)) for name in os.listxattr(path))
        return cls(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), attributes)

    def put_on(self, fd: int) -> None:
        """OSError; an attribute that the file system does not take is left out."""
        os.fchown(fd, self.uid, self.gid)
        os.fchmod(fd, self.mode)
        for name, value in self.attributes:
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise


@dataclass
class Content:
    """The file `path` gets `after` instead of `before` (None: no file), and keeps its owner, mode and attributes.

    `like`: the file of which `path` is a copy: it then gets the owner, mode and attributes of that, whatever it had,
    since who may not read the one must not read the other. `shown`: whether its diff is worth showing.
    """

    path: str
    before: bytes | None
    after: bytes | None
    like: str = ""
    shown: bool = True
    _is_begun: bool = False
    _worn: Dress | None = None  # before us: for undo, since a file that is gone tells nothing

    def describe(self) -> Iterator[str]:
        if self.shown:
            yield from diff(self.path, self.before, self.after)

    def apply(self) -> None:
        try:
            self._check(self.before)
            self._worn = Dress.of(self.path) if self.before is not None else None
            dress = Dress.of(self.like) if self.like else self._worn
            self._is_begun = True
            self._become(self.after, dress)
        except OSError as error:
            raise failed(self.path, error) from None

    def undo(self) -> None:
        if self._is_begun:
            self._check(self.after)
            self._become(self.before, self._worn)

    def _check(self, expected: bytes | None) -> None:
        if _bytes(self.path) != expected:
            todo = "run it again: someone else is writing it"
            raise HostError("install", self.path, "another content than was read", "the same", todo)

    def _become(self, data: bytes | None, dress: Dress | None) -> None:
        if data is None:
            os.unlink(self.path)
        else:
            _write(self.path, data, dress)
        _sync(os.path.dirname(self.path))


@dataclass
class Link:
    """A symbolic link `path` to `target` beside it."""

    path: str
    target: str
    _is_made: bool = False

    def describe(self) -> Iterator[str]:
        yield f"link {self.path} -> {self.target}\n"

    def apply(self) -> None:
        try:
            os.symlink(self.target, self.path)
        except OSError as error:
            raise failed(self.path, error) from None
        self._is_made = True

    def undo(self) -> None:
        if self._is_made:
            os.unlink(self.path)


@dataclass
class Directory:
    """The directory `path`, with those above it; root's, for all to read."""

    path: str
    _made: list[str] = field(default_factory=list)

    def describe(self) -> Iterator[str]:
        yield f"directory {self.path}\n"

    def apply(self) -> None:
        missing = [self.path]
        while not os.path.lexists(os.path.dirname(missing[-1])):
            missing.append(os.path.dirname(missing[-1]))
        try:
            for path in reversed(missing):
                os.mkdir(path, 0o755)
                self._made.append(path)
                os.chmod(path, 0o755)  # whatever the umask
        except OSError as error:
            self.undo()
            raise failed(self.path, error) from None

    def undo(self) -> None:
        while self._made:
            os.rmdir(self._made.pop())


def apply(steps: list[Step]) -> None:
    """All of `steps`, or none: when one fails, in whatever way, it is undone, and those before it, the last first.

    Signals that ask us to end wait until then: it takes milliseconds.
    """
    begun: list[Step] = []
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, DEFERRED)
    try:
        for step in steps:
            begun.append(step)
            step.apply()
    except BaseException:
        for step in reversed(begun):
            with contextlib.suppress(Exception):  # the first error is the one to tell
                step.undo()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)


def temporary(path: str, pid: int | str) -> str:
    """What the process `pid` writes before it renames it to `path`."""
    directory, name = os.path.split(aside(path))
    return f"{directory}/.{name}.{pid}"


def _bytes(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _write(path: str, data: bytes, dress: Dress | None) -> None:
    """rename(2) of a whole, synced file over `path`, or to it; root's and 0644 without a `dress`."""
    new = temporary(path, os.getpid())
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if dress:
                dress.put_on(fd)
            else:
                os.fchmod(fd, 0o644)
            os.fsync(fd)
        os.rename(new, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # already renamed
            os.unlink(new)
        raise


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def failed(path: str, error: OSError) -> HostError:
    todo = "nothing was changed: make its file system writable, with room in it, or name another file with --config"
    return HostError("install", path, reason(error), "a file that root can read and replace", todo)
