"""The host's lock on the real kernel: what agents, and who is outside, may and may not do. The link is weak, and there
is no lock inside: the host's tables stand alone.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from functools import partial
from pathlib import Path

import pytest

from hooks import fingerprint, host, host_rules, records
from hooks.labels import host_end, mac
from tests.net import lab as labs
from tests.net.hostlab import (
    DOCKER,
    DOCKER0,
    ELSEWHERE,
    FAR,
    GATEWAY,
    HOST_LAN,
    HOST_OUT,
    METADATA,
    NEIGHBOUR,
    OTHER_GATEWAY,
    A,
    B,
    HostLab,
    arp,
    datagram,
    frame,
    packed,
)
from tests.net.test_leases import listen, silent

BRIDGE_MAC = mac(packed(GATEWAY))
PUBLISHED = [("127.0.0.1", 8080, 80, "tcp"), ("127.0.0.1", 8080, 80, "udp"), (HOST_LAN, 8081, 80, "tcp")]


# br_netfilter shows bridged packets to the tables of inet, and answers them around the output hook: a host may have it.
either_way = pytest.mark.parametrize("lab", ["br_netfilter", "bare"], indirect=True)


@pytest.fixture
def lab(request: pytest.FixtureRequest, host_lab: HostLab) -> HostLab:
    shown = int(getattr(request, "param", "bare") == "br_netfilter")
    there = Path("/proc/sys/net/bridge").exists()
    if shown and not there:
        pytest.skip("NO br_netfilter HERE: WHAT IT SHOWS TO THE HOST'S TABLES IS NOT TESTED")
    if there:
        host_lab.on_host("sysctl", "-qw", f"net.bridge.bridge-nf-call-iptables={shown}")
    return host_lab


def refused(said: str) -> bool:
    """Answered, within 100 ms."""
    return said in ("ECONNREFUSED", "EHOSTUNREACH")


def connected(made: socket.socket, address: str, port: int) -> str:
    def go() -> bool:
        made.connect((address, port))
        return True

    return labs.attempt(go)


def both(address: str, *ports: int) -> list[tuple[str, str, int]]:
    return [(protocol, address, port) for port in ports for protocol in ("tcp", "udp")]


def without_rules(lab: HostLab) -> None:
    """The control of a test: what was refused is refused by the rules, and not by the lab."""
    lab.on_host("nft", "delete", "table", "inet", "agentshim")
    for family in ("bridge", "arp"):
        lab.on_host("nft", "delete", "table", family, "agentshim")
    masquerade = (
        "table ip t { chain c { type nat hook postrouting priority 100; ip saddr 10.207.0.0/16 masquerade; }; }"
    )
    lab.on_host("nft", "-f", "-", text=masquerade)


# From inside


@either_way
@pytest.mark.parametrize("strong", [False, True])
def test_outbound_only_as_granted_and_refused_within_a_second(lab: HostLab, strong: bool) -> None:
    lab.serve(lab.i, *both(FAR, 443, 53, 444), *both("203.0.113.6", 443), *both("198.51.100.7", 80, 90, 91))
    lab.agent(A, strong)
    assert (lab.tcp(FAR, 443, lab.a), lab.udp(FAR, 53, lab.a)) == ("open", "open")
    assert (lab.tcp("198.51.100.7", 80, lab.a), lab.tcp("198.51.100.7", 90, lab.a)) == ("open", "open")
    start = time.monotonic()
    for address, port in ((FAR, 444), (FAR, 53), ("203.0.113.6", 443), ("198.51.100.7", 91)):
        assert refused(lab.tcp(address, port, lab.a)), (address, port)
    assert time.monotonic() - start < 4
    assert refused(lab.udp(FAR, 443, lab.a)) and refused(lab.udp("198.51.100.7", 80, lab.a))
    assert lab.ping(FAR, lab.a) == "EHOSTUNREACH"
    without_rules(lab)
    assert (lab.tcp(FAR, 444, lab.a), lab.udp(FAR, 443, lab.a)) == ("open", "open")


@either_way
def test_nothing_private_no_metadata_nothing_of_the_host(lab: HostLab) -> None:
    lab.serve(lab.i, *both(METADATA, 80))
    lab.serve(lab.l, *both(NEIGHBOUR, 80))
    lab.serve(lab.d, *both(DOCKER, 80))
    lab.serve(lab.h, *both("0.0.0.0", 9000), *both("127.0.0.1", 9001))
    lab.agent(A)
    for address, port in (
        (METADATA, 80),
        (NEIGHBOUR, 80),
        (DOCKER, 80),
        *((one, 9000) for one in (GATEWAY, OTHER_GATEWAY, HOST_LAN, HOST_OUT, DOCKER0)),
        (GATEWAY, 9001),
    ):
        assert refused(lab.tcp(address, port, lab.a)), (address, port)
        assert lab.udp(address, port, lab.a) != "open", (address, port)
    without_rules(lab)
    for address, port in ((NEIGHBOUR, 80), (DOCKER, 80), (GATEWAY, 9000), (DOCKER0, 9000)):
        assert lab.tcp(address, port, lab.a) == "open", (address, port)


@either_way
def test_the_hosts_loopback_by_a_route_of_the_agents_own(lab: HostLab) -> None:
    """route_localnet is on where something is published: 127.0.0.1 of the host would take what comes by the bridge."""
    lab.serve(lab.h, ("udp", "127.0.0.1", 9001), ("tcp", "127.0.0.1", 9001))
    lab.agent(A)

    def ask(payload: bytes) -> None:
        lab.send(lab.a, frame(BRIDGE_MAC, mac(packed(A)), datagram(A, "127.0.0.1", 9001, payload)))

    assert not [
        one
        for one in lab.heard(lab.a, lambda: ask(b"one"))
        if one.endswith(b"one") and one[23] == 17 and one[12:14] == b"\x08\0"
    ]
    lab.on_host("nft", "flush", "chain", "inet", "agentshim", "input")
    lab.on_host("nft", "flush", "chain", "inet", "agentshim", "output")
    lab.on_host("nft", "flush", "chain", "inet", "agentshim", "postrouting")
    assert [one for one in lab.heard(lab.a, lambda: ask(b"two")) if one.endswith(b"two")]


@either_way
def test_other_agents_are_out_of_reach(lab: HostLab) -> None:
    """On the same bridge, by the gateway or by their hardware address, and on another bridge."""
    for address in (A, B, ELSEWHERE):
        lab.agent(address)
    lab.serve(lab.b, *both(B, 80))
    lab.serve(lab.o, *both(ELSEWHERE, 80))
    assert refused(lab.udp(ELSEWHERE, 80, lab.a))
    assert refused(lab.tcp(ELSEWHERE, 80, lab.a)) and refused(lab.tcp(B, 80, lab.a))
    # Nothing says so to a datagram for a sibling: the redirect that the kernel would send, which we drop, counts as one
    # ICMP error, and the next comes a second later.
    assert lab.udp(B, 80, lab.a) != "open"
    lab.batch(
        lab.a, f"neigh add {B} lladdr {mac(packed(B)).hex(':')} nud permanent dev eth0", f"route add {B} dev eth0"
    )
    assert lab.tcp(B, 80, lab.a) == "silence"
    packets = [frame(target, mac(packed(A)), datagram(A, B, 80, b"mark")) for target in (mac(packed(B)), b"\xff" * 6)]
    packets += [frame(mac(packed(B)), mac(packed(A)), arp(2, mac(packed(A)), GATEWAY, B), 0x0806)]
    packets += [
        frame(b"\xff" * 6, mac(packed(A)), b"mark", 0x88B5),
        frame(mac(packed(B)), mac(packed(A)), bytes(60), 0x86DD),
    ]
    assert lab.heard(lab.b, lambda: lab.send(lab.a, *packets)) == []
    without_rules(lab)
    assert len(lab.heard(lab.b, lambda: lab.send(lab.a, *packets))) >= 4


def test_ipv6_is_dropped(lab: HostLab) -> None:
    """Also where somebody has turned it on for the bridge, and both know each other."""
    lab.agent(A)
    lab.on_host("sysctl", "-qw", "net.ipv6.conf.as-web.disable_ipv6=0", "net.ipv6.conf.all.forwarding=1")
    lab.batch(
        lab.h, "addr add fd99::1/64 dev as-web nodad", f"neigh add fd99::5 lladdr {mac(packed(A)).hex(':')} dev as-web"
    )
    lab.batch(lab.a, "addr add fd99::5/64 dev eth0 nodad", f"neigh add fd99::1 lladdr {BRIDGE_MAC.hex(':')} dev eth0")
    lab.serve(lab.h, *both("fd99::1", 80))
    assert (lab.tcp("fd99::1", 80, lab.a), lab.udp("fd99::1", 80, lab.a)) == ("silence", "silence")
    assert lab.ping("fd99::1", lab.a) == "silence"
    without_rules(lab)
    assert lab.tcp("fd99::1", 80, lab.a) == "open"


def test_no_policy_grants_other_agents_nor_what_is_never_granted(lab: HostLab) -> None:
    """The whole Internet and the pool, granted in words: other agents and metadata come first."""
    everywhere = {"mode": "isolated", "outbound": [["tcp", "0.0.0.0/0", 0, 65535], ["udp", "0.0.0.0/0", 0, 65535]]}
    lab.bridges["web"] = lab.up("web", "4e" * 32, everywhere)
    for address in (A, B, ELSEWHERE):
        lab.agent(address)
    lab.serve(lab.b, *both(B, 80))
    lab.serve(lab.o, *both(ELSEWHERE, 80))
    lab.serve(lab.i, *both(METADATA, 80), *both(FAR, 80))
    lab.serve(lab.h, *both("0.0.0.0", 9000))
    lab.lease(A, "tcp", B, 80, 60_000)
    assert (lab.tcp(FAR, 80, lab.a), lab.udp(FAR, 80, lab.a)) == ("open", "open")
    for address, port in ((B, 80), (ELSEWHERE, 80), (METADATA, 80), (GATEWAY, 9000), (HOST_LAN, 9000)):
        assert refused(lab.tcp(address, port, lab.a)), (address, port)
        assert lab.udp(address, port, lab.a) != "open", (address, port)


def test_as_a_containers_start_links_it(lab: HostLab) -> None:
    """With the real link: the tables let through what they should, and the link is what they expect."""
    lab.serve(lab.i, *both(FAR, 443, 53, 444))
    lab.real(A, published=PUBLISHED, services=[("tcp", GATEWAY, 9000, 9000)])
    lab.serve(lab.a, *both("0.0.0.0", 80))
    lab.serve(lab.h, *both("0.0.0.0", 9000))
    assert (lab.tcp(FAR, 443, lab.a), lab.udp(FAR, 53, lab.a), lab.tcp(GATEWAY, 9000, lab.a)) == ("open",) * 3
    assert (
        refused(lab.tcp(FAR, 444, lab.a)) and refused(lab.tcp(HOST_LAN, 9000, lab.a)) and refused(lab.tcp(B, 1, lab.a))
    )
    assert (lab.tcp("127.0.0.1", 8080, lab.h), lab.udp("127.0.0.1", 8080, lab.h)) == ("open", "open")
    assert lab.tcp(HOST_LAN, 8081, lab.l) == "open" and refused(lab.tcp(A, 80, lab.l))


# Spoofing, with every capability


@either_way
def test_only_the_ports_own_hardware_address_and_ip_pass(lab: HostLab) -> None:
    lab.agent(A)
    lab.agent(B)
    mine, theirs = mac(packed(A)), mac(packed(B))
    every = {
        b"true": frame(BRIDGE_MAC, mine, datagram(A, FAR, 53, b"true")),
        b"ip--": frame(BRIDGE_MAC, mine, datagram(B, FAR, 53, b"ip--")),
        b"far-": frame(BRIDGE_MAC, mine, datagram("203.0.113.77", FAR, 53, b"far-")),
        b"mac-": frame(BRIDGE_MAC, theirs, datagram(A, FAR, 53, b"mac-")),
        b"both": frame(BRIDGE_MAC, theirs, datagram(B, FAR, 53, b"both")),
        b"tag-": frame(BRIDGE_MAC, mine, datagram(A, FAR, 53, b"tag-"), tag=b"\x81\0\0\x05"),
        b"qinq": frame(BRIDGE_MAC, mine, datagram(A, FAR, 53, b"qinq"), tag=b"\x88\xa8\0\x05"),
        b"gre-": frame(BRIDGE_MAC, mine, datagram(A, FAR, 53, b"gre-", kind=47)),
        b"sctp": frame(BRIDGE_MAC, mine, datagram(A, FAR, 53, b"sctp", kind=132)),
        b"frag": frame(BRIDGE_MAC, mine, datagram(A, "203.0.113.6", 53, b"frag", offset=0x2000)),
        b"opts": frame(BRIDGE_MAC, mine, datagram(A, FAR, 53, b"opts", bytes((1, 1, 1, 0)))),
    }

    def go() -> None:
        lab.send(lab.a, *every.values())

    said = lab.heard(lab.i, go)
    assert [key for key in every if any(one.endswith(key) for one in said)] == [b"true"]
    lab.on_host("nft", "flush", "chain", "bridge", "agentshim", "from_port")
    lab.on_host("nft", "add", "rule", "bridge", "agentshim", "from_port", "meta", "mark", "set", str(host.MARK))
    said = lab.heard(lab.i, go)  # the rules of the bridge alone make the difference
    assert {b"ip--", b"mac-", b"both"} <= {key for key in every if any(one.endswith(key) for one in said)}


def test_nobody_answers_arp_and_nothing_but_ip_goes_either_way(lab: HostLab) -> None:
    lab.agent(A)
    lab.agent(B)
    mine = mac(packed(A))
    asked = [frame(b"\xff" * 6, mine, arp(1, mine, A, target), 0x0806) for target in (GATEWAY, B, HOST_LAN)]
    link_local = [frame(bytes.fromhex("0180c200000e"), mine, arp(1, mine, A, GATEWAY), 0x0806)]

    def answers(*frames: bytes) -> int:
        said = lab.heard(lab.a, lambda: lab.send(lab.a, *frames))
        return len([one for one in said if one[12:14] == b"\x08\x06"])

    assert answers(*asked, *link_local) == 0
    assert A not in lab.on_host("ip", "neigh", "show", "dev", host_end(packed(A)))
    lab.on_host("nft", "delete", "table", "arp", "agentshim")
    assert (answers(*asked), answers(*link_local)) == (0, 1)
    lab.on_host("nft", "delete", "table", "bridge", "agentshim")
    assert answers(*asked) >= 2


def test_the_hosts_of_a_policy_are_none_that_the_hard_deny_has(lab: HostLab) -> None:
    """They are looked up first: the metadata service's address is granted here, and is not among them. If it were, a
    flow would still not begin.
    """
    lab.serve(lab.i, ("tcp", METADATA, 80))
    lab.agent(A)
    assert refused(lab.tcp(METADATA, 80, lab.a))
    hosts = f"hosts_{lab.bridges['web']['tag']}"
    assert METADATA not in lab.on_host("nft", "list", "set", "inet", "agentshim", hosts)
    element = f"{{ tcp . {METADATA} . 80 }}"
    lab.on_host("nft", "add", "element", "inet", "agentshim", hosts, element)
    assert refused(lab.tcp(METADATA, 80, lab.a))


@either_way
def test_frames_that_a_bridge_hands_to_the_port_itself(lab: HostLab) -> None:
    """01:80:c2:00:00:0e goes around the bridge's prerouting hook, and reaches the host as from the port, unmarked."""
    lab.serve(lab.h, ("udp", "0.0.0.0", 9000))
    lab.agent(A)
    targets = (GATEWAY, HOST_LAN, "224.0.0.1")
    around = [bytes.fromhex(f"0180c200000{last}") for last in "02e"]
    frames = [frame(one, mac(packed(A)), datagram(A, target, 9000, b"hello")) for target in targets for one in around]

    def answered() -> bool:
        return bool([one for one in lab.heard(lab.a, lambda: lab.send(lab.a, *frames)) if one.endswith(b"hello")])

    assert not answered()
    for chain in ("input", "prerouting"):  # the inet table alone holds too
        lab.on_host("nft", "flush", "chain", "bridge", "agentshim", chain)
    assert not answered()
    lab.on_host("nft", "flush", "chain", "inet", "agentshim", "arrival")
    assert not answered()
    for chain in ("input", "output", "postrouting"):
        lab.on_host("nft", "flush", "chain", "inet", "agentshim", chain)
    assert answered()


