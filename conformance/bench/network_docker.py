"""Docker's bridge beside a network of ours: what each adds to a container's start and end, under one dockerd.

Belongs here: a dockerd in the benchmark's namespaces, and its API. Next door: `conformance/engines/dockerd` starts and
stops it, `network` has the rows without an engine, `network_packets` sends through a container on its bridge.

dockerd makes a network when a container is started, and has taken it back when a forced removal answers: these two are
timed, not the making of the container. Asked over its socket: the client is a Go program, whose start is tens of ms.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from conformance.bench import place
from conformance.bench.life import Failed, timed
from conformance.bench.network_lab import EMPTY, OURS, Member, Net
from conformance.bench.network_rivals import found
from conformance.bench.turns import QUIET, Bench, Row, Samples
from conformance.engines import dockerd, images
from conformance.engines.harness import BUSYBOX
from conformance.room import Room

HOME = Path("/run/bench-docker")  # its name is also that of a control group
# Contender -> of the benchmark's cast (None: plain runc), what dockerd is asked for, whether there is an eth0 then
WAYS: dict[str, tuple[str | None, str, bool]] = {
    "docker-cell": (OURS, "none", True),
    "docker-open": (EMPTY, "none", False),
    "docker-bridge": (None, "bridge", True),
    "docker-none": (None, "none", False),
}
OFTEN = 2  # a start in dockerd varies by tens of ms
PAIRS = {"isolated network": ("docker-cell", "docker-open"), "Docker's bridge": ("docker-bridge", "docker-none")}


def possible() -> bool:
    """Whether dockerd and what it makes its rules with are installed."""
    return bool(found("dockerd") and found("iptables"))


@contextmanager
def daemon(bench: Bench) -> Iterator[dockerd.Docker]:
    """A dockerd with its rules in the present namespaces, which are not the machine's. Failed where it does not run."""
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(mode=0o711)
    here = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    runtimes = {name: {"path": bench.cast[of].program if of else bench.delegate} for name, (of, _, _) in WAYS.items()}
    how: dict[str, Any] = {"runtimes": runtimes, "iptables": True, "ip-forward": True, "ip-masq": True}
    with ExitStack() as stack:
        stack.callback(place.sweep_cgroups, HOME.name)
        stack.callback(os.close, here)
        try:
            engine = stack.enter_context(dockerd.docker(Room(HOME, here), _archive, **how))
            engine.image(BUSYBOX)
        except (AssertionError, RuntimeError, TimeoutError, subprocess.SubprocessError) as failure:
            raise Failed(f"dockerd: {failure}") from failure
        yield engine


def _archive(name: str) -> Path:
    return images.archive(name, images.build(name, HOME / f"{name}.tar"), HOME / f"{name}.image")


@contextmanager
def lodger(bench: Bench) -> Iterator[tuple[Net, Member]]:
    """A host of its own with a dockerd, and a container of plain runc on Docker's bridge."""
    host = Net()
    with host.inside(), daemon(bench) as engine:
        name = _created(engine, "docker-bridge")
        _asked(engine, "POST", f"/containers/{name}/start")
        yield host, Member(_pid(engine, name))
    host.close()


def started(bench: Bench) -> Iterator[Row]:
    """start and forced removal: with a network of ours, with Docker's, and with none, under one dockerd."""
    ends: Samples = {name: [] for name in WAYS}

    def one(engine: dockerd.Docker, name: str) -> float:
        container = _created(engine, name)
        try:
            took = timed(lambda: _asked(engine, "POST", f"/containers/{container}/start"))
            _check(name, _pid(engine, container))
            time.sleep(QUIET)
            ends[name].append(timed(lambda: _removed(engine, container)))
            return took
        except Failed:
            with suppress(Failed):
                _removed(engine, container)
            raise

    with daemon(bench) as engine:
        starts = bench.interleave({name: partial(one, engine, name) for name in WAYS}, bench.rounds * OFTEN, QUIET)
    ours, theirs = PAIRS
    for title, samples in (("start", starts), ("rm --force", {name: ends[name][1:] for name in starts})):
        for what, (with_it, without) in PAIRS.items():
            yield from bench.row("networks", f"`docker {title}`, {what}", samples, with_it, without, None, "ms")
        yield from bench.row("networks", f"`docker {title}`, what they add", _added(samples), ours, theirs, None, "ms")


def _added(samples: Samples) -> Samples:
    """Round by round, by what each network is called; those that have both its contenders."""
    return {
        what: [one - other for one, other in zip(samples[with_it], samples[without], strict=True)]
        for what, (with_it, without) in PAIRS.items()
        if {with_it, without} <= samples.keys()
    }


def _check(name: str, pid: int) -> None:
    """That there is a network where one is paid for, and only there."""
    there = "eth0:" in Path(f"/proc/{pid}/net/dev").read_text()
    if there != WAYS[name][2]:
        raise Failed(f"{name}: eth0 is {'there' if there else 'not there'}")


# The API


class _Line(HTTPConnection):
    """HTTP over a socket of this host."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def _asked(engine: dockerd.Docker, verb: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """dockerd's answer. Failed where it says no."""
    line = _Line(engine.socket)
    try:
        line.request(verb, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = line.getresponse()
        said = answer.read()
    except (OSError, HTTPException) as failure:
        raise Failed(f"dockerd: {verb} {path}: {failure}") from failure
    finally:
        line.close()
    if answer.status >= 300:
        raise Failed(f"dockerd: {verb} {path}: {answer.status} {said.decode(errors='replace').strip()}")
    return json.loads(said) if said else None


def _created(engine: dockerd.Docker, name: str) -> str:
    """A container's id."""
    how = {"NetworkMode": WAYS[name][1], "Runtime": name}
    asks = {"Image": engine.image(BUSYBOX), "Cmd": ["sleep", "3600"], "HostConfig": how}
    made: str = _asked(engine, "POST", "/containers/create", asks)["Id"]
    return made


def _pid(engine: dockerd.Docker, container: str) -> int:
    """The host's pid of its first process."""
    pid: int = _asked(engine, "GET", f"/containers/{container}/json")["State"]["Pid"]
    return pid


def _removed(engine: dockerd.Docker, container: str) -> None:
    _asked(engine, "DELETE", f"/containers/{container}?force=1")
