"""A network of agentshim's own that other containers join: it stays while one of them lives, and goes with the last."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conformance.engines.images import tool
from conformance.oci.cli import Runtime
from conformance.oci.conftest import Maker
from conformance.oci.test_isolated import (
    POLICY,
    address_of,
    asked,
    config,
    runtime,
    shim,
    started,
    unlock_inside,
    world,
)
from conformance.oci.test_refresh import NAMING, Hosts, hosts
from conformance.world import GRANTED, OTHER, World

__all__ = ["hosts", "runtime", "world"]  # fixtures
pytestmark = pytest.mark.oci

SHARED = POLICY.replace("publish", "# publish")  # a door is one network's alone
NETWORK = "/run/agentshim/net/cell"


@pytest.fixture
def cells(runtime: Runtime) -> Runtime:
    """Under a policy that several networks may have at once."""
    policy(runtime, SHARED)
    return runtime


def policy(runtime: Runtime, text: str) -> None:
    (runtime.room.base / "config" / "policies" / "cell.toml").write_text(text)


def joining(runtime: Runtime, of: str) -> dict[str, Any]:
    """A container that asks for the network of another one."""
    asks = config(runtime, "sleep", "1000")
    place = f"/proc/{runtime.state(of)['pid']}/ns/net"
    kinds = asks["linux"]["namespaces"]
    asks["linux"]["namespaces"] = [{**one, "path": place} if one["type"] == "network" else one for one in kinds]
    return asks


def joined(runtime: Runtime, bundle: Maker, name: str, of: str) -> Path:
    """A running container in the network of another one."""
    made = bundle(joining(runtime, of))
    runtime.must("create", "--bundle", str(made.path), name)
    runtime.must("start", name)
    return Path(made.path)


def end(runtime: Runtime, name: str) -> None:
    runtime.must("delete", "--force", name)


def lives(runtime: Runtime, *names: str, address: str = "") -> None:
    """What is granted is reached, and nothing else."""
    for name in names:
        assert asked(runtime, name, GRANTED, 8080).out == "echo hi\n", name
        assert asked(runtime, name, OTHER, 8080).code != 0, name
        assert not address or address_of(runtime, name) == address


def nothing_is_left(runtime: Runtime, world: World, collected: bool = False) -> None:
    """In the host's sets and in the table of neighbours, and of files. `collected`: by gc, which leaves a neighbour to
    the next owner of the address: it will say the same.
    """
    assert world.elements() == []
    assert collected or "PERMANENT" not in world.inside(world.host, tool("ip"), "neighbour").out
    assert files(runtime) == []


def files(runtime: Runtime) -> list[str]:
    """What keeps addresses, and what those who joined have of them."""
    places = (f"{NETWORK}/addresses", f"{NETWORK}/members")
    return runtime.room.run(["find", *places, "-type", "f", "!", "-name", ".lock"]).out.split()


@pytest.mark.parametrize("order", ["abc", "bac", "cba"])
def test_the_network_goes_with_the_last(cells: Runtime, world: World, bundle: Maker, order: str) -> None:
    started(cells, bundle, "a")
    address = address_of(cells, "a")
    joined(cells, bundle, "b", "a")
    joined(cells, bundle, "c", "b")
    before = world.elements()
    for place, name in enumerate(order[:-1], 1):
        end(cells, name)
        assert world.elements() == before
        lives(cells, *order[place:], address=address)
    unlock_inside(cells, order[-1])
    lives(cells, order[-1])  # by the host's lock alone
    end(cells, order[-1])
    nothing_is_left(cells, world)


def test_whoever_is_left_may_be_joined(cells: Runtime, world: World, bundle: Maker) -> None:
    started(cells, bundle, "a")
    address = address_of(cells, "a")
    joined(cells, bundle, "b", "a")
    end(cells, "a")
    joined(cells, bundle, "c", "b")
    end(cells, "b")
    lives(cells, "c", address=address)
    end(cells, "c")
    nothing_is_left(cells, world)


@pytest.mark.parametrize("last", ["a", "b"])
def test_the_owners_name_is_free_for_another(cells: Runtime, world: World, bundle: Maker, last: str) -> None:
    """Neither end takes the other network along."""
    started(cells, bundle, "a")
    joined(cells, bundle, "b", "a")
    first = address_of(cells, "b")
    end(cells, "a")
    started(cells, bundle, "a")
    assert address_of(cells, "a") != first
    assert shim(cells, "net", "gc").code == 0
    lives(cells, "a")
    lives(cells, "b", address=first)
    end(cells, "ab".replace(last, ""))
    lives(cells, last)
    end(cells, last)
    nothing_is_left(cells, world)


def test_the_owners_name_joins_what_it_has_left(cells: Runtime, world: World, bundle: Maker) -> None:
    """Its first hook, called once more, late, is another container's by now."""
    made = started(cells, bundle, "a")
    (late,) = json.loads((made / "config.json").read_text())["hooks"]["poststop"]
    joined(cells, bundle, "b", "a")
    end(cells, "a")
    joined(cells, bundle, "a", "b")
    end(cells, "b")
    for _ in range(2):
        assert cells.room.run(["nsenter", f"--net=/run/netns/{world.host}", late["path"], *late["args"][1:]]).code == 0
        lives(cells, "a")
    end(cells, "a")
    nothing_is_left(cells, world)


