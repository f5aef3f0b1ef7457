"""Packets that are led on from the address that was looked up: options of IPv4, routing headers of IPv6. The lock
inside is alone, as it is in an engine's network; and whoever sends holds all rights over its namespace, or none.
"""

from __future__ import annotations

import socket
import struct
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hooks import chains
from tests.net import lab as labs
from tests.net.hostlab import datagram
from tests.net.lab import CONTAINER4, CONTAINER6, FAR4, FAR6, INTERNET4, INTERNET6, Lab
from tests.net.test_mutants import Rules, load, nothing

GRANTS = {"outbound": [["udp", FAR4, 53, 53], ["tcp", FAR4, 53, 53], ["udp", FAR6, 53, 53]], "inbound": "any"}
NOTHING, ENDED = b"\1\1\1\1", b"\1\1\1\0"
OPTIONS = {
    "none": b"",
    "no-operation": NOTHING,
    "end": ENDED,
    "loose route": b"\x83\x0b\4" + socket.inet_aton(INTERNET4) + socket.inet_aton("198.51.100.9") + b"\0",
    "strict route": b"\x89\7\4" + socket.inet_aton("198.51.100.9") + b"\0",
    "record route": b"\7\7\4" + bytes(4) + b"\0",
    "timestamp": b"\x44\x08\x05\0" + bytes(4),
    "router alert": b"\x94\4\0\0",
    "of 40 bytes": NOTHING * 10,
}
SEGMENTS = struct.pack(">BBBBBBH", 17, 2, 4, 0, 0, 0, 0) + socket.inet_pton(10, FAR6)  # the last one is the target
KINDS6: dict[str, tuple[int, bytes]] = {
    "none": (17, b""),
    "destination options": (60, b"\x11\0\1\4\0\0\0\0"),
    "type 0": (43, struct.pack(">BBBBI", 17, 2, 0, 0, 0) + socket.inet_pton(10, FAR6)),
    "type 2": (43, struct.pack(">BBBBI", 17, 2, 2, 0, 0) + socket.inet_pton(10, FAR6)),
    "segments": (43, SEGMENTS),
    "behind another header": (60, b"\x2b\0\1\4\0\0\0\0" + SEGMENTS),
}


def raw4(source: str, target: str, options: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
        made.sendto(datagram(source, target, 53, b"mark", options), (target, 0))


def raw6(source: str, target: str, first: int, headers: bytes) -> None:
    udp = struct.pack(">HHHH", 5353, 53, 12, 0) + b"mark"
    ends = socket.inet_pton(10, source) + socket.inet_pton(10, target)
    pseudo = ends + struct.pack(">II", len(udp), 17) + udp
    total = sum(struct.unpack(f">{len(pseudo) // 2}H", pseudo))
    total = (total & 0xFFFF) + (total >> 16)
    udp = udp[:6] + struct.pack(">H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF or 0xFFFF) + udp[8:]
    packet = struct.pack(">IHBB", 6 << 28, len(headers + udp), first, 64) + ends + headers + udp
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
        made.sendto(packet, (target, 0))


def came(lab: Lab, where: str, sent: Any) -> bool:
    """Whether what is sent in the one namespace reaches a card of the other, as it lies on the wire."""
    other, name = (lab.i, lab.c) if where == "out" else (lab.c, lab.i)

    def go() -> bool:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)) as made:
            made.settimeout(0.4)
            try:
                lab.inside(name, sent)
            except OSError:
                pass
            try:
                while True:
                    data, about = made.recvfrom(1 << 16)
                    if data.endswith(b"mark") and about[2] == socket.PACKET_HOST:
                        return True
            except TimeoutError:
                return False

    found: bool = lab.inside(other, go)
    return found


def heard(lab: Lab, sent: Any) -> bool:
    """Whether what is sent from outside reaches a socket in the container."""

    def go() -> bool:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
            made.bind(("::", 53))
            made.settimeout(0.4)
            lab.inside(lab.i, sent)
            try:
                return bool(made.recv(100) == b"mark")
            except TimeoutError:
                return False

    found: bool = lab.inside(lab.c, go)
    return found


def shut_off(rules: Rules) -> None:
    """The lock without these rules."""
    for chain in rules:
        rules[chain] = [one for one in rules[chain] if not one.startswith((chains.LED_ON4, chains.LED_ON6))]


