"""Laws of what needs no kernel: messages, the plan's file, and keys that do not overlap."""

from __future__ import annotations

import ipaddress
import struct
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks import attributes, chains, grants, lock, netlink, nft, plan
from hooks.plan import Step
from shim.errors import Invalid, Refused

ROOT = Path(__file__).parents[2]

# Messages


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=30))))
def test_attributes_read_back(every: list[tuple[int, bytes]]) -> None:
    data = b"".join(attributes.attribute(kind, payload) for kind, payload in every)
    assert len(data) % 4 == 0
    assert list(attributes.attributes(data)) == every


@given(st.binary(max_size=60))
def test_malformed_messages_are_a_value_error_and_end(data: bytes) -> None:
    for read in (netlink.messages, attributes.attributes):
        try:
            list(read(data))
        except ValueError:
            continue


def test_a_batch_asks_for_one_answer_behind_all_it_does() -> None:
    data = nft.batch([nft.new_table("t"), nft.new_chain("t", "c"), nft.drop_table("t")])
    heads = [(kind, flags & netlink.ACK, sequence) for kind, flags, sequence, _ in netlink.messages(data)]
    assert heads == [(16, 0, 0), (0xA00, 0, 1), (0xA03, 0, 2), (0xA02, netlink.ACK, 3), (17, 0, 4)]


# The plan's file


@st.composite
def _messages(draw: st.DrawFn, family: int) -> tuple[bytes, int]:
    """(messages, how many want an answer), one at least."""
    whole = draw(
        st.lists(st.tuples(st.integers(20, 4000), st.booleans(), st.binary(max_size=20)), min_size=1, max_size=4)
    )
    parts = [netlink.message(16, 0, b"\0\0\0\x0a")] if family == netlink.NETFILTER and draw(st.booleans()) else []
    closed = bool(parts)
    for kind, ack, payload in whole:
        padded = payload + bytes(-len(payload) % 4)
        parts.append(netlink.message(kind, netlink.ACK if ack else 0, padded))
    parts.append(netlink.message(2000, netlink.ACK, b""))
    if closed:
        parts.append(netlink.message(17, 0, b"\0\0\0\x0a"))
    return b"".join(parts), 1 + sum(ack for _, ack, _ in whole)


BITS = (0, plan.ONLY_EMPTY, plan.KEEP, plan.ONLY_EMPTY | plan.KEEP, plan.ONLY_BUILT)


@st.composite
def _steps(draw: st.DrawFn) -> Step:
    family = draw(st.sampled_from([netlink.ROUTE, netlink.NETFILTER]))
    do, acks = draw(_messages(family))
    undo = draw(st.one_of(st.just(b""), _messages(family).map(lambda one: one[0])))
    room = draw(st.sampled_from([plan.CONTAINER, plan.HOST])) | draw(st.sampled_from(BITS))
    return Step(room, family, do, undo, acks, draw(st.text()))


def _bare(step: Step) -> tuple[object, ...]:
    return step.key()[:-1]  # words are not in the file


@given(st.lists(_steps(), min_size=1, max_size=5))
def test_a_plan_reads_back_as_it_was(steps: list[Step]) -> None:
    data = plan.encode(steps)
    read = plan.decode(data)
    assert [_bare(step) for step in read] == [_bare(step) for step in steps]
    assert plan.encode(read) == data
    assert plan.describe(read).count("\n") == len(steps) - 1


@given(st.lists(_steps(), min_size=1, max_size=3), st.data())
def test_a_plan_that_is_cut_off_or_longer_is_invalid(steps: list[Step], data: st.DataObject) -> None:
    whole = plan.encode(steps)
    cut = data.draw(st.integers(0, len(whole) - 1))
    for wrong in (whole[:cut], whole + b"\0", whole + bytes(20)):
        with pytest.raises(Invalid):
            plan.decode(wrong)


@given(st.lists(_steps(), min_size=1, max_size=2), st.data())
def test_a_plan_with_any_byte_changed_is_read_or_invalid(steps: list[Step], data: st.DataObject) -> None:
    whole = bytearray(plan.encode(steps))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        read = plan.decode(bytes(whole))
    except Invalid:
        return
    assert plan.encode(read) == whole


