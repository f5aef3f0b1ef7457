"""The columns of every table: plain runc as the oracle, and agentshim under each policy.

Belongs here: how a policy is selected (by the executable's name), the configuration that lists those names, and what
each policy allows at most, written as data. Next door: `evidence` asks the kernel what a container really has.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from conformance.room import Room

REPOSITORY = Path(__file__).resolve().parent.parent
RUNC = "/usr/sbin/runc"
CRUN = "/usr/bin/crun"


@dataclass(frozen=True)
class Ceiling:
    """What a policy allows at most, in the words of the kernel.

    `caps`: bit mask, capability.h numbers; `attempts`: probes of `evidence` that must succeed, the others must fail.
    """

    caps: int
    no_new_privs: bool
    root_readonly: bool
    attempts: frozenset[str]


def bits(*numbers: int) -> int:
    """A capability mask from capability.h numbers."""
    return sum(1 << number for number in numbers)


AGENT = Ceiling(caps=0, no_new_privs=True, root_readonly=True, attempts=frozenset({"write-tmp"}))
DEV = Ceiling(
    # CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID NET_BIND_SERVICE SYS_CHROOT
    caps=bits(0, 1, 3, 4, 5, 6, 7, 10, 18),
    no_new_privs=True,
    root_readonly=False,
    attempts=frozenset({"write-root", "write-tmp", "chown", "setgid", "chroot"}),
)


@dataclass(frozen=True)
class Column:
    """One runtime: the name that engines know it by, and its ceiling (None: whatever the engine asked)."""

    name: str
    executable: str
    ceiling: Ceiling | None = field(default=None)

    @property
    def bound(self) -> Ceiling:
        """The ceiling of a column that has one."""
        assert self.ceiling is not None
        return self.ceiling

    @property
    def shim(self) -> bool:
        """Does agentshim decide here?"""
        return self.name != "runc"


COLUMNS = (
    Column("runc", RUNC),
    Column("agent", "agentshim", AGENT),
    Column("dev", "agentshim-dev", DEV),
    Column("identity", "agentshim-identity"),
)

CONFIG = """delegate = "{delegate}"
default = "agent"
limit = "identity"
annotations = ["agent", "dev", "identity"]
names = ["agent", "web", "dev", "identity"]
mode = "enforce"
"""


def chosen() -> list[Column]:
    """The columns to run: all, or those in CONFORMANCE_RUNTIMES (comma-separated)."""
    wanted = os.environ.get("CONFORMANCE_RUNTIMES", "")
    return [column for column in COLUMNS if not wanted or column.name in wanted.split(",")]


def launcher() -> Path:
    """The agentshim executable under test: AGENTSHIM_BIN, or the one that `make build` leaves."""
    return Path(os.environ.get("AGENTSHIM_BIN") or REPOSITORY / "native/build/agentshim")


def missing(column: Column) -> str:
    """Why `column` cannot be tried at all, or an empty string."""
    if column.shim and not launcher().exists():
        return f"{launcher()} is missing: run `make build`"
    return "" if column.shim or os.access(RUNC, os.X_OK) else f"{RUNC} is missing: install the package runc"


def furnish(room: Room) -> None:
    """Write links and configuration into `room`: <base>/bin/agentshim*, config.toml, launch.conf."""
    links = room.base / "bin"
    links.mkdir(mode=0o755)
    for column in COLUMNS:
        if column.shim:
            (links / column.executable).symlink_to(launcher())
    configure(room)


def configure(room: Room, text: str = CONFIG, delegate: str = RUNC) -> None:
    """Write /etc/agentshim/config.toml and, for a launcher in the source tree, launch.conf."""
    config = room.base / "config"
    (config / "config.toml").write_text(text.replace("{delegate}", delegate))
    tree = launcher().resolve().parents[2]
    if (tree / "shim/main.py").exists():
        (config / "launch.conf").write_text(f"python = {python()}\nlib = {tree}\n")


def python() -> str:
    """The system's Python, at least 3.11: the one that a package installation would run the shim with."""
    names = ("/usr/bin/python3.11", "/usr/bin/python3.12", "/usr/bin/python3.13", "/usr/bin/python3")
    return next(name for name in names if os.access(name, os.X_OK))


def path_of(column: Column, room: Room) -> str:
    """The absolute path under which an engine calls `column`."""
    return str(room.base / "bin" / column.executable) if column.shim else column.executable
