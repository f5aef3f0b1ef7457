"""A plan: steps, each some netlink messages that happen in one datagram, with those that undo them; and its file.

Belongs here: what a step is, the file that native/nethook.c reads, and the words for it. Next door: `lock` makes steps;
`nft` and `netlink` know the messages. The file, in native byte order:

    8 bytes  "ASNET\\0\\0\\2"
    u32      number of steps
    each     u32 room, family, acks, length of do, length of undo; do and undo, each padded with zeros to 4

A room may have bits beside it:

    ONLY_EMPTY  not done where an engine built a network already: where, before the first step, an interface of the
                container's namespace but lo is up. What was not done is not undone either.
    ONLY_BUILT  done only there, in place of a step that is ONLY_EMPTY.
    KEEP        undone when a later step fails, but not at the container's end: it goes with the namespace by itself,
                and slowly (a link takes 32 ms).
    WHOLE       undone in one transaction or not at all: an element that is this container's alone tells that the others
                are, too, which are named by what it shares with others.
    REQUIRED    beside ONLY_EMPTY: where an engine built a network, the whole plan fails.

While a plan is replayed the container's namespace is open as descriptor NETNS, for a message that has to name it.
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
ONLY_EMPTY, KEEP, WHOLE, REQUIRED, ONLY_BUILT = 0x100, 0x200, 0x400, 0x800, 0x1000
BITS = ONLY_EMPTY | KEEP | WHOLE | REQUIRED | ONLY_BUILT
EITHER = ONLY_EMPTY | ONLY_BUILT  # not both: such a step is never done
NETNS = 8
ROOMS = {CONTAINER: "container", HOST: "host"}
FAMILIES = {netlink.ROUTE: "route", netlink.NETFILTER: "netfilter"}

MAGIC = b"ASNET\0\0\2"
MOST_BYTES = 1 << 20  # what the hook reads; a batch of 10,000 grants takes 430 KiB
MOST_STEPS = 4096

GONE = (2, 19)  # ENOENT, ENODEV: what was to be deleted, or the interface that had it
GETLINK, UP = 18, 1
BEGIN, END = 16, 17

_COUNT = Struct("=I")
_STEP = Struct("=5I")
_LINK = Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_PADS = (b"", b"\0", b"\0\0", b"\0\0\0")
_FIRST = len(MAGIC) + _COUNT.size

# Message types of nf_tables and of rtnetlink in words, for a plan that is read back
_NAMES = {0: "table", 2: "no table", 3: "chain", 6: "rule", 9: "set", 12: "elements", 14: "no elements"}
_ROUTE_NAMES = {16: "link", 17: "no link", 20: "address", 24: "route", 28: "neighbour", 29: "no neighbour"}


class Step(Value):
    """`room`, `family`: in whose network namespace, with the bits above, and which netlink; `do`, `undo`: whole
    messages, each sent as one datagram; `acks`: how many acknowledgements `do` asks for; `words`: what it does, for
    people. `words` are not in the file: a decoded step has those that its messages tell.

    What fails is not undone itself, so `do` is one message, or one batch, or messages that a step before it undoes.
    `undo` of a batch that is to work at the container's end deletes one element a message: see `release`.
    """

    __slots__ = ("room", "family", "do", "undo", "acks", "words")

    def __init__(self, room: int, family: int, do: bytes, undo: bytes, acks: int, words: str) -> None:
        self.room = room
        self.family = family
        self.do = do
        self.undo = undo
        self.acks = acks
        self.words = words

    @property
    def where(self) -> int:
        """The room alone: CONTAINER or HOST."""
        return self.room & ~BITS

    @property
    def released(self) -> bool:
        """Whether it is undone at the container's end."""
        return self.where == HOST and not self.room & KEEP and bool(self.undo)

    def only(self, bit: int) -> Step:
        """The same step with one bit more."""
        return Step(self.room | bit, self.family, self.do, self.undo, self.acks, self.words)

    def __str__(self) -> str:
        told = [f"{len(self.do)} bytes", "undone by itself" if self.undo else "not undone"]
        told += ["undone at the end"] if self.released else []
        told += ["only in an empty network"] if self.room & ONLY_EMPTY else []
        told += ["only in an engine's network"] if self.room & ONLY_BUILT else []
        return f"{ROOMS[self.where]}: {FAMILIES[self.family]}: {self.words} ({', '.join(told)})"


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

    `open_socket(room, family)` gives an open socket, which stays its own; for a plan that makes a link the caller holds
    the container's namespace as descriptor NETNS. HostError names the step that failed.
    """
    every = list(steps)
    empty = not any(step.room & EITHER for step in every) or _is_empty(open_socket(CONTAINER, netlink.ROUTE))
    if not empty and any(step.room & REQUIRED for step in every):
        todo = 'start it with --network none, or set mode = "auto"'
        raise HostError("network", "mode", "a network that an engine has made", "an empty one", todo)
    done: list[Step] = []
    for place, step in enumerate(every, 1):
        if step.room & (ONLY_BUILT if empty else ONLY_EMPTY):
            continue
        try:
            open_socket(step.where, step.family).ask(step.do, step.acks)
        except OSError as error:
            _undo(done, open_socket)
            todo = f"{reason(error)}; what was done before is undone"
            raise HostError("network", f"step {place}", step.words, "every step acknowledged", todo) from error
        done.append(step)


def release(steps: Iterable[Step], open_socket: Open) -> None:
    """What is left on the host's side when the container is gone, as the hook's second call does it. Cold: gc.

    What is gone already is no error. HostError names the first step that was not undone, after all were tried. Each
    message is sent alone: of a batch nothing would be done where one of its elements is gone.
    """
    first: tuple[int, Step, OSError] | None = None
    every = list(enumerate(steps, 1))
    for place, step in reversed(every):
        for data in _parts(step) if step.released else ():
            try:
                open_socket(HOST, step.family).ask(data, _acks(data, step.family))
            except OSError as error:
                if error.errno not in GONE:
                    first = first or (place, step, error)
    if first:
        todo = f"{reason(first[2])}; try again: agentshim net gc"
        raise HostError("network", f"step {first[0]}", f"to undo {first[1].words}", "all undone", todo) from first[2]


def required(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Steps of which those that are ONLY_EMPTY are REQUIRED."""
    return tuple(one.only(REQUIRED) if one.room & ONLY_EMPTY else one for one in steps)


