"""What the fuzzers and the fault injector have found: each once failed here.

Belongs here: one small test a finding. Next door: the runs that found them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shim import argv, bundle, hostpaths, kernel, plan, product, runc, state
from shim.cold.policy import policy_source
from shim.dim import invocation, mounts
from shim.errors import HostError, Invalid, Refused
from shim.mountinfo import Mount
from shim.verbs import hook
from tests.fuzz import world


@pytest.mark.parametrize("words", [["ps", "--", "--no-pivot=0"], ["kill", "--", "--all", "ID"], ["state", "--", "-x"]])
def test_a_dash_behind_the_end_of_options(words: list[str]) -> None:
    """canonical() writes no `--`: what stood behind one would have become an option of the delegate's."""
    with pytest.raises(Invalid, match="without a dash first"):
        argv.parse(words)


def test_a_message_is_one_printable_line_in_all_its_parts() -> None:
    """A key of config.json, or a hook's path in what to do, reached the terminal and the engine's log as it was."""
    error = Refused("hooks", "x\x1b[2J\ny", "a\nb", "c\r", "remove \u2028it\x07")
    assert str(error).isprintable()
    assert "\\x1b[2J" in str(error) and "\\x07" in str(error)


def test_a_read_only_view_of_the_host_is_replaced_by_a_read_only_one() -> None:
    """The container's own /dev/shm came writable: more than asked, so our own check refused the container as a bug."""
    spec: dict[str, Any] = {
        **world.EMPTY,
        "mounts": [{"destination": "/dev/shm", "type": "bind", "source": "/dev/shm"}],
    }
    spec["mounts"][0]["options"] = ["rbind", "ro"]
    facts = world.facts_of(spec)
    facts.sources["/dev/shm"] = hostpaths.Source("authority", "/dev/shm")
    ceiling = {**product.TOP, "mounts": mounts.from_policy({"volumes": "rw", "exec": True})}
    made = plan.make(spec, ceiling, facts, lambda asked, top, mask: None)
    (mount,) = made.spec["mounts"]
    assert mount["type"] == "tmpfs" and "ro" in mount["options"]


def failing(error: int) -> Any:
    def call(*args: Any, **how: Any) -> Any:
        raise OSError(error, os.strerror(error))

    return call


@pytest.mark.parametrize("error", [5, 24, 13])  # EIO, EMFILE, EACCES
class TestNoAnswerIsNoAnswer:
    """A kernel that says nothing (a failing disk, no descriptor left) was taken for one that says: not there."""

    def test_is_it_there(self, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("posix.lstat", failing(error))
        with pytest.raises(HostError):
            hostpaths.exists("/run/agentshim")

    def test_where_does_it_lead(self, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("posix.lstat", failing(error))
        with pytest.raises(HostError):
            hostpaths.resolve("/srv/link")

    def test_which_device_is_it(self, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("posix.stat", failing(error))
        with pytest.raises(HostError):
            hostpaths.device("/dev/sda")

    def test_whose_namespace_is_it(self, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """It would have been another container's, and lent: the host's own, perhaps."""
        monkeypatch.setattr("posix.stat", failing(error))
        with pytest.raises(HostError):
            kernel._namespace("network", "/proc/self/ns/net")

    def test_which_modules_confine(self, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """None, it would have been, and an unconfined label would have stayed."""
        monkeypatch.setattr("posix.open", failing(error))
        with pytest.raises(HostError):
            kernel._modules()

    def test_what_was_granted(self, error: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """exec and update would have gone on with the host limit; and a create would have swept the record away."""
        monkeypatch.setattr(state, "DIRECTORY", str(tmp_path))
        Path(tmp_path, state.name_of("/r", "c") + state.RECORD).write_text("{}")
        monkeypatch.setattr(bundle.Directory, "__init__", lambda self, path, shared=False: setattr(self, "path", path))
        monkeypatch.setattr(bundle.Directory, "fd", 0, raising=False)
        monkeypatch.setattr("posix.open", failing(error))
        with pytest.raises(HostError):
            state.load("/r", "c")

    def test_is_its_maker_alive(self, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """A record that was started at 0 looks in use for ever: no process has that number any more."""
        monkeypatch.setattr("posix.open", failing(error))
        with pytest.raises(HostError):
            state._started("self")


@pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED LOUDLY: directories of root's are needed")
class TestNothingIsLeft:
    """A call that was killed between two steps left files that nobody removed."""

    def test_beside_a_file(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o700)
        (tmp_path / ".config.json.agentshim-999999999").touch()
        (tmp_path / f".config.json.agentshim-{os.getpid()}").touch()
        (tmp_path / ".other.agentshim-999999999").touch()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hostpaths, "is_roots", lambda there: True)
            patch.setattr(hostpaths, "resolve", lambda path: (path, True))
            bundle.Directory(str(tmp_path)).tidy("config.json")
        assert sorted(os.listdir(tmp_path)) == [f".config.json.agentshim-{os.getpid()}", ".other.agentshim-999999999"]

    def test_among_the_records(self, tmp_path: Path) -> None:
        names = ["a.json", "a.asked", "a.net", "b.asked", "b.net", ".c.json.agentshim-1", "process-999999999-5", "lock"]
        for name in names:
            (tmp_path / name).touch()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hostpaths, "is_roots", lambda there: True)
            patch.setattr(hostpaths, "resolve", lambda path: (path, True))
            state._tidy(bundle.Directory(str(tmp_path)))
        assert sorted(os.listdir(tmp_path)) == ["a.asked", "a.json", "a.net", "lock"]


def test_descriptors_that_nobody_passed_are_not_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb that is only read again (`delete -- ID`) came to the delegate with LISTEN_FDS=1048576."""
    told: list[dict[bytes, bytes]] = []
    monkeypatch.setattr("posix.execve", lambda path, words, env: told.append(env))
    monkeypatch.setattr("_signal.signal", lambda *_: None)
    call, delegate = argv.parse(["delete", "--", "c"]), runc.Delegate.__new__(runc.Delegate)
    delegate.path, delegate.kind = "/usr/sbin/runc", "runc"
    for env, granted in (({}, invocation.TOP), ({b"LISTEN_FDS": b"3"}, invocation.TOP)):
        runc.execute(delegate, call, env, granted, 0)
    assert told == [{}, {b"LISTEN_FDS": b"3"}]


def test_a_root_that_the_hook_does_not_see() -> None:
    """A delegate that runs createRuntime hooks once it has entered the root: nothing was compared, and all was well."""
    with pytest.raises(HostError, match="no mount there"):
        hook.check_mounts(
            [Mount("/", "ext4", "8:1", "/b/rootfs")], [], "/b/rootfs", [["/", [["8:1", "/b/rootfs"]]]], []
        )


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_number_of_toml_that_is_none(number: str, tmp_path: Path) -> None:
    """nan passed the schema's minimum, and ended as a ValueError where it was made an integer."""
    path = tmp_path / "x.toml"
    path.write_text(f'schema = 1\nname = "x"\nabout = "a test"\n[resources]\ncpus = {number}\n')
    with pytest.raises(Invalid, match=r"x\.toml:5 resources\.cpus"):
        policy_source.read(str(path), "policy", trusted=False)
