"""The audit log and the denials, with real containers: what is recorded, what a log that fails does, what is shown.

The log lies in the room's own /var/log. Next door: tests/unit/test_audit_log.py for records and readers alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from conformance import expect
from conformance.columns import COLUMNS, CONFIG, CRUN, configure, launcher, path_of
from conformance.engines.images import missing
from conformance.oci.bundles import sleeper, spec
from conformance.oci.cli import Runtime
from conformance.oci.conftest import COUNTER, Maker
from conformance.oci.test_hostile_host import mounted
from conformance.room import Result, Room, wait_for
from shim.cold.seccomp import seccomp_records

pytestmark = [
    pytest.mark.oci,
    pytest.mark.skipif(not launcher().exists(), reason=f"SKIPPED LOUDLY: {launcher()} is missing: run `make build`"),
]
AGENT = COLUMNS[1]
LOG = "/var/log/agentshim"
FILE = f"{LOG}/audit.jsonl"


@pytest.fixture
def runtime(the_room: Room) -> Iterator[Runtime]:
    """agentshim under `agent`, over runc, with an empty log."""
    configure(the_room)
    the_room.run(["rm", "-rf", LOG])
    one = Runtime(the_room, path_of(AGENT, the_room), the_room.base / f"a{next(COUNTER)}")
    yield one
    configure(the_room)
    the_room.run(["rm", "-rf", LOG])
    one.clear()


def records(room: Room) -> list[dict[str, Any]]:
    """All records; every line is one."""
    return [json.loads(line) for line in room.run(["cat", FILE]).out.splitlines() if line]


def shim(runtime: Runtime, *words: str) -> Result:
    """One of agentshim's own verbs."""
    return runtime.room.run([runtime.program, *words])


def told(runtime: Runtime, *words: str) -> str:
    done = shim(runtime, *words)
    assert done.code == 0, str(done)
    return done.out


def set_on_failure(room: Room, word: str) -> None:
    configure(room, CONFIG + f'audit_log = "{word}"\n')


def test_every_decision_is_recorded(runtime: Runtime, bundle: Maker) -> None:
    room, made = runtime.room, bundle({**sleeper(f"{runtime.cgroup}/log"), "annotations": {"nerdctl/name": "a-web"}})
    runtime.must("create", "--bundle", str(made.path), "c")
    assert room.run(["stat", "-c", "%a %U", LOG, FILE]).out.split() == ["750", "root", "640", "root"]
    (created,) = records(room)
    runtime.must("start", "c")
    runtime.must("exec", "c", "true")
    runtime.must("update", "--pids-limit", "20", "c")
    runtime.must("update", "--pids-limit", "1000000", "c")
    big = spec()
    big["mounts"].append({"destination": "/h", "type": "bind", "source": "/proc/1", "options": ["rbind", "rw"]})
    assert runtime.call("create", "--bundle", str(bundle(big).path), "refused").code == 1
    assert runtime.call("create", "--bundle", str(made.path), "c").code == 1
    assert runtime.call("exec", "--no-such-option", "c", "true").code == 255
    assert runtime.must("run", "--bundle", str(bundle(spec("echo", "x")).path), "d") == "x\n"
    runtime.must("state", "c")
    every = records(room)
    assert [(one["event.action"], one["event.outcome"]) for one in every] == [
        ("create", "success"),
        ("exec", "success"),
        ("update", "success"),
        ("update", "success"),
        ("create", "failure"),
        ("create", "failure"),
        ("exec", "failure"),
        ("run", "success"),
    ]
    assert created["container.id"] == "c" and created["container.name"] == "a-web"
    assert created["rule.ruleset"] == "agent" and created["agentshim.digest"].startswith("sha256:")
    assert created["agentshim.root"] == str(runtime.root) and created["agentshim.mode"] == "enforce"
    assert {"capabilities", "seccomp", "paths", "resources"} <= set(created["agentshim.lowered"])
    assert every[1]["container.name"] == "a-web" and every[1]["agentshim.digest"] == created["agentshim.digest"]
    assert "agentshim.lowered" not in every[2] and every[3]["agentshim.lowered"] == ["resources"]
    assert every[4]["container.id"] == "refused" and every[4]["error.type"] == "Refused"
    assert every[4]["rule.ruleset"] == "agent" and expect.REFUSAL.fullmatch(every[4]["error.message"])
    assert every[5]["container.id"] == "c" and every[5]["error.type"] == "Refused"
    assert every[6]["error.type"] == "Invalid" and "container.id" not in every[6]

    lines = told(runtime, "audit", "show", "a-web").splitlines()
    assert len(lines) == 5 and "create granted a-web (c) policy agent (" in lines[0]
    assert lines[0].partition("; lowered ")[2].startswith("capabilities, seccomp")
    assert "create refused a-web (c) policy agent (" in lines[4] and "; Refused: resources: " in lines[4]
    assert told(runtime, "audit", "tail", "-n", "2").splitlines()[-1].split()[1:4] == ["run", "granted", "d"]
    assert [json.loads(one) for one in told(runtime, "audit", "tail", "--json").splitlines()] == every
    assert shim(runtime, "audit", "show", "nobody").code == 1


