"""Bad input: a clear error, nothing run, nothing lost. Each row of the tables is one thing that can be wrong.

What holds for all: exit code as runc's (1; exec 255), one message `room: key: asked X, ceiling Y: what to do` on stderr
and as one RFC 3339 error line in --log, config.json as it was, the delegate not run. The delegate here is a script that
leaves a mark before it becomes runc. Next door: test_hostile_host.py for disks, races and kills.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.columns import COLUMNS, CONFIG, RUNC, configure, launcher, path_of
from conformance.oci.bundles import Bundle, sleeper, spec
from conformance.oci.conftest import Maker
from conformance.oci.spy import Spy, judged
from conformance.room import Room

pytestmark = [
    pytest.mark.oci,
    pytest.mark.skipif(not launcher().exists(), reason=f"SKIPPED LOUDLY: {launcher()} is missing: run `make build`"),
]
AGENT = COLUMNS[1]


def changed(path: str, value: Any) -> Callable[[Bundle], None]:
    """Sets the key at dotted `path` of config.json (list indices as numbers)."""

    def change(bundle: Bundle) -> None:
        config = spec()
        here: Any = config
        *parents, last = path.split(".")
        for name in parents:
            here = here[int(name)] if isinstance(here, list) else here.setdefault(name, {})
        here[last] = value
        bundle.write(config)

    return change


def text(edit: Callable[[str], str | bytes]) -> Callable[[Bundle], None]:
    """Replaces the characters of config.json."""
    return lambda bundle: bundle.write(edit(json.dumps(spec())))


def instead(make: Callable[[Path], object]) -> Callable[[Bundle], None]:
    """Puts something else in place of config.json; its content moves to config.real."""

    def change(bundle: Bundle) -> None:
        bundle.config.rename(bundle.path / "config.real")
        make(bundle.config)

    return change


PROCESS = json.dumps({**spec()["process"], "args": ["touch", "/evil"]})
CONFIGS: dict[str, Callable[[Bundle], None]] = {
    "missing": lambda bundle: bundle.config.unlink(),
    "empty": text(lambda good: ""),
    "white": text(lambda good: " \n\t "),
    "truncated": text(lambda good: good[: len(good) // 2]),
    "huge": text(lambda good: good[:-1] + ', "annotations": {"x": "' + "x" * (17 << 20) + '"}}'),
    "deeply nested lists": text(lambda good: good[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "deeply nested objects": text(lambda good: '{"a":' * 100_000 + "1" + "}" * 100_000),
    "not UTF-8": text(lambda good: good.encode().replace(b"conformance", b"conf\xff\xfermance")),
    "UTF-16": text(lambda good: good.encode("utf-16")),
    "byte order mark": text(lambda good: b"\xef\xbb\xbf" + good.encode()),
    "lone surrogate": text(lambda good: good.replace('"hostname": "conformance"', '"hostname": "\\ud800"')),
    "two values": text(lambda good: good + good),
    "trailing text": text(lambda good: good + " x"),
    "not an object": text(lambda good: f"[{good}]"),
    "duplicate key": text(lambda good: good[:-1] + f', "process": {PROCESS}}}'),
    "duplicate inner key": text(lambda good: good.replace('"cwd": "/"', '"cwd": "/", "cwd": "/tmp"')),
    "upper case": text(lambda good: good[:-1] + f', "PROCESS": {PROCESS}}}'),
    "long s": text(lambda good: good[:-1] + f', "proce\u017f\u017f": {PROCESS}}}'),
    "escaped long s": text(lambda good: good[:-1] + f', "proce\\u017f\\u017f": {PROCESS}}}'),
    "kelvin sign": text(lambda good: good.replace('"hostname"', '"hoo\u212as": {}, "hostname"')),
    "inner upper case": text(lambda good: good.replace('"cwd": "/"', '"cwd": "/", "Args": ["touch", "/evil"]')),
    "NaN": text(lambda good: good.replace("268435456", "NaN")),
    "Infinity": text(lambda good: good.replace("268435456", "-Infinity")),
    "1e999": text(lambda good: good.replace("268435456", "1e999")),
    "2**64": text(lambda good: good.replace("268435456", str(1 << 64))),
    "hexadecimal": text(lambda good: good.replace("268435456", "0x10")),
    "comment": text(lambda good: "/* */" + good),
    "symbolic link": instead(lambda path: path.symlink_to("config.real")),
    "dangling link": instead(lambda path: path.symlink_to("nowhere")),
    "FIFO": instead(lambda path: os.mkfifo(path)),
    "directory": instead(lambda path: path.mkdir()),
    "device": instead(lambda path: os.mknod(path, 0o20644, os.makedev(1, 3))),
    "config of another user": lambda bundle: os.chown(bundle.config, 1000, 1000),
    "config writable by others": lambda bundle: bundle.config.chmod(0o666),
    "bundle of another user": lambda bundle: os.chown(bundle.path, 1000, 1000),
    "bundle writable by others": lambda bundle: bundle.path.chmod(0o777),
    "bundle writable by a group": lambda bundle: bundle.path.chmod(0o775),
    "unknown key of process": changed("process.surprise", True),
    "unknown key of linux": changed("linux.surprise", {"a": 1}),
    "process is a list": changed("process", []),
    "no process": changed("process", None),
    "args is a string": changed("process.args", "sh"),
    "args is empty": changed("process.args", []),
    "args holds a number": changed("process.args", ["sh", 1]),
    "args holds a NUL": changed("process.args", ["sh", "a\0b"]),
    "env is an object": changed("process.env", {"A": "b"}),
    "cwd is a number": changed("process.cwd", 1),
    "cwd is relative": changed("process.cwd", "tmp"),
    "cwd in /proc (CVE-2024-21626)": changed("process.cwd", "/proc/self/fd/7"),
    "uid is a string": changed("process.user.uid", "0"),
    "uid is negative": changed("process.user.uid", -1),
    "uid is a fraction": changed("process.user.uid", 0.5),
    "noNewPrivileges is a string": changed("process.noNewPrivileges", "true"),
    "capability is a number": changed("process.capabilities.bounding", [21]),
    "capabilities are a list": changed("process.capabilities", ["CAP_SYS_ADMIN"]),
    "rlimit unknown": changed("process.rlimits", [{"type": "RLIMIT_SURPRISE", "hard": 1, "soft": 1}]),
    "mounts is an object": changed("mounts", {}),
    "mount without destination": changed("mounts", [{"type": "tmpfs", "source": "tmpfs"}]),
    "mount options is a string": changed("mounts.0.options", "ro"),
    "namespace unknown": changed("linux.namespaces", [{"type": "surprise"}]),
    "namespace twice": changed("linux.namespaces", [{"type": "pid"}, {"type": "pid"}]),
    "root is a string": changed("root", "rootfs"),
    "no root": changed("root", None),
    "memory is a string": changed("linux.resources.memory.limit", "1g"),
    "ociVersion is a number": changed("ociVersion", 1),
    "annotations hold a number": changed("annotations", {"a": 1}),
    "another platform": changed("windows", {"layerFolders": []}),
}


@pytest.fixture(scope="module")
def spy(the_room: Room) -> Iterator[Spy]:
    """A delegate that leaves a mark, in the configuration."""
    one = Spy(the_room)
    configure(the_room, delegate=str(one.path))
    yield one
    configure(the_room)


# run reads what create reads: a sample is enough
SAMPLE = ("missing", "truncated", "duplicate key", "upper case", "symbolic link", "bundle writable by others")


@pytest.mark.parametrize("name, verb", [*((name, "create") for name in CONFIGS), *((name, "run") for name in SAMPLE)])
def test_config(spy: Spy, bundle: Maker, name: str, verb: str) -> None:
    made = bundle(spec())
    CONFIGS[name](made)
    with judged(spy, spy.runtime(AGENT), made) as call:
        call(verb, "--bundle", str(made.path), "c")


IDS = ["", "a/b", "../a", "..", ".", "/", "a b", "a\nb", "a\u00e4", "-x", "x" * 1100]


@pytest.mark.parametrize("name", IDS, ids=[repr(name)[:20] for name in IDS])
@pytest.mark.parametrize("verb", ["create", "exec", "update"])
def test_id(spy: Spy, bundle: Maker, verb: str, name: str) -> None:
    made = bundle(spec())
    more = {"create": ["--bundle", str(made.path)], "exec": [], "update": ["--memory", "1000000"]}[verb]
    last = ["true"] if verb == "exec" else []
    with judged(spy, spy.runtime(AGENT), made) as call:
        call(verb, *more, *([] if name == "" else ["--"] if name[0] == "-" else []), name, *last)


OPTIONS = [
    ["creat", "--bundle", "B", "c"],
    ["CREATE", "--bundle", "B", "c"],
    ["create", "--surprise", "--bundle", "B", "c"],
    ["create", "--surprise=1", "--bundle", "B", "c"],
    ["create", "-surprise", "--bundle", "B", "c"],
    ["create", "--bund", "B", "c"],
    ["create", "--bundle"],
    ["create", "--bundle", "B"],
    ["create", "--bundle", "B", "c", "d"],
    ["create", "---bundle", "B", "c"],
    ["create", "--preserve-fds", "x", "--bundle", "B", "c"],
    ["create", "--preserve-fds=-1", "--bundle", "B", "c"],
    ["create", "--no-pivot=maybe", "--bundle", "B", "c"],
    ["mounts", "add", "c"],
    ["exec", "--surprise", "c", "true"],
    ["exec", "c"],
    ["exec", "--process", "nowhere.json", "c"],
    ["update", "--surprise", "1", "c"],
    ["update", "--resources", "nowhere.json", "c"],
    ["update", "--memory", "much", "c"],
    ["restore", "--bundle", "B", "c"],
    ["--surprise", "create", "--bundle", "B", "c"],
    ["--surprise=x", "state", "c"],
    ["--roo", "/tmp", "state", "c"],
    ["-surprise", "kill", "c", "9"],
]


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_verbs_and_options(spy: Spy, bundle: Maker, words: list[str]) -> None:
    made = bundle(spec())
    with judged(spy, spy.runtime(AGENT), made) as call:
        call(*(str(made.path) if word == "B" else word for word in words))


PROCESSES: dict[str, str | bytes] = {
    "missing": "",
    "truncated": PROCESS[:40],
    "duplicate key": PROCESS[:-1] + ', "args": ["sh"]}',
    "upper case": PROCESS[:-1] + ', "ARGS": ["sh"]}',
    "unknown key": PROCESS[:-1] + ', "surprise": 1}',
    "wrong type": PROCESS.replace('"cwd": "/"', '"cwd": 1'),
    "cwd in /proc": PROCESS.replace('"cwd": "/"', '"cwd": "/proc/1/cwd"'),
    "not UTF-8": PROCESS.encode().replace(b"/root", b"/\xff"),
    "NaN": PROCESS.replace('"uid": 0', '"uid": NaN'),
    "list": "[]",
}


@pytest.mark.parametrize("name", PROCESSES)
def test_exec_process(spy: Spy, bundle: Maker, name: str) -> None:
    """A container that runs, and a process.json that is wrong: exit code 255, and it runs on."""
    made = bundle(sleeper(f"/{spy.room.base.name}/bad"))
    runtime = spy.runtime(AGENT)
    runtime.must("run", "--detach", "--bundle", str(made.path), "c")
    file = runtime.home / "process.json"
    wrong = PROCESSES[name]
    file.write_bytes(wrong if isinstance(wrong, bytes) else wrong.encode())
    try:
        with judged(spy, runtime, made) as call:
            call("exec", "--process", str(file), "c")
        assert file.read_bytes() == (wrong if isinstance(wrong, bytes) else wrong.encode())
        assert runtime.status("c") == "running"
    finally:
        runtime.clear()


RESOURCES = ["{", "[]", '{"memory": {"limit": "1g"}}', '{"surprise": 1}', '{"memory": {"limit": NaN}}', "\xff"]


@pytest.mark.parametrize("name", RESOURCES)
def test_update_resources(spy: Spy, bundle: Maker, name: str) -> None:
    made = bundle(sleeper(f"/{spy.room.base.name}/bad"))
    runtime = spy.runtime(AGENT)
    runtime.must("run", "--detach", "--bundle", str(made.path), "c")
    try:
        with judged(spy, runtime, made) as call:
            call("update", "--resources=-", "c", input=name)
    finally:
        runtime.clear()


MINE = 'schema = 1\nname = "mine"\nabout = "a test"\nbase = "agent"\n'
# What the host's owner can get wrong: config.toml and policies.
HOST_FILES: dict[str, Callable[[Path], object]] = {
    "config is broken": lambda etc: (etc / "config.toml").write_text('default = "agent'),
    "config is empty of sense": lambda etc: (etc / "config.toml").write_text("default = 1\n"),
    "config has an unknown key": lambda etc: (etc / "config.toml").write_text('surprise = "x"\n'),
    "config from the future": lambda etc: (etc / "config.toml").write_text("schema = 2\n"),
    "config is not root's": lambda etc: os.chown(etc / "config.toml", 1000, 1000),
    "config is writable by others": lambda etc: (etc / "config.toml").chmod(0o666),
    "config is a link": lambda etc: linked(etc / "config.toml"),
    "directory is writable by others": lambda etc: etc.chmod(0o777),
    "policy is missing": lambda etc: policy(etc, None),
    "policy is broken": lambda etc: policy(etc, "name = [\n"),
    "policy is empty": lambda etc: policy(etc, ""),
    "policy from the future": lambda etc: policy(etc, MINE.replace("1", "99")),
    "policy has an unknown key": lambda etc: policy(etc, MINE + "surprise = 1\n"),
    "policy is not UTF-8": lambda etc: policy(etc, MINE.encode().replace(b"test", b"\xff")),
    "policy is not root's": lambda etc: os.chown(policy(etc, MINE), 1000, 1000),
    "policy is writable by others": lambda etc: policy(etc, MINE).chmod(0o646),
    "policy is a directory": lambda etc: policy(etc, None).mkdir(),
    "delegate is missing": lambda etc: configured(etc, "/nowhere/runc"),
    "delegate is relative": lambda etc: configured(etc, "runc"),
    "delegate is not executable": lambda etc: configured(etc, program(etc, 0o644)),
    "delegate is writable by others": lambda etc: configured(etc, program(etc, 0o777)),
    "delegate is not root's": lambda etc: configured(etc, program(etc, 0o755, 1000)),
    "delegate is a directory": lambda etc: configured(etc, str(etc)),
    "delegate is not listed": lambda etc: (etc / "config.toml").write_text(
        f'delegate = "{program(etc, 0o755)}"\ndelegates = ["{RUNC}"]\n'
    ),
}


def linked(file: Path) -> None:
    """A link in place of the file, to the same content."""
    file.rename(file.with_suffix(".real"))
    file.symlink_to(file.with_suffix(".real"))


def policy(etc: Path, content: str | bytes | None) -> Path:
    """A policy `mine` as the default."""
    file = etc / "policies/mine.toml"
    file.parent.mkdir(mode=0o755, exist_ok=True)
    default(etc)
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def default(etc: Path) -> None:
    """Name the policy `mine` in config.toml."""
    (etc / "config.toml").write_text((etc / "config.toml").read_text().replace('default = "agent"', 'default = "mine"'))


def configured(etc: Path, delegate: str) -> None:
    """Name another delegate."""
    (etc / "config.toml").write_text(CONFIG.replace("{delegate}", delegate))


def program(etc: Path, mode: int, owner: int = 0) -> str:
    """A delegate that would work; its mark is the spy's."""
    path = etc / "other-runc"
    path.write_text(next(iter(etc.parent.glob("spy/runc"))).read_text())
    path.chmod(mode)
    os.chown(path, owner, owner)
    return str(path)


