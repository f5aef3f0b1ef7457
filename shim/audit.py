"""The audit log: one line of JSON a decision, appended by one write before the delegate takes our place.

Belongs here: the file, and what a record says. Next door: `verbs` know what was decided, `cold.audit` reads.
Names are the Elastic Common Schema's (8) where it has one. Everything in a record is ASCII: what came from a workload
is escaped, and cut where nobody bounds it. O_APPEND (open(2)): lines of two writers do not mix. A line that a full disk
or a power loss has torn is ended by the next writer. Not synced: after a power loss the last records may be missing.
"""

from __future__ import annotations

import errno
import posix
import time
from _stat import S_ISREG

from shim import hostpaths, policy, wire
from shim.errors import HostError, ShimError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.argv import Call
    from shim.plan import Plan

DIRECTORY = "/var/log/agentshim"
NAME = "audit.jsonl"
FIRST = ("create", "run", "restore")  # what "refuse-create" refuses
MOST_NAME, MOST_ERROR = 256, 1024  # characters
MOST_DENIED = 12
NOTHING: list[str] = []
TODO = "make room or mend the directory; audit_log in config.toml says what goes on without a record"

# User-visible names that Kubernetes' runtimes and nerdctl write into annotations: the first group that is there.
NAMING = (
    ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.container-name"),
    ("io.kubernetes.pod.namespace", "io.kubernetes.pod.name", "io.kubernetes.container.name"),
    ("nerdctl/name",),
)


class Entry:
    """The record of one call while it is decided. `on_failure`: config.toml's audit_log."""

    __slots__ = ("verb", "fields", "on_failure", "failed")

    def __init__(self, verb: str, container: str = "") -> None:
        self.verb = verb
        self.on_failure: str = policy.DEFAULTS["audit_log"]
        self.failed = False
        self.fields: dict[str, Any] = {"event.kind": "event", "event.action": verb}
        if container:
            self.fields["container.id"] = cut(container, MOST_NAME)

    def of(self, root: str, record: dict[str, Any]) -> None:
        """What is known of the container: the engine's root, and of `record` (state.load) its policy and name."""
        fields = self.fields
        if record.get("name"):
            fields["container.name"] = record["name"]
        fields["rule.ruleset"] = record["policy"]
        fields["agentshim.digest"] = record["digest"]
        fields["agentshim.mode"] = record["mode"]
        fields["agentshim.root"] = cut(root, MOST_NAME)
        if record.get("lost"):
            fields["agentshim.lost"] = True

    def granted(self, lost: list[str] = NOTHING, refused: str = "", denied: list[str] = NOTHING) -> None:
        """Records that the call goes on with less in the dimensions `lost`, and without the system calls `denied`;
        under mode audit, that it would have: `refused` is what would have been said. HostError if it cannot be recorded
        and the configuration wants it.
        """
        if self.on_failure == "off":
            return
        fields = {**self.fields, "event.outcome": "success"}
        if lost:
            watched = fields.get("agentshim.mode") == "audit"
            fields["agentshim.would_lose" if watched else "agentshim.lowered"] = lost
        if denied:
            fields["agentshim.denied"] = denied
        if refused:
            fields["agentshim.would_refuse"] = cut(refused, MOST_ERROR)
        try:
            append(fields)
        except HostError as error:
            self.failed = True
            if self.on_failure == "refuse" or (self.on_failure == "refuse-create" and self.verb in FIRST):
                raise
            _warn(f"{self.verb} of {fields.get('container.id', '?')} goes on without a record: {error}")

    def refused(self, error: ShimError) -> str:
        """Records that the call was refused; '' or what to add to its message: it is refused, recorded or not."""
        # A rootless engine's call cannot write root's log, and it is not asked to.
        rootless = posix.geteuid() != 0 or (error.room, error.key) == ("user", "rootless")
        if self.failed or self.on_failure == "off" or rootless:
            return ""
        told = {"error.type": type(error).__name__, "error.message": cut(str(error), MOST_ERROR)}
        try:
            append({**self.fields, "event.outcome": "failure", **told})
        except HostError as trouble:
            return f"; not recorded: {trouble}"
        return ""


def begun(call: Call) -> Entry:
    """The record of a call that is about to be decided."""
    return Entry(call.verb, call.args[0] if call.args else "")


def lowered(made: Plan) -> list[str]:
    """The dimensions in which a plan grants less than was asked: 25 µs. Their keys take 110, system calls 4 ms more;
    `agentshim explain` names them all. A filter counts as lowered where its text was.
    """
    asked, granted = made.asked, made.granted
    return [
        name
        for name in asked
        if asked[name] is not granted[name]
        and (asked[name].digest != granted[name].digest if name == "seccomp" else asked[name] != granted[name])
    ]


def denied(made: Plan) -> list[str]:
    """System calls that neither side of the filter denies wholly, and that are denied: "call: why". Nearly always none;
    of many, the first.
    """
    dropped: dict[str, str] = (made.granted["seccomp"].proof or {}).get("dropped") or {}
    return [cut(f"{call}: {why}", MOST_NAME) for call, why in list(dropped.items())[:MOST_DENIED]]


def objections(made: Plan, mode: str) -> str:
    """Under mode audit, what would have refused the plan; ''."""
    if mode != "audit":
        return ""
    from shim import product  # whoever made a plan has it; update makes none

    return "; ".join(map(str, product.refusals(made.asked, made.granted, made.dims)))


