"""The lock on the real kernel: what an agent in the container's namespace, and who is outside, may and may not do."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hooks import lock, nft, plan, records
from shim.errors import HostError
from tests.net import lab as labs
from tests.net.hostlab import send_icmp
from tests.net.lab import CONTAINER4, CONTAINER6, FAR4, FAR6, INTERNET4, INTERNET6, METADATA, Lab, either, spoofed

REFUSED = {"tcp": "ECONNREFUSED", "udp": "EPERM"}  # a RST; send itself fails, and an ICMP error follows


def both(address: str, *ports: int) -> list[tuple[str, str, int]]:
    return [(protocol, address, port) for port in ports for protocol in ("tcp", "udp")]


def test_before_the_lock_all_is_open(lab: Lab) -> None:
    """The control: what later is refused is refused by the lock, not by the lab."""
    lab.serve(lab.i, *both(FAR4, 443), *both(FAR6, 443), *both(METADATA, 80))
    lab.serve(lab.c, *both("127.0.0.11", 53), *both(CONTAINER4, 8080))
    assert (lab.tcp(FAR4, 443), lab.udp(FAR4, 443), lab.ping(FAR4)) == ("open",) * 3
    assert (lab.tcp(FAR6, 443), lab.udp(FAR6, 443), lab.ping(FAR6)) == ("open",) * 3
    assert (lab.tcp(METADATA, 80), lab.udp("127.0.0.11", 53)) == ("open",) * 2
    assert (lab.tcp(CONTAINER4, 8080, lab.i), lab.udp(CONTAINER4, 8080, lab.i)) == ("open",) * 2


@either
def test_outbound_only_as_granted_and_refused_at_once(lab: Lab) -> None:
    lab.serve(lab.i, *both(FAR4, 443, 444), *both("203.0.113.6", 443))
    lab.load({"outbound": [["tcp", FAR4, 443, 443], ["udp", FAR4, 444, 444]]})
    assert lab.tcp(FAR4, 443) == "open"
    assert lab.udp(FAR4, 444) == "open"
    assert lab.tcp(FAR4, 444) == lab.tcp("203.0.113.6", 443) == REFUSED["tcp"]
    assert lab.udp(FAR4, 443) == lab.udp("203.0.113.6", 443) == REFUSED["udp"]
    assert set(lab.rows("flows")) == {("tcp", FAR4, 443), ("udp", FAR4, 444)}
    assert set(lab.rows("denied")) == {
        ("tcp", FAR4, 444),
        ("tcp", "203.0.113.6", 443),
        ("udp", FAR4, 443),
        ("udp", "203.0.113.6", 443),
    }


@either
def test_a_refused_datagram_is_answered_at_once(lab: Lab) -> None:
    """Who does not look at what send says gets the ICMP error, without waiting."""
    lab.load({})

    def ask() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.settimeout(1)
            made.connect((FAR4, 53))
            with pytest.raises(PermissionError):
                made.send(b"x")
            return labs.attempt(lambda: bool(made.recv(1)))

    assert lab.inside(lab.c, ask) == "EHOSTUNREACH"


def test_networks_and_port_ranges_end_where_they_say(lab: Lab) -> None:
    """198.51.100.64/26 is .64 to .127; a host on all ports inside a network on one overlaps it."""
    inside = ["198.51.100.64", "198.51.100.100", "198.51.100.127"]
    outside = ["198.51.100.63", "198.51.100.128"]
    lab.serve(lab.i, *[one for a in inside + outside for one in both(a, 999, 1000, 1001, 1010, 1011)])
    lab.load(
        {
            "outbound": [
                ["tcp", "198.51.100.64/26", 1000, 1010],
                ["udp", "198.51.100.64/26", 1000, 1010],
                ["tcp", "198.51.100.100", 1001, 1011],
            ]
        }
    )
    for address in inside:
        for go, kind in ((lab.tcp, "tcp"), (lab.udp, "udp")):
            assert [go(address, port) for port in (1000, 1001, 1010)] == ["open"] * 3
            assert go(address, 999) == REFUSED[kind]
        assert lab.udp(address, 1011) == REFUSED["udp"]
        assert lab.tcp(address, 1011) == ("open" if address.endswith(".100") else REFUSED["tcp"])
    for address in outside:
        assert lab.tcp(address, 1000) == REFUSED["tcp"] and lab.udp(address, 1000) == REFUSED["udp"]


def test_any_is_tcp_and_udp_to_anywhere_but_the_hard_deny(lab: Lab) -> None:
    lab.batch(lab.i, "route add local 100.100.100.200 dev lo", "route add local fd00:ec2::254 dev lo")
    lab.batch(lab.i, "route add local 64:ff9b::/96 dev lo")
    hard = [METADATA, "100.100.100.200", "fd00:ec2::254", "64:ff9b::a9fe:a9fe"]
    lab.serve(lab.i, *both(FAR4, 1, 65535), *both(FAR6, 443), *[one for a in hard for one in both(a, 80)])
    lab.load({"outbound": "any"})
    assert [lab.tcp(FAR4, 1), lab.udp(FAR4, 65535), lab.tcp(FAR6, 443), lab.udp(FAR6, 443)] == ["open"] * 4
    for address in hard:
        assert (lab.tcp(address, 80), lab.udp(address, 80)) == (REFUSED["tcp"], REFUSED["udp"])
    assert lab.ping(FAR4) == "EPERM"
    assert ("tcp", METADATA, 80) in lab.rows("denied") and ("udp", "fd00:ec2::254", 80) in lab.rows("denied")


def test_a_literal_grant_does_not_open_the_metadata_service(lab: Lab) -> None:
    """The hard deny comes before the grants."""
    lab.serve(lab.i, *both(METADATA, 80))
    lab.load({"outbound": [["tcp", METADATA, 80, 80], ["udp", "169.254.0.0/16", 80, 80]]})
    assert (lab.tcp(METADATA, 80), lab.udp(METADATA, 80)) == (REFUSED["tcp"], REFUSED["udp"])


def test_ipv6_is_shut_unless_granted(lab: Lab) -> None:
    lab.serve(lab.i, *both(FAR6, 443), *both(INTERNET6, 443))
    lab.serve(lab.c, *both(CONTAINER6, 8080))
    lab.load({"outbound": [["tcp", FAR4, 443, 443]], "inbound": [["tcp", 8080, 8080]]})
    assert (lab.tcp(FAR6, 443), lab.udp(FAR6, 443)) == (REFUSED["tcp"], REFUSED["udp"])
    assert lab.tcp(CONTAINER6, 8080, lab.i) == "silence"
    counted = lab.nft("list", "chain", "inet", "agentshim", "output6")
    assert "counter packets 0" not in counted and "counter packets" in counted


def test_ipv6_as_granted_with_neighbour_discovery(lab: Lab) -> None:
    lab.serve(lab.i, *both(FAR6, 443, 444))
    lab.serve(lab.c, *both(CONTAINER6, 8080, 8081))
    lab.load({"outbound": [["tcp", "2001:db8::/64", 443, 443]], "inbound": [["tcp", 8080, 8080]], "icmp": True})
    for name in (lab.c, lab.i):  # nobody knows anybody's hardware address
        lab.batch(name, "neigh flush dev " + ("eth0" if name == lab.c else "up0"))
    assert lab.inside(lab.c, lambda: labs.tcp(FAR6, 443, timeout=5)) == "open"
    lab.batch(lab.i, "neigh flush dev up0")
    # The kernel asks for a neighbour once a second, and on a new link the first question may go unheard.
    assert lab.inside(lab.i, lambda: labs.tcp(CONTAINER6, 8080, timeout=5)) == "open"
    assert (lab.ping(FAR6), lab.ping(CONTAINER6, lab.i)) == ("open", "open")
    assert (lab.tcp(FAR6, 444), lab.udp(FAR6, 443)) == (REFUSED["tcp"], REFUSED["udp"])
    assert lab.tcp(CONTAINER6, 8081, lab.i) == "ECONNREFUSED"
    assert lab.udp(CONTAINER6, 8080, lab.i) == "silence"
    assert lab.rows("refused").keys() == {("tcp", INTERNET6, 8081), ("udp", INTERNET6, 8080)}


@pytest.mark.parametrize("dns", [False, True])
def test_the_engines_resolver_on_lo_only_with_dns(lab: Lab, dns: bool) -> None:
    """Docker's 127.0.0.11 forwards from the host's network: a tunnel through any lock. Docker sends what goes to its
    port 53 on to another port there, so all ports are shut.
    """
    lab.serve(lab.c, *both("127.0.0.11", 53, 40000), *both("127.0.0.1", 53, 8000))
    lab.serve(lab.i, *both(INTERNET4, 53))
    lab.load({"outbound": "any" if not dns else [], "dns": dns, "resolvers": [INTERNET4] if dns else []})
    tcp, udp = ("open", "open") if dns else (REFUSED["tcp"], REFUSED["udp"])
    assert [lab.tcp("127.0.0.11", port) for port in (53, 40000)] == [tcp, tcp]
    assert [lab.udp("127.0.0.11", port) for port in (53, 40000)] == [udp, udp]
    assert [lab.tcp("127.0.0.1", 8000), lab.udp("127.0.0.1", 53)] == ["open", "open"]
    assert [lab.tcp(INTERNET4, 53), lab.udp(INTERNET4, 53)] == ["open", "open"]


@either
def test_resolvers_only_on_port_53(lab: Lab) -> None:
    lab.serve(lab.i, *both(INTERNET4, 53, 54))
    lab.load({"dns": True, "resolvers": [INTERNET4]})
    assert [lab.tcp(INTERNET4, 53), lab.udp(INTERNET4, 53)] == ["open", "open"]
    assert (lab.tcp(INTERNET4, 54), lab.udp(INTERNET4, 54)) == (REFUSED["tcp"], REFUSED["udp"])


@either
def test_lo_is_open_also_by_the_containers_own_address(lab: Lab) -> None:
    lab.serve(lab.c, *both("127.0.0.1", 8000), *both("::1", 8000), *both(CONTAINER4, 8000))
    lab.load({})
    for address in ("127.0.0.1", "::1", CONTAINER4):
        assert (lab.tcp(address, 8000), lab.udp(address, 8000)) == ("open", "open")
    assert lab.ping("127.0.0.1") == "open"


@pytest.mark.parametrize("icmp", [False, True])
def test_echo_both_ways_only_if_granted(lab: Lab, icmp: bool) -> None:
    lab.load({"outbound": [["tcp", "0.0.0.0/0", 0, 65535]], "icmp": icmp})
    assert lab.ping(FAR4) == ("open" if icmp else "EPERM")
    assert lab.ping(CONTAINER4, lab.i) == ("open" if icmp else "silence")


@pytest.mark.parametrize("icmp", [False, True])
def test_a_raw_echo_with_the_capability_is_filtered_too(lab: Lab, icmp: bool) -> None:
    """Raw IP sockets pass the output hook; other protocols than the granted ones never pass."""
    lab.load({"outbound": "any", "icmp": icmp})

    def raw() -> tuple[str, str]:
        said = []
        for protocol, data in ((1, struct.pack(">BBHHH", 8, 0, 0xF7FF - 1, 0, 1)), (47, b"gre!"), (132, bytes(12))):
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as made:
                made.settimeout(0.3)
                made.connect((FAR4, 0))

                def go(made: socket.socket = made, data: bytes = data) -> bool:
                    made.send(data)
                    return bool(made.recv(100))

                said.append(labs.attempt(go))
        return said[0], "|".join(said[1:])

    echo, others = lab.inside(lab.c, raw)
    assert (echo, others) == ("open" if icmp else "EPERM", "EPERM|EPERM")


def test_inbound_only_as_granted_and_answered(lab: Lab) -> None:
    lab.serve(lab.c, *both(CONTAINER4, 8080, 8081, 8090, 8091))
    lab.load({"inbound": [["tcp", 8080, 8090], ["udp", 8081, 8081]]})
    assert [lab.tcp(CONTAINER4, port, lab.i) for port in (8080, 8081, 8090)] == ["open"] * 3
    assert lab.tcp(CONTAINER4, 8091, lab.i) == "ECONNREFUSED"
    assert lab.udp(CONTAINER4, 8081, lab.i) == "open"
    assert lab.udp(CONTAINER4, 8080, lab.i) == "silence"
    assert lab.rows("refused").keys() == {("tcp", INTERNET4, 8091), ("udp", INTERNET4, 8080)}
    assert lab.rows("flows") == {}  # answers are not flows of ours


def test_inbound_is_no_way_out(lab: Lab) -> None:
    """A port that is granted inbound answers who came; nothing begins from it."""
    lab.serve(lab.i, *both(FAR4, 443))
    lab.load({"inbound": [["tcp", 8080, 8080], ["udp", 8080, 8080]]})

    def from_that_port() -> tuple[str, str]:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
            stream.bind(("", 8080))
            said = errno.errorcode.get(stream.connect_ex((FAR4, 443)), "open")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.bind(("", 8080))
            made.settimeout(0.5)
            made.connect((FAR4, 443))
            return said, labs.attempt(lambda: made.send(b"x") == 1 and bool(made.recv(1)))

    assert lab.inside(lab.c, from_that_port) == (REFUSED["tcp"], REFUSED["udp"])


def test_inbound_any_is_not_outbound(lab: Lab) -> None:
    lab.serve(lab.i, *both(FAR4, 443))
    lab.serve(lab.c, *both(CONTAINER4, 7))
    lab.load({"inbound": "any"})
    assert (lab.tcp(CONTAINER4, 7, lab.i), lab.udp(CONTAINER4, 7, lab.i)) == ("open", "open")
    assert (lab.tcp(FAR4, 443), lab.udp(FAR4, 443)) == (REFUSED["tcp"], REFUSED["udp"])


def test_an_icmp_error_about_a_granted_flow_comes_in(lab: Lab) -> None:
    """Nobody listens: the far host's "port unreachable" reaches the socket, else path MTU discovery would fail too."""
    lab.load({"outbound": [["udp", FAR4, 9, 9]], "inbound": [["udp", 9, 9]]})
    assert lab.udp(FAR4, 9) == "ECONNREFUSED"
    assert lab.udp(CONTAINER4, 9, lab.i) == "ECONNREFUSED"