def _is_empty(kernel: netlink.Socket) -> bool:
    """Whether no interface but lo, which is 1, is up."""
    try:
        found = kernel.dump(netlink.message(GETLINK, netlink.DUMP, _LINK.pack(0, 0, 0, 0, 0)))
    except OSError as error:
        raise HostError(
            "network", "interfaces", reason(error), "a list of them", "create the container anew"
        ) from error
    links = [_LINK.unpack_from(one) for one in found]
    return not any(index != 1 and flags & UP for _, _, index, flags, _ in links)


def _undo(done: list[Step], open_socket: Open) -> None:
    for step in reversed(done):
        try:
            if step.undo:
                open_socket(step.where, step.family).ask(step.undo, _acks(step.undo, step.family))
        except OSError:
            continue  # the first error is the one to show


def _parts(step: Step) -> list[bytes]:
    return [step.undo] if step.room & WHOLE else _apart(step.undo, step.family)


def _apart(data: bytes, family: int) -> list[bytes]:
    """Each message alone; of a batch each in a batch of its own."""
    every = list(netlink.messages(data))
    border = every[0][3]
    if family != netlink.NETFILTER or every[0][0] != BEGIN:
        return [netlink.message(*one[:2], one[3], one[2]) for one in every]
    begin, end = netlink.message(BEGIN, 0, border), netlink.message(END, 0, border)
    return [begin + netlink.message(*one[:2], one[3], one[2]) + end for one in every[1:-1]]


def _step(data: bytes, at: int) -> tuple[Step, int]:
    if len(data) - at < _STEP.size:
        raise _invalid("a step that is cut off", "whole steps")
    room, family, acks, do_length, undo_length = _STEP.unpack_from(data, at)
    if room & ~BITS not in ROOMS or room & EITHER == EITHER or family not in FAMILIES:
        raise _invalid(f"room {room:#x}, family {family}", "room 0 or 1 with known bits, family 0 or 12")
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
    batch = family == netlink.NETFILTER and bool(heads) and heads[0][0] == BEGIN
    if batch and heads[-1][0] != END:
        raise _invalid("a batch without its end", "whole batches")
    return sum(bool(flags & netlink.ACK) for _, flags in heads)


def _words(data: bytes, family: int) -> str:
    """What messages say of themselves: how many of which kind."""
    counts: dict[str, int] = {}
    for kind, _, _, _ in netlink.messages(data):
        if family == netlink.NETFILTER and kind in (BEGIN, END):
            continue
        word = _word(kind, family)
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{count} × {word}" for word, count in counts.items()) or "nothing"


def _word(kind: int, family: int) -> str:
    ours = family == netlink.NETFILTER and kind >> 8 == 10
    names = _NAMES if ours else _ROUTE_NAMES if family == netlink.ROUTE else {}
    return names.get(kind & 255 if ours else kind, f"message {kind}")


def _invalid(asked: str, ceiling: str, todo: str = "install all of agentshim at one version") -> Invalid:
    return Invalid("network", "plan", asked, ceiling, todo)
