"""What nft(8) makes of elements that are written by hand, and what `hooks.host` sends, are one set as the kernel lists
it; and what we read back is what we sent.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hooks import fingerprint, grants, host, host_rules, labels, link, nft, nft_ask, nft_read, plan, records
from hooks.netlink import Socket
from tests.net.lab import Lab

TAG = "0123456789ab"
PORT = link.Port(7, bytes((10, 207, 0, 1)), 22, bytes((10, 207, 0, 5)))
OTHER = link.Port(7, bytes((10, 207, 0, 1)), 22, bytes((10, 207, 0, 6)))
PINNED = [
    ("tcp", "203.0.113.9", 443, 443),
    ("udp", "203.0.113.9", 443, 443),
    ("tcp", "203.0.113.9", 1000, 1003),
    ("tcp", "203.0.113.9", 1002, 1005),
]
SERVICES = [("tcp", "10.207.0.1", 9000, 9000), ("udp", "192.168.50.1/32", 53, 60)]
PUBLISHED = [("127.0.0.1", 8080, 80, "tcp"), ("192.168.50.1", 8081, 80, "tcp"), ("127.0.0.1", 8080, 53, "udp")]
SECTION = {
    "outbound": [["tcp", "203.0.113.5", 443, 443], ["udp", "198.51.100.0/24", 53, 60], ["tcp", "2001:db8::/32", 1, 2]],
    "icmp": True,
}
BY_HAND = {
    ("bridge", "ports"): '"av0acf0005" . 02:a5:0a:cf:00:05 . 10.207.0.5',
    ("inet", "agents"): "10.207.0.5",
    ("inet", "policies_out"): f"10.207.0.5 : jump out_{TAG}",
    ("inet", "policies_in"): f"10.207.0.5 : jump in_{TAG}",
    ("inet", "pinned"): "10.207.0.5 . tcp . 203.0.113.9 . 443, 10.207.0.5 . udp . 203.0.113.9 . 443",
    ("inet", "pinned_wide"): "10.207.0.5 . tcp . 203.0.113.9 . 1000-1005",
    ("inet", "services"): "10.207.0.5 . 10.207.0.1 . tcp . 9000",
    ("inet", "services_wide"): "10.207.0.5 . 192.168.50.1 . udp . 53-60",
    ("inet", "published"): (
        "127.0.0.1 . tcp . 8080 : 10.207.0.5 . 80, 192.168.50.1 . tcp . 8081 : 10.207.0.5 . 80,"
        " 127.0.0.1 . udp . 8080 : 10.207.0.5 . 53"
    ),
    ("inet", "served"): "10.207.0.5 . tcp . 80, 10.207.0.5 . udp . 53",
}


def listed(lab: Lab) -> list[str]:
    """The ruleset as nft lists it, elements in one order."""
    out = []
    for one in lab.rules():
        for value in one.values():
            if isinstance(value.get("elem"), list):
                value["elem"].sort(key=repr)
        out.append(json.dumps(one, sort_keys=True))
    return sorted(out)


def load(lab: Lab) -> None:
    lab.nft("-f", "-", text=host_rules.tables() + host_rules.policy(TAG, SECTION))


def come() -> tuple[plan.Step, ...]:
    """All of one container."""
    return (host.enter(PORT, TAG, PINNED, SERVICES), *host.doors(PORT, PUBLISHED))


def ask(lab: Lab, data: bytes) -> None:
    with records.opened(lab.path) as kernel:
        kernel.ask(data, 1)


def test_ours_is_what_nft_makes_of_the_text(lab: Lab) -> None:
    load(lab)
    empty = listed(lab)
    steps = come()
    for step in steps:
        ask(lab, step.do)
    ours = listed(lab)
    for step in steps:
        ask(lab, step.undo)
    assert listed(lab) == empty != ours
    for (family, name), elements in BY_HAND.items():
        lab.nft("add", "element", family, "agentshim", name, f"{{ {elements} }}")
    assert listed(lab) == ours


def test_loading_twice_changes_nothing_and_keeps_elements(lab: Lab) -> None:
    load(lab)
    for step in come():
        ask(lab, step.do)
    lease = nft.lease(labels.TABLE, "leased", host.flow_key(PORT.address, "tcp", bytes(4), 1), 60_000)
    ask(lab, nft.batch([lease]))
    before = listed(lab)
    load(lab)
    assert listed(lab) == before and sum("leased" in one and "elem" in one for one in before) == 1


def test_a_policys_text_holds_what_grants_says(lab: Lab) -> None:
    load(lab)
    with records.opened(lab.path) as kernel:
        found = {
            (key, last)
            for name in (f"hosts_{TAG}", f"nets_{TAG}")
            for key, last in nft_read.entries(kernel.dump(nft_ask.list_elements(labels.TABLE, name)))
        }
    keys, six = grants.outbound(SECTION)
    assert found == {(first, last if first != last else b"") for first, last in keys} and six


def test_what_is_read_back_says_whose_it_is(lab: Lab) -> None:
    load(lab)
    every = host.entries(PORT, TAG, PINNED, SERVICES)
    for step in come():
        ask(lab, step.do)
    ask(lab, host.enter(OTHER, TAG).do)
    found: dict[tuple[int, str, bytes, bytes], bytes] = {}
    with records.opened(lab.path) as kernel:
        for family, name in host.ELEMENTS:
            told = nft_read.entries(kernel.dump(nft_ask.list_elements(labels.TABLE, name, family)))
            found.update({(family, name, *key): data for key, data in told.items()})
    mine = {key for key, data in found.items() if host.address_in(key[1], key[2], data) == PORT.address}
    doors = {one[:4] for one in mine if one[1] in ("served", "published")}
    assert doors and mine - doors == {one[:4] for one in every} and len(found) == len(mine) + 4
    assert found[nft_ask.INET, "policies_out", PORT.address, b""] == f"out_{TAG}".encode()
    ask(lab, nft.mixed(host.drop(mine)))
    filled = sum("'elem': [" in one or '"elem": [' in one for one in listed(lab))
    assert filled == 4 + 2  # the other agent's, and the policy's


def test_all_or_nothing_and_nobody_elses(lab: Lab) -> None:
    """An element that is there already (a port that somebody has published) keeps all others out, and stays."""
    load(lab)
    for step in come():
        ask(lab, step.do)
    before = listed(lab)
    for step in (*host.doors(OTHER, PUBLISHED[:1]), host.enter(PORT, TAG), host.enter(OTHER, "f" * 12)):
        try:
            ask(lab, step.do)
        except (FileExistsError, FileNotFoundError):
            assert listed(lab) == before
            continue
        raise AssertionError("taken")


def test_undone_one_by_one_where_some_are_gone(lab: Lab) -> None:
    """At a container's end each element goes alone: hooks.plan.release, and the native hook."""
    load(lab)
    empty = listed(lab)
    for step in come():
        ask(lab, step.do)
    lab.nft("flush", "set", "inet", "agentshim", "services")
    lab.nft("delete", "element", "bridge", "agentshim", "ports", f"{{ {BY_HAND['bridge', 'ports']} }}")
    with records.opened(lab.path) as kernel:
        plan.release(come(), lambda room, family: kernel)
    assert listed(lab) == empty