def test_a_bundle_has_one_claim(cells: Runtime, world: World, bundle: Maker) -> None:
    """Which is its own: what a bundle brings along is another container's."""
    started(cells, bundle, "a")
    made = joined(cells, bundle, "b", "a")
    (first,) = json.loads((made / "config.json").read_text())["hooks"]["poststop"]
    end(cells, "b")
    cells.must("create", "--bundle", str(made), "c")
    (second,) = json.loads((made / "config.json").read_text())["hooks"]["poststop"]
    assert first["args"][:4] == second["args"][:4] and first["args"][4:] != second["args"][4:]
    end(cells, "a")
    end(cells, "c")
    nothing_is_left(cells, world)


def test_a_join_that_is_refused_leaves_nothing(cells: Runtime, world: World, bundle: Maker) -> None:
    started(cells, bundle, "a")
    before = files(cells)
    policy(cells, SHARED.replace('"tcp:203.0.113.5:8080", ', ""))
    with pytest.raises(AssertionError, match="lets through no more than its own policy"):
        joined(cells, bundle, "b", "a")
    policy(cells, SHARED)
    asks = joining(cells, "a")
    asks["mounts"].append({"destination": "/x", "type": "bind", "source": "/etc/shadow", "options": ["bind"]})
    assert cells.call("create", "--bundle", str(bundle(asks).path), "b").code != 0
    assert [one for one in files(cells) if not one.endswith(".net")] == before
    end(cells, "a")
    assert world.elements() == []


# Kills


@pytest.mark.parametrize("look", ["gc", "create", "hook"])
def test_a_hook_that_did_nothing(cells: Runtime, world: World, bundle: Maker, look: str) -> None:
    """As where it was killed at its begin: nobody loses the network by it, and it goes at the next look."""
    for first, second in ("ab", "ba"):
        started(cells, bundle, "a")
        address = address_of(cells, "a")
        joined(cells, bundle, "b", "a")
        ended_without_a_hook(cells, first)
        assert shim(cells, "net", "gc").code == 0
        lives(cells, second, address=address)
        if look == "hook":
            end(cells, second)
            assert world.elements() == files(cells) == [], "gc has told whose part has ended"
            continue
        ended_without_a_hook(cells, second)
        assert world.elements()
        if look == "gc":
            assert shim(cells, "net", "gc").code == 0
        else:
            started(cells, bundle, "c")
            end(cells, "c")
        nothing_is_left(cells, world, collected=True)