@given(st.binary(max_size=200))
def test_any_bytes_behind_the_magic_are_read_or_invalid(data: bytes) -> None:
    try:
        plan.decode(plan.MAGIC + struct.pack("=I", 1) + data)
    except Invalid:
        return


def test_what_the_hook_would_not_run_is_invalid() -> None:
    ack = netlink.message(2000, netlink.ACK, b"")
    begin = netlink.message(16, 0, b"")
    silent = struct.pack("=IHHII", 16, 2000, netlink.ACK, 0, 0)
    for family, do, acks, words in (
        (12, ack, 2, "answers"),
        (12, ack, 0, "answers"),
        (12, begin + ack, 1, "batch"),
        (0, silent, 1, "request"),
        (7, ack, 1, "family"),
        (0, b"", 0, "answers"),
    ):
        with pytest.raises(Invalid, match=words):
            plan.decode(plan.encode([Step(0, family, do, b"", acks, "")]))
    for room in (2, 2 | plan.KEEP, 0x80, 0x1100, 0x2001, 1 << 31):
        with pytest.raises(Invalid, match="room"):
            plan.decode(plan.encode([Step(room, netlink.ROUTE, ack, b"", 1, "")]))
    plan.decode(plan.encode([Step(0, netlink.ROUTE, begin + ack, b"", 1, "RTM_NEWLINK has a batch's number")]))
    with pytest.raises(Invalid, match="0 steps"):
        plan.encode([])
    with pytest.raises(Invalid, match="1048576"):
        plan.encode([Step(0, 12, bytes(1 << 20), b"", 1, "")])


# Grants


_port = st.sampled_from([0, 1, 2, 79, 80, 81, 443, 65534, 65535])
_net4 = st.tuples(
    st.sampled_from(["10.0.0.0", "10.0.0.5", "10.0.0.255", "10.1.0.0", "203.0.113.7"]), st.integers(0, 32)
)
_net6 = st.tuples(st.sampled_from(["2001:db8::", "2001:db8::5", "2001:db9::"]), st.integers(0, 128))
_grant = st.tuples(st.sampled_from(["tcp", "udp"]), _net4 | _net6, _port, _port).map(
    lambda one: [one[0], f"{one[1][0]}/{one[1][1]}", min(one[2:]), max(one[2:])]
)


def _covers(keys: grants.Keys, layout: struct.Struct, proto: int, address: bytes, port: int) -> bool:
    """Whether a key says yes, field by field as the kernel compares ranges of concatenations."""
    for first, last in keys:
        low, high = layout.unpack(first), layout.unpack(last)
        if low[0] <= proto <= high[0] and low[1] <= address <= high[1] and low[2] <= port <= high[2]:
            return True
    return False


@given(st.lists(_grant, max_size=6))
def test_keys_grant_what_was_listed_and_nothing_else(listed: list[list[Any]]) -> None:
    keys = dict(zip((4, 16), grants.outbound({"outbound": listed}), strict=True))
    nets = [(grants.PROTOCOLS[p], ipaddress.ip_network(net, strict=False), a, b) for p, net, a, b in listed]
    edges = {ipaddress.ip_address(one) for _, net, _, _ in nets for one in (net[0], net[-1], net[0] + 1)}
    edges |= {ipaddress.ip_address("10.0.0.6"), ipaddress.ip_address("2001:db8::6")}
    ports = {0, 1, 65535} | {port for _, _, a, b in nets for port in (max(a - 1, 0), a, b, min(b + 1, 65535))}
    for address in edges:
        layout = grants.KEYS[len(address.packed)]
        for proto in (6, 17):
            for port in ports:
                wanted = any(p == proto and address in net and a <= port <= b for p, net, a, b in nets)
                assert _covers(keys[layout.size - 8], layout, proto, address.packed, port) == wanted


