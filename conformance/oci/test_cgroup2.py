"""A host with cgroup v2 alone, as far as this kernel lets us pretend: a mount namespace where nothing else is mounted.

What it shows: agentshim decides the same and the delegate starts the container through the v2 paths, device rules as
eBPF included. What it cannot show where v1 holds the controllers (a kernel gives each controller to one version):
limits on v2. Those tests then skip loudly; on a host that boots with v2 the whole suite is the test.
"""

from __future__ import annotations

from typing import Any

import pytest

from conformance import evidence, expect
from conformance.columns import COLUMNS, RUNC, Column, configure, missing, path_of
from conformance.oci.bundles import spec
from conformance.oci.conftest import COUNTER, Maker
from conformance.room import Result, Room

pytestmark = pytest.mark.oci
HOST = evidence.of_process("self")
ONLY_V2 = "umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "


def run(room: Room, program: str, bundle: Maker, resources: dict[str, Any]) -> Result:
    """`run` of the probe where only cgroup2 is mounted."""
    number = next(COUNTER)
    config = spec("sh", "-c", evidence.SCRIPT, cgroup=f"/{room.base.name}/v2-{number}")
    config["linux"]["resources"] = {"devices": [{"allow": False, "access": "rwm"}], **resources}
    made = bundle(config)
    command = f"{program} --root {room.base}/v{number} run --bundle {made.path} c"
    return room.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", ONLY_V2 + command])


def controllers(room: Room) -> str:
    """The controllers that v2 has on this host."""
    show = "mount -t cgroup2 cgroup2 /mnt && cat /mnt/cgroup.controllers"
    return room.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", show]).out


def test_identity_is_the_delegate(the_room: Room, bundle: Maker) -> None:
    configure(the_room)
    column = next(one for one in COLUMNS if one.name == "identity")
    if why := missing(column):
        pytest.skip(f"SKIPPED LOUDLY: {why}")
    oracle = run(the_room, RUNC, bundle, {})
    if oracle.code != 0:
        pytest.skip(f"SKIPPED LOUDLY: {RUNC} itself cannot run with cgroup2 alone on this host: {oracle.err}")
    ours = run(the_room, path_of(column, the_room), bundle, {})
    assert ours.code == 0, str(ours)
    both = [expect.normal(evidence.parsed(one.out), HOST) for one in (oracle, ours)]
    for one in both:
        one["mounts"].pop("/")
    assert not expect.difference(*both)


@pytest.mark.parametrize("name", ["agent", "dev"])
def test_a_policy_with_limits(the_room: Room, bundle: Maker, name: str) -> None:
    configure(the_room)
    column: Column = next(one for one in COLUMNS if one.name == name)
    if why := missing(column):
        pytest.skip(f"SKIPPED LOUDLY: {why}")
    if "pids" not in controllers(the_room):
        pytest.skip("SKIPPED LOUDLY: v1 holds the pids controller, so no limit can be set through v2 on this host")
    found = run(the_room, path_of(column, the_room), bundle, {"pids": {"limit": 100}})
    assert found.code == 0, str(found)
    assert not expect.excess(evidence.parsed(found.out), column.bound, HOST)
