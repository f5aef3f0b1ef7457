"""One room for all tests that start containers through agentshim, and boxes that are cleared after each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.columns import RUNC, launcher
from conformance.room import room
from shim import kernel
from shim.dim import invocation
from tests.root.debian import Box, Debian, Maker


@pytest.fixture(scope="session")
def debian() -> Iterator[Debian]:
    """A room with agentshim in it. A launcher that was not built is an error, never a silent skip."""
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: containers cannot be started")
    if not os.access(RUNC, os.X_OK):
        pytest.skip(f"LOUD: no {RUNC}: no program was run under our policies")
    facts = kernel.process_facts(invocation.BOTTOM)
    if unlabelled := set(facts.security_modules) - set(facts.default_labels):
        pytest.skip(f"LOUD: {unlabelled} is active without a label for containers: our policies refuse to start any")
    assert launcher().exists(), f"{launcher()} is missing: run `make build`"
    with room("asr-") as here:
        yield Debian(here)
    assert not here.left, f"processes were left in the room and had to be killed: {here.left}"


@pytest.fixture
def box(debian: Debian) -> Iterator[Maker]:
    """box(policy, …): a container to be; deleted after the test."""
    made: list[Box] = []

    def make(policy: str, **how: Any) -> Box:
        made.append(Box(debian, policy, **how))
        return made[-1]

    yield make
    for one in made:
        one.close()
