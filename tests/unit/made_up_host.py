"""A made-up host for the tests of doctor: a directory tree with files, programs and processes, root's alone."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shim.cold.doctor.host import MARK, Finding, Host

LAUNCHER = "/usr/local/bin/agentshim"


class Made:
    """`host`: what doctor sees; the methods write below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.chmod(0o755)
        self.program(LAUNCHER, "exit 0\n# " + MARK.decode())
        self.host = Host(str(root), LAUNCHER)

    def again(self) -> Host:
        """The same host, looked at anew."""
        self.host = Host(str(self.root), LAUNCHER)
        return self.host

    def write(self, path: str, text: str | bytes, mode: int = 0o644) -> Path:
        where = self.root / path.lstrip("/")
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(text if isinstance(text, bytes) else text.encode())
        where.chmod(mode)
        return where

    def program(self, path: str, script: str) -> Path:
        return self.write(path, "#!/bin/sh\n" + script + "\n", 0o755)

    def link(self, path: str, target: str) -> Path:
        where = self.root / path.lstrip("/")
        where.parent.mkdir(parents=True, exist_ok=True)
        where.symlink_to(target)
        return where

    def process(self, pid: int, *words: str, environment: str = "") -> None:
        self.write(f"/proc/{pid}/cmdline", "".join(f"{word}\0" for word in words))
        self.write(f"/proc/{pid}/environ", environment)
        self.link(f"/proc/{pid}/exe", words[0])

    def package(self, name: str, version: str, files: Iterable[str], changelog: str | None = "") -> None:
        """What dpkg knows of an installed package: of its files as they are now."""
        listed = [*files]
        self.write(f"/var/lib/dpkg/info/{name}.list", "/.\n" + "".join(f"{one}\n" for one in listed))
        sums = [f"{self.md5(one)}  {one.lstrip('/')}\n" for one in listed]
        self.write(f"/var/lib/dpkg/info/{name}.md5sums", "".join(sums))
        name = name.partition(":")[0]
        status = self.root / "var/lib/dpkg/status"
        before = status.read_text() if status.exists() else ""
        self.write(
            "/var/lib/dpkg/status",
            before + f"Package: {name}\nStatus: install ok installed\nVersion: {version}\nDescription: one\n\n",
        )
        if changelog is not None:
            self.write(f"/usr/share/doc/{name}/changelog.Debian.gz", gzip.compress(changelog.encode()))

    def md5(self, path: str) -> str:
        """Of a file, there or below the merged /usr."""
        place = self.root / path.lstrip("/")
        place = place if place.exists() else self.root / "usr" / path.lstrip("/")
        return hashlib.md5(place.read_bytes(), usedforsecurity=False).hexdigest()

    def container(self, place: str, pid: int | None = None, crun: bool = False) -> None:
        """A container in a delegate's state directory, whose first process is this one, or `pid`."""
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        told: dict[str, Any] = {"init_process_pid": pid or os.getpid(), "init_process_start": started}
        if crun:
            told = {"pid": pid or os.getpid(), "process-start-time": started}
        self.write(f"{place}/{'status' if crun else 'state.json'}", json.dumps(told))


def rows(found: Iterable[Finding], name: str = "") -> list[tuple[str, str, str]]:
    """(level, subject, what was found) of the findings of a name, or (level, name, found) of all."""
    every = list(found)
    if not name:
        return [(one.level, one.name, one.found) for one in every]
    return [(one.level, one.subject, one.found) for one in every if one.name == name]


def level(found: Iterable[Finding], name: str) -> str:
    """The level of the only finding of a name."""
    (one,) = rows(found, name)
    return one[0]
