"""`agentshim install` and `uninstall`: files of engines, as they are found on hosts, edited and taken back.

Belongs here: the files and every bad input. Next door: conformance/engines/test_install.py has the engines read them.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim import hostpaths, policy, state
from shim.cold.install import calls, changes, engines, install, json_text, registration, toml_text, turn
from shim.cold.install.toml_text import get
from shim.errors import HostError, Invalid, Refused, ShimError
from tests.unit.policy_host import Host, make_host

CRI2, CRI3 = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"
NVIDIA = {"nvidia": {"path": "nvidia-container-runtime", "runtimeArgs": []}}


class Machine:
    """A host below a directory of the test: its launcher, its engines' files, and what the verbs print."""

    def __init__(self, root: Path, host: Host, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.host, self._capsys = root, host, capsys
        self.run = root.with_name(root.name + ".run")  # no part of what an error leaves as it was
        self.run.mkdir()
        self.bin = root / "bin"
        self.bin.mkdir(mode=0o755)
        self.launcher = self.bin / "agentshim"
        self.launcher.write_text("#!/bin/true\n")
        self.launcher.chmod(0o755)
        self.daemon = root / "docker/daemon.json"
        self.containerd = root / "containerd/config.toml"
        self.podman = root / "containers/containers.conf"
        self.podmans = root / "containers/containers.conf.d/agentshim.conf"
        self.crio = root / "crio/crio.conf"
        self.crios = root / "crio/crio.conf.d/agentshim.conf"

    def write(self, path: Path, text: str | bytes) -> Path:
        for directory in reversed(path.relative_to(self.root).parents):
            (self.root / directory).mkdir(exist_ok=True)
            (self.root / directory).chmod(0o755)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(0o644)
        return path

    def do(self, verb: str, *argv: str) -> str:
        self._capsys.readouterr()
        code = install.main(verb, list(argv), str(self.launcher), str(self.host.etc), str(self.host.var))
        assert code == 0
        return self._capsys.readouterr().out

    def install(self, *argv: str) -> str:
        return self.do("install", *argv)

    def uninstall(self, *argv: str) -> str:
        return self.do("uninstall", *argv)

    def tree(self) -> dict[str, Any]:
        """Everything below the directory: what it is, its mode, and what it holds."""
        out: dict[str, Any] = {}
        for path in sorted(self.root.rglob("*")):
            held = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            if self.host.var not in (path, *path.parents):
                out[str(path.relative_to(self.root))] = (stat.filemode(path.lstat().st_mode), held)
        return out

    def refuses(self, kind: type[ShimError], verb: str, *argv: str) -> str:
        """The error of a call that must change nothing, as the one line that the person sees."""
        before = self.tree()
        with pytest.raises(kind) as caught:
            self.do(verb, *argv)
        assert self.tree() == before
        said = str(caught.value)
        assert "\n" not in said and ": asked " in said and ", ceiling " in said, said
        assert not [
            one for one in ("permission denied", "operation not permitted", "no such file") if one in said.lower()
        ]
        return said


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Machine:
    tmp_path.chmod(0o755)
    machine = Machine(tmp_path, make_host(tmp_path / "agentshim", monkeypatch), capsys)
    new = {
        "docker": {"main": str(machine.daemon)},
        "containerd": {"main": str(machine.containerd)},
        "podman": {
            "main": str(machine.podman),
            "drop_in": str(machine.podmans),
            "vendor": str(tmp_path / "vendor.conf"),
        },
        "crio": {"main": str(machine.crio), "drop_in": str(machine.crios)},
    }
    for name, values in new.items():
        monkeypatch.setitem(engines.ENGINES, name, dataclasses.replace(engines.ENGINES[name], **values))  # type: ignore[arg-type]
    monkeypatch.setattr(calls, "PIDFILE", str(tmp_path / "docker.pid"))
    monkeypatch.setattr(calls, "SYSTEMD", str(tmp_path / "no-systemd"))
    monkeypatch.setattr(turn, "LOCK", str(machine.run / "install.lock"))
    monkeypatch.setattr(state, "records", list)
    if os.getuid() != 0:
        monkeypatch.setattr(hostpaths, "program", lambda path: path if os.path.exists(path) else "")
        monkeypatch.setattr(hostpaths, "resolve", lambda path: (path, True))
    return machine


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="SKIPPED LOUDLY: only root can give files away")


def ours(machine: Machine) -> dict[str, str]:
    return {"path": str(machine.launcher)}


# ---------------------------------------------------------------- Docker

