"""The launcher: which calls reach the delegate, which reach Python, and that all arrives as it came.

One small witness program plays both the delegate and the interpreter: it prints what the kernel gave it.
The launcher under test differs from the real one only in where it reads its configuration and finds delegates.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native import build

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the launcher trusts files of root's only: run as root")

WITNESS = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
extern char **environ;
static void hex(const char *what, const char *text) {
    printf("%s ", what);
    for (; *text; text++) printf("%02x", (unsigned char)*text);
    putchar('\n');
}
int main(int argc, char **argv) {
    char exe[4096] = "";
    if (readlink("/proc/self/exe", exe, sizeof exe - 1) < 0) return 99;
    hex("exe", exe);
    hex("execfn", (const char *)getauxval(AT_EXECFN));
    for (int i = 0; i < argc; i++) hex("arg", argv[i]);
    for (char **e = environ; *e; e++) hex("env", *e);
    int death = 0;
    prctl(PR_GET_PDEATHSIG, &death);
    printf("pdeathsig %d\npid %d\nchild %d\n", death, getpid(), waitpid(-1, NULL, WNOHANG | __WALL));
    for (int s = 1; s < 32; s++) {
        struct sigaction now;
        if (!sigaction(s, NULL, &now) && now.sa_handler == SIG_IGN) printf("ignored %d\n", s);
    }
    sigset_t blocked;
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    for (int s = 1; s < 32; s++) if (sigismember(&blocked, s)) printf("blocked %d\n", s);
    DIR *fds = opendir("/proc/self/fd");
    for (struct dirent *d; (d = readdir(fds));) if (d->d_name[0] != '.' && atoi(d->d_name) != dirfd(fds))
        printf("fd %s\n", d->d_name);
    return 7;
}
"""

PASS = {"state", "kill", "list", "ps", "pause", "resume", "events", "features", "spec", "start", "delete"}
DECIDED = [
    "create",
    "run",
    "restore",
    "exec",
    "update",
    "checkpoint",
    "help",
    "h",
    "explain",
    "policy",
    "mounts",
    "init",
]
VALUED = {"log", "log-format", "root", "criu", "rootless"}
FLAGS = {"debug", "systemd-cgroup"}
MOVES = ("create", "run", "restore", "exec")  # after which a process is moved between control groups


class Witness:
    """What the program that was run saw; `role` is delegate, python, or none where nothing was run."""

    def __init__(self, done: subprocess.CompletedProcess[bytes], house: House) -> None:
        pairs = [line.split(" ", 1) for line in done.stdout.decode().splitlines()]
        self.done = done
        self.args = [bytes.fromhex(value) for key, value in pairs if key == "arg"]
        self.env = [bytes.fromhex(value) for key, value in pairs if key == "env"]
        self.numbers = {
            key: [int(v) for k, v in pairs if k == key] for key in ("pdeathsig", "pid", "child", "ignored", "blocked")
        }
        self.fds = {int(value) for key, value in pairs if key == "fd"}
        exe = next((bytes.fromhex(value).decode() for key, value in pairs if key == "exe"), "")
        self.role = {str(house.delegate): "delegate", str(house.python): "python"}.get(exe, exe or "none")

    @property
    def stderr(self) -> str:
        return self.done.stderr.decode()


class House:
    """A private prefix with a launcher, a fake interpreter, a fake delegate and an empty configuration."""

    def __init__(self, base: Path, sanitize: bool = False) -> None:
        self.base = base
        self.conf = base / "conf"
        self.delegate = base / "delegate"
        self.other = base / "other"
        self.prefix = base / "prefix"
        self.lib = self.prefix / "lib" / "agentshim"
        self.python = base / "python"
        self.launcher = self.prefix / "bin" / "agentshim"
        (self.lib / "shim").mkdir(parents=True)
        (self.lib / "shim" / "main.py").write_text("")
        source = base / "witness.c"
        source.write_text(WITNESS)
        subprocess.run([build.cc(), "-O1", "-o", self.delegate, source], check=True)
        shutil.copy(self.delegate, self.python)
        shutil.copy(self.delegate, self.other)
        absent = str(base / "absent")
        defines = [f'-DCONF_DIR="{self.conf}"', f'-DDELEGATES="{absent}","{self.delegate}","{self.other}"']
        if sanitize:
            defines += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        build.build_launcher(self.launcher, defines, static=not sanitize)
        self.reset()

    def reset(self) -> None:
        if self.conf.is_symlink():
            self.conf.unlink()
        shutil.rmtree(self.conf, ignore_errors=True)
        shutil.rmtree(self.base / "conf.real", ignore_errors=True)
        (self.lib / "python").unlink(missing_ok=True)
        build.record(self.lib, "python", str(self.python))

    def write(self, name: str, text: str) -> Path:
        self.conf.mkdir(exist_ok=True)
        path = self.conf / name
        path.write_text(text)
        path.chmod(0o644)
        return path

    def call(self, *args: str | bytes, env: dict[str, str] | None = None, **more: object) -> Witness:
        more.setdefault("executable", self.launcher)
        done = subprocess.run(  # type: ignore[call-overload]
            ["agentshim", *args], env=env or {}, capture_output=True, timeout=60, stdin=subprocess.DEVNULL, **more
        )
        return Witness(done, self)


