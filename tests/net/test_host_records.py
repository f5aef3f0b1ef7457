"""What the host's lock tells of what it rejects: each peer in a row, of one agent; no agent fills those of another."""

from __future__ import annotations

import socket
import time

import pytest

from hooks import fingerprint, host, host_rules, records
from tests.net.hostlab import FAR, GATEWAY, NEIGHBOUR, A, B, HostLab, packed
from tests.net.test_host import both, refused
from tests.net.test_leases import silent

BURST = 64


@pytest.fixture
def lab(host_lab: HostLab) -> HostLab:
    return host_lab


def rows(lab: HostLab, agent: str, since: float = 0) -> records.Records:
    found: records.Records = lab.inside(lab.h, lambda: records.of_agent(records.at_host(), packed(agent), since))
    return found


def peers(every: list[records.Row]) -> list[tuple[str, str, int, int]]:
    return [(protocol, address, port, packets) for protocol, address, port, packets, _ in every]


def since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def knock(lab: HostLab, name: str, ports: range) -> None:
    """One datagram to each port of a peer that is not granted."""

    def go() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            for port in ports:
                made.sendto(b"x", ("203.0.113.9", port))

    lab.inside(name, go)


def test_a_row_for_each_peer_out_and_in(lab: HostLab) -> None:
    lab.serve(lab.i, *both(FAR, 443, 444))
    lab.agent(A)
    lab.agent(B)
    assert lab.tcp(FAR, 443, lab.a) == "open" and lab.ping(FAR, lab.a) == "EHOSTUNREACH"  # granted, and no port at all
    for _ in range(2):
        assert refused(lab.tcp(FAR, 444, lab.a))
    assert refused(lab.udp(FAR, 443, lab.a)) and refused(lab.tcp(GATEWAY, 22, lab.a))
    assert refused(lab.tcp("169.254.169.254", 80, lab.a))
    assert refused(lab.tcp(A, 80, lab.h)) and refused(lab.tcp(A, 81, lab.l))
    assert refused(lab.tcp(FAR, 444, lab.b))
    found = rows(lab, A)
    assert peers(found["denied"]) == [
        ("tcp", GATEWAY, 22, 1),
        ("tcp", "169.254.169.254", 80, 1),
        ("tcp", FAR, 444, 2),
        ("udp", FAR, 443, 1),
    ]
    assert peers(found["refused"]) == [("tcp", GATEWAY, 80, 1), ("tcp", NEIGHBOUR, 81, 1)]
    assert all(packets * 28 <= size <= packets * 60 for every in found.values() for *_, packets, size in every)
    assert peers(rows(lab, B)["denied"]) == [("tcp", FAR, 444, 1)] and not rows(lab, B)["refused"]


def test_rows_change_nothing_that_is_compared_at_a_start(lab: HostLab) -> None:
    lab.agent(A)
    with records.opened(f"/run/netns/{lab.h}") as kernel:
        kept = fingerprint.taken(kernel)
        assert refused(lab.tcp(FAR, 444, lab.a)) and refused(lab.tcp(A, 80, lab.l)) and rows(lab, A)["denied"]
        assert fingerprint.intact(kernel, kept)


def test_one_agent_leaves_room_for_another(lab: HostLab) -> None:
    lab.agent(A)
    lab.agent(B)
    knock(lab, lab.a, range(1000, 1000 + 2 * BURST))
    found = peers(rows(lab, A)["denied"])
    assert BURST <= len(found) <= BURST + 4  # two more a minute
    knock(lab, lab.a, range(1000, 1001))
    assert peers(rows(lab, A)["denied"])[0] == ("udp", "203.0.113.9", 1000, 2)  # what is told is counted on
    knock(lab, lab.b, range(7, 8))
    assert peers(rows(lab, B)["denied"]) == [("udp", "203.0.113.9", 7, 1)]
    assert refused(lab.tcp(A, 80, lab.l)) and peers(rows(lab, A)["refused"]) == [("tcp", NEIGHBOUR, 80, 1)]


def test_whoever_tries_all_addresses_fills_no_rows(lab: HostLab) -> None:
    lab.agent(A)
    assert refused(lab.tcp("10.207.0.77", 80, lab.l)) and refused(lab.tcp(A, 80, lab.l))
    told = lab.on_host("nft", "list", "table", "inet", "agentshim")
    assert f"{A} . tcp . {NEIGHBOUR} . 80" in told and "10.207.0.77" not in told


def test_without_room_for_a_row_it_is_rejected_all_the_same(lab: HostLab) -> None:
    lab.serve(lab.i, *both(FAR, 444, 445))
    lab.agent(A)
    small = host_rules.tables()
    for name in host.REJECTED:
        lab.on_host("nft", "-f", "-", text="flush chain inet agentshim deny_out; flush chain inet agentshim deny_in")
        lab.on_host("nft", "delete", "set", "inet", "agentshim", name)
        small = small.replace(f" {name} {{ type ipv4_addr . inet_proto . ipv4_addr . inet_service; size 65535",
                              f" {name} {{ type ipv4_addr . inet_proto . ipv4_addr . inet_service; size 1")  # fmt: skip
    lab.on_host("nft", "-f", "-", text=small)
    assert refused(lab.tcp(FAR, 444, lab.a)) and refused(lab.tcp(FAR, 445, lab.a)) and refused(lab.udp(FAR, 444, lab.a))
    assert len(rows(lab, A)["denied"]) == 1


def test_rows_of_whoever_had_the_address_before_are_left_out(lab: HostLab) -> None:
    lab.agent(A)
    knock(lab, lab.a, range(7, 8))
    begun = since_boot()
    assert len(rows(lab, A, begun - 5)["denied"]) == 1
    time.sleep(0.2)
    now = since_boot()
    knock(lab, lab.a, range(7, 9))
    assert peers(rows(lab, A, now)["denied"]) == [("udp", "203.0.113.9", 8, 1)]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_answers_that_come_too_late_are_nobodys_call(lab: HostLab, protocol: str) -> None:
    lab.serve(lab.i, (protocol, FAR, 443), chatter=True)
    lab.bridges["web"] = lab.up("web", "3d" * 32, {"mode": "isolated"})
    lab.agent(A)
    lab.lease(A, protocol, FAR, 443, 1000)
    lab.inside(lab.a, lambda: silent(protocol, 3))
    assert rows(lab, A)["refused"] == []


def test_no_rows_where_the_rules_have_gone(lab: HostLab) -> None:
    lab.agent(A)
    lab.on_host("nft", "delete", "table", "inet", "agentshim")
    assert rows(lab, A) == {"denied": [], "refused": []}
