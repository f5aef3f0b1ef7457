"""What create decided, kept for exec, update and explain: one file a container in /run/agentshim.

A record is named by a digest of the delegate's resolved root and the id, since engines reuse ids across roots. It is
stale when the delegate's own state is gone and the process that was creating it has ended; a stale one is replaced at
the next create of that id, and swept up by any other create. So `delete` has nothing to do here.
"""

from __future__ import annotations

import fcntl
import posix
from _blake2 import blake2b

from shim import bundle, hostpaths, wire
from shim.errors import HostError, Invalid, Refused, ShimError, reason, unanswered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DIRECTORY = "/run/agentshim"
UNSEEN = DIRECTORY + "/unseen"  # native/launcher.c knows this name
VERSION = 1
# What was decided; config.json as it came, for `explain`; what the native hook does to the container's network.
RECORD, ASKED, LOCK, HOSTS, LEASES = ".json", ".asked", ".net", ".hosts", ".leases"
RESOLVER = ".resolv"
LENT = {HOSTS: "/etc/hosts", RESOLVER: "/etc/resolv.conf"}  # files of ours that a container reads, and where
SWEEP = 32  # records that one create looks at: bounds what it pays for others


def root_of(root: str | None, kind: str, environment: dict[bytes, bytes]) -> str:
    """The resolved directory in which the delegate keeps its containers, as it finds it itself.

    runc(8): /run/runc, or $XDG_RUNTIME_DIR/runc for others than root; crun(1): $XDG_RUNTIME_DIR/crun, else /run/crun.
    """
    if root:
        return hostpaths.real(root)
    runtime = environment.get(b"XDG_RUNTIME_DIR", b"").decode("utf-8", "surrogateescape")
    honoured = runtime and (kind == "crun" or posix.geteuid() != 0)
    return hostpaths.real(f"{runtime if honoured else '/run'}/{kind}")


def lock_path(root: str, container: str) -> str:
    """Where the plan of the container's network is, for the native hook."""
    return f"{DIRECTORY}/{name_of(root, container)}{LOCK}"


def hosts_path(root: str, container: str, kind: str = HOSTS) -> str:
    """Where the container's /etc/hosts is, or another of LENT, if it gets one of ours."""
    return f"{DIRECTORY}/{name_of(root, container)}{kind}"


def claim(
    root: str,
    container: str,
    record: dict[str, Any],
    asked: bytes,
    lock_plan: bytes = b"",
    hosts: bytes = b"",
    waits: bool = False,
    resolver: bytes = b"",
) -> None:
    """Writes `record` for a container about to be created, with the spec that was asked, and the plan of its network
    and its /etc/hosts and /etc/resolv.conf if there are such; and sweeps some stale ones. `waits`: its start is to
    compare a filter.

    Refused if the id is in use. HostError if /run does not take it. Two creates of one id cannot both pass: the check
    and the write are under one lock.
    """
    name = name_of(root, container)
    full = {
        "version": VERSION,
        "root": root,
        "id": container,
        "pid": posix.getpid(),
        "started": _started("self"),
        **record,
    }
    directory = _directory()
    lock = _locked()
    try:
        if _in_use(root, container, _load(directory, name)):
            todo = "choose another id, or delete that container first"
            raise Refused("state", "id", container, "container with given ID already exists", todo)
        directory.replace(name + ASKED, asked, posix.fstat(lock))
        if lock_plan:
            directory.replace(name + LOCK, lock_plan, posix.fstat(lock))
        for suffix, data in ((HOSTS, hosts), (RESOLVER, resolver)):
            if data:
                directory.replace(name + suffix, data, posix.fstat(lock))
                posix.chmod(name + suffix, 0o644, dir_fd=directory.fd)  # whoever reads it inside is not root
        directory.replace(name + RECORD, wire.dumps(full), posix.fstat(lock))
        if waits:
            _mark(record["unseen"])
        _sweep(directory, name)
    finally:
        posix.close(lock)


