"""The four ways in which agentshim says no, and nothing else.

Belongs here: what an error is and how it reads. Next door: `cli` turns one into an exit code and a log line.
"""

from __future__ import annotations

import errno
import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class ShimError(Exception):
    """Base of all errors that may reach the engine.

    `room`: the module or dimension that speaks; `key`: the OCI key, option or file meant; `asked` and
    `ceiling`: what was wanted and what is allowed at most; `todo`: one instruction to the reader.
    """

    def __init__(self, room: str, key: str, asked: object, ceiling: object, todo: str) -> None:
        super().__init__(room, key, asked, ceiling, todo)
        self.room = room
        self.key = key
        self.asked = asked
        self.ceiling = ceiling
        self.todo = todo

    def __str__(self) -> str:
        key, asked, ceiling = _shown(self.key, 400), _shown(self.asked), _shown(self.ceiling)
        return f"{self.room}: {key}: asked {asked}, ceiling {ceiling}: {printable(self.todo)}"


class Refused(ShimError):
    """Policy says no: the request is well formed, its authority is too great and cannot be lowered."""


class Invalid(ShimError):
    """The request is malformed; `ceiling` says what would have been well formed."""


class HostError(ShimError):
    """The kernel, a disk or a file of the host is not as we need it."""


class Bug(ShimError):
    """Our own mistake, found by a check. The bundle is left as it was and nothing is run."""


def reason(error: OSError) -> str:
    """Why the kernel said no, in words that podman does not take for an exit code of the container (126, 127)."""
    words = {errno.ENOENT: "not there", errno.EACCES: "not accessible", errno.EPERM: "not allowed by the kernel"}
    return words.get(error.errno or 0, posix.strerror(error.errno or 0))


# What the kernel says of a path at which nothing is, and can be nothing.
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def is_absence(error: OSError) -> bool:
    """Whether the kernel says that nothing is there, as far as this user is told: all else is `unanswered`."""
    return error.errno in ABSENT or (error.errno == errno.EACCES and posix.geteuid() != 0)


def unanswered(room: str, key: str, error: OSError | ImportError) -> HostError:
    """The kernel did not say what we asked it: with too few descriptors, a failing disk. Never an answer of no."""
    todo = "mend what fails, then call again; nothing was run"
    asked = reason(error) if isinstance(error, OSError) else "a module that does not load"
    return HostError(room, key, asked, "an answer of the kernel", todo)


def joined(refusals: Iterable[Refused]) -> Refused:
    """One refusal that names all of `refusals` (one at least): an engine shows a single line."""
    every = list(refusals)
    first = every[0]
    if len(every) == 1:
        return first
    rest = "; ".join(str(one) for one in every[1:])
    return Refused(first.room, first.key, first.asked, first.ceiling, f"{first.todo}; {rest}")


def _shown(value: object, limit: int = 200) -> str:
    """`value` as one printable line, cut where it is long."""
    text = value if isinstance(value, str) else repr(value)
    text = printable(text[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "…"


def printable(text: object) -> str:
    """`text` on one line: control characters of an untrusted string, those that turn text around and bytes that are not
    UTF-8 never reach a terminal or an engine's log.

    What is quoted of a spec is in all parts of a message: a key in the key, a hook's path in what to do.
    """
    text = str(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
