"""`agentshim net up|down|gc` in a namespace that the test makes: found right, repaired, refused; never open."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import posix
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hooks import host, host_state, labels, link, netlink, nft
from shim import policy
from shim.cold.network import bridges, net_agents, net_down, net_others, net_up, network_of_host, resolver
from shim.cold.policy import policies
from shim.errors import HostError, Invalid, Refused
from tests.net import lab as labs
from tests.net.lab import Lab

DIGEST, OTHER = "sha256:" + "0a" * 32, "sha256:" + "1b" * 32
SECTION: dict[str, Any] = {"mode": "isolated", "outbound": [["tcp", "203.0.113.5", 443, 443]], "publish": []}
PUBLISHING = {**SECTION, "publish": [["127.0.0.1", 8080, 80, "tcp"]]}


class Bare(Lab):
    """One namespace, `c`, with lo alone."""

    def _make(self) -> None:
        labs.ip("netns", "add", self.c)
        self.made.append(self.c)
        self.inside(self.c, lambda: Path(net_up.SETTINGS, "ipv4/ip_forward").write_text("0"))


@pytest.fixture
def lab() -> Iterator[Bare]:
    lacking = labs.missing()
    if lacking:
        pytest.skip(lacking)
    made = Bare()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "net")


def up(lab: Bare, place: str, profile: str = "web", section: Any = SECTION, digest: str = DIGEST, **more: Any) -> Any:
    """What up answers, and what it said."""

    def go() -> tuple[Any, list[str]]:
        told: list[str] = []
        return net_up.up(profile, section, digest, place, told=told.append, **more), told

    return lab.inside(lab.c, go)


def inside(lab: Bare, function: Callable[[], Any]) -> Any:
    return lab.inside(lab.c, function)


def gc(lab: Bare, place: str, living: set[str], grace: float = 600) -> dict[str, int]:
    counts: dict[str, int] = inside(lab, lambda: net_down.gc(place, lambda: living, grace))
    return counts


def down(lab: Bare, place: str, *profiles: str, living: frozenset[str] = frozenset(), force: bool = False) -> list[str]:
    said: list[str] = inside(lab, lambda: net_down.down(list(profiles), place, force, lambda: set(living)))
    return said


def everything(lab: Bare) -> list[str]:
    """All that the kernel has, handles included."""
    out = [lab.nft("-j", "-a", "list", "ruleset")]
    for words in (["-d", "link"], ["addr"], ["route", "show", "table", "all"]):
        told = subprocess.run(["ip", "-n", lab.c, "-j", *words], capture_output=True, text=True, check=True).stdout
        timed = ("linkinfo", "operstate", "flags")  # counts down, or changes a moment after what was asked
        out.append(json.dumps([{k: v for k, v in one.items() if k not in timed} for one in json.loads(told)]))
    return out


def enter(lab: Bare, place: str, owner: str, made: dict[str, Any], **grants: Any) -> bytes:
    """A container on a bridge: its address and its elements."""

    def go() -> bytes:
        address = host_state.take(place, made["profile"], owner)
        port = link.Port(made["index"], bytes(map(int, made["gateway"].split("."))), made["prefix"], address)
        with netlink.Socket(netlink.NETFILTER) as kernel:
            door = host.doors(port, grants.pop("published", ()))
            for step in (host.enter(port, made["tag"], **grants), *door):
                kernel.ask(step.do, 1)
        return address

    address: bytes = inside(lab, go)
    return address


def rules(lab: Bare) -> list[Any]:
    """Without handles; each table's for itself, in whatever order they were made."""
    every: list[Any] = labs.bare(lab.rules())
    return sorted(every, key=lambda one: [next(iter(one.values())).get("family")])


def setting(lab: Bare, name: str) -> str:
    text: str = inside(lab, lambda: Path(net_up.SETTINGS, name).read_text().strip())
    return text


