"""The link as the kernel has it: made by the native hook and by the replay in Python, read back by pyroute2.

One namespace plays the host and holds the bridge, another is the container's: all traffic stays in them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks import host, host_state, labels, link, lock, netlink, nft, plan
from hooks.attributes import attributes
from hooks.link import Port
from hooks.plan import CONTAINER, HOST, KEEP, NETNS, ONLY_BUILT, ONLY_EMPTY, Step
from shim.cold.network import net_down
from shim.errors import HostError
from tests.net import hostlab
from tests.net import lab as labs

GATEWAY = bytes((10, 207, 0, 1))
ADDRESS = bytes((10, 207, 1, 9))
SIBLING = bytes((10, 207, 1, 10))
PREFIX = 22
HERE, THERE, OTHER = (socket.inet_ntoa(one) for one in (ADDRESS, GATEWAY, SIBLING))
BRIDGE = "as-lab"
HOOK = labs.HOOK
SECURITY = lock.steps({"mode": "confine", "outbound": "any", "inbound": "any", "icmp": True})


def colons(address: bytes) -> str:
    return address.hex(":")


Done = subprocess.CompletedProcess[str]


def called(
    lab: labs.Lab,
    host: str,
    container: str,
    steps: tuple[Step, ...],
    place: Path,
    *words: str,
    wrap: tuple[str, ...] = (),
) -> Done:
    """The native hook in the namespace `host`, for a process in the namespace `container`."""
    child, reader = lab.fork(container, lambda: time.sleep(60))
    try:
        labs.wait_until(lambda: os.readlink(f"/proc/{child}/ns/net") != os.readlink("/proc/self/ns/net"))
        return called_for(host, child, steps, place, *words, wrap=wrap)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)


def called_for(
    host: str, pid: int, steps: tuple[Step, ...], place: Path, *words: str, wrap: tuple[str, ...] = ()
) -> Done:
    place.write_bytes(plan.encode(steps))
    place.chmod(0o600)
    state = json.dumps({"ociVersion": "1.0.2", "id": "x", "pid": pid, "bundle": "/"})
    command = [*wrap, "nsenter", f"--net=/run/netns/{host}", str(HOOK), str(place), *words]
    return subprocess.run(command, input=state, capture_output=True, text=True, timeout=30)


class Ground(labs.Lab):
    """`i` plays the host, with a bridge whose number is `bridge`; `c` is the container's, as a runtime makes it."""

    bridge: int

    def _make(self) -> None:
        for name in (self.c, self.i):
            self.new(name)
        self.batch(
            self.i,
            "link set lo up",
            f"link add {BRIDGE} address {colons(labels.mac(GATEWAY))} type bridge mcast_snooping 0",
            f"addr add {THERE}/{PREFIX} dev {BRIDGE}",
            f"link set {BRIDGE} up",
        )
        self.bridge = self.inside(self.i, lambda: socket.if_nametoindex(BRIDGE))

    def new(self, name: str) -> str:
        labs.ip("netns", "add", name)
        self.made.append(name)
        self.inside(name, labs.settings)
        return name

    def drop(self, name: str) -> None:
        labs.ip("netns", "del", name)
        self.made.remove(name)

    def steps(self, address: bytes = ADDRESS, **options: Any) -> tuple[Step, ...]:
        return link.steps(Port(self.bridge, GATEWAY, PREFIX, address), **options)

    # Both ways to make it

    def call(self, steps: tuple[Step, ...], place: Path, *words: str, of: str = "", wrap: tuple[str, ...] = ()) -> Done:
        """The native hook, for a process in the container's namespace, with this ground's host for host."""
        return called(self, self.i, of or self.c, steps, place, *words, wrap=wrap)

    def call_for(self, pid: int, steps: tuple[Step, ...], place: Path) -> Done:
        return called_for(self.i, pid, steps, place)

    def python(self, steps: tuple[Step, ...], act: Callable[..., None] = plan.replay, of: str = "") -> None:
        """The replay in Python; HostError as it says."""

        def go() -> None:
            sockets: dict[tuple[int, int], netlink.Socket] = {}
            for room, name in ((CONTAINER, of or self.c), (HOST, self.i)):
                labs.enter(f"/run/netns/{name}")
                for family in plan.FAMILIES:
                    sockets[room, family] = netlink.Socket(family)
            theirs = os.open(f"/run/netns/{of or self.c}", os.O_RDONLY)
            os.dup2(theirs, NETNS)
            act(steps, lambda room, family: sockets[room, family])

        child, reader = self.fork(self.i, lambda: shown(go))
        said = self.result(child, reader)
        if said:
            raise HostError(*said)

    # The oracle

    def links(self, name: str) -> dict[str, Any]:
        facts: dict[str, Any] = self.inside(name, links)
        return facts

    def neighbours(self, name: str, family: int = socket.AF_INET) -> set[tuple[str, str, int]]:
        facts: set[tuple[str, str, int]] = self.inside(name, lambda: neighbours(family))
        return facts

    def is_clean(self) -> bool:
        """Nothing of a link is left on the host."""
        return set(self.links(self.i)) == {"lo", BRIDGE} and not self.neighbours(self.i)


