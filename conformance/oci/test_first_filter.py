"""The first start of a pair of profiles compares the filter that runc really loaded; later ones do not."""

from __future__ import annotations

import json

import pytest

from conformance.columns import RUNC
from conformance.oci.bundles import spec
from conformance.oci.cli import Runtime
from conformance.oci.conftest import Maker
from conformance.room import wait_for

pytestmark = pytest.mark.oci
PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [{"names": ["ptrace", "kcmp"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
}


def seen(runtime: Runtime) -> dict[str, int]:
    """The probes of each pair that was compared, as recorded in the room."""
    script = "cd /var/lib/agentshim/seccomp && for f in *.seen; do echo $f $(cat $f); done"
    told = runtime.room.run(["sh", "-c", script]).out.splitlines()
    return {line.split()[0]: json.loads(line.partition(" ")[2])["probes"] for line in told if "{" in line}


def test_first_start(runtime: Runtime, bundle: Maker, delegate: str) -> None:
    if delegate != RUNC:
        pytest.skip("NOT POSSIBLE WITH CRUN: it loads its filter after start")
    if "agent" not in str(runtime.program) or "identity" in str(runtime.program):
        pytest.skip("no ceiling: nothing is compared")
    before = seen(runtime)
    asked = spec("true")
    asked["linux"]["seccomp"] = PROFILE
    made = bundle(asked)
    runtime.must("create", "--bundle", str(made.path), "c")
    assert runtime.room.run(["ls", "/run/agentshim/unseen"]).out.strip()
    runtime.must("start", "c")
    new = {key: probes for key, probes in seen(runtime).items() if key not in before}
    assert len(new) == 1
    assert min(new.values()) > 1000
    assert runtime.room.run(["ls", "/run/agentshim/unseen"]).code != 0
    wait_for(lambda: runtime.status("c") == "stopped", 10, "stopped")
    runtime.must("delete", "c")
    runtime.must("create", "--bundle", str(bundle(asked).path), "c")
    assert runtime.room.run(["ls", "/run/agentshim/unseen"]).code != 0