@either
def test_counters_are_what_was_sent(lab: Lab) -> None:
    """20 datagrams of 100 bytes are 20 packets of 128: IP and UDP headers count, Ethernet does not; answers do not."""
    lab.serve(lab.i, ("udp", FAR4, 443), ("tcp", FAR4, 443))
    lab.load({"outbound": [["udp", FAR4, 443, 443], ["tcp", FAR4, 443, 443]]})

    def send(port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            for _ in range(20):
                done = made.sendto(bytes(100), (FAR4, port)) if port == 443 else refused(made, port)
                assert done == 100

    lab.inside(lab.c, lambda: send(443))
    assert lab.rows("flows")["udp", FAR4, 443] == (20, 20 * 128)
    lab.inside(lab.c, lambda: send(444))
    assert lab.rows("denied")["udp", FAR4, 444] == (20, 20 * 128)
    lab.inside(lab.c, lambda: upload(1000, 1000))
    packets, octets = lab.rows("flows")["tcp", FAR4, 443]
    assert octets - 10**6 == packets * 52 + 8  # 20 of IP, 32 of TCP with timestamps; the SYN has 8 more


def refused(made: socket.socket, port: int) -> int:
    with pytest.raises(PermissionError):
        made.sendto(bytes(100), (FAR4, port))
    return 100


def upload(times: int, size: int) -> None:
    with socket.create_connection((FAR4, 443), 2) as made:
        made.settimeout(2)
        for _ in range(times):
            made.sendall(bytes(size))
            left = size
            while left:
                left -= len(made.recv(left))


def test_full_flows_fail_closed(lab: Lab) -> None:
    places = [("tcp", FAR4, port) for port in range(1000, 1006)]
    lab.serve(lab.i, *places)
    lab.load({"outbound": [["tcp", FAR4, 1, 65535]]}, rows=4)
    said = [lab.tcp(FAR4, port) for _, _, port in places]
    assert said == ["open"] * 4 + [REFUSED["tcp"]] * 2
    assert len(lab.rows("flows")) == 4
    assert lab.tcp(FAR4, 1000) == "open"
    assert lab.rows("denied").keys() == {("tcp", FAR4, 1004), ("tcp", FAR4, 1005)}


@either
def test_full_denied_still_denies(lab: Lab) -> None:
    lab.load({}, rows=2)
    assert [lab.tcp(FAR4, port) for port in range(1, 6)] == [REFUSED["tcp"]] * 5
    assert len(lab.rows("denied")) == 2


def test_a_second_load_changes_nothing(lab: Lab) -> None:
    lab.load({"outbound": [["tcp", FAR4, 443, 443]]})
    before = lab.rules()
    with pytest.raises(HostError, match=r"step 1.*File exists"):
        lab.load({"outbound": "any"})
    assert lab.rules() == before


def test_a_failed_plan_is_undone(lab: Lab) -> None:
    (good,) = lock.steps({"mode": "confine"})
    with pytest.raises(HostError, match="step 2"):
        lab.replay((good, good))
    assert lab.rules() == []


def test_a_batch_with_one_bad_message_leaves_nothing(lab: Lab) -> None:
    chains = {"output": [nft.lookup("absent")]}
    with pytest.raises(HostError, match="step 1"):
        lab.replay((lock.step(lock.sets([], [], [], 1), chains, "a rule that is none"),))
    assert lab.rules() == []


@either
def test_every_capability_in_a_user_namespace_of_ones_own_undoes_nothing(lab: Lab) -> None:
    """`unshare -Ur` gives an agent root over a new user namespace; this network belongs to the old one."""
    lab.serve(lab.i, ("tcp", FAR4, 443))
    lab.load({})
    before = lab.rules()
    tries = (
        "nft flush ruleset; nft delete table inet agentshim; nft add rule inet agentshim output accept;"
        "nft insert rule inet agentshim output accept; nft add table inet mine; nft delete chain inet agentshim input;"
        "nft add element inet agentshim leased '{ tcp . 203.0.113.5 . 443 timeout 1h }'; ip link set eth0 down; id -u"
    )

    def agent() -> tuple[str, str]:
        done = subprocess.run(["unshare", "-Ur", "sh", "-c", tries], capture_output=True, text=True)
        return done.stdout.strip(), done.stderr

    root, complaints = lab.inside(lab.c, agent, uid=labs.NOBODY)
    if root != "0":
        pytest.skip(f"NO USER NAMESPACES HERE: AN AGENT WITH ONE IS NOT TESTED: {complaints[:200]}")
    assert complaints.count("Operation not permitted") >= 8, complaints
    assert lab.rules() == before
    assert lab.tcp(FAR4, 443) == REFUSED["tcp"]


@either
def test_fragments_of_ones_own_making_do_not_pass(lab: Lab) -> None:
    """IP_NODEFRAG: a later fragment has no ports to look up."""
    lab.load({"outbound": [["udp", FAR4, 443, 443]]})

    def fragments() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
            made.setsockopt(socket.IPPROTO_IP, 22, 1)  # IP_NODEFRAG
            head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 0, 7, 185, 64, 17, 0, bytes(4), socket.inet_aton(FAR4))
            return labs.attempt(lambda: made.sendto(head + bytes(64), (FAR4, 0)) == 84)

    assert lab.inside(lab.c, fragments) == "EPERM"
    assert lab.rows("flows") == {}


