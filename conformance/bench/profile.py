"""`python -m conformance.bench.profile [create|exec|update] [--how phases|imports|calls|syscalls]`: where time goes.

Belongs here: a developer's look at one decided verb, from outside: the product has no clock of its own.
Next door: `__main__` compares. Every way of looking slows what it looks at: compare its lines with each other only.

phases    strace of a few calls: when the launcher, Python, the rewriting and the delegate begin
imports   python -X importtime, every module
calls     cProfile of our Python part; the exec of the delegate is caught, so nothing is started
syscalls  strace -r of all calls before the delegate begins: the longest gaps
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from conformance.bench import docker, imports
from conformance.bench.calls import arguments
from conformance.bench.life import ENVIRONMENT, Container
from conformance.bench.stage import add_common, obstacle, settle, stage

MARKS = "execve,rename,renameat,renameat2,fsync,fdatasync"
SHOWN = 30
STRACED = 5.0  # seconds: strace follows a created container, which does not end by itself
# Runs main.py under cProfile inside `python -I -S`; the exec of the delegate ends the profile in its stead.
DRIVER = """
import cProfile, posix, os, pstats, runpy, sys
class Handed(BaseException): pass
def execve(*_): raise Handed
posix.execve = os.execve = posix.execv = os.execv = execve
script = sys.argv[1]
sys.argv = sys.argv[1:]
sys.path[0:0] = [os.path.dirname(os.path.dirname(script))]
profile = cProfile.Profile()
try:
    profile.runcall(exec, compile(open(script).read(), script, "exec"), {"__name__": "__main__", "__file__": script})
except (Handed, SystemExit) as end:
    print("ended by", repr(end), file=sys.stderr)
pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(SHOWN)
pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(SHOWN)
"""


def main() -> int:
    """Prepare a container in the state that the verb wants, and look at one call of the verb."""
    parser = argparse.ArgumentParser(
        prog="python -m conformance.bench.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser)
    parser.add_argument("verb", nargs="?", default="create", choices=("create", "exec", "update"))
    parser.add_argument("--how", default="phases", choices=tuple(WAYS))
    options = parser.parse_args()
    options.rounds, options.seed, options.crun = 1, 1, None
    settle(options)
    if problem := obstacle(options):
        print(f"NOT RUN: {problem}", file=sys.stderr)
        return 2
    with stage(options) as bench:
        spec = {**bench.spec, "process": docker.process("sleep", "3600")}
        container = bench.fresh("shim", docker.template(spec))
        try:
            if options.verb != "create":
                container.create()
                container.start()
            WAYS[options.how](container, options, *arguments(options.verb, container))
        finally:
            container.discard()
    return 0


def _imports(container: Container, options: argparse.Namespace, args: list[str], stdin: Path | None) -> None:
    argv = imports.launcher_call(options.python, options.library, container, options.runc, *args)
    account = imports.imported(options.verb, argv, container, stdin)
    print(f"{len(account.modules)} modules beyond the interpreter's, {account.ms:.1f} ms (self, µs):")
    for cost, name in account.modules:
        print(f"{cost:8} {name}")


def _calls(container: Container, options: argparse.Namespace, args: list[str], stdin: Path | None) -> None:
    argv = imports.launcher_call(options.python, options.library, container, options.runc, *args)
    first = 1 + len(imports.INTERPRETER)
    driver = DRIVER.replace("SHOWN", str(SHOWN))
    script = str(options.library / "shim" / "main.py")
    print(_run([*argv[:first], "-c", driver, script, *argv[first + 3 :]], container, stdin))


def _phases(container: Container, options: argparse.Namespace, args: list[str], stdin: Path | None) -> None:
    """Milliseconds since the launcher was started, at each mark before the delegate begins and at its end."""
    lines = _strace(["-ttt", "--seccomp-bpf", "-e", f"trace={MARKS}"], container, args, stdin)
    begin = float(lines[0].split()[1])
    for line in _until_delegate(lines, options.runc):
        _, stamp, call = line.split(maxsplit=2)
        print(f"{(float(stamp) - begin) * 1000:8.1f} ms  {call[:110]}")


def _syscalls(container: Container, options: argparse.Namespace, args: list[str], stdin: Path | None) -> None:
    lines = _until_delegate(_strace(["-r"], container, args, stdin), options.runc)
    gaps = []
    for line, after in pairwise(lines):
        if (stamp := re.match(r"\d+ +(\d+\.\d+) ", after)) is not None:
            gaps.append((float(stamp[1]) * 1000, line))
    print(f"{len(lines)} system calls before the delegate begins; ms until the next one, longest first:")
    for gap, line in sorted(gaps, reverse=True)[:SHOWN]:
        print(f"{gap:8.2f}  {line[:120]}")


def _strace(how: list[str], container: Container, args: list[str], stdin: Path | None) -> list[str]:
    """What the launcher, Python and the delegate's first process did; the container itself is let go."""
    kept = container.bundle / "strace"
    call = ["strace", "-f", "-I1", *how, "-o", str(kept), *container.by.argv(container.bundle, *args)]
    _run(call, container, stdin, seconds=STRACED)
    return kept.read_text(errors="replace").splitlines()


def _until_delegate(lines: list[str], delegate: str) -> list[str]:
    """The lines up to the one that starts `delegate`, included; all of them where none does."""
    ends = [number for number, line in enumerate(lines) if f'execve("{delegate}"' in line]
    return lines[: ends[0] + 1] if ends else lines


def _run(argv: list[str], container: Container, stdin: Path | None, seconds: float | None = None) -> str:
    """Run in the bundle to the end, or for so many seconds; what it says on stderr."""
    said = container.bundle / "said"
    with Path(stdin or os.devnull).open("rb") as source, said.open("wb") as sink:
        child = subprocess.Popen(argv, cwd=container.bundle, env=ENVIRONMENT, stdin=source, stdout=sink, stderr=sink)
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.terminate()
        child.wait()
    return said.read_text(errors="replace")


WAYS: dict[str, Callable[[Container, argparse.Namespace, list[str], Path | None], None]] = {
    "phases": _phases,
    "imports": _imports,
    "calls": _calls,
    "syscalls": _syscalls,
}

if __name__ == "__main__":
    sys.exit(main())
