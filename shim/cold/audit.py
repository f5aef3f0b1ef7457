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
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from shim import audit, policy
from shim.errors import HostError, Invalid, printable, reason

FOLLOW = 0.5  # seconds between two looks
MOST_TAIL = 100_000  # records; all of them are held
MOST_LINE = 1 << 20  # bytes; no record of ours is a tenth of that
UNREAD = (".xz", ".zst", ".bz2", ".lz4", ".Z")  # what logrotate may be told to compress with
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
        if not 0 <= options.n <= MOST_TAIL:
            raise Invalid("audit", "-n", str(options.n), f"a number from 0 to {MOST_TAIL}", "write it like -n 20")
        _say(_last(log, options.n, not options.follow), options.json)
        return _follow(log, options, None)
    # Read twice, instead of keeping all of it: first for the ids that are meant.
    wanted = _ids(_all(log, True), options.container)
    log.rewind()
    _say((line for line in _all(log, not options.follow) if _id(line) in wanted), options.json)
    return _follow(log, options, wanted)


def _all(log: Log, whole: bool) -> Iterator[str]:
    """Every line that there is, oldest first. The log is opened before others are: it may be rotated meanwhile."""
    log.open()
    for name in _rotated(log.identity()):
        yield from _older(name)
    yield from log.lines(whole)


def _last(log: Log, number: int, whole: bool) -> Iterator[str]:
    """The last lines; what the log lacks, just rotated, the newest rotated file has."""
    log.open()
    names = _rotated(log.identity())
    found = deque(log.lines(whole), number)
    before = deque(_older(names[-1]), number - len(found)) if names and len(found) < number else ()
    yield from (*before, *found)


def write(action: str, record: dict[str, Any], failed: Exception | None = None, **more: Any) -> None:
    """Records what a person did to a container, or that it `failed`. HostError if it cannot be written and config.toml
    refuses that.
    """
    entry = audit.Entry(action, record["id"])
    entry.of(record["root"], record)
    fields = {**entry.fields, "event.outcome": "success", "user.id": os.getuid()}
    if failed is not None:
        message = audit.cut(str(failed), audit.MOST_ERROR)
        fields |= {"event.outcome": "failure", "error.type": type(failed).__name__, "error.message": message}
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

    def open(self) -> None:
        """Opens the file, if it is there and is not open. HostError."""
        if self._fd < 0:
            self._fd = _opened(f"{audit.DIRECTORY}/{audit.NAME}")

    def identity(self) -> tuple[int, int]:
        """Device and inode of the open file; (0, 0) without one."""
        there = os.fstat(self._fd) if self._fd >= 0 else None
        return (there.st_dev, there.st_ino) if there else (0, 0)

    def rewind(self) -> None:
        """Begins the open file again."""
        if self._fd >= 0:
            os.lseek(self._fd, 0, os.SEEK_SET)
        self._part = b""

    def lines(self, whole: bool = False) -> Iterator[str]:
        """What is new since the last look; with `whole`, what is behind the last line's end, too. HostError."""
        path = f"{audit.DIRECTORY}/{audit.NAME}"
        self.open()
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


def _rotated(now: tuple[int, int]) -> list[str]:
    """The older files, oldest first, without the one that is `now` read as the log: it was renamed just now."""
    found = []
    for name in glob.glob(f"{glob.escape(audit.DIRECTORY)}/{audit.NAME}?*"):
        try:
            there = os.stat(name)
        except OSError:
            continue  # renamed or removed meanwhile
        if stat.S_ISREG(there.st_mode) and (there.st_dev, there.st_ino) != now:
            found.append((there.st_mtime_ns, name))
    return [name for _, name in sorted(found)]


def _older(name: str) -> Iterator[str]:
    """The lines of an older file: what logrotate leaves, compressed by gzip or not. One that cannot be read to its end
    is told, and gives what could be.
    """
    if name.endswith(UNREAD):
        sys.stderr.write(f"not read: {printable(name)}: only gzip is; unpack it\n")
        return
    try:
        with gzip.open(name) if name.endswith(".gz") else open(name, "rb") as file:
            while line := file.readline(MOST_LINE):
                if line != b"\n":
                    yield _text(line.rstrip(b"\n"))
    except (OSError, EOFError, zlib.error) as error:
        sys.stderr.write(f"not read: {printable(name)}: {printable(error)}\n")


def told(line: str) -> dict[str, Any] | None:
    """The record that a line is; None if it is torn, or none of ours."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and "@timestamp" in found else None


def to_any_terminal() -> None:
    """Characters that the terminal's encoding lacks are escaped instead of ending us."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def sentence(record: dict[str, Any]) -> str:
    """A record on one line, for people."""
    say = {key: printable(value) for key, value in record.items()}
    action = say.get("event.action", "?")
    outcome = {"success": " granted", "failure": " refused"}.get(say.get("event.outcome", ""), " ?")
    is_plain = action.startswith(("lease_", "pin_")) and outcome != " refused"
    words = [f"{say['@timestamp']} {action}{'' if is_plain else outcome}", _who(say)]
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


def _ids(lines: Iterable[str], subject: str) -> set[str]:
    """The ids that a person means by an id or a name (all that had it), or by a unique prefix. Invalid if there is
    none. An id that is another one's name, which its owner chose, hides nothing: both are meant, and that is said.
    """
    by_id, by_name, by_prefix = set(), set(), set()
    for record in map(told, lines):
        one = str((record or {}).get("container.id") or "")
        if record is None or not one:
            continue
        by_id |= {one} if one == subject else set()
        by_name |= {one} if record.get("container.name") == subject else set()
        by_prefix |= {one} if one.startswith(subject) else set()
    if by_id and by_name - by_id:
        sys.stderr.write(f"note: {printable(subject)} is an id, and the name of another container: both are shown\n")
    if by_id or by_name:
        return by_id | by_name
    if len(by_prefix) == 1:
        return by_prefix
    asked = f"{subject} ({len(by_prefix)} containers)" if by_prefix else subject
    todo = "give more of its id" if by_prefix else "see `agentshim audit tail`"
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
