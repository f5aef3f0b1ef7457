"""The lock of a filtered network, without an engine: what is in the kernel while the container's init still waits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conformance import lab
from conformance.columns import path_of
from conformance.engines.images import tool
from conformance.oci.bundles import spec
from conformance.oci.cli import Runtime
from conformance.oci.conftest import COUNTER, Maker
from conformance.room import Room

pytestmark = pytest.mark.oci


@pytest.fixture
def runtime(the_room: Room, delegate: str) -> Iterator[Runtime]:
    """agentshim under the lab's policy, over each delegate."""
    if not tool("nft"):
        pytest.skip("SKIPPED LOUDLY: nft is not installed")
    lab.furnish(the_room, delegate)
    one = Runtime(the_room, path_of(lab.LAB, the_room), the_room.base / f"r{next(COUNTER)}")
    yield one
    one.clear()


def config(runtime: Runtime, *words: str, **linux: Any) -> dict[str, Any]:
    one = spec(*words, cgroup=f"{runtime.cgroup}/net-{next(COUNTER)}")
    one["linux"].update(linux)
    return one


def joining(runtime: Runtime, place: str) -> dict[str, Any]:
    """A container that asks for the network namespace at `place`."""
    one = config(runtime, "true")
    kinds = one["linux"]["namespaces"]
    one["linux"]["namespaces"] = [{**kind, "path": place} if kind["type"] == "network" else kind for kind in kinds]
    return one


def tables(room: Room, place: str) -> list[str]:
    """The nf_tables of a network namespace."""
    told = room.run(["nsenter", f"--net={place}", tool("nft"), "list", "tables"])
    assert told.code == 0, str(told)
    return [line.split()[-1] for line in told.out.splitlines()]


@contextmanager
def namespace(room: Room) -> Iterator[str]:
    """A network namespace of the test's own, by its path."""
    name = f"{room.base.name}-{next(COUNTER)}"
    assert room.run([tool("ip"), "netns", "add", name]).code == 0
    try:
        yield f"/run/netns/{name}"
    finally:
        room.run([tool("ip"), "netns", "delete", name])


def test_the_lock_is_there_before_the_first_instruction(runtime: Runtime, bundle: Maker) -> None:
    made = bundle(config(runtime, "cat", "/proc/net/dev"))
    runtime.must("create", "--bundle", str(made.path), "c")
    place = f"/proc/{runtime.state('c')['pid']}/ns/net"
    assert tables(runtime.room, place) == ["agentshim"]
    written = json.loads((made.path / "config.json").read_text())
    assert written["hooks"]["createRuntime"][-1]["args"][0] == "agentshim-net"
    assert not {"CAP_NET_ADMIN", "CAP_NET_RAW"} & set(written["process"]["capabilities"]["bounding"])
    runtime.must("start", "c")


def test_the_hosts_network_is_never_locked_nor_lent(runtime: Runtime, bundle: Maker) -> None:
    asked = config(runtime, "true")
    asked["linux"]["namespaces"] = [one for one in asked["linux"]["namespaces"] if one["type"] != "network"]
    runtime.must("create", "--bundle", str(bundle(asked).path), "c")
    assert tables(runtime.room, f"/proc/{runtime.state('c')['pid']}/ns/net") == ["agentshim"]
    assert "agentshim" not in tables(runtime.room, "/proc/self/ns/net")


def test_a_second_create_of_one_bundle_has_one_hook(runtime: Runtime, bundle: Maker) -> None:
    made = bundle(config(runtime, "true"))
    for name in ("a", "b"):
        runtime.must("create", "--bundle", str(made.path), name)
        hooks = json.loads((made.path / "config.json").read_text())["hooks"]["createRuntime"]
        assert len(hooks) == 1
        runtime.must("delete", "--force", name)


def test_a_forged_plan_is_not_run(runtime: Runtime, bundle: Maker) -> None:
    """A hook of ours by its shape, with a plan that somebody else wrote: ours takes its place."""
    made = bundle(config(runtime, "true"))
    runtime.must("create", "--bundle", str(made.path), "a")
    honest = json.loads((made.path / "config.json").read_text())["hooks"]["createRuntime"][0]
    runtime.must("delete", "--force", "a")
    forged = made.path / "plan"
    forged.write_bytes(b"not a plan")
    asked = {
        **config(runtime, "true"),
        "hooks": {"createRuntime": [{**honest, "args": [honest["args"][0], str(forged)]}]},
    }
    other = bundle(asked)
    runtime.must("create", "--bundle", str(other.path), "b")
    hooks = json.loads((other.path / "config.json").read_text())["hooks"]["createRuntime"]
    assert [hook["args"][1] for hook in hooks] != [str(forged)]
    assert len(hooks) == 1


