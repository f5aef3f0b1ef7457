"""What becomes of a container's network under real engines: agentshim's own, the engine's filtered in place, or none.

Each engine lives in a network namespace of the test's own (`conformance.world`): its bridges, its rules and all traffic
stay there. Next door: `oci/test_isolated` has the modes without an engine, `test_network` the records and leases.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conformance import columns, probe_net
from conformance.columns import COLUMNS, Column, path_of
from conformance.engines import conftest, containerd, dockerd
from conformance.engines.containerd import Containerd
from conformance.engines.dockerd import Docker
from conformance.engines.harness import BUSYBOX, Archive, DockerLike, Engine
from conformance.engines.images import tool
from conformance.engines.podman import Podman
from conformance.room import Result, Room, wait_for
from conformance.world import (
    ENGINES,
    GRANTED,
    HOST,
    HOST_ON_LAN,
    METADATA,
    NEIGHBOUR,
    OTHER,
    Inside,
    World,
    serving,
)

pytestmark = pytest.mark.engine

HEAD = 'schema = 1\nname = "{}"\nabout = "a network for a test"\nbase = "agent"\n\n[network]\n'
GRANTS = 'outbound = ["tcp:203.0.113.5:8080", "udp:203.0.113.5:8080"]\n'
POLICIES = {
    "cell": 'mode = "auto"\ninbound = ["tcp:8080"]\n' + GRANTS + 'host_services = ["tcp:9000"]\n',
    "iso": 'mode = "isolated"\n' + GRANTS,
    "lab": 'mode = "confine"\ninbound = ["tcp:8080"]\n' + GRANTS,
    "less": 'mode = "auto"\noutbound = ["udp:203.0.113.5:8080"]\n',
    "pub": 'mode = "auto"\npublish = ["127.0.0.1:18080:8080/tcp", "127.0.0.1:18081:8081/tcp"]\n',
    "kin": 'mode = "auto"\noutbound = ["tcp:db:5432"]\n',
    "ask": 'mode = "auto"\ndns = "engine"\n',
    "bare": 'mode = "auto"\n' + GRANTS + 'host_services = ["tcp:9000"]\n',
    "lean": 'mode = "confine"\ninbound = ["tcp:8080"]\n' + GRANTS,
}
FREE = ("bare", "lean")  # without a filter of system calls
RUNC, AGENT, DEV = COLUMNS[0], COLUMNS[1], COLUMNS[2]
CELL, ISO, LAB, LESS, PUB, KIN, ASK, BARE, LEAN = (Column(name, f"agentshim-{name}") for name in POLICIES)
PINGS, NO_PINGS = ("--sysctl", "net.ipv4.ping_group_range=0 65535"), {f"icmp,{GRANTED},0": "EACCES"}
REMAPPED = "ascmodes"
SECONDS = 4.0  # for a name that is refused; one that is dropped alone would take as long
SERVE = "for p in 8080 8081 9000; do while :; do echo served | nc -l -p $p; done & done; wait"
RESOLVER = ("127.0.0.11", 53)  # Docker's, on networks that a user made
FORBIDDEN = (  # each of them answers: `test_all_that_is_forbidden_is_there`
    (GRANTED, 8081),
    (OTHER, 8080),
    (NEIGHBOUR, 8080),
    (ENGINES, 9000),
    (HOST, 9000),
    (HOST_ON_LAN, 9000),
    (METADATA, 80),
    RESOLVER,
)


def furnish(room: Room) -> None:
    """Policies, and executables of their names that choose them."""
    folder = room.base / "config" / "policies"
    folder.mkdir(exist_ok=True)
    names = ""
    for name, text in POLICIES.items():
        head = HEAD.replace("[network]", probe_net.UNFILTERED + "[network]") if name in FREE else HEAD
        (folder / f"{name}.toml").write_text(head.format(name) + text)
        link = room.base / "bin" / f"agentshim-{name}"
        if not link.is_symlink():
            link.symlink_to(columns.launcher())
        names += f'"{name}", '
    columns.configure(room, columns.CONFIG.replace("names = [", f"names = [{names}"))


@pytest.fixture(scope="module")
def world(the_room: Room) -> Iterator[World]:
    """A host for all three engines, as they would be on one machine."""
    conftest.needs("nft", "ip", "iptables", "runc")
    furnish(the_room)
    the_room.run(["rm", "-rf", "/run/agentshim/net"])
    the_room.run(["sh", "-c", f"cp /etc/resolv.conf /etc/resolv.kept; echo nameserver {OTHER} > /etc/resolv.conf"])
    one = World(the_room, f"n{the_room.base.name[-6:]}")
    one.serve(one.outside, 53)
    try:
        yield one
    finally:
        one.end()
        the_room.run(["mv", "/etc/resolv.kept", "/etc/resolv.conf"])
        the_room.run(["rm", "-rf", "/run/agentshim/net"])
        columns.configure(the_room)


@pytest.fixture(scope="module")
def docker(world: World, archive: Archive) -> Iterator[Docker]:
    """dockerd as it is installed: with its rules, and a FORWARD chain that drops."""
    conftest.needs("dockerd", "docker", "containerd")
    names = ["agentshim", "agentshim-dev", *(f"agentshim-{one}" for one in POLICIES)]
    runtimes = {name: {"path": str(world.room.base / "bin" / name)} for name in names}
    how = {"iptables": True, "ip-forward": True, "ip-masq": True}
    world.inside(world.host, "sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward")  # else it would not make it drop
    with dockerd.docker(Inside(world.room, world.host), archive, "m", runtimes=runtimes, **how) as engine:
        yield engine


@pytest.fixture(scope="module")
def podman(world: World, archive: Archive) -> Iterator[Podman]:
    """podman with the network that it makes by itself: a bridge that leads out, and ports."""
    conftest.needs("podman", "conmon")
    home = world.room.base / "q"
    home.mkdir(mode=0o711)
    engine = Podman(Inside(world.room, world.host), home, archive)
    (home / "cni/10-podman.conflist").write_text(json.dumps(cni("podman", "podman0", "10.231.8.0/24", home)))
    open_ = "echo 1 > /proc/sys/net/ipv4/ip_forward; iptables -w -I FORWARD -o podman0 -j ACCEPT"
    world.inside(world.host, "sh", "-c", open_)  # where a dockerd is, what podman publishes is dropped
    try:
        yield engine
    finally:
        engine.do("rm", "--all", "--force", "--time", "0")


@pytest.fixture(scope="module")
def ctr(world: World, archive: Archive) -> Iterator[Containerd]:
    """containerd, with plugins where ctr looks for them."""
    conftest.needs("containerd", "ctr")
    told = json.dumps(cni("ctr", "ctr0", "10.231.9.0/24", world.room.base))
    made = "mkdir -p /etc/cni/net.d && cat > /etc/cni/net.d/10-ctr.conflist && mount -t tmpfs tmpfs /opt &&"
    done = world.room.run(["sh", "-c", f"{made} mkdir /opt/cni && ln -s /usr/lib/cni /opt/cni/bin"], input=told)
    assert done.code == 0, str(done)
    with containerd.containerd(Inside(world.room, world.host), archive, "e") as engine:
        yield engine
    world.room.run(["sh", "-c", "umount /opt; rm -r /etc/cni/net.d"])


def cni(name: str, bridge: str, subnet: str, home: Path) -> dict[str, Any]:
    """A bridge that leads out, with ports, and accepted where dockerd drops."""
    ipam: dict[str, Any] = {"type": "host-local", "dataDir": f"{home}/ipam", "ranges": [[{"subnet": subnet}]]}
    ipam["routes"] = [{"dst": "0.0.0.0/0"}]
    plugin = {"type": "bridge", "bridge": bridge, "isGateway": True, "ipMasq": True, "ipam": ipam}
    more = [{"type": "portmap", "capabilities": {"portMappings": True}}, {"type": "firewall"}]
    return {"cniVersion": "0.4.0", "name": name, "plugins": [plugin, *more]}


@pytest.fixture(scope="module", params=["docker", "podman", "ctr"])
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module", params=["docker", "podman"])
def like(request: pytest.FixtureRequest) -> DockerLike:
    """Those with docker's command line."""
    found: DockerLike = request.getfixturevalue(request.param)
    return found


