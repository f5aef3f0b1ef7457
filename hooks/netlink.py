"""Netlink messages as bytes, and a socket to ask with. Hot: whoever makes a network asks what the host's rules are, so
without _struct, which takes 0.1 ms.

Belongs here: the heads of messages, and when an answer is whole (linux/netlink.h, netlink(7)). Next door: `attributes`
has what lies behind a head; `records` opens a socket in another network namespace; native/nethook.c sends what a plan
holds without understanding it.
"""

from __future__ import annotations

import posix
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

ROUTE = 0
NETFILTER = 12

REQUEST, ACK, DUMP_INTERRUPTED = 0x1, 0x4, 0x10
DUMP = 0x300  # root and match
EXCL, CREATE, APPEND = 0x200, 0x400, 0x800
ERROR, DONE = 2, 3
HEADER = 16  # u32 length, u16 type, u16 flags, u32 sequence, u32 port
SECONDS = 2  # the kernel answers before send returns: silence is a fault, not slowness
_END = HEADER + 4  # of a dump: DONE and an int
_TIME = (SECONDS).to_bytes(8, byteorder) + bytes(8)  # struct timeval


def message(kind: int, flags: int, payload: bytes, sequence: int = 0) -> bytes:
    """One whole message: REQUEST is added, the sender's port is left to the kernel. `payload` is padded already."""
    kinds = (flags | REQUEST) << 16 | kind if byteorder == "little" else kind << 16 | flags | REQUEST
    words = (HEADER + len(payload), kinds, sequence, 0)
    return b"".join([word.to_bytes(4, byteorder) for word in words]) + payload


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, payload) of each message; ValueError where a length does not fit."""
    at = 0
    while at < len(data):
        if len(data) - at < HEADER:
            raise ValueError("a netlink message cut off in its header")
        size = _number(data, at, 4)
        if size < HEADER or size > len(data) - at:
            raise ValueError(f"a netlink message of {size} bytes where {len(data) - at} are left")
        kind, flags, sequence = _number(data, at + 4, 2), _number(data, at + 6, 2), _number(data, at + 8, 4)
        yield kind, flags, sequence, data[at + HEADER : at + size]
        at += (size + 3) & ~3


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], byteorder)


class Socket:
    """A netlink socket.

    `descriptor`: an open netlink socket to take over, else one is opened in the caller's network namespace. OSError on
    any error, with the kernel's errno where it answered with one.
    """

    def __init__(self, family: int, descriptor: int | None = None) -> None:
        from _socket import socket  # 0.1 ms: nothing that only makes bytes pays it

        self._socket: Any = socket(16, 3, family, descriptor)
        self._socket.setsockopt(1, 20, _TIME)  # SO_RCVTIMEO
        self._socket.setsockopt(270, 10, 1)  # SOL_NETLINK, NETLINK_CAP_ACK: an answer does not repeat what was asked
        self._socket.setsockopt(1, 32, 1 << 20)  # SO_SNDBUFFORCE: one batch is one datagram

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, for ioctl."""
        return int(self._socket.fileno())

    def ask(self, data: bytes, acks: int) -> None:
        """Send `data` as one datagram and take exactly `acks` acknowledgements; OSError with the first error."""
        self._socket.send(data)
        left = acks
        while left:
            for kind, _, _, payload in messages(self._received()):
                _acknowledged(kind, payload)
                left -= 1
        self._nothing_more()

    def get(self, request: bytes) -> bytes:
        """The payload of the one message that answers a request which wants no acknowledgement."""
        self._socket.send(request)
        ((kind, _, _, payload),) = messages(self._received())
        if kind == ERROR:
            _acknowledged(kind, payload)
        return payload

    def dump(self, request: bytes) -> list[bytes]:
        """The payload of every message of an answer in many parts; asked again where it changed on the way."""
        return [payload for data in self.parts(request) for _, _, _, payload in messages(data)]

    def parts(self, request: bytes) -> list[bytes]:
        """As `dump`: the messages as they came, many in one part, without the one that says that these were all."""
        while True:
            found, whole = self._parts(request)
            if whole:
                return found

    def _parts(self, request: bytes) -> tuple[list[bytes], bool]:
        self._socket.send(request)
        found: list[bytes] = []
        flags = 0  # of the first message of each part, and of the last: they say whether something changed between two
        while True:
            data = self._received()
            if _number(data, 4, 2) == ERROR:
                _acknowledged(ERROR, data[HEADER:])
                raise OSError(74, "an acknowledgement of what wanted none")  # EBADMSG
            end = data[-_END:]
            flags |= _number(data, 6, 2)
            if _number(end, 4, 2) != DONE or _number(end, 0, 4) != _END or end[8:16] != data[8:16]:
                found.append(data)
                continue
            _done(end[HEADER:])
            if len(data) > _END:
                found.append(data[:-_END])
            return found, not (flags | _number(end, 6, 2)) & DUMP_INTERRUPTED

    def _received(self) -> bytes:
        """One datagram. From the kernel (port 0): whoever is in this namespace as root could send us one too."""
        data, _, _, sender = self._socket.recvmsg(1 << 16)
        if sender[0] != 0:
            raise OSError(74, "an answer that is not the kernel's")  # EBADMSG
        return bytes(data)

    def _nothing_more(self) -> None:
        """An error of a message that wanted no acknowledgement comes beside those that were wanted."""
        try:
            data = self._socket.recv(1 << 16, 0x40)  # MSG_DONTWAIT
        except BlockingIOError:
            return
        for kind, _, _, payload in messages(data):
            _acknowledged(kind, payload)
        raise OSError(74, "one acknowledgement more than was wanted")


def _acknowledged(kind: int, payload: bytes) -> None:
    """OSError unless this is an NLMSG_ERROR that says 0."""
    if kind != ERROR or len(payload) < 4:
        raise OSError(74, "an answer that is none to what was asked")
    _done(payload)


def _done(status: bytes) -> None:
    error = int.from_bytes(status[:4], byteorder, signed=True)
    if error:
        raise OSError(-error, posix.strerror(-error))
