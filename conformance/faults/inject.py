"""One call of agentshim in which one system call fails, or is the last: by strace, in a room.

Belongs here: the stage (a delegate that notes what it got), the injection, and what is found afterwards. Next door:
`scenarios` are the calls, `judge` says what an outcome is worth, `__main__` runs all of them.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from conformance.columns import CONFIG, REPOSITORY, python
from conformance.room import Result, Room

# strace's error would be read as an address: brk(2) has no other answer.
UNTOUCHED = ("brk",)
ERRORS = ("ENOSPC", "EIO", "EMFILE", "EACCES")
KILL = "SIGKILL"
FAULTS = (*ERRORS, KILL)
STATE = "/run/agentshim"
KILL_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x80000000)  # a struct sock_filter: RET, SECCOMP_RET_KILL_PROCESS

# What it got, before anything else: words, environment, config.json, process.json, resources on stdin.
DELEGATE = """#!/bin/sh
cd {seen} || exit 99
echo x >> count
for word in "$@"; do printf '%s\\n' "$word"; done > argv
cat /proc/$$/environ > environ
cp {bundle}/config.json config.json
cp {home}/process.json process.json 2> /dev/null
for word in "$@"; do case $word in {state}/process-*) cp "$word" process.json;; esac; done
case " $* " in *" update "*) cat > stdin;; esac
exit 0
"""


@dataclass(frozen=True)
class Seen:
    """What is there after a call. `ran`: how often the delegate was executed; `got`: the files that it noted;
    `left`: names in the bundle, and in our state; `syscall`: the line of the trace that was tampered with.
    """

    result: Result
    ran: int
    got: dict[str, bytes]
    config: bytes
    left: tuple[str, ...]
    syscall: str


def _copied(room: Room) -> Path:
    """Our tree as it is now: an edit during a long run would be half of it."""
    tree = room.base / "tree"
    for name in ("shim", "hooks"):
        shutil.copytree(REPOSITORY / name, tree / name)
    (tree / "native/build").mkdir(parents=True)
    for name in ("agentshim", "agentshim-net", "python", "site"):
        if (REPOSITORY / "native/build" / name).exists():
            shutil.copy2(REPOSITORY / "native/build" / name, tree / "native/build" / name)
    return tree


class Stage:
    """A bundle, a delegate that only notes, and a state directory, in `room`."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.bundle, self.home, self.seen = room.base / "bundle", room.base / "home", room.base / "seen"
        for path in (self.bundle / "rootfs", self.home, self.seen, room.base / "root"):
            path.mkdir(parents=True, mode=0o755)
        self.delegate = room.base / "runc"
        text = DELEGATE.format(seen=self.seen, bundle=self.bundle, home=self.home, state=STATE)
        self.delegate.write_text(text)
        self.delegate.chmod(0o755)
        self.tree = _copied(room)
        self.compile()
        self.program = str(self.tree / "native/build/agentshim")
        (room.base / "config/config.toml").write_text(CONFIG.replace("{delegate}", str(self.delegate)))
        self.config = self.bundle / "config.json"
        self.network = room.base / "network"  # the host's, as dockerd names it
        self.network.touch()
        done = room.run(["mount", "--bind", "/proc/self/ns/net", str(self.network)])
        assert done.code == 0, done

    def remember(self) -> None:
        """The delegate's own state of the container: where its bundle is, and the filter that it will load."""
        state = self.room.base / "root/c"
        state.mkdir(exist_ok=True)
        (state / "state.json").write_text(json.dumps({"bundle": str(self.bundle)}))
        (state / "seccomp.bpf").write_bytes(KILL_ALL)

    def forget(self) -> None:
        """The container is gone for its delegate."""
        shutil.rmtree(self.room.base / "root/c", ignore_errors=True)

    def compile(self) -> None:
        """Byte code for the copied tree."""
        hot = [python(), "-I", "-S", "-X", "no_debug_ranges", "shim/cold/hotfile.py"]
        for argv in ([python(), "-I", "-m", "compileall", "-q", "shim", "hooks"], hot):
            subprocess.run(argv, cwd=self.tree, check=True, stdout=subprocess.DEVNULL)

    def call(self, words: Sequence[str], inject: str = "", env: dict[str, str] | None = None, input: str = "") -> Seen:
        """Calls agentshim with `words` after the engine's usual options; `inject`: strace's expression, '' for none."""
        for old in self.seen.iterdir():
            old.unlink()
        argv = [self.program, "--root", str(self.room.base / "root"), *words]
        trace = self.room.base / "trace"
        if inject:
            argv = ["strace", "-qq", "-o", str(trace), "-e", "trace=all", *_injected(inject), *argv]
        result = self.room.run(argv, env=env, input=input, timeout=60)
        lines = trace.read_text(errors="replace").splitlines() if inject else []
        return self.look(result, lines)

    def look(self, result: Result, trace: list[str]) -> Seen:
        got = {path.name: path.read_bytes() for path in self.seen.iterdir()}
        ran = got.pop("count", b"").count(b"x")
        return Seen(result, ran, got, self.config.read_bytes(), self.left(), tampered(trace, result.code == -9))

    def left(self) -> tuple[str, ...]:
        """All names in the bundle and in our places of the room."""
        places = f"{self.bundle} {self.home} {STATE} /var/lib/agentshim /var/log/agentshim"
        found = self.room.run(["sh", "-c", f"find {places} 2> /dev/null"]).out.splitlines()
        return tuple(sorted(found))


def _injected(inject: str) -> list[str]:
    return [] if inject == "none" else ["-e", f"inject={inject}"]


class Call(NamedTuple):
    """One system call of a clean run: its name, how many of that name came before it and itself, whose it is, and its
    line in the trace.
    """

    name: str
    number: int
    phase: str
    line: str


def calls(trace: list[str], delegate: str) -> list[Call]:
    """All system calls up to the delegate's execve, that one included. `phase`: 'libc' (before main), 'launcher',
    'python' (the interpreter's start), 'ours'. The first is strace's own execve.
    """
    out: list[Call] = []
    seen: Counter[str] = Counter()
    phase = "libc"
    for line in trace:
        found = CALL.match(line)
        if not found:
            continue
        name = found[1]
        seen[name] += 1
        if phase == "libc" and name not in LIBC:
            phase = "launcher"
        out.append(Call(name, seen[name], phase, line))
        if name == "execve" and line.startswith(f'execve("{delegate}"'):
            return out
        if name == "execve" and len(out) > 1 and "= 0" in line:
            phase = "python"
        if phase == "python" and '/shim/hot"' in line:
            phase = "ours"
    return out


LIBC = ("execve", "arch_prctl", "set_tid_address", "brk", "mmap")  # what musl does before main
CALL = re.compile(r"(\w+)\(")


def tampered(trace: list[str], killed: bool) -> str:
    """The line of the trace in which the fault was; '' where it was nowhere."""
    if killed:
        return next((trace[at - 1] for at, line in enumerate(trace) if line.startswith("+++ killed") and at), "")
    return next((line for line in trace if line.endswith("(INJECTED)")), "")


def expression(fault: str, call: Call) -> str:
    """strace's words for: this system call of the process fails with `fault`, or is where it is killed."""
    how = f"signal={KILL}" if fault == KILL else f"error={fault}"
    return f"{call.name}:{how}:when={call.number}"


def trace_of(stage: Stage) -> list[str]:
    return Path(stage.room.base / "trace").read_text(errors="replace").splitlines()