def test_a_bridge_as_it_should_be(lab: Bare, place: str) -> None:
    made, told = up(lab, place)
    assert made | {"index": 0} == {
        "profile": "web", "bridge": "as-web", "prefix": 22, "subnet": "10.207.0.0/22", "gateway": "10.207.0.1",
        "tag": "0a" * 6, "published": False, "learned": False, "index": 0, "docker": "",
    }  # fmt: skip
    (shown,) = json.loads(
        subprocess.run(
            ["ip", "-n", lab.c, "-j", "-d", "addr", "show", "as-web"], capture_output=True, check=True
        ).stdout
    )
    assert shown["ifindex"] == made["index"] and shown["ifalias"] == "agentshim web" and "UP" in shown["flags"]
    assert shown["address"] == "02:a5:0a:cf:00:01" and shown["linkinfo"]["info_data"]["mcast_snooping"] == 0
    assert [(one["family"], one["local"], one["prefixlen"]) for one in shown["addr_info"]] == [
        ("inet", "10.207.0.1", 22)
    ]
    assert setting(lab, "ipv6/conf/as-web/disable_ipv6") == setting(lab, "ipv4/ip_forward") == "1"
    assert setting(lab, "ipv4/conf/as-web/route_localnet") == "0"
    assert len(told) == 1 and "ip_forward" in told[0]
    assert host_state.bridge(place, "web") == made
    assert [path.stat().st_mode & 0o777 for path in (Path(place), Path(place, "web", "addresses"))] == [0o700] * 2


def test_again_changes_nothing(lab: Bare, place: str) -> None:
    first, _ = up(lab, place)
    enter(lab, place, "somebody", first)
    before = everything(lab)
    assert up(lab, place) == (first, [])
    assert everything(lab) == before


def test_another_policy_keeps_the_elements_of_the_first(lab: Bare, place: str) -> None:
    first, _ = up(lab, place)
    enter(lab, place, "somebody", first, pinned=[("tcp", "203.0.113.9", 1, 1)])
    second, _ = up(lab, place, digest=OTHER)
    assert second == first | {"tag": "1b" * 6}
    listed = lab.nft("list", "ruleset")
    assert "10.207.0.2 : jump out_0a0a0a0a0a0a" in listed and "chain out_1b1b1b1b1b1b" in listed
    assert "10.207.0.2 . tcp . 203.0.113.9 . 1" in listed


def test_profiles_get_subnets_of_their_own_and_short_names(lab: Bare, place: str) -> None:
    one, _ = up(lab, place)
    two, _ = up(lab, place, "a-profile-with-a-name")
    three, _ = up(lab, place, "a-profile-of-a-name")
    assert [made["subnet"] for made in (one, two, three)] == ["10.207.0.0/22", "10.207.4.0/22", "10.207.8.0/22"]
    names = {made["bridge"] for made in (one, two, three)}
    assert len(names) == 3 and all(len(name) <= 15 for name in names)
    assert inside(lab, lambda: net_down.shown(place, set))[0]["up"]


def test_localnet_only_where_something_is_published(lab: Bare, place: str) -> None:
    made, _ = up(lab, place, section=PUBLISHING)
    assert made["published"] and setting(lab, "ipv4/conf/as-web/route_localnet") == "1"
    address = enter(lab, place, "somebody", made)
    up(lab, place, section=SECTION, digest=OTHER)
    assert setting(lab, "ipv4/conf/as-web/route_localnet") == "1"  # somebody is there who may have published
    host_state.give_back(place, "web", address)
    up(lab, place, section=SECTION, digest=OTHER)
    assert setting(lab, "ipv4/conf/as-web/route_localnet") == "0"


def test_a_dead_end_does_not_make_the_host_a_router(lab: Bare, place: str) -> None:
    _, told = up(lab, place, section={"mode": "dead-end", "services": [["tcp", 80, 80]]})
    assert setting(lab, "ipv4/ip_forward") == "0" and told == []


# What somebody else has done


