"""`agentshim doctor [--json]`: what this host lacks, what is registered wrongly, and what goes past us.

It changes nothing. Exit code 0 without failures, warnings or not; 1 with a failure. Whatever is missing or cannot be
read becomes a warning that says so. Belongs here: the list of rooms, and what is printed. Next door: a module a room.
"""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from shim.cold import site
from shim.cold.doctor import files, kernel, network, registration, versions, ways
from shim.cold.doctor.host import FAIL, OK, WARN, Finding, Host
from shim.errors import HostError, ShimError, printable, reason

Check = Callable[[Host], Iterable[Finding]]
FORMAT = 1  # of --json
CHECKS: tuple[tuple[str, Check], ...] = (
    ("kernel", kernel.authority),
    ("kernel", kernel.calls),
    ("kernel", kernel.seccomp),
    ("kernel", kernel.namespaces),
    ("kernel", kernel.cgroups),
    ("kernel", kernel.modules),
    ("kernel", kernel.denials),
    ("kernel", kernel.sysctls),
    ("delegate", versions.delegate),
    ("libseccomp", versions.library),
    ("engine", registration.registration),
    ("around", ways.choices),
    ("around", ways.groups),
    ("around", ways.builders),
    ("around", ways.uidmaps),
    ("around", ways.unseen),
    ("files", files.owned),
    ("files", files.configuration),
    ("files", files.compiled),
    ("files", files.builtin),
    ("files", files.bytecode),
    ("network", network.network),
)


def main(words: list[str]) -> int:
    """Runs the command; 0 without failures, else 1."""
    parser = argparse.ArgumentParser(
        prog="agentshim doctor", description="what is wrong with this host; changes nothing"
    )
    parser.add_argument("--json", action="store_true", help="one object, for programs")
    options = parser.parse_args(words)
    with suppress(ShimError):  # `files` says what is wrong with the packages
        site.enable()
    try:
        host = Host()
    except HostError as error:  # no launcher beside this package
        host = Host(launcher=error.key)
    found = list(examined(host))
    sys.stdout.write(json.dumps(as_object(found), indent=2) + "\n" if options.json else as_text(found))
    return 1 if worst(found) == FAIL else 0


def examined(host: Host, checks: Iterable[tuple[str, Check]] = CHECKS) -> Iterator[Finding]:
    """All findings of all checks. A check that fails says so in a warning, and the others go on."""
    for room, check in checks:
        try:
            yield from check(host)
        except ShimError as error:
            yield _unchecked(room, check, f"{error.key}: {error.asked}", error.todo)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            why = error.strerror if error.errno == errno.EIO else reason(error)  # EIO: ours, of a program that fails
            yield _unchecked(room, check, f"{where}{why}", "run as root, and mend what it names")
        except Exception as error:
            yield _unchecked(room, check, f"{type(error).__name__}: {error}", "report this")


def _unchecked(room: str, check: Check, why: str, todo: str) -> Finding:
    return Finding(WARN, f"{room}.unchecked", f"could not be checked to its end: {why}", todo, check.__name__)


def worst(found: Iterable[Finding]) -> str:
    """The worst level among findings."""
    levels = {one.level for one in found}
    return FAIL if FAIL in levels else WARN if WARN in levels else OK


def as_object(found: list[Finding]) -> dict[str, object]:
    """What --json prints: `format`, the worst level as `result`, how many there are of each, and `findings`."""
    rows = [{"level": f.level, "name": f.name, "subject": f.subject, "found": f.found, "todo": f.todo} for f in found]
    return {"format": FORMAT, "result": worst(found), "counts": _counts(found), "findings": rows}


def _counts(found: list[Finding]) -> dict[str, int]:
    return {level: sum(one.level == level for one in found) for level in (OK, WARN, FAIL)}


def as_text(found: list[Finding]) -> str:
    """A line a finding, and one below it that says what to do; the numbers at the end."""
    lines = []
    for one in found:
        subject = f"{one.subject}: " if one.subject and not one.found.startswith(one.subject) else ""
        lines.append(f"{one.level:<4}  {one.name:<24}  {printable(subject + one.found)}")
        lines += [f"{'':<32}-> {printable(one.todo)}"] if one.todo else []
    counts = ", ".join(f"{number} {level}" for level, number in _counts(found).items())
    return "\n".join([*lines, counts]) + "\n"
