"""A refresh that fails half-way, the list of leases, and a proxy that nobody could reach: without a kernel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hooks import records
from shim import names, state
from shim.cold import audit
from shim.cold.network import leases, net, net_refresh, network_source
from shim.errors import HostError, Invalid, Refused

BEFORE: dict[str, Any] = {
    "mode": "isolated",
    "names": [["tcp", "a.test", 443, 443], ["tcp", "b.test", 443, 443], ["udp", "a.test", 500, 600]],
    "pins": {"a.test": ["203.0.113.1"], "b.test": ["203.0.113.1"]},
    "outbound": [
        ["tcp", "203.0.113.1/32", 443, 443],  # granted for itself, too
        ["tcp", "203.0.113.1", 443, 443],
        ["udp", "203.0.113.1", 500, 600],
        ["tcp", "10.207.0.1", 9000, 9000],
    ],
    "pinned": [["tcp", "203.0.113.1", 443, 443], ["udp", "203.0.113.1", 500, 600], ["tcp", "192.0.2.9", 53, 53]],
    "resolvers": ["192.0.2.9"],
    "publish": [],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where records are; root's alone, as Directory wants it."""
    if os.geteuid() != 0:
        pytest.skip("SKIPPED LOUDLY: records are root's")
    here = Path("/run") / f"agentshim-test-{os.getpid()}"
    here.mkdir(mode=0o700)
    monkeypatch.setattr(state, "DIRECTORY", str(here))
    return here


@pytest.fixture(autouse=True)
def _tidy() -> Any:
    yield
    here = Path("/run") / f"agentshim-test-{os.getpid()}"
    for path in here.iterdir() if here.is_dir() else ():
        path.unlink()
    if here.is_dir():
        here.rmdir()


def record(**more: Any) -> dict[str, Any]:
    return {"version": state.VERSION, "root": "/r", "id": "c", "policy": "p", "digest": "d", "network": BEFORE, **more}


def test_what_names_led_to_is_exchanged_and_nothing_else() -> None:
    section = net_refresh._section(BEFORE, {"a.test": ["203.0.113.7", "203.0.113.8"], "b.test": ["203.0.113.8"]})
    kept = [["tcp", "203.0.113.1/32", 443, 443], ["tcp", "10.207.0.1", 9000, 9000]]
    new = [
        ["tcp", "203.0.113.7", 443, 443],
        ["tcp", "203.0.113.8", 443, 443],
        ["udp", "203.0.113.7", 500, 600],
        ["udp", "203.0.113.8", 500, 600],
    ]
    assert section["outbound"] == kept + new
    assert section["pinned"] == [*new, ["tcp", "192.0.2.9", 53, 53], ["udp", "192.0.2.9", 53, 53]]
    assert BEFORE["outbound"][1] == ["tcp", "203.0.113.1", 443, 443], "the record itself is as it was"
    back = net_refresh._section(section, BEFORE["pins"])
    assert sorted(back["outbound"]) == sorted(BEFORE["outbound"])


class Kernel:
    """Stands in for a netfilter socket; `fails`: whether it refuses the first request."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.asked = 0

    def ask(self, data: bytes, acks: int) -> None:
        self.asked += 1
        if self.fails and self.asked == 1:
            raise OSError(28, "")


def door(kernel: Any) -> net_refresh.Door:
    one = net_refresh.Door(kernel, "a lock")
    one.differ({("hosts", b"old", b"")}, {("hosts", b"new", b"")})
    return one


@pytest.mark.parametrize("fault", ["first", "second", "ended", "hosts", "record"])
def test_all_changes_or_nothing(place: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Whichever step fails, both locks and /etc/hosts are as they were, and the record was not written."""
    here, after = record(), {**BEFORE, "pins": {"a.test": ["203.0.113.7"], "b.test": []}}
    file = Path(state.hosts_path("/r", "c"))
    file.write_bytes(names.hosts({}, {}, BEFORE["pins"]))
    before, first, second = file.read_bytes(), Kernel(fault == "first"), Kernel(fault == "second")
    monkeypatch.setattr(state, "init_of", lambda one: 0 if fault == "ended" else 7)
    told = net_refresh._tell_container

    def torn(one: Any, pins: Any) -> None:
        told(one, pins)
        if fault == "hosts" and pins is after["pins"]:
            raise HostError("network", "hosts", "torn", "whole", "again")

    monkeypatch.setattr(net_refresh, "_tell_container", torn)
    if fault == "record":
        monkeypatch.setattr(net_refresh, "_keep", lambda *_: (_ for _ in ()).throw(HostError("a", "b", 1, 2, "c")))
    held = os.open(place, os.O_RDONLY)
    with pytest.raises(HostError):
        net_refresh._done(here, [door(first), door(second)], [here], after, held)
    os.close(held)
    assert (first.asked, second.asked) == {"first": (1, 0), "second": (2, 1)}.get(fault, (2, 2))
    assert file.read_bytes() == before
    assert not list(place.glob("*" + state.RECORD))


