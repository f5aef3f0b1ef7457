"""The network dimension against a world small enough to list, and the words of a policy that mean it."""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim import kernel
from shim.cold.network import network_source
from shim.dim import network
from shim.errors import Invalid, Refused

FIRST = 0x0A000000  # 10.0.0.0
PORTS = range(4)
WORLD = list(itertools.product(network.PROTOCOLS, range(8), PORTS))
grants = st.lists(
    st.tuples(
        st.sampled_from(network.PROTOCOLS),
        st.tuples(st.integers(0, 7), st.sampled_from([29, 30, 31, 32])).map(lambda one: f"10.0.0.{one[0]}/{one[1]}"),
        st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)).map(sorted),
    ).map(lambda one: (one[0], one[1], *one[2])),
    max_size=6,
)


def value(some: Any) -> network.Network:
    return network.from_policy({"mode": "confine", "outbound": some})


def let_through(one: network.Network) -> set[tuple[str, int, int]]:
    """The points of WORLD that a value lets out, read off its maps."""
    found = set()
    for (protocol, width), room in zip(network.ROOMS, one.outbound, strict=True):
        if width == 32:
            for first, last, ports in room:
                found |= {
                    (p, at, port)
                    for p, at, port in WORLD
                    if p == protocol and first <= FIRST + at <= last and any(a <= port <= b for a, b in ports)
                }
    return found


def granted(some: Any) -> set[tuple[str, int, int]]:
    """The same, read off the grants."""
    out = set()
    for protocol, cidr, low, high in some:
        _, first, last = network.block(cidr)
        out |= {p for p in WORLD if p[0] == protocol and first <= FIRST + p[1] <= last and low <= p[2] <= high}
    return out


@given(a=grants, b=grants)
def test_values_are_sets_of_peers(a: Any, b: Any) -> None:
    assert let_through(value(a)) == granted(a)
    assert let_through(network.meet(value(a), value(b))) == granted(a) & granted(b)
    assert network.leq(value(a), value(b)) == (granted(a) <= granted(b))
    assert (value(a) == value(b)) == (granted(a) == granted(b))


def test_an_unfiltered_network_is_above_any_filter() -> None:
    widest = network.from_policy(
        {
            "mode": "confine",
            "outbound": [[p, cidr, 0, 65535] for p in network.PROTOCOLS for cidr in ("0.0.0.0/0", "::/0")],
            "inbound": "any",
            "services": "any",
            "dns": True,
            "icmp": True,
        }
    )
    assert network.leq(widest, network.TOP)
    assert not network.leq(network.TOP, widest)
    assert [loss.key_path for loss in network.explain(network.TOP, widest, widest)] == ["other"]


def test_what_nobody_may_be_granted_is_what_the_lock_denies() -> None:
    assert set(network_source.NEVER) == {
        "169.254.0.0/16", "100.100.100.200/32", "0.0.0.0/8", "224.0.0.0/3",
        "fe80::/10", "ff00::/8", "fd00:ec2::254/128", "fd20:ce::254/128", "64:ff9b::a9fe:0/112",
    }  # fmt: skip


WORDS = {
    "tcp:203.0.113.5:443": [["tcp", "203.0.113.5/32", 443, 443]],
    "udp:[2001:4860::/32]:5000-5010": [["udp", "2001:4860::/32", 5000, 5010]],
    "tcp:8.8.8.0/24:1-65535": [["tcp", "8.8.8.0/24", 1, 65535]],
}


@pytest.mark.parametrize("word", WORDS)
def test_words(word: str) -> None:
    assert network_source.expand({"mode": "confine", "outbound": [word]}, set())["outbound"] == WORDS[word]


@pytest.mark.parametrize(
    "word",
    [
        "tcp:169.254.169.254:80",
        "tcp:100.100.100.200:80",
        "udp:[fd00:ec2::254]:53",
        "tcp:[64:ff9b::a9fe:a9fe]:80",
        "udp:224.0.0.251:5353",
        "tcp:[fe80::1]:80",
        "tcp:0.0.0.0:22",
        "tcp:8.8.8.8/24:443",
        "tcp:8.8.8.8:0",
        "tcp:8.8.8.8:443-80",
        "tcp:8.8.8.8:65536",
        "tcp:8.8.8.256:80",
    ],
)
def test_words_that_nobody_may_say(word: str) -> None:
    with pytest.raises(Invalid):
        network_source.expand({"mode": "confine", "outbound": [word]}, {word})