@pytest.fixture
def etc(the_room: Room, spy: Spy) -> Iterator[Path]:
    """/etc/agentshim, put right again afterwards."""
    here = the_room.base / "config"
    yield here
    for path in sorted(here.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    here.chmod(0o755)
    configure(the_room, delegate=str(spy.path))


@pytest.mark.parametrize("name", HOST_FILES)
def test_host_files(spy: Spy, bundle: Maker, etc: Path, name: str) -> None:
    """Never a fall back to plain runc, nor to another policy."""
    made = bundle(spec())
    HOST_FILES[name](etc)
    with judged(spy, spy.runtime(AGENT), made) as call:
        call("create", "--bundle", str(made.path), "c")


def test_a_name_that_is_not_listed(the_room: Room, spy: Spy, bundle: Maker) -> None:
    """A link agentshim-<policy> selects only what the host lists."""
    link = Path(path_of(AGENT, the_room)).parent / "agentshim-locked"
    link.symlink_to(launcher())
    made = bundle(spec())
    try:
        with judged(spy, spy.runtime(AGENT, str(link)), made) as call:
            call("create", "--bundle", str(made.path), "c")
    finally:
        link.unlink()


def test_an_annotation_that_is_not_listed(spy: Spy, bundle: Maker) -> None:
    made = bundle({**spec(), "annotations": {"agentshim.policy": "locked"}})
    with judged(spy, spy.runtime(AGENT), made) as call:
        call("create", "--bundle", str(made.path), "c")


def test_the_spy_sees_what_runs(spy: Spy, bundle: Maker) -> None:
    """The control of all tests above: where nothing is wrong, the mark is left."""
    runtime = spy.runtime(AGENT)
    spy.forget()
    result = runtime.call("run", "--bundle", str(bundle(spec("echo", "ran")).path), "c")
    assert (result.code, result.out) == (0, "ran\n"), str(result)
    assert spy.saw()