def test_a_port_without_its_bridge_sends_to_nobody(lab: HostLab) -> None:
    """The bridge is ended under a running container: its end at the host is an interface as any other."""
    lab.agent(A, strong=True)
    lab.agent(ELSEWHERE, published=[(HOST_LAN, 8081, 80, "udp")])
    (port,) = json.loads(lab.on_host("ip", "-j", "link", "show", host_end(packed(A))))
    there = bytes.fromhex(port["address"].replace(":", ""))
    lab.on_host("ip", "link", "del", "as-web")
    asked = frame(there, mac(packed(A)), datagram(A, HOST_LAN, 8081, b"door"))

    def reaches() -> bool:
        return any(one.endswith(b"door") for one in lab.heard(lab.o, lambda: lab.send(lab.a, asked)))

    assert not reaches()
    lab.on_host("nft", "flush", "chain", "inet", "agentshim", "arrival")
    assert reaches()


def test_a_mark_that_another_table_sets_behind_ours_is_worth_nothing(lab: HostLab) -> None:
    """With the bridge's table flushed: the look is in front of whoever changes marks."""
    lab.serve(lab.i, ("udp", FAR, 53))
    lab.agent(A)
    lab.on_host("nft", "flush", "table", "bridge", "agentshim")
    chain = "type filter hook prerouting priority -150; meta mark set meta mark | 0x00ff0000;"
    lab.on_host("nft", "-f", "-", text=f"table ip t {{ chain c {{ {chain} }}; }}")
    assert lab.udp(FAR, 53, lab.a) == "silence"
    lab.on_host("nft", "flush", "chain", "inet", "agentshim", "arrival")
    assert lab.udp(FAR, 53, lab.a) == "open"


