"""The checklist on dockerd, and what only dockerd has: health checks, live-restore, compose, userns-remap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conformance import evidence, expect
from conformance.columns import Column
from conformance.engines.asks import HOST, Asks, look
from conformance.engines.checklist import SLEEP, Checklist
from conformance.engines.dockerd import Docker
from conformance.engines.harness import BUSYBOX, bridge_name
from conformance.engines.images import tool
from conformance.room import wait_for

pytestmark = pytest.mark.engine


class TestLife(Checklist):
    @pytest.fixture
    def engine(self, dockerd: Docker) -> Docker:
        return dockerd

    def test_health_check(self, engine: Docker, column: Column) -> None:
        """A check that reads what the container's process wrote, and can turn unhealthy."""
        check = ("--health-cmd", "test -e /tmp/well", "--health-interval", "200ms", "--health-retries", "1")
        with engine.detached(column, *check, engine.image(BUSYBOX), "sh", "-c", "touch /tmp/well; sleep 1000") as name:
            wait_for(lambda: engine.state(name)["Health"]["Status"] == "healthy", 10, "healthy")
            engine.must("exec", name, "rm", "/tmp/well")
            wait_for(lambda: engine.state(name)["Health"]["Status"] == "unhealthy", 10, "unhealthy")

    def test_engine_restart(self, engine: Docker, columns: list[Column]) -> None:
        """With live-restore, containers outlive dockerd and obey it afterwards."""
        names = {
            column.name: engine.must(*engine.words("run", column, "-d", engine.image(BUSYBOX), *SLEEP))
            for column in columns
        }
        before = {column: engine.pid(name) for column, name in names.items()}
        engine.restart()
        assert {column: engine.pid(name) for column, name in names.items()} == before
        for name in names.values():
            assert engine.must("exec", name, "echo", "still here") == "still here"
            engine.must("stop", name)
            assert engine.must("wait", name) == "5"
        engine.remove(*names.values())

    def test_information(self, engine: Docker, columns: list[Column]) -> None:
        """`docker info` lists the runtimes, and does not complain about their versions."""
        found = json.loads(engine.must("info", "--format", "{{json .}}"))
        assert {column.executable for column in columns if column.shim} <= set(found["Runtimes"])

    def test_network_connect(self, engine: Docker, columns: list[Column]) -> None:
        """docker network connect at any time, with no call to the runtime."""
        engine.must("network", "create", "--opt", f"com.docker.network.bridge.name={extra(engine)}", "extra")
        try:
            for column in columns:
                with engine.detached(column, engine.image(BUSYBOX), *SLEEP) as name:
                    engine.must("network", "connect", "extra", name)
                    assert "eth1" in engine.must("exec", name, "ls", "/sys/class/net").split()
                    engine.must("network", "disconnect", "extra", name)
        finally:
            engine.must("network", "rm", "extra")

    def test_compose(self, engine: Docker, column: Column) -> None:
        """A compose file that names the runtime."""
        if not tool("docker-compose"):
            pytest.skip("SKIPPED LOUDLY: docker-compose is not installed")
        runtime = column.executable if column.shim else "runc"
        file = compose(engine, runtime)
        argv = [tool("docker-compose"), "-H", f"unix://{engine.socket}", "-p", f"asc{column.name}", "-f", str(file)]
        up = engine.room.run([*argv, "up", "-d"], env=engine.env)
        assert up.code == 0, str(up)
        try:
            found = engine.room.run([*argv, "exec", "-T", "one", "sh", "-c", evidence.SCRIPT], env=engine.env)
            seen = evidence.parsed(found.out)
            assert column.ceiling is None or not expect.excess(seen, column.ceiling, HOST)
        finally:
            engine.room.run([*argv, "down", "-t", "0", "-v"], env=engine.env)


def extra(engine: Docker) -> str:
    """A second bridge of the room's, which dockerd makes and removes."""
    return bridge_name(engine.room)[:14] + "x"


def compose(engine: Docker, runtime: str) -> Path:
    """A compose file with one service."""
    file = engine.home / f"{runtime}.yml"
    image = engine.image(BUSYBOX)
    service = {"image": image, "runtime": runtime, "network_mode": "bridge", "command": ["sleep", "1000"]}
    file.write_text(json.dumps({"version": "2.4", "services": {"one": service}}))
    return file


class TestAsks(Asks):
    @pytest.fixture
    def engine(self, dockerd: Docker) -> Docker:
        return dockerd


class TestUserNamespace:
    """dockerd --userns-remap: works, as it does with plain runc."""

    def test_run_and_exec(self, remapped: Docker, column: Column) -> None:
        found = look(remapped, column)
        assert found.code == 0, str(found)
        seen = evidence.parsed(found.out)
        assert seen.namespaces["user"] != HOST["user"]
        assert column.ceiling is None or not expect.excess(seen, column.ceiling, HOST)
        with remapped.detached(column, remapped.image(BUSYBOX), *SLEEP) as name:
            assert remapped.must("exec", name, "id", "-u") == "0"
            assert evidence.status_of(remapped.pid(name))["Uid"].split()[0] != "0"
            remapped.must("stop", "--time", "1", name)
