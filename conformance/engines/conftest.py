"""Session-scoped engines: each is started once, for the first test that asks for it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.columns import Column, chosen, missing
from conformance.engines import containerd as containerd_
from conformance.engines import dockerd as dockerd_
from conformance.engines import harness, images
from conformance.engines import podman as podman_
from conformance.room import Result, Room


@pytest.fixture(scope="session")
def archive(the_room: Room) -> Callable[[str], Path]:
    """archive(name): the image `name` as a file, made on first use; skips loudly where it cannot be made."""

    def made(name: str) -> Path:
        target = the_room.base / f"{name}.image"
        if why := images.missing(name):
            pytest.skip(f"SKIPPED LOUDLY: {why}")
        if not target.exists():
            images.archive(name, images.build(name, the_room.base / f"{name}.tar"), target)
        return target

    return made


def needs(*tools: str) -> None:
    """Skip loudly unless all `tools` are installed."""
    if absent := [name for name in tools if not images.tool(name)]:
        pytest.skip(f"SKIPPED LOUDLY: not installed: {', '.join(absent)}")


@pytest.fixture(scope="session")
def dockerd(the_room: Room, archive: Callable[[str], Path]) -> Iterator[dockerd_.Docker]:
    """A dockerd of our own."""
    needs("dockerd", "docker", "containerd", "runc")
    with dockerd_.docker(the_room, archive) as engine:
        yield engine


@pytest.fixture(scope="session")
def remapped(the_room: Room, archive: Callable[[str], Path]) -> Iterator[dockerd_.Docker]:
    """A dockerd with userns-remap: root in its containers is an unprivileged user of the host."""
    needs("dockerd", "docker", "containerd", "runc", "useradd")
    assert the_room.run(["useradd", "--no-create-home", "ascremap"]).code == 0
    with dockerd_.docker(the_room, archive, "u", **{"userns-remap": "ascremap:ascremap"}) as engine:
        yield engine


@pytest.fixture(scope="session")
def containerd(the_room: Room, archive: Callable[[str], Path]) -> Iterator[containerd_.Containerd]:
    """A containerd of our own."""
    needs("containerd", "ctr", "runc")
    with containerd_.containerd(the_room, archive) as engine:
        yield engine


@pytest.fixture(scope="session")
def podman(the_room: Room, archive: Callable[[str], Path]) -> Iterator[podman_.Podman]:
    """podman on storage of our own."""
    needs("podman", "conmon", "runc")
    with podman_.podman(the_room, archive) as engine:
        yield engine


@pytest.fixture(scope="session")
def rootless(the_room: Room, archive: Callable[[str], Path]) -> Iterator[podman_.Podman]:
    """podman as an ordinary user; skips loudly where this host gives users no namespaces."""
    needs("podman", "conmon", "runc", "useradd", "setpriv", "newuidmap")
    with podman_.rootless(the_room, archive) as engine:
        probe = engine.do("unshare", "true")
        if probe.code != 0:
            pytest.skip(f"SKIPPED LOUDLY: no rootless podman here: {probe.err}")
        yield engine


@pytest.fixture(scope="session")
def oracle() -> Callable[..., Result]:
    """oracle(look, engine, column, *args): `look(...)`, run once a session: plain runc's answer is needed often."""
    known: dict[tuple[object, ...], Result] = {}

    def ask(look: Callable[..., Result], engine: harness.Engine, *args: object) -> Result:
        key = (look.__name__, engine.name, *args)
        if key not in known:
            known[key] = look(engine, *args)
        return known[key]

    return ask


@pytest.fixture(params=[column for column in chosen() if column.ceiling], ids=lambda column: column.name)
def lowered(request: pytest.FixtureRequest) -> Column:
    """Each column that has a ceiling."""
    column: Column = request.param
    why = missing(column)
    assert not why, why
    return column


@pytest.fixture(scope="session")
def listener(the_room: Room) -> Iterator[Path]:
    """A socket with somebody behind it, as an engine's API is."""
    path = the_room.base / "api.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield path
