"""An engine's file on disk: read if root alone may change it, replaced whole or not at all, undone if a step fails.

Belongs here: bytes, links and directories, as steps with describe(), apply() and undo(). Next door: `engines` says what
is in the files; `install` says which steps there are.
A symbolic link is refused, not followed: what stands behind it is often made by somebody else (NixOS, a configuration
manager, a volume of the cluster), who would put it back, and a rename over the link would cut it off without a word.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from shim import policy
from shim.errors import HostError, Invalid, Refused, ShimError, reason

BOM = b"\xef\xbb\xbf"
BACKUP = ".before-agentshim"


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

    Refused for a link, or for what is no file; HostError where others than root can change it, or a directory above it,
    or where it cannot be read; Invalid where it is not UTF-8, or begins with a byte order mark.
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


@dataclass
class Content:
    """The file `path` gets `after` instead of `before` (None: no file), and keeps its owner, mode and attributes.

    `like`: the file whose they are where `path` is new. `shown`: whether its diff is worth showing.
    """

    path: str
    before: bytes | None
    after: bytes | None
    like: str = ""
    shown: bool = True

    def describe(self) -> Iterator[str]:
        if self.shown:
            yield from diff(self.path, self.before, self.after)

    def apply(self) -> None:
        self._change(self.before, self.after)

    def undo(self) -> None:
        self._change(self.after, self.before)

    def _change(self, expected: bytes | None, data: bytes | None) -> None:
        try:
            if _bytes(self.path) != expected:
                todo = "run it again: someone else is writing it"
                raise HostError("install", self.path, "another content than was read", "the same", todo)
            if data is None:
                os.unlink(self.path)
            else:
                _write(self.path, data, self.path if expected is not None else self.like)
            _sync(os.path.dirname(self.path))
        except OSError as error:
            raise failed(self.path, error) from None


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
    """All of `changes`, or none: when one fails it is undone, and those before it, the last first."""
    begun: list[Step] = []
    try:
        for step in steps:
            begun.append(step)
            step.apply()
    except ShimError:
        for step in reversed(begun):
            with contextlib.suppress(ShimError, OSError):  # the first error is the one to tell
                step.undo()
        raise


def _bytes(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _write(path: str, data: bytes, like: str) -> None:
    """rename(2) of a whole, synced file over `path`, or to it."""
    directory, name = os.path.split(aside(path))
    temporary = f"{directory}/.{name}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            _dress(fd, like)
            os.fsync(fd)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _dress(fd: int, like: str) -> None:
    """Owner, mode and extended attributes (an SELinux label, ACLs) of the file `like`; root's and 0644 without one."""
    if not like:
        os.fchmod(fd, 0o644)
        return
    status = os.stat(like)
    os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(like):
        try:
            os.setxattr(fd, name, os.getxattr(like, name))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM):
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