POD = "pod:"
CTRS = {"none": (), "host": ("--net-host",), "bridge": ("--cni",)}


def words(engine: Engine, column: Column, network: str, *more: str) -> list[str]:
    """What starts a container that serves, detached."""
    if isinstance(engine, Containerd):
        flags = ("--detach", *CTRS[network], *more)
        return engine.words(column, engine.fresh(), "sh", "-c", SERVE, flags=flags)
    assert isinstance(engine, DockerLike)
    where = ("--pod", network[len(POD) :]) if network.startswith(POD) else ("--network", network)
    return engine.words("run", column, "-d", *where, *more, engine.image(BUSYBOX), "sh", "-c", SERVE)


@contextmanager
def running(engine: Engine, column: Column, network: str, *more: str) -> Iterator[str]:
    asked = words(engine, column, network, *more)
    told = engine.must(*asked)
    name = told if isinstance(engine, DockerLike) else asked[asked.index("sh") - 1]
    try:
        yield name
    finally:
        engine.remove(name)  # type: ignore[attr-defined]


def sh(engine: Engine, name: str, script: str) -> Result:
    verb = ["task", "exec", "--exec-id", engine.fresh()] if isinstance(engine, Containerd) else ["exec"]
    return engine.do(*verb, name, "sh", "-c", script, timeout=60)