def test_a_spoofed_caller_on_lo_opens_no_way_back_to_it(lab: Lab) -> None:
    """With NET_RAW one can let conntrack see a flow that seems to come from outside, over lo, and then "answer" it:
    to the metadata service, or to a far host from a port that is not granted inbound.
    """
    lab.serve(lab.i, ("udp", METADATA, 80), ("udp", FAR4, 80))
    lab.load({"inbound": [["udp", 8080, 8080]]})

    assert lab.inside(lab.c, lambda: spoofed(METADATA, 80, 8080)) == REFUSED["udp"]
    assert lab.inside(lab.c, lambda: spoofed(FAR4, 80, 8081)) == REFUSED["udp"]


def free6(port: int) -> str:
    """As `spoofed`, with no right at all: IPv6 binds to any address where IPV6_FREEBIND says so."""
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.bind((CONTAINER6, port))
    made.settimeout(0.5)
    caller = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    caller.setsockopt(socket.IPPROTO_IPV6, 78, 1)
    caller.bind((FAR6, 5353))

    def go() -> bool:
        caller.sendto(b"x", (CONTAINER6, port))
        made.recvfrom(1)
        return made.sendto(b"y", (FAR6, 5353)) == 1 and made.recv(9) != b""

    return labs.attempt(go)


