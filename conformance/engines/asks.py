"""What users ask for beyond a ceiling, on docker and podman: privileges, the host's namespaces, host authority.

Under a policy each runs with nothing of what it asked, or is refused with a message that the user sees. Under
`identity` the outcome, failure included, is what plain runc makes of it. Next door: `checklist` for ordinary life.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance import cgroup, evidence, expect
from conformance.columns import AGENT, COLUMNS, Ceiling, Column
from conformance.engines.checklist import SLEEP, volume
from conformance.engines.harness import BUSYBOX, DockerLike
from conformance.room import Result

HOST = evidence.of_process("self")
RUNC = COLUMNS[0]
Oracle = Callable[..., Any]

ASKS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "cap-add": ("--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_PTRACE"),
    "cap-add all": ("--cap-add", "ALL"),
    "privileged": ("--privileged",),
    "pid host": ("--pid=host",),
    "ipc host": ("--ipc=host",),
    "uts host": ("--uts=host",),
    "network host": ("--network=host",),
    "cgroup host": ("--cgroupns=host",),
    "no seccomp": ("--security-opt", "seccomp=unconfined"),
    "everything": ("--privileged", "--pid=host", "--ipc=host", "--uts=host", "--network=host", "--cgroupns=host"),
}
# The kernel must show plain runc to have got these, or the probe proves nothing.
TELLING = {"cap-add", "pid host", "ipc host", "uts host", "network host", "no seccomp"}

AUTHORITY = ("/", "/proc", "/sys", "/dev", "/etc", "/etc/shadow", "/root", "/run", "/var/lib", "/proc/sys/kernel")

DEVICES = ("/dev/fuse", "/dev/net/tun", "/dev/loop-control")  # that anyone with the node may open


def look(engine: DockerLike, column: Column, *args: str) -> Result:
    """Run the probe in a new container."""
    return engine.run(column, *args, engine.image(BUSYBOX), "sh", "-c", evidence.SCRIPT)


EXECS = {"nothing": (), "privileged": ("--privileged",), "user": ("--user", "1000:1000")}


def look_by_exec(engine: DockerLike, column: Column) -> dict[str, Result]:
    """Run the probe by exec, with each of EXECS, in a container that asked for nothing."""
    with engine.detached(column, engine.image(BUSYBOX), *SLEEP) as name:
        return {ask: engine.do("exec", *args, name, "sh", "-c", evidence.SCRIPT) for ask, args in EXECS.items()}


def outcome(result: Result) -> dict[str, Any]:
    """What two runtimes must agree about: the evidence, or the exit code and message of a failure."""
    if result.code == 0:
        return expect.normal(evidence.parsed(result.out), HOST)
    # docker's client sometimes adds a line of its own log
    message = "".join(line for line in result.err.splitlines() if not line.startswith("time="))
    return {"exit": result.code, "message": re.sub(r"[0-9a-f]{12,64}|\d+", "N", message)}


def agrees(column: Column, found: Result, oracle: Callable[[], Result]) -> None:
    """The verdict on one ask: within the column's ceiling, or what runc makes of it."""
    if column.ceiling is None:
        assert not expect.difference(outcome(oracle()), outcome(found))
        return
    within(column.ceiling, found)


def within(ceiling: Ceiling, found: Result) -> None:
    """The probe ran, and showed what `ceiling` says."""
    assert found.code == 0, str(found)
    assert not expect.excess(evidence.parsed(found.out), ceiling, HOST)


