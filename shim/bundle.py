"""Reading and replacing one file that root alone may change: config.json, process.json, our own records.

Every access goes through a directory descriptor, never through a path twice. Belongs here: bytes on disk. Next door:
`wire` and `spec` say what the bytes mean.
"""

from __future__ import annotations

import _stat as stat
import errno
import posix

from shim import hostpaths
from shim.errors import HostError, Invalid, Refused, is_absence, reason, unanswered

LIMIT = 16 << 20  # bytes; the largest config.json of an engine is about 100 KiB
MANY = 1 << 16  # bytes of a directory itself: about a thousand names


class Directory:
    """A directory of root's, held open. Close it, or let the process end: descriptors are O_CLOEXEC."""

    __slots__ = ("fd", "path")

    def __init__(self, path: str, shared: bool = False) -> None:
        """Opens `path`. Invalid if it is no directory; Refused if others than root can change what it leads to, or
        what is in it: `shared` allows a sticky one, where others can add files but not touch root's (/tmp).
        """
        self.path = path
        try:
            self.fd = posix.open(path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
        except OSError as error:
            if not is_absence(error):
                raise unanswered("bundle", path, error) from None
            todo = "name the bundle's directory with --bundle"
            raise Invalid("bundle", path, reason(error), "a directory", todo) from None
        there = posix.fstat(self.fd)
        roots = hostpaths.is_roots(there) or (shared and there.st_uid == 0 and bool(there.st_mode & stat.S_ISVTX))
        if not roots or not hostpaths.resolve(hostpaths.absolute(path))[1]:
            posix.close(self.fd)
            raise _changeable(path, there.st_uid)

    def read(self, name: str) -> tuple[bytes, posix.stat_result]:
        """The content of the regular file `name` and its status. Invalid if it is missing, empty, too large, or not a
        regular file; Refused if others than root may write it; HostError if the kernel does not give it.
        """
        where = f"{self.path}/{name}"
        try:
            # O_NONBLOCK: a FIFO must not hang us before fstat has seen what it is.
            fd = posix.open(
                name, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC, dir_fd=self.fd
            )
        except OSError as error:
            if not is_absence(error) and error.errno != errno.ENXIO:  # a socket
                raise unanswered("bundle", where, error) from None
            what = "a symbolic link" if error.errno == errno.ELOOP else reason(error)
            raise Invalid("bundle", where, what, "a regular file", "let the engine write it anew") from None
        try:
            there = posix.fstat(fd)
            _check(where, there)
            data = posix.read(fd, there.st_size + 1)
            if len(data) != there.st_size:
                raise Invalid("bundle", where, "a file that changes", "one that stays", "write it before the call")
            return data, there
        finally:
            posix.close(fd)

    def replace(self, name: str, data: bytes, like: posix.stat_result) -> None:
        """Puts `data` in place of `name`, whole or not at all, with the owner and mode of `like`.

        Not synced to disk: after a crash of the host no container of this bundle runs, and a file that is then empty
        is Invalid, not an open door. HostError if the disk does not take it; `name` is then as it was.
        """
        temporary = f".{name}.agentshim-{posix.getpid()}"
        try:
            flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
            fd = _fresh(temporary, flags, self.fd)
            try:
                view = memoryview(data)
                while view:
                    view = view[posix.write(fd, view) :]
                posix.fchown(fd, like.st_uid, like.st_gid)
                posix.fchmod(fd, stat.S_IMODE(like.st_mode))
            finally:
                posix.close(fd)
            posix.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError as error:
            try:
                posix.unlink(temporary, dir_fd=self.fd)
            except OSError:
                pass
            todo = "make room, or make the file system writable"
            raise HostError("bundle", f"{self.path}/{name}", reason(error), "a writable disk", todo) from None

    def tidy(self, name: str) -> None:
        """Removes what `replace` of a process that was killed has left beside `name`."""
        start = f".{name}.agentshim-"
        if posix.fstat(self.fd).st_size > MANY:
            return  # a /tmp of thousands: not worth an engine's time
        for one in posix.listdir(self.fd):
            if one.startswith(start) and not hostpaths.exists(f"/proc/{one[len(start) :]}"):
                try:
                    posix.unlink(one, dir_fd=self.fd)
                except FileNotFoundError:
                    pass  # another call was faster


def _changeable(path: str, owner: int) -> Refused:
    todo = "make it and every directory above it root's, without write permission for group and others"
    if owner != 0:
        todo += (
            "; podman gives it to the mapped root with --uidmap or --userns: run without, or use dockerd's userns-remap"
        )
    return Refused("bundle", path, f"a directory of uid {owner} that others can change", "root alone", todo)


def _fresh(name: str, flags: int, directory: int) -> int:
    """A new file; one of the same name is left over from a process of our number that was killed."""
    try:
        return posix.open(name, flags, 0o600, dir_fd=directory)
    except FileExistsError:
        posix.unlink(name, dir_fd=directory)
        return posix.open(name, flags, 0o600, dir_fd=directory)


def _check(where: str, there: posix.stat_result) -> None:
    if not stat.S_ISREG(there.st_mode):
        raise Invalid("bundle", where, "no regular file", "a regular file", "let the engine write it anew")
    if not hostpaths.is_roots(there):
        todo = "make it root's, without write permission for group and others"
        raise Refused("bundle", where, "a file that others can write", "root alone", todo)
    if there.st_size > LIMIT:
        raise Invalid("bundle", where, f"{there.st_size} bytes", f"at most {LIMIT}", "use a smaller one")