@pytest.mark.parametrize(
    "change",
    [
        "nft flush ruleset",
        "nft delete table bridge agentshim",
        "nft flush chain inet agentshim from_agent",
        "nft insert rule inet agentshim from_agent accept",
        "ip link del as-web",
        "ip link set as-web down",
        "ip addr flush dev as-web",
        "ip link set as-web address 02:00:00:00:00:01",
        "sysctl -qw net.ipv6.conf.as-web.disable_ipv6=0",
        "sysctl -qw net.ipv4.ip_forward=0",
    ],
)
def test_repaired(lab: Bare, place: str, change: str) -> None:
    made, _ = up(lab, place)
    whole = rules(lab)
    subprocess.run(["ip", "netns", "exec", lab.c, *change.split()], check=True, capture_output=True)
    again, _ = up(lab, place)
    assert again | {"index": 0} == made | {"index": 0} and rules(lab) == whole
    for name in ("ipv6/conf/as-web/disable_ipv6", "ipv4/ip_forward"):
        assert setting(lab, name) == "1"
    (shown,) = inside(lab, lambda: net_down.shown(place, set))
    assert shown["up"] and shown["rules"]
    assert up(lab, place) == (again, [])


def ready(lab: Bare, place: str, digest: str = DIGEST) -> bool:
    def go() -> bool:
        with netlink.Socket(netlink.NETFILTER) as kernel:
            return host_state.ready(place, "web", digest, kernel) is not None

    answer: bool = inside(lab, go)
    return answer


def test_a_start_sees_what_is_lacking(lab: Bare, place: str) -> None:
    assert not ready(lab, place)
    up(lab, place)
    assert ready(lab, place) and not ready(lab, place, OTHER)
    lab.nft("flush", "chain", "inet", "agentshim", "deny")
    assert not ready(lab, place)
    up(lab, place)
    assert ready(lab, place)
    labs.ip("-n", lab.c, "link", "del", "as-web")
    assert not ready(lab, place)
    lab.nft("flush", "ruleset")
    assert not ready(lab, place)


@pytest.mark.parametrize(
    "change",
    [
        "ip link set as-web down",
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv4.conf.as-web.forwarding=0",
        "iptables-nft -N DOCKER-USER",
        "iptables-legacy -N DOCKER-USER",
    ],
)
def test_a_start_sees_what_keeps_packets_from_passing(lab: Bare, place: str, change: str) -> None:
    program, *words = change.split()
    if program.startswith("iptables") and not net_others.program(program):
        pytest.skip(f"NO {program} HERE")
    up(lab, place)
    assert ready(lab, place)
    subprocess.run(["ip", "netns", "exec", lab.c, program, *words], check=True, capture_output=True)
    assert not ready(lab, place)
    up(lab, place)
    assert ready(lab, place)


def test_the_gate_is_one_filter_whatever_the_mark(lab: Bare, place: str) -> None:
    """What it drops: conformance/oci/test_repair.py."""
    made, _ = up(lab, place)
    for mark in (host.MARK, 0x40000000, 0x40000000):

        def go(mark: int = mark) -> None:
            with netlink.Socket(netlink.ROUTE) as kernel:
                bridges.gate(kernel, made["index"], mark)

        inside(lab, go)
        told = subprocess.run(
            ["tc", "-n", lab.c, "filter", "show", "dev", "as-web", "ingress"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert told.count("bytecode") == 1 and f",69 0 1 {mark}," in told and "direct-action" in told


def test_names_are_not_learned_without_the_gate(lab: Bare, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "")

    monkeypatch.setattr(bridges, "gate", lacking)
    monkeypatch.setattr(resolver, "program", lambda: "")
    learning = {**SECTION, "learned": [["tcp", "api.example.com", 443, 443]], "public": ["203.0.113.0/24"]}
    with pytest.raises(HostError, match="CONFIG_NET_CLS_BPF"):
        up(lab, place, section=learning)
    (state,) = json.loads(
        subprocess.run(["ip", "-n", lab.c, "-j", "link", "show", "as-web"], capture_output=True, check=True).stdout
    )
    assert "UP" not in state["flags"]


@pytest.mark.parametrize("change", ["-F DOCKER-USER", "-D DOCKER-USER 1", "-A DOCKER-USER -j DROP"])
def test_a_start_sees_changes_of_dockers_chain(lab: Bare, place: str, change: str) -> None:
    def tables(*words: str) -> None:
        subprocess.run(["ip", "netns", "exec", lab.c, "iptables-nft", "-w", *words], check=True, capture_output=True)

    if not net_others.program("iptables-nft"):
        pytest.skip("NO iptables-nft HERE")
    tables("-N", "DOCKER-USER")
    up(lab, place)
    assert ready(lab, place)
    tables("-A", "FORWARD", "-s", "192.0.2.1", "-j", "ACCEPT")  # another chain's affair
    assert ready(lab, place)
    tables(*change.split())
    assert not ready(lab, place)
    up(lab, place)
    assert ready(lab, place)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("route add 10.207.128.0/17 via 192.0.2.9", "10.207.0.0/22"),
        ("addr add 10.207.0.77/32 dev eth0", "10.207.4.0/22"),
        ("route add 10.207.2.0/24 via 192.0.2.9", "10.207.4.0/22"),
        ("route add 10.207.2.0/24 via 192.0.2.9 table 77", "10.207.4.0/22"),
        ("route add default via 192.0.2.9", "10.207.0.0/22"),
        ("route add 0.0.0.0/1 via 192.0.2.9", "10.207.0.0/22"),
        ("route add blackhole 10.0.0.0/8", "10.207.0.0/22"),
        ("route add 10.0.0.0/8 via 192.0.2.9", ""),
        ("addr add 10.207.0.77/16 dev eth0", ""),
    ],
)
def test_no_subnet_that_the_host_knows_elsewhere(lab: Bare, place: str, line: str, what: str) -> None:
    """Another one of the pool, or none; a default route is nobody's subnet."""
    lab.batch(lab.c, "link add eth0 type veth peer name eth1", "addr add 192.0.2.1/24 dev eth0", "link set eth0 up")
    lab.batch(lab.c, line)
    if what:
        assert up(lab, place)[0]["subnet"] == what
    else:
        with pytest.raises(HostError, match=r"10\.207\.0\.0/16: the .* is in the way"):
            up(lab, place)
        assert lab.nft("list", "ruleset") == "" and not (Path(place) / "web" / "bridge.json").exists()
        assert up(lab, place, pool="172.31.0.0/20")[0]["subnet"] == "172.31.0.0/22"


