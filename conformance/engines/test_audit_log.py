"""What the audit log says of containers that real engines make: the name that their users know, every exec and update.

Next door: conformance/oci/test_audit_log.py, without an engine.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from conformance.columns import COLUMNS
from conformance.engines.harness import BUSYBOX, DockerLike

pytestmark = pytest.mark.engine
AGENT = COLUMNS[1]
LOG = "/var/log/agentshim/audit.jsonl"


@pytest.fixture(params=["dockerd", "podman"])
def engine(request: pytest.FixtureRequest) -> DockerLike:
    found: DockerLike = request.getfixturevalue(request.param)
    return found


def records(engine: DockerLike, container: str) -> list[dict[str, Any]]:
    every = map(json.loads, engine.room.run(["cat", LOG]).out.splitlines())
    return [one for one in every if one.get("container.id") == container]


def test_a_day(engine: DockerLike) -> None:
    name = f"audited-{engine.room.base.name}"
    label = ("--label", "Name=/forged", "--env", 'X="Name":"/forged"')
    with engine.detached(AGENT, "--name", name, *label, engine.image(BUSYBOX), "sleep", "1000") as container:
        engine.must("exec", name, "true")
        engine.do("update", "--pids-limit", "20", name)
        every = records(engine, container)
        assert {one["container.name"] for one in every} == {name}
        assert {one["event.outcome"] for one in every} == {"success"}
        actions = [one["event.action"] for one in every]
        assert actions[:2] == ["create", "exec"] and set(actions[2:]) <= {"update"}
        assert {"capabilities", "paths"} <= set(every[0]["agentshim.lowered"])
        shim = str(engine.room.base / "bin" / "agentshim")
        shown = engine.room.run([shim, "audit", "show", name])
        assert f"create granted {name} ({container[:12]}) policy agent (" in shown.out, str(shown)


def test_a_refusal(engine: DockerLike) -> None:
    refused = engine.do(*engine.words("run", AGENT, "--volume", "/proc/1:/h", engine.image(BUSYBOX), "true"))
    assert refused.code != 0
    last = json.loads(engine.room.run(["tail", "-n", "1", LOG]).out)
    assert last["event.action"] == "create" and last["event.outcome"] == "failure" and "/h" in last["error.message"]
    engine.remove_all()
