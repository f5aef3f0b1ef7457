"""Leases: the kernel ends them, and with them what was established, in both directions, whoever keeps sending."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from hooks import labels, records
from shim.errors import HostError, Invalid, Refused
from tests.net.lab import CONTAINER4, FAR4, FAR6, METADATA, Lab, either


def listen(protocol: str, address: str, seconds: float) -> tuple[float, float, str]:
    """Send and receive for so long: when the last send worked and the last byte came, in seconds, and the first error
    (of a peer that sends by itself).
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    start = time.monotonic()
    sent = heard = 0.0
    failed = ""
    with socket.socket(family, kind) as made:
        made.settimeout(1)
        made.connect((address, 443))
        made.settimeout(0.05)
        while (now := time.monotonic() - start) < seconds:
            try:
                made.send(b"x")
                sent = now
            except OSError as error:
                failed = failed or type(error).__name__
            try:
                if made.recv(4096):
                    heard = time.monotonic() - start
            except TimeoutError:
                pass
            except OSError as error:
                failed = failed or type(error).__name__
            time.sleep(0.02)
    return sent, heard, failed


def silent(protocol: str, seconds: float) -> float:
    """Send once, then only receive: when the last byte came."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    start = time.monotonic()
    heard = 0.0
    with socket.socket(socket.AF_INET, kind) as made:
        made.settimeout(1)
        made.connect((FAR4, 443))
        made.send(b"x")
        made.settimeout(0.1)
        while time.monotonic() - start < seconds:
            try:
                if not made.recv(4096):
                    break
                heard = time.monotonic() - start
            except TimeoutError:
                continue
            except OSError:
                break
    return heard


@pytest.mark.parametrize("address", [FAR4, FAR6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_end_cuts_what_is_established(lab: Lab, protocol: str, address: str) -> None:
    lab.serve(lab.i, (protocol, address, 443), chatter=True)
    lab.load({"outbound": [["tcp", "2001:db8:f::/48", 1, 1]]})  # IPv6 is open, to somewhere else
    assert lab.inside(lab.c, lambda: go(protocol, address)) != "open"
    records.lease_add(lab.path, protocol, address, 443, 2000)
    sent, heard, failed = lab.inside(lab.c, lambda: listen(protocol, address, 4))
    assert 1 < sent < 3 and 1 < heard < 3 and failed
    assert records.leases(lab.path) == []


def go(protocol: str, address: str) -> str:
    from tests.net import lab as labs

    return labs.tcp(address, 443) if protocol == "tcp" else labs.udp(address, 443)


@either
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_end_cuts_what_only_the_far_side_sends(lab: Lab, protocol: str) -> None:
    """A download: for UDP the container sends nothing at all, so that nothing of it could be looked up."""
    lab.serve(lab.i, (protocol, FAR4, 443), chatter=True)
    lab.load({})
    records.lease_add(lab.path, protocol, FAR4, 443, 2000)
    heard = lab.inside(lab.c, lambda: silent(protocol, 4))
    assert 1.5 < heard < 3


@either
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_revocation_cuts_at_once(lab: Lab, protocol: str) -> None:
    lab.serve(lab.i, (protocol, FAR4, 443), chatter=True)
    lab.load({})
    records.lease_add(lab.path, protocol, FAR4, 443, 60_000)
    child, pipe = lab.fork(lab.c, lambda: silent(protocol, 2.5))
    time.sleep(1)
    assert records.lease_del(lab.path, protocol, FAR4, 443)
    assert not records.lease_del(lab.path, protocol, FAR4, 443)
    assert 0.5 < lab.result(child, pipe) < 1.6
    assert go_from(lab, protocol) != "open"


def go_from(lab: Lab, protocol: str) -> Any:
    return lab.inside(lab.c, lambda: go(protocol, FAR4))


@either
def test_a_static_grant_beside_it_is_not_cut(lab: Lab) -> None:
    lab.serve(lab.i, ("tcp", FAR4, 443), chatter=True)
    lab.load({"outbound": [["tcp", FAR4, 443, 443]]})
    records.lease_add(lab.path, "tcp", FAR4, 443, 500)
    sent, heard, failed = lab.inside(lab.c, lambda: listen("tcp", FAR4, 1.5))
    assert sent > 1.3 and heard > 1.3 and not failed


def test_an_inbound_flow_outlives_leases(lab: Lab) -> None:
    lab.serve(lab.c, ("tcp", CONTAINER4, 443), chatter=True)
    lab.load({"inbound": [["tcp", 443, 443]]})
    sent, heard, failed = lab.inside(lab.i, lambda: listen("tcp", CONTAINER4, 1))
    assert sent > 0.8 and heard > 0.8 and not failed


def test_rows_say_what_is_leased(lab: Lab) -> None:
    lab.load({"outbound": [["udp", "2001:db8:1::/64", 1, 1]]})
    records.lease_add(lab.path, "tcp", FAR4, 443, 60_000)
    records.lease_add(lab.path, "udp", FAR6, 53, 5_000)
    (tcp, udp) = records.leases(lab.path)
    assert tcp[:4] == ("tcp", FAR4, 443, 60_000) and 50_000 < tcp[4] <= 60_000
    assert udp[:4] == ("udp", FAR6, 53, 5_000) and 0 < udp[4] <= 5_000


@either
def test_a_lease_anew_counts_from_now(lab: Lab) -> None:
    lab.load({})
    records.lease_add(lab.path, "tcp", FAR4, 443, 1_000)
    records.lease_add(lab.path, "tcp", FAR4, 443, 60_000)
    ((_, _, _, timeout, expires),) = records.leases(lab.path)
    assert timeout == 60_000 and expires > 50_000
    records.lease_add(lab.path, "tcp", FAR4, 443, 100)  # shorter, too
    time.sleep(0.3)
    assert records.leases(lab.path) == []
    records.lease_add(lab.path, "tcp", FAR4, 443, 60_000)  # what has ended can be leased again
    assert len(records.leases(lab.path)) == 1


@either
def test_what_cannot_be_leased(lab: Lab) -> None:
    with pytest.raises(HostError, match="not confined"):
        records.lease_add(lab.path, "tcp", FAR4, 443, 1000)
    lab.load({})
    for address in (METADATA, "0.1.2.3", "255.255.255.255", "239.1.1.1", "fe80::1", "ff02::1", "64:ff9b::a9fe:a9fe"):
        with pytest.raises(Refused, match="link-local"):
            records.lease_add(lab.path, "tcp", address, 443, 1000)
    with pytest.raises(Refused, match="IPv6 shut"):
        records.lease_add(lab.path, "tcp", FAR6, 443, 1000)
    for protocol, address, port, ttl in (
        ("sctp", FAR4, 1, 1),
        ("tcp", "x", 1, 1),
        ("tcp", "203.0.113.0/24", 1, 1),
        ("tcp", FAR4, 0, 1),
        ("tcp", FAR4, 65536, 1),
        ("tcp", FAR4, 1, 0),
        ("tcp", FAR4, 1, -1),
    ):
        with pytest.raises(Invalid):
            records.lease_add(lab.path, protocol, address, port, ttl)
    assert records.leases(lab.path) == []


@either
def test_full_leases_say_so(lab: Lab) -> None:
    from hooks import lock, nft
    from hooks.grants import KEY4

    lab.load({})
    keys = [KEY4.pack(6, bytes((203, 0, 113, n & 255)), 1 + (n >> 8)) for n in range(lock.LEASES)]
    with records.opened(lab.path) as kernel:
        kernel.ask(nft.batch([nft.lease(labels.TABLE, "leased", key, 60_000) for key in keys]), 1)
    assert len(records.leases(lab.path)) == lock.LEASES
    with pytest.raises(HostError, match="1024 leases are there"):
        records.lease_add(lab.path, "tcp", "198.51.100.1", 443, 1000)
