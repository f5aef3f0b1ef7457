"""A plan: steps, each some netlink messages that happen in one datagram, with those that undo them; and its file.

Belongs here: what a step is, the file that native/nethook.c reads, and the words for it. Next door: `lock` makes steps;
`nft` and `netlink` know the messages. The file, in native byte order:

    8 bytes  "ASNET\\0\\0\\1"
    u32      number of steps
    each     u32 room, family, acks, length of do, length of undo; do and undo, each padded with zeros to 4
"""

from __future__ import annotations

from _struct import Struct

from hooks import netlink
from shim.errors import HostError, Invalid, reason
from shim.lattice import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Open = Callable[[int, int], netlink.Socket]  # room, family

CONTAINER, HOST = 0, 1
ROOMS = {CONTAINER: "container", HOST: "host"}
FAMILIES = {netlink.ROUTE: "route", netlink.NETFILTER: "netfilter"}

MAGIC = b"ASNET\0\0\1"
MOST_BYTES = 1 << 20  # what the hook reads; a batch of 10,000 grants takes 430 KiB
MOST_STEPS = 4096

_COUNT = Struct("=I")
_STEP = Struct("=5I")
_PADS = (b"", b"\0", b"\0\0", b"\0\0\0")
_FIRST = len(MAGIC) + _COUNT.size

# Message types of nf_tables in words, for a plan that is read back
_NAMES = {0: "table", 2: "no table", 3: "chain", 6: "rule", 9: "set", 12: "elements", 14: "no elements"}


class Step(Value):
    """`room`, `family`: in whose network namespace, and which netlink; `do`, `undo`: whole messages, each sent as one
    datagram; `acks`: how many acknowledgements `do` asks for; `words`: what it does, for people. `words` are not in
    the file: a decoded step has those that its messages tell.
    """

    __slots__ = ("room", "family", "do", "undo", "acks", "words")

    def __init__(self, room: int, family: int, do: bytes, undo: bytes, acks: int, words: str) -> None:
        self.room = room
        self.family = family
        self.do = do
        self.undo = undo
        self.acks = acks
        self.words = words

    def __str__(self) -> str:
        back = "undone by itself" if self.undo else "not undone"
        return f"{ROOMS[self.room]}: {FAMILIES[self.family]}: {self.words} ({len(self.do)} bytes, {back})"


def encode(steps: Iterable[Step]) -> bytes:
    """The bytes of a plan file; Invalid where the hook would not read them."""
    every = list(steps)
    parts = [MAGIC, _COUNT.pack(len(every))]
    for step in every:
        do, undo = step.do, step.undo
        parts.append(_STEP.pack(step.room, step.family, step.acks, len(do), len(undo)))
        parts += [do, _PADS[-len(do) & 3], undo, _PADS[-len(undo) & 3]]
    data = b"".join(parts)
    if len(data) > MOST_BYTES:
        raise _invalid(f"{len(data)} bytes", f"{MOST_BYTES} bytes", "grant fewer and wider ranges")
    if not every or len(every) > MOST_STEPS:
        raise _invalid(f"{len(every)} steps", f"1 to {MOST_STEPS} steps", "report this; nothing was run")
    return data


def decode(data: bytes) -> tuple[Step, ...]:
    """The steps of a plan file; Invalid where the hook would not run it."""
    if data[: len(MAGIC)] != MAGIC or len(data) < _FIRST or len(data) > MOST_BYTES:
        raise _invalid("something else", "a plan of this version, of at most 1 MiB")
    (count,) = _COUNT.unpack_from(data, len(MAGIC))
    if not 0 < count <= MOST_STEPS:
        raise _invalid(f"{count} steps", f"1 to {MOST_STEPS} steps")
    steps: list[Step] = []
    at = _FIRST
    for _ in range(count):
        step, at = _step(data, at)
        steps.append(step)
    if at != len(data):
        raise _invalid(f"{len(data) - at} bytes behind the last step", "none")
    return tuple(steps)


def describe(steps: Iterable[Step]) -> str:
    """One numbered line a step, as the hook counts them."""
    return "\n".join(f"{place}. {step}" for place, step in enumerate(steps, 1))


def replay(steps: Iterable[Step], open_socket: Open) -> None:
    """Do all steps, or none: as the native hook does, in Python. Cold: tests, and a look at what a plan would do.

    `open_socket(room, family)` gives an open socket, which stays its own. HostError names the step that failed.
    """
    done: list[Step] = []
    for place, step in enumerate(steps, 1):
        try:
            open_socket(step.room, step.family).ask(step.do, step.acks)
        except OSError as error:
            _undo(done, open_socket)
            todo = f"{reason(error)}; what was done before is undone"
            raise HostError("network", f"step {place}", step.words, "every step acknowledged", todo) from error
        done.append(step)


def _undo(done: list[Step], open_socket: Open) -> None:
    for step in reversed(done):
        try:
            if step.undo:
                open_socket(step.room, step.family).ask(step.undo, _acks(step.undo, step.family))
        except OSError:
            continue  # the first error is the one to show


def _step(data: bytes, at: int) -> tuple[Step, int]:
    if len(data) - at < _STEP.size:
        raise _invalid("a step that is cut off", "whole steps")
    room, family, acks, do_length, undo_length = _STEP.unpack_from(data, at)
    if room not in ROOMS or family not in FAMILIES:
        raise _invalid(f"room {room}, family {family}", "room 0 or 1, family 0 or 12")
    do, at = _padded(data, at + _STEP.size, do_length)
    undo, at = _padded(data, at, undo_length)
    wanted = _acks(do, family)
    _acks(undo, family)
    if not wanted or wanted != acks:
        raise _invalid(f"{acks} answers", f"the {wanted} that its messages want, one at least")
    return Step(room, family, do, undo, acks, _words(do, family)), at


def _padded(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    end = at + ((length + 3) & ~3)
    if end > len(data):
        raise _invalid("a step that is cut off", "whole steps")
    if data[at + length : end].strip(b"\0"):
        raise _invalid("padding of other bytes", "zeros")
    return data[at : at + length], end


def _acks(data: bytes, family: int) -> int:
    """How many messages want an answer; Invalid unless all are requests and a batch has its end.

    The kernel acknowledges what is no request, and each message of a batch that it drops for want of an end.
    """
    try:
        heads = [(kind, flags) for kind, flags, _, _ in netlink.messages(data)]
    except ValueError as error:
        raise _invalid(str(error), "whole messages") from error
    if any(not flags & netlink.REQUEST for _, flags in heads):
        raise _invalid("a message that is no request", "requests")
    batch = family == netlink.NETFILTER and bool(heads) and heads[0][0] == 16
    if batch and heads[-1][0] != 17:
        raise _invalid("a batch without its end", "whole batches")
    return sum(bool(flags & netlink.ACK) for _, flags in heads)


def _words(data: bytes, family: int) -> str:
    """What messages say of themselves: how many of which kind."""
    counts: dict[str, int] = {}
    for kind, _, _, _ in netlink.messages(data):
        if family == netlink.NETFILTER and kind in (16, 17):
            continue
        word = _word(kind, family)
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{count} × {word}" for word, count in counts.items()) or "nothing"


def _word(kind: int, family: int) -> str:
    ours = family == netlink.NETFILTER and kind >> 8 == 10
    return _NAMES.get(kind & 255, f"message {kind}") if ours else f"message {kind}"


def _invalid(asked: str, ceiling: str, todo: str = "install all of agentshim at one version") -> Invalid:
    return Invalid("network", "plan", asked, ceiling, todo)
