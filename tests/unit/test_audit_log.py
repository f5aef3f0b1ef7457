"""The audit log and the kernel's records of denials, without a container: what is written, what is read, what is shown.

Next door: conformance/oci/test_audit_log.py has real containers and full disks.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import stat
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shim import argv, audit, cli, plan, policy, product
from shim.cold import audit as reader
from shim.cold import denied
from shim.cold.policy import compile as cold
from shim.cold.policy import policy_source
from shim.cold.seccomp import seccomp_records, seccomp_source
from shim.dim import seccomp
from shim.errors import HostError, Invalid, Refused, printable
from shim.kernel import Facts
from shim.seccomp.vocabulary import FLAG_LOG
from tests.unit.policy_host import make_host
from tests.unit.test_policy_hints import everything, facts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: the log must be root's")
RAW = "\x1b[31m\x9b\u202e\x07\r\n\x7f"  # colours, the end of an escape, text turned around, a bell


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(audit, "DIRECTORY", str(tmp_path / "log"))
    return tmp_path / "log" / audit.NAME


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_bytes().splitlines() if line]


def entry(verb: str = "create", mode: str = "enforce", name: str = "web") -> audit.Entry:
    one = audit.Entry(verb, "c0ffee")
    one.of("/run/runc", {"policy": "agent", "digest": "sha256:00", "mode": mode, "name": name})
    return one


# Writing


def test_a_record(log: Path) -> None:
    entry().granted(["seccomp"], denied=["mmap: too long"])
    entry(mode="audit").granted(["mounts"], "mounts: no")
    assert entry("exec").refused(Refused("user", "uid", "0", "non-root", "ask for another")) == ""
    granted, watched, refused = lines(log)
    assert granted.pop("@timestamp")[-1] == "Z"
    assert granted == {
        "event.kind": "event",
        "event.action": "create",
        "container.id": "c0ffee",
        "container.name": "web",
        "rule.ruleset": "agent",
        "agentshim.digest": "sha256:00",
        "agentshim.mode": "enforce",
        "agentshim.root": "/run/runc",
        "event.outcome": "success",
        "agentshim.lowered": ["seccomp"],
        "agentshim.denied": ["mmap: too long"],
    }
    assert "agentshim.denied" not in watched
    assert watched["agentshim.would_lose"] == ["mounts"] and watched["agentshim.would_refuse"] == "mounts: no"
    assert refused["event.outcome"] == "failure" and refused["error.type"] == "Refused"
    assert refused["error.message"] == "user: uid: asked 0, ceiling non-root: ask for another"
    assert stat.S_IMODE(log.stat().st_mode) == 0o640 and stat.S_IMODE(log.parent.stat().st_mode) == 0o750


def test_every_byte_of_the_file_is_plain(log: Path) -> None:
    """Control characters and bytes that are not UTF-8 (in argv) are escaped and cut, in file and on the terminal."""
    one = audit.Entry("create", RAW + "\udcff" + "x" * 5000)
    assert one.refused(Invalid("argv", "id", RAW + "\udcfe", "plain", "name it\x1b otherwise" + "y" * 9000)) == ""
    data = log.read_bytes()
    assert data.count(b"\n") == 1 and data.isascii() and data.rstrip(b"\n").decode().isprintable()
    assert len(data) < 8192
    (told,) = lines(log)
    shown = reader.sentence(told)
    assert shown.isprintable() and "\\x1b[31m" in shown and "\\x202e" in shown


TORN = [b'{"@timestamp":"2026', b"\xff\xfe\x1b]0;title\x07", b'{"event.action":"create"}', b"[]", b"null", b"\0" * 40]


@pytest.mark.parametrize("tail", TORN)
def test_a_torn_line(log: Path, tail: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """The next writer ends it, the reader says what it is, and nothing of it reaches the terminal raw."""
    entry().granted()
    with log.open("ab") as file:
        file.write(tail)
    assert reader.main(["tail"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("no record: torn? ")
    entry("exec").granted()
    assert len(log.read_bytes().splitlines()) == 3
    assert reader.main(["tail"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [one.startswith("no record: torn? ") for one in out] == [False, True, False]
    assert all(one.isprintable() for one in out)
    assert reader.main(["tail", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["event.kind"] for one in rows] == ["event", "pipeline_error", "event"]


WRITER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from shim import audit
audit.DIRECTORY = sys.argv[2]
gate, opened = os.pipe()
children = []
for number in range(200):
    if not (child := os.fork()):
        os.close(opened)
        os.read(gate, 1)
        for n in range(4):
            audit.append({"event.action": "create", "container.id": f"{number}-{n}", "x": "y" * 6000})
        os._exit(0)
    children.append(child)
os.close(opened)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def test_two_hundred_writers_at_once(log: Path) -> None:
    """Longer lines than a page, begun at one moment, behind a torn one: each is whole, none is missing."""
    log.parent.mkdir(mode=0o750)
    log.write_bytes(b'{"torn')
    log.chmod(0o640)
    home = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-I", "-S", "-B", "-c", WRITER, home, str(log.parent)], check=True, timeout=120)
    found = [reader.told(line) for line in log.read_text().splitlines() if line]
    assert found[0] is None and None not in found[1:]
    ids = [one["container.id"] for one in found[1:] if one]
    assert sorted(ids) == sorted(f"{number}-{n}" for number in range(200) for n in range(4))


def _link(log: Path) -> None:
    (log.parent.parent / "there").mkdir()
    log.parent.symlink_to(log.parent.parent / "there")


def _dangling(log: Path) -> None:
    log.parent.symlink_to(log.parent.parent / "nowhere")


def _made(mode: int, owner: int = 0) -> Callable[[Path], None]:
    def make(log: Path) -> None:
        log.parent.mkdir()
        log.parent.chmod(mode)
        os.chown(log.parent, owner, owner)

    return make


def _file(mode: int, owner: int = 0) -> Callable[[Path], None]:
    def make(log: Path) -> None:
        log.parent.mkdir(mode=0o750)
        log.touch()
        log.chmod(mode)
        os.chown(log, owner, owner)

    return make


def _fifo(log: Path) -> None:
    log.parent.mkdir(mode=0o750)
    os.mkfifo(log)


def _linked(log: Path) -> None:
    log.parent.mkdir(mode=0o750)
    log.symlink_to("/etc/passwd")


BAD = {
    "link": (_link, "a symbolic link"),
    "dangling": (_dangling, "a symbolic link"),
    "world": (_made(0o1777), "mode 1777"),
    "group": (_made(0o770), "mode 0770"),
    "owner": (_made(0o750, 1000), "owner uid 1000"),
    "file-world": (_file(0o646), "mode 0646"),
    "file-owner": (_file(0o640, 1000), "owner uid 1000"),
    "file-fifo": (_fifo, "no regular file"),
    "file-link": (_linked, "a symbolic link"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_places(log: Path, kind: str) -> None:
    make, words = BAD[kind]
    make(log)
    with pytest.raises(HostError, match=words):
        entry().granted()
    assert not log.exists() or log.is_fifo() or log.resolve() == Path("/etc/passwd") or log.stat().st_size == 0


@pytest.mark.parametrize("word", ["refuse", "refuse-create", "continue", "off"])
@pytest.mark.parametrize("verb", argv.RECORDED)
def test_who_is_refused_without_a_record(log: Path, verb: str, word: str) -> None:
    _made(0o777)(log)
    one = entry(verb)
    one.on_failure = word
    wanted = word == "refuse" or (word == "refuse-create" and verb in ("create", "run", "restore"))
    if wanted:
        with pytest.raises(HostError):
            one.granted()
        assert one.refused(HostError("audit", "x", "x", "x", "x")) == "", "it has been said"
    else:
        one.granted()
    fresh = entry(verb)
    fresh.on_failure = word
    said = fresh.refused(Refused("a", "b", "c", "d", "e"))
    assert said == "" if word == "off" else said.startswith("; not recorded: audit: ")


def test_the_default_refuses_what_is_new() -> None:
    assert policy.DEFAULTS["audit_log"] == "refuse-create" == audit.Entry("create").on_failure


def test_a_rootless_call_is_not_recorded(log: Path) -> None:
    assert entry().refused(Refused("user", "rootless", "uid 1", "root of the host", "x")) == ""
    assert not log.exists()


@pytest.mark.parametrize(
    "words", [["create", "--nonsense", "c"], ["exec"], ["update", "x", "y"], ["--root", "/x", "run"]]
)
def test_words_that_nobody_could_read(log: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["0", "agentshim", "/usr/sbin/runc", *words])
    (told,) = lines(log)
    assert told["event.action"] == next(word for word in words if word in argv.RECORDED)
    assert told["error.type"] == "Invalid" and told["error.message"] == capsys.readouterr().err.rstrip("\n")


@pytest.mark.parametrize("words", [["create", "--nonsense", "c"], ["run", "../c"], ["exec"]])
def test_off_is_off_for_calls_that_fail_before_it_is_read(
    log: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    off = policy.Config({"audit_log": "off"})
    monkeypatch.setattr(policy, "config", lambda: off)
    assert cli.main(["0", "agentshim", "/usr/sbin/runc", *words]) != 0
    assert not log.parent.exists() and "not recorded" not in capsys.readouterr().err


def test_a_configuration_that_cannot_be_read_hides_nothing(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> policy.Config:
        raise Invalid("config", "config.toml", "x", "y", "z")

    monkeypatch.setattr(policy, "config", broken)
    cli.main(["0", "agentshim", "/usr/sbin/runc", "create", "--nonsense", "c"])
    assert len(lines(log)) == 1 and "not recorded" not in capsys.readouterr().err


def test_verbs_that_decide_nothing_leave_none(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["0", "agentshim", "-", "state", "--nonsense"])
    cli.main(["0", "agentshim", "-", "kill", "--nonsense"])
    capsys.readouterr()
    assert not log.exists()


def test_one_printable_for_all() -> None:
    """Messages, doctor, explain, the log's reader and denied: what one escapes, all do."""
    home = Path(__file__).parents[2] / "shim"
    made = [file for file in sorted(home.rglob("*.py")) if "ord(c):02x" in file.read_text()]
    assert [str(file.relative_to(home)) for file in made] == ["errors.py"]
    assert printable(RAW + "\udcff") == "\\x1b[31m\\x9b\\x202e\\x07\\x0d\\x0a\\x7f\\xdcff"


