"""A meet that is looser than what was asked: the proof finds it, and nothing is run, written or kept.

Belongs here: the whole way, from an engine's call to a delegate that only notes. Next door: `tests/laws` asks the proof
itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from conformance.columns import launcher
from conformance.faults.inject import Stage
from conformance.faults.scenarios import greedy
from conformance.faults.test_faults import planted
from conformance.room import room

pytestmark = [
    pytest.mark.oci,
    pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED LOUDLY: containers are root's"),
    pytest.mark.skipif(not launcher().exists(), reason=f"SKIPPED LOUDLY: {launcher()} is missing: run `make build`"),
]
AF_UNIX = {"index": 0, "op": "SCMP_CMP_EQ", "value": 1}
ASKED = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": [AF_UNIX]}],
}
PROVED = "/var/lib/agentshim/seccomp"


@pytest.fixture
def stage() -> Iterator[Stage]:
    with room("prf-") as here:
        made = Stage(here)
        asked = greedy()
        asked["mounts"] = [one for one in asked["mounts"] if one.get("source") != "@volume"]
        asked["linux"]["namespaces"] = [{"type": "mount"}, {"type": "uts"}]
        asked["linux"]["seccomp"] = ASKED
        made.config.write_text(json.dumps(asked))
        yield made
    assert not here.left, here.left


def proofs(stage: Stage) -> list[str]:
    return [name for name in stage.left() if name.startswith(PROVED + "/")]


@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_meet_that_is_looser_runs_nothing(stage: Stage, verb: str) -> None:
    planted(stage, "shim/seccomp/model.py", "    grant = _granted(a[1], b[1])\n", "    grant = b[1]\n")
    before = stage.config.read_bytes()
    for _ in range(2):  # and the first failure leaves nothing that the second could take for a proof
        told = stage.call([verb, "--bundle", str(stage.bundle), "c"])
        assert told.result.code == 1 and "no looser than either side" in told.result.err, told.result
        assert told.ran == 0 and told.config == before and proofs(stage) == []
        assert not [name for name in told.left if name.startswith("/run/agentshim/") and "/c" in name]


def test_the_same_call_runs_where_the_meet_is_right(stage: Stage) -> None:
    """Take the fault away, and it is run and kept: the test above sees nothing else. Then put it back: what was proved
    of other sources than ours are now is no proof.
    """
    words = ["create", "--bundle", str(stage.bundle), "c"]
    before = stage.config.read_bytes()
    told = stage.call(words)
    assert told.ran == 1 and told.config != before and len(proofs(stage)) == 1, told.result
    stage.forget()
    stage.config.write_bytes(before)
    planted(stage, "shim/seccomp/model.py", "    grant = _granted(a[1], b[1])\n", "    grant = b[1]\n")
    told = stage.call(words)
    assert told.result.code == 1 and told.ran == 0 and told.config == before and len(proofs(stage)) == 1, told.result
