"""A private containerd and its client ctr: root, state and socket of our own, no CRI.

Belongs here: the daemon and ctr's words. Next door: `harness`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conformance.columns import Column, path_of
from conformance.engines.harness import BUSYBOX, Archive, Engine, running, stop_child
from conformance.engines.images import tool
from conformance.room import Result, Room, wait_for


class Containerd(Engine):
    """A containerd of our own and ctr; the namespace is the room's name, which is its cgroup's too."""

    name = "containerd"

    def __init__(self, room: Room, home: Path, archive: Archive) -> None:
        super().__init__(room, home, archive)
        self.socket = home / "c.sock"
        self.namespace = room.base.name
        self.client = [tool("ctr"), "--address", str(self.socket), "--namespace", self.namespace]
        self._file = home / "config.toml"
        self._file.write_text(
            f'version = 2\nroot = "{home}/root"\nstate = "{home}/state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self.socket}"\n'
        )
        self._daemon: subprocess.Popen[str] | None = None
        self._next = 0

    def start(self) -> None:
        """Start containerd and wait until it answers."""
        with open(self.home / "log", "a", encoding="utf-8") as log:
            argv = [tool("containerd"), "--config", str(self._file)]
            self._daemon = self.room.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: self.socket.exists() and self.do("version").code == 0, 30, f"containerd; see {self.home}/log")

    def stop(self) -> None:
        """Stop containerd; its shims and containers live on."""
        assert self._daemon is not None
        stop_child(self._daemon)

    def restart(self) -> None:
        self.stop()
        self.start()

    def fresh(self) -> str:
        """A container id not used before."""
        self._next += 1
        return f"c{self._next}"

    def words(
        self, column: Column, name: str, *args: str, image: str = BUSYBOX, flags: tuple[str, ...] = ()
    ) -> list[str]:
        """`ctr run` of `image` with `flags`, under `column`."""
        binary = ["--runc-binary", path_of(column, self.room), "--runtime", "io.containerd.runc.v2"]
        return ["run", *binary, *flags, self.image(image), name, *args]

    def run(self, column: Column, *args: str, flags: tuple[str, ...] = (), image: str = BUSYBOX, **how: Any) -> Result:
        """`ctr run --rm` in the foreground."""
        words = self.words(column, self.fresh(), *args, image=image, flags=("--rm", *flags))
        return self.do(*words, **how)

    @contextmanager
    def detached(self, column: Column, *args: str, flags: tuple[str, ...] = (), image: str = BUSYBOX) -> Iterator[str]:
        """`ctr run -d`, and the task and container removed afterwards."""
        name = self.fresh()
        self.must(*self.words(column, name, *args, image=image, flags=("--detach", *flags)))
        try:
            yield name
        finally:
            self.remove(name)

    def remove(self, name: str) -> None:
        self.do("task", "delete", "--force", name)
        self.do("container", "delete", name)

    def remove_all(self) -> None:
        for name in self.must("container", "list", "--quiet").split():
            self.remove(name)

    def pid(self, name: str) -> int:
        """The host's pid of the task's first process."""
        rows = [line.split() for line in self.must("task", "list").splitlines()[1:]]
        return next(int(row[1]) for row in rows if row[0] == name)

    def status(self, name: str) -> str:
        """RUNNING, STOPPED, PAUSED, or an empty string."""
        rows = [line.split() for line in self.must("task", "list").splitlines()[1:]]
        return next((row[2] for row in rows if row[0] == name), "")

    def load(self, archive: Path) -> None:
        self.must("image", "import", str(archive))


@contextmanager
def containerd(room: Room, archive: Archive, name: str = "c") -> Iterator[Containerd]:
    """A running containerd; all its containers and files are gone afterwards."""
    home = room.base / name
    home.mkdir(mode=0o711)
    engine = Containerd(room, home, archive)
    with running(engine):
        yield engine
