"""`agentshim audit tail|show`: what was decided, for people and programs; and the records of what people decide.

Belongs here: reading the log. Next door: `shim.audit` writes it. A line that is no record (torn by a full disk or a
power loss) is shown as such, never guessed at; what came from a workload is escaped before it reaches a terminal.
"""

from __future__ import annotations

import argparse
import glob
import gzip
import json
import os
import stat
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from shim import audit, policy
from shim.errors import HostError, Invalid, reason

FOLLOW = 0.5  # seconds between two looks
SHOWN = 300  # characters of a line that is no record
# What a line for people says in words of its own; every other key of ours follows as it is.
LOSSES = {"agentshim.lowered": "lowered", "agentshim.would_lose": "would lower"}
SPOKEN = ("agentshim.digest", "agentshim.mode", "agentshim.root", "agentshim.lost", *LOSSES)


def main(words: list[str]) -> int:
    """Runs `audit`; its exit code. Raises ShimError."""
    parser = argparse.ArgumentParser(prog="agentshim audit", description="what agentshim has granted and refused")
    verbs = parser.add_subparsers(dest="verb", required=True)
    tail = verbs.add_parser("tail", help="the last records")
    tail.add_argument("-n", type=int, default=20, metavar="N", help="how many (20)")
    show = verbs.add_parser("show", help="all records of a container, those in rotated files too")
    show.add_argument("container", metavar="CONTAINER", help="an id, a name, or a unique prefix of an id")
    for one in (tail, show):
        one.add_argument("--json", action="store_true", help="the records as they are, a line each")
        one.add_argument("--follow", action="store_true", help="go on, and show what is new")
    options = parser.parse_args(words)
    to_any_terminal()
    log = Log()
    if options.verb == "tail":
        if options.n < 0:
            raise Invalid("audit", "-n", str(options.n), "a number from 0", "write it like -n 20")
        _say(deque(log.lines(not options.follow), options.n), options.json)
        return _follow(log, options, None)
    every = [*rotated(), *log.lines(not options.follow)]
    wanted = _ids(every, options.container)
    _say((line for line in every if _id(line) in wanted), options.json)
    return _follow(log, options, wanted)


def write(action: str, record: dict[str, Any], **more: Any) -> None:
    """Records what a person did to a container. HostError if it cannot be written and config.toml refuses that."""
    entry = audit.Entry(action, record["id"])
    entry.of(record["root"], record)
    fields = {**entry.fields, "event.outcome": "success", "user.id": os.getuid()}
    loose = policy.config().audit_log
    if loose == "off":
        return
    try:
        audit.append({**fields, **{f"agentshim.{name}": value for name, value in more.items()}})
    except HostError as error:
        if loose != "continue":
            raise
        sys.stderr.write(f"not recorded: {error}\n")


class Log:
    """The file that is written now, read on and on; when it is rotated, its successor."""

    def __init__(self) -> None:
        self._fd = -1
        self._part = b""

    def lines(self, whole: bool = False) -> Iterator[str]:
        """What is new since the last look; with `whole`, what is behind the last line's end, too. HostError."""
        path = f"{audit.DIRECTORY}/{audit.NAME}"
        if self._fd < 0:
            self._fd = _opened(path)
        yield from self._read()
        if self._fd >= 0 and self._is_rotated(path):
            yield from self._read()  # written while we looked
            yield from self._rest()
            os.close(self._fd)
            self._fd = _opened(path)
            yield from self._read()
        if whole:
            yield from self._rest()

    def _read(self) -> Iterator[str]:
        while self._fd >= 0 and (data := os.read(self._fd, 1 << 16)):
            *ended, self._part = (self._part + data).split(b"\n")
            yield from (_text(line) for line in ended if line)

    def _rest(self) -> Iterator[str]:
        if self._part:
            yield _text(self._part)
        self._part = b""

    def _is_rotated(self, path: str) -> bool:
        here = os.fstat(self._fd)
        if here.st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
            return True  # logrotate's copytruncate
        try:
            there = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            return False  # the next record makes it
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)


def rotated() -> Iterator[str]:
    """The lines of older files, oldest first: what logrotate leaves, compressed by gzip or not."""
    names = [name for name in glob.glob(f"{audit.DIRECTORY}/{audit.NAME}?*") if os.path.isfile(name)]
    for name in sorted(names, key=lambda one: os.stat(one).st_mtime_ns):
        try:
            with gzip.open(name) if name.endswith(".gz") else open(name, "rb") as file:
                yield from (_text(line) for line in file.read().split(b"\n") if line)
        except (OSError, EOFError) as error:
            sys.stderr.write(f"not read: {name}: {error}\n")


