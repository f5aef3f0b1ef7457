"""A lab for each test that asks for one; see `lab` and `hostlab`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net import hostlab
from tests.net import lab as labs


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[labs.Lab]:
    lacking = labs.missing()
    if lacking:
        pytest.skip(lacking)
    made = labs.Lab(stateless=getattr(request, "param", False))  # see labs.either
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def host_lab(tmp_path: Path) -> Iterator[hostlab.HostLab]:
    """With bridges of ours and their rules."""
    lacking = labs.missing()
    if lacking:
        pytest.skip(lacking)
    made = hostlab.HostLab(tmp_path / "net")
    try:
        yield made
    finally:
        made.close()
