"""The engines of this host, and which runtimes their configuration names: read as each engine reads it.

Belongs here: files, command lines, and what a running dockerd says. Next door: `registration` judges it.
dockerd(8), containerd-config.toml(5), containers.conf(5), crio.conf(5).
"""

from __future__ import annotations

import glob
import http.client
import json
import os
import re
import socket
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from shim.cold.doctor.host import Host, Process

DOCKER, CONTAINERD, PODMAN, CRIO = "docker", "containerd", "podman", "crio"
SECONDS = 5  # for an engine's answer
DOCKER_SOCKET = "unix:///var/run/docker.sock"
PLUGINS = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri")  # of version 3, 2 and 1


@dataclass(frozen=True)
class Runtime:
    """One that an engine knows: `path` as configured; `arguments`: of it, which change how it is called."""

    name: str
    path: str
    arguments: bool = False
    passes_annotations: bool = True


@dataclass
class Engine:
    """`process`: None where it does not run (podman never does); `host`: as it sees it; `files`: those that were read;
    `default`: the runtime where none is asked; `faults`: files that cannot be read, with the reason; `live`: runtimes
    as the running engine tells them, None where it does not.
    """

    kind: str
    host: Host
    process: Process | None = None
    files: list[str] = field(default_factory=list)
    runtimes: list[Runtime] = field(default_factory=list)
    default: str = "runc"
    faults: list[str] = field(default_factory=list)
    sockets: list[str] = field(default_factory=list)
    live: dict[str, str] | None = None
    version: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For a person: the kind, and which process where one runs."""
        return f"{self.kind} ({self.process.pid})" if self.process else self.kind


def engines(host: Host) -> list[Engine]:
    """Every engine that runs, and those that are installed and do not."""
    out = [_docker(host, one) for one in _here(host, "dockerd")]
    children = {_option_of(host, one) for one in host.running("containerd") if _is_dockers(host, one)}
    out += [
        _containerd(host, one) for one in _here(host, "containerd") if not one or _option_of(host, one) not in children
    ]
    if host.program("podman"):
        out.append(_podman(host))
    return out + [_crio(host, one) for one in _here(host, "crio")]


def _here(host: Host, program: str) -> list[Process | None]:
    running: list[Process | None] = [*host.running(program)]
    return running or ([None] if host.program(program) else [])


def _option_of(host: Host, process: Process | None) -> str:
    return process.option("--config", "-c") if process else ""


def _is_dockers(host: Host, process: Process) -> bool:
    """dockerd starts a containerd of its own with a configuration that it writes: .../containerd/containerd.toml."""
    return _option_of(host, process).endswith("/containerd/containerd.toml")


def _json(engine: Engine, path: str) -> dict[str, Any]:
    try:
        text = engine.host.text(path)
        found = json.loads(text) if text.strip() else {}
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        engine.faults.append(f"{path}: {error}")
        return {}
    engine.files += [path] if text else []
    return found


def _toml(engine: Engine, path: str) -> dict[str, Any]:
    try:
        text = engine.host.text(path)
        found = tomllib.loads(text)
    except (OSError, ValueError) as error:
        engine.faults.append(f"{path}: {error}")
        return {}
    engine.files += [path] if text else []
    return found


def table(tree: Any, *keys: str) -> dict[str, Any]:
    """The table at `keys`, an empty one where something else is."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


def _texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


# Docker


def _docker(host: Host, process: Process | None) -> Engine:
    engine = Engine(DOCKER, host.inside(process) if process else host, process)
    path = (process.option("--config-file") if process else "") or "/etc/docker/daemon.json"
    told = engine.settings = _json(engine, path)
    for name, one in table(told, "runtimes").items():
        engine.runtimes.append(Runtime(name, _docker_path(one), bool(table(one).get("runtimeArgs"))))
    for word in process.options("--add-runtime") if process else ():
        name, _, where = word.partition("=")
        engine.runtimes.append(Runtime(name, where))
    asked = process.option("--default-runtime") if process else ""
    engine.default = asked or _text(told.get("default-runtime")) or "runc"
    words = [*(_hosts(process) if process else ()), *_texts(told.get("hosts"))]
    engine.sockets = [address_of(one) for one in words] or [DOCKER_SOCKET]
    if process:
        _ask(engine)
    return engine


def _hosts(process: Process) -> list[str]:
    """Where a dockerd's command line lets it listen; the short option may hold its value: -Htcp://..., -DH=..."""
    joined = [re.fullmatch(r"-[Dv]*H=?(.+)", word) for word in process.words]
    spelled = [one[1] for one in joined if one and one[1] != "="]
    apart = [after for word, after in zip(process.words, process.words[1:]) if re.fullmatch(r"-[Dv]*H", word)]
    return [*process.options("--host"), *spelled, *apart]