# What a record says


@pytest.mark.parametrize("name", policy.BUILTIN)
def test_lowered_names_the_dimensions_that_explain_names(name: str) -> None:
    """25 µs in place of 4 ms; they may differ where a filter was only spelled otherwise."""
    config = policy.Config({"limit": "identity", "names": list(policy.BUILTIN)})
    ceiling = product.from_policy(policy.load(name, config).sections)
    made = plan.make(everything(), ceiling, facts(), lambda *_: None, "audit")
    explained = {room for room, _ in made.losses()}
    assert set(audit.lowered(made)) - {"seccomp"} == explained - {"seccomp"}
    assert explained <= set(audit.lowered(made))


ID = "c0ffee" + "0" * 58


def of_engine(tmp_path: Path, told: object, mode: int = 0o600, container: str = ID) -> dict[str, Any]:
    """A spec as dockerd's, whose container has the file `told`."""
    home = tmp_path / "docker" / "containers" / container
    home.mkdir(parents=True)
    (home / "hostname").touch()
    file = home / "config.v2.json"
    file.write_text(told if isinstance(told, str) else json.dumps(told))
    file.chmod(mode)
    mount = {"destination": "/etc/hostname", "type": "bind", "source": str(home / "hostname")}
    root = {"path": str(tmp_path / "docker/overlay2/x/merged")}
    return {"mounts": [mount], "root": root, "annotations": {"nerdctl/name": "annotated"}}


