"""The link on a LAN, as the native hook and the replay in Python make it: a namespace plays the host with its card."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hooks import link, plan
from hooks.link import Port
from hooks.plan import Step
from shim.errors import HostError
from tests.net import lab as labs
from tests.net.test_link import Ground

GATEWAY, ADDRESS = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 65))


class Card(Ground):
    """`i` plays the host; `bridge` is the number of its card."""

    def _make(self) -> None:
        for name in (self.c, self.i):
            self.new(name)
        self.batch(
            self.i, "link set lo up", "link add card type veth peer name far", "link set card up", "link set far up"
        )
        self.bridge = self.inside(self.i, lambda: socket.if_nametoindex("card"))

    def steps(self, address: bytes = ADDRESS, **options: Any) -> tuple[Step, ...]:
        return link.on_lan(Port(self.bridge, GATEWAY, 24, address), **options)

    def make(self, way: str, steps: tuple[Step, ...], place: Path) -> str:
        """What went wrong, '' where nothing did."""
        if way == "native":
            return self.call(steps, place / "plan").stderr
        try:
            self.python(steps)
        except HostError as error:
            return str(error)
        return ""

    def names(self) -> list[str]:
        found: list[str] = self.inside(self.c, lambda: [name for _, name in socket.if_nameindex()])
        return found


@pytest.fixture(params=["native", "python"])
def way(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and not labs.HOOK.exists():
        pytest.skip("NO NATIVE HOOK HERE: run make build")
    return str(request.param)


@pytest.fixture
def card() -> Iterator[Card]:
    lacking = labs.missing()
    if lacking:
        pytest.skip(lacking)
    made = Card()
    try:
        yield made
    finally:
        made.close()


def test_it_is_as_it_was_planned(card: Card, way: str, tmp_path: Path) -> None:
    assert card.make(way, card.steps(), tmp_path) == ""
    told = subprocess.run(["ip", "-n", card.c, "-d", "address"], check=True, capture_output=True, text=True).stdout
    for word in ("1000: eth0@", "link/ether 02:a5:c0:00:02:41", "macvlan mode private", "inet 192.0.2.65/24", ",UP"):
        assert word in told, told
    routes = subprocess.run(["ip", "-n", card.c, "route"], check=True, capture_output=True, text=True).stdout
    assert "default via 192.0.2.1 dev eth0" in routes and "192.0.2.0/24 dev eth0" in routes
    assert "inet6 fe80" not in told.partition("eth0")[2]


def test_a_step_that_fails_leaves_no_interface(card: Card, way: str, tmp_path: Path) -> None:
    """Last of all a step that the kernel refuses."""
    wrong = Step(plan.HOST, 0, link._removed("nobody"), b"", 1, "an interface that is not there")
    assert card.make(way, (*card.steps(), wrong), tmp_path) != ""
    assert card.names() == ["lo"]


def test_a_card_that_is_gone(card: Card, way: str, tmp_path: Path) -> None:
    steps = link.on_lan(Port(4711, GATEWAY, 24, ADDRESS))
    assert "step 1" in card.make(way, steps, tmp_path)
    assert card.names() == ["lo"]


def test_the_hosts_side_has_nothing_to_undo(card: Card) -> None:
    assert not any(step.released for step in card.steps())


def test_no_network_of_another_is_changed(card: Card, way: str, tmp_path: Path) -> None:
    """Where an engine has made one, ours is not made."""
    card.batch(card.c, "link add theirs type bridge", "link set theirs up")
    assert card.make(way, card.steps(), tmp_path) == ""
    assert card.names() == ["lo", "theirs"]