@pytest.fixture(scope="session", params=["plain", "sanitized"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("launcher"), sanitize=request.param == "sanitized")


@pytest.fixture
def house(built: House) -> House:
    built.reset()
    return built


def from_python(house: House, mask: int = 0, execfn: str | None = None, delegate: str | None = None) -> list[bytes]:
    """The argv that the interpreter gets before the original arguments."""
    words = [house.python, "-I", "-S", "-B", "-X", "utf8", house.lib / "shim" / "main.py", mask]
    words += [execfn or house.launcher, delegate or house.delegate]
    return [os.fsencode(str(word)) for word in words]


# --- the grammar ---------------------------------------------------------------------------------------------------

SPELLINGS = [
    (["state", "x"], "delegate"),
    (["--root", "R", "state", "x"], "delegate"),
    (["--root=R", "state", "x"], "delegate"),
    (["-root", "R", "state", "x"], "delegate"),
    (["-root=R", "state", "x"], "delegate"),
    (["--root=", "state"], "delegate"),
    (["--root", "", "state"], "delegate"),
    (["--root", "create", "state"], "delegate"),
    (["--root", "--log", "state"], "delegate"),
    (["--log", "L", "--log-format", "json", "--root", "R", "--systemd-cgroup", "start", "x"], "delegate"),
    (["--log-format=json", "--log", "L", "delete", "--force", "x"], "delegate"),
    (["--debug", "-debug", "kill", "--all", "x", "9"], "delegate"),
    (["--criu", "C", "ps", "--format", "json", "x"], "delegate"),
    (["features"], "delegate"),
    (["state", "--help"], "delegate"),
    (["--log", "state", "exec", "x"], "python"),
    (["--root", "state"], "python"),
    (["--root", "R"], "python"),
    (["--root"], "python"),
    ([], "python"),
    ([""], "python"),
    (["-"], "python"),
    (["--"], "python"),
    (["--", "state"], "python"),
    (["---root", "R", "state"], "python"),
    (["--=R", "state"], "python"),
    (["-=R", "state"], "python"),
    (["--roo", "R", "state"], "python"),
    (["--rootx", "R", "state"], "python"),
    (["--ROOT", "R", "state"], "python"),
    (["--root:R", "state"], "python"),
    (["-r", "R", "state"], "python"),
    (["--log-forma", "json", "state"], "python"),
    (["--debug=true", "state"], "python"),
    (["--systemd-cgroup=false", "state"], "python"),
    (["--systemd", "state"], "python"),
    (["--rootless", "true", "state"], "python"),
    (["--rootless=true", "state"], "python"),
    (["-rootless=true", "state"], "python"),
    (["--cgroup-manager", "disabled", "state"], "python"),
    (["--cgroup-manager=disabled", "state"], "python"),
    (["--help"], "python"),
    (["-h", "state"], "python"),
    (["--version"], "python"),
    (["-v"], "python"),
    (["State", "x"], "python"),
    (["stat", "x"], "python"),
    (["states", "x"], "python"),
    (["state ", "x"], "python"),
    *[([verb, "x"], "delegate") for verb in sorted(PASS)],
    *[([verb, "x"], "python") for verb in DECIDED],
    *[(["--root", "R", verb, "x"], "python") for verb in DECIDED],
]


@pytest.mark.parametrize(
    ("args", "role"), SPELLINGS, ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_grammar(house: House, args: list[str], role: str) -> None:
    seen = house.call(*args)
    head = [os.fsencode(house.delegate)] if role == "delegate" else from_python(house)
    assert seen.role == role
    assert seen.args == [*head, *(os.fsencode(arg) for arg in args)]
    assert seen.done.returncode == 7


def oracle(args: list[bytes]) -> bool:
    """Go's flag package as runc's main uses it, less what we leave to Python: flags with a value, --, --rootless."""
    rest = list(args)
    while rest:
        match = re.fullmatch(rb"--?([^-=][^=]*)(=(.*))?", rest[0], re.DOTALL)
        if rest[0] in (b"", b"-") or not rest[0].startswith(b"-"):
            return rest[0].decode("latin-1") in PASS
        if match is None:
            return False
        name, inline = match[1].decode("latin-1"), match[2] is not None
        del rest[0]
        if name in FLAGS and not inline:
            continue
        if name not in VALUED or name == "rootless":
            return False
        if not inline:
            if not rest:
                return False
            del rest[0]
    return False


def tokens() -> st.SearchStrategy[bytes]:
    """Single tokens around the grammar's borders, and any bytes that can be an argument."""
    names = sorted(VALUED | FLAGS | {"roo", "help", "version", "v", "h", "no-pivot"})
    dashes = st.sampled_from(["", "-", "--", "---"])
    tails = st.sampled_from(["", "", "", "=", "=x", "=state", "=true", " ", "x"])
    options = st.builds(lambda dash, name, tail: (dash + name + tail).encode(), dashes, st.sampled_from(names), tails)
    verbs = st.sampled_from([verb.encode() for verb in [*sorted(PASS), *DECIDED]])
    noise = st.binary(max_size=6).map(lambda raw: raw.replace(b"\0", b""))
    return st.one_of(options, options, verbs, st.sampled_from([b"", b"-", b"--", b"--=", b"-=x", b"/run/runc"]), noise)


@settings(max_examples=400, deadline=None)
@given(args=st.lists(tokens(), max_size=6))
def test_passes_through_iff_the_oracle_of_runcs_grammar_says_so(built: House, args: list[bytes]) -> None:
    built.reset()
    seen = built.call(*args)
    passed = oracle(args)
    assert seen.role == ("delegate" if passed else "python")
    assert seen.args == [*([os.fsencode(built.delegate)] if passed else from_python(built)), *args]


@pytest.mark.parametrize("delegate", ["runc", "crun"])
def test_what_passes_is_state_to_the_real_delegate_or_an_error(delegate: str, tmp_path: Path) -> None:
    """Every spelling that we pass for `state`, the delegate reads as `state` of an absent container, or rejects."""
    path = shutil.which(delegate)
    if path is None:
        pytest.skip(f"{delegate} is not installed: the grammar is not held against it")
    rows = [args for args, role in SPELLINGS if role == "delegate" and "state" in args and "--help" not in args]
    assert rows
    for args in rows:
        at = args.index("state")
        done = subprocess.run(
            [path, *args[: at + 1], "absent"], capture_output=True, text=True, cwd=tmp_path, timeout=60
        )
        assert done.returncode != 0
        assert done.stdout == "" or "flag needs an argument" in done.stdout
        assert re.search("does not exist|error opening|invalid option|unrecognized|mkdir|root", done.stderr), (
            args,
            done,
        )


# --- what arrives --------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("verb", ["state", "create"])


@BOTH
def test_environment_is_untouched(house: House, verb: str) -> None:
    env = {"A": "1", "EMPTY": "", "LC_ALL": "C", "NOTIFY_SOCKET": "/run/n", "PATH": "/nowhere"}
    assert house.call(verb, env=env).env == [f"{k}={v}".encode() for k, v in env.items()]


@BOTH
def test_no_environment_at_all(house: House, verb: str) -> None:
    """podman calls kill and delete without a PATH."""
    seen = house.call(verb)
    assert seen.env == []
    assert seen.role == {"state": "delegate", "create": "python"}[verb]


@BOTH
def test_descriptors_are_inherited_and_none_is_added(house: House, verb: str, tmp_path: Path) -> None:
    with open(tmp_path / "a", "w") as a, open(tmp_path / "b", "w") as b:
        house.write("config.toml", "")
        house.write("launch.conf", "")
        seen = house.call(verb, pass_fds=(a.fileno(), b.fileno()))
        assert seen.fds == {0, 1, 2, a.fileno(), b.fileno()}


@BOTH
def test_parent_death_signal_is_kept(house: House, verb: str) -> None:
    """containerd's shim sets SIGKILL; execve keeps it, a child would not have it."""
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    assert house.call(verb, preexec_fn=lambda: prctl(1, int(signal.SIGKILL), 0, 0, 0)).numbers["pdeathsig"] == [9]


@BOTH
@pytest.mark.parametrize(("ignored", "mask"), [([], 0), ([13], 1), ([25], 2), ([13, 25], 3), ([1, 2, 13], 1)])
def test_signal_dispositions_are_kept_and_told(house: House, verb: str, ignored: list[int], mask: int) -> None:
    def before() -> None:
        for number in set(range(1, 32)) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    seen = house.call(verb, preexec_fn=before)
    assert seen.numbers["ignored"] == ignored
    if verb == "create":
        assert seen.args[: len(from_python(house))] == from_python(house, mask)


@BOTH
def test_blocked_signals_stay_blocked(house: House, verb: str) -> None:
    seen = house.call(verb, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, [2, 15]))
    assert seen.numbers["blocked"] == [2, 15]


@BOTH
def test_it_stays_one_process(house: House, verb: str) -> None:
    command = ["agentshim", verb]
    with subprocess.Popen(command, executable=house.launcher, env={}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert f"pid {process.pid}\n" in process.stdout.read().decode()


@BOTH
def test_it_leaves_no_child(house: House, verb: str) -> None:
    """Who waits for the kernel beside our decision is an orphan: the delegate reaps its own children only."""
    assert house.call(verb).numbers["child"] == [-1]


@pytest.mark.skipif(not shutil.which("strace"), reason="LOUD: no strace here: what hastens a start is NOT tested")
@pytest.mark.parametrize("verb", [*MOVES, "update", "state", "start", "delete", "--version"])
def test_only_a_verb_that_moves_processes_is_hastened(house: House, verb: str, tmp_path: Path) -> None:
    """One write, into the group that it is in, with nothing else open: whoever waits for our output waits for us."""
    calls = ["strace", "-f", "-qq", "-y", "-e", "trace=write,close_range", "-o", str(tmp_path / "calls")]
    done = subprocess.run(
        [*calls, house.launcher, verb], env={"ASAN_OPTIONS": "detect_leaks=0"}, capture_output=True, timeout=60
    )
    assert done.returncode == 7
    seen = (tmp_path / "calls").read_text()
    moved = re.findall(r'write\((\d+)<(/sys/fs/cgroup/\S*cgroup\.procs)>, "0", 1', seen)
    if verb in MOVES:
        assert len(moved) == 1 and int(moved[0][0]) < 3, f"all descriptors were closed before: {seen}"
        assert seen.index("close_range(0, 4294967295, 0") < seen.index("cgroup.procs>")
    else:
        assert not moved and "close_range" not in seen


def test_a_links_name_reaches_python(house: House, tmp_path: Path) -> None:
    """A link `agentshim-web` selects a policy; /proc/self/exe has lost its name, argv[0] is anyone's."""
    link = tmp_path / "agentshim-web"
    link.symlink_to(house.launcher)
    seen = house.call("create", executable=link)
    assert seen.args == [*from_python(house, execfn=str(link)), b"create"]


def test_a_link_passes_through_too(house: House, tmp_path: Path) -> None:
    link = tmp_path / "runc"
    link.symlink_to(house.launcher)
    assert house.call("state", executable=link).role == "delegate"


@pytest.mark.parametrize(("verb", "role"), [("start", "python"), ("state", "delegate")])
def test_start_with_a_notify_socket_is_decided(house: House, verb: str, role: str) -> None:
    """runc start binds the host's side of NOTIFY_SOCKET: authority outside config.json."""
    assert house.call(verb, env={"NOTIFY_SOCKET": "/run/n"}).role == role


def test_many_arguments(house: House) -> None:
    args = [b"x" * 100] * 5000
    assert house.call("create", *args).args[-5000:] == args


def test_no_argument_at_all_is_an_error(house: House) -> None:
    """Linux >= 5.18 puts in an empty argv[0] itself; before, argc is 0."""
    seen = Witness(subprocess.run([], executable=house.launcher, env={}, capture_output=True, timeout=60), house)
    assert seen.role in ("python", "none")


# --- the delegate --------------------------------------------------------------------------------------------------

DELEGATE_LINES = [
    ("", "default"),
    ("# nothing\n\n", "default"),
    ('[limits]\ndelegate = "{other}"\n', "default"),
    ('mode = "enforce"\nsize = 12\non = true\n[a]\nb = [\n1 ]\n', "default"),
    ('delegate = "{other}"', "other"),
    ('delegate = "{other}"\n', "other"),
    ('  delegate="{other}"  # why\n', "other"),
    ('mode = "enforce" # x\n\tdelegate\t=\t"{other}"\n', "other"),
    ('delegate = "{other}"\nallow = [\n"a"]\n', "other"),
    ('allow = [\n"a"]\ndelegate = "{other}"\n', "python"),
    ("delegate = {other}\n", "python"),
    ("delegate = '{other}'\n", "python"),
    ('"delegate" = "{other}"\n', "python"),
    ('delegate.x = "{other}"\n', "python"),
    ('text = """\ndelegate = "{other}"\n"""\n', "python"),
    ("text = '''\ndelegate = \"{other}\"\n'''\n", "python"),
    ('delegate = """{other}"""\n', "python"),
    ('delegate = "{other}" x\n', "python"),
    ('delegate = "{other}\n', "python"),
    ('delegate = "{other}"\r\n', "python"),
    ('\ufeffdelegate = "{other}"\n', "python"),
    ('delegate = "\\u002f{other}"\n', "python"),
    ('delegate = ""\n', "python"),
    ('delegate = "delegate"\n', "python"),
    ('delegate = "./{other}"\n', "python"),
    ('delegate = "{absent}"\n', "python"),
    ('delegate = "{conf}"\n', "python"),
    ('delegate = "{launcher}"\n', "python"),
    ("delegate\n", "python"),
    ("= 3\n", "python"),
    ("x = \n", "python"),
    ("\0\n", "python"),
    ("# long\n" * 10000, "python"),
]


@pytest.mark.parametrize(("text", "expected"), DELEGATE_LINES, ids=lambda value: repr(value)[:40])
def test_delegate_line(house: House, text: str, expected: str) -> None:
    paths = {"other": house.other, "absent": house.base / "absent", "conf": house.conf, "launcher": house.launcher}
    for name, path in paths.items():
        text = text.replace("{" + name + "}", str(path))
    house.write("config.toml", text)
    role = house.call("state").role
    assert role == {"default": "delegate", "other": str(house.other), "python": "python"}[expected]
    told = {"default": str(house.delegate), "other": str(house.other), "python": "-"}[expected]
    assert house.call("create").args == [*from_python(house, delegate=told), b"create"]


DELEGATES_LINES = [
    ('delegate = "{other}"\ndelegates = ["{other}"]\n', "other"),
    ('delegates = ["{other}"]\ndelegate = "{other}"', "other"),
    ('delegate = "{other}"\n\tdelegates=[ "/usr/bin/runc" ,"{other}",\t] # two\nnames = ["a", "b"]\n', "other"),
    ('delegate = "{other}"\ndelegates = []\n', "other"),
    ('delegate = "{other}"\ndelegates = [ ]\n', "other"),
    ('delegate = "{other}"\nmode = "enforce"\n[a]\ndelegates = ["/x"]\n', "other"),
    ('delegate = "{other}" # none of the delegates\nnames = ["a"]\n', "other"),
    ('delegates = ["/usr/bin/runc"]\n', "default"),  # bounds what is named; Python takes the default as well
    ('names = ["a", "b"]\nannotations = []\ndelegate = "{other}"\n', "other"),
    ('delegate = "{other}"\nnames = [\n"a"]\n', "other"),
    ('delegate = "{other}"\ndelegates = ["/usr/bin/runc"]\n', "python"),
    ('delegates = ["/usr/bin/runc", "{other}x"]\ndelegate = "{other}"\n', "python"),
    ('delegate = "{other}"\ndelegates = ["x{other}"]\n', "python"),
    ('delegate = "{other}"\ndelegates = [", ", "{other} "]\n', "python"),
    ('delegate = "{other}"\ndelegates = ["a]", "b"] # "{other}"\n', "python"),
    ('delegate = "{other}"\ndelegates = [""]\n', "python"),
    ('delegate = "{other}"\ndelegates = [\n"{other}"]\n', "python"),
    ('delegate = "{other}"\ndelegates = [\n"/usr/bin/runc"]\n', "python"),
    ('delegate = "{other}"\nnames = [\n"a"]\ndelegates = ["/usr/bin/runc"]\n', "python"),
    ('delegate = "{other}"\ntext = """\n[a]\n"""\ndelegates = ["/usr/bin/runc"]\n', "python"),
    ("delegate = \"{other}\"\ndelegates = ['{other}']\n", "python"),
    ('delegate = "{other}"\ndelegates = ["{other}" "/x"]\n', "python"),
    ('delegate = "{other}"\ndelegates = [,"{other}"]\n', "python"),
    ('delegate = "{other}"\ndelegates = ["{other}",,]\n', "python"),
    ('delegate = "{other}"\ndelegates = ["{other}"\n', "python"),
    ('delegate = "{other}"\ndelegates = ["{other}\n', "python"),
    ('delegate = "{other}"\ndelegates = ["{other}"] x\n', "python"),
    ('delegate = "{other}"\ndelegates = ["\\u002f", "{other}"]\n', "python"),
    ('delegate = "{other}"\ndelegates = [["{other}"]]\n', "python"),
    ('delegate = "{other}"\ndelegates = "{other}"\n', "python"),
    ('delegate = "{other}"\ndelegates = true\n', "python"),
    ('delegate = "{other}"\n"delegates" = ["/usr/bin/runc"]\n', "python"),
    ('delegate = "{other}"\n\'delegates\' = ["/usr/bin/runc"]\n', "python"),
    ('delegate = "{other}"\n"delegate\\u0073" = ["/usr/bin/runc"]\n', "python"),
    ('delegate = "{other}"\n"\\U00000064elegates" = ["/usr/bin/runc"]\n', "python"),
    ('delegate = "{other}"\ndelegates.x = ["{other}"]\n', "python"),
    ('delegate = "{other}"\ndelegates = ["{other}"]\r\n', "python"),
    ('delegate = "{other}"\ndelegates = ["{other}"]\ndelegates = ["/x"]\n', "python"),
    ('delegate = "{other}"\ndelegates = ["{other}"]\ndelegate = "/x"\n', "python"),
    ('delegate = "{other}"\ndelegates = ["/x"]\ndelegates = ["{other}"]\n', "python"),
    ('delegates = ["{other}"]\ndelegate = "/x"\ndelegate = "{other}"\n', "python"),
]


@pytest.mark.parametrize(("text", "expected"), DELEGATES_LINES, ids=lambda value: repr(value)[:60])
def test_delegates_bound_what_is_named(house: House, text: str, expected: str) -> None:
    test_delegate_line(house, text, expected)


LINES = ['delegate = "{other}"\n', 'delegates = ["{other}"]\n', 'delegates = ["{delegate}"]\n', "names = [", "\n"]
WORDS = ["delegate", "delegates", '"delegates"', '"delegate\\u0073"', '"{other}"', '"{delegate}"', '"""', "'''"]


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.sampled_from([*LINES, *LINES, *WORDS, *'[]",=#. \n']), max_size=10))
def test_what_is_run_is_what_toml_says(built: House, pieces: list[str]) -> None:
    """Whatever the file is: the launcher runs what its keys say, if it is TOML at all, or leaves it to Python."""
    built.reset()
    text = "".join(pieces).replace("{other}", str(built.other)).replace("{delegate}", str(built.delegate))
    built.write("config.toml", text)
    role = built.call("state").role
    if role == "python":
        return
    try:
        keys = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # Python refuses all that it decides; a fault behind `delegate` is not the launcher's to find
    named, bound = keys.get("delegate"), keys.get("delegates")
    assert role == ("delegate" if named in (None, str(built.delegate)) else named)
    assert named is None or not bound or named in bound