class Asks:
    """The attempts; a subclass provides the fixture `engine`."""

    @pytest.mark.parametrize("ask", ASKS)
    def test_run(self, engine: DockerLike, column: Column, oracle: Oracle, ask: str) -> None:
        found = oracle(look, engine, column, *ASKS[ask])
        agrees(column, found, lambda: oracle(look, engine, RUNC, *ASKS[ask]))
        if not column.shim and ask in TELLING:
            more = expect.excess(evidence.parsed(found.out), AGENT, HOST)
            less = expect.excess(evidence.parsed(oracle(look, engine, RUNC).out), AGENT, HOST)
            assert set(more) - set(less), "plain runc was not seen to have what was asked"

    def test_exec(self, engine: DockerLike, column: Column, oracle: Oracle) -> None:
        """The engine builds exec's process.json from its own copy of the spec, not from what was granted."""
        found = oracle(look_by_exec, engine, column)
        if column.ceiling is None:
            theirs = oracle(look_by_exec, engine, RUNC)
            for ask, result in found.items():
                assert not expect.difference(outcome(theirs[ask]), outcome(result)), ask
            return
        for ask in ("nothing", "privileged"):
            within(column.ceiling, found[ask])
        seen = evidence.parsed(found["user"].out)
        assert seen.status["Uid"].split()[0] == "1000"
        assert not any(caps & ~column.ceiling.caps for caps in seen.caps.values()), seen.caps

    @pytest.mark.parametrize("path", AUTHORITY)
    def test_host_authority(self, engine: DockerLike, lowered: Column, path: str) -> None:
        """A mount of host authority is refused and named; nothing is run."""
        refused(engine.run(lowered, "-v", f"{path}:/host", engine.image(BUSYBOX), "echo", "ran"), path)

    def test_engine_socket(self, engine: DockerLike, lowered: Column, listener: Path) -> None:
        refused(engine.run(lowered, "-v", f"{listener}:/s", engine.image(BUSYBOX), "echo", "ran"), str(listener))

    def test_escalation(self, engine: DockerLike, lowered: Column, listener: Path) -> None:
        """The whole host, asked for at once: refused for its mounts; without them, nothing of it is granted."""
        mounts = ("-v", "/:/host", "-v", f"{listener}:/s")
        asked = ("--privileged", "--pid=host")
        refused(engine.run(lowered, *asked, *mounts, engine.image(BUSYBOX), "echo", "ran"), "/host", "/s")
        agrees(lowered, look(engine, lowered, *asked), lambda: look(engine, RUNC))

    def test_symbolic_link_to_authority(self, engine: DockerLike, lowered: Column, tmp_path: Path) -> None:
        """CVE-like: a harmless name that leads to the host's root."""
        link = volume(engine, tmp_path) / "link"
        link.symlink_to("/")
        refused(engine.run(lowered, "-v", f"{link}:/host", engine.image(BUSYBOX), "echo", "ran"))

    def test_host_device(self, engine: DockerLike, column: Column) -> None:
        """A device of the host is not granted by asking for it: refused, or not there to be opened."""
        device = next((path for path in DEVICES if os.path.exists(path)), "")
        if not device:
            pytest.skip(f"SKIPPED LOUDLY: this host has none of {DEVICES}")
        found = engine.run(
            column, "--device", device, engine.image(BUSYBOX), "sh", "-c", f": < {device} && echo opened"
        )
        assert ("opened" in found.out) == (column.ceiling is None), str(found)

    def test_namespaces_of_another_container(self, engine: DockerLike, column: Column) -> None:
        """Shared with a container, never with the host."""
        with engine.detached(column, "--ipc=shareable", engine.image(BUSYBOX), *SLEEP) as first:
            found = look(engine, column, *(f"--{kind}=container:{first}" for kind in ("pid", "network", "ipc")))
            assert found.code == 0, str(found)
            shared = evidence.parsed(found.out).shared_with(evidence.of_process(engine.pid(first)))
            assert {"pid", "net", "ipc"} <= shared

    @pytest.mark.parametrize("mode, interfaces", [("none", {"lo"}), ("bridge", {"lo", "eth0"})])
    def test_network(self, engine: DockerLike, column: Column, mode: str, interfaces: set[str]) -> None:
        """What the engine attached is there, and nothing else."""
        found = engine.run(column, f"--network={mode}", engine.image(BUSYBOX), "ls", "/sys/class/net")
        assert set(found.out.split()) - {"bonding_masters", "sit0", "tunl0", "ip6tnl0"} == interfaces, str(found)

    def test_network_of_the_host(self, engine: DockerLike, lowered: Column) -> None:
        """--network host gives a network namespace of its own, in which none of the host's interfaces are."""
        found = engine.run(lowered, "--network=host", engine.image(BUSYBOX), "ls", "/sys/class/net")
        assert found.code == 0 and not set(found.out.split()) & {"eth0", "docker0"}, str(found)

    def test_update_within_the_ceiling(self, engine: DockerLike, lowered: Column) -> None:
        """update cannot take off a limit that the policy set."""
        with engine.detached(lowered, engine.image(BUSYBOX), *SLEEP) as name:
            before = cgroup.processes(engine.pid(name))
            assert before is not None
            engine.do("update", "--pids-limit", "-1", name)
            after = cgroup.processes(engine.pid(name))
            assert after is not None and after <= before


def refused(result: Result, *named: str) -> None:
    """The user sees our one message, naming what was refused, and nothing was run."""
    # 125: docker; 126: podman, for whatever its runtime says; 127 would read as a missing program
    assert result.code in (125, 126), str(result)
    assert "ran" not in result.out, str(result)
    assert expect.REFUSAL.search(result.err), str(result)
    assert all(name in result.err for name in named), str(result)
