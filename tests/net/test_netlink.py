"""When an answer is whole: the parts of a dump. Next door: test_host_oracle.py asks a real kernel."""

from __future__ import annotations

from typing import Any

import pytest

from hooks import netlink
from hooks.netlink import ACK, DONE, DUMP_INTERRUPTED, ERROR, message

MULTI = 2
RULE = 0xA06
ASKED = message(RULE, netlink.DUMP, b"rule")


def part(*payloads: bytes, flags: int = MULTI) -> bytes:
    return b"".join(message(RULE, flags, one) for one in payloads)


def done(error: int = 0, flags: int = MULTI) -> bytes:
    return message(DONE, flags, error.to_bytes(4, "little", signed=True))


class Fake:
    """What a kernel answers, one datagram a time, and who says so."""

    def __init__(self, *datagrams: bytes, sender: int = 0) -> None:
        self.left = list(datagrams)
        self.sender = sender
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def recvmsg(self, size: int) -> tuple[bytes, list[Any], int, tuple[int, int]]:
        return self.left.pop(0), [], 0, (self.sender, 0)


def asked(*datagrams: bytes, sender: int = 0) -> tuple[netlink.Socket, Fake]:
    made = netlink.Socket.__new__(netlink.Socket)
    made._socket = fake = Fake(*datagrams, sender=sender)
    return made, fake


@pytest.mark.parametrize(
    "datagrams",
    [(part(b"one_", b"two_") + done(),), (part(b"one_", b"two_"), done()), (part(b"one_"), part(b"two_") + done())],
)
def test_a_dump_is_whole_where_the_last_message_says_so(datagrams: tuple[bytes, ...]) -> None:
    made, fake = asked(*datagrams)
    assert made.dump(ASKED) == [b"one_", b"two_"]
    assert not fake.left and fake.sent == [ASKED]


def test_a_dump_of_nothing_is_nothing() -> None:
    made, _ = asked(done())
    assert made.dump(ASKED) == []


@pytest.mark.parametrize(
    "changed",
    [
        (part(b"one_"), part(b"two_", flags=MULTI | DUMP_INTERRUPTED) + done()),
        (part(b"one_"), done(flags=MULTI | DUMP_INTERRUPTED)),
        (part(b"one_") + done(flags=MULTI | DUMP_INTERRUPTED),),
    ],
)
def test_what_changed_on_the_way_is_asked_again(changed: tuple[bytes, ...]) -> None:
    made, fake = asked(*changed, part(b"new_") + done())
    assert made.dump(ASKED) == [b"new_"]
    assert fake.sent == [ASKED, ASKED] and not fake.left


def test_a_rule_that_ends_as_a_last_message_does_is_not_the_last() -> None:
    """A rule's data are somebody's to choose; our sequence and our port are in the head of what answers us."""
    forged = message(DONE, MULTI, bytes(4), sequence=7)
    made, fake = asked(part(b"rule" + forged), part(b"more") + done())
    assert made.dump(ASKED) == [b"rule" + forged, b"more"] and not fake.left


@pytest.mark.parametrize(
    ("datagrams", "number"),
    [
        ((part(b"one_"), done(-1)), 1),
        ((message(ERROR, 0, (-2).to_bytes(4, "little", signed=True)),), 2),
        ((message(ERROR, ACK, bytes(4)),), 74),
    ],
)
def test_an_error_is_no_end(datagrams: tuple[bytes, ...], number: int) -> None:
    made, _ = asked(*datagrams)
    with pytest.raises(OSError, match=rf"\[Errno {number}\]"):
        made.dump(ASKED)


def test_an_answer_of_somebody_else_is_none() -> None:
    made, _ = asked(part(b"one_") + done(), sender=4711)
    with pytest.raises(OSError, match="not the kernel"):
        made.dump(ASKED)