def address_of(text: str) -> str:
    """An address as dockerd takes it (opts.ParseHost of moby): without a scheme it is tcp, and has defaults."""
    scheme, found, rest = text.strip().partition("://")
    if not found:
        return f"tcp://{text.strip()}" if text.strip() else DOCKER_SOCKET
    return DOCKER_SOCKET if scheme == "unix" and not rest else f"{scheme}://{rest}"


def path_of(address: str) -> str:
    """The path of a socket, '' where an address is none."""
    if address.startswith("fd://"):
        return "/run/docker.sock"  # systemd's; which one it is, its unit says
    return address.removeprefix("unix://") if address.startswith("unix://") else ""


def _docker_path(one: Any) -> str:
    """A runtime is a path, or since Docker 23 a containerd shim with options."""
    return _text(table(one).get("path")) or _text(table(one, "options").get("BinaryName"))


def _ask(engine: Engine) -> None:
    """What the running dockerd knows: it may not have read its file since it was changed."""
    for address in engine.sockets:
        path = path_of(address)
        try:
            told = get(engine.host.at(path), "/info") if path.startswith("/") else {}
        except (OSError, ValueError, http.client.HTTPException):
            continue
        if told:
            runtimes = table(told, "Runtimes")
            engine.live = {name: _docker_path(one) for name, one in runtimes.items()}
            engine.default = _text(told.get("DefaultRuntime")) or engine.default
            engine.version = _text(told.get("ServerVersion"))
            return


class _Local(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)


def get(path: str, what: str) -> Any:
    """The JSON that an engine's API answers on its socket. OSError, ValueError, HTTPException."""
    connection = _Local(path)
    try:
        connection.request("GET", what)
        answer = connection.getresponse()
        return json.loads(answer.read(1 << 24)) if answer.status == 200 else {}
    finally:
        connection.close()


# containerd


def _containerd(host: Host, process: Process | None) -> Engine:
    engine = Engine(CONTAINERD, host.inside(process) if process else host, process)
    path = _option_of(host, process) or "/etc/containerd/config.toml"
    engine.settings = _toml(engine, path)
    trees = [engine.settings, *(_toml(engine, one) for one in _imports(engine, path))]
    found: dict[str, Runtime] = {}
    for tree in trees:
        for plugin in PLUGINS:
            cri = table(tree, "plugins", plugin, "containerd")
            engine.default = _text(cri.get("default_runtime_name")) or engine.default
            for name, one in table(cri, "runtimes").items():
                passes = any(word.startswith("agentshim") for word in _texts(table(one).get("pod_annotations")))
                found[name] = Runtime(name, _text(table(one, "options").get("BinaryName")), False, passes)
    engine.runtimes = [*found.values()]
    engine.sockets = [
        "unix://" + (_text(table(engine.settings, "grpc").get("address")) or "/run/containerd/containerd.sock")
    ]
    return engine


def _imports(engine: Engine, path: str) -> Iterator[str]:
    """The files that a configuration imports, relative ones from its directory, as globs."""
    for pattern in _texts(engine.settings.get("imports")):
        whole = engine.host.at(os.path.join(os.path.dirname(path), pattern))
        for found in sorted(glob.glob(whole)):
            yield found[len(engine.host.root) :]


# podman and CRI-O


def _drop_ins(host: Host, *directories: str) -> list[str]:
    return [f"{one}/{name}" for one in directories for name in host.names(one) if name.endswith(".conf")]


def _podman(host: Host) -> Engine:
    engine = Engine(PODMAN, host, default="crun" if host.program("crun") else "runc")
    main = ["/usr/share/containers/containers.conf", "/etc/containers/containers.conf"]
    found: dict[str, Runtime] = {}
    for path in [*main, *_drop_ins(host, "/etc/containers/containers.conf.d")]:
        told = table(_toml(engine, path), "engine")
        engine.default = _text(told.get("runtime")) or engine.default
        for name, paths in table(told, "runtimes").items():
            there = [one for one in _texts(paths) if host.has(one)]  # podman takes the first that exists
            found[name] = Runtime(name, (there or _texts(paths) or [""])[0])
    engine.runtimes = [*found.values()]
    engine.sockets = ["unix:///run/podman/podman.sock"]
    return engine


def _crio(host: Host, process: Process | None) -> Engine:
    engine = Engine(CRIO, host.inside(process) if process else host, process)
    path = (process.option("--config", "-c") if process else "") or "/etc/crio/crio.conf"
    directory = (process.option("--config-dir", "-d") if process else "") or "/etc/crio/crio.conf.d"
    found: dict[str, Runtime] = {}
    for one in [path, *_drop_ins(engine.host, directory)]:
        told = table(_toml(engine, one), "crio", "runtime")
        engine.default = _text(told.get("default_runtime")) or engine.default
        for name, entry in table(told, "runtimes").items():
            found[name] = Runtime(name, _text(table(entry).get("runtime_path")))
            engine.settings.setdefault("roots", []).append(_text(table(entry).get("runtime_root")))
    engine.runtimes = [*found.values()]
    engine.sockets = ["unix:///run/crio/crio.sock"]
    return engine