def test_a_namespace_that_is_locked_already_is_not_opened(runtime: Runtime, bundle: Maker) -> None:
    """By whom is not known: nothing starts, and the lock that is there stays."""
    with namespace(runtime.room) as place:
        runtime.room.run(["nsenter", f"--net={place}", tool("nft"), "add", "table", "inet", "agentshim"])
        asked = joining(runtime, place)
        refused = runtime.call("create", "--bundle", str(bundle(asked).path), "c")
        assert refused.code != 0  # runc 1, crun 255
        assert runtime.call("state", "c").code != 0
        assert tables(runtime.room, place) == ["agentshim"]


def test_a_namespace_with_somebody_in_it_is_refused(runtime: Runtime, bundle: Maker) -> None:
    with namespace(runtime.room) as place:
        stranger = runtime.room.popen(["nsenter", f"--net={place}", "sleep", "100"])
        try:
            asked = joining(runtime, place)
            made = bundle(asked)
            before = (made.path / "config.json").read_bytes()
            refused = runtime.call("create", "--bundle", str(made.path), "c")
            assert refused.code == 1
            assert "which agentshim did not start" in refused.err
            assert (made.path / "config.json").read_bytes() == before
        finally:
            stranger.kill()
            stranger.wait()


def test_plans_go_with_their_records(runtime: Runtime, bundle: Maker) -> None:
    for number in range(4):
        runtime.must("run", "--bundle", str(bundle(config(runtime, "true")).path), f"c{number}")
    left = runtime.room.run(["ls", "/run/agentshim"]).out.split()
    plans = {Path(name).stem for name in left if name.endswith(".net")}
    assert plans <= {Path(name).stem for name in left if name.endswith(".json")}
    assert len(plans) <= 1


@pytest.fixture
def named(runtime: Runtime) -> Iterator[Runtime]:
    """A policy that names a peer, which the host resolves by its own /etc/hosts."""
    hosts = "203.0.113.77 api.lab.test\\n203.0.113.78 api.lab.test\\n10.9.8.7 inside.lab.test\\n"
    runtime.room.run(["sh", "-c", f"cp /etc/hosts /etc/hosts.kept; printf '{hosts}' >> /etc/hosts"])
    yield runtime
    runtime.room.run(["sh", "-c", "mv /etc/hosts.kept /etc/hosts"])


def attach(runtime: Runtime, name: str) -> None:
    """An interface, as engines give one behind create."""
    place = f"--net=/proc/{runtime.state(name)['pid']}/ns/net"
    assert runtime.room.run(["nsenter", place, tool("ip"), "link", "add", "eng0", "type", "bridge"]).code == 0


def peers(runtime: Runtime, *words: str) -> None:
    """Let the lab's policy name these peers."""
    text = lab.POLICY.partition("[[network.add]]")[0] + f"outbound = {json.dumps(list(words))}\n"
    (runtime.room.base / "config" / "policies" / "lab.toml").write_text(text)


def test_names_are_pinned(named: Runtime, bundle: Maker) -> None:
    """What a name leads to is granted, and told in /etc/hosts; there is no DNS."""
    peers(named, "tcp:api.lab.test:443")
    made = bundle(config(named, "cat", "/etc/hosts"))
    for name in ("a", "b"):  # the second finds the first one's mount in the bundle
        done = named.call("run", "--bundle", str(made.path), name)
        assert done.code == 0, str(done)
        lines = done.out.splitlines()
        assert lines[-2:] == ["203.0.113.77\tapi.lab.test", "203.0.113.78\tapi.lab.test"]
        assert "127.0.0.1\tlocalhost" in lines
    named.must("create", "--bundle", str(made.path), "c")
    place = f"/proc/{named.state('c')['pid']}/ns/net"
    table = named.room.run(["nsenter", f"--net={place}", tool("nft"), "list", "ruleset"]).out
    assert "tcp . 203.0.113.77 . 443" in table
    assert "tcp . 203.0.113.78 . 443" in table
    shim = str(named.room.base / "bin" / "agentshim")
    told = named.room.run([shim, "why", "c", "api.lab.test:443"])
    assert told.code == 1 and "the container has only lo" in told.out, str(told)
    attach(named, "c")
    told = named.room.run([shim, "why", "c", "api.lab.test:443"])
    assert told.code == 0, str(told)
    assert "grants tcp:api.lab.test:443" in told.out


