"""What doctor looks at and what it says: a host below some root directory, and findings.

Belongs here: reading, never writing, with every file bounded: whoever names a file may have made it a FIFO. The root is
/ but for tests, which make hosts up. Next door: one module for each room of findings.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from shim.verbs import gate

OK, WARN, FAIL = "ok", "warn", "fail"
MOST_BYTES = 16 << 20
CHUNK = 1 << 16
SECONDS = 10  # for a program that tells its version
PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
MARK = b"/etc/agentshim/launch.conf"  # what every launcher of ours reads


@dataclass(frozen=True)
class Finding:
    """`level`: OK, WARN or FAIL; `name`: room.check, stable; `subject`: the file, engine, advisory or container meant,
    '' where the check has one only; `found`: what is; `todo`: what to do about it, '' where nothing is.
    """

    level: str
    name: str
    found: str
    todo: str = ""
    subject: str = ""


@dataclass(frozen=True)
class Process:
    """A process of root's in our pid namespace, by its number, program's name and words."""

    pid: int
    name: str
    words: tuple[str, ...]

    def option(self, *names: str) -> str:
        """The last value of an option, as `--name value` or `--name=value`; '' without one."""
        found = self.options(*names)
        return found[-1] if found else ""

    def options(self, *names: str) -> list[str]:
        """Every value of an option that may be repeated."""
        out: list[str] = []
        for place, word in enumerate(self.words):
            name, equals, value = word.partition("=")
            if name in names:
                out += [value] if equals else self.words[place + 1 : place + 2]
        return out


@dataclass
class Host:
    """The host below `root` ('' is /). `launcher`: our own executable as the host names it."""

    root: str = ""
    launcher: str = field(default_factory=gate.launcher)

    def at(self, path: str) -> str:
        """Where a path of the host is for us."""
        return self.root + path

    def read(self, path: str) -> bytes:
        """A regular file (or one of /proc and /sys). OSError where it is not there, not readable, or too large."""
        fd = os.open(self.at(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(22, "not a regular file", path)
            data = b""
            while chunk := file.read1(CHUNK):  # the kernel makes room for all that is asked of a file in /proc/sys
                data += chunk
                if len(data) > MOST_BYTES:
                    raise OSError(27, "too large", path)
        return data

    def digest(self, path: str, algorithm: str) -> str:
        """A regular file's digest, hexadecimal; programs are larger than what `read` takes. OSError as `read`."""
        fd = os.open(self.at(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(22, "not a regular file", path)
            return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()

    def text(self, path: str) -> str:
        """A file as text, '' where it is not there. OSError otherwise as `read`."""
        try:
            return self.read(path).decode("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            return ""

    def has(self, path: str) -> bool:
        """Whether something is at `path`."""
        return os.path.lexists(self.at(path))

    def names(self, path: str) -> list[str]:
        """What a directory holds, sorted; nothing where there is none."""
        try:
            return sorted(os.listdir(self.at(path)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def link(self, path: str) -> str:
        """Where a link leads, '' where there is none or it cannot be read."""
        try:
            return os.readlink(self.at(path))
        except OSError:
            return ""

    def program(self, name: str) -> str:
        """The path of a program in the usual directories, '' without one."""
        return next((f"{one}/{name}" for one in PATH if os.access(self.at(f"{one}/{name}"), os.X_OK)), "")

    def run(self, *words: str) -> str:
        """What a program of the host prints. OSError where it does not run, fails, or does not end in time."""
        environment = {"PATH": ":".join(PATH), "LC_ALL": "C"}
        command = [self.at(words[0]), *words[1:]]
        try:
            told = subprocess.run(
                command, capture_output=True, timeout=SECONDS, check=False, env=environment, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise OSError(110, f"no answer within {SECONDS} s", words[0]) from None
        if told.returncode:
            raise OSError(5, f"exit code {told.returncode}", " ".join(words))
        return told.stdout.decode("utf-8", "replace")

    def real(self, path: str) -> str:
        """`path` without links, as the host names it; links of a made-up host may lead out of it."""
        found = os.path.realpath(self.at(path))
        return found.removeprefix(self.root) if self.root and found.startswith(self.root + "/") else found

    def is_ours(self, path: str) -> bool:
        """Whether a path leads to the very launcher that this doctor belongs to."""
        try:
            return os.path.samefile(self.at(path), self.at(self.launcher))
        except OSError:
            return False

    def is_a_launcher(self, path: str) -> bool:
        """Whether a path leads to an agentshim, this installation's or another's."""
        try:
            return MARK in self.read(path)
        except OSError:
            return False

    def loose(self, path: str) -> str:
        """What lets someone other than root exchange the file or directory at `path`: the first such place on the way,
        links included, with the reason; '' where there is none.
        """
        todo = [part for part in reversed(path.split("/")) if part]
        here, links = "", 0
        while True:
            there = os.lstat(self.at(here or "/"))
            if not stat.S_ISLNK(there.st_mode):
                allowed = stat.S_ISVTX if todo else 0  # others cannot rename what root owns in a sticky directory
                if there.st_uid != 0:
                    return f"{here or '/'} belongs to uid {there.st_uid}"
                if there.st_mode & 0o022 and not there.st_mode & allowed:
                    return f"{here or '/'} is writable by others (mode {stat.S_IMODE(there.st_mode):04o})"
            elif there.st_uid != 0:
                return f"{here} belongs to uid {there.st_uid}"
            else:
                links += 1
                if links > 40:
                    raise OSError(40, "too many links", path)
                target = self.link(here)
                here = "" if target.startswith("/") else os.path.dirname(here)
                todo += [part for part in reversed(target.split("/")) if part]
            if not todo:
                return ""
            part = todo.pop()
            here = here.rpartition("/")[0] if part == ".." else here if part == "." else f"{here}/{part}"

    @cached_property
    def processes(self) -> list[Process]:
        """Root's processes in our own pid namespace: another one's engines are not this host's."""
        ours = self.link("/proc/self/ns/pid")
        return [one for pid in self.names("/proc") if pid.isdigit() for one in self._process(pid, ours)]

    def _process(self, pid: str, ours: str) -> Iterator[Process]:
        try:
            words = self.read(f"/proc/{pid}/cmdline").decode("utf-8", "replace").split("\0")[:-1]
            is_roots = os.stat(self.at(f"/proc/{pid}")).st_uid == 0
        except OSError:
            return  # it ended while we looked
        if words and is_roots and self.link(f"/proc/{pid}/ns/pid") == ours:
            name = os.path.basename(self.link(f"/proc/{pid}/exe").removesuffix(" (deleted)") or words[0])
            yield Process(int(pid), name, tuple(words))

    def running(self, name: str) -> list[Process]:
        """The processes of a program, by the name of its file."""
        return [one for one in self.processes if one.name == name]

    def started(self, process: Process) -> float:
        """When a process was started, in unix seconds; 0 where that is not told."""
        try:
            ticks = int(self.text(f"/proc/{process.pid}/stat").rpartition(")")[2].split()[19])
        except (OSError, ValueError, IndexError):
            return 0.0
        booted = time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)
        return booted + ticks / os.sysconf("SC_CLK_TCK")

    def inside(self, process: Process) -> Host:
        """The host as a process sees it: another one where it has mounts of its own."""
        if self.link(f"/proc/{process.pid}/ns/mnt") == self.link("/proc/self/ns/mnt"):
            return self
        return Host(self.at(f"/proc/{process.pid}/root"), self.launcher)


def group_of(host: Host, number: int) -> str:
    """A group's name by /etc/group, its number where that names none."""
    rows = [line.split(":") for line in host.text("/etc/group").splitlines()]
    return next((row[0] for row in rows if row[2:3] == [str(number)]), str(number))