def test_a_caller_that_is_no_address_of_ours_is_not_heard_on_lo(lab: Lab) -> None:
    lab.serve(lab.i, ("udp", FAR6, 5353))
    lab.load({"outbound": [["tcp", "2001:db8:1::1", 443, 443]], "inbound": [["udp", 8080, 8080]]})
    assert lab.inside(lab.c, lambda: free6(8080), labs.NOBODY) == "EPERM"
    assert lab.rows("flows") == {}


def test_what_we_tell_ourselves_is_heard(lab: Lab) -> None:
    """The control: with IPv6 open, ::1 and our own addresses are."""
    lab.serve(lab.c, ("udp", CONTAINER6, 53), ("tcp", "::1", 53))
    lab.load({"outbound": [["tcp", "2001:db8:1::1", 443, 443]]})
    assert lab.udp(CONTAINER6, 53) == "open"
    assert lab.tcp("::1", 53) == "open"


def test_interfaces_that_appear_later_are_locked_too(lab: Lab) -> None:
    """docker network connect: another interface, another address."""
    lab.load({"inbound": [["tcp", 8080, 8080]]})
    labs.ip("-n", lab.i, "link", "add", "up1", "type", "veth", "peer", "name", "eth9", "netns", lab.c)
    lab.batch(lab.i, "addr add 10.98.0.1/24 dev up1", "link set up1 up")
    lab.batch(lab.c, "addr add 10.98.0.2/24 dev eth9", "link set eth9 up")
    lab.serve(lab.i, ("tcp", "10.98.0.1", 443))
    lab.serve(lab.c, *both("10.98.0.2", 8080, 8081))
    assert lab.tcp("10.98.0.1", 443) == REFUSED["tcp"]
    assert lab.tcp("10.98.0.2", 8080, lab.i) == "open"
    assert lab.tcp("10.98.0.2", 8081, lab.i) == "ECONNREFUSED"


