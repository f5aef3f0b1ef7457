"""The checklist that docker and podman share, since their command lines do.

Belongs here: one test a promise; the expected difference of a policy comes from `columns`, evidence from the kernel.
Subclasses in test_docker.py and test_podman.py say which engine. Next door: `asks` for what is asked beyond a ceiling.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from conformance import cgroup, evidence
from conformance.columns import Column
from conformance.engines.harness import BUSYBOX, NODE, PYTHON, DockerLike, Engine
from conformance.engines.terminal import Terminal
from conformance.room import Result, wait_for

# A loop until the engine has told the container how large the terminal is.
TERMINAL = """
tty; i=0; while [ $i -lt 100 ] && [ "$(stty size)" != "33 111" ]; do i=$((i+1)); sleep 0.05; done
stty size; echo ready; read x; echo "got $x"; exit 3
"""
SLEEP = ("sh", "-c", "trap 'exit 5' TERM; trap 'exit 6' USR1; echo up; while :; do sleep 0.1; done")
NODE_PROGRAM = """
const os = require('os'), fs = require('fs'), {execFileSync} = require('child_process');
fs.writeFileSync('/tmp/x', 'y'); const n = Object.keys(os.networkInterfaces());
console.log(process.getuid(), n.includes('lo'), execFileSync('/bin/echo', ['child']).toString().trim());
"""
PYTHON_PROGRAM = """
import multiprocessing, os, socket, sqlite3, ssl, subprocess, tempfile, threading
left, right = socket.socketpair(); left.send(b'x'); socket.create_server(('127.0.0.1', 0))
tempfile.TemporaryFile().write(b'x'); threading.Thread(target=print).start(); sqlite3.connect(':memory:')
print(os.getuid(), right.recv(1), subprocess.check_output(['/bin/echo', 'child']))
"""


class Checklist:
    """The promises; a subclass provides the fixture `engine`."""

    INIT: ClassVar[tuple[str, ...]] = ("--init",)

    # run

    @pytest.mark.parametrize("code", [0, 3])
    def test_exit_code(self, engine: DockerLike, column: Column, code: int) -> None:
        result = engine.run(column, engine.image(BUSYBOX), "sh", "-c", f"echo out; echo err >&2; exit {code}")
        assert (result.code, result.out, result.err) == (code, "out\n", f"{engine.about_host}err\n"), str(result)

    @pytest.mark.parametrize("program, code", [("/etc/not-a-program", 126), ("/nowhere/nothing", 127)])
    def test_exit_code_of_what_cannot_run(self, engine: DockerLike, column: Column, program: str, code: int) -> None:
        result = engine.run(column, engine.image(BUSYBOX), program)
        assert result.code == code, str(result)
        assert program in result.err

    def test_run_detached_logs_wait(self, engine: DockerLike, column: Column) -> None:
        with engine.detached(column, engine.image(BUSYBOX), "sh", "-c", "echo one; echo two >&2; exit 3") as name:
            assert engine.must("wait", name) == "3"
            logs = engine.do("logs", name)
            assert (logs.out, logs.err) == ("one\n", "two\n")

    def test_standard_input(self, engine: DockerLike, column: Column) -> None:
        result = engine.run(column, "-i", engine.image(BUSYBOX), "sed", "s/^/got /", input="hello\n")
        assert (result.code, result.out) == (0, "got hello\n"), str(result)

    def test_terminal(self, engine: DockerLike, column: Column) -> None:
        words = engine.words("run", column, "--rm", "-it", engine.image(BUSYBOX), "sh", "-c", TERMINAL)
        self.talk(engine, words)

    def talk(self, engine: DockerLike, words: list[str]) -> None:
        """A conversation on a terminal: its name, its size, a line typed, an exit code."""
        with Terminal(engine, words) as terminal:
            terminal.until("ready")
            terminal.send("hello\n")
            assert terminal.wait() == 3, terminal.seen
        assert "/dev/pts/" in terminal.seen and "got hello" in terminal.seen, terminal.seen
        assert "33 111" in terminal.seen, terminal.seen

    def test_init(self, engine: DockerLike, column: Column) -> None:
        """--init puts the engine's own init in front, from a file that the engine mounts."""
        result = engine.run(column, *self.INIT, engine.image(BUSYBOX), "cat", "/proc/1/cmdline")
        assert result.code == 0 and "init" in result.out.split("\0")[0], str(result)

    def test_user(self, engine: DockerLike, column: Column) -> None:
        result = engine.run(column, "--user", "1000:1000", engine.image(BUSYBOX), "sh", "-c", "id -u; id -g")
        assert (result.code, result.out) == (0, "1000\n1000\n"), str(result)

    def test_read_only_and_tmpfs(self, engine: DockerLike, column: Column) -> None:
        script = "! touch /x 2>/dev/null && touch /scratch/x && grep -q ' /scratch tmpfs ' /proc/mounts"
        result = engine.run(column, "--read-only", "--tmpfs", "/scratch", engine.image(BUSYBOX), "sh", "-c", script)
        assert result.code == 0, str(result)

    @pytest.mark.parametrize("mode", ["rw", "ro"])
    def test_volume(self, engine: DockerLike, column: Column, tmp_path: Path, mode: str) -> None:
        """A volume is kept with what is in it, and is as writable as it was asked to be."""
        source = volume(engine, tmp_path)
        command = ("sh", "-c", "cat /data/file; echo new 2>/dev/null > /data/new && echo wrote")
        result = engine.run(column, "-v", f"{source}:/data:{mode}", engine.image(BUSYBOX), *command)
        assert result.out == ("old\nwrote\n" if mode == "rw" else "old\n"), str(result)
        assert (source / "new").exists() == (mode == "rw")

    @pytest.mark.parametrize("image", [PYTHON, NODE])
    def test_unmodified_image(self, engine: DockerLike, column: Column, image: str) -> None:
        """Debian's Python and Node do their ordinary things as an ordinary user."""
        command = ("python3", "-c", PYTHON_PROGRAM) if image == PYTHON else ("node", "-e", NODE_PROGRAM)
        result = engine.run(column, "--user", "1000:1000", engine.image(image), *command)
        assert result.code == 0, str(result)
        expected = ["1000", "true", "child"] if image == NODE else ["1000", "b'x'", "b'child\\n'"]
        assert result.out.split()[-3:] == expected, str(result)

    # exec

    def test_exec(self, engine: DockerLike, column: Column) -> None:
        with engine.detached(column, engine.image(BUSYBOX), *SLEEP) as name:
            result = engine.do("exec", "-e", "X=y", name, "sh", "-c", "echo $X; echo err >&2; exit 3")
            assert (result.code, result.out, result.err) == (3, "y\n", "err\n"), str(result)
            assert engine.must("exec", "--user", "1000:1000", name, "id", "-u") == "1000"
            assert engine.must("exec", "--workdir", "/work", name, "pwd") == "/work"
            assert engine.do("exec", "-i", name, "cat", input="in").out == "in"
            assert engine.do("exec", name, "/nowhere/nothing").code in (126, 127)
            self.talk(engine, ["exec", "-it", name, "sh", "-c", TERMINAL])
            # docker exec c nginx -s reload: a signal from an exec'd process to the first one
            engine.do("exec", name, "sh", "-c", "kill -USR1 1")  # may be killed itself, with its namespace
            assert engine.must("wait", name) == "6"

    # signals and states

    def test_stop_and_kill(self, engine: DockerLike, column: Column) -> None:
        """stop sends SIGTERM; kill sends SIGKILL (137) or the signal named."""
        for command, code in ((("stop",), 5), (("kill",), 137), (("kill", "--signal", "USR1"), 6)):
            with engine.detached(column, engine.image(BUSYBOX), *SLEEP) as name:
                wait_for(partial(is_up, engine, name), 10, "the container's first line")
                engine.must(*command, name)
                assert engine.must("wait", name) == str(code)

    def test_restart(self, engine: DockerLike, column: Column) -> None:
        """restart is kill, delete, create and start: the second create is lowered as the first."""
        with engine.detached(column, engine.image(BUSYBOX), *SLEEP) as name:
            first = engine.pid(name)
            before = evidence.status_of(first)
            engine.must("restart", "--time", "0", name)
            assert engine.pid(name) != first
            after = evidence.status_of(engine.pid(name))
            same = (*evidence.CAP_SETS, "NoNewPrivs", "Seccomp")
            assert [before[key] for key in same] == [after[key] for key in same]
            assert engine.must("exec", name, "echo", "again") == "again"

    def test_pause_and_unpause(self, engine: DockerLike, column: Column) -> None:
        with engine.detached(column, engine.image(BUSYBOX), *SLEEP) as name:
            pid = engine.pid(name)
            engine.must("pause", name)
            assert cgroup.frozen(pid) and engine.state(name)["Paused"]
            engine.must("unpause", name)
            assert not cgroup.frozen(pid) and not engine.state(name)["Paused"]

    def test_update(self, engine: DockerLike, column: Column) -> None:
        with engine.detached(column, "--memory", "200m", engine.image(BUSYBOX), *SLEEP) as name:
            pid = engine.pid(name)
            assert cgroup.memory(pid) == 200 << 20
            engine.must("update", "--memory", "100m", "--memory-swap", "100m", "--cpus", "0.5", name)
            assert (cgroup.memory(pid), cgroup.cpus(pid)) == (100 << 20, 0.5)

    def test_top(self, engine: DockerLike, column: Column) -> None:
        with engine.detached(column, engine.image(BUSYBOX), "sleep", "1000") as name:
            assert "sleep 1000" in engine.must("top", name)

    def test_stats(self, engine: DockerLike, columns: list[Column]) -> None:
        """All columns in one call: docker takes two seconds for a sample."""
        with ExitStack() as stack:
            start = [engine.detached(column, engine.image(BUSYBOX), *SLEEP) for column in columns]
            names = [stack.enter_context(one) for one in start]
            rows = engine.must("stats", "--no-stream", "--format", "{{.PIDs}} {{.MemUsage}}", *names).splitlines()
            assert len(rows) == len(columns) and all(re.match(r"[1-9]\d* [1-9]", row) for row in rows), rows

    def test_twenty_at_once(self, engine: DockerLike, columns: list[Column]) -> None:
        """Each says its own number and stays while the others come; under `agent`, and with all columns mixed."""
        image = engine.image(BUSYBOX)
        agent = [column for column in columns if column.name == "agent"] or columns
        for kinds in (agent, columns):
            each = [
                engine.words("run", kinds[n % len(kinds)], "--rm", image, "sh", "-c", f"echo n{n}; sleep 0.5")
                for n in range(20)
            ]
            assert at_once(engine, each) == [f"n{n}\n" for n in range(20)]


def is_up(engine: DockerLike, name: str) -> bool:
    """Has SLEEP set its traps?"""
    return "up" in engine.do("logs", name).out


def at_once(engine: Engine, each: Iterable[Sequence[str]]) -> list[str]:
    """What each of these commands printed, all running at the same time; any failure is shown as the user sees it."""
    pipe = subprocess.PIPE
    argvs = [[*engine.client, *words] for words in each]
    children = [engine.room.popen(argv, env=engine.env, stdout=pipe, stderr=pipe) for argv in argvs]
    ends = [child.communicate(timeout=60) for child in children]
    results = [Result(tuple(argv), child.returncode, *end) for argv, child, end in zip(argvs, children, ends)]
    failed = [str(result) for result in results if result.code != 0]
    assert not failed, "\n".join(failed)
    return [result.out for result in results]


def volume(engine: DockerLike, tmp_path: Path) -> Path:
    """A directory of root's with one file, on a path that root alone can change."""
    source = engine.room.base / "volumes" / tmp_path.name
    source.mkdir(parents=True)
    source.chmod(0o755)
    (source / "file").write_text("old\n")
    return source
