"""A network that a policy filters, on engines that make it their own way: what passes, what is rejected, who is told.

Everything stays on bridges that the engines of this room made. The peers are containers of plain runc, unfiltered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from conformance import lab
from conformance.columns import COLUMNS, Column
from conformance.engines import conftest, dockerd
from conformance.engines.harness import BUSYBOX, DockerLike
from conformance.engines.images import tool
from conformance.lab import GRANTED, LAB, LEASED, OTHER
from conformance.room import Result, Room, wait_for

pytestmark = pytest.mark.engine

RUNC = COLUMNS[0]
REJECTED_WITHIN = 2.0  # seconds, of which a client of the engine takes most; a dropped SYN is tried for minutes
SERVE = "cd /tmp; for p in 8080 8081 8082; do httpd -p $p; done; echo served > /tmp/page; sleep 1000"


@pytest.fixture(scope="module", params=["docker", "podman"])
def engine(request: pytest.FixtureRequest, the_room: Room, archive: object) -> Iterator[DockerLike]:
    """An engine that knows the lab's runtime."""
    lab.furnish(the_room)
    if request.param == "podman":
        conftest.needs("podman", "conmon", "runc")
        yield request.getfixturevalue("podman")
        return
    conftest.needs("dockerd", "docker", "containerd", "runc")
    runtimes = {LAB.executable: {"path": str(the_room.base / "bin" / LAB.executable)}}
    with dockerd.docker(the_room, archive, "n", runtimes=runtimes) as found:  # type: ignore[arg-type]
        yield found


@pytest.fixture(scope="module", autouse=True)
def neighbours(the_room: Room) -> Iterator[None]:
    """Where a dockerd of the host's has made FORWARD drop, bridges that it does not know pass nothing."""
    rule = ["FORWARD", "-s", "10.0.0.0/8", "-d", "10.0.0.0/8", "-j", "ACCEPT"]
    added = bool(tool("iptables")) and the_room.run([tool("iptables"), "-w", "-I", *rule]).code == 0
    yield
    if added:
        the_room.run([tool("iptables"), "-w", "-D", *rule])


@contextmanager
def serving(engine: DockerLike, column: Column, *args: str) -> Iterator[tuple[str, str]]:
    """A container that serves /page on three ports: its id and its address."""
    with engine.detached(column, *args, engine.image(BUSYBOX), "sh", "-c", SERVE) as name:
        wait_for(
            lambda: engine.do("exec", name, "wget", "-qO-", "http://127.0.0.1:8082/page").code == 0, 10, "a server"
        )
        yield name, address(engine, name)


def address(engine: DockerLike, name: str) -> str:
    told = json.loads(engine.must("inspect", name))[0]["NetworkSettings"]
    return str(told["IPAddress"] or next(iter(told["Networks"].values()))["IPAddress"])


def get(engine: DockerLike, name: str, peer: str, port: int) -> Result:
    """What /page holds, by nc: busybox's static wget looks numbers up in the name service, and dies of it."""
    ask = f"printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | nc -w 20 {peer} {port} | tail -n 1 | grep -x served"
    return engine.do("exec", name, "sh", "-c", ask, timeout=40)


def shim(engine: DockerLike, *args: str) -> Result:
    return engine.room.run([str(engine.room.base / "bin" / "agentshim"), *args])


@contextmanager
def idle(engine: DockerLike, column: Column, *args: str) -> Iterator[str]:
    with engine.detached(column, *args, engine.image(BUSYBOX), "sleep", "1000") as name:
        yield name


def test_out_and_in(engine: DockerLike) -> None:
    """Granted ports pass both locks; others are rejected at once, by ours going out and by ours coming in."""
    servers = serving(engine, RUNC), serving(engine, LAB)
    with servers[0] as (_, plain), servers[1] as (_, locked), idle(engine, LAB) as client, idle(engine, RUNC) as other:
        assert get(engine, client, plain, GRANTED).out == "served\n"
        assert get(engine, client, locked, GRANTED).out == "served\n"
        assert get(engine, other, locked, GRANTED).out == "served\n"
        assert get(engine, other, plain, OTHER).out == "served\n"
        for name, peer in ((client, plain), (other, locked)):
            begin = time.monotonic()
            assert get(engine, name, peer, OTHER).code != 0
            assert time.monotonic() - begin < REJECTED_WITHIN


def test_records(engine: DockerLike) -> None:
    """flows, denied and why say what the kernel counted."""
    with serving(engine, RUNC) as (_, plain), idle(engine, LAB) as client:
        get(engine, client, plain, GRANTED)
        get(engine, client, plain, OTHER)
        assert f"allowed tcp to {plain}:{GRANTED}" in shim(engine, "flows", client).out
        assert f"rejected tcp to {plain}:{OTHER}" in shim(engine, "denied", client).out
        row = json.loads(shim(engine, "denied", client, "--json").out.splitlines()[0])
        assert (row["destination.ip"], row["destination.port"], row["container.id"]) == (plain, OTHER, client)
        allowed = shim(engine, "why", client, f"{plain}:{GRANTED}")
        assert allowed.code == 0
        assert "policy lab grants tcp:10." in allowed.out
        other = shim(engine, "why", client, f"tcp:{plain}:{OTHER}")
        assert other.code == 1
        assert f'[[network.add]] to = "tcp:{plain}:{OTHER}"' in other.out
        if engine.name == "docker":  # podman's bridge here has no address
            gateway = json.loads(engine.must("inspect", client))[0]["NetworkSettings"]["Gateway"]
            assert shim(engine, "why", client, f"{gateway}:{GRANTED}").code == 1  # the host's own, though of the block
        assert "under every policy" in shim(engine, "why", client, "169.254.169.254:80").out