def settle(lab: Lab, section: dict[str, Any], led_on: bool) -> None:
    """Loads the lock, or the mutant; both ends know each other's hardware address."""
    if lab.rules():
        lab.nft("delete", "table", "inet", "agentshim")
    for where, here in ((lab.c, INTERNET6), (lab.i, CONTAINER6)):
        lab.inside(where, lambda here=here: labs.ping(here))  # type: ignore[misc]
    load(lab, section, nothing if led_on else shut_off, six=True)


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_neither_out_nor_in(lab: Lab, kind: str) -> None:
    sent = partial(raw4, CONTAINER4, FAR4, OPTIONS[kind])
    back = partial(raw4, INTERNET4, CONTAINER4, OPTIONS[kind])
    for lock in (True, False):
        settle(lab, GRANTS, lock)
        passes = kind == "none" or not lock
        assert came(lab, "out", sent) == passes, (lock, lab.nft("list", "ruleset"))
        assert (set(lab.rows("flows")), lab.rows("denied")) == ({("udp", FAR4, 53)} if passes else set(), {})
        if "route" not in kind or kind == "none":  # a kernel takes none that is led on, nor any with a route in it
            assert heard(lab, back) == passes
        assert lab.rows("refused") == {}


@pytest.mark.parametrize("kind", KINDS6)
def test_routing_headers_neither_out_nor_in(lab: Lab, kind: str) -> None:
    sent, back = partial(raw6, CONTAINER6, FAR6, *KINDS6[kind]), partial(raw6, INTERNET6, CONTAINER6, *KINDS6[kind])
    plain = kind in ("none", "destination options")
    for lock in (True, False):
        settle(lab, GRANTS, lock)
        passes = plain or not lock
        assert came(lab, "out", sent) == passes, (lock, lab.nft("list", "ruleset"))
        assert (set(lab.rows("flows")), lab.rows("denied")) == ({("udp", FAR6, 53)} if passes else set(), {})
        if plain:
            assert heard(lab, back)
        assert lab.rows("refused") == {}


def test_routing_headers_where_ipv6_is_shut(lab: Lab) -> None:
    lab.load({"outbound": [["udp", FAR4, 53, 53]]})
    for kind in KINDS6.values():
        assert not came(lab, "out", partial(raw6, CONTAINER6, FAR6, *kind))


def test_what_a_socket_adds_is_refused_at_once(lab: Lab) -> None:
    """IP_OPTIONS and IPV6_RTHDR are anybody's; a route by IP_OPTIONS needs NET_RAW on some kernels."""
    lab.serve(lab.i, ("tcp", FAR4, 53), ("udp", FAR4, 53))
    lab.load(GRANTS)

    def connect(kind: int, options: bytes) -> str:
        def go() -> bool:
            with socket.socket(socket.AF_INET, kind) as made:
                made.settimeout(1)
                if options:
                    made.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, options)
                made.connect((FAR4, 53))
                return made.send(b"x") == 1 and bool(made.recv(1))

        return labs.attempt(go)

    def segments() -> str:
        def go() -> bool:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
                made.setsockopt(socket.IPPROTO_IPV6, 57, b"\0" + SEGMENTS[1:])  # IPV6_RTHDR
                return made.sendto(b"x", ("2001:db8::9", 53)) == 1

        return labs.attempt(go)

    routed = b"\x83\7\4" + socket.inet_aton(FAR4) + b"\0"
    for kind, refusal in ((socket.SOCK_STREAM, "ECONNREFUSED"), (socket.SOCK_DGRAM, "EPERM")):
        assert lab.inside(lab.c, partial(connect, kind, b""), labs.NOBODY) == "open"
        assert lab.inside(lab.c, partial(connect, kind, NOTHING), labs.NOBODY) == refusal
        assert lab.inside(lab.c, partial(connect, kind, routed)) == refusal
    assert lab.inside(lab.c, segments, labs.NOBODY) == "EPERM"
    assert lab.rows("denied") == {} and set(lab.rows("flows")) == {("tcp", FAR4, 53), ("udp", FAR4, 53)}
    settle(lab, GRANTS, led_on=False)
    assert lab.inside(lab.c, segments, labs.NOBODY) == "open", "its first segment is granted, its last one is not"


def test_the_engines_resolver_by_a_route_over_lo(lab: Lab) -> None:
    """127.0.0.1, and from there 127.0.0.11: where the kernel lets lo lead on."""
    lab.serve(lab.c, ("udp", "127.0.0.11", 53))

    def take() -> None:
        lo = ("accept_source_route", "route_localnet", "accept_local")
        for one in ("all/accept_source_route", *(f"lo/{name}" for name in lo)):
            Path(f"/proc/sys/net/ipv4/conf/{one}").write_text("1")

    lab.inside(lab.c, take)

    def ask() -> str:
        def go() -> bool:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                made.settimeout(0.5)
                first = socket.inet_aton("127.0.0.1")
                made.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x83\7\4" + first + b"\0")
                made.sendto(b"x", ("127.0.0.11", 53))
                return bool(made.recvfrom(1)[0])

        return labs.attempt(go)

    said = []
    for change in (nothing, shut_off):
        load(lab, {}, change)
        said.append(lab.inside(lab.c, ask))
    assert said == ["EPERM", "open"]