@either_way
def test_a_mark_from_elsewhere_is_worth_nothing(lab: HostLab) -> None:
    """Neither what an agent without elements sets, nor what another table gives to the LAN's packets."""
    lab.serve(lab.i, *both(FAR, 53, 443))
    lab.agent(A, elements=False)

    def marked() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, host.MARK)
            made.settimeout(0.5)
            made.connect((FAR, 53))
            return labs.attempt(lambda: made.send(b"x") == 1 and bool(made.recv(1)))

    assert lab.inside(lab.a, marked) == "silence"
    lab.on_host(
        "nft", "-f", "-",
        text="table ip t { chain c { type filter hook prerouting priority -400;"
        " iifname lan0 meta mark set 0x00800001; }; }",
    )  # fmt: skip
    assert lab.udp(FAR, 53, lab.l) == "silence"  # forwarded, as it was before us, and not masqueraded: no way back
    lab.on_host("nft", "flush", "chain", "inet", "agentshim", "arrival")
    assert lab.udp(FAR, 53, lab.l) == "open"


def test_other_bits_of_the_mark_stay(lab: HostLab) -> None:
    lab.serve(lab.i, *both(FAR, 53))
    lab.agent(A)
    lab.on_host(
        "nft", "-f", "-",
        text=(
            "table ip t { counter kept {}; counter gone {};"
            " chain a { type filter hook prerouting priority -400; iifname lan0 meta mark set 0x00800001; };"
            " chain b { type filter hook forward priority 10;"
            " meta mark 1 counter name kept; meta mark 0x00800000 counter name gone; }; }"
        ),
    )  # fmt: skip
    lab.udp(FAR, 53, lab.l)
    assert lab.udp(FAR, 53, lab.a) == "open"
    listed = lab.on_host("nft", "list", "counters")
    assert listed.count("packets 0") == 0