def test_what_was_decided_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = record()
    monkeypatch.setattr(state, "init_of", lambda one: 7)
    file = Path(state.hosts_path("/r", "c"))
    file.write_bytes(b"127.0.0.1\tlocalhost\n" + names.MARK + b"203.0.113.1\tan.old.name.that.is.long\n" * 3)
    inode = file.stat().st_ino
    section = net_refresh._section(BEFORE, {"a.test": ["203.0.113.7"], "b.test": ["203.0.113.8"]})
    held = os.open(place / "x", os.O_RDWR | os.O_CREAT, 0o600)
    net_refresh._done(here, [door(Kernel())], [here], section, held)
    os.close(held)
    assert file.stat().st_ino == inode, "a mount of the file sees it"
    assert file.read_text().splitlines()[-2:] == ["203.0.113.7\ta.test", "203.0.113.8\tb.test"]
    assert file.read_text().startswith("127.0.0.1\tlocalhost\n" + names.MARK.decode())
    kept = state.load("/r", "c")
    assert kept is not None and kept["network"] == section


# The list of leases


class World:
    """What the kernel has, what was recorded, and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running: set[tuple[str, str, int]] = set()
        self.recorded: list[str] = []
        self.time = 1000
        monkeypatch.setattr(leases, "now", lambda: self.time)
        monkeypatch.setattr(state, "init_of", lambda one: 7)
        monkeypatch.setattr(records, "leases", lambda place: [(*one, 0, 0) for one in self.running])
        monkeypatch.setattr(audit, "write", lambda action, one, peer, ended: self.recorded.append(peer))


def test_a_lease_is_over_when_time_and_kernel_say_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    leases.granted(record(), "tcp:a.test:22", ["203.0.113.1", "2001:db8::1"], 5)
    assert leases.settle(record()) == [], "not in the kernel yet, but about to be"
    assert leases.addresses(record(), "tcp:a.test:22") == ["203.0.113.1", "2001:db8::1"]
    world.running = {("tcp", "203.0.113.1", 22)}
    world.time += 6000
    assert leases.settle(record()) == ["tcp:[2001:db8::1]:22"]
    world.running.clear()
    assert leases.settle(record()) == ["tcp:203.0.113.1:22"] and leases.settle(record()) == []
    assert world.recorded == ["tcp:[2001:db8::1]:22", "tcp:203.0.113.1:22"]


def test_what_could_not_be_recorded_is_found_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    leases.granted(record(), "udp:203.0.113.1:53", ["203.0.113.1"], 5)
    world.time += 6000
    full = HostError("audit", "log", "full", "room", "make some")
    with monkeypatch.context() as patched:
        patched.setattr(audit, "write", lambda *_, **__: (_ for _ in ()).throw(full))
        with pytest.raises(HostError):
            leases.settle(record())
    assert leases.settle(record()) == ["udp:203.0.113.1:53"]


def test_one_peer_is_on_the_list_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is written; and a name that leads elsewhere by now keeps what is leased of it."""
    world = World(monkeypatch)
    leases.granted(record(), "tcp:a.test:22", ["203.0.113.1"], 5)
    leases.granted(record(), "203.0.113.1:22", ["203.0.113.1"], 50)
    leases.granted(record(), "udp:203.0.113.1:22", ["203.0.113.1"], 50)
    world.time += 6000
    assert leases.settle(record()) == []
    leases.revoked(record(), "tcp:203.0.113.1:22", ["203.0.113.1"])
    world.time += 60000
    assert leases.settle(record()) == ["udp:203.0.113.1:22"]