EXPECTED = {"setgid-dir": "{}", "conf-dir": "none", "conf-link": "none"}
HARMS = ["group", "other", "owner", "symlink", "fifo", "directory", "conf-dir", "conf-link"]


@pytest.mark.parametrize("harm", [*HARMS, "setgid-dir"])
def test_config_that_others_could_write_is_not_read(house: House, harm: str) -> None:
    """A directory of configuration that others can write holds no launch.conf to believe either: nothing is run."""
    damage(house, house.write("config.toml", f'delegate = "{house.other}"\n'), harm)
    assert house.call("state").role == EXPECTED.get(harm, "python").format(house.other)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_delegate_that_others_could_write_is_not_run(house: House, mode: int) -> None:
    house.write("config.toml", f'delegate = "{house.other}"\n')
    house.other.chmod(mode)
    try:
        assert house.call("state").role == "python"
    finally:
        house.other.chmod(0o755)


def test_a_bad_delegate_does_not_make_room_for_the_next_of_the_list(house: House) -> None:
    house.delegate.chmod(0o777)
    try:
        assert house.call("state").args == [*from_python(house, delegate="-"), b"state"]
    finally:
        house.delegate.chmod(0o755)


def test_delegate_of_another_owner_is_not_run(house: House) -> None:
    house.write("config.toml", f'delegate = "{house.other}"\n')
    os.chown(house.other, 1, 0)
    try:
        assert house.call("state").role == "python"
    finally:
        os.chown(house.other, 0, 0)