def test_an_agent_without_elements_reaches_nothing(lab: HostLab) -> None:
    lab.serve(lab.i, *both(FAR, 443))
    step = lab.agent(A)
    assert lab.tcp(FAR, 443, lab.a) == "open"
    lab.ask(step.undo)
    assert lab.tcp(FAR, 443, lab.a) == "silence"
    lab.ask(step.do)
    assert lab.tcp(FAR, 443, lab.a) == "open"
    with pytest.raises(FileExistsError):
        lab.ask(step.do)


# From outside


@either_way
def test_published_on_loopback_is_for_the_host_alone(lab: HostLab) -> None:
    lab.agent(A, published=PUBLISHED)
    lab.agent(B)
    lab.serve(lab.a, *both("0.0.0.0", 80, 81))
    assert (lab.tcp("127.0.0.1", 8080, lab.h), lab.udp("127.0.0.1", 8080, lab.h)) == ("open", "open")
    assert lab.tcp(HOST_LAN, 8081, lab.h) == lab.tcp(HOST_LAN, 8081, lab.l) == "open"
    assert refused(lab.tcp(HOST_LAN, 8080, lab.l)) and refused(lab.tcp(HOST_LAN, 8080, lab.h))
    for who in (lab.h, lab.l, lab.d):
        assert refused(lab.tcp(A, 80, who)) and refused(lab.tcp(A, 81, who)), who
        assert lab.udp(A, 80, who) != "open", who
    for who in (lab.a, lab.b):
        assert refused(lab.tcp(GATEWAY, 8080, who)) and refused(lab.tcp(HOST_LAN, 8081, who)), who


