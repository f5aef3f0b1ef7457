"""A network that agentshim makes: a bridge with a list of who may be reached, and nothing else.

The host is a network namespace of the test's own (`world`), in which agentshim is called: no packet leaves these.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conformance import columns
from conformance.engines.images import tool
from conformance.oci.bundles import spec
from conformance.oci.cli import Runtime
from conformance.oci.conftest import COUNTER, Maker
from conformance.room import Result, Room, wait_for
from conformance.world import ENGINES, GRANTED, HOST, HOST_ON_LAN, METADATA, NEIGHBOUR, OTHER, World

pytestmark = pytest.mark.oci

POLICY = """schema = 1
name = "cell"
about = "a network of agentshim's own"
base = "agent"

[network]
mode = "isolated"
outbound = ["tcp:203.0.113.5:8080", "udp:203.0.113.5:8080"]
publish = ["127.0.0.1:18080:8080/tcp"]
host_services = ["tcp:9000"]
"""

SILENT = """import socket, sys
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind((sys.argv[1], 53))
print("ready", flush=True)
one.recv(512)
print("asked", flush=True)
sys.stdin.read() or one.recv(0)
"""


@pytest.fixture
def world(the_room: Room) -> Iterator[World]:
    if not (tool("nft") and tool("ip")):
        pytest.skip("SKIPPED LOUDLY: nft or ip is not installed")
    the_room.run(["rm", "-rf", "/run/agentshim/net"])
    one = World(the_room, f"{the_room.base.name}{next(COUNTER)}"[-10:])
    yield one
    one.end()
    the_room.run(["rm", "-rf", "/run/agentshim/net"])


def furnish(room: Room, delegate: str, text: str = POLICY) -> None:
    (room.base / "config" / "policies").mkdir(exist_ok=True)
    (room.base / "config" / "policies" / "cell.toml").write_text(text)
    link = room.base / "bin" / "agentshim-cell"
    if not link.is_symlink():
        link.symlink_to(columns.launcher())
    config = columns.CONFIG
    for key in ("annotations", "names"):
        config = config.replace(f"{key} = [", f'{key} = ["cell", ')
    columns.configure(room, config, delegate)


@pytest.fixture
def runtime(world: World, delegate: str) -> Iterator[Runtime]:
    """agentshim, called where the host is, under the policy."""
    room = world.room
    furnish(room, delegate)
    program = room.base / f"in-{world.host}"
    program.write_text(f'#!/bin/sh\nexec nsenter --net=/run/netns/{world.host} {room.base}/bin/agentshim-cell "$@"\n')
    program.chmod(0o755)
    one = Runtime(room, str(program), room.base / f"r{next(COUNTER)}")
    yield one
    one.clear()


def config(runtime: Runtime, *words: str) -> dict[str, Any]:
    return spec(*words, cgroup=f"{runtime.cgroup}/cell-{next(COUNTER)}")


@pytest.fixture
def cell(runtime: Runtime, bundle: Maker) -> str:
    """A running container."""
    started(runtime, bundle, "c")
    return "c"


def started(runtime: Runtime, bundle: Maker, name: str, *words: str) -> Path:
    made = bundle(config(runtime, *(words or ("sleep", "1000"))))
    runtime.must("create", "--bundle", str(made.path), name)
    runtime.must("start", name)
    return Path(made.path)


def shim(runtime: Runtime, *words: str) -> Result:
    return runtime.room.run([runtime.program, *words])


def asked(runtime: Runtime, name: str, address: str, port: int, *more: str) -> Result:
    """What a peer answers to a workload: the echo, or nothing."""
    begun = time.monotonic()
    told = runtime.call("exec", name, "sh", "-c", f"echo hi | nc {' '.join(more)} -w 3 {address} {port}", timeout=20)
    assert time.monotonic() - begun < 8
    return told


def test_what_is_granted_is_reached_and_nothing_else(runtime: Runtime, world: World, cell: str) -> None:
    assert asked(runtime, cell, GRANTED, 8080).out == "echo hi\n"
    gateway = gateway_of(runtime, cell)
    assert asked(runtime, cell, gateway, 9000).out == "echo hi\n", "a service of the host's that is granted"
    forbidden = (
        (GRANTED, 8081),
        (OTHER, 8080),
        (NEIGHBOUR, 8080),
        (ENGINES, 9000),
        (gateway, 9001),
        (HOST, 9000),
        (METADATA, 80),
        (HOST_ON_LAN, 9000),
    )
    for address, port in forbidden:
        begun = time.monotonic()
        refused = asked(runtime, cell, address, port)
        assert refused.code != 0 and not refused.out, f"{address}:{port}"
        assert time.monotonic() - begun < 2, f"{address}:{port} is refused, not dropped: {refused}"
    own = runtime.call("exec", cell, "cat", "/proc/net/if_inet6").out.split("\n")
    assert all(line.endswith("lo") for line in own if line), "no address of IPv6 but lo's"
    unlock(runtime, world, cell)
    for address, port in forbidden:
        assert asked(runtime, cell, address, port).out == "echo hi\n", f"{address}:{port} is there"


def within(runtime: Runtime, name: str, *words: str) -> str:
    """What a program says in the container's network namespace."""
    said = runtime.room.run(["nsenter", f"--net=/proc/{runtime.state(name)['pid']}/ns/net", *words])
    assert said.code == 0, str(said)
    return said.out