def test_delegate_that_cannot_be_executed_goes_to_python_with_its_name(house: House) -> None:
    house.write("config.toml", f'delegate = "{house.other}"\n')
    house.other.chmod(0o644)
    try:
        assert house.call("state", "x").args == [*from_python(house, delegate=str(house.other)), b"state", b"x"]
    finally:
        house.other.chmod(0o755)


def damage(house: House, path: Path, harm: str) -> None:
    """Make `path` one that the launcher must not believe."""
    text = path.read_text()
    if harm in ("group", "other"):
        path.chmod({"group": 0o664, "other": 0o646}[harm])
    elif harm == "owner":
        os.chown(path, 1, 0)
    elif harm == "conf-dir":
        house.conf.chmod(0o777)
    elif harm == "conf-link":
        house.conf.rename(house.base / "conf.real")
        house.conf.symlink_to(house.base / "conf.real")
    elif harm == "setgid-dir":
        house.conf.chmod(0o2755)
    else:
        path.unlink()
        if harm == "fifo":
            os.mkfifo(path)
        elif harm == "directory":
            path.mkdir()
        else:
            path.with_suffix(".real").write_text(text)
            path.symlink_to(path.with_suffix(".real"))


# --- finding Python ------------------------------------------------------------------------------------------------


def good(house: House) -> str:
    return f'# where\npython = {house.other}\nlib = "{house.lib}"\n'


