"""The network dimension against a world small enough to list, and the words of a policy that mean it."""

from __future__ import annotations

import ipaddress
import itertools
import json
import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim import kernel
from shim.cold import network_source
from shim.dim import network
from shim.errors import Invalid

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


@given(some=grants, gone=st.lists(st.integers(0, 7), max_size=3))
def test_addresses_are_taken_out_unless_they_are_granted_for_themselves(some: Any, gone: list[int]) -> None:
    left = network.without(some, [(32, FIRST + at) for at in gone])
    single = granted([one for one in some if one[1].endswith("/32")])
    assert granted(left) == {point for point in granted(some) if point[1] not in gone} | single
    if granted(left) == granted(some) and not gone:
        assert left is some


def test_addresses_of_the_host() -> None:
    """The oracle is ip(8)."""
    ip = shutil.which("ip")
    if not ip:
        pytest.skip("LOUD: no ip on this host")
    told = json.loads(subprocess.run([ip, "-j", "address"], capture_output=True, text=True, check=True).stdout)
    expected = {
        (32 if one["family"] == "inet" else 128, int(ipaddress.ip_address(one["local"])))
        for link in told
        for one in link["addr_info"]
        if link["ifname"] != "lo"
    }
    assert set(kernel.addresses()) == expected


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
