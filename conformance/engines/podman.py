"""A private podman: storage, network and containers.conf of our own, for root or for an ordinary user.

Belongs here: its command line and configuration. Next door: `harness` for what docker and podman share.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conformance.columns import COLUMNS, Column, path_of
from conformance.engines.harness import Archive, DockerLike, bridge, bridge_name
from conformance.engines.images import tool
from conformance.room import Room


class Podman(DockerLike):
    """podman has no daemon: every command names our storage, our run directory and our containers.conf."""

    name = "podman"

    def __init__(self, room: Room, home: Path, archive: Archive, user: tuple[str, ...] = ()) -> None:
        super().__init__(room, home, archive)
        self._user = user
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
        parent = [] if self._user else [f"--cgroup-parent=/{self.room.base.name}"]  # cgroup v1 has none for users
        return ["--runtime", path_of(column, self.room), verb, *parent, *args]

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


@contextmanager
def rootless(room: Room, archive: Archive, user: str = "ascuser") -> Iterator[Podman]:
    """podman as an ordinary user that exists in the room only, with subordinate ids and a run directory."""
    home = room.base / "rootless"
    made = room.run(["useradd", "--no-create-home", "--home-dir", str(home), user])
    assert made.code == 0, str(made)
    uid = int(room.run(["id", "-u", user]).out)
    run = room.base / "run/user" / str(uid)
    for place in (home, run):
        place.mkdir(mode=0o700, parents=True)
    run.parent.chmod(0o755)
    engine = Podman(room, home, archive, ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--init-groups"))
    engine.env |= {"HOME": str(home), "XDG_RUNTIME_DIR": f"/run/user/{uid}", "USER": user}
    for place in (home, run, *home.rglob("*")):
        os.chown(place, uid, uid)
    try:
        yield engine
    finally:
        engine.remove_all()
        engine.do("system", "migrate")  # ends the process that holds the user namespace