def test_names(tmp_path: Path) -> None:
    label = {"Config": {"Labels": {"Name": "/forged"}}, "Name": "/web"}
    assert audit.name_of(of_engine(tmp_path, label), ID, "/b") == "web"
    spec = {"annotations": {"io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-name": "pod-1",
                            "io.kubernetes.cri.container-name": "web"}}  # fmt: skip
    assert audit.name_of(spec, "x", "/b") == "shop/pod-1/web"
    assert audit.name_of({}, "x", "/b") == ""
    assert len(audit.name_of({"annotations": {"nerdctl/name": "n" * 9000}}, "x", "/b")) == 256


@pytest.mark.parametrize("told", ["{", "", "[]", "{}", '{"Name": 1}', '{"Name": "a", "Name": "b"}', "\0"])
def test_names_from_torn_files(tmp_path: Path, told: str) -> None:
    assert audit.name_of(of_engine(tmp_path, told), ID, "/b") == "annotated"


def test_names_from_files_of_others(tmp_path: Path) -> None:
    spec = of_engine(tmp_path, {"Name": "/web"}, 0o666)
    assert audit.name_of(spec, ID, "/b") == "annotated"
    file = tmp_path / "docker/containers" / ID / "config.v2.json"
    file.unlink()
    os.mkfifo(file)
    assert audit.name_of(spec, ID, "/b") == "annotated"