OPENED = "".join(
    f"flush chain inet agentshim {one}\nadd rule inet agentshim {one} accept\n" for one in ("output", "input")
)
TRACKED = ("cat", "/proc/sys/net/netfilter/nf_conntrack_count")


@pytest.mark.parametrize("let_in", [False, True])
def test_conntrack_inside_only_where_somebody_is_let_in(
    runtime: Runtime, world: World, bundle: Maker, let_in: bool
) -> None:
    """And either of the locks inside holds alone, with the host's rules flushed."""
    text = POLICY if let_in else POLICY.replace("publish", "# publish")
    (runtime.room.base / "config" / "policies" / "cell.toml").write_text(text)
    started(runtime, bundle, "c")
    assert asked(runtime, "c", GRANTED, 8080).out == "echo hi\n"
    assert ("ct direction" in within(runtime, "c", tool("nft"), "list", "ruleset")) == let_in
    assert (int(within(runtime, "c", *TRACKED)) > 0) == let_in
    unlock_host(world)
    assert asked(runtime, "c", GRANTED, 8080).out == "echo hi\n"
    for address, port in ((GRANTED, 8081), (OTHER, 8080), (METADATA, 80), (HOST, 9000)):
        assert not asked(runtime, "c", address, port).out, f"{address}:{port}"
    told = shim(runtime, "denied", "c").out
    assert all(address in told for address in (GRANTED, OTHER, METADATA, HOST)), told


def unlock(runtime: Runtime, world: World, *names: str) -> None:
    """Both locks, taken away by root."""
    unlock_inside(runtime, *names)
    unlock_host(world)


def unlock_host(world: World) -> None:
    """The host's lock, taken away by root; the host answers for its bridges as it does for docker0."""
    masquerade = "ip saddr 10.207.0.0/16 ip daddr != 10.207.0.0/16 masquerade"
    text = f"flush ruleset; table ip t {{ chain c {{ type nat hook postrouting priority 100; {masquerade}; }}; }}"
    assert world.inside(world.host, tool("nft"), text).code == 0


def unlock_inside(runtime: Runtime, *names: str) -> None:
    """The containers' own locks, taken away by root."""
    for name in names:
        within(runtime, name, tool("nft"), "flush", "ruleset")


def gateway_of(runtime: Runtime, name: str) -> str:
    route = runtime.must("exec", name, "cat", "/proc/net/route").splitlines()[1:]
    default = next(line.split()[2] for line in route if line.split()[1] == "00000000")
    return ".".join(str(part) for part in reversed(bytes.fromhex(default)))


def test_a_port_is_published_on_the_hosts_loopback(runtime: Runtime, world: World, bundle: Maker) -> None:
    started(runtime, bundle, "c", "sh", "-c", "while :; do echo served | nc -l -p 8080; done")
    fetch = "import socket; s = socket.create_connection(('127.0.0.1', 18080), 3); print(s.recv(99).decode())"
    wait_for(lambda: "served" in world.inside(world.host, sys.executable, "-c", fetch).out, 5, "the published port")
    other = fetch.replace("127.0.0.1", HOST)
    assert world.inside(world.outside, sys.executable, "-c", other).code != 0, "the host's address was not granted"


