"""What all conformance tests share: the room, the columns, and the check that nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.columns import Column, chosen, furnish, missing
from conformance.room import Room, room

pytest.register_assert_rewrite("conformance.engines.asks", "conformance.engines.checklist", "conformance.oci.spy")

MARKERS = (
    "engine: needs dockerd, containerd or podman, and root",
    "oci: needs runc or crun, and root",
    "slow: takes more than five seconds",
)


def pytest_configure(config: pytest.Config) -> None:
    """Register our markers wherever the suite is started from."""
    for line in MARKERS:
        config.addinivalue_line("markers", line)


@pytest.fixture(scope="session")
def the_room() -> Iterator[Room]:
    """The private room of this session; leaving it checks that the host is as it was."""
    if os.geteuid() != 0:
        pytest.skip("SKIPPED LOUDLY: conformance needs root")
    with room() as here:
        furnish(here)
        yield here
    assert not here.left, f"processes were left in the room and had to be killed: {here.left}"
    assert not traces(here.base), f"left on the host: {traces(here.base)}"


def traces(base: Path) -> list[str]:
    """What a finished room may not leave: mounts, files, cgroups, bridges."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(base) in line]
    files = [str(base)] if base.exists() else []
    cgroups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{base.name}")]
    bridges = [name for name in os.listdir("/sys/class/net") if name == base.name.replace("-", "")[:15]]
    return mounts + files + cgroups + bridges


@pytest.fixture(params=chosen(), ids=lambda column: column.name)
def column(request: pytest.FixtureRequest) -> Column:
    """Each runtime in turn; a launcher that was not built is an error, never a silent skip."""
    chosen_one: Column = request.param
    why = missing(chosen_one)
    assert not why, why
    return chosen_one


@pytest.fixture
def columns() -> list[Column]:
    """All columns at once, for tests that start an engine's whole day once."""
    assert not [why for why in map(missing, chosen()) if why]
    return chosen()