FILES = {
    "four": '{\n    "log-level": "warn",\n    "debug": true\n}\n',
    "two": '{\n  "debug": true,\n  "runtimes": {\n    "nvidia": {"path": "n", "x": []}\n  },\n  "z": [1, 2]\n}\n',
    "tabs": '{\n\t"runtimes": {\n\t\t"nvidia": {\n\t\t\t"path": "n"\n\t\t}\n\t}\n}\n',
    "one line": '{"debug":true,"runtimes":{"nvidia":{"path":"n"}}}',
    "spaced line": '{ "debug" : true }\n',
    "no newline": '{\n  "debug": true\n}',
    "CRLF": '{\r\n  "debug": true,\r\n  "hosts": [\r\n    "fd://"\r\n  ]\r\n}\r\n',
    "empty object": "{}\n",
    "spread object": "{\n}\n",
    "strings": '{\n  "labels": ["a=}{\\"", "ſ ü \\u0041"],\n  "big": 1e400, "n": 1.10\n}\n',
    "deep": '{\n  "log-opts": {"runtimes": "x", "agentshim": "y"}\n}\n',
    "empty": "",
    "white": " \n",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("extra", [(), ("--set-as-default",), ("--policy", "web")])
def test_docker_there_and_back(machine: Machine, name: str, extra: tuple[str, ...]) -> None:
    """Every other character stays, and after uninstall the file is what it was, to the byte."""
    text = FILES[name]
    machine.write(machine.daemon, text)
    told = machine.install("docker", *extra)
    now = machine.daemon.read_bytes().decode()
    old, new = json.loads(text) if text.strip() else {}, json.loads(now)
    runtimes = new.pop("runtimes")
    assert runtimes.pop("agentshim") == ours(machine)
    assert runtimes.pop("agentshim-web", None) == (
        {"path": str(machine.bin / "agentshim-web")} if "web" in extra else None
    )
    assert runtimes == old.pop("runtimes", {})
    assert new.pop("default-runtime", None) == ("agentshim" if "--set-as-default" in extra else None)
    assert new == old and list(new) == list(old)
    assert now.endswith("\n") == text.endswith("\n") or not text.strip()
    assert ("\r\n" in now) == ("\r\n" in text) and now.count("\r") == (now.count("\n") if "\r" in text else 0)
    assert f"{machine.daemon}: agentshim" in told and "kill -HUP" in told
    for line in text.splitlines():  # no line but the last of an object changes, and that by a comma
        assert (
            not line.strip("\r{} ")
            or line in now.splitlines()
            or f"{line}," in now.splitlines()
            or "\n" not in text[:-1]
        )
    machine.uninstall("docker")
    assert machine.daemon.read_bytes().decode() == text
    assert not list(machine.daemon.parent.glob("*before*"))


def test_docker_from_nothing(machine: Machine) -> None:
    told = machine.install("docker")
    assert machine.daemon.read_text() == json.dumps({"runtimes": {"agentshim": ours(machine)}}, indent=4) + "\n"
    assert stat.S_IMODE(machine.daemon.stat().st_mode) == 0o644
    assert stat.S_IMODE(machine.daemon.parent.stat().st_mode) == 0o755
    assert "as it was before" not in told
    machine.uninstall("docker")
    assert not machine.daemon.exists()


def test_default_comes_back(machine: Machine) -> None:
    text = json.dumps({"default-runtime": "nvidia", "runtimes": NVIDIA}, indent=2)
    machine.write(machine.daemon, text)
    machine.install("docker", "--set-as-default")
    assert json.loads(machine.daemon.read_text())["default-runtime"] == "agentshim"
    now = json.loads(machine.daemon.read_text())
    now["debug"] = True  # by hand
    machine.write(machine.daemon, json.dumps(now, indent=2))
    told = machine.uninstall("docker")
    assert json.loads(machine.daemon.read_text()) == {"default-runtime": "nvidia", "runtimes": NVIDIA, "debug": True}
    assert "default runtime: nvidia" in told and "changed by hand" in told
    assert Path(str(machine.daemon) + changes.BACKUP).read_text() == text


def test_default_that_is_gone_does_not_come_back(machine: Machine) -> None:
    machine.write(machine.daemon, json.dumps({"default-runtime": "nvidia", "runtimes": NVIDIA}))
    machine.install("docker", "--set-as-default")
    now = json.loads(machine.daemon.read_text())
    del now["runtimes"]["nvidia"]
    machine.write(machine.daemon, json.dumps(now))
    machine.uninstall("docker")
    assert json.loads(machine.daemon.read_text()) == {"runtimes": {}}


def test_default_of_somebody_else_stays(machine: Machine) -> None:
    machine.write(machine.daemon, json.dumps({"runtimes": NVIDIA}))
    machine.install("docker", "--set-as-default")
    machine.write(machine.daemon, machine.daemon.read_text().replace('"agentshim"}', '"nvidia"}'))
    assert json.loads(machine.daemon.read_text())["default-runtime"] == "nvidia"
    machine.uninstall("docker")
    assert json.loads(machine.daemon.read_text()) == {"runtimes": NVIDIA, "default-runtime": "nvidia"}


def test_hand_edits_stay(machine: Machine) -> None:
    machine.write(machine.daemon, '{\n  "debug": true\n}\n')
    machine.install("docker")
    text = machine.daemon.read_text()
    machine.write(machine.daemon, text.replace('"debug": true', '"debug": false,\n  "log-level": "info"'))
    machine.uninstall("docker")
    assert machine.daemon.read_text() == '{\n  "debug": false,\n  "log-level": "info"\n}\n'


@pytest.mark.parametrize("was,now", [('"a b"', '"ab"'), ('"ab"', '"a  b"'), ('"x y"', '"xy "')])
def test_white_space_in_strings_is_no_white_space(machine: Machine, was: str, now: str) -> None:
    machine.write(machine.daemon, f'{{\n  "label": {was}\n}}\n')
    machine.install("docker")
    machine.write(machine.daemon, machine.daemon.read_text().replace(was, now))
    told = machine.uninstall("docker")
    assert json.loads(machine.daemon.read_text()) == {"label": json.loads(now)} and "changed by hand" in told


@pytest.mark.parametrize(
    "was,now",
    [
        ('"a b"', '"ab"'),
        ("'a # b'", "'a #b'"),
        ('"""\n# a\n"""', '"""\n#a\n"""'),
        ("# now here", "# nowhere"),
        ('# "now here"', '# "nowhere"'),
    ],
)
def test_white_space_in_strings_and_comments_of_toml(machine: Machine, was: str, now: str) -> None:
    text = f"version = 2\nx = 1 {was}\n" if was.startswith("#") else f"version = 2\nx = {was}\n"
    machine.write(machine.containerd, text)
    machine.install("containerd")
    machine.write(machine.containerd, machine.containerd.read_text().replace(was, now))
    told = machine.uninstall("containerd")
    assert machine.containerd.read_text().rstrip("\n") + "\n" == text.replace(was, now) and "changed by hand" in told


def test_white_space_elsewhere_comes_back(machine: Machine) -> None:
    text = "version = 2\n# a  comment\nx = 1\n"
    machine.write(machine.containerd, text)
    machine.install("containerd")
    machine.write(machine.containerd, machine.containerd.read_text().replace("x = 1", "\n  x   = 1"))
    machine.uninstall("containerd")
    assert machine.containerd.read_text() == text


@pytest.mark.parametrize("extra", [(), ("--set-as-default",), ("--policy", "web")])
@pytest.mark.parametrize(
    "text",
    [
        '{"runtimes": null}',
        '{\n  "debug": true,\n  "runtimes": null,\n  "default-runtime": null,\n  "x": "null"\n}\n',
        '{"default-runtime" :null, "pidfile": null}\n',
    ],
)
def test_null_is_nothing(machine: Machine, text: str, extra: tuple[str, ...]) -> None:
    """dockerd takes it for a key that is not there; after uninstall it is there again."""
    machine.write(machine.daemon, text)
    assert "nothing of agentshim" in machine.uninstall("docker")
    machine.install("docker", *extra)
    now = json.loads(machine.daemon.read_text())
    assert now.pop("runtimes")["agentshim"] == ours(machine)
    assert now.pop("default-runtime", None) == ("agentshim" if "--set-as-default" in extra else None)
    rest = json.loads(text)
    assert now == {key: rest[key] for key in rest if key not in ("runtimes", "default-runtime")}
    machine.uninstall("docker")
    assert machine.daemon.read_text() == text and not Path(changes.backup_of(str(machine.daemon))).exists()


def test_install_twice(machine: Machine) -> None:
    machine.write(machine.daemon, FILES["two"])
    machine.install("docker", "--policy", "web", "--set-as-default")
    before, inode = machine.tree(), machine.daemon.stat().st_ino
    told = machine.install("docker", "--policy", "web", "--set-as-default")
    assert machine.tree() == before and machine.daemon.stat().st_ino == inode
    assert "nothing to change" in told and "reload" not in told
    assert machine.install("docker", "--dry-run").startswith(f"{machine.daemon}: nothing to change")


def test_install_adds_to_an_install(machine: Machine) -> None:
    """The copy of before stays the one of before the first."""
    machine.write(machine.daemon, FILES["two"])
    machine.install("docker")
    machine.install("docker", "--policy", "web")
    machine.install("docker", "--policy", "dev", "--set-as-default")
    assert set(json.loads(machine.daemon.read_text())["runtimes"]) == {
        "nvidia",
        "agentshim",
        "agentshim-web",
        "agentshim-dev",
    }
    told = machine.uninstall("docker", "--policy", "web")
    assert "without agentshim-web" in told
    assert set(json.loads(machine.daemon.read_text())["runtimes"]) == {"nvidia", "agentshim", "agentshim-dev"}
    machine.uninstall("docker")
    assert machine.daemon.read_text() == FILES["two"]


def test_our_entry_keeps_what_was_added_to_it(machine: Machine) -> None:
    runtimes = {"agentshim": {**ours(machine), "runtimeArgs": ["--debug"]}}
    machine.write(machine.daemon, json.dumps({"runtimes": runtimes}))
    assert "nothing to change" in machine.install("docker")


@pytest.mark.parametrize("engine", ["docker", "containerd", "podman", "crio"])
def test_uninstall_without_install(machine: Machine, engine: str) -> None:
    assert "nothing of agentshim" in machine.uninstall(engine)
    machine.write(machine.daemon, json.dumps({"runtimes": NVIDIA}))
    before = machine.tree()
    assert "nothing of agentshim" in machine.uninstall(engine, "--reload")
    assert machine.tree() == before


def test_dry_run(machine: Machine) -> None:
    machine.write(machine.daemon, FILES["no newline"])
    before = machine.tree()
    out = machine.install("docker", "--policy", "web", "--set-as-default", "--dry-run")
    assert machine.tree() == before
    patch = machine.root / "patch"
    patch.write_text(out)
    machine.install("docker", "--policy", "web", "--set-as-default")
    wanted = machine.daemon.read_bytes()
    machine.write(machine.daemon, FILES["no newline"])
    assert f"link {machine.bin}/agentshim-web -> agentshim" in out and "reload: " in out
    assert f"--- {machine.daemon}" in out and "\\ No newline at end of file" in out
    if shutil.which("patch"):
        subprocess.run(["patch", "-s", str(machine.daemon), str(patch)], check=True)
        assert machine.daemon.read_bytes() == wanted


def test_attack_dry_run_steers_the_terminal(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's control characters are shown, not obeyed; patch(1) gets them as they are."""
    text = '{\n\t"a": "\u202e\u2066\x7f\x9b2J",\n\t"b": 1\n}\n'
    machine.write(machine.daemon, text)
    assert "\u202e\u2066\x7f\x9b2J" in machine.install("docker", "--dry-run")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = machine.install("docker", "--dry-run")
    assert ' \t"a": "\\x202e\\x2066\\x7f\\x9b2J",\n' in out
    assert all(one.isprintable() or one in "\n\t" for one in out)


BROKEN = {
    "comment": ('{\n  // mine\n  "debug": true\n}\n', ":2: asked a comment"),
    "hash": ('{\n  "debug": true # mine\n}\n', ":2: asked a comment"),
    "trailing comma": ('{\n  "debug": true,\n}\n', ":3: "),
    "mark": (b'\xef\xbb\xbf{"debug": true}\n', ":1: asked a byte order mark"),
    "cut off": ('{\n  "debug": tr', ":2: "),
    "a list": ("[]\n", "asked list"),
    "twice": ('{"a": {"runtimes": 1, "runtimes": 2}}', "runtimes: asked a key twice"),
    "no table": ('{"runtimes": []}', "runtimes: asked no table"),
    "Latin-1": (b'{\n"a": "\xfc"}', ":2: asked byte 0xfc"),
    "NaN": ('{"a": NaN}', "asked NaN"),
    "deep": ("[" * 100000, ""),
    "two": ("{}\n{}\n", ":2: "),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_docker_syntax(machine: Machine, name: str, verb: str) -> None:
    text, wanted = BROKEN[name]
    assert isinstance(text, str | bytes) and isinstance(wanted, str)
    machine.write(machine.daemon, text)
    said = machine.refuses(Invalid, verb, "docker")
    assert said.startswith(f"install: {machine.daemon}") and wanted in said


# ---------------------------------------------------------------- the file itself


def test_symbolic_link(machine: Machine) -> None:
    """Refused with its target, which can be named."""
    target = machine.write(machine.root / "elsewhere/daemon.json", FILES["two"])
    machine.daemon.parent.mkdir()
    machine.daemon.symlink_to(target)
    for verb in ("install", "uninstall"):
        assert f"asked a symbolic link to {target}" in machine.refuses(Refused, verb, "docker")
    machine.install("docker", "--config", str(target))
    assert "agentshim" in target.read_text() and machine.daemon.is_symlink()


def test_links_that_lead_nowhere_or_round(machine: Machine) -> None:
    machine.daemon.parent.mkdir()
    machine.daemon.symlink_to("daemon.json")
    machine.refuses(Refused, "install", "docker")
    machine.daemon.unlink()
    machine.daemon.symlink_to("missing")
    machine.refuses(Refused, "install", "docker")


def test_directory_that_is_a_link(machine: Machine) -> None:
    machine.write(machine.root / "elsewhere/daemon.json", FILES["two"])
    machine.daemon.parent.symlink_to("elsewhere")
    assert "not a directory, or a link" in machine.refuses(HostError, "install", "docker")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["FIFO", "directory"])
def test_no_file(machine: Machine, make: Callable[[Path], None]) -> None:
    machine.daemon.parent.mkdir()
    make(machine.daemon)
    assert "no regular file" in machine.refuses(Refused, "install", "docker")


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_file_that_others_can_write(machine: Machine, mode: int) -> None:
    machine.write(machine.daemon, "{}").chmod(mode)
    assert f"asked mode {mode:04o}" in machine.refuses(HostError, "install", "docker")


def test_directory_that_others_can_write(machine: Machine) -> None:
    machine.write(machine.daemon, "{}").parent.chmod(0o775)
    assert f"{machine.daemon.parent}: asked mode 0775" in machine.refuses(HostError, "install", "docker")


@needs_root
def test_file_of_somebody_else(machine: Machine) -> None:
    os.chown(machine.write(machine.daemon, "{}"), 65533, 0)
    assert "asked owner uid 65533" in machine.refuses(HostError, "install", "docker")


def test_owner_mode_and_attributes_stay(machine: Machine) -> None:
    machine.write(machine.daemon, FILES["two"]).chmod(0o600)
    if os.getuid() == 0:
        os.chown(machine.daemon, 0, 4)
    try:
        os.setxattr(machine.daemon, "user.note", b"mine")
        noted = True
    except OSError:
        noted = False  # not on this file system
    machine.install("docker")
    for path in (machine.daemon, Path(changes.backup_of(str(machine.daemon)))):
        there = path.stat()
        assert stat.S_IMODE(there.st_mode) == 0o600
        assert there.st_gid == (4 if os.getuid() == 0 else os.getgid())
        assert not noted or os.getxattr(path, "user.note") == b"mine"


def test_secrets_do_not_leak_by_the_copy_of_before(machine: Machine) -> None:
    """The copy is as private as the file is now, even where a looser one is left from the install before."""
    machine.write(machine.daemon, '{\n  "debug": true\n}\n')
    machine.install("docker")
    machine.write(machine.daemon, machine.daemon.read_text().replace("true", "false"))
    machine.uninstall("docker")
    backup = Path(changes.backup_of(str(machine.daemon)))
    assert stat.S_IMODE(backup.stat().st_mode) == 0o644
    machine.write(machine.daemon, '{\n  "proxies": {"http-proxy": "http://user:secret@proxy"}\n}\n').chmod(0o600)
    if os.getuid() == 0:
        os.chown(machine.daemon, 0, 4)
    machine.install("docker")
    assert "secret" in backup.read_text() and stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert backup.stat().st_gid == machine.daemon.stat().st_gid


def test_secrets_do_not_leak_by_an_undo(machine: Machine) -> None:
    """A file that was taken away and comes back is as it was, and no more."""
    path = machine.write(machine.root / "secret", "x")
    path.chmod(0o600)
    before = machine.tree()
    missing = changes.Content(str(machine.root / "absent"), b"x", b"y")
    with pytest.raises(HostError):
        changes.apply([changes.Content(str(path), b"x", None), missing])
    assert machine.tree() == before


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_hard_link(machine: Machine, verb: str) -> None:
    """A rename would leave the other name with the old file, without a word."""
    machine.write(machine.daemon, FILES["two"])
    machine.install("docker")
    other = machine.root / "other.json"
    os.link(machine.daemon, other)
    said = machine.refuses(Refused, verb, "docker")
    assert "2 names (hard links)" in said
    subprocess.run("cp " + said.rpartition(": cp ")[2], shell=True, check=True)
    machine.do(verb, "docker")
    assert "agentshim" in other.read_text()


def test_two_at_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first, before it reads: neither takes away what the other has written."""
    machine.write(machine.daemon, FILES["two"])
    real = changes._write
    others: list[threading.Thread] = []

    def slow(path: str, *rest: Any) -> None:
        if path == str(machine.daemon) and not others:
            web = ("install", ["docker", "--policy", "web"], str(machine.launcher))
            others.append(threading.Thread(target=install.main, args=(*web, str(machine.host.etc))))
            others[0].start()
            others[0].join(0.5)
        real(path, *rest)

    monkeypatch.setattr(changes, "_write", slow)
    machine.install("docker", "--policy", "dev")
    others[0].join(10)
    assert {"agentshim-dev", "agentshim-web", "nvidia"} <= set(json.loads(machine.daemon.read_text())["runtimes"])
    assert stat.S_IMODE(os.stat(turn.LOCK).st_mode) == 0o600


def test_the_lock_is_no_link(machine: Machine) -> None:
    victim = machine.root / "victim"
    os.symlink(victim, turn.LOCK)
    assert turn.LOCK in machine.refuses(HostError, "install", "docker") and not victim.exists()
    machine.install("docker", "--dry-run")  # changes nothing, and waits for nobody


def test_what_a_killed_run_has_left_goes(machine: Machine) -> None:
    """Only that: another process's that lives, and what merely looks like it, stay."""
    machine.write(machine.daemon, FILES["two"])
    with subprocess.Popen(["true"]) as dead:
        pass
    backup = changes.backup_of(str(machine.daemon))
    for path in (str(machine.daemon), backup):
        for pid in (dead.pid, os.getpid(), os.getppid()):
            machine.write(Path(changes.temporary(path, pid)), "left")
    mine = machine.write(machine.daemon.parent / ".daemon.json.mine", "mine")
    before = machine.tree()
    machine.install("docker", "--dry-run")
    assert machine.tree() == before
    machine.install("docker")
    hidden = {str(one) for one in machine.daemon.parent.glob(".*")}
    assert hidden == {str(mine), *(changes.temporary(path, os.getppid()) for path in (str(machine.daemon), backup))}


@pytest.mark.parametrize("call", ["fsync", "rename", "symlink", "fchmod"])
def test_whatever_ends_it_nothing_is_half_done(machine: Machine, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only errors that we know: a bug, too little memory, Ctrl-C."""
    machine.write(machine.crio, '[crio.runtime]\ndefault_runtime = "crun"\n')
    machine.write(machine.crios, "# mine\n")
    before, real = machine.tree(), getattr(os, call)
    for turns in range(30):
        left = [turns]

        def ends(*args: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, ends)
            try:
                machine.install("crio", "--set-as-default", "--policy", "web")
                break
            except KeyboardInterrupt:
                assert machine.tree() == before
    assert turns and "agentshim-web" in machine.crios.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_wait_until_it_is_whole(machine: Machine, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    real = os.rename

    def rename(old: str, new: str) -> None:
        os.kill(os.getpid(), number)
        real(old, new)

    was = signal.signal(number, lambda *_: seen.append("agentshim" in machine.daemon.read_text()))
    try:
        monkeypatch.setattr(os, "rename", rename)
        machine.write(machine.daemon, FILES["two"])
        machine.install("docker")
        assert seen == [True]
    finally:
        signal.signal(number, was)


def test_a_file_that_changes_meanwhile(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write(machine.daemon, FILES["two"])
    plan = install.plan

    def slow(*args: Any) -> Any:
        out = plan(*args)
        machine.write(machine.daemon, FILES["four"])
        return out

    monkeypatch.setattr(install, "plan", slow)
    with pytest.raises(HostError, match="another content than was read"):
        machine.install("docker")
    assert machine.daemon.read_text() == FILES["four"]


CALLS = ("open", "fsync", "rename", "symlink", "mkdir", "chmod", "fchmod", "fchown", "unlink")


FAULTS = [(call, number) for call in CALLS for number in (errno.EROFS, errno.ENOSPC, errno.EACCES)]


@pytest.mark.parametrize("call,number", FAULTS, ids=str)
def test_each_call_fails_once(machine: Machine, call: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call of the kernel fails, and when: nothing is left of it, and the error is one line."""
    machine.host.policy("mine", 'base = "locked"\n')
    machine.write(machine.crio, '[crio.runtime]\ndefault_runtime = "crun"\n')
    before, real, failed = machine.tree(), getattr(os, call), 0
    for turns in range(30):
        left = [turns]

        def fails(*args: Any, left: list[int] = left, **named: Any) -> Any:
            writes = call != "open" or args[1] & os.O_CREAT
            if writes and left[0] == 0:
                left[0] = -1
                raise OSError(number, os.strerror(number))
            left[0] -= 1 if writes else 0
            return real(*args, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            try:
                machine.install("crio", "--set-as-default", "--policy", "mine")
                break
            except HostError as error:
                said = str(error)
        assert machine.tree() == before and "\n" not in said
        failed += 1
    assert failed or call in ("unlink", "fchown"), "the call was never made"
    assert "agentshim-mine" in machine.crios.read_text()


def test_no_trace_of_a_temporary_file_in_a_directory_that_is_read_whole(machine: Machine) -> None:
    """CRI-O reads whatever is in crio.conf.d: neither the copy of before nor a temporary may be there."""
    path = machine.write(machine.crios, '[crio.runtime]\ndefault_runtime = "crun"\n')
    told = machine.install("crio")
    assert os.listdir(path.parent) == ["agentshim.conf"]
    assert f"as it was before: {machine.crio.parent}/crio.conf.d.agentshim.conf{changes.BACKUP}" in told
    machine.uninstall("crio")
    assert path.read_text() == '[crio.runtime]\ndefault_runtime = "crun"\n'
    assert sorted(os.listdir(machine.crio.parent)) == ["crio.conf.d"]


# ---------------------------------------------------------------- names, paths, policies


def test_a_runtime_of_our_name_that_is_something_else(machine: Machine) -> None:
    machine.write(machine.daemon, json.dumps({"runtimes": {"agentshim": {"path": "/opt/other/wrapper"}}}))
    said = machine.refuses(Refused, "install", "docker")
    assert "agentshim: asked" in said and "/opt/other/wrapper" in said and "by hand" in said
    assert "nothing of agentshim" in machine.uninstall("docker")


def test_an_older_place_of_ours(machine: Machine) -> None:
    machine.write(machine.daemon, json.dumps({"runtimes": {"agentshim": {"path": "/opt/old/bin/agentshim"}}}))
    assert "agentshim uninstall takes it out" in machine.refuses(Refused, "install", "docker")
    machine.uninstall("docker")
    machine.install("docker")
    assert json.loads(machine.daemon.read_text())["runtimes"] == {"agentshim": ours(machine)}


@needs_root
def test_a_launcher_that_others_can_change(machine: Machine) -> None:
    machine.launcher.chmod(0o777)
    assert "a program that only root can change" in machine.refuses(HostError, "install", "docker")
    machine.launcher.chmod(0o755)
    machine.bin.chmod(0o777)
    assert "a program that only root can change" in machine.refuses(HostError, "install", "docker")


def test_called_by_a_link(machine: Machine) -> None:
    """agentshim-web install registers agentshim, which is beside it."""
    (machine.bin / "agentshim-web").symlink_to("agentshim")
    assert install._launcher(str(machine.bin / "agentshim-web")) == str(machine.launcher)


def test_policy_makes_its_link(machine: Machine) -> None:
    machine.install("docker", "--policy", "web", "--policy", "dev")
    for name in ("web", "dev"):
        link = machine.bin / f"agentshim-{name}"
        assert os.readlink(link) == "agentshim"
        assert policy.select(machine.host.config(), str(link), {}) == name
    machine.uninstall("docker")
    assert (machine.bin / "agentshim-web").is_symlink(), "other engines and people may call it"


def test_policy_that_no_link_could_choose_yet(machine: Machine) -> None:
    """It is added to names, and the rest of config.toml stays."""
    machine.host.policy("mine", 'base = "locked"\n')
    text = '# ours\ndelegate = "/usr/sbin/runc"  # theirs\nnames = [\n  "web", # sites\n]\n\nlimit = "dev"\n'
    machine.host.configure(text)
    out = machine.install("docker", "--policy", "mine", "--dry-run")
    assert '+  "mine"' in out or '"mine"' in out
    machine.install("docker", "--policy", "mine")
    config = (machine.host.etc / "config.toml").read_text()
    assert tomllib.loads(config) == {**tomllib.loads(text), "names": ["web", "mine"]}
    assert {"# ours", "# theirs", "# sites"} <= {
        f"#{one}" for line in config.splitlines() for one in line.split("#")[1:]
    }
    assert policy.select(machine.host.config(), str(machine.bin / "agentshim-mine"), {}) == "mine"


def test_policy_without_a_config(machine: Machine) -> None:
    machine.host.policy("mine", 'base = "locked"\n')
    machine.install("docker", "--policy", "mine")
    assert machine.host.config().names == [*policy.DEFAULTS["names"], "mine"]


def test_policy_that_is_unknown_or_too_much(machine: Machine) -> None:
    assert "asked absent" in machine.refuses(Refused, "install", "docker", "--policy", "absent")
    assert "letters" in machine.refuses(Refused, "install", "docker", "--policy", "../x")
    assert "identity: " in machine.refuses(Refused, "install", "docker", "--policy", "identity")


def test_link_that_is_something_else(machine: Machine) -> None:
    machine.write(machine.bin / "agentshim-web", "#!/bin/sh\n")
    assert "something else" in machine.refuses(Refused, "install", "docker", "--policy", "web")


# ---------------------------------------------------------------- what runs


def running(monkeypatch: pytest.MonkeyPatch, *records: dict[str, Any], asked: dict[str, Any] | None = None) -> None:
    monkeypatch.setattr(state, "records", lambda: list(records))
    monkeypatch.setattr(state, "asked", lambda root, name: json.dumps(asked or {}).encode())


TASK = "/run/containerd/io.containerd.runtime.v2.task"


@pytest.mark.parametrize(
    "bundle,manager,engine",
    [
        ("/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby/c1", "", "docker"),
        (f"{TASK}/moby/c1", "", "docker"),
        (f"{TASK}/k8s.io/c1", "", "containerd"),
        (f"{TASK}/default/c1", "", ""),
        ("/var/lib/containers/storage/overlay-containers/c1/userdata", "libpod", "podman"),
        ("/run/containers/storage/overlay-containers/c1/userdata", "cri-o", "crio"),
        ("/home/x/bundle", "", ""),
    ],
)
def test_containers_that_run_by_us(
    machine: Machine, bundle: str, manager: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in engines.ENGINES:
        if one == "containerd":
            machine.write(machine.containerd, "version = 2\n")
        machine.install(one, "--policy", "web")
    record = {"id": "c1", "root": "/r", "bundle": bundle, "policy": "agent"}
    running(monkeypatch, record, asked={"annotations": {"io.container.manager": manager}})
    for one in engines.ENGINES:
        if one == engine:
            assert "asked 1 containers" in machine.refuses(Refused, "uninstall", one)
            machine.uninstall(one, "--policy", "web")  # that one is of another policy
            machine.uninstall(one, "--force")
        else:
            machine.uninstall(one)


@pytest.fixture
def daemon(machine: Machine) -> Iterator[subprocess.Popen[bytes]]:
    """What looks like a dockerd: SIGHUP ends it."""
    program = shutil.copy("/bin/sleep", machine.run / "dockerd")
    hang_up = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # nohup's children ignore it
    with subprocess.Popen(["dockerd", "60"], executable=program, preexec_fn=hang_up) as child:
        (machine.root / "docker.pid").write_text(str(child.pid))
        while not Path(f"/proc/{child.pid}/cmdline").read_bytes():
            time.sleep(0.001)  # execve lets the parent go on before the kernel has placed the words
        yield child
        child.kill()


def test_reload(machine: Machine, daemon: subprocess.Popen[bytes]) -> None:
    machine.write(machine.daemon, "{}\n")
    assert "reloaded: docker" in machine.install("docker", "--reload")
    assert daemon.wait(10) == -signal.SIGHUP


def test_reload_where_nothing_runs(machine: Machine) -> None:
    assert "leave --reload out" in machine.refuses(HostError, "install", "docker", "--reload")
    (machine.root / "docker.pid").write_text(str(os.getpid()))  # a pid file that is left over
    machine.refuses(HostError, "install", "docker", "--reload")
    for name in ("containerd", "crio"):
        assert "leave --reload out" in machine.refuses(HostError, "install", name, "--reload")
    assert "reloaded: podman" in machine.install("podman", "--reload")


def looks_like_dockerd(machine: Machine, other: subprocess.Popen[bytes]) -> bool:
    """Whether the process `other`, by the pid file, is taken for a dockerd; it is ended."""
    try:
        (machine.root / "docker.pid").write_text(str(other.pid))
        while not Path(f"/proc/{other.pid}/cmdline").read_bytes():
            time.sleep(0.001)
        return calls.dockerd({}) != (0, [])
    finally:
        other.kill()


def test_attack_a_process_that_says_it_is_dockerd(machine: Machine, daemon: subprocess.Popen[bytes]) -> None:
    """A command line is what its process likes: another program gets no SIGHUP of root's."""
    assert calls.dockerd({})[0] == daemon.pid
    with subprocess.Popen(["dockerd", "60"], executable="/bin/sleep") as other:
        assert not looks_like_dockerd(machine, other)


@needs_root
def test_attack_a_dockerd_of_another_user(machine: Machine) -> None:
    program = shutil.copy("/bin/sleep", machine.run / "dockerd")
    opened = os.open(program, os.O_RDONLY)  # the directories above are closed to that user
    here = f"/proc/self/fd/{opened}"
    with subprocess.Popen(["dockerd", "60"], executable=here, pass_fds=(opened,), user=65533, group=65533) as other:
        assert not looks_like_dockerd(machine, other)
    os.close(opened)
    with subprocess.Popen(["dockerd", "60"], executable=program) as other:
        assert looks_like_dockerd(machine, other)


def test_dockerd_whose_package_was_replaced(machine: Machine, daemon: subprocess.Popen[bytes]) -> None:
    (machine.run / "dockerd").unlink()
    assert calls.dockerd({"pidfile": None})[0] == daemon.pid


def test_reload_of_a_dockerd_with_another_file(machine: Machine, daemon: subprocess.Popen[bytes]) -> None:
    other = machine.write(machine.root / "other.json", "{}")
    assert f"--config {machine.daemon}" in machine.refuses(
        Refused, "install", "docker", "--reload", "--config", str(other)
    )


def dockerd(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(calls, "dockerd", lambda doc: (1, ["/usr/bin/dockerd", *words]))


def test_dockerd_that_was_started_with_another_file(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    other = machine.write(machine.root / "other.json", "{}")
    dockerd(monkeypatch, "--config-file", str(other))
    assert f"add --config {other}" in machine.refuses(Refused, "install", "docker")
    machine.install("docker", "--config", str(other))


@pytest.mark.parametrize(
    "option,extra", [("--add-runtime=x=/x", ()), ("--add-runtime", ()), ("--default-runtime=x", ("--set-as-default",))]
)
def test_dockerd_whose_options_say_the_same(
    machine: Machine, option: str, extra: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both dockerd would not start again."""
    dockerd(monkeypatch, option, "x=/x")
    assert "does not start with both" in machine.refuses(Refused, "install", "docker", *extra)
    if extra:
        machine.install("docker")


def test_dockerd_that_runs_must_read_that_we_are_gone(machine: Machine, daemon: subprocess.Popen[bytes]) -> None:
    """A reload forgets only what the file says."""
    machine.write(machine.daemon, '{\n  "debug": true\n}\n')
    machine.install("docker", "--set-as-default")
    told = machine.uninstall("docker", "--reload")
    assert json.loads(machine.daemon.read_text()) == {"debug": True, "runtimes": {}, "default-runtime": "runc"}
    assert "left in it" in told and daemon.wait(10) == -signal.SIGHUP
    assert not Path(changes.backup_of(str(machine.daemon))).exists()


def test_systemctl(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd runs it restarts those that cannot reload; there is none where this is tested."""
    (machine.root / "no-systemd").mkdir()
    calls: list[list[str]] = []
    monkeypatch.setattr(shutil, "which", lambda name, path: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", lambda words, **how: calls.append(words))
    machine.write(machine.containerd, "version = 2\n")
    assert "reload: systemctl restart containerd" in machine.install("containerd")
    assert "reload: systemctl reload docker" in machine.install("docker")
    machine.install("crio", "--reload")
    machine.uninstall("containerd", "--reload")
    assert calls == [["/usr/bin/systemctl", "restart", "crio"], ["/usr/bin/systemctl", "restart", "containerd"]]

    def fails(words: list[str], **how: Any) -> None:
        raise subprocess.CalledProcessError(1, words, stderr="Job failed.\nSee journalctl.\n")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(HostError, match=r"See journalctl.*the file is written"):
        machine.uninstall("crio", "--reload")


# ---------------------------------------------------------------- containerd

RUNC = f"""version = 2   # keep

[plugins]
  [plugins."{CRI2}"]
    sandbox_image = "x" # pause
    [plugins."{CRI2}".containerd]
      default_runtime_name = "nvidia"   # theirs
      [plugins."{CRI2}".containerd.runtimes]
        [plugins."{CRI2}".containerd.runtimes.nvidia]
          runtime_type = "io.containerd.runc.v2"
          [plugins."{CRI2}".containerd.runtimes.nvidia.options]
            BinaryName = "/usr/bin/nvidia"
        [plugins."{CRI2}".containerd.runtimes.runc]
          runtime_type = "io.containerd.runc.v2"
          runtime_root = ""
          pod_annotations = ["mine.*"]
          privileged_without_host_devices = true
          [plugins."{CRI2}".containerd.runtimes.runc.options]
            BinaryName = ""
            SystemdCgroup = true
  # about what follows
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var"
"""
LAYOUTS = {
    "bare": "version = 2\n",
    "comments": "# nothing yet\n",
    "empty": "",
    "Debian": f'version = 2\n\n[plugins]\n  [plugins."{CRI2}"]\n    [plugins."{CRI2}".cni]\n      bin_dir = "/x"\n',
    "nested": RUNC,
    "version 3": RUNC.replace("version = 2", "version = 3").replace(CRI2, CRI3),
    "version 4": RUNC.replace("version = 2", "version = 4").replace(f'"{CRI2}"', f"'{CRI3}'"),
    "no newline": RUNC.rstrip("\n"),
    "CRLF": RUNC.replace("\n", "\r\n"),
    "dotted": f'version = 2\n[plugins."{CRI2}"]\ncontainerd.snapshotter = "overlayfs"\n',
    "strings": 'version = 2\ntext = """\n[plugins]\n# no comment\n"""\n\n[a]\nb = [\n  1, # one\n  2,\n]\n# end',
    "tables": f'version = 2\n[[a.b]]\nc = 1\n[[a.b]]\nc = 2\n[plugins."{CRI2}".containerd]\nno_pivot = false\n# end\n',
}


def cri(doc: dict[str, Any]) -> Any:
    return get(doc, engines.ENGINES["containerd"].runtimes(doc)[:-1]) or {}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("extra", [(), ("--set-as-default",), ("--policy", "web")])
def test_containerd_there_and_back(machine: Machine, name: str, extra: tuple[str, ...]) -> None:
    text = LAYOUTS[name]
    machine.write(machine.containerd, text)
    machine.install("containerd", *extra)
    now = machine.containerd.read_bytes().decode()
    old, new = tomllib.loads(text.replace("\r\n", "\n")), tomllib.loads(now.replace("\r\n", "\n"))
    there = cri(new)
    entry = there["runtimes"].pop("agentshim")
    assert entry["options"]["BinaryName"] == str(machine.launcher)
    assert entry["runtime_type"] == "io.containerd.runc.v2" and "agentshim.*" in entry["pod_annotations"]
    assert ("agentshim-web" in there["runtimes"]) == ("web" in extra)
    there["runtimes"].pop("agentshim-web", None)
    if "--set-as-default" in extra:
        assert there.pop("default_runtime_name") == "agentshim"
    was = cri({"version": 2, **old})
    if "nvidia" in text:
        assert entry["options"]["SystemdCgroup"] is True and entry["privileged_without_host_devices"] is True
        assert entry["pod_annotations"] == ["mine.*", "agentshim.*"] and "runtime_root" not in entry
        assert there["runtimes"] == was["runtimes"]
    else:
        assert there["runtimes"] == {"runc": {"runtime_type": "io.containerd.runc.v2"}}, "containerd would lose its own"
    changed = 'default_runtime_name = "nvidia"'
    for line in text.splitlines():
        assert line in now.splitlines() or ("--set-as-default" in extra and changed in line)
    assert ("\r\n" in text) == ("\r\n" in now) and now.count("\r") == (now.count("\n") if "\r" in text else 0)
    assert "nothing to change" in machine.install("containerd", *extra)
    machine.uninstall("containerd")
    assert machine.containerd.read_bytes().decode() == text


def test_containerd_from_nothing(machine: Machine) -> None:
    """Version 2: containerd 1.x and 2.x read it."""
    machine.install("containerd")
    doc = tomllib.loads(machine.containerd.read_text())
    assert doc["version"] == 2 and set(cri(doc)["runtimes"]) == {"runc", "agentshim"}
    machine.uninstall("containerd")
    assert not machine.containerd.exists()


def test_containerd_keeps_hand_edits(machine: Machine) -> None:
    machine.write(machine.containerd, RUNC)
    machine.install("containerd", "--set-as-default")
    text = machine.containerd.read_text()
    machine.write(
        machine.containerd, text.replace('"x" # pause', '"y" # pause') + "\n# after us\n[metrics]\n  a = 1 # b\n"
    )
    told = machine.uninstall("containerd")
    now = machine.containerd.read_text()
    doc = tomllib.loads(now)
    assert "agentshim" not in now and "# after us\n[metrics]\n  a = 1 # b\n" in now
    assert cri(doc)["default_runtime_name"] == "nvidia" and "# theirs" in now
    assert doc["plugins"][CRI2]["sandbox_image"] == "y" and "changed by hand" in told


@pytest.mark.parametrize("imports", ["conf.d/*.toml", "{root}/containerd/conf.d/*.toml", "{root}/containerd/conf.d/*"])
@pytest.mark.parametrize("name", ["version 3", "version 4"])
def test_containerd_drop_in(machine: Machine, imports: str, name: str) -> None:
    line = f'imports = ["{imports.format(root=machine.root)}"]\n'
    text = machine.write(machine.containerd, line + LAYOUTS[name]).read_text()
    told = machine.install("containerd", "--set-as-default")
    drop_in = machine.containerd.parent / "conf.d/agentshim.toml"
    doc = tomllib.loads(drop_in.read_text())
    assert doc["version"] == tomllib.loads(text)["version"], "an import of a newer version than its file is not read"
    assert set(cri(doc)["runtimes"]) == {"agentshim"} and cri(doc)["default_runtime_name"] == "agentshim"
    assert cri(doc)["runtimes"]["agentshim"]["options"]["SystemdCgroup"] is True, "as the main file's runc"
    assert machine.containerd.read_text() == text and f"{drop_in}: agentshim" in told
    assert "nothing to change" in machine.install("containerd", "--set-as-default")
    machine.uninstall("containerd")
    assert not drop_in.exists() and machine.containerd.read_text() == text


def test_containerd_2_has_no_drop_in(machine: Machine) -> None:
    """containerd 1.x takes a plugin's table from one file alone."""
    machine.write(machine.containerd, 'imports = ["conf.d/*.toml"]\n' + RUNC)
    other = machine.write(machine.containerd.parent / "conf.d/a.toml", "version = 2\n[metrics]\naddress = 'x'\n")
    machine.install("containerd")
    assert "agentshim" in machine.containerd.read_text() and os.listdir(other.parent) == ["a.toml"]
    machine.uninstall("containerd")
    machine.write(other, f'version = 2\n[plugins."{CRI2}".cni]\nbin_dir = "x"\n')
    assert f"--config {other}" in machine.refuses(Refused, "install", "containerd")
    machine.install("containerd", "--config", str(other))
    assert "BinaryName" in other.read_text()


def test_containerd_already_in_the_main_file(machine: Machine) -> None:
    """Somebody wrote us there by hand: that is the place, drop-in or not."""
    text = 'imports = ["conf.d/*.toml"]\n' + LAYOUTS["version 3"]
    own = f'[plugins."{CRI3}".containerd.runtimes.agentshim.options]\nBinaryName = "{machine.launcher}"\n'
    machine.write(machine.containerd, text + own)
    assert "nothing to change" in machine.install("containerd")
    machine.install("containerd", "--set-as-default")
    assert not (machine.containerd.parent / "conf.d").exists()
    machine.uninstall("containerd")
    doc = tomllib.loads(machine.containerd.read_text())
    assert "agentshim" not in cri(doc)["runtimes"] and "default_runtime_name" not in cri(doc)


@pytest.mark.parametrize(
    "text,wanted",
    [
        ('root = "/x"\n', "version: asked 1, ceiling 2, 3 or 4"),
        ("version = 9\n", "version: asked 9"),
        ('version = "2"\n', "version: asked 2"),
        ('version = 2\ndisabled_plugins = ["cri"]\n', "disabled_plugins"),
        ('disabled_plugins = ["cri"]\n', "agentshim install docker"),
        (f'version = 2\ndisabled_plugins = ["{CRI2}"]\n', "disabled_plugins"),
        (f'version = 3\ndisabled_plugins = ["{CRI3}"]\n', "disabled_plugins"),
        ("version = 2\n[plugins\n", ":2: asked "),
        ("version = 2\nversion = 3\n", ":2: asked "),
        ("\ufeffversion = 2\n", ":1: asked a byte order mark"),
        ("version = 2\n\n\na = ", "config.toml:4: asked "),
        (f'version = 2\n[plugins."{CRI2}".containerd]\nruntimes = []\n', "no table"),
        (f'version = 2\n[plugins."{CRI2}"]\ncontainerd = {{ runtimes = {{ }} }}\n', "an inline table"),
    ],
)
def test_containerd_that_cannot_be(machine: Machine, text: str, wanted: str) -> None:
    machine.write(machine.containerd, text)
    assert wanted in machine.refuses(ShimError, "install", "containerd")


def test_containerd_without_a_file_beside_drop_ins(machine: Machine) -> None:
    machine.write(machine.containerd.parent / "conf.d/a.toml", "version = 3\n")
    assert "containerd config default" in machine.refuses(Refused, "install", "containerd")


# ---------------------------------------------------------------- podman, CRI-O


def test_podman(machine: Machine) -> None:
    text = '[engine]\nruntime = "crun"\n[engine.runtimes]\ncrun = ["/usr/bin/crun"]\n'
    machine.write(machine.podman, text)
    told = machine.install("podman", "--policy", "web")
    doc = tomllib.loads(machine.podmans.read_text())
    web = str(machine.bin / "agentshim-web")
    assert doc == {"engine": {"runtimes": {"agentshim": [str(machine.launcher)], "agentshim-web": [web]}}}
    assert "reload: nothing" in told and machine.podman.read_text() == text
    machine.install("podman", "--set-as-default")
    assert tomllib.loads(machine.podmans.read_text())["engine"]["runtime"] == "agentshim"
    machine.uninstall("podman")
    assert not machine.podmans.exists() and machine.podman.read_text() == text


def test_podman_as_the_readme_says(machine: Machine) -> None:
    """Written by hand in the main file: edited and taken out there."""
    text = (
        f'[engine]\nruntime_supports_json = ["agentshim"]\n[engine.runtimes]\nagentshim     = ["{machine.launcher}"]\n'
    )
    machine.write(machine.podman, text)
    assert "nothing to change" in machine.install("podman")
    machine.install("podman", "--policy", "dev")
    assert not machine.podmans.exists() and "agentshim-dev" in machine.podman.read_text()
    machine.uninstall("podman")
    assert tomllib.loads(machine.podman.read_text()) == {"engine": {"runtime_supports_json": ["agentshim"]}}


def test_podman_key_goes_where_its_table_ends(machine: Machine) -> None:
    text = '[engine.runtimes]\n  kata = [\n    "x", # y\n  ]\n\n# about the network\n[network]\na = 1\n'
    path = machine.write(machine.root / "mine.conf", text)
    machine.install("podman", "--config", str(path))
    line = f'  agentshim = ["{machine.launcher}"]\n'
    assert path.read_text() == text.replace("  ]\n", f"  ]\n{line}")
    machine.uninstall("podman", "--config", str(path))
    assert path.read_text() == text


@pytest.mark.parametrize("place", ["main", "vendor", "later"])
def test_podman_runtime_of_our_name_in_another_file(machine: Machine, place: str) -> None:
    path = {
        "main": machine.podman,
        "vendor": machine.root / "vendor.conf",
        "later": machine.podmans.parent / "zz.conf",
    }[place]
    machine.write(path, '[engine.runtimes]\nagentshim = ["/opt/other"]\n')
    assert f"{path}: agentshim: asked" in machine.refuses(Refused, "install", "podman")


def test_a_later_file_that_names_another_default(machine: Machine) -> None:
    later = machine.write(machine.podmans.parent / "zz.conf", '[engine]\nruntime = "crun"\n')
    machine.write(machine.podmans.parent / "aa.conf", '[engine]\nruntime = "runc"\n')
    said = machine.refuses(Refused, "install", "podman", "--set-as-default")
    assert f"{later}: engine.runtime: asked agentshim, ceiling crun" in said
    machine.install("podman")


def test_a_syntax_error_next_door(machine: Machine) -> None:
    other = machine.write(machine.podmans.parent / "zz.conf", "[engine\n")
    assert f"{other}:1: " in machine.refuses(Invalid, "install", "podman")


def test_crio(machine: Machine) -> None:
    machine.write(machine.crio, '[crio]\nlog_dir = "/x"\n')
    machine.write(machine.crios.parent / "10-crio.conf", '[crio.runtime]\ndefault_runtime = "crun"\n')
    machine.install("crio", "--set-as-default")
    entry = {"runtime_path": str(machine.launcher), "runtime_type": "oci", "runtime_root": "/run/runc"}
    wanted = {"crio": {"runtime": {"default_runtime": "agentshim", "runtimes": {"agentshim": entry}}}}
    assert tomllib.loads(machine.crios.read_text()) == wanted
    told = machine.uninstall("crio")
    assert not machine.crios.exists() and "default runtime: the one of the engine" in told


def test_crio_in_a_file_of_another_name(machine: Machine) -> None:
    """CRI-O reads all that is there: so does uninstall."""
    path = machine.write(machine.crios.parent / "50-mine", "# mine\n")
    machine.install("crio", "--config", str(path))
    assert "runtime_path" in path.read_text() and os.listdir(path.parent) == ["50-mine"]
    machine.uninstall("crio")
    assert path.read_text() == "# mine\n"


def test_drop_in_that_got_company(machine: Machine) -> None:
    machine.install("crio")
    text = machine.crios.read_text() + '\n# mine\n[crio.runtime.runtimes.kata]\nruntime_path = "/kata"\n'
    machine.write(machine.crios, text)
    machine.uninstall("crio")
    assert machine.crios.read_text().strip() == '# mine\n[crio.runtime.runtimes.kata]\nruntime_path = "/kata"'


# ---------------------------------------------------------------- the editors

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(st.text(max_size=3) | st.just("runtimes"), values, max_size=4)


@given(documents, st.sampled_from([None, 1, 4, "\t"]), st.booleans())
def test_json_put_and_drop(doc: dict[str, Any], indent: int | str | None, ascii: bool) -> None:
    """put adds at the end and nothing else; drop takes back to the character."""
    if not isinstance(doc.get("runtimes", {}), dict):
        doc["runtimes"] = {}
    text = json.dumps(doc, indent=indent, ensure_ascii=ascii)
    path = ("runtimes", "agentshim")
    doc.get("runtimes", {}).pop("agentshim", None)
    text = json.dumps(doc, indent=indent, ensure_ascii=ascii)
    put = json_text.put(text, path, {"path": "/x"}, "f")
    assert json.loads(put) == {**doc, "runtimes": {**doc.get("runtimes", {}), "agentshim": {"path": "/x"}}}
    assert json_text.put(put, path, {"path": "/x"}, "f") == put or indent is None
    whole = path if "runtimes" in doc else path[:1]
    assert json_text.drop(put, whole, "f") == text
    changed = json_text.put(put, (*path, "path"), "/y", "f")
    assert changed == put.replace('"/x"', '"/y"') or '"/x"' in text


def test_json_values_that_look_like_structure() -> None:
    text = '{"a": "}", "b": "\\"}", "c": [{"runtimes": {}}], "runtimes" : {"x": {"y": "{"}} }'
    out = json_text.put(text, ("runtimes", "z"), 1, "f")
    assert out == text.replace('{"y": "{"}}', '{"y": "{"}, "z": 1}')


keys = st.text("ab.\" #'", min_size=1, max_size=3)
tables = st.dictionaries(keys, st.integers() | st.text("a#[]\"'\\", max_size=3) | st.lists(st.integers(), max_size=2))


@given(st.dictionaries(keys, tables, max_size=3), keys, st.data())
def test_toml_put_and_drop(doc: dict[str, dict[str, Any]], new: str, data: st.DataObject) -> None:
    text = "".join(f"# {n}\n{''.join(toml_text._table((key,), one))}" for n, (key, one) in enumerate(doc.items()))
    assert tomllib.loads(text) == doc
    table = data.draw(st.sampled_from([*doc, "fresh"]))
    was = doc.get(table, {}).get(new)
    put = toml_text.put(text, (table, new), "it", "f")
    assert tomllib.loads(put) == {**doc, table: {**doc.get(table, {}), new: "it"}}
    assert [one for one in text.splitlines() if one[:2] == "# "] == [one for one in put.splitlines() if one[:2] == "# "]
    if was is None and table in doc:
        assert toml_text.drop(put, (table, new), "f") == text
        again = toml_text.put(text, (table, new), {"in": {"side": 1}}, "f")
        assert toml_text._pruned(tomllib.loads(toml_text.drop(again, (table, new), "f"))) == toml_text._pruned(doc)


def test_the_four_are_what_the_command_knows() -> None:
    assert list(engines.ENGINES) == ["docker", "containerd", "podman", "crio"]
    with pytest.raises(SystemExit):
        install.main("install", ["rkt"], "/usr/local/bin/agentshim")
    assert registration.is_ours("agentshim-web", "/x/agentshim-web")
    assert not registration.is_ours("agentshim", "/x/agentshim-web")
    assert not registration.is_ours("agentshimmy", "/x/agentshimmy")