def told(line: str) -> dict[str, Any] | None:
    """The record that a line is; None if it is torn, or none of ours."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "@timestamp" in found else None


def printable(text: object) -> str:
    """Without control characters, those that turn text around, and bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))


def to_any_terminal() -> None:
    """Characters that the terminal's encoding lacks are escaped instead of ending us."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def sentence(record: dict[str, Any]) -> str:
    """A record on one line, for people."""
    say = {key: printable(value) for key, value in record.items()}
    action = say.get("event.action", "?")
    outcome = {"success": " granted", "failure": " refused"}.get(say.get("event.outcome", ""), " ?")
    words = [f"{say['@timestamp']} {action}{'' if action.startswith(('lease_', 'pin_')) else outcome}", _who(say)]
    if "rule.ruleset" in say:
        mode = say.get("agentshim.mode", "enforce")
        words.append(
            f"policy {say['rule.ruleset']} ({say.get('agentshim.digest', '').removeprefix('sha256:')[:12]})"
            + (f" mode {mode}" if mode != "enforce" else "")
            + (" of the host limit: its record was lost" if "agentshim.lost" in say else "")
        )
    return " ".join(words) + "".join(f"; {one}" for one in _rest(record, say))


def _who(say: dict[str, str]) -> str:
    short = say.get("container.id", "?")
    short = short[:12] if len(short) == 64 else short
    return f"{say['container.name']} ({short})" if "container.name" in say else short


def _rest(record: dict[str, Any], say: dict[str, str]) -> Iterator[str]:
    for key, verb in LOSSES.items():
        if isinstance(lost := record.get(key), list):
            yield f"{verb} {', '.join(map(printable, lost))}"
    for key, value in say.items():
        if key.startswith("agentshim.") and key not in SPOKEN:
            yield f"{key[10:].replace('_', ' ')} {value}"
    if "error.message" in say:
        yield f"{say.get('error.type', 'error')}: {say['error.message']}"


def _say(lines: Iterable[str], as_json: bool) -> None:
    for line in lines:
        record = told(line)
        if as_json:  # made anew: all of it ASCII, whoever wrote the line
            torn = {"event.kind": "pipeline_error", "error.message": "no record: torn?", "event.original": line[:SHOWN]}
            text = json.dumps(record or torn)
        else:
            text = sentence(record) if record is not None else f"no record: torn? {printable(line[:SHOWN])}"
        print(text, flush=True)


def _follow(log: Log, options: argparse.Namespace, wanted: set[str] | None) -> int:
    """Shows what is new, of all containers or of those in `wanted`, until it is interrupted."""
    try:
        while options.follow:
            time.sleep(FOLLOW)
            _say((line for line in log.lines() if wanted is None or _id(line) in wanted), options.json)
    except KeyboardInterrupt:
        pass  # how a person ends it
    return 0


def _id(line: str) -> str:
    return str((told(line) or {}).get("container.id", ""))


def _ids(lines: list[str], subject: str) -> set[str]:
    """The ids that a person means by an id, a name (all that had it), or a unique prefix. Invalid if there is none."""
    known = [record for record in map(told, lines) if record is not None and record.get("container.id")]
    for key in ("container.id", "container.name"):
        found = {str(one["container.id"]) for one in known if one.get(key) == subject}
        if found:
            return found
    found = {str(one["container.id"]) for one in known if str(one["container.id"]).startswith(subject)}
    if len(found) == 1:
        return found
    asked = f"{subject} ({len(found)} containers)" if found else subject
    todo = "give more of its id" if found else "see `agentshim audit tail`"
    raise Invalid("audit", "CONTAINER", asked, "one container that has records", todo)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")


def _opened(path: str) -> int:
    """A descriptor of the log, -1 if there is none yet. What others could have written is read, with a warning."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    except OSError as error:
        raise HostError("audit", path, reason(error), "a readable log", "look what is there") from None
    for place, there in ((audit.DIRECTORY, os.stat(audit.DIRECTORY)), (path, os.fstat(fd))):
        if there.st_uid != 0 or there.st_mode & 0o022:
            sys.stderr.write(f"{place}: others than root can write it: what follows may be forged\n")
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise HostError("audit", path, "no regular file", "a regular file", "look what is there")
    return fd
