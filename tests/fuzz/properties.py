"""How a target says what does not hold, and what it lets pass.

Belongs here: findings, and the one frame around every target. Next door: the on_*.py hold the properties themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from shim.errors import Bug, ShimError

Target = Callable[[bytes], None]
SEEN: list[str] = []  # what a finding's report shows besides


class Finding(AssertionError):
    """A property that does not hold."""


def demand(holds: object, what: str, *seen: object) -> None:
    if not holds:
        raise Finding(" | ".join((what, *(repr(one)[:600] for one in seen))))


@contextlib.contextmanager
def only(*allowed: type[ShimError]) -> Iterator[None]:
    """Swallows the errors that are allowed, once they are seen to be one printable line; all else is a finding."""
    try:
        yield
    except Bug as error:
        raise Finding(f"Bug: {error} | {SEEN}") from error
    except allowed as error:
        demand(str(error).isprintable(), "a message that is not one printable line", str(error))
        raise Over from None


@contextlib.contextmanager
def as_finding(what: str, *seen: object) -> Iterator[None]:
    """What must be accepted here: a refusal is a finding."""
    try:
        yield
    except ShimError as error:
        raise Finding(" | ".join((what, str(error), *(repr(one)[:600] for one in seen)))) from error


class Over(Exception):
    """The input was refused, as it may be."""


def target(run: Target) -> Target:
    """`run`, ending quietly where our code has refused the input."""

    def wrapped(data: bytes) -> None:
        with contextlib.suppress(Over):
            run(data)

    wrapped.__name__ = run.__name__
    wrapped.__doc__ = run.__doc__
    return wrapped