def shown(go: Callable[[], None]) -> tuple[Any, ...]:
    """What a HostError says: it is made of more arguments than unpickling hands over."""
    try:
        go()
    except HostError as error:
        return error.room, error.key, error.asked, error.ceiling, error.todo
    return ()


def links() -> dict[str, Any]:
    """name -> what pyroute2 reads of the interface, its addresses of both families and, of a port, what it does."""
    from pyroute2 import IPRoute

    found: dict[str, Any] = {}
    with IPRoute() as kernel:
        addresses = [(one["index"], f"{one.get_attr('IFA_ADDRESS')}/{one['prefixlen']}") for one in kernel.get_addr()]
        for one in kernel.get_links():
            info = one.get_attr("IFLA_LINKINFO")
            inet6 = one.get_nested("IFLA_AF_SPEC", "AF_INET6", "IFLA_INET6_ADDR_GEN_MODE")
            slave = info.get_attr("IFLA_INFO_SLAVE_DATA") if info else None
            port = {name[12:]: value for name, value in slave["attrs"]} if slave else {}
            found[one.get_attr("IFLA_IFNAME")] = {
                "number": one["index"],
                "up": bool(one["flags"] & 1),
                "mac": one.get_attr("IFLA_ADDRESS"),
                "kind": info.get_attr("IFLA_INFO_KIND") if info else None,
                "master": one.get_attr("IFLA_MASTER"),
                "peer": one.get_attr("IFLA_LINK"),
                "inet6": inet6,
                "addresses": sorted(address for index, address in addresses if index == one["index"]),
                "port": {name: port[name] for name in ASKED_OF_PORT if name in port},
            }
    return found


ASKED_OF_PORT = ("STATE", "LEARNING", "UNICAST_FLOOD", "MCAST_FLOOD", "BCAST_FLOOD", "MULTICAST_ROUTER", "ISOLATED")


def routes() -> list[tuple[Any, ...]]:
    """(destination/prefix, gateway, scope, number of the interface) of the main table."""
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        return sorted(
            (
                f"{one.get_attr('RTA_DST') or '0.0.0.0'}/{one['dst_len']}",
                one.get_attr("RTA_GATEWAY") or "",
                one["scope"],
                one.get_attr("RTA_OIF"),
            )
            for one in kernel.get_routes(family=socket.AF_INET, table=254)
        )


def neighbours(family: int) -> set[tuple[str, str, int]]:
    """(address, hardware address, number of the interface) of each that is permanent; of the bridge's family those
    that are static.
    """
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        bridged = family == socket.AF_BRIDGE
        return {
            (one.get_attr("NDA_DST") or "", one.get_attr("NDA_LLADDR"), one["ifindex"])
            for one in kernel.get_neighbours(family)
            if one["state"] == (link.NOARP if bridged else link.PERMANENT)
        }


@pytest.fixture
def ground() -> Iterator[Ground]:
    pytest.importorskip("pyroute2", reason="NO pyroute2 HERE: THE LINK IS NOT TESTED")
    if labs.missing():
        pytest.skip(labs.missing().replace("LOCK", "LINK"))
    made = Ground()
    try:
        yield made
    finally:
        made.close()


Make = Callable[..., None]


