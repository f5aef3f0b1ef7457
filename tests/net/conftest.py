"""A lab for each test that asks for one; see `lab`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net import lab as labs


@pytest.fixture
def lab() -> Iterator[labs.Lab]:
    lacking = labs.missing()
    if lacking:
        pytest.skip(lacking)
    made = labs.Lab()
    try:
        yield made
    finally:
        made.close()