def reached(engine: Engine, name: str, *peers: tuple[str, int]) -> list[tuple[str, int]]:
    """Which of `peers` answer over TCP; those that do not say so: nobody waits for them."""
    asks = [
        f"case $(echo hi | nc -w 3 {address} {port} 2>&1) in"
        f' *"timed out"*) echo dropped {i};; nc:*|"") ;; *) echo reached {i};; esac'
        for i, (address, port) in enumerate(peers)
    ]
    with resolver(engine, name) if RESOLVER in peers else nullcontext():
        told = sh(engine, name, "; ".join(asks))
    assert told.code == 0, str(told)
    lines = [line.split() for line in told.out.splitlines()]
    found = {word: [peers[int(place)] for said, place in lines if said == word] for word in ("reached", "dropped")}
    assert not found["dropped"]
    return found["reached"]


@contextmanager
def resolver(engine: Engine, name: str) -> Iterator[None]:
    """Who answers at RESOLVER in a container's network, as Docker's own does there on some networks."""
    pid = engine.pid(name)  # type: ignore[attr-defined]
    address, port = RESOLVER
    server = serving(engine.room, f"/proc/{pid}/ns/net", port, address=address)
    try:
        yield
    finally:
        server.kill()
        server.communicate()


def interfaces(engine: Engine, name: str) -> list[str]:
    """Those that are up, but lo."""
    told = sh(engine, name, "ip -o link | grep -F ,UP | cut -d: -f2 | cut -d@ -f1").out.split()
    return [one for one in told if one != "lo"]


def gateway(engine: Engine, name: str) -> str:
    return sh(engine, name, "ip route | sed -n 's/^default via \\([0-9.]*\\) .*/\\1/p'").out.strip()


def address(engine: Engine, name: str) -> str:
    return sh(engine, name, "ip -4 -o address show dev eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/'").out.strip()


def on(docker: Docker, name: str, network: str) -> str:
    """A container's address on one of Docker's networks."""
    return str(json.loads(docker.must("inspect", name))[0]["NetworkSettings"]["Networks"][network]["IPAddress"])


def leased(room: Room, policy: str = "cell") -> list[str]:
    return room.run(["sh", "-c", f"ls /run/agentshim/net/{policy}/addresses 2>/dev/null"]).out.split()


def shim(world: World, *args: str) -> Result:
    return world.inside(world.host, str(world.room.base / "bin" / "agentshim"), *args)


def refused(engine: DockerLike, column: Column, network: str, *more: str) -> str:
    """The error that whoever starts such a container is shown."""
    told = engine.do(*words(engine, column, network, "--name", "refused", *more))
    engine.remove("refused")
    assert told.code != 0, str(told)
    return told.err


def gone(world: World) -> None:
    """Nothing is left of any container."""
    wait_for(lambda: not world.ports(), 5, "links to go with their namespaces")
    assert world.elements() == []
    for policy in POLICIES:
        assert leased(world.room, policy) == []


# What auto makes of what the engine brings


def test_all_that_is_forbidden_is_there(engine: Engine) -> None:
    """The control of all that follows: who is not filtered reaches it."""
    with running(engine, RUNC, "bridge") as plain:
        assert reached(engine, plain, (GRANTED, 8080), *FORBIDDEN) == [(GRANTED, 8080), *FORBIDDEN]
    with running(engine, RUNC, "host") as plain:
        assert reached(engine, plain, ("127.0.0.1", 9001)) == [("127.0.0.1", 9001)]


@pytest.mark.parametrize("network", ["none", "bridge"])
def test_the_matrix(engine: Engine, network: str, world: World) -> None:
    """Every cell of `probe_net`, with the error of each; `oci/test_matrix` has the control."""
    column = LEAN if isinstance(engine, Containerd) and network == "bridge" else BARE
    with running(engine, RUNC, "bridge") as plain, running(engine, column, network, *probed(engine)) as name:
        siblings = {f"tcp,{address(engine, plain)},8080": probe_net.REFUSED}
        matrix(engine, name, siblings | services(engine, name) if network == "none" else siblings)
        if network == "none":
            with running(engine, column, network) as other:
                there = f"tcp,{address(engine, other)},8080"
                probe_net.holds(partial(probe, engine, name), {there: probe_net.REFUSED})
    gone(world)


