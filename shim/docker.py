"""What Docker asks of a container's network: it says so in its own files, beside the container's, not in the spec.

Belongs here: Docker's files, read-only, root's alone; none of it grants anything. Next door: `verbs.lock` decides. Of
other engines nothing is known here: podman and containerd tell a runtime neither ports nor networks.
Source: dockerd's container directory (hostconfig.json, config.v2.json), Docker 20.10 to 29.
"""

from __future__ import annotations

import posix

from shim import bundle, hostpaths, wire
from shim.dim import mounts
from shim.errors import ShimError
from shim.lattice import Value, at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.hostpaths import Source
    from shim.lattice import Spec

FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
MOST_NEIGHBOURS = 1024  # containers that are looked at for a sibling


class Asked(Value):
    """`directory`: of the container's files; `mode`: 'bridge', 'none', 'host', 'container:ID' or a network's name;
    `ports`: (protocol, port) of the container's that are to be published.
    """

    __slots__ = ("directory", "mode", "ports")

    def __init__(self, directory: str, mode: str, ports: tuple[tuple[str, int], ...]) -> None:
        self.directory = directory
        self.mode = mode
        self.ports = ports

    @property
    def attaches(self) -> bool:
        """Whether dockerd brings interfaces, now or after create."""
        return self.mode not in ("none", "host") and not self.mode.startswith("container:")


def asked(spec: Spec, sources: dict[str, Source], container: str) -> Asked | None:
    """What Docker's files say of this container; None where it is not Docker's, or where they cannot be read."""
    directory = _directory(spec, sources, container)
    host = _read(directory, "hostconfig.json") if directory else None
    if host is None:
        return None
    bound = [name for name, there in (host.get("PortBindings") or {}).items() if there]
    if host.get("PublishAllPorts"):
        bound += at(_read(directory, "config.v2.json") or {}, "Config.ExposedPorts", {})
    mode = host.get("NetworkMode") or "bridge"
    return Asked(directory, "bridge" if mode == "default" else str(mode), tuple(_port(name) for name in bound))


def has_hook(spec: Spec) -> bool:
    """Whether dockerd (before 28) asks to be called for the network: of a spec's user nobody can take that out."""
    every = [*at(spec, "hooks.prestart", []), *at(spec, "hooks.createRuntime", [])]
    return any((one.get("args") or [""])[0] == "libnetwork-setkey" for one in every)


def name(spec: Spec, sources: dict[str, Source], container: str) -> str:
    """The name that Docker's files give this container, '' where it is not Docker's, or they say none."""
    directory = _directory(spec, sources, container)
    found = (_read(directory, "config.v2.json") or {}).get("Name") if directory else None
    return found.lstrip("/") if isinstance(found, str) else ""


def siblings(asked: Asked, wanted: set[str]) -> dict[str, list[str]]:
    """Name -> addresses, on the networks that this container joins, of the running containers that answer to it there:
    by the container's name or an alias, which compose gives to services. Names that nobody answers to are left out.
    Labels name nobody: an image brings its own.
    """
    found: dict[str, list[str]] = {}
    parent, own = hostpaths.split(asked.directory)
    mine = _networks(_read(asked.directory, "config.v2.json"))
    for other in sorted(posix.listdir(parent))[:MOST_NEIGHBOURS]:
        told = _read(f"{parent}/{other}", "config.v2.json") if other != own else None
        if told is None or not at(told, "State.Running", False):
            continue
        for network, joined in _networks(told).items():
            names = {str(told.get("Name", "")).lstrip("/"), *(joined.get("Aliases") or ())}
            for name in names & wanted if network in mine and joined.get("IPAddress") else ():
                found.setdefault(name, []).append(str(joined["IPAddress"]))
    return found


def _networks(told: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Name of a network -> a container's place in it: several where compose names several."""
    every: dict[str, dict[str, Any]] = at(told or {}, "NetworkSettings.Networks", {})
    return {name: joined or {} for name, joined in every.items()}


def _directory(spec: Spec, sources: dict[str, Source], container: str) -> str:
    for mount in spec.get("mounts") or ():
        source = sources.get(mount.get("source") or "")
        if mounts.destination_of(mount) in FILES and source and source.kind == "engine" and source.steady:
            folder = hostpaths.split(source.real)[0]
            if folder.endswith(f"/containers/{container}"):  # not that of a container whose network is joined
                return folder
    return ""


def _read(directory: str, name: str) -> dict[str, Any] | None:
    try:
        told = wire.loads(bundle.Directory(directory).read(name)[0], "docker", name)
    except ShimError:
        return None
    return told if isinstance(told, dict) else None


def _port(name: str) -> tuple[str, int]:
    """(protocol, port) of "80/tcp"; a form that is not known is port 0, which no policy grants."""
    port, _, protocol = name.partition("/")
    return protocol or "tcp", int(port) if port.isascii() and port.isdigit() else 0