def test_a_late_hook(cells: Runtime, world: World, bundle: Maker) -> None:
    """Of a container whose name is another one's by now, in another network: it takes nobody's along."""
    made = {"a": started(cells, bundle, "a")}
    made["b"] = joined(cells, bundle, "b", "a")
    made["c"] = joined(cells, bundle, "c", "a")
    late = [json.loads((made[one] / "config.json").read_text())["hooks"]["poststop"][0] for one in "ab"]
    ended_without_a_hook(cells, "a")
    ended_without_a_hook(cells, "b")
    started(cells, bundle, "a")
    joined(cells, bundle, "b", "a")
    for one in late:
        assert cells.room.run(["nsenter", f"--net=/run/netns/{world.host}", one["path"], *one["args"][1:]]).code == 0
        lives(cells, *"abc")
    assert shim(cells, "net", "gc").code == 0
    lives(cells, *"abc")
    end(cells, "c")
    lives(cells, *"ab")
    assert address_of(cells, "a") in "".join(files(cells))
    for one in "ab":
        end(cells, one)
    nothing_is_left(cells, world)


@pytest.mark.parametrize("look", ["gc", "create"])
def test_a_name_that_lives_elsewhere(cells: Runtime, world: World, bundle: Maker, look: str) -> None:
    """A claim is a container's, not a name's."""
    started(cells, bundle, "a")
    joined(cells, bundle, "b", "a")
    ended_without_a_hook(cells, "b")
    started(cells, bundle, "b")
    end(cells, "a")
    if look == "gc":
        assert shim(cells, "net", "gc").code == 0
    else:
        for name in "cd":  # each looks at some
            started(cells, bundle, name)
            end(cells, name)
    assert [Path(one).name for one in files(cells)] == [address_of(cells, "b")]
    lives(cells, "b")


def ended_without_a_hook(runtime: Runtime, name: str) -> None:
    """Its plan is not there while it ends."""
    each = "for one in $(find /run/agentshim -name '{}'); do mv $one {}; done"
    runtime.room.run(["sh", "-c", each.format("*.net", "$one.kept")])
    end(runtime, name)
    runtime.room.run(["sh", "-c", each.format("*.net.kept", "${one%.kept}")])


KILLED = {"plan": "link:when=1", "rename": "rename:when=1", "claim": "link:when=2", "delegate": "execve:when=2"}


@pytest.mark.parametrize("moment", KILLED)
def test_a_create_that_is_killed(cells: Runtime, world: World, bundle: Maker, moment: str) -> None:
    """Where it takes its part in a network, and where it is about to become the delegate: nothing is held for long."""
    if not tool("strace"):
        pytest.skip("SKIPPED LOUDLY: strace is not installed")
    started(cells, bundle, "a")
    before = world.elements()
    launcher = f"{cells.room.base}/bin/agentshim-cell"
    call, _, when = KILLED[moment].partition(":")
    killing = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:{when}"]
    create = [launcher, *cells.options(), "create", "--bundle", str(bundle(joining(cells, "a")).path), "b"]
    cells.room.run(["nsenter", f"--net=/run/netns/{world.host}", *killing, *create])
    assert cells.status("b") == ""
    assert len(files(cells)) == {"plan": 1, "rename": 2, "claim": 2, "delegate": 3}[moment]
    end(cells, "a")
    if moment == "delegate":
        assert world.elements() == before, "in doubt"
        started(cells, bundle, "c")
        end(cells, "c")
    else:
        assert world.elements() == []
        assert shim(cells, "net", "gc").code == 0
    nothing_is_left(cells, world, collected=True)


