"""A sample of `make faults`: no outcome is wrong, nothing is left; planted bugs of the kinds that it is for are seen.

Belongs here: every K-th system call of each call, a fault of each kind in turn. Next door: `__main__` puts every fault
into every one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from conformance.columns import launcher
from conformance.faults import judge
from conformance.faults.__main__ import tried
from conformance.faults.hooks import HOOKS
from conformance.faults.inject import FAULTS, KILL, Stage
from conformance.faults.networks import CALLS
from conformance.faults.outcomes import Outcomes
from conformance.faults.scenarios import SCENARIOS
from conformance.room import room

MISSING = [name for name in ("strace", "busybox", "nft") if not shutil.which(name)]
pytestmark = [
    pytest.mark.oci,
    pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED LOUDLY: faults are put into root's calls"),
    pytest.mark.skipif(not launcher().exists(), reason=f"SKIPPED LOUDLY: {launcher()} is missing: run `make build`"),
    pytest.mark.skipif(bool(MISSING), reason=f"SKIPPED LOUDLY: not installed: {' '.join(MISSING)}"),
]
EVERY = {"create": 17, "run": 61, "exec": 29, "exec-options": 61, "update": 31, "start": 31, "delete": 1}
HOOKS_EVERY = {"hook": 61, "exchanged": 31, "net": 7}
CALLS_EVERY = {"isolated": 15, "first": 46, "net-do": 9, "net-undo": 9, "net-undo-owner": 9, "net-undo-last": 9}


@pytest.fixture
def stage() -> Iterator[Stage]:
    with room("flt-") as here:
        yield Stage(here)
    assert not here.left, here.left


@pytest.fixture(scope="module")
def calls_stage() -> Iterator[Stage]:
    """One for all verbs: each call begins where the one before has left."""
    with room("flt-") as here:
        yield Stage(here)
    assert not here.left, here.left


def fine(found: Outcomes, least: int) -> None:
    """Nothing wrong, and enough was tried and reached to mean something."""
    assert not found.wrong, "\n".join(found.wrong)
    reached = sum(number for (_, word), number in found.counts.items() if word != judge.MISSED)
    assert reached >= least, found.counts


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_in_a_call(calls_stage: Stage, name: str) -> None:
    found = tried(calls_stage, SCENARIOS[name], FAULTS, EVERY[name], in_turn=True)
    fine(found, found.calls // EVERY[name] * 7 // 10)


@pytest.mark.parametrize("name", HOOKS)
def test_a_fault_in_a_hook(stage: Stage, name: str) -> None:
    found = HOOKS[name](stage, ("EIO", "EMFILE", KILL), HOOKS_EVERY[name])
    fine(found, 12)


@pytest.mark.parametrize("name", CALLS)
def test_a_fault_where_a_network_is_made(stage: Stage, name: str) -> None:
    found = CALLS[name](stage, ("EIO", "EMFILE", KILL), CALLS_EVERY[name])
    fine(found, 12)


def planted(stage: Stage, file: str, old: str, new: str) -> None:
    """Changes our copy of the tree."""
    path = stage.tree / file
    text = path.read_text()
    assert text.count(old) == 1, f"the mutant's text is gone: {old}"
    path.write_text(text.replace(old, new))
    stage.compile()


# What is changed, which calls are tampered with and how, and what must be seen.
PLANTED = {
    "written in place": (
        [("shim/bundle.py", "temporary = f", "temporary = name if name == 'config.json' else f")],
        ("create", r"^(write|fchmod)\(", KILL),
        "neither as it came nor the lowered one",
    ),
    "no answer is an answer": (
        [
            ("shim/kernel.py", 'raise unanswered("namespaces", path, error)', 'return "at:" + path  #'),
            ("shim/kernel.py", 'if identity == "at:" + asked and', "if False and"),
        ],
        ("create", r"stat.*/network\"", "EIO"),
        "the delegate got another config.json",
    ),
    "what is left is left": (
        [("shim/state.py", "    _tidy(directory, kept)\n", "    pass\n")],
        ("create", r"^(renameat|fchmod)\(", KILL),
        "left after the next call",
    ),
    "a lost record is none": (
        [("shim/state.py", "    except (Invalid, Refused):\n", "    except ShimError:\n")],
        ("update", r"^openat\(.*\.json\"", "EMFILE"),
        "the delegate got another stdin",
    ),
    "a failure without words": (
        [("shim/cli.py", "    except (OSError, ImportError) as error:", "    except ZeroDivisionError as error:")],
        ("exec", r"^read\(", "EACCES"),
        "podman takes these words",
    ),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_bug_is_seen(stage: Stage, what: str) -> None:
    changes, (name, calls, fault), seen = PLANTED[what]
    for change in changes:
        planted(stage, *change)
    found = tried(stage, SCENARIOS[name], [fault], 1, only=calls)
    assert [line for line in found.wrong if seen in line], "\n".join(found.wrong) or found.counts