def test_launch_conf_names_the_interpreter(house: House) -> None:
    house.write("launch.conf", good(house))
    assert house.call("create").role == str(house.other)


@pytest.mark.parametrize("key", ["python", "lib"])
def test_launch_conf_may_name_one_of_the_two(house: House, key: str) -> None:
    lines = good(house).splitlines()
    house.write("launch.conf", next(line for line in lines if line.startswith(key)))
    assert house.call("create").role == (str(house.other) if key == "python" else "python")


def fails(seen: Witness, words: str, code: int = 1) -> None:
    """Nothing was run, and one line says what to do."""
    assert seen.role == "none"
    assert seen.done.returncode == code
    assert re.fullmatch(r"launcher: python: asked [^\n]+, ceiling [^\n]+: [^\n]+\n", seen.stderr), seen.stderr
    assert words in seen.stderr
    assert not re.search("permission denied|operation not permitted|no such file", seen.stderr, re.IGNORECASE)


@pytest.mark.parametrize("harm", HARMS)
def test_launch_conf_that_others_could_write_fails_closed(house: House, harm: str) -> None:
    damage(house, house.write("launch.conf", good(house)), harm)
    fails(house.call("create"), "launch.conf")
    if not harm.startswith("conf"):
        assert house.call("state").role == "delegate"