@either_way
def test_what_the_host_sends_is_looked_up_behind_every_dnat(lab: HostLab) -> None:
    """A DNAT of another table in the output hook: the filter there sees the interface of before, not the bridge."""
    lab.agent(A, published=PUBLISHED)
    lab.serve(lab.a, *both("0.0.0.0", 80, 81))
    rules = "; ".join(f"ip daddr {HOST_LAN} {one} dport 7777 dnat to {A}:81" for one in ("tcp", "udp"))
    lab.on_host("nft", "-f", "-", text=f"table ip t {{ chain c {{ type nat hook output priority -100; {rules}; }}; }}")
    assert lab.tcp(HOST_LAN, 7777, lab.h) != "open" and lab.tcp("127.0.0.1", 8080, lab.h) == "open"

    def reaches() -> bool:
        said = lab.heard(lab.a, lambda: lab.udp(HOST_LAN, 7777, lab.h))
        return any(one[12:14] == b"\x08\0" and one[36:38] == struct.pack(">H", 81) for one in said)

    assert not reaches()
    lab.on_host("nft", "flush", "chain", "inet", "agentshim", "postrouting")
    assert reaches()


def test_a_neighbour_sends_to_the_hosts_loopback(lab: HostLab) -> None:
    """With route_localnet on the LAN's interface too, which somebody else may need: only the bridge's matters."""
    lab.agent(A, published=PUBLISHED)
    lab.on_host("sysctl", "-qw", "net.ipv4.conf.lan0.route_localnet=1")
    there = json_mac(lab)
    asked = frame(there, b"\x02\0\0\0\0\x09", datagram(NEIGHBOUR, "127.0.0.1", 8080, b"lan"))
    assert not [one for one in lab.heard(lab.a, lambda: lab.send(lab.l, asked)) if one.endswith(b"lan")]
    lab.on_host("nft", "flush", "chain", "inet", "agentshim", "nat_arrival")
    rule = "meta l4proto udp dnat ip to ip daddr . meta l4proto . th dport map @published"
    lab.on_host("nft", "add", "rule", "inet", "agentshim", "nat_arrival", *rule.split())
    again = frame(there, b"\x02\0\0\0\0\x09", datagram(NEIGHBOUR, "127.0.0.1", 8080, b"lan", source_port=77))
    assert [one for one in lab.heard(lab.a, lambda: lab.send(lab.l, again)) if one.endswith(b"lan")]


