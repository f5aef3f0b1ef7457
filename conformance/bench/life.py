"""Calling a runtime as an engine does, and timing it.

Belongs here: argv, working directory, descriptors, fresh bundles. Next door: `rows` says what is compared with what.
Nothing but the runtime's own work is inside a timed region: no fork of this interpreter (posix_spawn is a vfork), no
pipe, no thread; bundles and ids are prepared before, containers removed after.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns

from conformance.bench import docker

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
# An engine written in Go leaves these as they are by default; Python ignores them.
DEFAULTS = [signal.SIGPIPE, signal.SIGXFSZ]

_numbers = itertools.count(1)


class Failed(Exception):
    """A runtime failed where it had to succeed: the row cannot be measured. The message has its last words."""


@dataclass(frozen=True)
class Contender:
    """A runtime with the bundle that it is given. `place` names the namespace that it runs in."""

    name: str
    program: str
    template: bytes
    root: Path
    place: str

    def argv(self, bundle: Path, *args: str) -> list[str]:
        """The call as containerd's shim spells it."""
        return [self.program, "--root", str(self.root), "--log", f"{bundle}/log.json", "--log-format", "json", *args]


@dataclass(frozen=True)
class Container:
    """One container to be: its id, and a bundle just written for it."""

    by: Contender
    name: str
    bundle: Path

    def call(self, *args: str, stdin: str = "/dev/null", stdout: str = "/dev/null", program: str | None = None) -> None:
        """Run the contender (or another `program` in its stead) to its end. Raises Failed."""
        argv = self.by.argv(self.bundle, *args)
        if program is not None:
            argv[0] = program
        files = [
            (os.POSIX_SPAWN_OPEN, 0, stdin, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, stdout, os.O_WRONLY | os.O_CREAT, 0o600),
            (os.POSIX_SPAWN_OPEN, 2, f"{self.bundle}/stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        ]
        os.chdir(self.bundle)
        pid = os.posix_spawn(argv[0], argv, ENVIRONMENT, file_actions=files, setsigdef=DEFAULTS)
        if (code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) != 0:
            raise Failed(f"{' '.join(argv)}: exit {code}: {self._last_words()}")

    def create(self) -> None:
        """create, as engines call it."""
        self.call("create", "--bundle", str(self.bundle), "--pid-file", f"{self.bundle}/init.pid", self.name)

    def start(self) -> None:
        """start."""
        self.call("start", self.name)

    def delete(self) -> None:
        """delete."""
        self.call("delete", self.name)

    def wait(self, pid_file: str = "init.pid") -> None:
        """Until the process of `pid_file`, which has become our child, has ended."""
        os.waitpid(int((self.bundle / pid_file).read_bytes()), 0)

    def engine_life(self) -> None:
        """create, start, wait, delete."""
        self.create()
        self.start()
        self.wait()
        self.delete()

    def run(self) -> None:
        """run: the whole life in one call."""
        self.call("run", "--bundle", str(self.bundle), self.name)

    def discard(self) -> None:
        """Remove it whatever its state, and never fail: for clean-up."""
        with suppress(Failed, OSError):
            self.call("delete", "--force", self.name)
        # Exec'd processes first: the container's init cannot end while we keep a zombie of its pid namespace.
        for pid_file in ("exec.pid", "init.pid"):
            with suppress(OSError, ValueError):
                self.wait(pid_file)

    def _last_words(self) -> str:
        said = [self.bundle / name for name in ("stderr", "log.json")]
        lines = [line for file in said if file.exists() for line in file.read_text(errors="replace").splitlines()]
        return lines[-1] if lines else "(silent)"


def fresh(by: Contender, template: bytes | None = None) -> Container:
    """A container that nobody has seen, its bundle newly written: agentshim rewrites what it is given."""
    name = f"{by.name}-{next(_numbers)}"
    bundle = docker.BUNDLES / name
    bundle.mkdir(parents=True, mode=0o700)
    (bundle / "config.json").write_bytes((template or by.template).replace(docker.ID.encode(), name.encode()))
    return Container(by, name, bundle)


def timed(action: Callable[[], None]) -> float:
    """Milliseconds of wall time that `action` takes."""
    begin = perf_counter_ns()
    action()
    return (perf_counter_ns() - begin) / 1e6