@pytest.mark.parametrize(
    "text",
    [
        "pyhton = /usr/bin/python3",
        "python /usr/bin/python3",
        "python = python3",
        "python =",
        "[python]",
        "python = /a /b",
        "python = /a\npython = /a",
        "python = '/usr/bin/python3'",
        "env = A=1",
        "lib = /" + "x" * 5000,
        "x" * 9000,
        "\0",
    ],
    ids=lambda value: repr(value)[:30],
)
def test_launch_conf_not_understood_fails_closed(house: House, text: str) -> None:
    house.write("launch.conf", text + "\n")
    unread = "\0" in text or len(text) > 8192
    fails(house.call("create"), "regular file" if unread else "each at most once")


def test_without_a_record_python3_beside_the_launcher_is_taken(house: House) -> None:
    """A wheel in a virtual environment: nothing can be written at its installation."""
    (house.lib / "python").unlink()
    fails(house.call("create"), "/bin/python3")
    beside = house.prefix / "bin" / "python3"
    beside.symlink_to(house.other)
    try:
        seen = house.call("create")
        assert seen.role == str(house.other)
        assert seen.args[0] == os.fsencode(beside)
    finally:
        beside.unlink()


@pytest.mark.parametrize("harm", ["group", "owner", "symlink", "fifo", "directory"])
def test_record_that_others_could_write_fails_closed(house: House, harm: str) -> None:
    record = house.lib / "python"
    try:
        damage(house, record, harm)
        fails(house.call("create"), "lib/agentshim/python")
    finally:
        shutil.rmtree(record) if record.is_dir() and not record.is_symlink() else record.unlink()


