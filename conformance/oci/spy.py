"""A delegate that leaves a mark before it becomes runc, and the verdict on a call that must not reach it.

Belongs here: the five things that hold for every refusal. Next door: the tables of what is wrong.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from conformance import expect
from conformance.columns import RUNC, Column, path_of
from conformance.oci.bundles import Bundle
from conformance.oci.cli import Runtime
from conformance.room import Result, Room

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
NUMBERS = itertools.count(1)
# What agentshim may ask its delegate at any time without running anything.
HARMLESS = re.compile(r"^(--version|features|.*\bstate\b.*)$")


class Spy:
    """The script `path` notes its arguments in `mark`."""

    def __init__(self, room: Room) -> None:
        self.room = room
        home = room.base / "spy"
        home.mkdir(mode=0o755)
        self.mark = home / "mark"
        self.path = home / "runc"
        self.path.write_text(f'#!/bin/sh\necho "$*" >> {self.mark}\nexec {RUNC} "$@"\n')
        self.path.chmod(0o755)

    def forget(self) -> None:
        self.mark.write_text("")

    def saw(self) -> list[str]:
        """The calls since `forget` that could have run or changed something."""
        return [line for line in self.mark.read_text().splitlines() if not HARMLESS.match(line)]

    def runtime(self, column: Column, program: str = "") -> Runtime:
        """A fresh root and log."""
        name = f"s{next(NUMBERS)}"
        return Runtime(self.room, program or path_of(column, self.room), self.room.base / name)


@contextmanager
def judged(spy: Spy, runtime: Runtime, bundle: Bundle) -> Iterator[Callable[..., Result]]:
    """Yields a function that calls `runtime` once; then all that holds for a refusal is required of that call."""
    before = fingerprint(bundle)
    logged = len(runtime.errors())
    results: list[tuple[Result, str]] = []

    def call(*args: str, input: str | None = None) -> Result:
        spy.forget()
        results.append((runtime.call(*args, input=input), args[0]))
        return results[0][0]

    yield call
    (result, verb) = results[0]
    assert result.code == (255 if verb == "exec" else 1), str(result)
    assert not result.out, str(result)
    lines = result.err.splitlines()
    assert len(lines) == 1 and expect.REFUSAL.fullmatch(lines[0]), str(result)
    assert not re.search("permission denied|operation not permitted|no such file", result.err, re.I), str(result)
    errors = runtime.errors()[logged:]
    assert len(errors) == 1 and errors[0]["msg"] == lines[0], (str(result), errors)
    assert RFC3339.fullmatch(errors[0]["time"]), errors
    assert fingerprint(bundle) == before, "the bundle was changed"
    assert not spy.saw(), f"the delegate was run: {spy.saw()}"


def fingerprint(bundle: Bundle) -> list[tuple[str, int, int, bytes]]:
    """Names, modes, inodes of the bundle's directory, and the bytes of its regular files."""
    found = []
    for path in sorted(bundle.path.iterdir()):
        there = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found.append((path.name, there.st_mode, there.st_ino, data))
    return found
