"""Faults in our two hooks, which the delegate runs while the container's init waits: a failure stops the container.

`agentshim hook` compares what was mounted: under no fault may it pass what was exchanged. `agentshim-net` builds the
network's lock: it may end well only when all of it is there. Belongs here: both, called as runc calls them, for a
container that real runc has made, and for a bare network namespace. Next door: `inject` does the same for the verbs.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conformance import expect
from conformance.columns import RUNC
from conformance.engines import images
from conformance.faults import inject, judge
from conformance.faults.inject import KILL, STATE, Stage
from conformance.faults.outcomes import Outcomes
from conformance.oci.bundles import spec
from conformance.room import Result, Room, wait_for

PASSED, FILTERED = judge.LOWERED, judge.EARLY
SIGSYS = -31


def verdict(result: Result, fault: str, call: inject.Call, complete: Callable[[], bool]) -> str:
    """What an outcome is worth. `complete`: whether all that the hook is for has been done, asked after a success."""
    if result.code == 0:
        return PASSED if complete() else f"{judge.WRONG}: success, and not all is done"
    if fault == KILL:
        return judge.KILLED
    if result.code == SIGSYS:
        return FILTERED  # a call that strace takes away looks to the hook's own filter like none that it may make
    lines = result.err.splitlines()
    if result.code == 1 and not lines and call.line.startswith("fcntl(2, F_GETFD"):
        return judge.REFUSED  # without a word: it takes its stderr for closed
    if call.phase in ("libc", "python") and not (len(lines) == 1 and expect.REFUSAL.fullmatch(lines[0])):
        return judge.EARLY
    if len(lines) != 1 or not expect.REFUSAL.fullmatch(lines[0]) or result.code != 1:
        return f"{judge.WRONG}: exit {result.code}, {len(lines)} lines: {result.err[:600]!r}"
    if any(words in lines[0].lower() for words in judge.FORBIDDEN) or ": report this" in lines[0]:
        return f"{judge.WRONG}: {lines[0]}"
    return judge.REFUSED


def strace(room: Room, words: list[str], input: str, how: str = "") -> Result:
    """`words` under strace, with the fault that `how` says."""
    trace = room.base / "trace"
    faults = ["-e", f"inject={how}"] if how else []
    return room.run(["strace", "-qq", "-o", str(trace), "-e", "trace=all", *faults, *words], input=input, timeout=60)


def tried(
    name: str,
    room: Room,
    faults: Collection[str],
    every: int,
    call: Callable[[str], tuple[Result, Callable[[], bool]]],
    deadly: str = "",
) -> Outcomes:
    """Each fault in every `every`th system call of `call(expression)`, which gives the result and `complete`; and a
    kill in each whose line in the trace matches the expression `deadly`.
    """
    out = Outcomes(name)
    clean, complete = call("")
    assert clean.code == 0 and complete(), clean
    calls = inject.calls((room.base / "trace").read_text(errors="replace").splitlines(), "")
    out.calls = len(calls)
    some = [one for one in calls[1::every] if one.name not in inject.UNTOUCHED]
    both = [(fault, one) for one in some for fault in faults]
    both += [(KILL, one) for one in calls[1:] if deadly and KILL in faults and re.match(deadly, one.line)]
    for fault, one in dict.fromkeys(both):
        result, complete = call(inject.expression(fault, one))
        word = verdict(result, fault, one, complete)
        out.counts[fault, word.partition(":")[0]] += 1
        if word.startswith(judge.WRONG):
            out.wrong.append(f"{name}: {one.name} {one.number} ({one.phase}) {fault}\n    {word}")
    return out


@contextmanager
def created(stage: Stage) -> Iterator[tuple[list[str], str, Path]]:
    """A container that real runc is making, held where it runs createRuntime hooks: our hook's words, its stdin, and
    our record of it.
    """
    room, root = stage.room, str(stage.room.base / "root")
    (stage.bundle / "rootfs").rmdir()
    images.unpack(images.build("busybox", room.base / "rootfs.tar", ["sh", "sleep"]), stage.bundle / "rootfs")
    volume, told, go = room.base / "volume", room.base / "told", room.base / "go"
    volume.mkdir()
    config = spec("sleep", "1000", cgroup=f"/{room.base.name}/hook")
    config["mounts"].append({"destination": "/work", "type": "bind", "source": str(volume), "options": ["rbind"]})
    stage.config.write_text(json.dumps(config))
    done = stage.call(["create", "--bundle", str(stage.bundle), "c"])
    assert done.ran == 1, done.result
    lowered = json.loads(stage.config.read_text())
    assert ["agentshim", "hook", root, "c"] in [one["args"] for one in lowered["hooks"]["createRuntime"]]
    script = f"cat > {told}.new; mv {told}.new {told}; while [ ! -e {go} ]; do sleep 0.05; done"
    lowered["hooks"]["createRuntime"] = [{"path": "/bin/sh", "args": ["sh", "-c", script]}]
    stage.config.write_text(json.dumps(lowered))
    null = subprocess.DEVNULL
    words = [RUNC, "--root", root, "create", "--bundle", str(stage.bundle), "c"]
    child = room.popen(words, stdin=null, stdout=null, stderr=null)
    try:
        wait_for(told.exists, 20, "runc to run the hooks")
        record = room.run(["sh", "-c", f"echo {STATE}/*.json"]).out.strip()
        yield [stage.program, "hook", root, "c"], told.read_text(), Path(record)
    finally:
        go.touch()
        child.wait(20)
        room.run([RUNC, "--root", root, "delete", "--force", "c"])


def hook(stage: Stage, faults: Collection[str], every: int) -> Outcomes:
    """`agentshim hook` for what was checked: it passes, or says why not."""
    with created(stage) as (words, state, _):
        return tried(
            "hook", stage.room, faults, every, lambda how: (strace(stage.room, words, state, how), lambda: True)
        )


def exchanged(stage: Stage, faults: Collection[str], every: int) -> Outcomes:
    """The same where another source was mounted: it must never pass."""
    with created(stage) as (words, state, record):
        room = stage.room
        told: dict[str, Any] = json.loads(room.run(["cat", str(record)]).out)
        for mount in told["pins"]["mounts"]:
            mount[1] = [["0:0", "/elsewhere"]] if mount[0] == "/work" else mount[1]
        before = room.run(["cat", str(record)]).out
        passed = []

        def call(how: str) -> tuple[Result, Callable[[], bool]]:
            if not how:  # the calls are counted on what passes
                return strace(room, words, state), lambda: True
            room.run(["sh", "-c", f"cat > {record}"], input=json.dumps(told))
            result = strace(room, words, state, how)
            room.run(["sh", "-c", f"cat > {record}"], input=before)
            passed.append(result.code == 0)
            return result, lambda: False

        out = tried("hook, exchanged", room, faults, every, call)
        assert passed and not all(passed)
        return out


def net(stage: Stage, faults: Collection[str], every: int) -> Outcomes:
    """`agentshim-net` with the lock's plan: what ends well has left all of its rules."""
    room = stage.room
    stage.config.write_text(json.dumps(spec("sh")))
    done = stage.call(["create", "--bundle", str(stage.bundle), "c"])
    assert done.ran == 1, done.result
    plan = room.run(["sh", "-c", f"echo {STATE}/*.net"]).out.strip()
    program = str(Path(stage.program).with_name("agentshim-net"))
    whole: list[str] = []

    def call(how: str) -> tuple[Result, Callable[[], bool]]:
        null = subprocess.DEVNULL
        init = room.popen(["unshare", "--net", "sleep", "1000"], stdin=null, stdout=null, stderr=null)
        ours = Path("/proc/self/ns/net").readlink()
        wait_for(lambda: Path(f"/proc/{init.pid}/ns/net").readlink() != ours, 5, "a network namespace")
        try:
            result = strace(room, [program, plan], json.dumps({"ociVersion": "1.0.2", "id": "c", "pid": init.pid}), how)
            found = rules(room, init.pid)
        finally:
            init.kill()
            init.wait()
        if not whole:
            whole.append(found)
            assert len(found.splitlines()) > 20, found
        return result, lambda: found == whole[0]

    return tried("agentshim-net", room, faults, every, call)


def rules(room: Room, pid: int) -> str:
    """The rules in the network namespace of a process, without what differs from one reading to the next."""
    return room.run(["nsenter", "--net", "--target", str(pid), "nft", "--stateless", "list", "ruleset"]).out


HOOKS: dict[str, Callable[[Stage, Collection[str], int], Outcomes]] = {"hook": hook, "exchanged": exchanged, "net": net}