@given(st.lists(_grant, max_size=6), st.integers(0, 500))
def test_ports_apart_are_the_same_grants(listed: list[list[Any]], most: int) -> None:
    for keys, layout in zip(grants.outbound({"outbound": listed}), (grants.KEY4, grants.KEY6), strict=True):
        made = grants.apart(keys, most)
        assert len(made) - len(keys) <= most
        edges = {layout.unpack(edge)[2] for key in keys for edge in key}
        ports = {edge + step for edge in edges for step in (-1, 0, 1)}
        for proto, address in {layout.unpack(first)[:2] for first, _ in keys}:
            for port in ports:
                wanted = _covers(keys, layout, proto, address, port)
                assert _covers(made, layout, proto, address, port) == wanted
        few = [key for key in keys if layout is grants.KEY4 and key[0][4:8] == key[1][4:8]]
        if sum(layout.unpack(last)[2] - layout.unpack(first)[2] for first, last in few) <= most:
            assert all(first == last or first[4:8] != last[4:8] for first, last in made if layout is grants.KEY4)


@given(st.lists(_grant, max_size=6), st.sampled_from([0, grants.FEW]))
def test_keys_do_not_overlap(listed: list[list[Any]], most: int) -> None:
    every = (grants.apart(keys, most) for keys in grants.outbound({"outbound": listed}))
    for keys, layout in zip(every, (grants.KEY4, grants.KEY6), strict=True):
        boxes = [(layout.unpack(first), layout.unpack(last)) for first, last in keys]
        for (low, high), (other_low, other_high) in combinations(boxes, 2):
            assert any(high[n] < other_low[n] or other_high[n] < low[n] for n in range(3))


@given(st.lists(st.tuples(_port, _port).map(sorted), max_size=6))
def test_inbound_ports_as_listed(listed: list[list[int]]) -> None:
    keys = grants.inbound({"inbound": [["udp", a, b] for a, b in listed]})
    ranges = [(grants.KEY.unpack(first)[1], grants.KEY.unpack(last)[1]) for first, last in keys]
    for port in {0, 1, 2, 3, 78, 79, 80, 81, 82, 442, 443, 444, 65533, 65534, 65535}:
        assert any(a <= port <= b for a, b in ranges) == any(a <= port <= b for a, b in listed)
    assert all(b + 1 < a for (_, b), (a, _) in pairwise(ranges))


@pytest.mark.parametrize(
    "grant",
    [
        ["tcp", "10.0.0.0/33", 1, 1],
        ["tcp", "10.0.0", 1, 1],
        ["tcp", "10.0.0.256", 1, 1],
        ["tcp", "010.0.0.1", 1, 1],
        ["tcp", "10.0.0.1/", 1, 1],
        ["tcp", "10.0.0.1/²", 1, 1],
        ["tcp", " 10.0.0.1", 1, 1],
        ["tcp", "10.0.0.-1", 1, 1],
        ["tcp", "", 1, 1],
        ["tcp", "::g", 1, 1],
        ["tcp", "::1%lo", 1, 1],
        ["tcp", "::1\0", 1, 1],
        ["tcp", "example.com", 1, 1],
        ["sctp", "10.0.0.1", 1, 1],
        ["tcp", "10.0.0.1", 2, 1],
        ["tcp", "10.0.0.1", -1, 1],
        ["tcp", "10.0.0.1", 1, 65536],
    ],
)
def test_malformed_grants_are_invalid(grant: list[Any]) -> None:
    with pytest.raises(Invalid, match="network"):
        lock.steps({"mode": "confine", "outbound": [grant]})


def test_more_grants_than_a_plan_holds_are_refused() -> None:
    many: list[Any] = [["tcp", f"2001:db8:{i:x}::1", 1, 1] for i in range(lock.MOST)]
    assert len(plan.encode(lock.steps({"mode": "confine", "outbound": many}))) < plan.MOST_BYTES
    with pytest.raises(Refused, match="10001 grants"):
        lock.steps({"mode": "confine", "outbound": [*many, ["tcp", "10.0.0.1", 1, 1]]})


# The lock


def test_an_engines_network_has_no_plan() -> None:
    assert lock.steps({"mode": "engine"}) == ()