def test_a_subnet_that_came_behind_ours_is_refused(lab: Bare, place: str) -> None:
    up(lab, place)
    lab.batch(lab.c, "link add eth0 type veth peer name eth1", "addr add 10.207.0.200/24 dev eth0", "link set eth0 up")
    with pytest.raises(HostError, match=r"as-web: asked 10\.207\.0\.0/22, ceiling addresses apart from the address"):
        up(lab, place)


def test_a_pool_that_is_full(lab: Bare, place: str) -> None:
    up(lab, place, "one", pool="172.31.0.0/21")
    up(lab, place, "two", pool="172.31.0.0/21")
    with pytest.raises(HostError, match="all are taken"):
        up(lab, place, "three", pool="172.31.0.0/21")
    assert down(lab, place, "one")
    assert up(lab, place, "three", pool="172.31.0.0/21")[0]["subnet"] == "172.31.0.0/22"


@pytest.mark.parametrize(
    "lines",
    [
        ["link add as-web type bridge"],
        ["link add as-web type veth peer name x"],
        ["link add as-lan type veth peer name x"],
        ["link add av0 type veth peer name x"],
        ["link add av0acf0005 type bridge"],
        ["link add as-web type bridge", 'link set as-web alias "agentshim other"'],
        ["link add as-web type veth peer name x", 'link set as-web alias "agentshim web"'],
    ],
)
def test_names_that_are_anothers(lab: Bare, place: str, lines: list[str]) -> None:
    """Also those that our rules would cut off."""
    lab.batch(lab.c, *lines)
    with pytest.raises(HostError, match="an interface of another's"):
        up(lab, place)
    assert lab.nft("list", "ruleset") == ""


