"""A private dockerd: its own data, sockets, bridge and runtimes, started and stopped by path and pid.

Belongs here: the daemon and its client. Next door: `harness` for what docker and podman share.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conformance.columns import COLUMNS, Column, path_of
from conformance.engines.harness import Archive, DockerLike, bridge, bridge_name, running, stop_child
from conformance.engines.images import tool
from conformance.room import Room, wait_for


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

    @property
    def about_host(self) -> str:
        off = Path("/proc/sys/net/ipv4/ip_forward").read_text() == "0\n"  # and `ip-forward` leaves it so
        return "WARNING: IPv4 forwarding is disabled. Networking will not work.\n" if off else ""

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
        with open(self.home / "log", "a", encoding="utf-8") as log:
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


@contextmanager
def docker(room: Room, archive: Archive, name: str = "d", **config: Any) -> Iterator[Docker]:
    """A running dockerd on a bridge of our own; all its containers and files are gone afterwards."""
    home = room.base / name
    home.mkdir(mode=0o711)
    engine = Docker(room, home, archive, config)
    with bridge(room), running(engine):
        yield engine
