"""What `agentshim denied` makes of the rows of both locks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hooks import host_state, records
from shim.cold import denied
from shim.cold.network import net

SECTION = {"address": "10.207.0.5", "profile": "web"}


@pytest.mark.parametrize(
    ("text", "since"),
    [("record 7 1234\n", 12.34), ("-ecord 7 1234\n", 12.34), ("", None), ("record 7\n", None), ("record 7 x\n", None)],
    ids=["alive", "its owner has ended", "torn", "cut off", "no number"],
)
def test_since_when_the_address_is_its_own(
    text: str, since: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bytes, float]] = []

    def of_agent(found: records.AtHost, agent: bytes, since: float) -> records.Records:
        asked.append((agent, since))
        return {}

    monkeypatch.setattr(host_state, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(records, "at_host", dict)
    monkeypatch.setattr(records, "of_agent", of_agent)
    place = tmp_path / "web" / "addresses"
    place.mkdir(parents=True)
    assert net.beside({"network": SECTION}) == {} and asked == []
    (place / "10.207.0.5").write_text(text)
    assert net.beside({"network": SECTION}) == {}
    ticks = os.sysconf("SC_CLK_TCK")
    assert asked == ([] if since is None else [(b"\x0a\xcf\x00\x05", since * 100 / ticks)])


def test_an_engines_network_has_no_rows_at_the_host() -> None:
    assert net.beside({"network": {"mode": "confine"}}) == {}


def test_rows_of_both_locks_are_one() -> None:
    one, other = ("tcp", "203.0.113.5", 80, 1, 60), ("tcp", "203.0.113.5", 80, 2, 100)
    last = ("udp", "203.0.113.5", 53, 4, 300)
    assert net._summed([last, one], [other]) == [("tcp", "203.0.113.5", 80, 3, 160), last]
    assert net._summed([], ()) == []


def test_who_follows_is_told_of_what_has_grown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row of the host's that has ended makes a sum smaller."""
    looks = iter([(1, 60), (3, 180), (2, 120), (2, 120), (4, 240)])

    def rejected(record: dict[str, Any]) -> Any:
        counts = next(looks)
        yield "peer", counts, "", {"network.packets": counts[0]}

    monkeypatch.setattr(net, "rejected", rejected)
    shown: dict[Any, Any] = {}
    one: Any = type("Container", (), {"record": {"network": {}}})
    for _ in range(5):
        denied._network(one, True, shown)
    told = [json.loads(line)["network.packets"] for line in capsys.readouterr().out.splitlines()]
    assert told == [1, 3, 4]
