"""Names that containers ask for: dnsmasq answers what is listed, and the host's lock learns the addresses.

The internet has a name server, which is a dnsmasq, too; the host asks it by the room's own /etc/resolv.conf. The
addresses are of a block that nobody uses any more, since dnsmasq takes those for documentation for private ones; no
packet leaves the world.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.engines.images import tool
from conformance.oci.cli import Runtime
from conformance.oci.conftest import Maker
from conformance.oci.test_isolated import POLICY, asked, config, gateway_of, runtime, shim, started, world
from conformance.room import wait_for
from conformance.world import HOST, METADATA, NEIGHBOUR, World

__all__ = ["runtime", "world"]  # fixtures
pytestmark = pytest.mark.oci

SERVER, FAR, ELSEWHERE = "192.88.99.53", "192.88.99.71", "192.88.99.72"
NAME, WIDE, NEAR, OWN, CLOUD = (f"{one}.lab.example" for one in ("api", "wide", "near", "own", "cloud"))
LED = {
    NAME: FAR,
    f"below.{NAME}": ELSEWHERE,
    "other.lab.example": ELSEWHERE,
    NEAR: NEIGHBOUR,
    OWN: HOST,
    CLOUD: METADATA,
}
PEERS = [f"tcp:{NAME}:8080", f"tcp:{NEAR}:8080", f"tcp:{OWN}:9000", f"tcp:{CLOUD}:80-81"]
LEARN = POLICY.partition("outbound")[0] + f'names = "learn"\noutbound = {json.dumps(PEERS)}\n'
MASQUERADE = "table ip t { chain c { type nat hook postrouting priority 100; ip saddr 10.207.0.0/16 masquerade; }; }"
FILES = Path("/run/agentshim/net/cell")


@pytest.fixture
def internet(world: World) -> Iterator[Path]:
    """Its name server; the log of what it was asked."""
    program = tool("dnsmasq")
    if not program:
        pytest.skip("SKIPPED LOUDLY: dnsmasq is not installed")
    for address in (SERVER, FAR, ELSEWHERE):
        world.ip("-n", world.outside, "address", "add", f"{address}/32", "dev", "lo")
    log, file = world.room.base / "asked.log", world.room.base / "internet.conf"
    records = "".join(f"host-record={name},{address}\n" for name, address in LED.items())
    head = f"port=53\nlisten-address={SERVER}\nbind-interfaces\nno-resolv\nno-hosts\npid-file=\nlog-queries\n"
    log.touch()
    log.chmod(0o666)
    file.write_text(f"{head}log-facility={log}\nlocal-ttl=30\n{records}")
    argv = ["nsenter", f"--net=/run/netns/{world.outside}", program, "--keep-in-foreground", f"--conf-file={file}"]
    server = world.room.popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    world.servers.append(server)
    wait_for(lambda: "started" in log.read_text(), 5, "the internet's name server")
    world.room.run(["sh", "-c", "rm -f /etc/resolv.conf; cat > /etc/resolv.conf"], input=f"nameserver {SERVER}\n")
    yield log
    log.unlink()


@pytest.fixture
def learning(runtime: Runtime, internet: Path) -> Iterator[Runtime]:
    """agentshim under a policy whose names are learned; no dnsmasq of it is left."""
    (runtime.room.base / "config" / "policies" / "cell.toml").write_text(LEARN)
    yield runtime
    runtime.clear()
    pid = resolver(runtime)
    assert shim(runtime, "net", "down", "--all", "--force").code == 0
    assert not lives(pid)


def resolver(runtime: Runtime) -> int:
    """The process that answers containers; 0 where none was started."""
    told = runtime.room.run(["cat", f"{FILES}/resolver"]).out.split()
    return int(told[0]) if told else 0


def lives(pid: int) -> bool:
    try:
        return pid > 0 and Path(f"/proc/{pid}/comm").read_text() == "dnsmasq\n" and not zombie(pid)
    except OSError:
        return False


def zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def look(runtime: Runtime, container: str, name: str, *server: str) -> tuple[int, str]:
    """What a container's resolver says of a name."""
    told = runtime.call("exec", container, "sh", "-c", " ".join(("nslookup -type=a", name, *server)), timeout=30)
    return told.code, told.out + told.err