def test_export(engine: DockerLike) -> None:
    """All containers at once, for a scraper."""
    file = engine.home / "agentshim.prom"
    with serving(engine, RUNC) as (_, plain), idle(engine, LAB) as client:
        get(engine, client, plain, GRANTED)
        get(engine, client, plain, OTHER)
        assert shim(engine, "net", "export", "--prometheus", str(file)).code == 0
        labels = f'{{container="{client}",policy="lab",verdict="%s",direction="egress",protocol="tcp"}}'
        found = dict(line.rsplit(" ", 1) for line in file.read_text().splitlines() if not line.startswith("#"))
        assert int(found["agentshim_network_packets_total" + labels % "allowed"]) >= 4
        assert int(found["agentshim_network_packets_total" + labels % "rejected"]) >= 1
        shown = shim(engine, "net", "show").out
        assert f"{client[:12]}  lab: outbound tcp 10.0.0.0-" in shown  # with a gap where the host's own address is
        assert "; inbound tcp 8080\n" in shown
    assert shim(engine, "net", "export", "--prometheus", "/nowhere/x").code == 1


def test_lease(engine: DockerLike) -> None:
    """A peer that the policy does not name, for a while; the kernel ends it."""
    with serving(engine, RUNC) as (_, plain), idle(engine, LAB) as client:
        assert get(engine, client, plain, LEASED).code != 0
        peer = f"tcp:{plain}:{LEASED}"
        told = shim(engine, "lease", "egress", client, peer, "--ttl", "3s", "--why", "a test of leases")
        assert told.code == 0, str(told)
        assert get(engine, client, plain, LEASED).out == "served\n"
        assert peer in shim(engine, "lease", "list", client).out
        wait_for(lambda: get(engine, client, plain, LEASED).code != 0, 6, "the lease's end")
        assert shim(engine, "lease", "revoke", client, peer).code == 1
        shim(engine, "lease", "egress", client, peer, "--ttl", "1h", "--why", "a test of leases")
        assert get(engine, client, plain, LEASED).code == 0
        assert shim(engine, "lease", "revoke", client, peer).code == 0
        assert get(engine, client, plain, LEASED).code != 0
        log = engine.room.run(["cat", "/var/log/agentshim/audit.jsonl"]).out.splitlines()
        actions = [json.loads(line)["event.action"] for line in log]
        assert [one for one in actions if "lease" in one][-4:] == [
                "lease_granted", "lease_expired", "lease_granted", "lease_revoked",
            ]  # fmt: skip


@pytest.mark.parametrize("words", [["1.2.3.4:80", "1m", "x y z"], ["tcp:169.254.169.254:80", "1m", "metadata"],
                                   ["tcp:10.0.0.1:80", "48h", "too long"], ["tcp:10.0.0.1:80", "1m", " "]])  # fmt: skip
def test_leases_that_nobody_gets(engine: DockerLike, words: list[str]) -> None:
    peer, ttl, why = words
    with idle(engine, RUNC) as unfiltered, idle(engine, LAB) as client:
        assert shim(engine, "lease", "egress", unfiltered, peer, "--ttl", ttl, "--why", why).code == 1
        if not peer.startswith("1.2"):
            assert shim(engine, "lease", "egress", client, peer, "--ttl", ttl, "--why", why).code == 1


def test_a_network_that_is_joined(engine: DockerLike) -> None:
    """One lock for all in it: who may more lives with it, who may less or finds none is refused."""
    with serving(engine, RUNC) as (stranger, plain), idle(engine, LAB) as first:
        with idle(engine, LAB, "--network", f"container:{first}") as second:
            assert get(engine, second, plain, GRANTED).code == 0
            assert get(engine, second, plain, OTHER).code != 0
        words = engine.words("run", LAB, "--rm", "--network", f"container:{stranger}", engine.image(BUSYBOX), "true")
        refused = engine.do(*words)
        assert refused.code != 0
        assert "which agentshim did not start" in refused.err, str(refused)


def test_a_restart_locks_again(engine: DockerLike) -> None:
    with serving(engine, RUNC) as (_, plain), idle(engine, LAB) as client:
        engine.must("restart", "--time", "0", client)
        assert get(engine, client, plain, GRANTED).code == 0
        assert get(engine, client, plain, OTHER).code != 0


def test_no_network_at_all(engine: DockerLike) -> None:
    with idle(engine, LAB, "--network", "none") as client:
        assert engine.must("exec", client, "cat", "/sys/class/net/lo/operstate") in ("unknown", "up")
        assert get(engine, client, "10.1.2.3", GRANTED).code != 0
