"""What reaches the delegate besides config.json: environment, descriptors, signals, working directory, arguments.

Belongs here: a delegate that writes down what it was given before it becomes runc. Under `identity` that is what the
engine gave; under `agent` what carries authority (NOTIFY_SOCKET, LISTEN_FDS, --preserve-fds) is missing, and no more.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.columns import COLUMNS, RUNC, Column, configure, launcher, path_of, python
from conformance.oci.bundles import sleeper, spec
from conformance.oci.cli import Runtime
from conformance.oci.conftest import COUNTER, Maker
from conformance.room import Room

pytestmark = [
    pytest.mark.oci,
    pytest.mark.skipif(not launcher().exists(), reason=f"SKIPPED LOUDLY: {launcher()} is missing: run `make build`"),
]
AGENT, IDENTITY = COLUMNS[1], COLUMNS[3]
MIRROR = """#!{python} -IS
import ctypes, json, os, sys
libc = ctypes.CDLL(None)
number = ctypes.c_int()
libc.prctl(2, ctypes.byref(number), 0, 0, 0)  # PR_GET_PDEATHSIG
status = dict(line.rstrip().split(":\\t", 1) for line in open("/proc/self/status") if line.startswith("Sig"))
fds = []
for name in os.listdir("/proc/self/fd"):
    try:
        fds.append((int(name), os.readlink("/proc/self/fd/" + name).split(":")[0]))
    except OSError:
        pass
environment = open("/proc/self/environ", "rb").read().decode("utf-8", "surrogateescape")
told = dict(argv=sys.argv[1:], env=sorted(environment.rstrip("\\0").split("\\0")), cwd=os.getcwd())
told.update(pdeathsig=number.value)
told.update(ignored=int(status["SigIgn"], 16), blocked=int(status["SigBlk"], 16), fds=sorted(fds))
told.update(umask=os.umask(0))
os.umask(told["umask"])
with open("{mark}", "a") as mark:
    mark.write(json.dumps(told) + "\\n")
os.execv("{runc}", ["runc", *sys.argv[1:]])
"""


class Mirror:
    """The delegate, and what it was told."""

    def __init__(self, room: Room) -> None:
        home = room.base / f"m{next(COUNTER)}"
        home.mkdir(mode=0o755)
        self.mark = home / "mark"
        self.path = home / "runc"
        self.path.write_text(MIRROR.format(python=python(), mark=self.mark, runc=RUNC))
        self.path.chmod(0o755)

    def told(self) -> dict[str, Any]:
        """The last call."""
        found: dict[str, Any] = json.loads(self.mark.read_text().splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def mirror(the_room: Room) -> Iterator[Mirror]:
    one = Mirror(the_room)
    configure(the_room, delegate=str(one.path))
    yield one
    configure(the_room)


def runtime(room: Room, column: Column | None, mirror: Mirror) -> Runtime:
    """agentshim under `column`, or the mirror itself."""
    program = path_of(column, room) if column else str(mirror.path)
    return Runtime(room, program, room.base / f"i{next(COUNTER)}")


def given(room: Room, mirror: Mirror, column: Column | None, bundle: Maker, verb: str, **how: Any) -> dict[str, Any]:
    """What the delegate was told by one call of `verb`, with what differs between calls taken out."""
    one = runtime(room, column, mirror)
    made = bundle(sleeper() if verb in ("exec", "kill") else spec())
    words = {"run": ["--bundle", str(made.path), "c"], "exec": ["c", "true"], "kill": ["c", "9"], "state": ["c"]}[verb]
    if verb in ("exec", "kill"):
        one.must("run", "--detach", "--bundle", str(made.path), "c")
    one.call(verb, *how.pop("more", []), *words, **how)
    told = mirror.told()
    one.clear()
    told["fds"] = [fd for fd in told["fds"] if fd[0] > 2 and fd[1] not in ("/proc", str(mirror.path))]
    told["argv"] = [word.replace(str(one.home), "HOME").replace(str(made.path), "BUNDLE") for word in told["argv"]]
    return told


HOWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd environment": {
        "env": {"LC_ALL": "C", "LD_BIND_NOW": "1", "GOTRACEBACK": "all", "EMPTY": "", "PYTHONPATH": "/x"}
    },
    "no PATH": {"env": {"PATH": ""}},
    "another directory": {"cwd": "/tmp"},
}


@pytest.mark.parametrize("verb", ["run", "exec", "kill", "state"])
@pytest.mark.parametrize("how", HOWS)
def test_the_delegate_is_told_the_same(the_room: Room, mirror: Mirror, bundle: Maker, verb: str, how: str) -> None:
    """No LC_CTYPE of Python's, no ignored SIGPIPE, no descriptor of ours, no other directory."""
    plain = given(the_room, mirror, None, bundle, verb, **HOWS[how])
    for column in (AGENT, IDENTITY):
        ours = given(the_room, mirror, column, bundle, verb, **HOWS[how])
        for key in ("env", "cwd", "pdeathsig", "ignored", "blocked", "fds", "umask"):
            assert ours[key] == plain[key], f"{column.name}: {key}"


