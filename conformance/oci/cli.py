"""The command line of a runtime, called as an engine calls it.

Belongs here: one call with its root, log and captured output. Output goes to files, because a container keeps the
descriptors of `create` open. Next door: `bundles`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from conformance.room import Result, Room, wait_for


class Runtime:
    """`program` with a --root and a log of its own below `home`."""

    def __init__(self, room: Room, program: str, home: Path, cgroup: str = "") -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.room = room
        self.program = program
        self.home = home
        self.log = home / "log.json"
        self.cgroup = cgroup or f"/{room.base.name}"
        self.root = home / "root"
        self._calls = 0

    def options(self) -> list[str]:
        """What engines put before the verb."""
        return ["--root", str(self.root), "--log", str(self.log), "--log-format", "json"]

    def call(self, *args: str, input: str | None = None, cwd: str = "/", timeout: float = 20, **how: Any) -> Result:
        """`program` with the usual options before `args`."""
        return self.bare(*self.options(), *args, input=input, cwd=cwd, timeout=timeout, **how)

    def bare(self, *args: str, input: str | None = None, cwd: str = "/", timeout: float = 20, **how: Any) -> Result:
        """`program` with exactly `args`; raises TimeoutExpired."""
        argv = [self.program, *args]
        self._calls += 1
        out, err = (self.home / f"{self._calls}.{name}" for name in ("out", "err"))
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        with open(out, "w") as stdout, open(err, "w") as stderr:
            child = self.room.popen(argv, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, **how)
        try:
            child.communicate(input, timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise
        return Result(tuple(argv), child.returncode, _text(out), _text(err))

    def must(self, *args: str, **how: Any) -> str:
        """As `call`, but anything except exit code 0 is a failure; returns stdout."""
        result = self.call(*args, **how)
        assert result.code == 0, str(result)
        return result.out

    def state(self, name: str) -> dict[str, Any]:
        """`state` as an object."""
        found: dict[str, Any] = json.loads(self.must("state", name))
        return found

    def status(self, name: str) -> str:
        """The container's status; empty when there is none."""
        result = self.call("state", name)
        return str(json.loads(result.out)["status"]) if result.code == 0 else ""

    def ended(self, name: str) -> None:
        """Wait for the container's process to end."""
        wait_for(lambda: self.status(name) in ("stopped", ""), 10, f"{name} to stop")

    def clear(self) -> None:
        """Delete every container below our root."""
        names = [path.name for path in self.root.iterdir() if path.is_dir()] if self.root.exists() else []
        for name in names:
            self.call("delete", "--force", name)

    def errors(self) -> list[dict[str, Any]]:
        """The error lines of the log."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [one for one in map(json.loads, lines) if one.get("level") in ("error", "fatal")]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
