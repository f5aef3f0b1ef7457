"""Private engines, one context manager each: dockerd, containerd and podman with nothing of theirs outside a room.

Belongs here: how an engine is started by path, waited for, imported into and stopped by pid. Next door: `room` hides
what they do from the host, `images` makes what they run, `checklist` says what must be true of them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conformance.columns import COLUMNS, Column, path_of
from conformance.engines.images import tool
from conformance.room import Result, Room, wait_for, with_pid_alive

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


class Docker(DockerLike):
    """A dockerd of our own. `socket` is also where compose connects."""

    name = "docker"

    def __init__(self, room: Room, home: Path, archive: Archive, config: Mapping[str, Any]) -> None:
        super().__init__(room, home, archive)
        self.socket = home / "docker.sock"
        self.client = [tool("docker"), "--host", f"unix://{self.socket}"]
        self.env = {"DOCKER_CONFIG": str(home / "client")}
        self._file = home / "daemon.json"
        self._file.write_text(json.dumps(self._config(config)))
        self._daemon: subprocess.Popen[str] | None = None

    def _config(self, more: Mapping[str, Any]) -> dict[str, Any]:
        shims = [column for column in COLUMNS if column.shim]
        return {
            "data-root": str(self.home / "data"),
            "exec-root": str(self.home / "exec"),
            "pidfile": str(self.home / "pid"),
            "hosts": [f"unix://{self.socket}"],
            "runtimes": {column.executable: {"path": path_of(column, self.room)} for column in shims},
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "iptables": False,
            "ip6tables": False,
            "ip-forward": False,
            "ip-masq": False,
            "userland-proxy": False,
            "bridge": bridge_name(self.room),
            "cgroup-parent": f"/{self.room.base.name}",
            "live-restore": True,
            "shutdown-timeout": 2,
            **more,
        }

    def words(self, verb: str, column: Column, *args: str) -> list[str]:
        name = column.executable if column.shim else "runc"
        return [verb, f"--runtime={name}", *args]

    def start(self) -> None:
        """Start dockerd and wait until it answers."""
        log = open(self.home / "log", "a", encoding="utf-8")
        with log:
            argv = [tool("dockerd"), "--config-file", str(self._file)]
            self._daemon = self.room.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self._answers, 30, f"dockerd to answer; see {self.home}/log")

    def _answers(self) -> bool:
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            raise RuntimeError(f"dockerd has ended: {(self.home / 'log').read_text()[-2000:]}")
        return self.socket.exists() and self.do("version").code == 0

    def stop(self) -> None:
        """Stop dockerd (and the containerd that it owns); containers live on (live-restore)."""
        assert self._daemon is not None
        stop_child(self._daemon)

    def restart(self) -> None:
        """Stop and start: what a package upgrade does to running containers."""
        self.stop()
        self.start()


def stop_child(child: subprocess.Popen[str], seconds: float = 20) -> None:
    """SIGTERM, a bounded wait, SIGKILL; the child is ours and is reaped."""
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


@contextmanager
def docker(room: Room, archive: Archive, name: str = "d", **config: Any) -> Iterator[Docker]:
    """A running dockerd on a bridge of our own; all its containers and files are gone afterwards."""
    home = room.base / name
    home.mkdir(mode=0o711)
    engine = Docker(room, home, archive, config)
    with bridge(room):
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
    """A bridge in the host's network namespace for as long as it is needed; nested uses share it."""
    name = bridge_name(room)
    if os.path.exists(f"/sys/class/net/{name}"):
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


class Podman(DockerLike):
    """podman has no daemon: every command names our storage, our run directory and our containers.conf."""

    name = "podman"

    def __init__(self, room: Room, home: Path, archive: Archive, user: tuple[str, ...] = ()) -> None:
        super().__init__(room, home, archive)
        self.env = {"CONTAINERS_CONF": str(home / "containers.conf")}
        self.client = [*user, tool("podman"), "--root", f"{home}/root", "--runroot", f"{home}/runroot"]
        self.client += ["--cgroup-manager", "cgroupfs"]
        (home / "containers.conf").write_text(self._config())
        (home / "cni").mkdir(exist_ok=True)
        (home / "cni/10-podman.conflist").write_text(json.dumps(self._network()))

    def _config(self) -> str:
        rows = [f'{column.executable} = ["{path_of(column, self.room)}"]' for column in COLUMNS if column.shim]
        json_capable = ", ".join(f'"{column.executable}"' for column in COLUMNS if column.shim)
        return "\n".join(
            [
                "[containers]",
                "default_ulimits = []",  # podman raises nofile; some hosts lack CAP_SYS_RESOURCE
                "[engine]",
                'events_logger = "file"',
                'runtime = "runc"',
                f'runtime_supports_json = ["runc", "crun", {json_capable}]',
                "[engine.runtimes]",
                'runc = ["/usr/sbin/runc"]',
                *rows,
                "[network]",
                'network_backend = "cni"',
                f'network_config_dir = "{self.home}/cni"',
                'cni_plugin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]',
            ]
        )

    def _network(self) -> dict[str, Any]:
        """No gateway, no masquerading: neither the host's forwarding nor its firewall is touched."""
        ranges = [[{"subnet": "10.231.8.0/24"}]]
        ipam = {"type": "host-local", "dataDir": str(self.home / "ipam"), "ranges": ranges}
        plugin = {"type": "bridge", "bridge": bridge_name(self.room), "isGateway": False, "ipMasq": False, "ipam": ipam}
        return {"cniVersion": "0.4.0", "name": "podman", "plugins": [plugin]}

    def words(self, verb: str, column: Column, *args: str) -> list[str]:
        parent = f"--cgroup-parent=/{self.room.base.name}"
        return ["--runtime", path_of(column, self.room), verb, parent, *args]

    def remove(self, *names: str) -> None:
        self.do("rm", "--force", "--volumes", "--time", "0", *names)


@contextmanager
def podman(room: Room, archive: Archive, name: str = "p") -> Iterator[Podman]:
    """podman on storage of our own; all containers and files are gone afterwards."""
    home = room.base / name
    home.mkdir(mode=0o711)
    engine = Podman(room, home, archive)
    with bridge(room):
        try:
            yield engine
        finally:
            engine.remove_all()


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

    def words(self, column: Column, name: str, *args: str, image: str = BUSYBOX, flags: tuple[str, ...] = ()) -> list[str]:
        """`ctr run` of `image` with `flags`, under `column`."""
        binary = ["--runc-binary", path_of(column, self.room), "--runtime", "io.containerd.runc.v2"]
        return ["run", *binary, *flags, self.image(image), name, *args]

    def run(self, column: Column, *args: str, flags: tuple[str, ...] = (), image: str = BUSYBOX, **how: Any) -> Result:
        """`ctr run --rm` in the foreground."""
        words = self.words(column, self.fresh(), *args, image=image, flags=("--rm", *flags))
        return self.do(*words, **how)

    @contextmanager
    def detached(
        self, column: Column, *args: str, flags: tuple[str, ...] = (), image: str = BUSYBOX
    ) -> Iterator[str]:
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
    engine.start()
    try:
        yield engine
    finally:
        engine.remove_all()
        engine.stop()