def test_records_of_no_lock_say_so(lab: Lab) -> None:
    with pytest.raises(HostError, match="not confined"):
        records.read(lab.path)
    with pytest.raises(HostError, match="not there"):
        records.read("/run/netns/absent")
    with pytest.raises(HostError, match="Invalid argument"):
        records.read("/proc/self/ns/mnt")
    assert os.readlink("/proc/self/ns/net") == os.readlink(f"/proc/{os.getppid()}/ns/net")


def test_a_thousand_grants_load_and_hold(lab: Lab) -> None:
    grants: list[Any] = [["tcp", f"198.18.{i // 250}.{i % 250}", 443, 443] for i in range(1000)]
    lab.serve(lab.i, ("tcp", FAR4, 443), ("tcp", "203.0.113.6", 443))
    steps = lock.steps({"mode": "confine", "outbound": [*grants, ["tcp", FAR4, 443, 443]]})
    assert plan.decode(plan.encode(steps))[0].do == steps[0].do
    start = time.monotonic()
    lab.replay(steps)
    assert time.monotonic() - start < 2
    assert (lab.tcp(FAR4, 443), lab.tcp("203.0.113.6", 443)) == ("open", REFUSED["tcp"])


def test_whatever_overlaps_loads(lab: Lab) -> None:
    """The kernel refuses elements that overlap: none may be left, whatever was listed."""
    draw = random.Random(4)
    for _ in range(20):
        listed: list[Any] = []
        for _ in range(draw.randrange(1, 30)):
            ports = sorted(draw.choice((0, 1, 80, 443, 444, 65535)) for _ in range(2))
            net = draw.choice(("10.0.0.{}/{}", "2001:db8::{}/{}")).format(draw.choice((0, 1, 7)), draw.randrange(33))
            listed.append([draw.choice(("tcp", "udp")), net, *ports])
        inbound = [[one[0], *one[2:]] for one in listed]
        lab.load({"outbound": listed, "inbound": inbound})
        lab.nft("delete", "table", "inet", "agentshim")


