"""Netlink as bytes: messages and attributes to write, messages and attributes to read, and one socket to ask with.

Belongs here: linux/netlink.h, whatever the family. Next door: `nft` knows nf_tables; `records` opens a socket in
another network namespace; native/nethook.c sends what a plan holds without understanding it.
"""

from __future__ import annotations

import posix
from _struct import Struct, unpack_from

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

NESTED = 0x8000
_KIND = 0x3FFF  # without NESTED and the bit for network byte order

_HEADER = Struct("=IHHII")
_ATTRIBUTE = Struct("=HH")
_U32 = Struct(">I")
_U64 = Struct(">Q")
_TIME = Struct("@ll")
_PADS = (b"", b"\0", b"\0\0", b"\0\0\0")

HEADER = _HEADER.size
SECONDS = 2  # the kernel answers before send returns: silence is a fault, not slowness


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to 4. Needs len(payload) < 65,532: the length is 16 bits."""
    size = len(payload) + 4
    return _ATTRIBUTE.pack(size, kind) + payload + _PADS[-size & 3]


def nested(kind: int, *attributes: bytes) -> bytes:
    """One attribute that holds others."""
    return attribute(kind | NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """A string with its NUL."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """32 bits in network order, as all of nfnetlink."""
    return attribute(kind, _U32.pack(value))


def u64(kind: int, value: int) -> bytes:
    """64 bits in network order."""
    return attribute(kind, _U64.pack(value))


def message(kind: int, flags: int, payload: bytes, sequence: int = 0) -> bytes:
    """One whole message: REQUEST is added, the sender's port is left to the kernel. `payload` is padded already."""
    return _HEADER.pack(HEADER + len(payload), kind, flags | REQUEST, sequence, 0) + payload


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, payload) of each message; ValueError where a length does not fit."""
    at = 0
    while at < len(data):
        if len(data) - at < HEADER:
            raise ValueError("a netlink message cut off in its header")
        size, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if size < HEADER or size > len(data) - at:
            raise ValueError(f"a netlink message of {size} bytes where {len(data) - at} are left")
        yield kind, flags, sequence, data[at + HEADER : at + size]
        at += (size + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind without its flags, payload) of each attribute; ValueError where a length does not fit."""
    at = 0
    while at < len(data):
        if len(data) - at < 4:
            raise ValueError("a netlink attribute cut off in its header")
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < 4 or size > len(data) - at:
            raise ValueError(f"a netlink attribute of {size} bytes where {len(data) - at} are left")
        yield kind & _KIND, data[at + 4 : at + size]
        at += (size + 3) & ~3


def number(payload: bytes) -> int:
    """An integer of any width in network order."""
    return int.from_bytes(payload, "big")


def string(payload: bytes) -> str:
    """A string without its NUL; bytes that are no UTF-8 stay visible."""
    return payload.rstrip(b"\0").decode("utf-8", "backslashreplace")


class Socket:
    """A netlink socket. Cold: the verbs that read records, and tests; a container's start has the native hook.

    `descriptor`: an open netlink socket to take over, else one is opened in the caller's network namespace. OSError on
    any error, with the kernel's errno where it answered with one.
    """

    def __init__(self, family: int, descriptor: int | None = None) -> None:
        from _socket import socket  # 0.1 ms: nothing that only makes bytes pays it

        self._socket: Any = socket(16, 3, family, descriptor)
        self._socket.setsockopt(1, 20, _TIME.pack(SECONDS, 0))  # SO_RCVTIMEO
        self._socket.setsockopt(270, 10, 1)  # SOL_NETLINK, NETLINK_CAP_ACK: an answer does not repeat what was asked
        self._socket.setsockopt(1, 32, 1 << 20)  # SO_SNDBUFFORCE: one batch is one datagram

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, data: bytes, acks: int) -> None:
        """Send `data` as one datagram and take exactly `acks` acknowledgements; OSError with the first error."""
        self._socket.send(data)
        left = acks
        while left:
            for kind, _, _, payload in messages(self._received()):
                _acknowledged(kind, payload)
                left -= 1
        self._nothing_more()

    def fileno(self) -> int:
        """The descriptor, for ioctl."""
        return int(self._socket.fileno())

    def get(self, request: bytes) -> bytes:
        """The payload of the one message that answers a request which wants no acknowledgement."""
        self._socket.send(request)
        ((kind, _, _, payload),) = messages(self._received())
        if kind == ERROR:
            _acknowledged(kind, payload)
        return payload

    def dump(self, request: bytes) -> list[bytes]:
        """The payload of every message of an answer in many parts; asked again where it changed on the way."""
        while True:
            whole, found = self._dumped(request)
            if whole:
                return found

    def _dumped(self, request: bytes) -> tuple[bool, list[bytes]]:
        self._socket.send(request)
        found: list[bytes] = []
        whole = True
        while True:
            for kind, flags, _, payload in messages(self._received()):
                whole = whole and not flags & DUMP_INTERRUPTED
                if kind == DONE:
                    return whole, found
                if kind == ERROR:
                    _acknowledged(kind, payload)
                else:
                    found.append(payload)

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
    (error,) = unpack_from("=i", payload)
    if error:
        raise OSError(-error, posix.strerror(-error))
