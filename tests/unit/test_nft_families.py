"""Batches over several families, elements of maps, and what is malformed: bytes alone, without a kernel."""

from __future__ import annotations

import re

import pytest

from hooks import host, host_rules, labels, link, netlink, nft, nft_ask, nft_read, plan
from shim.errors import Invalid

PORT = link.Port(7, bytes((10, 207, 0, 1)), 22, bytes((10, 207, 0, 5)))


def heads(data: bytes) -> list[tuple[int, int, int]]:
    """(type, flags, family) of each message."""
    return [(kind, flags, payload[0]) for kind, flags, _, payload in netlink.messages(data)]


def test_one_family_is_as_before() -> None:
    every = [nft.new_table("t"), nft.release("t", "s", b"1234")]
    assert nft.batch(every) == nft.mixed((nft_ask.INET, one) for one in every)
    assert [family for _, _, family in heads(nft.batch(every))] == [0, nft_ask.INET, nft_ask.INET, 0]


def test_each_message_has_its_family_and_the_last_one_answers() -> None:
    told = heads(nft.mixed([(nft_ask.BRIDGE, nft.entry("t", "s", b"1")), (nft_ask.INET, nft.entry("t", "s", b"1"))]))
    assert [family for _, _, family in told] == [0, nft_ask.BRIDGE, nft_ask.INET, 0]
    assert [bool(flags & netlink.ACK) for _, flags, _ in told] == [False, False, True, False]


def test_an_element_must_be_new() -> None:
    _, flags, _ = nft.entry("t", "s", b"1")
    assert flags & netlink.EXCL


@pytest.mark.parametrize("data", [nft.chain("out_x"), nft.value(b"12345678"), b""])
def test_what_is_written_is_read(data: bytes) -> None:
    for last in (b"", b"9999"):
        _, _, payload = nft.entry("t", "s", b"1234", last, data)
        ((key, value),) = nft_read.entries([bytes(4) + payload]).items()
        assert key == (b"1234", last)
        assert value == {nft.chain("out_x"): b"out_x", nft.value(b"12345678"): b"12345678", b"": b""}[data]


def test_a_plan_holds_the_step() -> None:
    step = host.enter(PORT, "0123456789ab", [("tcp", "203.0.113.1", 1, 9)], [("tcp", "10.207.0.1", 1, 1)])
    (read,) = plan.decode(plan.encode([step]))
    assert (read.do, read.undo, read.acks, read.room) == (step.do, step.undo, 1, plan.HOST | plan.ONLY_EMPTY)
    assert read.released and "10.207.0.5" in str(step)


def test_one_element_a_message_at_the_end() -> None:
    step = host.enter(PORT, "0123456789ab")
    assert len(heads(step.undo)) == len(heads(step.do)) == 4 + 2
    (door,) = host.doors(PORT, [("127.0.0.1", 1, 2, "tcp"), ("127.0.0.1", 2, 2, "tcp")])
    assert door.room & plan.WHOLE and len(heads(door.undo)) == len(heads(door.do)) == 2 + 1 + 2


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("pinned", [("sctp", "203.0.113.1", 1, 1)]),
        ("pinned", [("tcp", "203.0.113.0/24", 1, 1)]),
        ("pinned", [("tcp", "203.0.113.1", 0, 1)]),
        ("pinned", [("tcp", "203.0.113.1", 2, 1)]),
        ("pinned", [("tcp", "203.0.113.1", 1, 65536)]),
        ("services", [("tcp", "10.207.0.1", 0, 0)]),
        ("services", [("icmp", "10.207.0.1", 1, 1)]),
        ("services", [("tcp", "10.207.0.0/24", 1, 1)]),
        ("published", [("0.0.0.0", 1, 1, "tcp")]),
        ("published", [("::1", 1, 1, "tcp")]),
        ("published", [("127.0.0.1", 0, 1, "tcp")]),
        ("published", [("127.0.0.1", 1, 70000, "tcp")]),
    ],
)
def test_malformed_grants(what: str, value: object) -> None:
    def made() -> object:
        if what == "published":
            return host.doors(PORT, value)  # type: ignore[arg-type]
        return host.enter(PORT, "0123456789ab", **{what: value})  # type: ignore[arg-type]

    with pytest.raises(Invalid):
        made()


def test_a_tag_is_of_a_digest() -> None:
    assert labels.tag("sha256:" + "0a" * 32) == "0a" * 6
    for wrong in ("", "sha256:", "sha256:xyz" + "0" * 20, "0a0a; flush"):
        with pytest.raises(Invalid):
            labels.tag(wrong)


def test_the_hard_deny_is_that_of_the_lock_inside() -> None:
    assert host_rules.hard() == ["169.254.0.0/16", "100.100.100.200/32", "0.0.0.0/8", "224.0.0.0/3"]


def test_no_rule_believes_what_is_established() -> None:
    text = host_rules.tables() + host_rules.policy("0123456789ab", {"outbound": "any", "icmp": True})
    named = [line for line in text.splitlines() if "established" in line]
    assert named and all(line.endswith(" ip saddr vmap @policies_out") for line in named), "it is looked up as well"
    # A counter of a rule's own would change the fingerprint with every packet.
    counting = [line for line in text.splitlines() if "counter" in line]
    assert all(re.search(r" add @\w+ \{ [^}]* counter \}$", line) for line in counting) and len(counting) == 2