def test_multicast_and_broadcast_are_not_any(lab: Lab) -> None:
    lab.load({"outbound": "any"})

    def send(address: str) -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            return labs.attempt(lambda: made.sendto(b"x", (address, 5353)) == 1)

    for address in ("224.0.0.251", "239.255.255.250", "255.255.255.255", "240.0.0.1"):
        assert lab.inside(lab.c, partial(send, address)) == "EPERM", address
    assert lab.inside(lab.c, lambda: send(FAR4)) == "open"


@either
def test_a_socket_bound_to_lo_reaches_nobody_outside(lab: Lab) -> None:
    """SO_BINDTODEVICE needs no capability; with forwarding on, what goes out by lo could come back and be sent on."""
    lab.serve(lab.i, *both(FAR4, 443))
    lab.inside(lab.c, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
    lab.load({})

    def by_lo() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
            made.bind((CONTAINER4, 0))
            made.settimeout(0.3)
            made.connect((FAR4, 443))
            return labs.attempt(lambda: made.send(b"x") == 1 and bool(made.recv(1)))

    assert lab.inside(lab.c, by_lo, uid=labs.NOBODY) != "open"


@pytest.mark.parametrize("grant", ["lease", "host", "range"])
def test_icmp_errors_come_in_as_long_as_their_flow_is_granted(lab: Lab, grant: str) -> None:
    """The far host's kernel sends "port unreachable" about a flow; after the lease's end nothing more comes in."""
    outbound = {"lease": [], "host": [["udp", FAR4, 9, 9]], "range": [["udp", FAR4, 9, 10]]}[grant]
    lab.load({"outbound": outbound})
    if grant == "lease":
        records.lease_add(lab.path, "udp", FAR4, 9, 60_000)
    assert lab.udp(FAR4, 9) == "ECONNREFUSED"
    assert lab.inside(lab.c, lambda: told_late(lab, lambda: None)) == "ECONNREFUSED"
    if grant == "lease":
        end = lab.inside(lab.c, lambda: told_late(lab, lambda: records.lease_del(lab.path, "udp", FAR4, 9)))
        assert end == "silence"


def told_late(lab: Lab, before: Callable[[], object]) -> str:
    """In the container: a flow is begun, `before` happens, and an ICMP error about it is made by hand outside."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(0.4)
        made.connect((FAR4, 9))
        made.send(b"x")
        ours = made.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            made.recv(1)  # the kernel's own: nobody listens
        before()
        lab.inside(lab.i, lambda: unreachable(ours))
        return labs.attempt(lambda: bool(made.recv(1)))


def unreachable(port: int) -> None:
    ends = socket.inet_aton(CONTAINER4) + socket.inet_aton(FAR4)
    about = struct.pack(">BBHHHBBH", 0x45, 0, 29, 7, 0, 64, 17, 0) + ends + struct.pack(">HHHH", port, 9, 9, 0)
    send_icmp(struct.pack(">BBHI", 3, 3, 0, 0), about, CONTAINER4, FAR4)


def test_icmp_errors_about_answers_of_ours_come_in(lab: Lab) -> None:
    """Path MTU discovery of a server: the error is about what the container sent as an answer."""
    lab.load({"inbound": [["udp", 8080, 8080]]})

    def server() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.bind((CONTAINER4, 8080))
            made.settimeout(2)
            _, peer = made.recvfrom(10)
            made.connect(peer)
            time.sleep(0.3)  # the caller has gone
            made.send(b"x")
            return labs.attempt(lambda: bool(made.recv(1)))

    child, pipe = lab.fork(lab.c, server)
    time.sleep(0.2)
    lab.inside(lab.i, lambda: labs.udp(CONTAINER4, 8080, timeout=0.01))
    assert lab.result(child, pipe) == "ECONNREFUSED"