def test_a_list_of_before_there_were_ends(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    World(monkeypatch)
    state.leased(record(), {"tcp:a.test:22": ["203.0.113.1"]})
    assert leases.addresses(record(), "tcp:a.test:22") == ["203.0.113.1"]
    assert leases.settle(record()) == ["tcp:203.0.113.1:22"]


class Lessor(World):
    """Runs `lease` against a kernel and a log that refuse on demand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, links: set[str], **network: Any) -> None:
        super().__init__(monkeypatch)
        self.log: list[tuple[str, str, str]] = []
        self.kernel_takes = self.log_takes = 99
        self.one = record(network={**BEFORE, **network})
        monkeypatch.setattr(net, "find", lambda subject: self.one)
        monkeypatch.setattr(net, "_bounded", lambda *_, **__: None)
        monkeypatch.setattr(net, "_addresses", lambda host: ["203.0.113.1", "203.0.113.2"])
        monkeypatch.setattr(net, "_links", lambda namespace: links)
        monkeypatch.setattr(records, "lease_add", self.add)
        monkeypatch.setattr(records, "lease_del", lambda place, *peer: self.running.discard(peer[:3]))
        monkeypatch.setattr(audit, "write", self.write)

    def add(self, place: str, protocol: str, address: str, port: int, *_: Any) -> None:
        if not self.kernel_takes:
            raise HostError("network", "lease", "full", "room", "revoke one")
        self.kernel_takes -= 1
        self.running.add((protocol, address, port))

    def write(self, action: str, one: Any, failed: Exception | None = None, peer: str = "", **_: Any) -> None:
        if not self.log_takes:
            raise HostError("audit", "log", "full", "room", "make some")
        self.log_takes -= 1
        self.log.append((action, peer.split(":")[1][-1], "failure" if failed else "success"))

    def egress(self) -> int:
        return net.main("lease", ["egress", "c", "tcp:a.test:22", "--ttl", "5s", "--why", "a test"])


def test_what_the_kernel_refuses_is_recorded_as_a_failure(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lessor = Lessor(monkeypatch, {"lo", "eth0"})
    lessor.kernel_takes = 1
    with pytest.raises(HostError, match="revoke one"):
        lessor.egress()
    granted = "lease_granted"
    assert lessor.log == [(granted, "1", "success"), (granted, "2", "success"), (granted, "2", "failure")]
    assert leases.addresses(lessor.one, "tcp:a.test:22") == ["203.0.113.1"], "the other has not been, and cannot expire"
    lessor.kernel_takes, lessor.log_takes = 0, 1
    with pytest.raises(HostError, match="revoke one"):
        lessor.egress()


def test_a_revocation_that_is_not_recorded_is_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lessor = Lessor(monkeypatch, {"lo", "eth0"})
    assert lessor.egress() == 0 and len(lessor.running) == 2
    lessor.log_takes = 0
    with pytest.raises(HostError, match="make some"):
        net.main("lease", ["revoke", "c", "tcp:a.test:22"])
    assert not lessor.running and leases.addresses(lessor.one, "tcp:a.test:22") == []


@pytest.mark.parametrize(
    ("links", "mode", "words"),
    [
        ({"lo"}, "auto", "which has only lo"),
        ({"lo", "tunl0", "sit0"}, "confine", "which has only lo"),
        ({"lo", "eth0"}, "dead-end", "mode dead-end"),
    ],
)
def test_no_lease_where_nothing_passes(
    place: Path, monkeypatch: pytest.MonkeyPatch, links: set[str], mode: str, words: str
) -> None:
    lessor = Lessor(monkeypatch, links, mode=mode)
    with pytest.raises(Refused, match=words):
        lessor.egress()
    assert not lessor.log and not lessor.running and leases.addresses(lessor.one, "tcp:a.test:22") == []


def test_the_links_of_a_process() -> None:
    assert "lo" in net._links(f"/proc/{os.getpid()}/ns/net")


# A proxy


@pytest.mark.parametrize(
    ("more", "reached"),
    [
        ({}, False),
        ({"inbound": ["tcp:80"]}, False),
        ({"host_services": ["tcp:3128"]}, True),
        ({"outbound": ["tcp:a.test:443", "tcp:203.0.113.5:3128"]}, True),
    ],
)
def test_a_proxy_that_nobody_reaches_is_refused(more: dict[str, Any], reached: bool) -> None:
    section = {"mode": "isolated", "names": "proxy", "outbound": ["tcp:a.test:443"], **more}
    if not reached:
        with pytest.raises(Invalid, match="nothing would be reached"):
            network_source.expand(section, set())
        return
    compiled = network_source.expand(section, set())
    assert compiled["proxied"] == [["tcp", "a.test", 443, 443]] and "names" not in compiled