@pytest.mark.parametrize("verb", ["run", "state"])
def test_ignored_signals_stay_ignored(the_room: Room, mirror: Mirror, bundle: Maker, verb: str) -> None:
    for column in (None, AGENT, IDENTITY):
        one = runtime(the_room, column, mirror)
        words = ["--bundle", str(bundle(spec()).path), "c"] if verb == "run" else ["c"]
        shell = f"trap '' PIPE HUP; exec {one.program} {' '.join(one.options())} {verb} {' '.join(words)}"
        the_room.run(["sh", "-c", shell], restore_signals=True)
        ignored = mirror.told()["ignored"]
        assert ignored & 1 << signal.SIGPIPE - 1 and ignored & 1 << signal.SIGHUP - 1, column


@pytest.mark.parametrize("verb", ["run", "state"])
def test_parent_death_signal(the_room: Room, mirror: Mirror, bundle: Maker, verb: str) -> None:
    """containerd-shim sets PDEATHSIG before it calls."""
    for column in (None, AGENT, IDENTITY):
        one = runtime(the_room, column, mirror)
        words = ["--bundle", str(bundle(spec()).path), "c"] if verb == "run" else ["c"]
        the_room.run(["setpriv", "--pdeathsig", "KILL", one.program, *one.options(), verb, *words])
        assert mirror.told()["pdeathsig"] == signal.SIGKILL, column


# Each hands the container something that is in no config.json.
GIFTS = {
    "preserve-fds": (("--preserve-fds", "1"), {}),
    "LISTEN_FDS": ((), {"LISTEN_FDS": "1"}),
    "nothing": ((), {}),
}


@pytest.mark.parametrize("gift", GIFTS)
def test_descriptors(the_room: Room, mirror: Mirror, bundle: Maker, gift: str) -> None:
    """Descriptor 3 reaches the container where it was given, except under `agent`."""
    options, env = GIFTS[gift]
    secret = the_room.base / "secret"
    secret.write_text("secret\n")
    seen = {}
    for column in (None, AGENT, IDENTITY):
        one = runtime(the_room, column, mirror)
        made = bundle(spec("sh", "-c", "cat <&3"))
        words = [*one.options(), "run", *options, "--bundle", str(made.path), "c"]
        shell = f"export LISTEN_PID=$$; exec 3<{secret}; exec {one.program} {' '.join(words)}"
        found = the_room.run(["sh", "-c", shell], env=env)
        seen[column.name if column else "runc"] = "secret" in found.out
    given = gift != "nothing"
    assert seen == {"runc": given, "agent": False, "identity": given}


def test_notify_socket(the_room: Room, mirror: Mirror, bundle: Maker) -> None:
    """The delegate mounts a socket for it, after config.json was read: `agent` does not pass it on."""
    for column, kept in ((AGENT, False), (IDENTITY, True)):
        one = runtime(the_room, column, mirror)
        env = {"NOTIFY_SOCKET": str(the_room.base / "notify.sock")}
        one.must("create", "--bundle", str(bundle(sleeper()).path), "c", env=env)
        assert any(word.startswith("NOTIFY_SOCKET=") for word in mirror.told()["env"]) == kept
        one.clear()


PROBES = (
    ["--version"],
    ["checkpoint", "--help"],
    ["restore", "--lsm-mount-context"],
    ["features"],
    ["state", "nobody"],
    ["--help"],
)


@pytest.mark.parametrize("words", PROBES, ids=" ".join)
def test_probes(the_room: Room, words: list[str]) -> None:
    """What engines ask at their start is answered as the delegate does: by exit code, and features by text."""
    configure(the_room)
    plain = Runtime(the_room, RUNC, the_room.base / f"i{next(COUNTER)}").bare(*words)
    ours = Runtime(the_room, path_of(AGENT, the_room), the_room.base / f"i{next(COUNTER)}").bare(*words)
    assert ours.code == plain.code, f"{plain}\n{ours}"
    if words == ["features"]:
        assert json.loads(ours.out) == json.loads(plain.out)
    if words[0] == "--version":
        assert "version" in ours.out and set(plain.out.splitlines()[1:]) <= set(ours.out.splitlines()), ours.out


@pytest.mark.parametrize("verb", ["checkpoint", "restore"])
def test_checkpoint_and_restore_are_refused(the_room: Room, bundle: Maker, verb: str) -> None:
    """A restored process brings its state from an image that nobody has met with a policy."""
    configure(the_room)
    one = Runtime(the_room, path_of(AGENT, the_room), the_room.base / f"i{next(COUNTER)}")
    one.must("run", "--detach", "--bundle", str(bundle(sleeper(f"{one.cgroup}/i")).path), "c")
    image = the_room.base / f"i{next(COUNTER)}"
    more = ["--bundle", str(bundle(spec()).path), "d"] if verb == "restore" else ["c"]
    found = one.call(verb, "--image-path", str(image), *more)
    assert found.code == 1 and verb in found.err, str(found)
    assert not image.exists() and one.status("c") == "running"
    one.clear()
