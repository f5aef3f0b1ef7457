"""How many modules a decided verb imports, and what they cost: `python -X importtime`, out of process.

Belongs here: running our Python part without the launcher, and reading the interpreter's own account.
"""

from __future__ import annotations

import os
import struct
import subprocess
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from statistics import median

from conformance.bench import calls, docker
from conformance.bench.life import ENVIRONMENT, Container, Failed
from conformance.bench.turns import Bench

VERBS = ("create", "exec", "update")
TIMES = 5
INTERPRETER = ("-I", "-S", "-B", "-X", "utf8")  # as native/launcher.c starts it
ENTER = "import sys; sys.path.append(sys.argv[1]); from shim.cli import main; sys.exit(main(sys.argv[2:]))"


@dataclass(frozen=True)
class Imports:
    """What one verb imports beyond the bare interpreter's own modules: (microseconds, name), dearest first."""

    verb: str
    modules: list[tuple[int, str]]

    @property
    def ms(self) -> float:
        """The sum, in milliseconds; importtime itself makes it a little too large."""
        return sum(cost for cost, _ in self.modules) / 1000


def accounts(bench: Bench, python: str, library: Path) -> list[Imports]:
    """create, exec and update, TIMES each; a module's cost is the median of its own. Raises Failed."""
    found: dict[str, list[Imports]] = {verb: [] for verb in VERBS}
    for _ in range(TIMES):
        container = bench.fresh("shim", docker.template({**bench.spec, "process": docker.process("sleep", "3600")}))
        try:
            for verb in VERBS:
                found[verb].append(_one(verb, container, bench.delegate, python, library))
        finally:
            container.discard()
    return [_middle(verb, taken) for verb, taken in found.items()]


def _one(verb: str, container: Container, delegate: str, python: str, library: Path) -> Imports:
    args, stdin = calls.arguments(verb, container)
    found = imported(verb, launcher_call(python, library, container, delegate, *args), container, stdin)
    if verb == "create":
        container.start()
    return found


def _middle(verb: str, taken: list[Imports]) -> Imports:
    costs: dict[str, list[int]] = {}
    for one in taken:
        for cost, name in one.modules:
            costs.setdefault(name, []).append(cost)
    return Imports(verb, sorted(((round(median(each)), name) for name, each in costs.items()), reverse=True))


def launcher_call(python: str, library: Path, container: Container, delegate: str, *args: str) -> list[str]:
    """The argv that the launcher makes for our Python part (nothing ignored, not called through a link), but with every
    module imported by itself instead of out of the file `hot`: the interpreter accounts for imports only.
    """
    head = [python, *INTERPRETER, "-c", ENTER, str(library), "0", container.by.program, delegate]
    return [*head, *container.by.argv(container.bundle)[1:], *args]


def imported(verb: str, argv: list[str], container: Container, stdin: Path | None = None) -> Imports:
    """Run `argv` (of `launcher_call`) in the container's bundle, and account for its imports. Raises Failed."""
    bare = {name for _, name in _account([argv[0], *INTERPRETER, "-c", "pass"], container.bundle, None)}
    seen = _account(argv, container.bundle, stdin)
    return Imports(verb, sorted(((cost, name) for cost, name in seen if name not in bare), reverse=True))


def stale(library: Path) -> int:
    """How many hot modules have no byte code that Python will take: each is then compiled at every start (-B)."""
    sources = [
        file for room in ("shim", "hooks") for file in (library / room).rglob("*.py") if "cold" not in file.parts
    ]
    return sum(not _compiled(source) for source in sources)


def _compiled(source: Path) -> bool:
    """PEP 552: a flag word of 0 is followed by the very mtime and size of the source; other words mean a hash."""
    made, there = Path(cache_from_source(str(source))), source.stat()
    if not made.is_file():
        return False
    _, flags, mtime, size = struct.unpack("<4sIII", made.read_bytes()[:16])
    return bool(flags) or (mtime, size) == (int(there.st_mtime) & 0xFFFFFFFF, there.st_size & 0xFFFFFFFF)


def _account(argv: list[str], cwd: Path, stdin: Path | None) -> list[tuple[int, str]]:
    argv = [argv[0], "-X", "importtime", *argv[1:]]
    account = cwd / "importtime"
    with Path(stdin or os.devnull).open("rb") as source, account.open("wb") as sink:
        # The container inherits stderr: a file does not keep us waiting for it, a pipe would.
        done = subprocess.run(argv, cwd=cwd, env=ENVIRONMENT, stdin=source, stdout=subprocess.DEVNULL, stderr=sink)
    lines = account.read_text(errors="replace").splitlines()
    if done.returncode:
        raise Failed(f"{' '.join(argv)}: exit {done.returncode}: {lines[-1] if lines else '(silent)'}")
    rows = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
    return [(int(own), name.strip()) for own, _, name in rows if own.strip().isdigit()]


def table(found: list[Imports]) -> str:
    """The accounts as a markdown table."""
    lines = ["| verb | modules beyond the interpreter's | ms | dearest (µs) |", "|---|---|---|---|"]
    for one in found:
        dearest = ", ".join(f"{name} {cost}" for cost, name in one.modules[:5])
        lines.append(f"| `{one.verb}` | {len(one.modules)} | {one.ms:.1f} | {dearest} |")
    return "\n".join(lines)