def json_mac(lab: HostLab) -> bytes:
    shown = lab.on_host("ip", "-o", "link", "show", "lan0")
    return bytes.fromhex(shown.partition("link/ether ")[2][:17].replace(":", ""))


def test_an_unpublished_port_ends_what_is_established(lab: HostLab) -> None:
    """No flow is believed because it was: the element gone, both directions are cut."""
    lab.serve(lab.a, ("tcp", "0.0.0.0", 443), chatter=True)
    step = lab.agent(A, published=[("127.0.0.1", 443, 443, "tcp")])
    child, pipe = lab.fork(lab.h, lambda: loopback_listen(3))
    time.sleep(1)
    lab.ask(step.undo)
    heard = lab.result(child, pipe)
    assert 0.3 < heard < 2


def loopback_listen(seconds: float) -> float:
    start = time.monotonic()
    heard = 0.0
    with socket.create_connection(("127.0.0.1", 443), 1) as made:
        made.settimeout(0.1)
        while time.monotonic() - start < seconds:
            try:
                made.send(b"x")
                if made.recv(100):
                    heard = time.monotonic() - start
            except TimeoutError:
                continue
            except OSError:
                break
    return heard


@either_way
def test_a_published_agent_only_answers(lab: HostLab) -> None:
    """It cannot call who called it, nor speak from its published port first."""
    lab.agent(A, published=PUBLISHED)
    lab.serve(lab.a, ("tcp", "0.0.0.0", 80))
    lab.serve(lab.h, *both("0.0.0.0", 9000))
    lab.serve(lab.l, *both(NEIGHBOUR, 9000))
    assert lab.tcp(HOST_LAN, 8081, lab.l) == lab.tcp("127.0.0.1", 8080, lab.h) == "open"

    def call(address: str) -> str:
        with socket.socket() as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind((A, 8001))
            made.settimeout(1)
            return connected(made, address, 9000)

    for address in (GATEWAY, NEIGHBOUR):
        assert refused(lab.inside(lab.a, partial(call, address)))
    first = [
        frame(BRIDGE_MAC, mac(packed(A)), datagram(A, to, 9000, b"first", source_port=80))
        for to in (GATEWAY, NEIGHBOUR)
    ]
    for who in (lab.a, lab.l):
        said = lab.heard(who, lambda: lab.send(lab.a, *first))
        assert not [one for one in said if one.endswith(b"first") and one[23] == 17]


def test_an_outside_caller_from_a_granted_address(lab: HostLab) -> None:
    """A grant is for flows that the agent begins: whoever is there may answer, not call."""
    lab.batch(lab.i, f"route add {A} via {HOST_OUT}")
    lab.agent(A)
    lab.serve(lab.a, *both("0.0.0.0", 80))

    def call() -> str:
        with socket.socket() as made:
            made.bind((FAR, 443))
            made.settimeout(1)
            return connected(made, A, 80)

    assert refused(lab.inside(lab.i, call))
    assert not [
        one for one in lab.heard(lab.a, lambda: lab.inside(lab.i, lambda: udp_from(FAR, 53, A))) if one[23] == 17
    ]


