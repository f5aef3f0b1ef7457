"""The checklist on containerd, through ctr: what Kubernetes and nerdctl build on.

ctr has no update, no health checks and no network of its own (a new, empty namespace); the rest of the list is here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from conformance import cgroup, evidence, expect
from conformance.columns import AGENT, COLUMNS, Column
from conformance.engines.asks import HOST, Oracle, agrees, refused
from conformance.engines.checklist import NODE_PROGRAM, PYTHON_PROGRAM, SLEEP, TERMINAL, at_once
from conformance.engines.containerd import Containerd
from conformance.engines.harness import NODE, PYTHON
from conformance.engines.terminal import Terminal
from conformance.room import Result, wait_for

pytestmark = pytest.mark.engine
RUNC = COLUMNS[0]
LINGER = "sleep 0.3"  # ctr itself now and then loses the output of a process that ends at once
HERE = f"/proc/{os.getpid()}/ns"  # the host's; on some hosts nobody may open those of pid 1

ASKS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "cap-add": ("--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_NET_ADMIN"),
    "privileged": ("--privileged",),
    "new privileges": ("--allow-new-privs",),
    "network host": ("--net-host",),
    "pid host": ("--with-ns", f"pid:{HERE}/pid"),
    "ipc host": ("--with-ns", f"ipc:{HERE}/ipc"),
    "everything": ("--privileged", "--net-host", "--with-ns", f"pid:{HERE}/pid", "--with-ns", f"uts:{HERE}/uts"),
}
TELLING = {"cap-add", "new privileges", "network host", "pid host", "ipc host"}
AUTHORITY = ("/", "/proc", "/sys", "/dev", "/etc", "/root", "/run")


def look(engine: Containerd, column: Column, *flags: str) -> Result:
    """Run the probe in a new container."""
    return engine.run(column, "sh", "-c", evidence.SCRIPT, flags=flags)


def look_by_exec(engine: Containerd, column: Column, *flags: str) -> Result:
    """Run the probe by exec in a container that asked for nothing."""
    with engine.detached(column, *SLEEP) as name:
        return engine.do("task", "exec", "--exec-id", "probe", *flags, name, "sh", "-c", evidence.SCRIPT)


def bind(source: str, target: str, *options: str) -> tuple[str, str]:
    """A bind mount in ctr's words."""
    return ("--mount", f"type=bind,src={source},dst={target},options={':'.join(('rbind', *options))}")


@pytest.fixture
def engine(containerd: Containerd) -> Containerd:
    return containerd


@pytest.mark.parametrize("code", [0, 3])
def test_exit_code(engine: Containerd, column: Column, code: int) -> None:
    result = engine.run(column, "sh", "-c", f"echo out; echo err >&2; {LINGER}; exit {code}")
    assert (result.code, result.out) == (code, "out\n"), str(result)
    assert result.err.startswith("err\n"), str(result)


@pytest.mark.parametrize("program", ["/etc/not-a-program", "/nowhere/nothing"])
def test_what_cannot_run(engine: Containerd, column: Column, program: str) -> None:
    """ctr has exit code 1 for both (126 and 127 elsewhere), and shows the delegate's message."""
    result = engine.run(column, program)
    assert result.code == 1 and program in result.err, str(result)


def test_terminal(engine: Containerd, column: Column) -> None:
    words = engine.words(column, engine.fresh(), "sh", "-c", TERMINAL, flags=("--rm", "--tty"))
    talk(engine, words)


def talk(engine: Containerd, words: list[str]) -> None:
    """A conversation on a terminal: its size, a line typed, an exit code."""
    with Terminal(engine, words) as terminal:
        terminal.until("ready")
        terminal.send("hello\n")
        assert terminal.wait() == 3, terminal.seen
    assert "33 111" in terminal.seen and "got hello" in terminal.seen, terminal.seen


def test_exec(engine: Containerd, column: Column) -> None:
    with engine.detached(column, *SLEEP) as name:
        exec_ = ("task", "exec", "--exec-id")
        result = engine.do(*exec_, "one", name, "sh", "-c", f"echo out; {LINGER}; exit 3")
        assert (result.code, result.out) == (3, "out\n"), str(result)
        assert engine.must(*exec_, "two", "--user", "1000:1000", name, "id", "-u") == "1000"
        assert engine.must(*exec_, "three", "--cwd", "/work", name, "pwd") == "/work"
        assert engine.do(*exec_, "four", name, "/nowhere/nothing").code == 1
        talk(engine, [*exec_, "five", "--tty", name, "sh", "-c", TERMINAL])


@pytest.mark.parametrize("signal, code", [("TERM", 5), ("KILL", 137), ("USR1", 6)])
def test_kill(engine: Containerd, column: Column, signal: str, code: int) -> None:
    with engine.detached(column, *SLEEP) as name:
        pid = engine.pid(name)
        wait_for(lambda: sleeping(pid), 10, "the shell's trap")
        engine.must("task", "kill", "--signal", f"SIG{signal}", name)
        wait_for(lambda: engine.status(name) == "STOPPED", 10, "the end")
        assert engine.do("task", "delete", name).err.rstrip().endswith(f'exit code {code}"')


def sleeping(pid: int) -> bool:
    """Has the shell of SLEEP set its traps? Its first child is the `sleep` of the loop behind them."""
    return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def test_pause_and_resume(engine: Containerd, column: Column) -> None:
    with engine.detached(column, *SLEEP) as name:
        pid = engine.pid(name)
        engine.must("task", "pause", name)
        assert cgroup.frozen(pid) and engine.status(name) == "PAUSED"
        engine.must("task", "resume", name)
        assert not cgroup.frozen(pid) and engine.status(name) == "RUNNING"