def load(root: str, container: str) -> dict[str, Any] | None:
    """The record of a container, None if there is none or it is of another version."""
    name = name_of(root, container)
    if not hostpaths.exists(f"{DIRECTORY}/{name}{RECORD}"):
        return None
    return _load(_directory(), name)


def asked(root: str, container: str) -> bytes:
    """config.json as it came to create; Invalid if it is lost."""
    return _directory().read(name_of(root, container) + ASKED)[0]


def records() -> list[dict[str, Any]]:
    """All records of containers that are there or being created."""
    if not hostpaths.exists(DIRECTORY):
        return []
    directory = _directory()
    loaded = [_load(directory, name) for name in _names(directory)]
    return [one for one in loaded if one is not None and _in_use(one["root"], one["id"], one)]


def _mark(key: str) -> None:
    """Makes the launcher send the next `start` here, until `unmark`: a filter is to be compared. HostError as claim."""
    for path in (UNSEEN, f"{UNSEEN}/{key}"):
        _made(path)


def unmark(key: str) -> None:
    """The filter of `key` was compared."""
    for path in (f"{UNSEEN}/{key}", UNSEEN):
        try:
            posix.rmdir(path)
        except OSError:
            pass  # another one is waiting, or another start was faster


def unmark_others(seen: Callable[[str], bool]) -> None:
    """Takes back marks that wait for nothing: the filter was compared elsewhere, or its containers never started."""
    if not hostpaths.exists(UNSEEN):
        return
    lock = _locked()  # a claim writes its record and its mark under it
    try:
        waiting = {str(one["unseen"]) for one in records() if one.get("unseen")}
        for key in posix.listdir(UNSEEN):
            if key not in waiting or seen(key):
                unmark(key)
    except OSError:
        pass  # another start was faster
    finally:
        posix.close(lock)


def scratch(data: bytes) -> str:
    """The path of a new file that holds `data` for the delegate that we are about to become; swept up after its end."""
    directory = _directory()
    lock = _locked()
    try:
        _tidy(directory)
        name = f"process-{posix.getpid()}-{_started('self')}"
        directory.replace(name, data, posix.fstat(lock))
    finally:
        posix.close(lock)
    return f"{DIRECTORY}/{name}"


def leased(record: dict[str, Any], names: dict[str, list[str]] | None = None) -> dict[str, list[str]]:
    """What the names of a container's leases led to when they were granted; `names` replaces it."""
    directory, name = _directory(), name_of(record["root"], record["id"]) + LEASES
    lock = _locked()
    try:
        if names is not None:
            directory.replace(name, wire.dumps(names), posix.fstat(lock))
            return names
        told = wire.loads(directory.read(name)[0], "state", name)
    except ShimError:
        return {}  # none yet
    finally:
        posix.close(lock)
    return told if isinstance(told, dict) else {}


def init_of(record: dict[str, Any]) -> int:
    """The first process of a container, as its delegate remembers it; 0 if that is not there (yet), or has ended: its
    number may be another's by now.
    """
    place = f"{record['root']}/{record['id']}"
    known = (("state.json", "init_process_pid", "init_process_start"), ("status", "pid", "process-start-time"))
    for name, key, start in known:  # runc, crun
        try:
            told = wire.loads(bundle.Directory(place, shared=True).read(name)[0], "state", name)
            pid = int(told[key])  # type: ignore[index]
            return pid if _started(str(pid)) == int(told[start]) != 0 else 0  # type: ignore[index]
        except (ShimError, OSError, KeyError, TypeError, ValueError):
            continue
    return 0


def name_of(root: str, container: str) -> str:
    """The name of a container's files, without their suffix."""
    return blake2b(f"{root}\0{container}".encode(), digest_size=20).hexdigest()


def _directory() -> bundle.Directory:
    return bundle.Directory(_made(DIRECTORY))