def test_a_name_is_asked_for_and_then_reached(learning: Runtime, world: World, bundle: Maker, internet: Path) -> None:
    started(learning, bundle, "c")
    assert lives(resolver(learning))
    gateway = gateway_of(learning, "c")
    assert learning.must("exec", "c", "cat", "/etc/resolv.conf").startswith(f"nameserver {gateway}\n")
    assert asked(learning, "c", FAR, 8080).code != 0, "before anybody has asked for it"
    assert shim(learning, "why", "c", f"{NAME}:8080").out.count("when the container has asked for it") == 1
    code, told = look(learning, "c", NAME)
    assert code == 0 and FAR in told, told
    assert asked(learning, "c", FAR, 8080).out == "echo hi\n"
    assert FAR in world.rules().partition("set learned_")[2]
    assert asked(learning, "c", NAME, 8080).out == "echo hi\n", "by its name"
    assert asked(learning, "c", FAR, 8081).code != 0, "another port of it"
    assert asked(learning, "c", ELSEWHERE, 8080).code != 0, "another address on that port"
    why = shim(learning, "why", "c", f"tcp:{FAR}:8080")
    assert why.code == 0 and "has led there" in why.out, str(why)
    assert f"{ELSEWHERE}:8080: rejected" in shim(learning, "why", "c", f"tcp:{ELSEWHERE}:8080").out
    assert f"allowed tcp to {FAR}:8080" in shim(learning, "flows", "c").out
    denied = shim(learning, "denied", "c").out
    assert f"tcp to {ELSEWHERE}:8080: 1 packets" in denied and f"tcp to {FAR}:8081: 1 packets" in denied, denied


def test_an_engines_resolver_is_covered(learning: Runtime, world: World, bundle: Maker, internet: Path) -> None:
    """Docker mounts a resolv.conf of its own, whatever the network."""
    asks = config(learning, "sleep", "1000")
    lent = learning.room.base / "lent"
    lent.mkdir(exist_ok=True)
    (lent / "resolv.conf").write_text(f"nameserver {SERVER}\n")
    for source, place in ((lent / "resolv.conf", "/etc/resolv.conf"), (lent, "/lent")):
        asks["mounts"].append({"destination": place, "type": "bind", "source": str(source), "options": ["rbind", "rw"]})
    learning.must("create", "--bundle", str(bundle(asks).path), "c")
    learning.must("start", "c")
    assert look(learning, "c", NAME)[0] == 0
    assert gateway_of(learning, "c") in learning.must("exec", "c", "cat", "/etc/resolv.conf")
    assert learning.call("exec", "c", "sh", "-c", "echo > /etc/resolv.conf").code != 0, "it is not writable"


def test_nothing_else_is_asked(learning: Runtime, world: World, bundle: Maker, internet: Path) -> None:
    started(learning, bundle, "c")
    for name in ("other.lab.example", f"below.{NAME}", "secret.example.net"):
        begun = time.monotonic()
        code, told = look(learning, "c", name)
        assert code != 0 and "NXDOMAIN" in told, told
        assert time.monotonic() - begun < 2, "at once"
    assert look(learning, "c", NAME)[0] == 0
    wait_for(lambda: questions(internet), 5, "the question that is allowed, in the log")
    assert questions(internet) == [NAME]
    code, told = look(learning, "c", NAME, SERVER)
    assert code != 0 and FAR not in told, "the internet's name server is not reached"
    assert questions(internet) == [NAME]
    assert world.inside(world.host, sys.executable, "-c", ASK, SERVER, NAME).code == 0
    assert questions(internet) == [NAME, NAME], "who is not kept from it"


ASK = """import socket, sys
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.settimeout(2)
name = b"".join(bytes([len(part)]) + part.encode() for part in sys.argv[2].split("."))
one.sendto(bytes.fromhex("123401000001000000000000") + name + bytes.fromhex("0000010001"), (sys.argv[1], 53))
print(len(one.recv(512)))
"""


def test_nobody_else_is_answered(learning: Runtime, world: World, bundle: Maker, internet: Path) -> None:
    """A neighbour on the host's LAN with a route to the gateway."""
    started(learning, bundle, "c")
    gateway = gateway_of(learning, "c")
    world.ip("-n", world.lan, "route", "add", f"{gateway}/32", "via", "192.168.77.1")
    told = world.inside(world.lan, sys.executable, "-c", ASK, gateway, NAME)
    assert told.code != 0 and not told.out and questions(internet) == []
    assert world.inside(world.outside, sys.executable, "-c", ASK, SERVER, NAME).code == 0, "the control"


def questions(log: Path) -> list[str]:
    """What the internet's name server was asked."""
    return re.findall(r"query\[\w+\] (\S+)", log.read_text())