def test_audit_mode_says_what_would_have_been_lost(runtime: Runtime, bundle: Maker) -> None:
    configure(runtime.room, CONFIG.replace('mode = "enforce"', 'mode = "audit"'))
    made = sleeper(f"{runtime.cgroup}/watched")
    made["mounts"].append({"destination": "/h", "type": "bind", "source": "/proc/1", "options": ["rbind", "rw"]})
    runtime.must("run", "--detach", "--bundle", str(bundle(made).path), "c")
    runtime.must("exec", "--cap", "CAP_SYS_ADMIN", "c", "true")
    runtime.must("update", "--pids-limit", "1000000", "c")
    ran, executed, updated = records(runtime.room)
    assert ran["agentshim.mode"] == "audit" and "agentshim.lowered" not in ran
    assert {"capabilities", "mounts"} <= set(ran["agentshim.would_lose"]) and "/h" in ran["agentshim.would_refuse"]
    assert "capabilities" in executed["agentshim.would_lose"]
    assert updated["agentshim.would_lose"] == ["resources"]
    assert "would lower" in told(runtime, "audit", "tail")


# A log that fails


def attempts(runtime: Runtime, bundle: Maker) -> dict[str, Result]:
    """A container that was made while the log was fine, and what becomes of each verb now."""
    made = bundle(spec())
    before = made.config.read_bytes()
    out = {
        "exec": runtime.call("exec", "old", "echo", "x"),
        "update": runtime.call("update", "--pids-limit", "20", "old"),
        "create": runtime.call("create", "--bundle", str(made.path), "new"),
    }
    if out["create"].code:
        assert made.config.read_bytes() == before and runtime.status("new") == ""
    else:
        runtime.must("delete", "--force", "new")
    return out


def judge(out: dict[str, Result], failing: set[str], words: str) -> None:
    for verb, result in out.items():
        if verb in failing:
            lines = result.err.splitlines()
            assert result.code == (255 if verb == "exec" else 1), str(result)
            assert len(lines) == 1 and expect.REFUSAL.fullmatch(lines[0]), str(result)
            assert words in lines[0] and lines[0].startswith(f"audit: {LOG}"), str(result)
            assert words or "No space left on device" in lines[0] or " bytes of " in lines[0], str(result)
        else:
            assert result.code == 0 and not result.err, str(result)
    assert "exec" in failing or out["exec"].out == "x\n"


FAILURES = {"refuse": {"create", "exec", "update"}, "refuse-create": {"create"}, "continue": set(), "off": set()}


@pytest.mark.parametrize("word", FAILURES)
def test_full_disk(runtime: Runtime, bundle: Maker, word: str) -> None:
    """A small tmpfs in place of the log's directory: the first record on it is torn in its middle, at a page's end."""
    room = runtime.room
    runtime.must("run", "--detach", "--bundle", str(bundle(sleeper(f"{runtime.cgroup}/full")).path), "old")
    set_on_failure(room, word)
    whole = json.dumps({"@timestamp": "2026-01-01T00:00:00.000Z", "event.action": "filling", "x": "x" * 3900})
    with mounted(room, LOG, "-t", "tmpfs", "-o", "size=8k,mode=750", "tmpfs"):
        room.run(["sh", "-c", f"cat > {FILE}; head -c 4096 /dev/zero > {LOG}/fill"], input=whole + "\n")
        failing = FAILURES[word]
        judge(attempts(runtime, bundle), failing, "")
        if word == "off":
            assert len(records(room)) == 1
            return
        lines = told(runtime, "audit", "tail").splitlines()
        assert len(lines) == 2 and lines[1].startswith('no record: torn? {"@timestamp":')
        assert json.loads(told(runtime, "audit", "tail", "--json").splitlines()[1])["event.kind"] == "pipeline_error"
        room.run(["rm", f"{LOG}/fill"])
        runtime.must("exec", "old", "true")
        torn, added = told(runtime, "audit", "tail").splitlines()[1:]
        assert torn.startswith("no record: torn? ") and " exec granted old policy agent (" in added