def services(engine: Engine, name: str) -> dict[str, str]:
    """What of the host a container of BARE is granted at its gateway, and what it is not."""
    host = gateway(engine, name)
    return {f"tcp,{host},9000": probe_net.OPEN, f"tcp,{host},9001": probe_net.REFUSED}


def probed(engine: Engine) -> tuple[str, ...]:
    """What brings the probe into a container, which no filter of the engine's stops."""
    program = probe_net.compiled(engine.room)
    if isinstance(engine, Containerd):
        return ("--mount", f"type=bind,src={program.parent},dst=/mnt,options=rbind:ro")
    return ("--security-opt", "seccomp=unconfined", *PINGS, "-v", f"{program.parent}:/mnt:ro")


def probe(engine: Engine, name: str, *asked: str) -> Result:
    return sh(engine, name, " ".join(("/mnt/probe-net", *asked)))


def matrix(engine: Engine, name: str, more: dict[str, str]) -> None:
    """What a container of BARE or LEAN reaches."""
    cells = probe_net.outward(probe_net.GRANTS_HELD)
    cells["tcp,2001:db8::5,8080"] = "EADDRNOTAVAIL" if engine.name == "docker" else probe_net.AWAY  # it turns it off
    if isinstance(engine, Containerd):  # it leaves ping sockets to nobody
        cells |= NO_PINGS
    cells |= {**probe_net.RESOLVER, **probe_net.RIGHTS, **probe_net.WITHIN}
    with resolver(engine, name):
        probe_net.holds(partial(probe, engine, name), cells | more)


def test_none_becomes_a_network_of_ours(engine: Engine, world: World) -> None:
    with running(engine, CELL, "none") as name:
        assert interfaces(engine, name) == ["eth0"]
        assert address(engine, name).startswith("10.207.")
        host = gateway(engine, name)
        assert reached(engine, name, (GRANTED, 8080), (host, 9000), (host, 9001), *FORBIDDEN) == [
            (GRANTED, 8080),
            (host, 9000),
        ]
        assert len(leased(world.room)) == len(world.ports()) == 1
    gone(world)


def test_a_bridge_is_filtered_in_place(engine: Engine, world: World) -> None:
    column = LAB if isinstance(engine, Containerd) else CELL  # ctr attaches behind our back, to what is locked by then
    with running(engine, RUNC, "bridge") as plain, running(engine, column, "bridge") as name:
        assert not address(engine, name).startswith("10.207.")
        assert world.ports() == []
        there, here = address(engine, plain), address(engine, name)
        assert reached(engine, plain, (GRANTED, 8081), (here, 8080), (here, 8081)) == [(GRANTED, 8081), (here, 8080)]
        assert reached(engine, name, (GRANTED, 8080), (there, 8080), *FORBIDDEN) == [(GRANTED, 8080)]


def test_the_hosts_network_is_never_lent(engine: Engine, world: World) -> None:
    with running(engine, CELL, "host") as name:
        assert interfaces(engine, name) == []
        pid = engine.pid(name)  # type: ignore[attr-defined]
        own = world.room.run(["readlink", f"/proc/{pid}/ns/net"]).out
        assert own not in (
            world.inside(world.host, "readlink", "/proc/self/ns/net").out,
            world.room.run(["readlink", "/proc/self/ns/net"]).out,
        )
        assert reached(engine, name, (GRANTED, 8080), *FORBIDDEN, ("127.0.0.1", 9001)) == []
    gone(world)


def test_an_engines_containers_and_ours_do_not_meet(like: DockerLike) -> None:
    with running(like, RUNC, "bridge") as plain, running(like, CELL, "none") as name:
        here, there = address(like, name), address(like, plain)
        assert reached(like, plain, (here, 8080), (GRANTED, 8081)) == [(GRANTED, 8081)]
        assert reached(like, name, (there, 8080), (here, 8080)) == [(here, 8080)]


def test_an_engines_network_is_not_isolated(like: DockerLike) -> None:
    said = refused(like, ISO, "bridge")
    assert "start it with --network none" in said
    for network in ("none", "host"):
        with running(like, ISO, network) as name:
            assert reached(like, name, (GRANTED, 8080), (GRANTED, 8081)) == [(GRANTED, 8080)]


def test_a_network_that_is_attached_later_is_filtered(docker: Docker) -> None:
    docker.must("network", "create", "later")
    try:
        with running(docker, RUNC, "later") as plain, running(docker, CELL, "bridge") as name:
            there = on(docker, plain, "later")
            docker.must("network", "connect", "later", name)
            assert interfaces(docker, name) == ["eth0", "eth1"]
            assert reached(docker, name, (GRANTED, 8080), (there, 8080), (there, 8081)) == [(GRANTED, 8080)]
            here = on(docker, name, "later")
            assert reached(docker, plain, (here, 8080), (here, 8081)) == [(here, 8080)]
    finally:
        docker.do("network", "rm", "later")