def test_a_name_that_leads_near_opens_nothing(learning: Runtime, world: World, bundle: Maker) -> None:
    """DNS rebinding; and the same where something else has put the address into the set."""
    started(learning, bundle, "c")
    peers = ((NEAR, NEIGHBOUR, 8080), (OWN, HOST, 9000), (CLOUD, METADATA, 80))
    for name, address, port in peers:
        look(learning, "c", name)
        assert asked(learning, "c", address, port).code != 0, name
    names = [one.split()[0] for one in world.rules().split("set ") if one.startswith("learned_")]
    assert len(names) == 3
    for name in names:
        for _, address, _ in peers:
            world.inside(world.host, tool("nft"), "add", "element", "inet", "agentshim", name, "{", address, "}")
    for _, address, port in peers:
        assert asked(learning, "c", address, port).code != 0, address
    for _, address, port in peers:
        assert world.fetch(world.host, address, port).out == "echo hi\n", f"{address} is there"


def test_the_hosts_table_flushed_alone_is_there_at_the_next_start(
    learning: Runtime, world: World, bundle: Maker
) -> None:
    """Until then the lock inside has what was never to be had, and public addresses only where somebody masquerades."""
    started(learning, bundle, "a")
    assert look(learning, "a", NAME)[0] == 0 and asked(learning, "a", FAR, 8080).out == "echo hi\n"
    for command in ("delete table inet agentshim", MASQUERADE):
        assert world.inside(world.host, tool("nft"), command).code == 0
    never = ((NEIGHBOUR, 8080), (HOST, 9000), (METADATA, 80), (FAR, 8081))
    assert asked(learning, "a", ELSEWHERE, 8080).out == "echo hi\n", "as SECURITY.md says"
    for address, port in never:
        assert asked(learning, "a", address, port).code != 0, f"{address}:{port}"
    started(learning, bundle, "b")
    for address, port in ((ELSEWHERE, 8080), *never):
        assert asked(learning, "a", address, port).code != 0, f"{address}:{port}"
    assert look(learning, "a", NAME)[0] == 0 and asked(learning, "a", FAR, 8080).out == "echo hi\n", "as before"


def test_a_resolver_that_died_is_started_again(learning: Runtime, world: World, bundle: Maker) -> None:
    started(learning, bundle, "a")
    first = resolver(learning)
    assert lives(first)
    started(learning, bundle, "b")
    assert resolver(learning) == first, "it is there already"
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not lives(first), 5, "its end")
    started(learning, bundle, "c")
    second = resolver(learning)
    assert second != first and lives(second)
    assert look(learning, "a", NAME)[0] == 0, "for those who were there, too"


def test_its_file_follows_the_policy(learning: Runtime, world: World, bundle: Maker) -> None:
    """Containers of the former policy are answered as before, and reach what they did."""
    started(learning, bundle, "a")
    first = resolver(learning)
    policy = learning.room.base / "config" / "policies" / "cell.toml"
    policy.write_text(LEARN.replace(f"tcp:{NAME}:8080", "tcp:other.lab.example:8080"))
    started(learning, bundle, "b")
    assert not lives(first) and lives(resolver(learning))
    assert look(learning, "b", "other.lab.example")[0] == 0
    assert asked(learning, "b", ELSEWHERE, 8080).out == "echo hi\n"
    assert look(learning, "a", NAME)[0] == 0
    assert asked(learning, "a", FAR, 8080).out == "echo hi\n"
    assert asked(learning, "a", ELSEWHERE, 8080).code != 0
    assert asked(learning, "b", FAR, 8080).code != 0


def test_the_end_of_the_bridge_is_its_end(learning: Runtime, world: World, bundle: Maker) -> None:
    started(learning, bundle, "c")
    pid = resolver(learning)
    assert lives(pid)
    learning.must("delete", "--force", "c")
    assert lives(pid), "the next one finds it"
    assert shim(learning, "net", "down", "--all").code == 0
    assert not lives(pid)


def test_a_host_without_dnsmasq_is_told(learning: Runtime, bundle: Maker) -> None:
    program = tool("dnsmasq")
    learning.room.run(["mount", "--bind", "/dev/null", program])
    try:
        refused = learning.call("create", "--bundle", str(bundle(config(learning, "true")).path), "c")
        assert refused.code == 1 and "dnsmasq-base" in refused.err, str(refused)
        assert learning.room.run(["ls", str(FILES)]).code != 0, "nothing was begun"
    finally:
        learning.room.run(["umount", program])