def test_a_join_waits_for_an_end(cells: Runtime, world: World, bundle: Maker) -> None:
    """Whoever holds the lease takes the network back: then there is nothing to join."""
    started(cells, bundle, "a")
    (lease,) = files(cells)
    holder = cells.room.popen(
        ["flock", lease, "sh", "-c", f"echo held; read go; mv {lease} /run/ended"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        create = [cells.program, *cells.options(), "create", "--bundle", str(bundle(joining(cells, "a")).path), "b"]
        waits = cells.room.popen(create, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            waits.wait(1)
        holder.communicate("go\n", 5)
        _, err = waits.communicate(timeout=10)
    finally:
        holder.kill()
    assert waits.returncode == 1 and "ceiling a network that somebody lives in" in err, err
    assert [one for one in files(cells) if not one.endswith(".net")] == []
    cells.room.run(["mv", "/run/ended", lease])  # as if it had not been


# What is asked of a network whose first container has ended


def test_verbs_for_who_is_left(cells: Runtime, world: World, bundle: Maker) -> None:
    started(cells, bundle, "a")
    joined(cells, bundle, "b", "a")
    end(cells, "a")
    lives(cells, "b")
    assert GRANTED in shim(cells, "flows", "b").out
    assert OTHER in shim(cells, "denied", "b").out
    assert shim(cells, "why", "b", f"{GRANTED}:8080").code == 0
    peer = f"tcp:{OTHER}:8080"
    assert shim(cells, "lease", "egress", "b", peer, "--ttl", "1h", "--why", "a test of leases").code == 0
    assert asked(cells, "b", OTHER, 8080).out == "echo hi\n"
    assert peer in shim(cells, "lease", "list", "b").out
    assert shim(cells, "net", "down", "cell").code == 1, "somebody is on it"
    world.inside(world.host, tool("nft"), "flush", "ruleset")
    assert shim(cells, "net", "up", "cell").code == 0
    assert "1 containers" in (told := shim(cells, "net", "show").out) and "lacking" not in told
    assert asked(cells, "b", GRANTED, 8080).out == "echo hi\n"
    end(cells, "b")
    assert shim(cells, "net", "gc").code == 0, "of leases a hook knows nothing"
    nothing_is_left(cells, world)


@pytest.mark.parametrize("again", [False, True], ids=["once", "again"])
def test_what_a_refresh_opened_goes_too(cells: Runtime, world: World, hosts: Hosts, bundle: Maker, again: bool) -> None:
    """With whoever is the last, be it by a refresh of its own."""
    policy(cells, NAMING)
    hosts.say(GRANTED)
    started(cells, bundle, "a")
    joined(cells, bundle, "b", "a")
    hosts.say(GRANTED, OTHER)
    assert shim(cells, "net", "refresh", "a").code == 0
    end(cells, "a")
    assert asked(cells, "b", OTHER, 8080).out == "echo hi\n"
    if again:
        hosts.say(OTHER)
        assert f"b may not tcp:{GRANTED}:8080" in shim(cells, "net", "refresh", "--all").out
        assert asked(cells, "b", GRANTED, 8080).code != 0
        hosts.say(OTHER, "203.0.113.9")
        assert shim(cells, "net", "refresh", "b").code == 0
        policy(cells, SHARED)
        hosts.say(OTHER)
        assert "for b in the same network" in shim(cells, "net", "refresh", "b").err
    end(cells, "b")
    nothing_is_left(cells, world)


def test_a_refresh_by_who_joined(cells: Runtime, world: World, hosts: Hosts, bundle: Maker) -> None:
    """Is one for all: the owner's /etc/hosts, record and plan."""
    policy(cells, NAMING)
    hosts.say(GRANTED)
    started(cells, bundle, "a")
    joined(cells, bundle, "b", "a")
    hosts.say(OTHER)
    assert shim(cells, "net", "refresh", "b").code == 0
    assert asked(cells, "a", OTHER, 8080).out == "echo hi\n"
    assert OTHER in cells.must("exec", "a", "cat", "/etc/hosts")
    assert "nothing new" in shim(cells, "net", "refresh", "a").out
    end(cells, "b")
    end(cells, "a")
    nothing_is_left(cells, world)
