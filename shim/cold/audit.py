"""The audit log: one line of JSON a decision, appended by one write, so that two writers never mix their lines.

Belongs here: the file. A log that cannot be written refuses what it should have recorded. open(2): O_APPEND.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any

from shim.errors import HostError, reason

DIRECTORY = "/var/log/agentshim"
FILE = DIRECTORY + "/audit.jsonl"


def write(action: str, record: dict[str, Any], **more: Any) -> None:
    """Appends what was done to a container. HostError if it is not on its way to the disk, whole."""
    entry = {
        "@timestamp": now(),
        "event.action": action,
        "container.id": record["id"],
        "agentshim.root": record["root"],
        "agentshim.policy": record["policy"],
        "agentshim.digest": record["digest"],
        "user.id": os.getuid(),
        **{f"agentshim.{name}": value for name, value in more.items()},
    }
    line = json.dumps(entry).encode() + b"\n"
    todo = "make room, or make it writable for root"
    try:
        os.makedirs(DIRECTORY, 0o750, exist_ok=True)
        there = os.stat(DIRECTORY)
        if there.st_uid != 0 or there.st_mode & 0o022:
            raise HostError("audit", DIRECTORY, "others can write it", "root's alone", "correct its owner and mode")
        fd = os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            written = os.write(fd, line)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError("audit", FILE, reason(error), "a line appended", todo) from None
    if written != len(line):
        raise HostError("audit", FILE, f"{written} bytes of {len(line)}", "the whole line", todo)


def now() -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
