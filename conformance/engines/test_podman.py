"""The checklist on podman, and what only podman has: user namespaces by --uidmap, rootless users, no daemon."""

from __future__ import annotations

import re
from typing import ClassVar

import pytest

from conformance import evidence, expect
from conformance.columns import Column, path_of
from conformance.engines.asks import HOST, Asks, look
from conformance.engines.checklist import SLEEP, Checklist
from conformance.engines.harness import BUSYBOX
from conformance.engines.images import tool
from conformance.engines.podman import Podman

pytestmark = pytest.mark.engine


class TestLife(Checklist):
    INIT: ClassVar[tuple[str, ...]] = ("--init", "--init-path", tool("tini-static") or tool("catatonit"))

    @pytest.fixture
    def engine(self, podman: Podman) -> Podman:
        return podman

    def test_health_check(self, engine: Podman, column: Column) -> None:
        """Without systemd's timers podman checks when it is told to."""
        check = ("--health-cmd", "test -e /tmp/well", "--health-interval", "disable", "--health-retries", "1")
        with engine.detached(column, *check, engine.image(BUSYBOX), "sh", "-c", "touch /tmp/well; sleep 1000") as name:
            engine.must("healthcheck", "run", name)
            engine.must("exec", name, "rm", "/tmp/well")
            assert engine.do("healthcheck", "run", name).code == 1


class TestAsks(Asks):
    @pytest.fixture
    def engine(self, podman: Podman) -> Podman:
        return podman

    def test_information(self, engine: Podman, column: Column) -> None:
        """podman asks the runtime for its version."""
        runtime = ("--runtime", path_of(column, engine.room))
        found = engine.must(*runtime, "info", "--format", "{{.Host.OCIRuntime.Version}}")
        assert "version" in found


class TestUserNamespace:
    """--uidmap: works, as it does with plain runc, or is refused by name."""

    def test_run_and_exec(self, podman: Podman, column: Column) -> None:
        maps = ("--uidmap", "0:200000:65536", "--gidmap", "0:200000:65536")
        found = look(podman, column, *maps)
        if column.shim and found.code == 126:
            assert expect.REFUSAL.search(found.err) and "--uidmap" in found.err, str(found)
            return
        assert found.code == 0, str(found)
        seen = evidence.parsed(found.out)
        assert seen.namespaces["user"] != HOST["user"]
        assert column.ceiling is None or not expect.excess(seen, column.ceiling, HOST)
        with podman.detached(column, *maps, podman.image(BUSYBOX), *SLEEP) as name:
            assert podman.must("exec", name, "id", "-u") == "0"
            assert evidence.status_of(podman.pid(name))["Uid"].split()[0] == "200000"


class TestRootless:
    """An ordinary user's podman: plain runc runs; agentshim refuses by name and says what to do."""

    def test_run(self, rootless: Podman, column: Column) -> None:
        found = rootless.run(column, "--network=none", rootless.image(BUSYBOX), "id", "-u")
        if not column.shim:
            assert (found.code, found.out) == (0, "0\n"), str(found)
            return
        assert found.code == 126, str(found)
        assert re.search(r"user: rootless: asked .*, ceiling root of the host: .*sudo podman", found.err), str(found)