def test_a_bind_to_the_hostname_gives_no_other_containers_name(tmp_path: Path) -> None:
    """A volume to /etc/hostname whose directory is called like this container, or is a link to another's."""
    of_engine(tmp_path, {"Name": "/of-another"}, container="b" * 64)
    spec = of_engine(tmp_path, {"Name": "/web"})
    engine, volume = tmp_path / "docker/containers", tmp_path / "volume"
    volume.mkdir()
    for name, target in (("linked", engine / ("b" * 64)), ("own", engine / ID)):
        (volume / name).mkdir()
        (volume / name / ID).symlink_to(target)
        spec["mounts"][0]["source"] = f"{volume}/{name}/{ID}/hostname"
        assert audit.name_of(spec, ID, "/b") == ("web" if name == "own" else "annotated")
    os.chown(volume / "own", 1000, 1000)
    assert audit.name_of(spec, ID, "/b") == "annotated", "somebody else can lead it elsewhere"
    forged = volume / "containers" / ID
    forged.mkdir(parents=True)
    (forged / "hostname").touch()
    (forged / "config.v2.json").write_text('{"Name": "/forged"}')
    spec["mounts"][0]["source"] = str(forged / "hostname")
    assert audit.name_of(spec, ID, "/b") == "annotated", "no file of the engine's"


def test_names_from_conmon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conmon = tmp_path / "conmon"
    conmon.symlink_to(sys.executable)
    words = [str(conmon), "-c", "import time; time.sleep(60)", "-n", "a-pod-name"]
    with subprocess.Popen(words) as child:
        try:
            monkeypatch.setattr("posix.getppid", lambda: child.pid)
            end = time.monotonic() + 5
            while audit.name_of({}, "x", "/b/userdata") != "a-pod-name" and time.monotonic() < end:
                time.sleep(0.02)
            assert audit.name_of({}, "x", "/b/userdata") == "a-pod-name"
            assert audit.name_of({}, "x", "/b") == ""
        finally:
            child.kill()


# Reading


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert reader.main(list(words)) == 0
    return capsys.readouterr().out.splitlines()


def test_whom_show_means(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for container, name in (("aaa1", "web"), ("aaa2", "db"), ("aaa2b", "db"), ("db", "")):
        one = audit.Entry("create", container)
        one.of("/r", {"policy": "p", "digest": "d", "mode": "enforce", "name": name})
        one.granted()
    assert len(shown(capsys, "show", "aaa2")) == 1, "an id, though it is a prefix of another"
    assert reader.main(["show", "db"]) == 0
    both = capsys.readouterr()
    assert len(both.out.splitlines()) == 3, "a name that another container's id is hides nobody"
    assert both.err == "note: db is an id, and the name of another container: both are shown\n"
    assert len(shown(capsys, "show", "web")) == 1
    with pytest.raises(Invalid, match="3 containers"):
        reader.main(["show", "aaa"])
    assert shown(capsys, "tail", "-n", "0") == []
    with pytest.raises(Invalid):
        reader.main(["tail", "-n", "-1"])
    with pytest.raises(Invalid, match="a number from 0 to"):
        reader.main(["tail", "-n", str(1 << 70)])


def test_no_log_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "tail") == []