@pytest.mark.parametrize("column", [CELL, ISO], ids=["conntrack", "stateless"])
def test_docker_may_attach_to_a_network_of_ours(docker: Docker, world: World, column: Column) -> None:
    """It may, since `none` can be disconnected. Docker 20.10 fails, for eth0 is ours; else the lock inside holds."""
    docker.must("network", "create", "later")
    try:
        with running(docker, RUNC, "later") as plain, running(docker, column, "none") as name:
            there = on(docker, plain, "later")
            docker.must("network", "disconnect", "none", name)
            docker.do("network", "connect", "later", name)
            assert reached(docker, name, (GRANTED, 8080), (there, 8080), *FORBIDDEN) == [(GRANTED, 8080)]
    finally:
        docker.do("network", "rm", "later")
    gone(world)


def test_what_is_attached_behind_our_back_finds_no_room(ctr: Containerd, world: World) -> None:
    """`ctr run --cni` attaches after create and says so nowhere: ours is there by then. Such wants mode confine."""
    asked = words(ctr, CELL, "bridge")
    told = ctr.do(*asked)
    assert told.code != 0 and "already exists" in told.err, str(told)
    ctr.remove(asked[asked.index("sh") - 1])
    gone(world)


def test_root_of_a_container_that_is_nobody_outside(world: World, archive: Archive) -> None:
    """userns-remap: the network belongs to another user's namespace."""
    conftest.needs("dockerd", "docker", "containerd", "useradd")
    assert world.room.run(["useradd", "--no-create-home", REMAPPED]).code == 0
    home = world.room.base / "mu"
    home.mkdir(mode=0o711)
    runtimes = {BARE.executable: {"path": path_of(BARE, world.room)}}
    how = {"userns-remap": f"{REMAPPED}:{REMAPPED}", "bridge": "none", "runtimes": runtimes}
    engine = Docker(Inside(world.room, world.host), home, archive, how)
    engine.start()
    try:
        more = [word for word in probed(engine) if word not in PINGS]  # such groups are nobody's in there
        with running(engine, BARE, "none", *more) as name:
            matrix(engine, name, services(engine, name) | NO_PINGS)
        gone(world)
    finally:
        engine.remove_all()
        engine.stop()


# Ports


def test_a_port_that_the_policy_opens_is_published(like: DockerLike, world: World) -> None:
    with running(like, CELL, "bridge", "-p", f"{HOST}:28080:8080"):
        wait_for(lambda: world.fetch(world.outside, HOST, 28080).out == "served\n", 5, "the published port")


def test_a_port_that_the_policy_shuts_is_refused(docker: Docker) -> None:
    said = refused(docker, CELL, "bridge", "-p", "28081:8081")
    assert '[network] inbound = ["tcp:8081"], or drop -p' in said
    said = refused(docker, CELL, "bridge", "-P", "--expose", "8081")
    assert "8081/tcp" in said
    said = refused(docker, CELL, "bridge", "-p", "28081:8080/udp")
    assert "8080/udp" in said
    with running(docker, AGENT, "host", "-p", "28081:8081") as name:  # Docker itself ignores it
        assert interfaces(docker, name) == []
    with running(docker, CELL, "bridge", "-P", "--expose", "8080") as name:
        assert reached(docker, name, (GRANTED, 8080)) == [(GRANTED, 8080)]


def test_podman_publishes_what_the_lock_refuses(podman: Podman, world: World) -> None:
    """It tells a runtime nothing of ports."""
    with running(podman, CELL, "bridge", "-p", f"{HOST}:28081:8081") as name:
        wait_for(lambda: reached(podman, name, ("127.0.0.1", 8081)), 5, "the server")
        begun = time.monotonic()
        told = world.fetch(world.outside, HOST, 28081)
        assert "ConnectionRefusedError" in told.err, str(told)
        assert time.monotonic() - begun < 1


def test_ports_of_a_network_of_ours(engine: Engine, world: World) -> None:
    with running(engine, PUB, "none") as name:
        wait_for(lambda: world.fetch(world.host, "127.0.0.1", 18080).out == "served\n", 5, "the published port")
        assert world.fetch(world.host, "127.0.0.1", 18081).out == "served\n"
        assert world.fetch(world.outside, HOST, 18080).code != 0
        assert reached(engine, name, (gateway(engine, name), 18080), *FORBIDDEN) == []
    assert world.fetch(world.host, "127.0.0.1", 18080).code != 0
    gone(world)