def test_full_disk_refuses_by_default(runtime: Runtime, bundle: Maker) -> None:
    room = runtime.room
    runtime.must("run", "--detach", "--bundle", str(bundle(sleeper(f"{runtime.cgroup}/full")).path), "old")
    with mounted(room, LOG, "-t", "tmpfs", "-o", "size=4k,mode=750", "tmpfs"):
        room.run(["sh", "-c", f"head -c 4096 /dev/zero > {LOG}/fill"])
        judge(attempts(runtime, bundle), {"create"}, "No space left on device")


def test_read_only_directory(runtime: Runtime, bundle: Maker) -> None:
    room = runtime.room
    runtime.must("run", "--detach", "--bundle", str(bundle(sleeper(f"{runtime.cgroup}/ro")).path), "old")
    room.run(["mount", "--bind", LOG, LOG])
    with mounted(room, LOG, "-o", "remount,ro,bind"):
        judge(attempts(runtime, bundle), {"create"}, "Read-only file system")


BAD = {
    "writable by others": (f"chmod 777 {LOG}", "mode 0777"),
    "writable by a group": (f"chmod 770 {LOG}", "mode 0770"),
    "another's": (f"chown 1000:1000 {LOG}", "owner uid 1000"),
    "a link": (f"mv {LOG} /var/log/elsewhere; ln -s elsewhere {LOG}", "a symbolic link"),
    "a file": (f"rm -r {LOG}; echo > {LOG}", "no directory"),
    "the log writable by others": (f"chmod 666 {FILE}", "mode 0666"),
    "the log a link": (f"mv {FILE} {LOG}/x; ln -s x {FILE}", "a symbolic link"),
    "the log a FIFO": (f"rm {FILE}; mkfifo {FILE}", "no regular file"),
    "a dangling link": (f"rm -r {LOG}; ln -s nowhere {LOG}", "a symbolic link"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_places(runtime: Runtime, bundle: Maker, kind: str) -> None:
    """Nothing is written where others could have put a trap, or can change what was written."""
    room, (script, words) = runtime.room, BAD[kind]
    runtime.must("run", "--detach", "--bundle", str(bundle(sleeper(f"{runtime.cgroup}/bad")).path), "old")
    try:
        room.run(["sh", "-c", script])
        listing = room.run(["sh", "-c", "ls -lR --time-style=full-iso /var/log/agentshim/ /var/log/elsewhere 2>&1"]).out
        judge(attempts(runtime, bundle), {"create"}, words)
        after = room.run(["sh", "-c", "ls -lR --time-style=full-iso /var/log/agentshim/ /var/log/elsewhere 2>&1"]).out
        assert listing == after
        made = bundle({**spec(), "ociVersion": "x"})
        result = runtime.call("create", "--bundle", str(made.path), "new")
        assert result.code == 1 and "; not recorded: audit: " in result.err and result.err.count("\n") == 1
    finally:
        room.run(["rm", "-rf", "/var/log/elsewhere", LOG])


def test_off(runtime: Runtime, bundle: Maker) -> None:
    set_on_failure(runtime.room, "off")
    runtime.must("run", "--bundle", str(bundle(spec("true")).path), "c")
    assert runtime.room.run(["ls", LOG]).code != 0


def test_rotated(runtime: Runtime, bundle: Maker) -> None:
    """As logrotate does it: rename, compress later; every call opens the file anew."""
    room = runtime.room
    for name in ("a", "b", "a2"):
        runtime.must("run", "--bundle", str(bundle(spec("true")).path), name)
        room.run(["sh", "-c", f"test -e {FILE}.1 && gzip -c {FILE}.1 > {FILE}.2.gz; mv {FILE} {FILE}.1"])
    runtime.must("run", "--bundle", str(bundle(spec("true")).path), "a")
    assert [one["container.id"] for one in records(room)] == ["a"]
    assert [one.split()[3] for one in told(runtime, "audit", "show", "b").splitlines()] == ["b"]
    tail = [one.split()[3] for one in told(runtime, "audit", "tail").splitlines()]
    assert len(tail) == 2 and tail[-1] == "a", "what the log lacks, the newest rotated file has"


def test_two_hundred_writers_at_once(runtime: Runtime) -> None:
    """Refused creates, ten at a time; every line is whole, none is missing."""
    argv = [runtime.program, *runtime.options(), "create", "--bundle", "/nowhere"]
    null = subprocess.DEVNULL
    for number in range(0, 200, 10):
        children = [
            runtime.room.popen([*argv, f"w{number + one}"], stdin=null, stdout=null, stderr=null) for one in range(10)
        ]
        assert {child.wait(30) for child in children} == {1}
    found = sorted(int(one["container.id"][1:]) for one in records(runtime.room))
    assert found == list(range(200))


def test_follow(runtime: Runtime, bundle: Maker) -> None:
    pipe = subprocess.PIPE
    child = runtime.room.popen([runtime.program, "audit", "tail", "--follow", "--json"], stdout=pipe, stderr=pipe)
    try:
        runtime.must("run", "--bundle", str(bundle(spec("true")).path), "a")
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["container.id"] == "a"
        runtime.room.run(["mv", FILE, f"{FILE}.1"])
        runtime.must("run", "--bundle", str(bundle(spec("true")).path), "b")
        assert json.loads(child.stdout.readline())["container.id"] == "b"
    finally:
        child.kill()
        child.communicate()


# Denials

QUIET = """schema = 1
name = "loud"
about = "agent, and the kernel logs what its filter denies"
base = "agent"
[seccomp]
log = true
"""


def why_no_log() -> str:
    """The probe: what keeps this kernel from logging a denial, ''."""
    if why := missing("busybox"):
        return why
    if not os.access(CRUN, os.X_OK):
        return f"{CRUN} is not installed, and runc before 1.2 takes no flags"
    return unlogged("errno")


def unlogged(action: str) -> str:
    """Why nothing that the kernel logs of this action can be read here, ''."""
    kernel, live = seccomp_records.Kernel(), seccomp_records.Socket()
    kernel.close()
    live.close()
    return seccomp_records.unlogged(action) or kernel.missing or live.missing


@pytest.fixture
def loud(the_room: Room) -> Iterator[Runtime]:
    """A policy with log = true, over crun."""
    if why := why_no_log():
        pytest.skip(f"SKIPPED LOUDLY: the kernel can log no denial here: {why}")
    where = the_room.base / "config" / "policies"
    where.mkdir(exist_ok=True)
    (where / "loud.toml").write_text(QUIET)
    configure(the_room, CONFIG.replace('default = "agent"', 'default = "loud"'), CRUN)
    one = Runtime(the_room, path_of(AGENT, the_room), the_room.base / f"d{next(COUNTER)}")
    yield one
    one.clear()
    (where / "loud.toml").unlink()
    configure(the_room)


def denying(runtime: Runtime) -> dict[str, Any]:
    """Waits, then makes a user namespace, which `agent` denies, again and again."""
    made = spec("sh", "-c", "while :; do unshare -U true 2>/dev/null; sleep 0.3; done", cgroup=f"{runtime.cgroup}/deny")
    engine = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "flags": [], "syscalls": []}
    made["linux"]["seccomp"] = engine
    return made


@contextmanager
def followed(runtime: Runtime, name: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The denials of system calls that `denied --follow --json` shows within 20 s, as they come."""
    pipe = subprocess.PIPE
    child = runtime.room.popen([runtime.program, "denied", name, "--follow", "--json"], stdout=pipe, stderr=pipe)
    late = threading.Timer(20, child.kill)
    late.start()
    try:
        assert child.stdout is not None and child.stderr is not None
        while "names a process, not a container" not in child.stderr.readline():
            pass  # it has said what the reader must know, and so it listens
        rows = (json.loads(line) for line in child.stdout)
        yield (one for one in rows if one["event.action"] == "seccomp_denied")
    finally:
        late.cancel()
        child.kill()
        child.communicate()


def test_a_denial_is_seen(loud: Runtime, bundle: Maker) -> None:
    made = bundle(denying(loud))
    loud.must("run", "--detach", "--bundle", str(made.path), "c")
    assert "SECCOMP_FILTER_FLAG_LOG" in made.read()["linux"]["seccomp"]["flags"]
    with followed(loud, "c") as rows:
        row = next(one for one in rows if one["agentshim.call"] == "unshare")
    assert row["agentshim.arch"] == os.uname().machine
    assert row["process.executable"] == "/bin/busybox" and row["process.name"] == "unshare" and row["process.pid"] > 1
    assert row["agentshim.allow"].startswith('[seccomp] add = [{ names = ["unshare"], why = ')
    assert row["agentshim.action"] == "errno" and row["event.outcome"] == "failure"

    def listed() -> str:
        done = shim(loud, "denied", "c")
        assert done.code == 0 and "the kernel logs no arguments of a call" in done.err, str(done)
        return done.out if " unshare (" in done.out else ""

    text = wait_for(listed, 20, "a record that the kernel's rate limit lets through", 1)
    assert " by /bin/busybox (unshare), " in text and ": denied by the policy" in text
    assert '    to allow: [seccomp] add = [{ names = ["unshare"]' in text


def test_while_the_process_lives_it_is_certain(loud: Runtime, bundle: Maker) -> None:
    """The engine's own profile denies what every shell asks at its start; the shell lives on."""
    made = sleeper(f"{loud.cgroup}/sure")
    rule = {"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    native = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "flags": []}
    made["linux"]["seccomp"] = {**native, "syscalls": [rule]}
    loud.must("create", "--bundle", str(bundle(made).path), "c")
    with followed(loud, "c") as rows:
        loud.must("start", "c")
        row = next(one for one in rows if one["agentshim.call"] == "getppid")
        assert row["agentshim.certain"] and row["process.pid"] == loud.state("c")["pid"]
        assert row["agentshim.by"] == "denied by the engine"
        assert row["agentshim.allow"] == "the engine's own profile: --security-opt seccomp=FILE"


def test_whose_a_denial_is(loud: Runtime, bundle: Maker) -> None:
    """While the process lives, its control group says it: the neighbour's denials are nobody else's."""
    held = denying(loud)
    held["process"]["args"][2] = "while :; do chroot / sleep 1 2>/dev/null; sleep 0.3; done"
    loud.must("run", "--detach", "--bundle", str(bundle(held).path), "guilty")
    other = sleeper(f"{loud.cgroup}/quiet")
    loud.must("run", "--detach", "--bundle", str(bundle(other).path), "quiet")
    time.sleep(1.5)
    rows = [json.loads(line) for line in shim(loud, "denied", "quiet", "--json").out.splitlines()]
    assert not [one for one in rows if one["event.action"] == "seccomp_denied" and one["agentshim.certain"]]


def test_a_filter_that_does_not_log_says_so(runtime: Runtime, bundle: Maker) -> None:
    runtime.must("run", "--detach", "--bundle", str(bundle(sleeper(f"{runtime.cgroup}/q")).path), "c")
    done = shim(runtime, "denied", "c")
    assert done.code == 0, str(done)
    assert "its filter logs no call that is denied with an errno" in done.err and "[seccomp] log = true" in done.err


def test_runc_kills_are_logged_without_the_flag(runtime: Runtime, bundle: Maker) -> None:
    """What runc 1.1 can: a filter that kills is logged by the kernel in any case."""
    if why := unlogged("kill_process"):
        pytest.skip(f"SKIPPED LOUDLY: the kernel logs nothing here: {why}")
    made = spec("sh", "-c", "sleep 1; unshare -U true; sleep 30", cgroup=f"{runtime.cgroup}/kill")
    rule = {"names": ["unshare"], "action": "SCMP_ACT_KILL_PROCESS"}
    native = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "flags": []}
    made["linux"]["seccomp"] = {**native, "syscalls": [rule]}
    runtime.must("create", "--bundle", str(bundle(made).path), "c")
    with followed(runtime, "c") as rows:
        runtime.must("start", "c")
        row = next(one for one in rows if one["agentshim.call"] == "unshare")
    assert row["agentshim.action"] == "kill_process"
    assert row["agentshim.by"] == "denied by the policy for some arguments and the engine"
    assert row["agentshim.allow"].endswith(", and the engine's own profile: --security-opt seccomp=FILE")