def test_a_door_of_another_stays(lab: Lab) -> None:
    """Who never had it, because it was taken or because an engine made its network, does not end it."""
    load(lab)
    for step in come():
        ask(lab, step.do)
    before = listed(lab)
    with records.opened(lab.path) as kernel:
        plan.release(host.doors(OTHER, PUBLISHED), lambda room, family: kernel)
    assert listed(lab) == before


def test_the_end_of_a_policy(lab: Lab) -> None:
    lab.nft("-f", "-", text=host_rules.tables())
    before = listed(lab)
    load(lab)
    step = host.enter(PORT, TAG)
    ask(lab, step.do)
    done = subprocess.run(
        ["nsenter", f"--net={lab.path}", "nft", "-f", "-"],
        input=host_rules.no_policy(TAG),
        text=True,
        capture_output=True,
    )
    assert done.returncode and "busy" in done.stderr  # somebody has it
    ask(lab, step.undo)
    lab.nft("-f", "-", text=host_rules.no_policy(TAG))
    assert listed(lab) == before


def test_ten_thousand_grants_load(lab: Lab) -> None:
    section: dict[str, Any] = {"outbound": [["tcp", f"198.51.{n >> 8}.{n & 255}", 443, 443] for n in range(10_000)]}
    lab.nft("-f", "-", text=host_rules.tables() + host_rules.policy(TAG, section))
    with records.opened(lab.path) as kernel:
        assert len(nft_read.entries(kernel.dump(nft_ask.list_elements(labels.TABLE, f"hosts_{TAG}")))) == 10_000


def test_a_fingerprint_is_a_question_of_less_than_a_start(lab: Lab) -> None:
    """It takes 0.3 ms; here only that it is one, and that another bit of the mark is another one."""
    load(lab)

    def read(kernel: Socket) -> bytes:
        return fingerprint.taken(kernel)

    with records.opened(lab.path) as kernel:
        one = read(kernel)
        assert one == read(kernel)
        lab.nft("-f", "-", text=host_rules.tables(0x00010000))
        assert read(kernel) != one
        assert "0x00010000" in lab.nft("list", "ruleset") and "0x00800000" not in lab.nft("list", "ruleset")


ports = st.tuples(st.integers(1, 20), st.integers(0, 5)).map(lambda one: (one[0], one[0] + one[1]))
pinned = st.lists(
    st.tuples(st.sampled_from(["tcp", "udp"]), st.sampled_from(["203.0.113.1", "203.0.113.2"]), ports).map(
        lambda one: (one[0], one[1], *one[2])
    )
)


@given(pinned)
def test_no_two_elements_are_of_one_packet(asked: list[tuple[str, str, int, int]]) -> None:
    """A set of ranges refuses two that overlap: and each port that was granted is in one of them."""
    seen: dict[tuple[str, str, int], int] = {}
    for family, name, key, last, _ in host.entries(PORT, TAG, asked, ()):
        if name.startswith("pinned"):
            _, number, far, first = host.FLOW_KEY.unpack(key)
            end = host.FLOW_KEY.unpack(last)[3] if last else first
            for port in range(first, end + 1):
                place = (grants.NAMES[number], labels.dotted(far), port)
                seen[place] = seen.get(place, 0) + 1
            assert (name == "pinned_wide") == bool(last) and family == nft_ask.INET
    assert set(seen.values()) <= {1}
    assert set(seen) == {(proto, far, port) for proto, far, low, high in asked for port in range(low, high + 1)}