def test_a_log_that_others_can_write_is_read_with_a_warning(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry().granted()
    log.chmod(0o666)
    assert reader.main(["tail"]) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 1 and "may be forged" in told.err
    assert reader.main(["show", "c0ffee"]) == 0
    assert capsys.readouterr().err.count("may be forged") == 1


def test_followed_through_rotation(log: Path) -> None:
    one = reader.Log()
    assert list(one.lines()) == []
    entry().granted()
    assert len(list(one.lines())) == 1
    with log.open("ab") as file:
        file.write(b'{"half":')
    assert list(one.lines()) == [], "it may be written just now"
    log.rename(log.with_name("audit.jsonl.1"))
    entry("exec").granted()
    assert [json.loads(line).get("event.action") for line in list(one.lines()) if line[-1] == "}"] == ["exec"]
    os.truncate(log, 0)  # logrotate's copytruncate
    assert list(one.lines()) == []
    entry("update").granted()
    assert [json.loads(line)["event.action"] for line in one.lines()] == ["update"]


def test_what_a_person_did_and_what_failed(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = {"id": "c0ffee", "root": "/r", "policy": "p", "digest": "d", "mode": "enforce"}
    reader.write("lease_granted", one, peer="tcp:192.0.2.1:1")
    reader.write(
        "lease_granted", one, failed=HostError("network", "lease", "full", "room", "x"), peer="tcp:192.0.2.1:1"
    )
    good, bad = lines(log)
    assert (good["event.outcome"], bad["event.outcome"], bad["error.type"]) == ("success", "failure", "HostError")
    first, second = shown(capsys, "tail")
    assert "lease_granted c0ffee" in first and "lease_granted refused c0ffee" in second and "asked full" in second


def named(log: Path, *containers: str) -> None:
    for container in containers:
        one = audit.Entry("create", container)
        one.of("/r", {"policy": "p", "digest": "d", "mode": "enforce"})
        one.granted()


def ids(lines: list[str]) -> list[str]:
    return [json.loads(line)["container.id"] for line in lines]


def test_rotated_files_that_cannot_be_read(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is told, and what the others have is shown."""
    named(log, "a")
    good = gzip.compress(log.read_bytes())
    log.rename(log.with_name("audit.jsonl.1"))
    named(log, "a")
    damaged = good[:10] + b"\xff" * 50  # a block of a kind that deflate does not have: zlib.error, no OSError
    bad = {"2.gz": damaged, "3.gz": good[:-20], "4.gz": b"\x1f\x8b", "5.xz": b"x", "6.zst": b"x", "7.bz2": b"x"}
    for name, data in bad.items():
        log.with_name(f"audit.jsonl.{name}").write_bytes(data)
    log.with_name("audit.jsonl.8.gz").write_bytes(good)
    assert reader.main(["show", "a", "--json"]) == 0
    told = capsys.readouterr()
    assert [one for one in ids(told.out.splitlines()) if one == "a"] == ["a"] * 3
    for name in bad:
        assert f"not read: {log}.{name}: " in told.err


def test_a_line_as_deep_as_the_interpreters_stack(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named(log, "a")
    with log.open("ab") as file:
        file.write(b'{"@timestamp":' + b"[" * 200_000 + b"\n")
    assert [one.startswith("no record") for one in shown(capsys, "tail")] == [False, True]
    assert len(shown(capsys, "show", "a")) == 1


def test_the_tail_of_a_log_that_was_rotated_just_now(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named(log, "older")
    log.rename(log.with_name("audit.jsonl.2"))
    os.utime(log.with_name("audit.jsonl.2"), (1, 1))
    named(log, "a", "b", "c")
    log.rename(log.with_name("audit.jsonl.1"))
    assert ids(shown(capsys, "tail", "-n", "2", "--json")) == ["b", "c"]
    named(log, "d")
    assert ids(shown(capsys, "tail", "-n", "3", "--json")) == ["b", "c", "d"]
    assert ids(shown(capsys, "tail", "-n", "1", "--json")) == ["d"]
    assert shown(capsys, "tail", "-n", "0") == []


def test_a_log_that_is_renamed_while_it_is_read_is_read_once(log: Path) -> None:
    named(log, "a")
    one = reader.Log()
    one.open()
    log.rename(log.with_name("audit.jsonl.1"))
    named(log, "b")
    assert ids(list(reader._all(one, True))) == ["a", "b"]


def test_the_log_is_not_held_in_memory(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named(log, "a")
    line = log.read_bytes().replace(b'"a"', b'"b"')
    log.with_name("audit.jsonl.1").write_bytes(line * 40_000)
    tracemalloc.start()
    try:
        assert len(shown(capsys, "show", "a")) == 1
        assert len(shown(capsys, "tail", "-n", "2")) == 2
        assert tracemalloc.get_traced_memory()[1] < len(line) * 40_000 / 4
    finally:
        tracemalloc.stop()


# The kernel's records

PLAIN = (
    'audit: type=1326 audit(1795328800.281:1413): auid=4294967295 uid=0 gid=0 ses=4294967295 pid=14036 comm="python3"'
    ' exe="/usr/bin/python3.11" sig=0 arch=c000003e syscall=272 compat=0 ip=0x7f828f11f829 code=0x50000'
)
ENRICHED = (
    "type=SECCOMP msg=audit(1795328800.281:1413): auid=unset uid=33 gid=33 ses=1 subj=docker-default pid=7 comm="
    '"a" exe="/a" sig=31 arch=c000003e syscall=101 compat=0 ip=0x7f code=0x80000000\x1dARCH=x86_64 SYSCALL=ptrace'
    ' AUID="unset" UID="www-data" GID="www-data"'
)


def test_records_as_the_kernel_writes_them() -> None:
    one = seccomp_records.parse(PLAIN, seccomp_records.KERNEL)
    assert one == seccomp_records.Record(
        1795328800.281, 1413, 14036, 0, "python3", "/usr/bin/python3.11", "x86_64", "unshare", "errno", False
    )
    two = seccomp_records.parse(ENRICHED, seccomp_records.FILE)
    assert two is not None and (two.uid, two.pid, two.call, two.action) == (33, 7, "ptrace", "kill_process")


@pytest.mark.parametrize(
    ("arch", "number", "told"),
    [
        ("c000003e", 101, ("x86_64", "ptrace")),
        ("40000003", 102, ("x86", "socketcall")),
        ("c000003e", 0x40000000 | 521, ("x32", "ptrace")),
        ("c00000b7", 97, ("aarch64", "unshare")),
        ("40000028", 26, ("arm", "ptrace")),
        ("c000003e", 99999, ("x86_64", "99999")),
        ("c00000f3", 97, ("0xc00000f3", "97")),
    ],
)
def test_calls_by_their_abi(arch: str, number: int, told: tuple[str, str]) -> None:
    text = PLAIN.replace("c000003e", arch).replace("syscall=272", f"syscall={number}")
    one = seccomp_records.parse(text, seccomp_records.KERNEL)
    assert one is not None and (one.arch, one.call) == told


def test_names_that_a_workload_chooses() -> None:
    """The kernel writes as hexadecimal what is not plain: it can neither forge a field nor reach the terminal."""
    evil = 'x" exe="/bin/ls" pid=1\n\x1b[2J\u202e'.encode() + b"\xff"
    text = PLAIN.replace('"python3"', evil.hex().upper()).replace('"/usr/bin/python3.11"', "(null)")
    one = seccomp_records.parse(text, seccomp_records.KERNEL)
    assert one is not None and one.pid == 14036 and one.exe == "" and one.comm.startswith('x" exe=')
    line = denied._line(one, denied.SURE, "", "", 1)
    assert line.isprintable() and "\\x1b[2J\\x202e" in line


@pytest.mark.parametrize("text", ["", "audit: type=1300 audit(1.0:1): arch=c000003e", PLAIN[:100], PLAIN[:-14],
                                  PLAIN.replace("pid=14036", "pid=x"), PLAIN.replace('"python3"', "ZZ")])  # fmt: skip
def test_what_is_no_record(text: str) -> None:
    assert seccomp_records.parse(text, seccomp_records.KERNEL) is None


def message(kind: int, text: str) -> bytes:
    return bytes(4) + kind.to_bytes(2, sys.byteorder) + bytes(10) + text.encode() + b"\0"


class Audit:
    """An audit socket that has `told`: messages with their sender's port, or errors."""

    def __init__(self, told: list[Any]) -> None:
        self.told = told

    def settimeout(self, seconds: float) -> None: ...

    def close(self) -> None: ...

    def recvfrom(self, size: int) -> Any:
        one = self.told.pop(0) if self.told else TimeoutError()
        if isinstance(one, OSError):
            raise one
        return one[0], (one[1], 1)


def heard(told: list[Any]) -> tuple[list[int], bool]:
    """The serials that a socket with these messages tells, and whether it says that some were lost."""
    live = seccomp_records.Socket()
    live.close()
    live._socket = Audit(told)  # type: ignore[assignment]
    return [one.serial for one in live.records(1)], live.lost


BARE = PLAIN.removeprefix("audit: type=1326 ")
FORGED = [
    f"process '/type=1326 {BARE}' started with executable stack",
    f"x: {PLAIN}",
    f" {PLAIN}",
    PLAIN.replace("1326", "1300", 1) + " " + PLAIN,
    f"{PLAIN} more",
    PLAIN.replace("pid=14036", "pid=14036 pid=7"),
    PLAIN.replace(' sig=0 arch=c000003e', ' arch=c000003e sig=0'),
]  # fmt: skip


def test_a_record_inside_another_line_is_forged() -> None:
    """Whoever runs a program chooses its path, and whoever may write audit messages their text."""
    inside = f"type=USER msg=audit(1.5:9): pid=1 uid=0 msg='type=1326 {BARE}'"
    for text in [*FORGED, inside, "type=SECCOMP " + inside, BARE]:
        for source in (seccomp_records.KERNEL, seccomp_records.FILE):
            assert seccomp_records.parse(text, source) is None, text
    assert seccomp_records.parse(PLAIN, seccomp_records.FILE) is None
    assert seccomp_records.parse(ENRICHED, seccomp_records.KERNEL) is None
    assert seccomp_records.parse("node=a.b " + ENRICHED, seccomp_records.FILE) is not None
    labelled = PLAIN.replace(" pid=", " subj=docker-default (enforce) pid=")
    assert seccomp_records.parse(labelled, seccomp_records.KERNEL) is not None


def test_the_audit_socket_believes_the_kernel_alone() -> None:
    user = f"audit(1.5:9): pid=1 uid=0 msg='type=1326 {BARE}'"
    told = [(message(1326, BARE), 0), (message(1326, BARE), 77), (message(1105, user), 0), (message(1326, user), 0)]
    assert heard(told) == ([1413], False)
    full = OSError(errno.ENOBUFS, "full")
    assert heard([full, (message(1326, BARE), 0)]) == ([1413], True)


def test_what_the_audit_socket_lost_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    live = seccomp_records.Socket()
    live.close()
    live.missing, live._socket = "", Audit([OSError(errno.ENOBUFS, "full")])  # type: ignore[assignment]

    def once(*_: object) -> None:
        if live.lost is False and live._socket is not None and not live._socket.told:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    monkeypatch.setattr(denied, "find", lambda subject: {"network": None, "policy": "p"})
    quiet = container(0)
    monkeypatch.setattr(denied, "Container", lambda found: quiet)
    monkeypatch.setattr(denied, "Socket", lambda: live)
    monkeypatch.setattr(denied, "_notes", lambda *_: ())
    monkeypatch.setattr(denied, "_network", once)
    monkeypatch.setattr(denied, "_calls", lambda *_: None)  # whatever this host's log has
    assert denied.main(["--follow", "c"]) == 0
    assert "some denials, of any process, were not seen" in capsys.readouterr().err


def test_the_kernels_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forged lines are left out, dropped ones counted, and what was overwritten is said."""
    told: list[Any] = [
        f"5,900,1000,-;{PLAIN}\n SUBSYSTEM=x\n".encode(),
        f"12,901,1001,-;{PLAIN.replace('1413', '1414')}\n".encode(),  # facility 1: a program wrote to /dev/kmsg
        b"5,902,1002,-;kauditd_printk_skb: 12 callbacks suppressed\n",
        BrokenPipeError(32, "the ring went on"),
        f"5,990,1003,-;{PLAIN.replace('1413', '1415')}\n".encode(),
        BlockingIOError(),
    ]

    def read(fd: int, size: int) -> Any:
        one = told.pop(0)
        if isinstance(one, OSError):
            raise one
        return one

    kernel = seccomp_records.Kernel()
    kernel.close()
    monkeypatch.setattr(kernel, "_fd", 0)
    monkeypatch.setattr("os.read", read)
    assert [one.serial for one in kernel.records()] == [1413, 1415]
    assert kernel.lost == 12 and kernel.overwritten


def test_the_action_must_be_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = tmp_path / "actions_logged"
    monkeypatch.setattr(seccomp_records, "LOGGED", str(logged))
    assert "no log of denials" in seccomp_records.unlogged("errno")
    logged.write_text("kill_process kill_thread\n")
    assert "actions_logged" in seccomp_records.unlogged("errno") and not seccomp_records.unlogged("kill_process")


# Whose a denial was


def container(init: int, exe_root: str = "/") -> denied.Container:
    """A container that is this process's control groups, begun when this process was."""
    one = denied.Container.__new__(denied.Container)
    one.record = {"rootfs": exe_root, "id": "c", "policy": "p", "digest": "d"}
    one.init, one.groups, one.created = init, denied._groups(os.getpid()), time.time() - 100
    return one


def record(**changes: Any) -> seccomp_records.Record:
    fields = {"when": time.time(), "serial": 1, "pid": os.getpid(), "uid": 0, "comm": "x", "exe": "/", "arch": "x86_64",
              "call": "unshare", "action": "errno", "allowed": False}  # fmt: skip
    return seccomp_records.Record(**{**fields, **changes})


def test_whose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denied, "_sees_all", lambda: True)
    mine = container(os.getpid())
    assert mine.has(record()) == denied.SURE
    assert mine.has(record(when=time.time() - 200)) == denied.NO, "before it was created"
    mine.groups = {"0::/machine/other"}
    assert mine.has(record()) == denied.NO, "it lives elsewhere"
    mine.groups = {*denied._groups(os.getpid()), "9:x:/of/its/own"}
    assert mine.has(record()) == denied.NO, "some groups are everybody's"
    gone = container(0, str(tmp_path))
    (tmp_path / "tool").touch()
    assert gone.has(record(pid=2**22 + 1, exe="/tool")) == denied.MAYBE
    assert gone.has(record(pid=2**22 + 1, exe="/tool (deleted)")) == denied.MAYBE
    assert gone.has(record(pid=2**22 + 1, exe="/other")) == denied.NO
    assert gone.has(record(pid=2**22 + 1, exe="")) == denied.NO


@pytest.mark.parametrize(
    ("init", "there", "shared", "expected"),
    [
        ("/docker/c0ffee/init.scope", "/docker/c0ffee/system.slice/x.service", "", denied.SURE),
        ("/docker/c0ffee/init", "/docker/c0ffee/docker/inner", "", denied.SURE),
        ("/a/b.scope/init.scope", "/a/b.scope/system.slice/x.service", "pid", denied.SURE),
        ("/a/b.scope/init.scope", "/a/b.scope/system.slice/x.service", "mnt", denied.SURE),
        ("/a/docker-c0ffee.scope/init.scope", "/a/docker-c0ffee.scope/system.slice", "", denied.SURE),
        ("/of/init", "/of/sibling", "", denied.MAYBE),
        ("/xc0ffee/init", "/xc0ffee/sibling", "", denied.MAYBE),
        ("/docker/c0ffee", "/elsewhere", "mnt", denied.MAYBE),
        ("/docker/c0ffee", "/elsewhere", "", denied.NO),
        ("/init.scope", "/user.slice", "", denied.NO),
        ("/docker/c0ffee/init.scope", "/docker/c0ffee2/x", "", denied.NO),
    ],
)
def test_an_init_that_has_left_its_group(
    init: str, there: str, shared: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd and dind move to a group below the container's, and what they start to others."""
    monkeypatch.setattr(denied, "_sees_all", lambda: True)
    monkeypatch.setattr(denied, "_groups", lambda pid: {f"0::{there}", f"3:cpu:{there}"})
    own = os.getpid()
    spaces = {own: "host", 1: "container", os.getppid(): "container"}
    monkeypatch.setattr(denied, "_namespace", lambda pid, kind: spaces[pid] if kind == shared or pid == own else "")
    one = container(1)
    one.record["id"], one.groups = "c0ffee", {f"0::{init}", f"3:cpu:{init}"}
    assert one.has(record(pid=os.getppid())) == expected


def test_namespaces_of_the_host_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denied, "_sees_all", lambda: True)
    one = container(os.getpid())
    one.groups = {"0::/of/its/own"}
    assert one.has(record()) == denied.NO


def test_a_number_that_is_another_process_now() -> None:
    """Processes that began after the denial are not the one that was denied."""
    with subprocess.Popen(["sleep", "30"]) as child:
        try:
            one = container(os.getpid(), "/nowhere")
            one.init = 0
            assert one.has(record(pid=child.pid, when=time.time() - 50, exe="/bin/sleep")) != denied.SURE
        finally:
            child.kill()


# The policy's key


def test_log_of_a_policy(tmp_path: Path) -> None:
    for section, flags in (({}, []), ({"log": True}, [FLAG_LOG]), ({"log": False}, [])):
        source = json.loads(seccomp_source.expand({"profile": "agent", **section}, "/")["source"])
        assert source["flags"] == flags
    (tmp_path / "p.json").write_text(
        json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "flags": [FLAG_LOG], "syscalls": []})
    )
    for section, flags in (({}, [FLAG_LOG]), ({"log": False}, []), ({"log": True}, [FLAG_LOG])):
        source = json.loads(seccomp_source.expand({"file": "p.json", **section}, str(tmp_path))["source"])
        assert source["flags"] == flags