def test_an_annotation_picks_among_ports(podman: Podman, world: World) -> None:
    word = "127.0.0.1:18081:8081/tcp"
    with running(podman, PUB, "none", "--annotation", f"agentshim.publish={word}"):
        wait_for(lambda: world.fetch(world.host, "127.0.0.1", 18081).out == "served\n", 5, "the published port")
        assert world.fetch(world.host, "127.0.0.1", 18080).code != 0
    other = "0.0.0.0:18081:8081/tcp"
    said = refused(podman, PUB, "none", "--annotation", f"agentshim.publish={other}")
    assert other in said and word in said
    gone(world)


# Siblings


COMPOSE = """version: "2.4"
networks: {{ a.front: {{}}, back: {{}} }}
x-all: &all
  image: {image}
  networks: [back]
  command: [sh, -c, "{serve}"]
services:
  db: {{ <<: *all }}
  cache: {{ <<: *all }}
  client: {{ <<: *all, networks: [a.front, back], runtime: agentshim-kin, depends_on: [db] }}
"""


class Project:
    """A compose project with two networks: `db` and `cache` listen at 5432 and 5433, `client` may ask db:5432."""

    def __init__(self, docker: Docker, home: Path) -> None:
        home.mkdir()
        self.docker = docker
        self.file = home / "compose.yaml"
        serve = SERVE.replace("8080 8081 9000", "5432 5433").replace("$", "$$")
        self.file.write_text(COMPOSE.format(image=docker.image(BUSYBOX), serve=serve))

    def do(self, *args: str) -> Result:
        env = {"DOCKER_HOST": f"unix://{self.docker.socket}"}
        argv = [tool("docker-compose"), "--ansi", "never", "-f", str(self.file), *args]
        return self.docker.room.run(argv, env=env)

    def must(self, *args: str) -> str:
        told = self.do(*args)
        assert told.code == 0, str(told)
        return told.out.strip()

    def id(self, service: str) -> str:
        return self.must("ps", "-q", service)


@pytest.fixture
def project(docker: Docker, world: World) -> Iterator[Project]:
    conftest.needs("docker-compose")
    one = Project(docker, world.room.base / "project")
    yield one
    one.do("down", "--timeout", "0")


def test_a_sibling_of_a_project_is_reached_by_name(docker: Docker, project: Project) -> None:
    project.must("up", "-d", "--timeout", "0")
    name = project.id("client")
    wait_for(lambda: reached(docker, name, ("db", 5432)), 5, "db")
    db, cache = (on(docker, project.id(one), "project_back") for one in ("db", "cache"))
    assert f"{db}\tdb" in sh(docker, name, "cat /etc/hosts").out
    every = [(one, port) for one in ("db", cache) for port in (5432, 5433)]
    assert reached(docker, name, *every, *FORBIDDEN) == [("db", 5432)]
    assert sh(docker, name, "nslookup cache 127.0.0.11").code != 0
    project.must("stop", "--timeout", "0", "db")
    again = project.do("up", "-d", "--no-deps", "--force-recreate", "--timeout", "0", "client")
    assert again.code != 0
    assert "network: outbound db: asked no address" in again.err and "start that service first" in again.err
    project.must("up", "-d", "--timeout", "0")
    assert reached(docker, project.id("client"), ("db", 5432)) == [("db", 5432)]


def test_a_label_makes_nobody_a_sibling(docker: Docker) -> None:
    """An image brings its own labels: it would be let in for another."""
    docker.must("network", "create", "kin")
    label = "com.docker.compose.service=db"
    try:
        with running(docker, RUNC, "kin", "--label", label):
            assert "start that service first" in refused(docker, KIN, "kin")
            docker.must(
                *docker.words(
                    "run", RUNC, "-d", "--network", "bridge", "--name", "db", docker.image(BUSYBOX), "sleep", "99"
                )
            )
            assert "start that service first" in refused(docker, KIN, "kin"), "on another network"
            docker.must("network", "connect", "kin", "db")
            with running(docker, KIN, docker.must("network", "inspect", "--format", "{{.Id}}", "kin")) as name:
                assert f"{on(docker, 'db', 'kin')}\tdb" in sh(docker, name, "cat /etc/hosts").out
    finally:
        docker.remove("db")
        docker.do("network", "rm", "kin")


def test_the_engines_resolver_is_asked_where_policy_says_so(docker: Docker) -> None:
    docker.must("network", "create", "kin")
    try:
        with running(docker, RUNC, "kin", "--network-alias", "db") as plain, running(docker, ASK, "kin") as name:
            assert on(docker, plain, "kin") in sh(docker, name, "nslookup db 127.0.0.11").out
            assert reached(docker, name, ("db", 8080), *FORBIDDEN[:-1]) == []
    finally:
        docker.do("network", "rm", "kin")


