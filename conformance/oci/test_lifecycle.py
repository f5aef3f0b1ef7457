"""The life of a container through the command line alone, over each delegate."""

from __future__ import annotations

import json
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conformance import cgroup, evidence, expect
from conformance.columns import Column
from conformance.oci.bundles import sleeper, spec
from conformance.oci.cli import Runtime
from conformance.oci.conftest import Maker
from conformance.room import wait_for

pytestmark = pytest.mark.oci
HOST = evidence.of_process("self")


def started(runtime: Runtime, bundle: Maker, name: str = "c") -> int:
    """A running container that waits for signals; its pid."""
    made = bundle(sleeper(f"{runtime.cgroup}/{name}"))
    pid_file = made.path / "pid"
    runtime.must("create", "--bundle", str(made.path), "--pid-file", str(pid_file), name)
    runtime.must("start", name)
    wait_for(lambda: runtime.status(name) == "running", 10, "running")
    return int(pid_file.read_text())


def test_create_start_state_kill_delete(runtime: Runtime, bundle: Maker) -> None:
    made = bundle(sleeper(f"{runtime.cgroup}/c"))
    pid_file = made.path / "pid"
    created = runtime.call("create", "--bundle", str(made.path), "--pid-file", str(pid_file), "c")
    assert (created.code, created.err) == (0, ""), str(created)
    state = runtime.state("c")
    assert (state["id"], state["status"], state["pid"]) == ("c", "created", int(pid_file.read_text()))
    assert (state["bundle"], state["annotations"]["org.example.conformance"]) == (str(made.path), "kept")
    runtime.must("start", "c")
    assert runtime.status("c") == "running"
    assert runtime.call("start", "c").code == 1
    assert runtime.call("delete", "c").code == 1
    runtime.must("kill", "c", "TERM")
    runtime.ended("c")
    runtime.must("delete", "c")
    assert runtime.call("state", "c").code == 1


@pytest.mark.parametrize("code", [0, 3])
def test_run(runtime: Runtime, bundle: Maker, code: int) -> None:
    made = bundle(spec("sh", "-c", f"echo out; echo err >&2; exit {code}"))
    result = runtime.call("run", "--bundle", str(made.path), "c")
    assert (result.code, result.out, result.err) == (code, "out\n", "err\n"), str(result)
    assert runtime.call("state", "c").code == 1


SPELLINGS = [("--bundle", "{}"), ("--bundle={}",), ("-b", "{}"), ("-b={}",), ("-bundle", "{}"), ()]


@pytest.mark.parametrize("words", SPELLINGS)
def test_every_spelling_of_the_bundle(runtime: Runtime, bundle: Maker, delegate: str, words: tuple[str, ...]) -> None:
    """The last one names no bundle: it is the working directory."""
    if delegate.endswith("crun") and words[:1] in (("-bundle",), ("-b={}",)):
        pytest.skip("crun's own grammar does not know this spelling")
    made = bundle(spec("echo", "here"))
    result = runtime.call("run", *(word.format(made.path) for word in words), "c", cwd=str(made.path))
    assert (result.code, result.out) == (0, "here\n"), str(result)


def test_run_what_cannot_run(runtime: Runtime, bundle: Maker) -> None:
    for number, program in enumerate(("/etc/not-a-program", "/nowhere/nothing")):
        result = runtime.call("run", "--bundle", str(bundle(spec(program)).path), f"c{number}")
        assert result.code == 1 and result.err, str(result)
        assert runtime.errors()


def test_the_kernel_agrees(runtime: Runtime, bundle: Maker, column: Column) -> None:
    """Evidence from inside, and from inside by exec."""
    if column.ceiling is None:
        pytest.skip("test_differential compares this column with the delegate")
    found = runtime.must("run", "--bundle", str(bundle(spec("sh", "-c", evidence.SCRIPT)).path), "one")
    assert not expect.excess(evidence.parsed(found), column.ceiling, HOST)
    started(runtime, bundle)
    found = runtime.must("exec", "c", "sh", "-c", evidence.SCRIPT)
    assert not expect.excess(evidence.parsed(found), column.ceiling, HOST)


