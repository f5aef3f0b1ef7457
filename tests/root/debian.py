"""This machine's own Debian as a container's root, started by real runc through agentshim under a whole policy.

Belongs here: the room with its configuration, and boxes (one container's bundle, root and volume). The root is an
overlay of the host's, so programs are the packages that the host has, and what a container writes goes with it. Next
door: `seccomp_bundle` starts a delegate alone, under a profile alone; `conformance.room` keeps the host out of it.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformance.columns import RUNC, configure, launcher
from conformance.oci.bundles import spec
from conformance.oci.cli import Runtime
from conformance.room import Result, Room
from shim import policy
from tests.root import workloads
from tests.unit import seccomp_inputs as inputs

WORK = "/work"  # where a box has its volume: read-write, and under agent and dev executable
ENV = [f"PATH={workloads.PATH}", f"HOME={WORK}", "LC_ALL=C.UTF-8"]
CONFIG = """delegate = "{delegate}"
limit = "LIMIT"
names = [NAMES]
"""
_COUNT = itertools.count(1)


class Debian:
    """agentshim in a room of its own: every built-in policy, and those that are written here, can be started by name.

    The limit is `identity`, unless `configure` says otherwise.
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self.policies = room.base / "config" / "policies"
        self.policies.mkdir(mode=0o755)
        (room.base / "bin").mkdir(mode=0o755)
        self._names: list[str] = []
        for name in policy.BUILTIN:
            self._link(name)
        self.configure()

    def configure(self, limit: str = "identity") -> None:
        """Write config.toml anew, with `limit` as the host's limit."""
        names = ", ".join(f'"{name}"' for name in self._names)
        configure(self.room, CONFIG.replace("NAMES", names).replace("LIMIT", limit), RUNC)

    def policy(self, name: str, text: str) -> str:
        """Write a policy of the host, to be chosen by a link that bears its name; returns the name."""
        path = self.policies / f"{name}.toml"
        path.write_text(f'schema = 1\nname = "{name}"\nabout = "a test\'s policy"\n{text}')
        path.chmod(0o644)
        self._link(name)
        self.configure()
        return name

    def _link(self, name: str) -> None:
        link = self.room.base / "bin" / f"agentshim-{name}"
        if not link.is_symlink():
            link.symlink_to(launcher())
            self._names.append(name)


class Box:
    """One container under `policy` as user `uid`: its bundle, a root file system of its own, and `work`, a directory of
    the user's at /work. `linux` is put over that part of config.json; Docker's own filter is asked unless it says
    otherwise.
    """

    def __init__(self, debian: Debian, policy: str, uid: int = 0, **linux: Any) -> None:
        self.room = debian.room
        self.name = f"b{next(_COUNT)}"
        self.path = self.room.base / self.name
        self.path.mkdir(mode=0o755)
        self.work = self.path / "work"
        self.work.mkdir(mode=0o755)
        os.chown(self.work, uid, uid)
        self.rootfs = self.path / "rootfs"
        self._mount()
        program = str(self.room.base / "bin" / f"agentshim-{policy}")
        self.runtime = Runtime(self.room, program, self.path / "run")
        self.config = self._config(uid, {"seccomp": inputs.dockers().raw, **linux})

    def _mount(self) -> None:
        """The host's root under an overlay whose upper layer is the room's tmpfs, without what the host keeps in /run
        and /tmp: a device 0:0 in an upper layer hides what is below it.
        """
        self.rootfs.mkdir()
        upper = self.room.base / "over" / self.name
        script = f"""mkdir -p {upper}/up {upper}/work && mknod {upper}/up/run c 0 0 && mknod {upper}/up/tmp c 0 0
        mount -t overlay -o lowerdir=/,upperdir={upper}/up,workdir={upper}/work overlay {self.rootfs}
        cd {self.rootfs} && mkdir -p -m 755 proc sys dev work run && mkdir -m 1777 tmp"""
        self._inside("sh", "-ec", script)

    def _config(self, uid: int, linux: dict[str, Any]) -> dict[str, Any]:
        config = spec("true", cgroup=f"{self.runtime.cgroup}/{self.name}")
        limits = [{"type": "RLIMIT_NOFILE", "hard": 20000, "soft": 1024}]
        config["process"].update(user={"uid": uid, "gid": uid}, cwd=WORK, env=ENV, rlimits=limits)
        config["mounts"].append({"destination": WORK, "source": str(self.work), "type": "bind", "options": ["rbind"]})
        del config["linux"]["resources"]["memory"]  # compilers and browsers want more than a conformance test
        config["linux"].update({key: value for key, value in linux.items() if value is not None})
        return config

    def _inside(self, *argv: str, **how: Any) -> None:
        """Run a command of the host where the root file system is mounted."""
        done = self.room.run(argv, **how)
        assert done.code == 0, str(done)

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of the image, with this content."""
        self._inside("install", "-D", "-m", f"{mode:o}", "/dev/stdin", f"{self.rootfs}{path}", input=text)

    def copy(self, source: Path, path: str) -> None:
        """A program of the image, copied from the host."""
        self._inside("install", "-D", "-m", "755", str(source), f"{self.rootfs}{path}")

    def _write(self, args: tuple[str, ...]) -> tuple[str, ...]:
        """The bundle, to run `args`; the words that name it."""
        self.config["process"]["args"] = list(args)
        (self.path / "config.json").write_text(json.dumps(self.config))
        return "--bundle", str(self.path), self.name

    def run(self, *args: str, timeout: float = 300) -> Result:
        """A container's whole life."""
        return self.runtime.call("run", *self._write(args), timeout=timeout)

    def bash(self, script: str, timeout: float = 300) -> Result:
        """The whole life of a container that runs `script`."""
        return self.run("/bin/bash", "-c", script, timeout=timeout)

    def start(self, *args: str) -> int:
        """A container that lives on; the pid of its first process on the host."""
        bundle = self._write(args)
        pid_file = self.path / "pid"
        self.runtime.must("create", "--pid-file", str(pid_file), *bundle)
        self.runtime.must("start", self.name)
        return int(pid_file.read_text())

    def said(self) -> str:
        """What a started container has written to its standard error."""
        return (self.runtime.home / "1.err").read_text(errors="replace")

    def exec(self, *args: str) -> str:
        """What a second process in a running container prints."""
        return self.runtime.must("exec", self.name, *args)

    def pids(self) -> list[int]:
        """The host's pids of all processes of a running container."""
        told = self.runtime.must("ps", "--format", "json", self.name)
        return [int(pid) for pid in json.loads(told)]

    def status(self) -> str:
        return self.runtime.status(self.name)

    def close(self) -> None:
        self.runtime.clear()
        self.room.run(["umount", "-l", str(self.rootfs)])


Maker = Callable[..., Box]


def finished(done: Result) -> None:
    """The script has come to its last line, `echo done`, without an error."""
    assert done.code == 0 and done.out.rstrip().endswith("done"), str(done)