def _made(path: str) -> str:
    """A directory of root's alone, made if it is not there."""
    try:
        posix.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise HostError("state", path, reason(error), "a writable /run", "make /run writable for root") from None
    return path


def _locked() -> int:
    """A descriptor that holds the lock until it is closed; the kernel frees it if we are killed."""
    try:
        fd = posix.open(f"{DIRECTORY}/lock", posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError("state", DIRECTORY, reason(error), "a writable /run", "make /run writable for root") from None
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _load(directory: bundle.Directory, name: str) -> dict[str, Any] | None:
    try:
        data, _ = directory.read(name + RECORD)
        record = wire.loads(data, "state", name)
    except (Invalid, Refused):
        return None  # lost or torn: the caller falls back to the policy alone; not where the kernel gives no answer
    return record if isinstance(record, dict) and record.get("version") == VERSION else None


def _in_use(root: str, container: str, record: dict[str, Any] | None) -> bool:
    if hostpaths.exists(f"{root}/{container}"):
        return True
    if record is None:
        return False
    return bool(_started(str(record["pid"])) == record["started"])


def _started(pid: str) -> int:
    """When a process was started, in clock ticks since boot (proc_pid_stat(5), field 22); 0 if it is gone."""
    try:
        fd = posix.open(f"/proc/{pid}/stat", posix.O_RDONLY | posix.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise unanswered("state", f"process {pid}", error) from None
    try:
        return int(posix.read(fd, 4096).rpartition(b")")[2].split()[19])
    except ProcessLookupError:
        return 0
    finally:
        posix.close(fd)


def _names(directory: bundle.Directory) -> list[str]:
    return sorted(name[: -len(RECORD)] for name in posix.listdir(directory.fd) if name.endswith(RECORD))


def _sweep(directory: bundle.Directory, kept: str) -> None:
    names = [name for name in _names(directory) if name != kept]
    # A moving window, chosen by our number: no list of what was looked at has to be kept.
    start = posix.getpid() % len(names) if len(names) > SWEEP else 0
    for name in (names[start:] + names[:start])[:SWEEP]:
        try:
            record = _load(directory, name)
            lives = record is not None and (_in_use(record["root"], record["id"], record) or is_leaving(record))
        except HostError:
            lives = True  # for all that we know
        for suffix in () if lives else (RECORD, ASKED, LOCK, HOSTS, RESOLVER, LEASES):
            unlink(name + suffix, directory.fd)
    _tidy(directory, kept)


def _tidy(directory: bundle.Directory, kept: str = "") -> None:
    """Removes what killed calls have left: files on their way, parts without a record, process files. Under the lock:
    whoever holds it has all of its files in place.
    """
    there = posix.listdir(directory.fd)
    whole = {name[: -len(RECORD)] for name in there if name.endswith(RECORD)} | {kept}
    for name in there:
        kind, _, rest = name.partition("-")
        pid, _, started = rest.partition("-")
        stem, dot, suffix = name.rpartition(".")
        orphan = dot + suffix in (ASKED, LOCK, HOSTS, RESOLVER, LEASES) and stem not in whole
        unfinished = name[:1] == "." and ".agentshim-" in name
        if orphan or unfinished or (kind == "process" and str(_started(pid)) != started):
            unlink(name, directory.fd)


def is_leaving(record: dict[str, Any]) -> bool:
    """Whether its poststop hook, which reads the plan, has not given back the container's address yet."""
    if not record.get("address") or record.get("claim"):
        return False  # who joined needs nothing of its record then
    try:
        fd = posix.open(record["address"], posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:  # it may have ended, and others live on in its network
        return posix.read(fd, 64).startswith(name_of(record["root"], record["id"]).encode())
    finally:
        posix.close(fd)


def unlink(path: str, directory: int | None = None) -> None:
    """The end of a file that may be gone already."""
    try:
        posix.unlink(path, dir_fd=directory)
    except FileNotFoundError:
        pass
