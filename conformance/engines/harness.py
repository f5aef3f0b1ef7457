"""Private engines: what dockerd, podman and containerd have in common in a room of ours.

Belongs here: a client's command line, images, waiting and stopping. Next door: `dockerd`, `podman`, `containerd` hold
one context manager each; `room` hides what they do from the host, `images` makes what they run.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conformance.columns import Column
from conformance.engines.images import tool
from conformance.room import Result, Room

NODE, PYTHON, BUSYBOX = "node", "python", "busybox"


Archive = Callable[[str], Path]


class Engine:
    """What the three have in common: a name, a room, and a client command line."""

    name = ""

    def __init__(self, room: Room, home: Path, archive: Archive) -> None:
        self.room = room
        self.home = home
        self._archive = archive
        self._loaded: set[str] = set()
        self.client: list[str] = []
        self.env: dict[str, str] = {}

    def do(self, *args: str, timeout: float = 60, input: str | None = None, **how: Any) -> Result:
        """Run the engine's client with `args`."""
        env = {**self.env, **how.pop("env", {})}
        return self.room.run([*self.client, *args], timeout=timeout, input=input, env=env, **how)

    def must(self, *args: str, **how: Any) -> str:
        """As `do`, but anything except exit code 0 is a failure; returns stdout without its last newline."""
        result = self.do(*args, **how)
        assert result.code == 0, str(result)
        return result.out.rstrip("\n")

    def load(self, archive: Path) -> None:
        """Import an image archive."""
        raise NotImplementedError

    def image(self, name: str) -> str:
        """The reference of the image `name`, which is imported when it is first asked for."""
        if name not in self._loaded:
            self.load(self._archive(name))
            self._loaded.add(name)
        return f"localhost/asc-{name}:latest"


class DockerLike(Engine):
    """The command line that docker and podman share."""

    @property
    def about_host(self) -> str:
        """What its client says of this host before a container's own standard error."""
        return ""

    def choose(self, column: Column) -> list[str]:
        """The words that select `column`, before and after the verb: docker wants them after."""
        raise NotImplementedError

    def words(self, verb: str, column: Column, *args: str) -> list[str]:
        """A whole command line for `run` or `create` under `column`."""
        raise NotImplementedError

    def run(self, column: Column, *args: str, **how: Any) -> Result:
        """`run --rm` in the foreground."""
        return self.do(*self.words("run", column, "--rm", *args), **how)

    def pid(self, container: str) -> int:
        """The host's pid of the container's first process."""
        return int(self.must("inspect", "--format", "{{.State.Pid}}", container))

    def state(self, container: str) -> dict[str, Any]:
        """The engine's idea of the container's state."""
        found: dict[str, Any] = json.loads(self.must("inspect", "--format", "{{json .State}}", container))
        return found

    @contextmanager
    def detached(self, column: Column, *args: str) -> Iterator[str]:
        """`run -d`, and the container removed afterwards."""
        name = self.must(*self.words("run", column, "-d", *args))
        try:
            yield name
        finally:
            self.remove(name)

    def remove(self, *names: str) -> None:
        """Remove containers by force."""
        self.do("rm", "--force", "--volumes", *names)

    def load(self, archive: Path) -> None:
        self.must("load", "--input", str(archive))

    def remove_all(self) -> None:
        """Remove every container of this engine."""
        left = self.must("ps", "-aq").split()
        if left:
            self.remove(*left)


def stop_child(child: subprocess.Popen[str], seconds: float = 20) -> None:
    """SIGTERM, a bounded wait, SIGKILL; the child is ours and is reaped."""
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


@contextmanager
def running(engine: Any) -> Iterator[Any]:
    """An engine from its start to its end, with none of its containers left."""
    engine.start()
    try:
        yield engine
    finally:
        engine.remove_all()
        engine.stop()


def bridge_name(room: Room) -> str:
    """The room's own bridge (15 bytes at most): the host's docker0 may belong to another dockerd."""
    return room.base.name.replace("-", "")[:15]


@contextmanager
def bridge(room: Room) -> Iterator[None]:
    """A bridge in the room's network namespace for as long as it is needed; nested uses share it."""
    name = bridge_name(room)
    if room.run(["test", "-e", f"/proc/sys/net/ipv4/conf/{name}"]).code == 0:
        yield
        return
    address = f"10.231.{sum(name.encode()) % 256}.1/24"
    for words in (["link", "add", name, "type", "bridge"], ["address", "add", address, "dev", name]):
        result = room.run([tool("ip"), *words])
        assert result.code == 0, str(result)
    room.run([tool("ip"), "link", "set", name, "up"])
    try:
        yield
    finally:
        room.run([tool("ip"), "link", "delete", name])