def test_exec(runtime: Runtime, bundle: Maker, tmp_path: Path) -> None:
    started(runtime, bundle)
    result = runtime.call("exec", "c", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (result.code, result.out, result.err) == (3, "out\n", "err\n"), str(result)
    flags = ("--user", "1000:1000", "--cwd", "/work", "--env", "X=y")
    script = "/bin/id -u; pwd; echo $X"
    assert runtime.must("exec", *flags, "c", "/bin/sh", "-c", script).split() == ["1000", "/work", "y"]
    file = process(runtime, tmp_path, "sh", "-c", "echo out; exit 4")
    result = runtime.call("exec", "--process", file, "c")
    assert (result.code, result.out) == (4, "out\n"), str(result)


def process(runtime: Runtime, place: Path, *args: str, **more: Any) -> str:
    """A process.json as containerd writes it for exec; the path."""
    inner = {**spec(*args)["process"], **more}
    path = runtime.home / "process.json"
    path.write_text(json.dumps(inner))
    return str(path)


def test_exec_detached(runtime: Runtime, bundle: Maker, tmp_path: Path) -> None:
    started(runtime, bundle)
    file = process(runtime, tmp_path, "sleep", "1000")
    pid_file = runtime.home / "exec.pid"
    runtime.must("exec", "--process", file, "--detach", "--pid-file", str(pid_file), "c")
    assert "sleep" in Path(f"/proc/{pid_file.read_text().strip()}/cmdline").read_text()


def test_exec_does_not_exceed_the_ceiling(runtime: Runtime, bundle: Maker, column: Column, tmp_path: Path) -> None:
    """A process.json with everything, as `docker exec --privileged` makes it; and the flags that ask the same."""
    if column.ceiling is None:
        pytest.skip("no ceiling")
    started(runtime, bundle)
    sets = ("bounding", "effective", "permitted", "inheritable")
    everything = {name: ["CAP_SYS_ADMIN", "CAP_CHOWN"] for name in sets}
    file = process(runtime, tmp_path, "sh", "-c", evidence.SCRIPT, capabilities=everything, noNewPrivileges=False)
    for args in (("--process", file, "c"), ("--cap", "CAP_SYS_ADMIN", "c", "sh", "-c", evidence.SCRIPT)):
        result = runtime.call("exec", *args)
        seen = evidence.parsed(result.out)
        assert not any(caps & ~column.ceiling.caps for caps in seen.caps.values()), str(result)
        assert seen.no_new_privs and seen.seccomp == 2


def test_update(runtime: Runtime, bundle: Maker) -> None:
    """All three ways in which engines hand over the new limits."""
    pid = started(runtime, bundle)
    text = json.dumps({"memory": {"limit": 100 << 20}})
    runtime.must("update", "--resources=-", "c", input=text)
    assert cgroup.memory(pid) == 100 << 20
    runtime.must("update", "--resources", "-", "c", input=text.replace(str(100 << 20), str(90 << 20)))
    assert cgroup.memory(pid) == 90 << 20
    file = runtime.home / "resources.json"
    file.write_text(text.replace(str(100 << 20), str(80 << 20)))
    runtime.must("update", "--resources", str(file), "c")
    assert cgroup.memory(pid) == 80 << 20
    runtime.must("update", "--pids-limit", "50", "c")
    assert cgroup.processes(pid) == 50


def test_pause_resume_list_ps(runtime: Runtime, bundle: Maker) -> None:
    pid = started(runtime, bundle)
    runtime.must("pause", "c")
    assert runtime.status("c") == "paused" and cgroup.frozen(pid)
    runtime.must("resume", "c")
    assert runtime.status("c") == "running"
    assert "c" in runtime.must("list", "-q").split()
    assert pid in json.loads(runtime.must("ps", "--format", "json", "c"))


def test_delete_by_force(runtime: Runtime, bundle: Maker) -> None:
    pid = started(runtime, bundle)
    runtime.must("delete", "--force", "c")
    assert not os.path.exists(f"/proc/{pid}") or "Z" in Path(f"/proc/{pid}/stat").read_text()
    assert runtime.call("delete", "--force", "never-was").code == 0


def test_second_create_of_a_bundle(runtime: Runtime, bundle: Maker) -> None:
    """A bundle that is created again has been rewritten by us before: nothing more is taken, nothing is added."""
    made = bundle(spec("sh", "-c", "echo again"))
    written = []
    for _ in range(3):
        runtime.must("create", "--bundle", str(made.path), "c")
        written.append(made.read())
        runtime.must("delete", "--force", "c")
    assert flat(written[0]) == flat(written[1])
    assert written[1] == written[2]
    runtime.must("create", "--bundle", str(made.path), "c")
    second = runtime.call("create", "--bundle", str(made.path), "c")
    assert second.code == 1 and "c" in second.err, str(second)
    runtime.must("start", "c")
    runtime.ended("c")
    runtime.must("delete", "c")


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """A config with one seccomp rule a name: how rules are grouped has no meaning."""
    out: dict[str, Any] = json.loads(json.dumps(config))
    for rule in out["linux"].get("seccomp", {}).pop("syscalls", []):
        out.setdefault("rules", []).extend([name, rule["action"], rule.get("args")] for name in rule["names"])
    out.get("rules", []).sort(key=partial(json.dumps, sort_keys=True))
    return out


def test_terminal(runtime: Runtime, bundle: Maker) -> None:
    """--console-socket: the terminal's descriptor reaches the engine."""
    config = spec("sh", "-c", "tty; exit 0")
    config["process"]["terminal"] = True
    made = bundle(config)
    path = runtime.home / "console.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        runtime.must("create", "--bundle", str(made.path), "--console-socket", str(path), "c")
        peer, _ = server.accept()
        _, descriptors, _, _ = socket.recv_fds(peer, 4096, 1)
        peer.close()
    runtime.must("start", "c")
    runtime.ended("c")
    assert b"/dev/pts/0" in os.read(descriptors[0], 4096)
    os.close(descriptors[0])


def test_version(runtime: Runtime, delegate: str) -> None:
    """In the form that `docker info` parses: a line with "version", and runc's commit."""
    found = runtime.bare("--version")
    assert found.code == 0 and "version" in found.out.splitlines()[0], str(found)
    assert "commit:" in found.out
    assert ("crun" if delegate.endswith("crun") else "runc") in found.out
