"""Proved meets on disk: a file a key, written once, read at each start (0.1 ms).

The directory belongs to root and nobody else may write there; a file that is not ours, cut short or changed is a miss,
never an error: the meet is then made and proved anew. The only module of this package that does IO.
"""

from __future__ import annotations

import errno
import marshal
import posix

from shim.errors import HostError, reason
from shim.seccomp.profile import FORMAT, Profile, digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAGIC = b"%s\n" % FORMAT
_DIGEST = 40  # hex characters
MOST = 512  # files: engines ask for a handful of profiles, but whoever may start a container can ask for any number
_LIMIT = 4 << 20  # bytes: a profile of 4,096 rules takes 0.5 MiB


def load(directory: str, key: str) -> Profile | None:
    """The profile that was stored under `key`, with its proof; None where there is none that we can trust."""
    try:
        above = posix.stat(directory, follow_symlinks=False)
        fd = posix.open(f"{directory}/{key}", posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK)
    except OSError:
        return None
    try:
        facts = posix.fstat(fd)
        if not (_ours(above, 0o040000) and _ours(facts, 0o100000) and facts.st_size <= _LIMIT):
            return None
        data = posix.read(fd, facts.st_size + 1)
    except OSError:
        return None
    finally:
        posix.close(fd)
    return _decode(data, key)


def store(directory: str, key: str, profile: Profile, proof: dict[str, Any]) -> None:
    """Keep `profile` under `key`, whole or not at all. HostError where the directory is not as it must be."""
    try:
        posix.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise _host(directory, error) from error
    above = posix.stat(directory, follow_symlinks=False)
    if not _ours(above, 0o040000):
        raise HostError("seccomp", directory, oct(above.st_mode), "a directory of root, mode 0700", "remove it")
    body = marshal.dumps((profile.raw, profile.digest, proof), 2)
    data = _MAGIC + digest(key.encode(), body).encode() + body
    part = f"{directory}/.{key}"
    _drop(part)  # what a store left that was killed; of two at once, one fails
    try:
        fd = posix.open(part, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC | posix.O_NOFOLLOW, 0o600)
        try:
            if posix.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, posix.strerror(errno.ENOSPC))
        finally:
            posix.close(fd)
        posix.rename(part, f"{directory}/{key}")
    except OSError as error:
        _drop(part)
        raise _host(directory, error) from error


def prune(directory: str, most: int = MOST) -> None:
    """Leave at most so many files, those that were read or written last; as far as the file system notes readings, once
    a day mostly. A proof that goes is made anew when it is asked for.
    """
    names = posix.listdir(directory)
    if len(names) <= most:
        return
    used = []
    for name in names:
        try:
            facts = posix.stat(f"{directory}/{name}", follow_symlinks=False)
        except FileNotFoundError:
            continue  # another start was faster
        used.append((max(facts.st_atime_ns, facts.st_mtime_ns), name))
    for _, name in sorted(used)[: len(used) - most]:
        _drop(f"{directory}/{name}")


def _decode(data: bytes, key: str) -> Profile | None:
    start = len(_MAGIC) + _DIGEST
    body = data[start:]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : start] != digest(key.encode(), body).encode():
        return None
    raw, name, proof = marshal.loads(body)
    profile = Profile(raw, name)
    profile.proof = proof
    return profile


def _ours(facts: posix.stat_result, kind: int) -> bool:
    """Of the kind (S_IFMT), owned by us (root in production), and closed to group and others for writing."""
    return facts.st_mode & 0o170000 == kind and facts.st_uid == posix.geteuid() and not facts.st_mode & 0o022


def _drop(path: str) -> None:
    try:
        posix.unlink(path)
    except OSError:
        pass


def _host(directory: str, error: OSError) -> HostError:
    return HostError("seccomp", directory, reason(error), "a directory that root can write to", "free or repair it")
