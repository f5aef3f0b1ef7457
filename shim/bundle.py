"""Reading and replacing one file that root alone may change: config.json, process.json, our own records.

Every access goes through a directory descriptor, never through a path twice. Belongs here: bytes on disk. Next door:
`wire` and `spec` say what the bytes mean.
"""

from __future__ import annotations

import errno
import os
import stat

from shim import hostpaths
from shim.errors import HostError, Invalid, Refused, reason

LIMIT = 16 << 20  # bytes; the largest config.json of an engine is about 100 KiB


class Directory:
    """A directory of root's, held open. Close it, or let the process end: descriptors are O_CLOEXEC."""

    __slots__ = ("fd", "path")

    def __init__(self, path: str, shared: bool = False) -> None:
        """Opens `path`. Invalid if it is no directory; Refused if others than root can change what it leads to, or
        what is in it: `shared` allows a sticky one, where others can add files but not touch root's (/tmp).
        """
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            todo = "name the bundle's directory with --bundle"
            raise Invalid("bundle", path, reason(error), "a directory", todo) from None
        there = os.fstat(self.fd)
        roots = hostpaths.is_roots(there) or (shared and there.st_uid == 0 and bool(there.st_mode & stat.S_ISVTX))
        if not roots or not hostpaths.resolve(os.path.abspath(path))[1]:
            os.close(self.fd)
            raise _changeable(path, there.st_uid)

    def read(self, name: str) -> tuple[bytes, os.stat_result]:
        """The content of the regular file `name` and its status. Invalid if it is missing, empty, too large, or not a
        regular file; Refused if others than root may write it.
        """
        where = f"{self.path}/{name}"
        try:
            # O_NONBLOCK: a FIFO must not hang us before fstat has seen what it is.
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError as error:
            what = "a symbolic link" if error.errno == errno.ELOOP else reason(error)
            raise Invalid("bundle", where, what, "a regular file", "let the engine write it anew") from None
        try:
            there = os.fstat(fd)
            _check(where, there)
            data = os.read(fd, there.st_size + 1)
            if len(data) != there.st_size:
                raise Invalid("bundle", where, "a file that changes", "one that stays", "write it before the call")
            return data, there
        finally:
            os.close(fd)

    def replace(self, name: str, data: bytes, like: os.stat_result) -> None:
        """Puts `data` in place of `name`, whole or not at all, with the owner and mode of `like`.

        Not synced to disk: after a crash of the host no container of this bundle runs, and a file that is then empty
        is Invalid, not an open door. HostError if the disk does not take it; `name` is then as it was.
        """
        temporary = f".{name}.agentshim-{os.getpid()}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = _fresh(temporary, flags, self.fd)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fchown(fd, like.st_uid, like.st_gid)
                os.fchmod(fd, stat.S_IMODE(like.st_mode))
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError as error:
            try:
                os.unlink(temporary, dir_fd=self.fd)
            except OSError:
                pass
            todo = "make room, or make the file system writable"
            raise HostError("bundle", f"{self.path}/{name}", reason(error), "a writable disk", todo) from None


def _changeable(path: str, owner: int) -> Refused:
    todo = "make it and every directory above it root's, without write permission for group and others"
    if owner != 0:
        todo += "; podman gives it to the mapped root with --uidmap or --userns: run without, or use dockerd's userns-remap"
    return Refused("bundle", path, f"a directory of uid {owner} that others can change", "root alone", todo)


def _fresh(name: str, flags: int, directory: int) -> int:
    """A new file; one of the same name is left over from a process of our number that was killed."""
    try:
        return os.open(name, flags, 0o600, dir_fd=directory)
    except FileExistsError:
        os.unlink(name, dir_fd=directory)
        return os.open(name, flags, 0o600, dir_fd=directory)


def _check(where: str, there: os.stat_result) -> None:
    if not stat.S_ISREG(there.st_mode):
        raise Invalid("bundle", where, "no regular file", "a regular file", "let the engine write it anew")
    if not hostpaths.is_roots(there):
        todo = "make it root's, without write permission for group and others"
        raise Refused("bundle", where, "a file that others can write", "root alone", todo)
    if there.st_size > LIMIT:
        raise Invalid("bundle", where, f"{there.st_size} bytes", f"at most {LIMIT}", "use a smaller one")
