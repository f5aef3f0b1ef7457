"""What nft(8) makes of the lock's text and what we send are one table, as the kernel lists it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from hooks import lock
from tests.net import oracle
from tests.net.lab import HOOK, Lab

V4 = [["tcp", "203.0.113.9", 22, 22], ["tcp", "203.0.113.0/24", 443, 443], ["udp", "198.51.100.7", 53, 1000]]
V6 = [["udp", "2001:db9::1", 53, 53], ["tcp", "2001:db8::/32", 80, 81], ["udp", "2001:db8:1::1", 0, 65535]]


def section(out6: bool, dns: bool, icmp: bool) -> dict[str, Any]:
    return {
        "mode": "confine",
        "outbound": V4 + V6 if out6 else V4,
        "inbound": [["tcp", 8080, 8080], ["udp", 5000, 5010]],
        "dns": dns,
        "icmp": icmp,
    }


ELEMENTS = {
    "hosts": ["tcp . 203.0.113.9 . 22"],
    "hosts6": ["udp . 2001:db9::1 . 53"],
    "outbound": ["tcp . 203.0.113.0/24 . 443", "udp . 198.51.100.7 . 53-1000"],
    "outbound6": ["tcp . 2001:db8::/32 . 80-81", "udp . 2001:db8:1::1 . 0-65535"],
    "inbound": ["tcp . 8080", "udp . 5000-5010"],
}


def parts(listed: list[Any]) -> dict[str, Any]:
    """By kind and name, so that the order in which sets and chains were made plays no part; rules stay in order."""
    out: dict[str, Any] = {}
    for one in listed:
        ((kind, value),) = one.items()
        if kind == "rule":
            out.setdefault(f"rules {value['chain']}", []).append(value["expr"])
        else:
            out[f"{kind} {value.get('name')}"] = value
    for name, value in out.items():
        if name.startswith("set") and "elem" in value:
            value["elem"].sort(key=repr)
    return out


@pytest.mark.parametrize(("six", "dns", "icmp"), list(itertools.product((False, True), repeat=3)))
def test_ours_is_what_nft_makes_of_the_text(lab: Lab, six: bool, dns: bool, icmp: bool) -> None:
    lab.load(section(six, dns, icmp))
    ours = parts(lab.rules())
    lab.nft("delete", "table", "inet", "agentshim")
    lab.nft("-f", "-", text=oracle.text(ELEMENTS, six, dns, icmp))
    theirs = parts(lab.rules())
    errors = [(chain, rule) for chain, rule in _rules(ours) if oracle.unreadable(rule)]
    assert errors == sorted(oracle.related(six), key=lambda one: [name for name, _ in _rules(ours)].index(one[0]))
    for name in ours:
        if name.startswith("rules"):
            ours[name] = [rule for rule in ours[name] if not oracle.unreadable(rule)]
    assert ours == theirs


def _rules(made: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name[6:], rule) for name, rules in made.items() if name.startswith("rules") for rule in rules]


def test_any_is_everything_in_both_families(lab: Lab) -> None:
    lab.load({"outbound": "any", "inbound": "any"})
    listed = lab.nft("list", "ruleset")
    for element in ("tcp . 0.0.0.0/0 . 0-65535", "udp . ::/0 . 0-65535", "tcp . 0-65535"):
        assert element in listed


def test_the_native_hook_and_the_replay_make_one_table(lab: Lab, tmp_path: Any) -> None:
    if not HOOK.exists():
        pytest.skip("NO native/build/agentshim-net: THE HOOK IS NOT TESTED WITH REAL PLANS")
    steps = lock.steps(section(True, False, True))
    done = lab.hook(steps, tmp_path / "plan")
    assert (done.returncode, done.stderr) == (0, "")
    ours = lab.rules()
    again = lab.hook(steps, tmp_path / "plan")
    assert again.returncode == 1 and "confined already" in again.stderr and again.stderr.count("\n") == 1
    assert lab.rules() == ours
    lab.nft("delete", "table", "inet", "agentshim")
    lab.replay(steps)
    assert lab.rules() == ours