def name_of(spec: dict[str, Any], container: str, directory: str) -> str:
    """What people call a container, '' where neither its engine's files nor annotations say it at little cost.

    dockerd keeps it beside the hostname file that it mounts, conmon (podman) has it among its own arguments. Only a
    name to show: whoever may ask the engine for a container chooses it.
    """
    found = _of_docker(spec, container, directory)
    if found:
        return found
    if directory.endswith("/userdata"):
        words = _read(f"/proc/{posix.getppid()}/cmdline", 1 << 14).split(b"\0")
        if words[0].endswith(b"conmon") and b"-n" in words:
            return cut(words[words.index(b"-n") + 1].decode("utf-8", "replace"), MOST_NAME)
    notes = spec.get("annotations") or {}
    for keys in NAMING:
        if notes.get(keys[-1]):
            return cut("/".join(notes[key] for key in keys if notes.get(key)), MOST_NAME)
    return ""


def append(fields: dict[str, Any]) -> None:
    """Writes a record at the end of the log. HostError if the log is not root's alone, or did not take all of it."""
    line = wire.dumps({"@timestamp": now(), **fields}) + b"\n"
    try:
        fd, size = _opened()
        try:
            if size and posix.pread(fd, 1, size - 1) != b"\n":
                line = b"\n" + line  # what is before it was torn; or is being written now, and an empty line is none
            written = posix.write(fd, line)
        finally:
            posix.close(fd)
    except OSError as error:
        raise HostError("audit", f"{DIRECTORY}/{NAME}", reason(error), "a line appended", TODO) from None
    if written != len(line):
        raise HostError("audit", f"{DIRECTORY}/{NAME}", f"{written} bytes of {len(line)}", "the whole line", TODO)


def now() -> str:
    """RFC 3339, UTC, milliseconds."""
    moment = time.time_ns() // 1_000_000
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(moment // 1000))}.{moment % 1000:03d}Z"


def cut(text: str, most: int) -> str:
    """At most so many characters of a text, and no half of a surrogate pair (bytes of argv that are not UTF-8)."""
    if len(text) > most:
        text = text[: most - 1] + "…"
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _opened() -> tuple[int, int]:
    """(descriptor, size) of the log, both it and its directory made where they are not there. HostError, OSError."""
    directory = _directory()
    flags = posix.O_RDWR | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK
    try:
        _check(DIRECTORY, posix.fstat(directory))
        fd = posix.open(NAME, flags, 0o640, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not(f"{DIRECTORY}/{NAME}", "a symbolic link", "a regular file") from None
        raise
    finally:
        posix.close(directory)
    try:
        there = posix.fstat(fd)
        if not S_ISREG(there.st_mode):
            raise _not(f"{DIRECTORY}/{NAME}", "no regular file", "a regular file")
        _check(f"{DIRECTORY}/{NAME}", there)
    except HostError:
        posix.close(fd)
        raise
    return fd, there.st_size


def _directory() -> int:
    how = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
    try:
        return posix.open(DIRECTORY, how)
    except NotADirectoryError:
        raise _not(DIRECTORY, "a symbolic link, or no directory", "a directory") from None
    except FileNotFoundError:
        pass
    try:
        posix.mkdir(DIRECTORY, 0o750)
    except FileExistsError:
        pass  # made by another call just now, or a link that leads nowhere
    return posix.open(DIRECTORY, how)


def _not(path: str, asked: str, wanted: str) -> HostError:
    return HostError("audit", path, asked, wanted, "look who has put it there, and take it away")


def _check(path: str, there: posix.stat_result) -> None:
    """HostError unless it is root's alone to write: others could forge records, or lead them elsewhere."""
    if not hostpaths.is_roots(there):
        asked = f"owner uid {there.st_uid}, mode {there.st_mode & 0o7777:04o}"
        todo = f"chown root:root {path} and chmod go-w {path}, after a look at what others have left there"
        raise HostError("audit", path, asked, "root's, and not writable by group or others", todo)


def _warn(text: str) -> None:
    """One line to the kernel's log, which the journal reads: exec's own descriptors are the workload's."""
    try:
        fd = posix.open("/dev/kmsg", posix.O_WRONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | posix.O_NOFOLLOW)
    except OSError:
        return
    try:
        posix.write(fd, f"<4>agentshim: {text}"[:900].encode("ascii", "backslashreplace"))
    except OSError:
        pass
    finally:
        posix.close(fd)


def _of_docker(spec: dict[str, Any], container: str, directory: str) -> str:
    """The name in dockerd's own file of this container; '' where what is mounted is not the engine's own, or others
    than root can put something else there.
    """
    own = f"/{container}/hostname"
    binds = [
        mount
        for mount in spec.get("mounts") or ()
        if mount.get("destination") == "/etc/hostname" and (mount.get("source") or "").endswith(own)
    ]
    if not binds:
        return ""
    from shim import docker  # a create has it anyway, an exec does not

    try:
        root = hostpaths.join(directory, (spec.get("root") or {}).get("path") or "")
        places = hostpaths.Places(directory, root)
        sources = {mount["source"]: places.classify(mount["source"]) for mount in binds}
        return cut(docker.name({"mounts": binds}, sources, container), MOST_NAME)
    except ShimError:
        return ""  # only a name to show


def _read(path: str, most: int) -> bytes:
    """The first bytes of a regular file, b'' if there is none."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return posix.read(fd, most) if S_ISREG(posix.fstat(fd).st_mode) else b""
    except OSError:
        return b""
    finally:
        posix.close(fd)