def test_metrics_and_processes(engine: Containerd, column: Column) -> None:
    with engine.detached(column, *SLEEP) as name:
        assert re.search(r"memory", engine.must("task", "metrics", name))
        assert str(engine.pid(name)) in engine.must("task", "ps", name)


def test_limits(engine: Containerd, column: Column) -> None:
    with engine.detached(column, *SLEEP, flags=("--memory-limit", str(100 << 20), "--cpus", "0.5")) as name:
        assert (cgroup.memory(engine.pid(name)), cgroup.cpus(engine.pid(name))) == (100 << 20, 0.5)


def test_read_only(engine: Containerd, column: Column) -> None:
    result = engine.run(column, "touch", "/x", flags=("--read-only",))
    assert result.code == 1 and "Read-only" in result.err, str(result)


@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_volume(engine: Containerd, column: Column, tmp_path: Path, mode: str) -> None:
    source = engine.room.base / "volumes" / tmp_path.name
    source.mkdir(parents=True)
    (source / "file").write_text("old\n")
    command = ("sh", "-c", "cat /mnt/file; echo new 2>/dev/null > /mnt/new && echo wrote")
    result = engine.run(column, *command, flags=bind(str(source), "/mnt", mode))
    assert result.out == ("old\nwrote\n" if mode == "rw" else "old\n"), str(result)


@pytest.mark.parametrize("image", [PYTHON, NODE])
def test_unmodified_image(engine: Containerd, column: Column, image: str) -> None:
    command = ("python3", "-c", PYTHON_PROGRAM) if image == PYTHON else ("node", "-e", NODE_PROGRAM)
    result = engine.run(column, *command, image=image)
    assert result.code == 0, str(result)


@pytest.mark.parametrize("ask", ASKS)
def test_asked_for_more(engine: Containerd, column: Column, oracle: Oracle, ask: str) -> None:
    found = oracle(look, engine, column, *ASKS[ask])
    agrees(column, found, lambda: oracle(look, engine, RUNC, *ASKS[ask]))
    if not column.shim and ask in TELLING:
        more = expect.excess(evidence.parsed(found.out), AGENT, HOST)
        less = expect.excess(evidence.parsed(oracle(look, engine, RUNC).out), AGENT, HOST)
        assert set(more) - set(less), "plain runc was not seen to have what was asked"


def test_exec_is_lowered(engine: Containerd, column: Column, oracle: Oracle) -> None:
    found = oracle(look_by_exec, engine, column)
    agrees(column, found, lambda: oracle(look_by_exec, engine, RUNC))


@pytest.mark.parametrize("path", AUTHORITY)
def test_host_authority(engine: Containerd, lowered: Column, path: str) -> None:
    refused_by_ctr(engine.run(lowered, "echo", "ran", flags=bind(path, "/mnt", "ro")), path)


def test_escalation(engine: Containerd, lowered: Column, listener: Path) -> None:
    asked = ASKS["everything"]
    mounts = (*bind("/", "/mnt"), *bind(str(listener), "/s"))
    refused_by_ctr(engine.run(lowered, "echo", "ran", flags=(*asked, *mounts)), "/mnt", "/s")


def refused_by_ctr(result: Result, *named: str) -> None:
    """ctr prints containerd's message, which holds the last error line of the runtime's log."""
    assert result.code == 1
    refused(Result(result.argv, 125, result.out, result.err), *named)


def test_namespace_of_another_container(engine: Containerd, column: Column) -> None:
    with engine.detached(column, *SLEEP) as first:
        theirs = evidence.of_process(engine.pid(first))
        flags = ("--with-ns", f"network:/proc/{engine.pid(first)}/ns/net")
        found = look(engine, column, *flags)
        assert evidence.parsed(found.out).namespaces["net"] == theirs["net"], str(found)


def test_user_namespace(engine: Containerd, lowered: Column) -> None:
    """--uidmap: works, where ctr calls the runtime that it was told to call."""
    maps = ("--uidmap", "0:200000:65536", "--gidmap", "0:200000:65536")
    if engine.run(Column("nothing", "/nonexistent"), "true", flags=maps).code == 0:
        pytest.skip("SKIPPED LOUDLY: with --uidmap this ctr loses --runc-binary and runs plain runc: a silent bypass")
    found = look(engine, lowered, *maps)
    assert found.code == 0, str(found)
    seen = evidence.parsed(found.out)
    assert seen.namespaces["user"] != HOST["user"]
    assert not any(caps & ~lowered.bound.caps for caps in seen.caps.values()), seen.caps


def test_twenty_at_once(engine: Containerd, columns: list[Column]) -> None:
    agent = [column for column in columns if column.name == "agent"] or columns
    for kinds in (agent, columns):
        each = [
            engine.words(kinds[n % len(kinds)], engine.fresh(), "sh", "-c", f"echo n{n}; {LINGER}", flags=("--rm",))
            for n in range(20)
        ]
        assert at_once(engine, each) == [f"n{n}\n" for n in range(20)]


def test_engine_restart(engine: Containerd, columns: list[Column]) -> None:
    """Containers outlive containerd and obey it afterwards."""
    names = {column.name: engine.fresh() for column in columns}
    for column in columns:
        engine.must(*engine.words(column, names[column.name], *SLEEP, flags=("--detach",)))
    engine.restart()
    for name in names.values():
        result = engine.do("task", "exec", "--exec-id", "after", name, "echo", "still here")
        assert result.out == "still here\n", str(result)
        engine.remove(name)