@pytest.fixture(params=["hook", "python"])
def make(request: pytest.FixtureRequest, ground: Ground, tmp_path: Path) -> Make:
    """Runs a plan, one way or the other; HostError where it fails, as far as the hook's one line tells."""

    def by_hook(steps: tuple[Step, ...], of: str = "") -> None:
        done = ground.call(steps, tmp_path / "plan", of=of)
        if done.returncode:
            assert done.stderr.count("\n") == 1
            raise HostError("network", "hook", done.stderr, "done", "see there")

    if request.param == "hook" and not HOOK.exists():
        pytest.skip("NO native/build/agentshim-net: THE HOOK IS NOT TESTED WITH REAL LINKS")
    return by_hook if request.param == "hook" else lambda steps, of="": ground.python(steps, of=of)


@pytest.fixture
def made(ground: Ground, make: Make) -> Ground:
    """A ground with one link."""
    make(ground.steps())
    return ground


# What is there


def test_the_hosts_end(made: Ground) -> None:
    found = made.links(made.i)
    assert set(found) == {"lo", BRIDGE, "av0acf0109"}
    port = found["av0acf0109"].pop("port")
    assert found["av0acf0109"] == {
        "number": 0x20CF0109,
        "up": True,
        "mac": "06:a5:0a:cf:01:09",
        "kind": "veth",
        "master": made.bridge,
        "peer": link.ETH,
        "inet6": 1,
        "addresses": [],
    }
    off = dict.fromkeys(ASKED_OF_PORT, 0)
    assert port == {**off, "STATE": 3, "ISOLATED": 1}
    assert made.neighbours(made.i) == {(HERE, "02:a5:0a:cf:01:09", made.bridge)}
    assert made.neighbours(made.i, socket.AF_BRIDGE) == {("", "02:a5:0a:cf:01:09", 0x20CF0109)}


def test_the_containers_end(made: Ground) -> None:
    found = made.links(made.c)
    assert found["lo"]["up"] and set(found) - fallbacks(made) == {"lo", "eth0"}
    assert found["eth0"] == {
        "number": 1000,
        "up": True,
        "mac": "02:a5:0a:cf:01:09",
        "kind": "veth",
        "master": None,
        "peer": 0x20CF0109,
        "inet6": 1,
        "addresses": [f"{HERE}/{PREFIX}"],
        "port": {},
    }
    assert made.neighbours(made.c) == {(THERE, "02:a5:0a:cf:00:01", 1000)}
    assert made.inside(made.c, routes) == [("0.0.0.0/0", THERE, 0, 1000), (f"{THERE}/32", "", 253, 1000)]


def fallbacks(ground: Ground) -> set[str]:
    """tunl0 and the like, which some kernels make in any new namespace."""
    return set(ground.links(ground.new(f"ase-{os.getpid()}"))) - {"lo"}


@pytest.mark.parametrize("six", [True, False])
def test_without_ipv6_in_the_kernel_nothing_is_said_of_it(ground: Ground, make: Make, six: bool) -> None:
    """A kernel without it refuses the attribute. AF_SPEC is kind 26, with NESTED."""
    steps = ground.steps(six=six)
    kinds = [kind for step in steps for kind in attributes_of(step)]
    assert (link.AF_SPEC in kinds) == six
    make(steps)
    assert ground.ping(HERE, ground.i) == "open"


def attributes_of(step: Step) -> list[int]:
    """Kinds of the attributes of messages about links."""
    told = [payload[16:] for kind, _, _, payload in netlink.messages(step.do) if kind == link.NEWLINK]
    return [kind for one in told for kind, _ in attributes(one)]


def test_locked_ports_where_the_kernel_has_them(made: Ground) -> None:
    shown = subprocess.run(
        ["bridge", "-n", made.i, "-d", "link", "show", "dev", "av0acf0109"], capture_output=True, text=True, check=True
    ).stdout
    if "locked" not in shown:
        pytest.skip("Linux < 5.16, or an older bridge(8): THE LOCK OF A PORT IS NOT READ BACK")
    assert "locked on" in shown and "learning off" in shown and "isolated on" in shown


# Packets


def test_packets_pass_at_once(made: Ground) -> None:
    """The first one, too: what is still waiting for its carrier drops it, and TCP tries again after a second."""
    assert made.ping(HERE, made.i) == "open"
    made.serve(made.c, ("tcp", HERE, 80), ("udp", HERE, 80))
    made.serve(made.i, ("tcp", THERE, 80))
    assert (made.tcp(HERE, 80, made.i), made.udp(HERE, 80, made.i), made.tcp(THERE, 80)) == ("open",) * 3
    assert made.tcp(HERE, 81, made.i) == "ECONNREFUSED"