def test_a_door_stays_whose_it_is(runtime: Runtime, world: World, bundle: Maker) -> None:
    """Who is refused because a port is published already must not take that door along at its end."""
    started(runtime, bundle, "c", "sh", "-c", "while :; do echo served | nc -l -p 8080; done")
    before = world.elements()
    assert any(one.startswith("published") for one in before)
    refused = runtime.call("create", "--bundle", str(bundle(config(runtime, "true")).path), "thief")
    assert refused.code != 0, "another container has this door"
    runtime.call("delete", "--force", "thief")
    shim(runtime, "net", "gc")
    assert world.elements() == before


def test_a_port_that_somebody_listens_on_is_not_published(runtime: Runtime, world: World, bundle: Maker) -> None:
    world.serve(world.host, 18080)
    refused = runtime.call("create", "--bundle", str(bundle(config(runtime, "true")).path), "c")
    assert refused.code == 1 and "127.0.0.1:18080/tcp" in refused.err, str(refused)
    assert world.elements() == []


def hook_that_makes_a_network(runtime: Runtime, text: str) -> Path:
    """As engines have one; the policy `text`, written with leave for it."""
    program = Path(runtime.room.base / "engines-hook")
    program.write_text(
        "#!/bin/sh\npid=$(sed 's/.*\"pid\": *//; s/[^0-9].*//')\n"
        f"{tool('ip')} link add eng0 type veth peer name eng1 && {tool('ip')} link set eng0 netns $pid &&"
        f" nsenter --net=/proc/$pid/ns/net {tool('ip')} link set eng0 up\n"
    )
    program.chmod(0o755)
    allow = f'\n[hooks]\nadd = [{{ path = "{program}", why = "a test of engines", doc = "https://example.com" }}]\n'
    (runtime.room.base / "config" / "policies" / "cell.toml").write_text(text + allow)
    return program


