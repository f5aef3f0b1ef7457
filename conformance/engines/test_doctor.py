"""`agentshim doctor` beside real engines: what it says of a registration, and of containers that it never saw."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.columns import COLUMNS, Column, launcher, missing, path_of
from conformance.engines import dockerd as dockerd_
from conformance.engines.checklist import SLEEP
from conformance.engines.conftest import needs
from conformance.engines.containerd import Containerd
from conformance.engines.dockerd import Docker
from conformance.engines.harness import BUSYBOX
from conformance.room import Room, wait_for

pytestmark = pytest.mark.engine
RUNC, AGENT = COLUMNS[0], COLUMNS[1]
Row = dict[str, str]


def doctor(room: Room) -> list[Row]:
    """Every finding, after a look at the frame."""
    assert not missing(AGENT)
    result = room.run([str(launcher()), "doctor", "--json"], timeout=120)
    told = json.loads(result.out)
    levels = {row["level"] for row in told["findings"]}
    assert result.code == (1 if "fail" in levels else 0), str(result)
    assert "Traceback" not in result.err
    assert not [row for row in told["findings"] if row["todo"] == "report this"]
    found: list[Row] = told["findings"]
    return found


def about(found: list[Row], engine: Docker, name: str) -> list[Row]:
    """The findings of a name for one dockerd of ours."""
    pid = engine.must("info", "--format", "{{.ID}}") and (engine.home / "pid").read_text().strip()
    return [row for row in found if row["name"] == name and row["subject"].startswith(f"docker ({pid})")]


@pytest.fixture(scope="module")
def stranger(the_room: Room, archive: Callable[[str], Path]) -> Iterator[Docker]:
    """A dockerd that has never heard of us."""
    needs("dockerd", "docker", "containerd", "runc")
    with dockerd_.docker(the_room, archive, "dr", runtimes={}) as engine:
        yield engine


def test_a_dockerd_that_knows_us(dockerd: Docker) -> None:
    found = doctor(dockerd.room)
    (registered,) = about(found, dockerd, "engine.registered")
    assert registered["level"] == "ok" and "agentshim-dev" in registered["found"]
    assert {row["level"] for row in about(found, dockerd, "engine.path")} == {"ok"}
    assert not about(found, dockerd, "engine.live")
    assert about(found, dockerd, "around.default-runtime")[0]["level"] == "warn"
    (builder,) = about(found, dockerd, "around.buildkit")
    assert builder["level"] == "warn" and "runc" in builder["found"]


def test_a_dockerd_that_does_not(stranger: Docker) -> None:
    found = doctor(stranger.room)
    (registered,) = about(found, stranger, "engine.registered")
    assert registered["level"] == "warn" and "agentshim install docker" in registered["todo"]


def test_a_registration_that_was_not_read(stranger: Docker) -> None:
    """daemon.json has it, the running dockerd has not; after SIGHUP it has."""
    file = stranger.home / "daemon.json"
    config: dict[str, Any] = json.loads(file.read_text())
    before = file.read_text()
    config["runtimes"] = {"agentshim": {"path": path_of(AGENT, stranger.room)}}
    file.write_text(json.dumps(config))
    (live,) = about(doctor(stranger.room), stranger, "engine.live")
    assert live["level"] == "fail" and "reload" in live["todo"]
    assert stranger._daemon is not None
    stranger._daemon.send_signal(signal.SIGHUP)
    wait_for(lambda: "agentshim" in stranger.must("info", "--format", "{{.Runtimes}}"), 10, "dockerd to reload")
    assert not about(doctor(stranger.room), stranger, "engine.live")
    file.write_text(before)
    stranger._daemon.send_signal(signal.SIGHUP)


def test_a_path_that_is_not_ours(stranger: Docker, the_room: Room) -> None:
    """A name of ours that leads to plain runc."""
    file = stranger.home / "daemon.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), "runtimes": {"agentshim": {"path": "/usr/sbin/runc"}}}))
    try:
        (path,) = about(doctor(the_room), stranger, "engine.path")
        assert path["level"] == "fail" and "not agentshim's launcher" in path["found"]
    finally:
        file.write_text(before)


def unseen(room: Room) -> set[str]:
    """The ids of the containers that doctor found to be unknown."""
    rows = [row for row in doctor(room) if row["name"] == "around.unseen"]
    return {row["subject"].rpartition("/")[2] for row in rows if row["level"] == "warn"}


@pytest.mark.parametrize("column", [RUNC, AGENT], ids=lambda column: column.name)
def test_containers_of_dockerd(dockerd: Docker, column: Column) -> None:
    """One that plain runc runs is found; one of ours is not."""
    with dockerd.detached(column, dockerd.image(BUSYBOX), *SLEEP) as name:
        assert (name in unseen(dockerd.room)) == (not column.shim)
    assert name not in unseen(dockerd.room)


@pytest.mark.parametrize("column", [RUNC, AGENT], ids=lambda column: column.name)
def test_containers_of_containerd(containerd: Containerd, column: Column) -> None:
    with containerd.detached(column, *SLEEP) as name:
        assert (name in unseen(containerd.room)) == (not column.shim)
    assert name not in unseen(containerd.room)