def test_a_name_may_lead_to_any_public_address_and_no_other() -> None:
    section = network_source.expand(
        {"mode": "confine", "outbound": ["tcp:API.example.com:443", "udp:1.1.1.1:53"]}, set()
    )
    assert section["names"] == [["tcp", "api.example.com", 443, 443]]
    assert "plan" not in section
    value = network.from_policy(section)
    anywhere = network.from_policy(network_source.expand({"mode": "confine", "outbound": ["any"]}, set()))
    assert network.leq(value, anywhere)
    assert value.outbound[0][0][2] == ((443, 443),)
    assert value.outbound[1] == ((0x01010101, 0x01010101, ((53, 53),)),)


@pytest.mark.parametrize("word", ["tcp:10.0.0.1:80", "tcp:172.16.0.0/12:1-9", "tcp:127.0.0.1:80", "tcp:[fd00::1]:80"])
def test_private_addresses_need_a_reason(word: str) -> None:
    section = {"mode": "confine", "outbound": [word]}
    with pytest.raises(Invalid, match="why"):
        network_source.expand(section, set())
    assert len(network_source.expand(section, {word})["outbound"]) == 1


BLOCKS = st.tuples(st.integers(0, 7), st.sampled_from([29, 30, 31, 32])).map(lambda one: f"10.0.0.{one[0]}/{one[1]}")


@pytest.mark.parametrize("mode", ["isolated", "confine", "auto"])
def test_our_containers_are_granted_to_nobody(mode: str) -> None:
    """Neither by themselves nor as a part of what is wider; where they are, config.toml says."""
    pool = "10.207.0.0/16"
    for word in ("tcp:10.207.0.6:80", "udp:10.207.4.0/22:1-9", "tcp:10.207.0.0/16:1"):
        section = {"mode": mode, "outbound": [word]}
        with pytest.raises(Invalid, match=r"addresses outside 10\.207\.0\.0/16"):
            network_source.expand(section, {word}, pool)
        assert network_source.expand(section, {word}, "10.208.0.0/16")["outbound"]
    word = "tcp:10.0.0.0/8:8080"
    section = network_source.expand({"mode": mode, "outbound": [word, "tcp:1.1.1.1:53"]}, {word}, pool)
    blocks = [ipaddress.ip_network(one[1]) for one in section["outbound"]]
    assert not any(one.overlaps(ipaddress.ip_network(pool)) for one in blocks)
    assert sum(one.num_addresses for one in blocks) == (1 << 24) - (1 << 16) + 1
    with pytest.raises(Invalid, match="network_pool"):
        network_source.expand({"mode": mode, "outbound": []}, set(), "10.207.0.1/16")


@given(some=grants, gone=st.lists(BLOCKS, max_size=3))
def test_addresses_are_taken_out_unless_they_are_granted_for_themselves(some: Any, gone: list[str]) -> None:
    blocks = [network.block(one) for one in gone]
    left = network.without(some, blocks)
    single = granted([one for one in some if one[1].endswith("/32")])
    taken = {at for at in range(8) for _, low, high in blocks if low <= FIRST + at <= high}
    assert granted(left) == {point for point in granted(some) if point[1] not in taken} | single
    if granted(left) == granted(some) and not gone:
        assert left is some


@given(some=grants, blocks=st.lists(BLOCKS, max_size=3))
def test_grants_of_single_addresses_in_a_block(some: Any, blocks: list[str]) -> None:
    """`within` is `holds`, of single addresses."""
    own = [network.block(one) for one in blocks]
    assert network.within(some, own) == [one for one in some if one[1][-3:] == "/32" and network.holds(own, one[1])]
    bare = [(one[0], one[1].partition("/")[0], *one[2:]) for one in some]
    assert network.within(bare, own) == [one for one in bare if network.holds(own, one[1])]
    assert network.within([("tcp", "::a00:1", 1, 1)], own) == []


def test_addresses_of_the_host() -> None:
    """The oracle is ip(8)."""
    ip = shutil.which("ip")
    if not ip:
        pytest.skip("LOUD: no ip on this host")
    told = json.loads(subprocess.run([ip, "-j", "address"], capture_output=True, text=True, check=True).stdout)
    every = {ipaddress.ip_address(one["local"]) for link in told for one in link["addr_info"]}
    expected = {(one.max_prefixlen, int(one), int(one)) for one in every if not one.is_loopback}
    found = set(kernel.addresses())
    assert expected <= found
    assert {low for _, low, _ in found - expected} <= anycast()


def anycast() -> set[int]:
    """Where a router answers for its subnet, which ip-address(8) does not list."""
    file = Path("/proc/net/anycast6")
    return {int(line.split()[2], 16) for line in file.read_text().splitlines()} if file.exists() else set()