def test_podmans_resolver_is_asked_where_policy_says_so(world: World, archive: Archive) -> None:
    """aardvark, on the bridge that netavark made: the host's own address, which podman writes into resolv.conf."""
    conftest.needs("podman", "conmon")
    if not all(Path("/usr/lib/podman", one).exists() for one in ("netavark", "aardvark-dns")):
        pytest.skip("SKIPPED LOUDLY: not installed: netavark, aardvark-dns")
    home = world.room.base / "v"
    home.mkdir(mode=0o711)
    engine = Podman(Inside(world.room, world.host), home, archive)
    engine.client[engine.client.index("--runroot") + 1] = "/run/containers/storage"  # where an engine's files are known
    file = home / "containers.conf"
    file.write_text(file.read_text().replace('"cni"', '"netavark"'))
    engine.must("network", "create", "kin")
    try:
        with running(engine, RUNC, "kin", "--name", "db") as plain, running(engine, ASK, "kin") as name:
            assert address(engine, plain) in sh(engine, name, "nslookup db").out
            there = (address(engine, plain), 8080)
            assert reached(engine, name, (gateway(engine, name), 9000), there, *FORBIDDEN[:-1]) == []
            with running(engine, CELL, "kin") as other:
                begun = time.monotonic()
                assert sh(engine, other, "nslookup db").code != 0
                assert time.monotonic() - begun < SECONDS
    finally:
        engine.do("rm", "--all", "--force", "--time", "0")
        engine.do("network", "rm", "kin")


@pytest.mark.parametrize("network", ["none", "bridge"])
def test_the_hosts_name_server_is_the_engines(like: DockerLike, world: World, network: str) -> None:
    with running(like, ASK, network) as name:
        if like.name == "docker" or network != "none":  # podman writes no resolv.conf then
            assert OTHER in sh(like, name, "cat /etc/resolv.conf").out
        assert reached(like, name, (OTHER, 53), (GRANTED, 53), *FORBIDDEN[:-1]) == [(OTHER, 53)]
    gone(world)


# Networks that are joined


@pytest.mark.parametrize("network", ["none", "bridge"])
def test_a_network_is_joined_under_the_same_lock(like: DockerLike, network: str, world: World) -> None:
    with running(like, CELL, network) as first:
        with running(like, CELL, f"container:{first}") as second:
            assert reached(like, second, (GRANTED, 8080), *FORBIDDEN) == [(GRANTED, 8080)]
        assert reached(like, first, (GRANTED, 8080)) == [(GRANTED, 8080)]
        assert "lets through no more" in refused(like, LESS, f"container:{first}")
    gone(world)


def test_a_strangers_network_is_not_joined(like: DockerLike) -> None:
    with running(like, RUNC, "none") as stranger:
        assert "agentshim did not start" in refused(like, CELL, f"container:{stranger}")


@pytest.mark.parametrize("network", ["none", "bridge"])
def test_a_pod_shares_one_lock(podman: Podman, network: str, world: World) -> None:
    with pod(podman, CELL, network) as of:
        with running(podman, CELL, of) as first, running(podman, CELL, of) as second:
            for name in (first, second):
                assert reached(podman, name, (GRANTED, 8080), *FORBIDDEN) == [(GRANTED, 8080)]
        assert "lets through no more" in refused(podman, LESS, of)
    gone(world)


def test_a_pod_whose_first_container_was_killed(podman: Podman, world: World) -> None:
    """Which holds its network: who is left has it still, and it goes with them."""
    with pod(podman, CELL, "none") as of:
        with running(podman, CELL, of) as one, running(podman, CELL, of) as other:
            infra = podman.must("pod", "inspect", "--format", "{{.InfraContainerID}}", of.removeprefix(POD))
            podman.must("kill", infra)
            wait_for(lambda: podman.must("inspect", "--format", "{{.State.Running}}", infra) == "false", 5, "its end")
            for name in (one, other):
                assert reached(podman, name, (GRANTED, 8080), *FORBIDDEN) == [(GRANTED, 8080)]
        gone(world)


def test_a_strangers_pod_is_not_joined(podman: Podman) -> None:
    """podman starts a pod's first container under its default runtime."""
    with pod(podman, RUNC, "bridge") as of:
        assert "agentshim did not start" in refused(podman, CELL, of)