@pytest.mark.parametrize(("word", "said"), [("tcp:inside.lab.test:443", "10.9.8.7, ceiling public addresses"),
                                            ("tcp:nowhere.invalid:443", "no address")])  # fmt: skip
def test_names_that_lead_nowhere_good(named: Runtime, bundle: Maker, word: str, said: str) -> None:
    peers(named, word)
    made = bundle(config(named, "true"))
    before = (made.path / "config.json").read_bytes()
    refused = named.call("create", "--bundle", str(made.path), "c")
    assert refused.code == 1
    assert said in refused.err, str(refused)
    assert (made.path / "config.json").read_bytes() == before


def test_joining_a_network_that_is_locked_by_names(named: Runtime, bundle: Maker) -> None:
    peers(named, "tcp:api.lab.test:443")
    named.must("create", "--bundle", str(bundle(config(named, "sleep", "100")).path), "first")
    asked = joining(named, f"/proc/{named.state('first')['pid']}/ns/net")
    named.must("create", "--bundle", str(bundle(asked).path), "second")


def test_a_lock_that_is_gone_is_not_joined(runtime: Runtime, bundle: Maker) -> None:
    """The record says that the network is filtered; the kernel says that it is not."""
    runtime.must("create", "--bundle", str(bundle(config(runtime, "sleep", "100")).path), "first")
    place = f"/proc/{runtime.state('first')['pid']}/ns/net"
    runtime.room.run(["nsenter", f"--net={place}", tool("nft"), "flush", "ruleset"])
    asked = joining(runtime, place)
    assert runtime.call("create", "--bundle", str(bundle(asked).path), "second").code == 1


def test_leases_by_name(named: Runtime, bundle: Maker) -> None:
    """Public addresses only, and ended where they were granted, wherever the name leads by then."""
    peers(named, "tcp:203.0.113.1:443")
    named.must("create", "--bundle", str(bundle(config(named, "sleep", "100")).path), "leased")
    shim = str(named.room.base / "bin" / "agentshim")
    options = ("--ttl", "1h", "--why", "a test of names")
    inside = named.room.run([shim, "lease", "egress", "leased", "tcp:inside.lab.test:22", *options])
    assert inside.code == 1, str(inside)
    empty = named.room.run([shim, "lease", "egress", "leased", "tcp:api.lab.test:22", *options])
    assert empty.code == 1 and "which has only lo" in empty.err, str(empty)
    links = ["ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1"]
    place = f"/proc/{named.state('leased')['pid']}/ns/net"
    assert named.room.run(["nsenter", f"--net={place}", tool(links[0]), *links[1:]]).code == 0
    assert named.room.run([shim, "lease", "egress", "leased", "tcp:api.lab.test:22", *options]).code == 0
    named.room.run(["sh", "-c", "grep -v 203.0.113.78 /etc/hosts > /etc/h; cat /etc/h > /etc/hosts"])
    assert named.room.run([shim, "lease", "revoke", "leased", "tcp:api.lab.test:22"]).code == 0
    assert named.room.run([shim, "lease", "list", "leased"]).out == ""


def test_a_hosts_file_that_is_not_the_engines_is_not_read(named: Runtime, bundle: Maker) -> None:
    """Whoever lends the volume would choose, by a link, which file of the host to read."""
    peers(named, "tcp:api.lab.test:443")
    shared = named.room.base / f"v{next(COUNTER)}"
    shared.mkdir(mode=0o777)
    (shared / "hosts").write_text("198.51.100.1 mine\n")
    asked = config(named, "cat", "/etc/hosts")
    asked["mounts"].append(
        {"destination": "/etc/hosts", "type": "bind", "source": str(shared / "hosts"), "options": ["rbind", "ro"]}
    )
    done = named.call("run", "--bundle", str(bundle(asked).path), "c")
    assert "mine" not in done.out, str(done)
    assert "api.lab.test" in done.out


def test_names_beside_a_volume(named: Runtime, bundle: Maker) -> None:
    """The hook that compares the mounts knows ours."""
    peers(named, "tcp:api.lab.test:443")
    shared = named.room.base / f"v{next(COUNTER)}"
    shared.mkdir()
    asked = config(named, "tail", "-n", "1", "/etc/hosts")
    asked["mounts"].append({"destination": "/mnt", "type": "bind", "source": str(shared), "options": ["rbind", "ro"]})
    done = named.call("run", "--bundle", str(bundle(asked).path), "c")
    assert done.out == "203.0.113.78\tapi.lab.test\n", str(done)
