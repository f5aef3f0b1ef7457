"""Bundles, delegates and runtimes for tests without an engine."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.columns import CRUN, RUNC, Column, configure, path_of
from conformance.engines import images
from conformance.oci.bundles import Bundle
from conformance.oci.cli import Runtime
from conformance.room import Room

# A bundle has a root of its own, and there are many bundles: few names, and files by hard link.
APPLETS = """ash cat chmod chown chroot dd echo false grep head hostname id ip ln ls mkdir mknod mount nice readlink rm
rmdir sed sh sleep stat stty su tail test touch true tty unshare wc"""
COUNTER = itertools.count(1)
Maker = Callable[[dict[str, Any]], Bundle]


@pytest.fixture(scope="session")
def rootfs(the_room: Room) -> Path:
    """A small busybox root file system, to be copied."""
    if why := images.missing("busybox"):
        pytest.skip(f"SKIPPED LOUDLY: {why}")
    tar = images.build("busybox", the_room.base / "rootfs.tar", APPLETS.split())
    return images.unpack(tar, the_room.base / "rootfs")


@pytest.fixture
def bundle(the_room: Room, rootfs: Path) -> Maker:
    """bundle(config): a new bundle."""
    return lambda config: Bundle(the_room.base / f"b{next(COUNTER)}", rootfs, config)


@pytest.fixture(scope="module", params=[RUNC, CRUN], ids=["runc", "crun"])
def delegate(request: pytest.FixtureRequest, the_room: Room) -> str:
    """Each delegate in turn, written into the configuration."""
    path: str = request.param
    if not os.access(path, os.X_OK):
        pytest.skip(f"SKIPPED LOUDLY: {path} is not installed")
    configure(the_room, delegate=path)
    return path


@pytest.fixture
def runtime(the_room: Room, delegate: str, column: Column) -> Iterator[Runtime]:
    """`column` over `delegate`; the column "runc" is the delegate itself, whichever it is."""
    program = path_of(column, the_room) if column.shim else delegate
    one = Runtime(the_room, program, the_room.base / f"r{next(COUNTER)}")
    yield one
    one.clear()