def test_a_network_that_a_hook_makes_is_not_isolated(runtime: Runtime, world: World, bundle: Maker) -> None:
    """Not told beforehand by anything: the native hook finds it."""
    program = hook_that_makes_a_network(runtime, POLICY)
    hook = {"path": str(program), "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
    asks = {**config(runtime, "true"), "hooks": {"prestart": [hook]}}
    refused = runtime.call("create", "--bundle", str(bundle(asks).path), "c")
    assert refused.code != 0
    assert "a network that an engine has made" in refused.err or "agentshim-net` (exit code: 1)" in refused.err, refused
    assert runtime.status("c") == ""
    shim(runtime, "net", "gc")
    assert world.elements() == []


def test_a_network_that_a_hook_makes_is_filtered_with_conntrack(runtime: Runtime, world: World, bundle: Maker) -> None:
    """With mode auto: the lock inside is the only one then."""
    text = POLICY.replace('"isolated"', '"auto"').replace("publish", "# publish")
    program = hook_that_makes_a_network(runtime, text)
    hook = {"path": str(program), "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
    asks = {**config(runtime, "sleep", "100"), "hooks": {"prestart": [hook]}}
    runtime.must("create", "--bundle", str(bundle(asks).path), "c")
    assert "eng0" in within(runtime, "c", tool("ip"), "link")
    assert "eth0" not in within(runtime, "c", tool("ip"), "link")
    assert "ct direction" in within(runtime, "c", tool("nft"), "list", "ruleset")


def test_two_of_a_kind_do_not_see_each_other(runtime: Runtime, world: World, bundle: Maker) -> None:
    (runtime.room.base / "config" / "policies" / "cell.toml").write_text(POLICY.replace("publish", "# publish"))
    started(runtime, bundle, "a", "sh", "-c", "while :; do echo served | nc -l -p 8080; done")
    started(runtime, bundle, "b")
    there = address_of(runtime, "a")
    refused = asked(runtime, "b", there, 8080)
    assert refused.code != 0 and not refused.out
    assert len(world.ports()) == 2
    unlock(runtime, world, "a", "b")
    wait_for(lambda: asked(runtime, "b", there, 8080).out == "served\n", 5, "that it was the rules")


def address_of(runtime: Runtime, name: str) -> str:
    told = runtime.must("exec", name, "ip", "-4", "address", "show", "dev", "eth0")
    return told.partition("inet ")[2].partition("/")[0]


def test_the_end_leaves_nothing(runtime: Runtime, world: World, bundle: Maker) -> None:
    started(runtime, bundle, "c")
    assert world.ports() and world.elements()
    runtime.must("delete", "--force", "c")
    assert world.elements() == []
    folder = "/run/agentshim/net/cell/addresses"
    assert runtime.room.run(["ls", folder]).out.split() == []
    wait_for(lambda: not world.ports(), 5, "the link to go with its namespace")


def test_a_create_that_fails_leaves_nothing(runtime: Runtime, world: World, bundle: Maker) -> None:
    asks = config(runtime, "true")
    asks["mounts"].append({"destination": "/x", "type": "bind", "source": "/etc/shadow", "options": ["bind"]})
    assert runtime.call("create", "--bundle", str(bundle(asks).path), "c").code != 0
    asks = config(runtime, "/no/such/program")
    assert runtime.call("run", "--bundle", str(bundle(asks).path), "d").code != 0
    runtime.call("delete", "--force", "d")
    assert shim(runtime, "net", "gc").code == 0
    assert world.elements() == []
    assert runtime.room.run(["ls", "/run/agentshim/net/cell/addresses"]).out.split() == []


@pytest.mark.parametrize("harm", ["flush ruleset", "flush table inet agentshim", "delete table bridge agentshim"])
def test_rules_that_somebody_changed_are_repaired(runtime: Runtime, world: World, bundle: Maker, harm: str) -> None:
    started(runtime, bundle, "a")
    before = world.rules()
    world.inside(world.host, tool("nft"), harm)
    assert asked(runtime, "a", OTHER, 8080).code != 0, "the second lock holds"
    runtime.must("delete", "--force", "a")
    started(runtime, bundle, "b")
    assert asked(runtime, "b", GRANTED, 8080).out == "echo hi\n"
    assert asked(runtime, "b", OTHER, 8080).code != 0
    assert world.rules().count("goto deny") == before.count("goto deny")


def test_a_host_without_nft_is_told(runtime: Runtime, bundle: Maker) -> None:
    program = tool("nft")
    runtime.room.run(["mount", "--bind", "/dev/null", program])
    try:
        refused = runtime.call("create", "--bundle", str(bundle(config(runtime, "true")).path), "c")
        assert refused.code == 1 and "nft" in refused.err, str(refused)
    finally:
        runtime.room.run(["umount", program])


def test_a_network_of_the_engines_is_not_isolated(runtime: Runtime, world: World, bundle: Maker) -> None:
    asks = config(runtime, "true")
    kinds = asks["linux"]["namespaces"]
    world.ip("netns", "add", f"{world.host}x")
    try:
        place = f"/run/netns/{world.host}x"
        asks["linux"]["namespaces"] = [{**one, "path": place} if one["type"] == "network" else one for one in kinds]
        refused = runtime.call("create", "--bundle", str(bundle(asks).path), "c")
        assert refused.code == 1 and "--network none" in refused.err, str(refused)
    finally:
        world.ip("netns", "delete", f"{world.host}x")


def test_a_lease_opens_both_locks_and_the_kernel_shuts_them(runtime: Runtime, world: World, cell: str) -> None:
    peer = f"tcp:{OTHER}:8080"
    assert asked(runtime, cell, OTHER, 8080).code != 0
    told = shim(runtime, "lease", "egress", cell, peer, "--ttl", "3s", "--why", "a test of leases")
    assert told.code == 0, str(told)
    assert asked(runtime, cell, OTHER, 8080).out == "echo hi\n"
    assert sum("leased" in one for one in world.elements()) == 1
    wait_for(lambda: asked(runtime, cell, OTHER, 8080).code != 0, 6, "the lease's end")
    assert not any("leased" in one for one in world.elements())
    shim(runtime, "lease", "egress", cell, peer, "--ttl", "1h", "--why", "a test of leases")
    assert asked(runtime, cell, OTHER, 8080).code == 0
    assert shim(runtime, "lease", "revoke", cell, peer).code == 0
    assert asked(runtime, cell, OTHER, 8080).code != 0
    assert not any("leased" in one for one in world.elements())


def test_a_stream_ends_with_its_lease(runtime: Runtime, world: World, bundle: Maker) -> None:
    """Established, and cut in both directions."""
    ticks = "while :; do echo tick; sleep 0.2; done"
    started(runtime, bundle, "c", "sh", "-c", f"sleep 2; {ticks} | nc {OTHER} 8080; sleep 1000")
    told = shim(runtime, "lease", "egress", "c", f"tcp:{OTHER}:8080", "--ttl", "4s", "--why", "a test of leases")
    assert told.code == 0, str(told)

    def counted() -> int:
        rows = [json.loads(line) for line in shim(runtime, "flows", "c", "--json").out.splitlines()]
        return sum(row["network.packets"] for row in rows if row["destination.ip"] == OTHER)

    wait_for(counted, 6, "packets")
    wait_for(lambda: "leased" not in "".join(world.elements()), 8, "the lease's end")
    last = counted()
    time.sleep(1.5)
    assert counted() == last


def test_a_lease_is_bounded_by_the_hosts_limit(runtime: Runtime, world: World, bundle: Maker, delegate: str) -> None:
    """A lease is a policy's grant for a while: what no policy of this host may grant, nobody may lease."""
    policies = runtime.room.base / "config" / "policies"
    most = POLICY.replace('"cell"', '"most"').replace(f"{GRANTED}:8080", f"{GRANTED}:8080-8081")
    (policies / "most.toml").write_text(most)
    text = (policies.parent / "config.toml").read_text()
    columns.configure(runtime.room, text.replace('limit = "identity"', 'limit = "most"'), delegate)
    started(runtime, bundle, "c")
    words = ("--ttl", "1h", "--why", "a test of limits")
    refused = shim(runtime, "lease", "egress", "c", f"tcp:{OTHER}:8080", *words)
    assert refused.code == 1 and "what the host limit most allows" in refused.err, str(refused)
    assert asked(runtime, "c", OTHER, 8080).code != 0 and not any("leased" in one for one in world.elements())
    assert asked(runtime, "c", GRANTED, 8081).code != 0
    assert shim(runtime, "lease", "egress", "c", f"tcp:{GRANTED}:8081", *words).code == 0
    assert asked(runtime, "c", GRANTED, 8081).out == "echo hi\n"


def test_records_are_followed(runtime: Runtime, world: World, cell: str) -> None:
    """Each peer as it is met first, and as it grows."""
    argv = [runtime.program, "flows", cell, "--follow", "--json"]
    reader = runtime.room.popen(argv, stdout=subprocess.PIPE)
    try:
        assert reader.stdout
        for port in (8080, 8080):
            assert asked(runtime, cell, GRANTED, port).out == "echo hi\n"
            row = json.loads(reader.stdout.readline())
            assert (row["destination.ip"], row["destination.port"]) == (GRANTED, 8080)
        assert reader.poll() is None
    finally:
        reader.kill()
        reader.communicate()


def test_what_only_the_hosts_lock_rejects_is_told(runtime: Runtime, world: World, cell: str) -> None:
    """Nobody calls a network of ours, and the lock inside sees none of it; without that lock, what goes out neither."""
    there, gateway = address_of(runtime, cell), gateway_of(runtime, cell)
    world.ip("-n", world.lan, "route", "add", f"{there}/32", "via", HOST_ON_LAN)
    assert world.fetch(world.host, there, 80).code != 0 and world.fetch(world.lan, there, 81).code != 0
    told = shim(runtime, "denied", cell).out
    assert f"rejected tcp from {gateway} to port 80: 1 packets" in told, told
    assert f"rejected tcp from {NEIGHBOUR} to port 81: 1 packets" in told, told
    assert 'to allow: [network] publish = ["127.0.0.1:80:80/tcp"]' in told, told
    assert asked(runtime, cell, OTHER, 8080).code != 0
    assert f"tcp to {OTHER}:8080: 1 packets" in shim(runtime, "denied", cell).out
    runtime.room.run(["nsenter", f"--net=/proc/{runtime.state(cell)['pid']}/ns/net", "nft", "-f", "-"], input=OPENED)
    assert asked(runtime, cell, OTHER, 8080).code != 0, "by the host's lock alone"
    assert f"tcp to {OTHER}:8080: 2 packets" in shim(runtime, "denied", cell).out, "one of each lock"
    file = world.room.base / "metrics"
    assert shim(runtime, "net", "export", "--prometheus", str(file)).code == 0
    lately = re.findall(r"^agentshim_network_rejected_by_host_packets\{(.*)\} (\d+)$", file.read_text(), re.M)
    ways = sorted((re.sub(r".*direction=.(\w+)..*", r"\1", labels), count) for labels, count in lately)
    assert ways == [("egress", "1"), ("ingress", "2")], lately


def test_another_bit_of_the_mark(runtime: Runtime, world: World, bundle: Maker, delegate: str) -> None:
    """Cilium and kube-proxy have bits of their own: ours is where config.toml puts it."""
    config = (runtime.room.base / "config" / "config.toml").read_text()
    columns.configure(runtime.room, config + 'network_mark = "0x00000040"\n', delegate)
    started(runtime, bundle, "c")
    assert "0x00000040" in world.rules() and "0x00800000" not in world.rules()
    assert asked(runtime, "c", GRANTED, 8080).out == "echo hi\n"
    assert asked(runtime, "c", OTHER, 8080).code != 0
    unlock_inside(runtime, "c")
    assert asked(runtime, "c", GRANTED, 8080).out == "echo hi\n"
    assert asked(runtime, "c", OTHER, 8080).code != 0, "by the host's lock alone"


@pytest.mark.parametrize("delegate", [columns.RUNC], indirect=True, ids=["runc"])  # ten seconds
def test_a_name_server_that_never_answers(runtime: Runtime, world: World, bundle: Maker) -> None:
    """The time to resolve is bounded, whatever the resolver's own patience is."""
    text = POLICY.replace('"tcp:203', '"tcp:api.example.com:8080", "tcp:203')
    (runtime.room.base / "config" / "policies" / "cell.toml").write_text(text)
    silent = [sys.executable, "-c", SILENT, OTHER]
    server = runtime.room.popen(["nsenter", f"--net=/run/netns/{world.outside}", *silent], stdout=subprocess.PIPE)
    kept = runtime.room.run(["cat", "/etc/resolv.conf"]).out
    told = f"nameserver {OTHER}\noptions timeout:30 attempts:5\n"
    runtime.room.run(["sh", "-c", "rm -f /etc/resolv.conf; cat > /etc/resolv.conf"], input=told)
    try:
        assert server.stdout and server.stdout.readline() == "ready\n"
        begun = time.monotonic()
        refused = runtime.call("create", "--bundle", str(bundle(config(runtime, "true")).path), "c", timeout=60)
        assert time.monotonic() - begun < 11
        assert refused.code == 1 and "outbound api.example.com: asked no address" in refused.err, str(refused)
        assert server.stdout.readline() == "asked\n", "it was asked, and said nothing"
    finally:
        server.kill()
        server.communicate()
        runtime.room.run(["sh", "-c", "cat > /etc/resolv.conf"], input=kept)
    assert world.elements() == [] and runtime.status("c") == ""


@pytest.mark.parametrize("moment", ["addresses", "claim"])
def test_what_a_kill_leaves_is_collected(runtime: Runtime, world: World, bundle: Maker, moment: str) -> None:
    """Our process is killed where it has taken an address, and where it is about to become the delegate."""
    if not tool("strace"):
        pytest.skip("SKIPPED LOUDLY: strace is not installed")
    inject = {"addresses": "link:signal=KILL:when=1", "claim": "execve:signal=KILL:when=2"}[moment]
    made = bundle(config(runtime, "true"))
    argv = ["nsenter", f"--net=/run/netns/{world.host}", "strace", "-f", "-qq", "-o", "/dev/null", "-e"]
    launcher = f"{runtime.room.base}/bin/agentshim-cell"
    create = [launcher, *runtime.options(), "create", "--bundle", str(made.path), "k"]
    runtime.room.run([*argv, f"inject={inject}", *create])
    assert runtime.status("k") == ""
    assert shim(runtime, "net", "gc").code == 0
    assert runtime.room.run(["ls", "/run/agentshim/net/cell/addresses"]).out.split() == []
    assert world.elements() == []


def test_a_thousand_lives_leave_nothing(runtime: Runtime, world: World, bundle: Maker) -> None:
    (runtime.room.base / "config" / "policies" / "cell.toml").write_text(POLICY.replace("publish", "# publish"))

    def life(number: int) -> None:
        for turn in range(125):
            made = bundle(config(runtime, "true"))
            done = runtime.call("run", "--bundle", str(made.path), f"l{number}-{turn}", timeout=60)
            assert done.code == 0, str(done)

    before = namespaces()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(life, range(8)))
    assert world.elements() == []
    assert runtime.room.run(["ls", "/run/agentshim/net/cell/addresses"]).out.split() == []
    wait_for(lambda: not world.ports(), 10, "links to go")
    # The kernel's own count, of the whole machine: others' come and go, and a slab is kept a while.
    wait_for(lambda: namespaces() < before + 200, 30, "network namespaces to go")


def namespaces() -> int:
    """How many network namespaces the kernel has, whoever holds them."""
    found = [line.split() for line in Path("/proc/slabinfo").read_text().splitlines()]
    return next(int(line[1]) for line in found if line[0] == "net_namespace")