@pytest.mark.parametrize("target", ["python", "lib", "lib/shim", "lib/shim/main.py"])
@pytest.mark.parametrize("harm", ["writable", "owner"])
def test_code_that_others_could_write_is_not_run(house: House, target: str, harm: str) -> None:
    path = house.python if target == "python" else house.lib / target.removeprefix("lib").lstrip("/")
    mode = path.stat().st_mode & 0o7777
    try:
        path.chmod(mode | 0o002) if harm == "writable" else os.chown(path, 1, 1)
        fails(house.call("create"), "only root can write")
        assert house.call("state").role == "delegate"
    finally:
        os.chown(path, 0, 0)
        path.chmod(mode)


def byte_code(house: House) -> Path:
    """A main.pyc beside main.py, with the head that hotfile.py writes."""
    source, python = (house.lib / "shim" / "main.py").stat(), house.python.stat()
    words = (int(source.st_mtime), int(python.st_mtime), python.st_size)
    made = house.lib / "shim" / "main.pyc"
    made.write_bytes(b"pyc\n" + struct.pack("=III", *(word & 0xFFFFFFFF for word in words)))
    return made


@pytest.mark.parametrize(
    "spoil",
    [
        lambda made: None,
        lambda made: os.utime(made.with_suffix(".py"), (1, 1)),
        lambda made: made.write_bytes(made.read_bytes()[:8] + bytes(4) + made.read_bytes()[12:]),
        lambda made: made.write_bytes(made.read_bytes()[:12] + bytes(4)),
        lambda made: made.write_bytes(made.read_bytes()[:15]),
        lambda made: made.chmod(0o646),
        lambda made: os.chown(made, 1, 1),
    ],
    ids=["sound", "edited source", "another interpreter", "of another size", "torn", "writable", "another's"],
)
def test_byte_code_is_run_if_it_is_of_this_source_and_interpreter(
    house: House, request: pytest.FixtureRequest, spoil: Callable[[Path], None]
) -> None:
    made = byte_code(house)
    times = made.with_suffix(".py").stat()
    try:
        spoil(made)
        wanted = made if request.node.callspec.id.endswith("sound") else made.with_suffix(".py")
        assert house.call("create").args[6] == os.fsencode(wanted)
    finally:
        os.utime(made.with_suffix(".py"), ns=(times.st_atime_ns, times.st_mtime_ns))
        made.unlink()


def test_interpreter_that_cannot_start(house: House) -> None:
    house.write("launch.conf", f"python = {house.lib / 'shim' / 'main.py'}\n")
    done = subprocess.run([house.launcher, "create"], capture_output=True, text=True, env={}, timeout=60)
    assert done.returncode == 1
    assert "the kernel can start" in done.stderr


def test_development_tree(tmp_path: Path, house: House) -> None:
    tree = tmp_path / "repo"
    (tree / "native" / "build").mkdir(parents=True)
    (tree / "shim").mkdir()
    (tree / "shim" / "main.py").write_text("")
    launcher = tree / "native" / "build" / "agentshim"
    shutil.copy(house.launcher, launcher)
    build.record(launcher.parent, "python", str(house.python))
    seen = house.call("create", executable=launcher)
    assert seen.args[6] == os.fsencode(tree / "shim" / "main.py")