ROUTES = """Id 100:
  |-- 0.0.0.0
     /0 host LOCAL
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     |-- 192.0.2.7
        /32 host LOCAL tos=8
     |-- 198.51.100.0
        /24 host LOCAL
        /32 link BROADCAST
"""
ROUTES6 = """\
20010db8000000000000000000000000 40 {0} 00 {0} 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000001 80 {0} 00 {0} 00000000 00000003 00000000 80200001       lo
20010db8000700000000000000000000 30 {0} 00 {0} 00000400 00000001 00000000 80000001       lo
20010db8000900000000000000000009 80 {0} 00 {0} 00000000 00000003 00000000 80200001       lo
20010db8000000000000000000000000 80 {0} 00 {0} 00000000 00000001 00000000 80300001     eth0
00000000000000000000000000000000 00 {0} 00 {0} 00000400 00000001 00000000 80000001       lo
""".format("0" * 32)


def test_a_block_that_one_route_makes_the_hosts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no table of a transparent proxy's."""
    files = {"/proc/net/fib_trie": ROUTES, "/proc/net/ipv6_route": ROUTES6}
    monkeypatch.setattr(kernel, "_read", lambda path: files[path].encode())
    words = ("192.0.2.7", "198.51.100.0/24", "2001:db8::/128", "2001:db8:7::/48", "2001:db8:9::9")
    assert kernel.addresses() == sorted(map(network.block, words))


def test_the_kernel_writes_routes_so(tmp_path: Path) -> None:
    """A network namespace with all of these."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("LOUD: no root, or no ip on this host")
    made = ["link set lo up", "route add local 198.51.100.0/24 dev lo", "route add local default dev lo table 100"]
    made += ["-6 route add local 2001:db8:7::/48 dev lo", "-6 addr add 2001:db8:9::9/128 dev lo"]
    made += ["addr add 192.0.2.7/32 dev lo"]
    code = "from shim import kernel; print(kernel.addresses())"
    script = "; ".join([*(f"ip {one}" for one in made), f"exec {sys.executable} -c '{code}'"])
    done = subprocess.run(["unshare", "-n", "sh", "-ec", script], capture_output=True, text=True, check=True)
    words = ("192.0.2.7", "198.51.100.0/24", "2001:db8:7::/48", "2001:db8:9::9")
    assert done.stdout == f"{sorted(map(network.block, words))}\n"


def test_grants_without_a_filter_are_a_mistake() -> None:
    with pytest.raises(Invalid, match="auto"):
        network_source.expand({"mode": "engine", "outbound": ["tcp:8.8.8.8:53"]}, set())


def test_any_is_every_public_address_and_no_other() -> None:
    section = network_source.expand({"mode": "confine", "outbound": ["any"]}, set())
    tcp = network.from_policy(section).outbound[0]

    def reached(text: str) -> bool:
        address = network.block(text)[1]
        return any(first <= address <= last for first, last, _ in tcp)

    for shut in ("10.1.2.3", "127.0.0.1", "169.254.169.254", "172.31.0.1", "192.168.0.1", "100.64.0.1", "224.0.0.1"):
        assert not reached(shut)
    for open_ in ("1.1.1.1", "9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "223.255.255.255"):
        assert reached(open_)


@pytest.mark.parametrize("mode", ["auto", "confine", "isolated"])
def test_what_no_plan_holds_is_refused_before_a_start(mode: str) -> None:
    every = [f"tcp:198.{18 + (n >> 16)}.{n >> 8 & 255}.{n & 255}:1-2" for n in range(10_001)]
    with pytest.raises(Refused, match="10001 grants"):
        network_source.expand({"mode": mode, "outbound": every}, set(every))


def test_a_value_shows_what_it_is_whether_it_was_read_or_not() -> None:
    section = {"mode": "confine", "outbound": [["tcp", "203.0.113.5", 443, 443]]}
    lazy, read = network.from_policy(section), network.from_policy(section)
    assert read.outbound and lazy == read and hash(lazy) == hash(read)
    for one in (network.TOP, network.BOTTOM, network.meet(read, lazy), network.from_policy(section)):
        assert repr(one).startswith("Network(open=")


def test_an_unfiltered_network_needs_no_grant_to_be_read() -> None:
    """A section that cannot be read shows that it is not: what a start is met with is most often unfiltered."""
    torn = network.from_policy({"mode": "confine", "outbound": [["tcp", "no address", 1, 1]]})
    assert network.meet(network.TOP, torn) is torn and network.meet(torn, network.TOP) is torn
    assert network.meet(torn, torn) is torn and torn != network.TOP
    with pytest.raises(OSError, match="illegal IP address"):
        network.leq(network.BOTTOM, torn)