def test_without_nft(lab: Bare, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(net_others, "PATH", str(tmp_path))
    with pytest.raises(HostError, match="install the package nftables"):
        up(lab, place)
    assert not Path(place).exists()


def test_nft_says_no(lab: Bare, place: str) -> None:
    lab.nft("-f", "-", text="table inet agentshim { set leased { type ipv4_addr; }; }\n")
    with pytest.raises(HostError, match="agentshim net down --all"):
        up(lab, place)
    assert "as-web" not in subprocess.run(["ip", "-n", lab.c, "link"], capture_output=True, text=True).stdout


def test_the_lock_of_a_container_is_not_touched(lab: Bare, place: str) -> None:
    """Whoever runs us within a network that is locked itself does not open that lock."""
    from hooks import lock

    with contextlib.ExitStack() as stack:
        from hooks import records

        kernel = stack.enter_context(records.opened(lab.path))
        for step in lock.steps({"mode": "confine"}):
            kernel.ask(step.do, step.acks)
    before = labs.bare(lab.rules())
    with pytest.raises(HostError):
        up(lab, place)
    assert labs.bare(lab.rules()) == before


# Killed, and two at once


def primitives(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """`act` before each change of kernel or disk."""

    def around(owner: Any, name: str) -> None:
        before = getattr(owner, name)

        def changed(*args: Any, **kwargs: Any) -> Any:
            act()
            return before(*args, **kwargs)

        monkeypatch.setattr(owner, name, changed)

    for owner, names in (
        (bridges, ("make", "change", "up", "give", "delete")),
        (net_others, ("nft", "accept")),
        (net_up.Host, ("write",)),
        (net_up, ("_set",)),
        (Path, ("mkdir",)),
    ):
        for name in names:
            around(owner, name)


def test_killed_before_any_step(lab: Bare, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And then up again: the same as if nothing had been; until then nobody comes in, and nobody is let out."""
    steps = 0
    while True:
        left = [steps]

        def act(left: list[int] = left) -> None:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

        with monkeypatch.context() as patch:
            primitives(patch, act)
            child, pipe = lab.fork(lab.c, lambda: net_up.up("web", PUBLISHING, DIGEST, place, told=lambda line: None))
            _, status = os.waitpid(child, 0)
            os.close(pipe)
        killed = os.WIFSIGNALED(status)
        if killed:
            assert not ready(lab, place)
            names = subprocess.run(["ip", "-n", lab.c, "-br", "link"], capture_output=True, text=True).stdout
            assert "as-web" not in names or "table inet agentshim" in lab.nft("list", "tables")
        made, _ = up(lab, place, section=PUBLISHING)
        (shown,) = inside(lab, lambda: net_down.shown(place, set))
        assert shown["up"] and shown["rules"] and ready(lab, place)
        assert made["subnet"] == "10.207.0.0/22"
        assert setting(lab, "ipv4/conf/as-web/route_localnet") == "1"
        down(lab, place, "web")
        assert lab.nft("list", "ruleset") == ""
        if not killed:
            break
        steps += 1
    assert steps > 10


def test_killed_before_elements_are_back(lab: Bare, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules are right again; the next start still finds that something is left to do."""
    up(lab, place)
    lab.nft("flush", "ruleset")
    with monkeypatch.context() as patch:
        patch.setattr(net_agents, "restore", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        child, pipe = lab.fork(lab.c, lambda: net_up.up("web", SECTION, DIGEST, place, told=lambda line: None))
        os.waitpid(child, 0)
        os.close(pipe)
    assert "chain from_agent" in lab.nft("list", "ruleset") and not ready(lab, place)
    up(lab, place)
    assert ready(lab, place)


def test_killed_on_the_way_down(lab: Bare, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in range(4):
        made, _ = up(lab, place)
        enter(lab, place, "somebody", made)
        left = [steps]

        def act(left: list[int] = left) -> None:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

        with monkeypatch.context() as patch:
            primitives(patch, act)
            child, pipe = lab.fork(lab.c, lambda: net_down.down(["web"], place, True, set))
            os.waitpid(child, 0)
            os.close(pipe)
        down(lab, place, "web", force=True)
        assert lab.nft("list", "ruleset") == ""
        assert sorted(os.listdir(place)) == [".lock"]


def test_two_at_once(lab: Bare, place: str) -> None:
    every = [
        lab.fork(lab.c, partial(net_up.up, f"p{n % 3}", SECTION, DIGEST, place, told=lambda line: None))
        for n in range(9)
    ]
    made = [lab.result(*one) for one in every]
    assert len({one["subnet"] for one in made}) == 3
    assert all(one == next(two for two in made if two["profile"] == one["profile"]) for one in made)
    assert len(inside(lab, lambda: net_down.shown(place, set))) == 3
    before = everything(lab)
    up(lab, place, "p1")
    assert everything(lab) == before


# Addresses


def test_addresses_come_round_last(lab: Bare, place: str) -> None:
    made, _ = up(lab, place)
    seen = []
    for _ in range(1021 + 2):
        address = host_state.take(place, "web", "x")
        seen.append(address)
        host_state.give_back(place, "web", address)
    assert len(set(seen)) == 1021 and seen[0] == seen[1021] == bytes((10, 207, 0, 2)) and seen[-1] == seen[1]
    taken = {bytes((10, 207, 0, 0)), bytes((10, 207, 0, 1)), bytes((10, 207, 3, 255))}
    assert not taken & set(seen) and made["gateway"] == "10.207.0.1"


def test_a_subnet_that_is_full(lab: Bare, place: str) -> None:
    up(lab, place)
    every = [host_state.take(place, "web", "x") for _ in range(1021)]
    with pytest.raises(HostError, match=r"1021 addresses, all taken: .*net gc"):
        host_state.take(place, "web", "x")
    host_state.give_back(place, "web", every[500])
    assert host_state.take(place, "web", "x") == every[500]
    assert not [
        name for name in os.listdir(Path(place, "web", "addresses")) if name.startswith(".") and name != ".lock"
    ]


def test_one_address_is_for_one(lab: Bare, place: str) -> None:
    up(lab, place)
    every = [lab.fork(lab.c, lambda: [host_state.take(place, "web", "x") for _ in range(40)]) for _ in range(6)]
    taken = [address for one in every for address in lab.result(*one)]
    assert len(set(taken)) == len(taken) == 240


def test_taken_by_one_who_was_killed(lab: Bare, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the link and the end of `take`: the file's other name is the address. It stays its own."""
    up(lab, place)
    unlink = posix.unlink

    def act(path: str, **more: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL) if "/." in path else unlink(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(posix, "unlink", act)
        child, pipe = lab.fork(lab.c, lambda: host_state.take(place, "web", "dead"))
        os.waitpid(child, 0)
        os.close(pipe)
    names = sorted(os.listdir(Path(place, "web", "addresses")))
    assert names == [f".{child}", ".lock", "10.207.0.2"]
    with monkeypatch.context() as patch:
        patch.setattr(posix, "getpid", lambda: child)
        assert host_state.take(place, "web", "alive") == bytes((10, 207, 0, 3))
    assert Path(place, "web", "addresses", "10.207.0.2").read_text().startswith("dead ")


def test_no_bridge_no_address(place: str) -> None:
    with pytest.raises(HostError, match="agentshim net up web"):
        host_state.take(place, "web", "x")


# Collected


def test_gc_takes_what_has_no_owner_and_nothing_else(lab: Bare, place: str) -> None:
    made, _ = up(lab, place)
    services = [("tcp", "10.207.0.1", 1, 5)]
    lives = enter(lab, place, "alive", made, pinned=[("tcp", "203.0.113.9", 1, 1)], services=services)
    dead = enter(lab, place, "dead", made, published=[("127.0.0.1", 8080, 80, "tcp")])
    no_file = enter(lab, place, "alive", made)
    host_state.give_back(place, "web", no_file)
    for address in (lives, dead):
        host_state.leased(place, "web", address)
        inside(lab, partial(lease, address))
    for name in ("1.2.3.4", "10.207.0.9"):  # torn: in doubt, so it stays
        Path(place, "web", "addresses", name).write_text("")
    before = [rule for rule in labs.bare(lab.rules()) if "rule" in rule]
    # dead: ports, agents, in, out, published, served, leased; no_file: ports, agents, in, out
    assert gc(lab, place, {"alive"}) == {"elements": 11, "addresses": 1, "policies": 0}
    assert gc(lab, place, {"alive"}) == {"elements": 0, "addresses": 0, "policies": 0}
    left = sorted(os.listdir(Path(place, "web", "addresses")))
    assert left == [".lock", "1.2.3.4", "10.207.0.2", "10.207.0.2.leased", "10.207.0.9"]
    listed = lab.nft("list", "ruleset")
    assert "10.207.0.3" not in listed and "10.207.0.4" not in listed and listed.count("10.207.0.2") == 7
    assert [rule for rule in labs.bare(lab.rules()) if "rule" in rule] == before and ready(lab, place)


def test_gc_forgets_neighbours_that_were_killed(lab: Bare, place: str) -> None:
    """A hook tells the bridge for ever who has an address; nobody takes that back for a container that was killed."""
    made, _ = up(lab, place)
    lives, dead = (enter(lab, place, name, made) for name in ("alive", "dead"))
    free, asked = "10.207.0.77", "10.207.0.78"
    ip = ["ip", "netns", "exec", lab.c, "ip", "neigh"]
    for address in (labels.dotted(lives), labels.dotted(dead), free):
        subprocess.run([*ip, "add", address, "lladdr", "02:a5:00:00:00:01", "dev", "as-web"], check=True)
    subprocess.run([*ip, "add", asked, "lladdr", "02:a5:00:00:00:01", "dev", "as-web", "nud", "stale"], check=True)
    gc(lab, place, {"alive"})
    left = subprocess.run([*ip, "show", "dev", "as-web"], capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in left.splitlines()} == {labels.dotted(lives), asked}


def lease(address: bytes) -> None:
    with netlink.Socket(netlink.NETFILTER) as kernel:
        key = host.flow_key(address, "tcp", bytes(4), 1)
        kernel.ask(nft.batch([nft.lease(labels.TABLE, "leased", key, 60_000)]), 1)


def test_an_address_on_its_way_is_not_collected(lab: Bare, place: str) -> None:
    """Its record is not there yet, but the process that took it is."""
    up(lab, place)

    def take() -> None:
        host_state.take(place, "web", "new")
        time.sleep(60)

    child, pipe = lab.fork(lab.c, take)
    labs.wait_until(lambda: Path(place, "web", "addresses", "10.207.0.2").exists())
    assert gc(lab, place, set())["addresses"] == 0
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(pipe)
    assert gc(lab, place, {"new"})["addresses"] == 0
    assert gc(lab, place, set())["addresses"] == 1


def test_a_lease_keeps_its_address_from_the_next(lab: Bare, place: str) -> None:
    """The native hook frees an address at its container's end, and knows nothing of leases: the next owner of the
    address must not have them.
    """
    made, _ = up(lab, place)
    first = enter(lab, place, "x", made)
    host_state.leased(place, "web", first)
    inside(lab, partial(lease, first))
    host_state.give_back(place, "web", first)
    every = [host_state.take(place, "web", "x") for _ in range(1020)]
    assert first not in every
    with pytest.raises(HostError, match="net gc"):
        host_state.take(place, "web", "x")
    assert gc(lab, place, {"x"})["elements"] == 5
    assert host_state.take(place, "web", "x") == first


def test_rules_of_policies_that_nobody_has(lab: Bare, place: str) -> None:
    made, _ = up(lab, place)
    address = enter(lab, place, "x", made)
    up(lab, place, digest=OTHER)
    assert gc(lab, place, {"x"}, 0)["policies"] == 0  # somebody has it
    inside(lab, lambda: host_state.give_back(place, "web", address))
    assert gc(lab, place, set())["policies"] == 0  # not yet: one may be on its way
    assert gc(lab, place, set(), 0) == {"elements": 0, "addresses": 0, "policies": 1}
    listed = lab.nft("list", "ruleset")
    assert "0a0a0a" not in listed and "1b1b1b" in listed and ready(lab, place, OTHER)


def test_down_with_somebody_on_it(lab: Bare, place: str) -> None:
    made, _ = up(lab, place)
    up(lab, place, "other")
    enter(lab, place, "x", made)
    before = everything(lab)
    with pytest.raises(Refused, match=r"as-web: .*1 containers \(10\.207\.0\.2\).*--force"):
        down(lab, place, "other", "web", living=frozenset({"x"}))
    assert everything(lab) == before
    assert down(lab, place, "web", living=frozenset({"x"}), force=True) == ["as-web: gone, with 4 elements"]
    listed = lab.nft("list", "ruleset")
    assert "10.207.0.2" not in listed and "chain out_0a0a0a0a0a0a" in listed  # the other profile has that policy too
    said = down(lab, place, "other")
    assert said[0] == "as-other: gone, with 0 elements" and lab.nft("list", "ruleset") == ""


# Docker


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_docker_user_accepts_are_there_and_asked_again(lab: Bare, place: str, program: str) -> None:
    if not net_others.program(program):
        pytest.skip(f"NO {program} HERE")

    def tables(*words: str) -> str:
        command = ["ip", "netns", "exec", lab.c, program, "-w", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    tables("-N", "DOCKER-USER")
    tables("-A", "DOCKER-USER", "-j", "RETURN")
    tables("-A", "FORWARD", "-j", "DOCKER-USER")
    tables("-P", "FORWARD", "DROP")
    _, told = up(lab, place)
    assert len([line for line in told if "DOCKER-USER" in line]) == 2 and not [line for line in told if "drops" in line]
    accepts = tables("-S", "DOCKER-USER").splitlines()
    assert sorted(accepts[1:3]) == ["-A DOCKER-USER -i as-+ -j ACCEPT", "-A DOCKER-USER -o as-+ -j ACCEPT"]
    assert inside(lab, lambda: net_down.shown(place, set))[0]["docker"]
    assert up(lab, place)[1] == []
    tables("-F", "DOCKER-USER")
    assert not inside(lab, lambda: net_down.shown(place, set))[0]["docker"]
    up(lab, place)
    assert inside(lab, lambda: net_down.shown(place, set))[0]["docker"]
    down(lab, place, "web")
    assert "as-+" not in tables("-S", "DOCKER-USER")


def test_another_table_that_drops_is_told(lab: Bare, place: str) -> None:
    lab.nft("-f", "-", text="table inet fw { chain f { type filter hook forward priority 0; policy drop; }; }\n")
    _, told = up(lab, place)
    assert [line for line in told if line.startswith("inet fw f drops what is forwarded")]


# The verbs


class Policies:
    """Stands in for the host's policies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **modes: Any) -> None:
        forms = {
            name: policy.Policy(
                {
                    "name": name,
                    "digest": DIGEST,
                    "about": "",
                    "sections": {"network": section},
                    "why": {},
                    "limit": {},
                    "expires": None,
                }
            )
            for name, section in modes.items()
        }
        monkeypatch.setattr(policy, "load", lambda name, config: forms[name])
        monkeypatch.setattr(policies, "names", lambda config: sorted(forms))


def verb(lab: Bare, place: str, *words: str) -> str:
    def go() -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert network_of_host.main(list(words), place) == 0
        return out.getvalue()

    said: str = inside(lab, go)
    return said


def test_the_verbs(lab: Bare, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Policies(monkeypatch, web=SECTION, agent={"mode": "engine"}, top="top", none=None, far={"mode": "dead-end"})
    monkeypatch.setattr(network_of_host, "locked", lambda: iter(()))
    assert verb(lab, place, "show") == ""
    assert verb(lab, place, "up", "web") == "as-web  10.207.0.0/22  gateway 10.207.0.1, policy web\n"
    assert len(verb(lab, place, "up").splitlines()) == 2
    shown = verb(lab, place, "show")
    assert "as-web  10.207.0.0/22  0 containers  up, rules as loaded" in shown and "as-far" in shown
    lab.nft("flush", "chain", "inet", "agentshim", "deny")
    assert "rules changed by somebody: run agentshim net up" in verb(lab, place, "show")
    assert verb(lab, place, "gc").startswith("0 elements, 0 addresses, 0 policies")
    assert verb(lab, place, "down", "far") == "as-far: gone, with 0 elements\n"
    assert "as-web: gone" in verb(lab, place, "down", "--all") and verb(lab, place, "show") == ""
    assert verb(lab, place, "down", "--all").startswith("tables agentshim: gone")


@pytest.mark.parametrize(
    "words", [["up", "agent"], ["up", "--pool", "x"], ["up", "--pool", "8.0.0.0/8"], ["down"], ["down", "web"]]
)
def test_the_verbs_refuse(lab: Bare, place: str, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    Policies(monkeypatch, web=SECTION, agent={"mode": "engine"})
    with pytest.raises(Invalid):
        verb(lab, place, *words)