def udp_from(source: str, port: int, target: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((source, port))
        made.sendto(b"call", (target, 80))


# Services of the host, names, leases


@either_way
def test_services_of_the_host_at_the_addresses_that_are_granted(lab: HostLab) -> None:
    lab.serve(lab.h, *both("0.0.0.0", 9000, 9001, 9005), *both("127.0.0.1", 9002), *both(DOCKER0, 9008))
    at_gateway = [("tcp", GATEWAY, 9000, 9000), ("tcp", GATEWAY, 9002, 9002), ("tcp", GATEWAY, 9004, 9006)]
    lab.agent(A, services=[*at_gateway, ("tcp", HOST_LAN, 9001, 9001), ("udp", DOCKER0, 9008, 9008)])
    lab.agent(B)
    assert lab.tcp(GATEWAY, 9000, lab.a) == lab.tcp(GATEWAY, 9005, lab.a) == lab.tcp(HOST_LAN, 9001, lab.a) == "open"
    assert lab.udp(DOCKER0, 9008, lab.a) == "open"
    for address, port in (
        (GATEWAY, 9001), (GATEWAY, 9002), (HOST_LAN, 9000), (OTHER_GATEWAY, 9000), (DOCKER0, 9000), (DOCKER0, 9008),
        (HOST_OUT, 9001),
    ):  # fmt: skip
        assert refused(lab.tcp(address, port, lab.a)), (address, port)
    assert lab.udp(GATEWAY, 9000, lab.a) != "open"
    for address, port in ((GATEWAY, 9000), (HOST_LAN, 9001)):
        assert refused(lab.tcp(address, port, lab.b))


def test_the_hosts_loopback_though_an_element_has_it(lab: HostLab) -> None:
    """A grant of 127.0.0.1, or a lease, means the container's own."""
    lab.serve(lab.h, ("udp", "127.0.0.1", 9001))
    lab.on_host("sysctl", "-qw", "net.ipv4.conf.as-web.route_localnet=1")
    lab.agent(A, services=[("udp", "127.0.0.1", 9001, 9001)])
    lab.lease(A, "udp", "127.0.0.1", 9001, 60_000)
    asked = frame(BRIDGE_MAC, mac(packed(A)), datagram(A, "127.0.0.1", 9001, b"here"))

    def answers() -> int:
        said = lab.heard(lab.a, lambda: lab.send(lab.a, asked))
        return len([one for one in said if one.endswith(b"here") and one[23] == 17])

    assert answers() == 0
    handle = next(
        line.rpartition(" ")[2]
        for line in lab.on_host("nft", "-a", "list", "chain", "inet", "agentshim", "to_host").splitlines()
        if "127.0.0.0/8" in line
    )
    lab.on_host("nft", "delete", "rule", "inet", "agentshim", "to_host", "handle", handle)
    assert answers() == 1, "it is this rule"


def test_a_lease_of_an_address_of_the_hosts(lab: HostLab) -> None:
    lab.serve(lab.h, *both(HOST_LAN, 9000, 9001))
    lab.agent(A)
    lab.agent(B)
    assert refused(lab.tcp(HOST_LAN, 9000, lab.a))
    lab.lease(A, "tcp", HOST_LAN, 9000, 60_000)
    assert lab.tcp(HOST_LAN, 9000, lab.a) == "open"
    assert refused(lab.tcp(HOST_LAN, 9001, lab.a)) and refused(lab.tcp(HOST_LAN, 9000, lab.b))
    assert refused(lab.tcp(GATEWAY, 9000, lab.a)) and lab.udp(HOST_LAN, 9000, lab.a) != "open"


def test_a_service_that_somebody_leads_elsewhere_is_not_what_was_granted(lab: HostLab) -> None:
    """Docker publishes by a DNAT of every local address: what is behind it is looked up, not the gateway."""
    lab.serve(lab.d, *both(DOCKER, 80))
    lab.agent(A, services=[("tcp", GATEWAY, 7000, 7000)])
    rule = f"fib daddr type local tcp dport 7000 dnat to {DOCKER}:80"
    text = f"table ip t {{ chain c {{ type nat hook prerouting priority -100; {rule}; }}; }}"
    lab.on_host("nft", "-f", "-", text=text)
    # The kernel does not take the DNAT back in the RST for what was never let through: for the agent it is silence.
    assert lab.tcp(GATEWAY, 7000, lab.a) != "open"
    assert lab.tcp(HOST_LAN, 7000, lab.l) == "open"


def test_what_names_led_to_is_the_one_agents(lab: HostLab) -> None:
    lab.serve(lab.i, *both("203.0.113.9", 443, 1000, 1005))
    pinned = [("tcp", "203.0.113.9", 443, 443), ("tcp", "203.0.113.9", 1000, 1003), ("tcp", "203.0.113.9", 1002, 1005)]
    lab.agent(A, pinned=[*pinned, ("tcp", "2001:db8::9", 443, 443)])
    lab.agent(B)
    assert [lab.tcp("203.0.113.9", port, lab.a) for port in (443, 1000, 1005)] == ["open"] * 3
    assert refused(lab.udp("203.0.113.9", 443, lab.a)) and refused(lab.tcp("203.0.113.9", 443, lab.b))


def echoed(protocol: str, address: str, seconds: float) -> float:
    """Send numbers, and take all that comes back: when the last one was sent that did."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    start = time.monotonic()
    last = 0.0
    with socket.socket(socket.AF_INET, kind) as made:
        made.settimeout(1)
        made.connect((address, 443))
        made.settimeout(0.02)
        while (now := time.monotonic() - start) < seconds:
            try:
                made.send(struct.pack(">d", now))
                last = struct.unpack(">d", made.recv(8))[0]
            except TimeoutError:
                continue
            except OSError:
                time.sleep(0.02)
    return last


@either_way
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_end_of_a_lease_cuts_what_is_established(lab: HostLab, protocol: str) -> None:
    lab.serve(lab.i, (protocol, "203.0.113.9", 443))
    lab.agent(A)
    lab.agent(B)
    go = lab.tcp if protocol == "tcp" else lab.udp
    lab.lease(A, protocol, "203.0.113.9", 443, 3000)
    assert refused(go("203.0.113.9", 443, lab.b))
    assert 1 < lab.inside(lab.a, lambda: echoed(protocol, "203.0.113.9", 5)) < 4
    said = go("203.0.113.9", 443, lab.a)
    assert refused(said) if protocol == "tcp" else said != "open"  # so many ICMP errors: the kernel tells no more


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_end_of_a_lease_cuts_what_only_the_far_side_sends(lab: HostLab, protocol: str) -> None:
    lab.serve(lab.i, (protocol, FAR, 443), chatter=True)
    tag = "3d" * 32
    lab.bridges["web"] = lab.up("web", tag, {"mode": "isolated"})
    lab.agent(A)
    lab.lease(A, protocol, FAR, 443, 3000)
    assert 1 < lab.inside(lab.a, lambda: silent(protocol, 6)) < 4.5


def test_icmp_only_if_granted_and_errors_come_back(lab: HostLab) -> None:
    section = {"mode": "isolated", "outbound": [["udp", FAR, 1, 99]], "icmp": True}
    lab.bridges["web"] = lab.up("web", "sha256:" + "2c" * 32, section)
    lab.agent(A)
    assert lab.ping(FAR, lab.a) == "open"
    assert lab.udp(FAR, 77, lab.a) == "ECONNREFUSED"  # nobody listens: the far side's own ICMP error
    assert lab.ping(GATEWAY, lab.a) != "open" and lab.ping(A, lab.l) != "open"


def test_rules_that_were_flushed_or_changed_are_found(lab: HostLab) -> None:
    step = lab.agent(A, published=PUBLISHED, services=[("tcp", GATEWAY, 1, 2)], pinned=[("udp", FAR, 1, 1)])
    with records.opened(f"/run/netns/{lab.h}") as kernel:
        kept = fingerprint.taken(kernel)
        lab.ask(step.undo)
        lab.ask(step.do)
        lab.lease(A, "tcp", FAR, 1, 60_000)
        lab.on_host("nft", "add", "table", "inet", "other")
        assert fingerprint.intact(kernel, kept)  # containers that come and go change no rule
        changes = [
            "flush chain inet agentshim forward",
            "flush chain bridge agentshim prerouting",
            "insert rule inet agentshim from_agent accept",
            "delete table bridge agentshim",
            "delete table inet agentshim",
            "flush ruleset",
        ]
        whole = host_rules.tables()
        for change in changes:
            lab.on_host("nft", "-f", "-", text=whole)
            kept = fingerprint.taken(kernel)
            assert fingerprint.intact(kernel, kept)
            lab.on_host("nft", *change.split())
            assert not fingerprint.intact(kernel, kept), change


def test_a_dormant_table_is_found(lab: HostLab) -> None:
    with records.opened(f"/run/netns/{lab.h}") as kernel:
        kept = fingerprint.taken(kernel)
        lab.on_host("nft", "-f", "-", text="add table inet agentshim { flags dormant; }\n")
        assert not fingerprint.intact(kernel, kept)


def test_a_tcp_stream_survives_a_repair_and_elements_stay(lab: HostLab) -> None:
    """Loading the rules anew is one transaction."""
    lab.serve(lab.i, ("tcp", FAR, 443), chatter=True)
    lab.agent(A)
    child, pipe = lab.fork(lab.a, lambda: listen("tcp", FAR, 2))
    for _ in range(5):
        lab.on_host("nft", "-f", "-", text=host_rules.tables())
        time.sleep(0.1)
    sent, heard, failed = lab.result(child, pipe)
    assert sent > 1.7 and heard > 1.7 and not failed