@contextmanager
def pod(podman: Podman, column: Column, network: str) -> Iterator[str]:
    """A pod whose network a container of `column` holds, as `words` wants it."""
    infra = ("--infra-image", podman.image(BUSYBOX), "--infra-command", "sleep 1000")
    name = podman.must("--runtime", path_of(column, podman.room), "pod", "create", "--network", network, *infra)
    try:
        yield POD + name
    finally:
        podman.do("pod", "rm", "--force", "--time", "0", name)


# Lives


def test_a_start_that_fails_leaves_nothing(engine: Engine, world: World) -> None:
    """The network is there by then: the hooks come before the program is looked for."""
    asked = words(engine, CELL, "none")
    told = engine.do(*asked[: asked.index("sh")], "/no/such/program")
    assert told.code != 0, str(told)
    engine.remove_all()  # type: ignore[attr-defined]
    gone(world)


def test_a_program_that_ends_is_started_again(docker: Docker, world: World) -> None:
    more = ("--restart", "always", docker.image(BUSYBOX), "sh", "-c", f"echo hi | nc -w 1 {GRANTED} 8080; exit 1")
    name = docker.must(*docker.words("run", CELL, "-d", "--network", "none", *more))
    try:
        wait_for(lambda: int(docker.must("inspect", "--format", "{{.RestartCount}}", name)) > 3, 20, "restarts")
        assert len(leased(world.room)) <= 1
        assert set(docker.must("logs", name).split("\n")) == {"echo hi"}
    finally:
        docker.remove(name)
    gone(world)


def test_the_end_of_the_first_leaves_the_network_to_who_joined(like: DockerLike, world: World) -> None:
    """And the first, started again, gets another one."""
    with running(like, CELL, "none") as first, running(like, CELL, f"container:{first}") as second:
        kept = address(like, second)
        like.must("stop", "--time", "0", first)
        assert leased(world.room) == [kept]
        with running(like, CELL, "none") as third:
            assert address(like, third) != kept
            assert reached(like, second, (GRANTED, 8080), *FORBIDDEN) == [(GRANTED, 8080)]
            assert reached(like, third, (GRANTED, 8080), (kept, 8080)) == [(GRANTED, 8080)]
        like.must("start", first)
        for name in (first, second):
            assert reached(like, name, (GRANTED, 8080), (OTHER, 8080)) == [(GRANTED, 8080)]
        like.remove(second)
        assert leased(world.room) == [address(like, first)] != [kept]
    gone(world)


def test_a_restart_takes_an_address_anew(like: DockerLike, world: World) -> None:
    with running(like, CELL, "none") as name:
        for again in (("restart", "--time", "0", name), ("stop", "--time", "0", name), ("start", name)):
            like.must(*again)
            if again[0] == "stop":
                gone(world)
                continue
            assert len(leased(world.room)) == 1
            assert reached(like, name, (GRANTED, 8080), (OTHER, 8080)) == [(GRANTED, 8080)]
            wait_for(lambda: len(world.ports()) == 1, 5, "the first link to go")
    gone(world)


def test_dockers_forward_drop_is_kept_off(docker: Docker, world: World) -> None:
    """DOCKER-USER holds our accepts; whoever flushes it is found by the next `net up`."""
    assert "-P FORWARD DROP" in world.inside(world.host, tool("iptables"), "-S", "FORWARD").out
    with running(docker, CELL, "none") as name:
        assert reached(docker, name, (GRANTED, 8080)) == [(GRANTED, 8080)]
        world.inside(world.host, tool("iptables"), "-F", "DOCKER-USER")
        assert sh(docker, name, f"echo hi | nc -w 1 {GRANTED} 8080").out == ""
        told = shim(world, "net", "up", "cell")
        assert told.code == 0, str(told)
        assert reached(docker, name, (GRANTED, 8080), (OTHER, 8080)) == [(GRANTED, 8080)]
        docker.restart()
        assert reached(docker, name, (GRANTED, 8080), (OTHER, 8080)) == [(GRANTED, 8080)]
    gone(world)


# Built-in policies


@pytest.mark.parametrize("network", ["none", "bridge"])
def test_the_default_policy_reaches_nobody(engine: Engine, network: str, world: World) -> None:
    with running(engine, AGENT, network) as name:
        assert world.ports() == []
        assert reached(engine, name, (GRANTED, 8080), *FORBIDDEN) == []
        assert reached(engine, name, ("127.0.0.1", 8080)) == [("127.0.0.1", 8080)], "itself"


def test_dev_reaches_the_public_alone(engine: Engine) -> None:
    public = [(GRANTED, 8080), (GRANTED, 8081), (OTHER, 8080)]
    with running(engine, DEV, "bridge") as name:
        found = reached(engine, name, *public, (gateway(engine, name), 9000), *FORBIDDEN[2:-1])
        assert found == public