def test_a_plan_is_a_function_of_its_section() -> None:
    section = {"mode": "confine", "outbound": "any", "inbound": [["tcp", 1, 2]], "dns": True, "icmp": True}
    before = repr(section)
    assert plan.encode(lock.steps(section)) == plan.encode(lock.steps(section))
    assert repr(section) == before


def test_steps_say_what_they_are() -> None:
    said = plan.describe(lock.steps({"mode": "confine", "outbound": [["tcp", "10.0.0.1", 1, 1]], "icmp": True}))
    assert said.startswith(
        "1. container: netfilter: table inet agentshim: outbound 1 grants, inbound nothing, dns shut"
    )
    assert said.endswith("undone by itself)") and "\n" not in said


def test_a_hard_denied_lease_is_one_that_the_rules_deny() -> None:
    nets = (
        "169.254.0.0/16 100.100.100.200/32 0.0.0.0/8 224.0.0.0/3 fe80::/10 ff00::/8 "
        "fd00:ec2::254 fd20:ce::254 64:ff9b::a9fe:0/112"
    )
    for net in map(ipaddress.ip_network, nets.split()):
        for inside in (net[0], net[-1]):
            assert chains.is_hard(inside.packed), inside
        for outside in (int(net[0]) - 1, int(net[-1]) + 1):
            if 0 <= outside < 1 << net.max_prefixlen:
                packed = outside.to_bytes(net.max_prefixlen // 8, "big")
                other = any(ipaddress.ip_address(packed) in ipaddress.ip_network(one) for one in nets.split())
                assert chains.is_hard(packed) == other, packed


@pytest.mark.parametrize(
    ("net", "ports", "alone"),
    [
        ("203.0.113.9", (443, 443), True),
        ("10.0.0.1", (443, 443), True),
        ("203.0.113.9", (443, 444), False),
        ("203.0.113.8/31", (443, 443), False),
        ("169.254.169.254", (80, 80), False),
        ("100.100.100.200", (80, 80), False),
        ("0.0.0.0", (80, 80), False),
        ("239.1.1.1", (80, 80), False),
        ("127.0.0.11", (53, 53), False),
        ("126.255.255.255", (53, 53), True),
        ("128.0.0.0", (53, 53), True),
        ("2001:db8::1", (443, 443), True),
        ("fd00:ec2::254", (80, 80), False),
        ("fe80::1", (80, 80), False),
    ],
)
def test_which_grants_are_looked_up_before_all_else(net: str, ports: tuple[int, int], alone: bool) -> None:
    four, six = grants.outbound({"outbound": [["tcp", net, *ports]]})
    ((first, last),) = four or six
    assert chains.alone(first, last) == alone


def test_ipv6_has_the_rules_of_ipv4() -> None:
    """But for what only one of them has: IPv4 the look at @hosts before all else, the way to IPv6's chains, and
    redirects; IPv6 neighbour discovery, strangers on lo, and one more metadata service.
    """
    made = chains.rules(True, False, True)
    more = {name: len(made[name]) - len(made[name + "6"]) for name in ("deny", "back", "output", "input")}
    assert more == {"deny": 0, "back": 0, "output": 1 + 1 - 1 - 1 - 1, "input": 1 + 1 + 1 - 1}


def test_hot_modules_import_built_ins_alone() -> None:
    """What a container's start pays for; _socket too only where IPv6 is granted."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n"
        "from hooks import link, lock, plan\n"
        "section = {'mode': 'confine', 'outbound': [['tcp', '10.0.0.0/8', 1, 2]], 'inbound': 'any', 'dns': True}\n"
        "port = link.Port(7, bytes(4), 22, bytes(4))\n"
        "plan.encode(link.steps(port) + lock.steps(section))\n"
        "print(*sorted(m for m in set(sys.modules) - before if m.split('.')[0] not in ('hooks', 'shim')\n"
        "      and m not in sys.builtin_module_names))\n"
        "print('_socket' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, ROOT], capture_output=True, text=True, check=True)
    foreign, sockets = done.stdout.splitlines()
    assert set(foreign.split()) <= {"__future__", "_struct"}  # _struct is a file where Python was built from source
    assert sockets == "False"