def test_logging_takes_nothing_and_gives_nothing() -> None:
    """A filter that logs lies below the same that does not: the meet logs if either does, and that is never wider."""
    plain, loud = (
        seccomp.from_policy(seccomp_source.expand({"profile": "agent", "log": log}, "/")) for log in (False, True)
    )
    asked = seccomp.from_spec(
        {"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "flags": [],
                               "syscalls": []}}}, Facts())  # fmt: skip
    assert seccomp.leq(loud, plain) and not seccomp.leq(plain, loud)
    met, other = seccomp.meet(asked, loud), seccomp.meet(asked, plain)
    assert met.raw is not None and other.raw is not None
    assert met.raw["flags"] == [FLAG_LOG] and other.raw["flags"] == []
    assert met.raw["syscalls"] == other.raw["syscalls"]
    assert seccomp.leq(met, asked) and seccomp.leq(met, loud) and seccomp.leq(met, other)
    assert any(loss.allow == "[seccomp] log = false" for loss in seccomp.explain(asked, loud, met))


def test_a_policy_that_logs_is_within_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = make_host(tmp_path, monkeypatch)
    host.policy("loud", 'base = "agent"\n[seccomp]\nlog = true\n')
    assert cold.compile("loud", host.config())["name"] == "loud"


@pytest.mark.parametrize("word", ['"maybe"', "true", '""'])
def test_config_knows_four_words(tmp_path: Path, word: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"audit_log = {word}\n")
    (fault,) = policy_source.examine(str(file), "config", trusted=False)[1]
    assert "refuse, refuse-create, continue, off" in str(fault)
