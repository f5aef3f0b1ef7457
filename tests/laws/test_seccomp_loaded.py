"""The law of the meet on filters that runc and crun really loaded: read out of the kernel, compared with both sides.

tests/root asks what a program in the container feels; here it is the program of the filter, for pairs of all kinds.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.cold.seccomp import loaded_filter, prove
from tests.laws.test_seccomp_proof import EVERY
from tests.root import seccomp_bundle
from tests.root.test_seccomp_kernel import life, sleeping

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: containers cannot be started"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="LOUD: the tables of this test are those of x86-64"),
    pytest.mark.skipif(not shutil.which("busybox"), reason="LOUD: no static busybox to run in the container"),
]
PAIRS = (
    ("moby", "agent"),
    ("moby", "common"),
    ("common", "dev"),
    ("common", "no unix"),
    ("no packet", "no netlink"),
    ("no clone", "locked"),
)


@pytest.fixture(params=seccomp_bundle.DELEGATES)
def delegate(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if not shutil.which(request.param):
        pytest.skip(f"LOUD: no {request.param} on this host")
    yield request.param
    state = ["--root", str(tmp_path / f"state-{request.param}")]
    force = [request.param, *state, "delete", "--force", seccomp_bundle.name(tmp_path)]
    subprocess.run(force, check=False, capture_output=True)


@pytest.mark.parametrize(("one", "two"), [pair for some in PAIRS for pair in (some, some[::-1])])
def test_the_loaded_filter_is_below_both(one: str, two: str, delegate: str, tmp_path: Path) -> None:
    asked, ceiling = EVERY[one](), EVERY[two]()
    granted, record = prove.granted(asked, ceiling)
    pid = sleeping(delegate, tmp_path, granted)
    life(delegate, tmp_path, "start")
    (program,) = _loaded(pid)
    assert len(program) // 8 <= record["instructions"] + 96
    assert loaded_filter.verify(loaded_filter.filters(pid), asked, ceiling) > 1000


def _loaded(pid: int) -> list[bytes]:
    """The filters of a process that is about to have one: crun loads it on its way to the program."""
    for _ in range(100):
        if found := loaded_filter.filters(pid):
            return found
        time.sleep(0.05)
    return []