# --- failing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "code"), [("create", 1), ("exec", 255), ("run", 1), ("--frob", 1)])
def test_exit_code(house: House, verb: str, code: int) -> None:
    house.write("launch.conf", "x\n")
    fails(house.call("--root", "R", verb, "id"), "launch.conf", code)


@pytest.mark.parametrize(
    ("args", "logged"),
    [
        (["--log", "LOG", "--log-format", "json", "create"], True),
        (["--log-format=json", "--log=LOG", "--systemd-cgroup", "exec"], True),
        (["--rootless", "true", "--log", "LOG", "--log-format", "json", "create"], True),
        (["--log", "LOG", "create"], False),
        (["--log", "LOG", "--log-format", "text", "create"], False),
        (["create", "--log", "LOG", "--log-format", "json"], False),
        (["--frob", "--log", "LOG", "--log-format", "json", "create"], False),
    ],
)
def test_error_line_in_the_engines_log(house: House, args: list[str], logged: bool, tmp_path: Path) -> None:
    """containerd shows the last error line of log.json and nothing of stderr."""
    house.write("launch.conf", 'python = "/absent\x1b[31mé"\n')
    log = tmp_path / "log.json"
    seen = house.call(*(arg.replace("LOG", str(log)) for arg in args))
    assert log.exists() == logged
    if logged:
        line = json.loads(log.read_text())
        assert line["level"] == "error"
        assert line["msg"] + "\n" == seen.stderr
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line["time"])


def test_log_is_appended_to(house: House, tmp_path: Path) -> None:
    house.write("launch.conf", "x\n")
    log = tmp_path / "log.json"
    log.write_text("before\n")
    house.call("--log", str(log), "--log-format", "json", "create")
    assert log.read_text().startswith("before\n{")


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "absent directory", "full"])
def test_log_that_cannot_be_written_changes_nothing(house: House, tmp_path: Path, kind: str) -> None:
    house.write("launch.conf", "x\n")
    log, victim = tmp_path / "log", tmp_path / "victim"
    victim.write_text("")
    if kind == "symlink":
        log.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(log)
    elif kind == "directory":
        log.mkdir()
    path = {"absent directory": "/nonexistent/log", "full": "/dev/full"}.get(kind, str(log))
    fails(house.call("--log", path, "--log-format", "json", "create"), "launch.conf")
    assert victim.read_text() == ""


def test_stderr_that_is_closed_changes_nothing(house: House) -> None:
    house.write("launch.conf", "x\n")
    assert house.call("create", preexec_fn=lambda: os.close(2)).done.returncode == 1


def test_set_user_id_launcher_refuses(house: House, tmp_path: Path) -> None:
    if b"nosuid" in (options := mount_options(tmp_path)):
        pytest.skip(f"{tmp_path} is mounted {options!r}: set-id is not honoured, the refusal is not tested")
    copy = tmp_path / "agentshim"
    shutil.copy(house.launcher, copy)
    os.chown(copy, 1, 1)
    copy.chmod(0o4755)
    if "sanitize" in copy.read_bytes().decode("latin-1"):
        pytest.skip("the sanitizers do not start in a set-id process")
    tmp_path.chmod(0o755)
    done = subprocess.run([copy, "state"], capture_output=True, text=True, env={}, timeout=60)
    assert done.returncode == 1
    assert "set-id" in done.stderr


def mount_options(path: Path) -> bytes:
    flags = os.statvfs(path).f_flag
    return b"nosuid" if flags & os.ST_NOSUID else b""


def test_user_namespace(house: House) -> None:
    """There the host's root shows as 65534. Rootless podman calls so; Python says what it thinks of that."""
    unshare = shutil.which("unshare")
    assert unshare
    probe = subprocess.run([unshare, "--user", "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no user namespaces here: {probe.stderr.strip()}")
    for verb, role in (("state", "delegate"), ("create", "python")):
        done = subprocess.run([unshare, "--user", house.launcher, verb], capture_output=True, env={}, timeout=60)
        assert Witness(done, house).role == role, done.stderr


def test_file_of_nobody_is_not_trusted_outside_a_user_namespace(house: House) -> None:
    os.chown(house.write("config.toml", ""), 65534, 65534)
    assert house.call("state").role == "python"


def test_address_space_of_a_few_megabytes_suffices(house: House) -> None:
    if "asan" in subprocess.run(["ldd", house.launcher], capture_output=True, text=True, check=False).stdout:
        pytest.skip("AddressSanitizer reserves terabytes")
    limit = 16 << 20
    seen = house.call("state", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert seen.role == "delegate"


def test_real_launcher_is_static(tmp_path: Path) -> None:
    """No loader, no LD_PRELOAD, nothing to relocate: a dynamic one costs as much again as runc's own exec."""
    out = build.build_launcher(tmp_path / "agentshim")
    assert b"/ld-" not in out.read_bytes()
    assert sys.platform == "linux"