def second(ground: Ground, make: Make) -> str:
    """Another container on the bridge."""
    name = ground.new(f"ast-{os.getpid()}")
    make(ground.steps(SIBLING), of=name)
    return name


def test_siblings_do_not_reach_each_other(made: Ground, make: Make) -> None:
    """Not by the bridge, even with the other's hardware address. By the gateway it is for the host's rules to say."""
    sibling = second(made, make)
    made.inside(made.i, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("0"))
    assert made.ping(OTHER, made.i) == made.ping(HERE, made.i) == "open"
    assert made.ping(OTHER) != "open"
    made.batch(
        made.c,
        f"neigh add {OTHER} lladdr {colons(labels.mac(SIBLING))} dev eth0",
        f"route add {OTHER}/32 dev eth0 scope link",
    )
    assert made.ping(OTHER) == "silence"
    assert made.ping(HERE, sibling) != "open"


def test_a_sibling_is_asked_for_by_the_gateway(made: Ground) -> None:
    """Where the host refuses, so that a connect fails at once; nobody would answer ARP for 3 s."""
    got = subprocess.run(
        ["ip", "-n", made.c, "-j", "route", "get", OTHER], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(got)[0]["gateway"] == THERE


def test_spoofed_mac_is_dropped_by_the_port(made: Ground) -> None:
    made.batch(made.c, "link set eth0 address 02:a5:0a:cf:01:0a")
    made.batch(
        made.c,
        f"neigh replace {THERE} lladdr {colons(labels.mac(GATEWAY))} dev eth0",
        f"route replace default via {THERE}",
    )
    made.batch(made.i, f"neigh replace {HERE} lladdr 02:a5:0a:cf:01:0a dev {BRIDGE}")
    made.batch(made.i)
    said = subprocess.run(["bridge", "-n", made.i, "-d", "link"], capture_output=True, text=True, check=True).stdout
    if "locked" not in said:
        pytest.skip("Linux < 5.16, or an older bridge(8): A SPOOFED ADDRESS IS FOR THE HOST'S TABLES ALONE")
    assert made.ping(THERE) == "silence"


EVERYBODY, GROUP, NOBODY = b"\xff" * 6, bytes.fromhex("01005e7f0001"), bytes.fromhex("02a50acf03fe")


def frames(interface: str, sender: bytes, *to: bytes) -> None:
    """A frame to each, of a kind that nobody uses."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        for one in to:
            raw.send(one + sender + b"\x88\xb5" + bytes(46))


def seen_on_eth0() -> set[bytes]:
    """To whom the frames are that come within half a second."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as raw:
        raw.bind(("eth0", 0x88B5))
        raw.settimeout(0.5)
        seen: set[bytes] = set()
        try:
            while True:
                seen.add(raw.recv(100)[:6])
        except TimeoutError:
            return seen


def test_nothing_is_flooded_to_a_container(made: Ground, make: Make) -> None:
    """A sibling's frames go to the bridge alone; of the host's own those to a container, and what is to everybody."""
    sibling = second(made, make)
    for name, interface, sender, seen in (
        (sibling, "eth0", labels.mac(SIBLING), set()),
        (made.i, BRIDGE, labels.mac(GATEWAY), {EVERYBODY, GROUP, labels.mac(ADDRESS)}),
    ):
        child, reader = made.fork(made.c, seen_on_eth0)
        time.sleep(0.2)
        to = EVERYBODY, GROUP, NOBODY, labels.mac(SIBLING), labels.mac(ADDRESS)
        made.inside(name, partial(frames, interface, sender, *to))
        assert made.result(child, reader) == seen


def test_no_arp_and_no_ipv6(made: Ground) -> None:
    """The container's side says nothing by itself, and asks nobody."""

    def listen() -> list[bytes]:
        outgoing = 4  # what the host itself says
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as raw:
            raw.bind(("av0acf0109", 3))
            raw.settimeout(1)
            seen = []
            try:
                while True:
                    data, (_, _, kind, _, _) = raw.recvfrom(100)
                    seen += [data] if kind != outgoing else []
            except TimeoutError:
                return seen

    child, reader = made.fork(made.i, listen)
    time.sleep(0.2)
    for address in (THERE, OTHER, "8.8.8.8", "fe80::1%1000", "2001:db8::1"):
        made.ping(address)
    seen = made.result(child, reader)
    assert {one[12:14] for one in seen} == {b"\x08\x00"}, [one.hex() for one in seen]


def test_a_network_that_belongs_to_a_user_namespace(ground: Ground, tmp_path: Path) -> None:
    """The host's root is more than its owner; the number and the name inside are ours all the same."""
    if not HOOK.exists():
        pytest.skip("NO native/build/agentshim-net: THE HOOK IS NOT TESTED WITH REAL LINKS")
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"\n":
                pytest.skip("no user namespaces here: A NETWORK THAT BELONGS TO ONE IS NOT TESTED")
            done = ground.call_for(process.pid, (*ground.steps(), *SECURITY), tmp_path / "plan")
            assert (done.returncode, done.stderr) == (0, "")
            assert ground.ping(HERE, ground.i) == "open"
        finally:
            process.kill()


# Where an engine built a network


def busy(ground: Ground) -> None:
    ground.batch(ground.c, "link add v0 type veth peer name v1", "link set v0 up")


def test_a_network_that_is_there_is_left_as_it_is(ground: Ground, make: Make) -> None:
    """But locked."""
    busy(ground)
    make((*ground.steps(), *SECURITY))
    assert ground.is_clean() and "eth0" not in ground.links(ground.c)
    assert "table inet agentshim" in ground.nft("list", "tables")


def test_a_link_and_the_lock(ground: Ground, make: Make) -> None:
    make((*ground.steps(), *SECURITY))
    assert ground.ping(HERE, ground.i) == ground.ping(THERE) == "open"
    with pytest.raises(HostError):
        make(SECURITY)


# Failures


NONE = Step(CONTAINER, netlink.ROUTE, netlink.message(link.DELNEIGH, netlink.ACK, b"\2" + bytes(11)), b"", 1, "nothing")


def test_a_later_failure_undoes_all(ground: Ground, make: Make) -> None:
    with pytest.raises(HostError):
        make((*ground.steps(), NONE))
    labs.wait_until(ground.is_clean)
    assert "eth0" not in ground.links(ground.c)
    make(ground.steps())  # nothing is in the way
    assert ground.ping(HERE, ground.i) == "open"


@pytest.mark.parametrize("place", range(1, 6))
def test_a_failure_in_the_middle_undoes_what_was_done(ground: Ground, make: Make, place: int) -> None:
    steps = ground.steps()
    with pytest.raises(HostError):
        make((*steps[:place], NONE, *steps[place:]))
    labs.wait_until(ground.is_clean)


def test_the_address_is_in_use(made: Ground, make: Make) -> None:
    """By a container that lives, or one whose namespace is not quite gone: it keeps what it has."""
    name = made.new(f"asx-{os.getpid()}")
    with pytest.raises(HostError, match=r"step 1.*(it is there already|exists)") as told:
        make(made.steps(), of=name)
    assert "confined" not in str(told.value)
    assert made.ping(HERE, made.i) == "open" and "eth0" not in made.links(name)


@pytest.mark.parametrize("by", ["name", "number"])
def test_a_strangers_link_in_our_place_stays(ground: Ground, make: Make, by: str) -> None:
    name, index = ("av0acf0109", 77) if by == "name" else ("other", 0x20CF0109)
    ground.batch(ground.i, f"link add {name} index {index} type bridge")
    with pytest.raises(HostError):
        make(ground.steps())
    assert ground.links(ground.i)[name]["kind"] == "bridge" and not ground.neighbours(ground.i)


@pytest.mark.parametrize("by", ["name", "number"])
def test_an_interface_of_that_name_inside(ground: Ground, make: Make, by: str) -> None:
    """It is down, or the network would not be empty."""
    name, index = ("eth0", 77) if by == "name" else ("other", 1000)
    ground.batch(ground.c, f"link add {name} index {index} type bridge")
    with pytest.raises(HostError):
        make(ground.steps())
    assert ground.is_clean() and ground.links(ground.c)[name]["kind"] == "bridge"


@pytest.mark.parametrize("there", ["nothing", "no bridge"])
def test_the_bridge_is_gone_or_another_interface(ground: Ground, make: Make, there: str) -> None:
    ground.batch(ground.i, f"link del {BRIDGE}")
    if there == "no bridge":
        ground.batch(ground.i, f"link add {BRIDGE} index {ground.bridge} type veth peer name v1")
    with pytest.raises(HostError):
        make(ground.steps())
    assert "av0acf0109" not in ground.links(ground.i) and not ground.neighbours(ground.i)


def test_a_neighbour_that_a_crash_left_is_no_obstacle(ground: Ground, make: Make) -> None:
    make(ground.steps()[2:3])
    assert ground.neighbours(ground.i)
    make(ground.steps())
    assert ground.ping(HERE, ground.i) == "open"


# The end


def gone(ground: Ground) -> bool:
    return "av0acf0109" not in ground.links(ground.i)


@pytest.mark.parametrize("way", ["hook", "python"])
def test_teardown(made: Ground, way: str, tmp_path: Path) -> None:
    """The namespace takes the link along, with what hangs on it; the second call the neighbour. Then it is free."""
    steps = made.steps()
    lease = tmp_path / HERE
    lease.write_text("/run/agentshim/plan.json")
    made.drop(made.c)
    labs.wait_until(lambda: gone(made))
    assert not made.neighbours(made.i, socket.AF_BRIDGE)
    assert made.neighbours(made.i) == {(HERE, colons(labels.mac(ADDRESS)), made.bridge)}
    for _ in range(2):
        if way == "python":
            made.python(steps, plan.release, of=made.i)
        else:
            done = made.call(steps, tmp_path / "plan", "undo", str(lease), of=made.i)
            assert (done.returncode, done.stderr) == (0, "")
            assert not lease.exists()
        assert made.is_clean()


def test_the_second_call_does_not_wait_for_the_link(made: Ground, tmp_path: Path) -> None:
    """Nor does it touch one that lives."""
    done = made.call(made.steps(), tmp_path / "plan", "undo", of=made.i)
    assert (done.returncode, done.stderr) == (0, "")
    assert not gone(made) and not made.neighbours(made.i)


def test_the_second_call_when_the_bridge_is_gone(made: Ground, tmp_path: Path) -> None:
    made.batch(made.i, f"link del {BRIDGE}")
    assert made.call(made.steps(), tmp_path / "plan", "undo", of=made.i).returncode == 0
    made.python(made.steps(), plan.release, of=made.i)


def test_what_is_released_is_never_a_link_or_a_table() -> None:
    """32 ms each."""
    steps = link.steps(Port(5, GATEWAY, PREFIX, ADDRESS))
    kinds = {kind for step in steps if step.released for kind, *_ in netlink.messages(step.undo)}
    assert kinds == {link.DELNEIGH}


# kill -9


@pytest.mark.parametrize("sent", range(7))
def test_killed_between_two_steps(ground: Ground, tmp_path: Path, sent: int) -> None:
    """Before the `sent`th message of the hook: the first one looks around, the others are the steps. What is there by
    then lets nothing through, and goes with the namespace but for the neighbour, which the second call takes.
    """
    if not HOOK.exists() or not shutil.which("strace"):
        pytest.skip("NO native/build/agentshim-net, or no strace: A HOOK THAT IS KILLED IS NOT TESTED")
    steps = ground.steps()
    kill = ("strace", "-f", "-o", "/dev/null", "-e", f"inject=sendto:signal=KILL:when={sent + 1}")
    done = ground.call(steps, tmp_path / "plan", wrap=kill)
    killed = sent <= len(steps)
    assert (done.returncode != 0) == killed, done
    assert (ground.ping(HERE, ground.i) == "open") != killed
    made = "av0acf0109" in ground.links(ground.i)
    assert made == (sent >= 2), "the first sends only look"
    assert bool(ground.neighbours(ground.i)) == (sent >= 4)
    ground.drop(ground.c)
    labs.wait_until(lambda: gone(ground))
    assert ground.call(steps, tmp_path / "plan", "undo", of=ground.i).returncode == 0
    assert ground.is_clean()


class Lives:
    """Containers with all that a plan has: the lock, elements of the host's of every kind, doors, the link."""

    def __init__(self, directory: Path) -> None:
        self.lab = hostlab.HostLab(directory / "net")
        self.directory, self.file = self.lab.directory, directory / "nobody.net"  # named as the address's owner
        self.count = 0

    def begin(self) -> tuple[str, tuple[Step, ...], Path]:
        """A namespace, the plan for it, and the file of its address, taken by a process that has ended."""
        self.count += 1
        name = f"ask-{os.getpid()}-{self.count}"
        labs.ip("netns", "add", name)
        self.lab.made.append(name)
        bridge = self.lab.bridges["web"]
        address = self.lab.inside(self.lab.h, lambda: host_state.take(self.directory, "web", "nobody"))
        port = Port(bridge["index"], hostlab.packed(bridge["gateway"]), bridge["prefix"], address)
        pinned = [("tcp", "203.0.113.9", 443, 443), ("tcp", "203.0.113.9", 1000, 1003)]
        gateway = bridge["gateway"]
        services = [("tcp", gateway, 9000, 9000), ("udp", gateway, 9004, 9006)]
        steps = (
            *SECURITY,
            host.enter(port, bridge["tag"], pinned, services),
            *host.doors(port, [("127.0.0.1", 8080, 80, "tcp"), ("127.0.0.1", 8080, 80, "udp")]),
            *link.steps(port),
        )
        return name, steps, Path(host_state.place_of(self.directory, "web", address))

    def call(self, name: str, steps: tuple[Step, ...], *words: str, kill: int = 0) -> bool:
        """Whether the hook has ended by itself; `kill`: before this message of it, at none where that is 0."""
        how = ("strace", "-f", "-o", "/dev/null", "-e", f"inject=sendto:signal=KILL:when={kill}") if kill else ()
        done = called(self.lab, self.lab.h, name, steps, self.file, *words, wrap=how)
        assert done.returncode == 0 or (kill and not done.stderr), done
        return done.returncode == 0

    def end(self, name: str) -> None:
        labs.ip("netns", "del", name)
        self.lab.made.remove(name)
        labs.wait_until(lambda: not self.ports())

    def ports(self) -> list[str]:
        told = json.loads(self.lab.on_host("ip", "-j", "link"))
        return [one["ifname"] for one in told if one["ifname"].startswith("av")]

    def elements(self) -> list[str]:
        """What the host's sets hold for containers, as nft reads it."""
        told = json.loads(self.lab.on_host("nft", "-j", "list", "ruleset"))["nftables"]
        every = [one.get("set") or one.get("map") for one in told]
        of_policies = ("flows", "hosts_", "nets_", "learned_")
        found = [one for one in every if one and not one["name"].startswith(of_policies)]
        return [f"{one['name']} {key}" for one in found for key in one.get("elem", ())]

    def addresses(self) -> list[str]:
        names = os.listdir(Path(self.directory, "web", host_state.ADDRESSES))
        return [one for one in names if one != host_state.LOCK]

    def collect(self) -> None:
        self.lab.inside(self.lab.h, lambda: net_down.gc(self.directory, living=set))


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    if labs.missing():
        pytest.skip(labs.missing().replace("LOCK", "LINK"))
    if not HOOK.exists() or not shutil.which("strace"):
        pytest.skip("NO native/build/agentshim-net, or no strace: A HOOK THAT IS KILLED IS NOT TESTED")
    made = Lives(tmp_path)
    try:
        yield made
    finally:
        made.lab.close()


def test_killed_before_any_step_of_a_whole_plan(lives: Lives) -> None:
    """What the hook has done by then goes with the namespace, and by `net gc`."""
    left: list[int] = []
    for sent in range(1, 99):
        name, steps, _ = lives.begin()
        done = lives.call(name, steps, kill=sent)
        left.append(len(lives.elements()))
        assert bool(lives.ports()) == (sent > 5), "the link begins behind the look, the lock, elements and doors"
        lives.end(name)
        lives.collect()
        assert (lives.elements(), lives.addresses(), lives.ports()) == ([], [], [])
        if done:
            break
    assert done and sent == len(steps) + 2, "one message for each step, behind the look around"
    assert left == [0, 0, 0, 8, *[12] * 6], "elements come at once, and so do doors"


def test_killed_before_any_step_of_the_end(lives: Lives) -> None:
    left: list[int] = []
    for sent in range(1, 99):
        name, steps, file = lives.begin()
        assert lives.call(name, steps)
        lives.end(name)
        done = lives.call(lives.lab.h, steps, "undo", str(file), kill=sent)
        left.append(len(lives.elements()))
        assert file.exists() != done, "an address is free when nothing in the kernel speaks of it"
        lives.collect()
        assert (lives.elements(), lives.addresses(), lives.ports()) == ([], [], [])
        if done:
            break
    assert done and left[0] == 12 and left[-1] == 0 and left == sorted(left, reverse=True)


# Many


def test_forty_lives_leave_nothing(ground: Ground, tmp_path: Path) -> None:
    if not HOOK.exists():
        pytest.skip("NO native/build/agentshim-net: THE HOOK IS NOT TESTED WITH REAL LINKS")
    for last in range(2, 42):
        name = ground.new(f"asm-{os.getpid()}-{last}")
        steps = ground.steps(bytes((10, 207, 2, last)))
        done = ground.call(steps, tmp_path / "plan", of=name)
        assert (done.returncode, done.stderr) == (0, "")
        ground.drop(name)
        assert ground.call(steps, tmp_path / "plan", "undo", of=ground.i).returncode == 0
    labs.wait_until(ground.is_clean)


# Pure


addresses = st.binary(min_size=3, max_size=3).map(lambda rest: b"\x0a" + rest)


@given(addresses, addresses)
def test_names_and_numbers_are_of_one_address(one: bytes, other: bytes) -> None:
    for function in (labels.host_end, labels.number, labels.mac):
        assert (function(one) == function(other)) == (one == other)
    assert len(labels.host_end(one)) <= 15 and 0x20000000 <= labels.number(one) < 0x21000000
    assert labels.mac(one)[0] & 3 == 2 and len(labels.mac(one)) == 6  # locally administered, one station


@given(st.integers(1, (1 << 31) - 1), addresses, st.integers(8, 30), addresses, st.booleans())
def test_a_link_is_a_plan_that_reads_back(bridge: int, gateway: bytes, prefix: int, mine: bytes, six: bool) -> None:
    steps = link.steps(Port(bridge, gateway, prefix, mine), six)
    read = plan.decode(plan.encode(steps))
    assert [one.key()[:-1] for one in read] == [one.key()[:-1] for one in steps]
    assert all(step.room & ONLY_EMPTY for step in steps)
    told = plan.describe(steps)
    assert told.count("\n") == 4 and told.count("only in an empty network") == 5
    assert told.count("undone at the end") == 1


def test_bits_of_a_step() -> None:
    undo = nft.batch([nft.release("t", "s", b"key ")])
    for room, where, released in (
        (HOST, HOST, True),
        (HOST | ONLY_EMPTY, HOST, True),
        (HOST | KEEP, HOST, False),
        (CONTAINER, CONTAINER, False),
        (CONTAINER | ONLY_EMPTY | KEEP, CONTAINER, False),
        (HOST | ONLY_BUILT, HOST, True),
    ):
        step = Step(room, netlink.NETFILTER, undo, undo, 1, "x")
        assert (step.where, step.released) == (where, released)
        assert plan.decode(plan.encode([step]))[0].room == room
    assert not Step(HOST, netlink.NETFILTER, undo, b"", 1, "x").released


def test_what_is_left_of_a_batch_is_released_one_by_one(ground: Ground) -> None:
    """As the hook does it: one element that is gone does not keep the others."""
    text = "add table inet t; add set inet t s { type inet_service; elements = { 1, 2, 3 }; }"
    subprocess.run(["ip", "netns", "exec", ground.i, "nft", text], check=True)
    undo = nft.batch([nft.release("t", "s", struct.pack(">H", key)) for key in (9, 1, 8, 2)])
    step = Step(HOST, netlink.NETFILTER, undo, undo, 1, "x")
    ground.python((step,), plan.release)
    listed = subprocess.run(
        ["ip", "netns", "exec", ground.i, "nft", "list", "set", "inet", "t", "s"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "elements = { 3 }" in listed
    wrong = Step(HOST, netlink.NETFILTER, undo, nft.batch([nft.new_table("t")]), 1, "x")
    with pytest.raises(HostError, match="step 1"):
        ground.python((wrong,), plan.release)
