"""The same scenario on the delegate and on agentshim: equal under `identity`, under `agent` but for a written list.

Belongs here: the comparison and the list. Next door: `scenarios`.
"""

from __future__ import annotations

from typing import Any

import pytest

from conformance.columns import COLUMNS, chosen, missing, path_of
from conformance.oci.cli import Runtime
from conformance.oci.conftest import COUNTER, Maker
from conformance.oci.scenarios import SCENARIOS, Transcript
from conformance.room import Room

pytestmark = pytest.mark.oci

# scenario -> the steps in which `agent` may differ from the delegate, and why.
LOWERED: dict[str, dict[str, str]] = {
    "life": {},
    "runs": {},
    "execs": {"evidence": "that is what agent is for"},
    "errors": {},
    "files": {
        "run": "the root is read-only: the shell says so on stderr",
        "root": "the root is read-only: /root/b is not written",
    },
    "hooks": {"run": "a bundle's hook runs as the host's root: refused", "hooks": "refused, so none ran"},
    "shows": {"evidence": "that is what agent is for", "config.json": "it says what was granted"},
}
# scenario -> the steps in which agentshim speaks for itself, in its own words, under every policy: the exit code is the
# delegate's.
OWN_WORDS = {
    "execs": {"no container": "there is no record to meet with"},
    "errors": {"create twice": "the id is claimed before the delegate is run"},
}
KNOWN: dict[tuple[str, str], dict[str, Any]] = {}


def transcript(scenario: str, program: str, room: Room, bundle: Maker) -> dict[str, Any]:
    """What `program` did in `scenario`."""
    runtime = Runtime(room, program, room.base / f"r{next(COUNTER)}")
    log = Transcript(runtime, bundle)
    try:
        SCENARIOS[scenario](log)
    finally:
        runtime.clear()
    return log.steps


def of_delegate(scenario: str, delegate: str, room: Room, bundle: Maker) -> dict[str, Any]:
    """The oracle's transcript, made once."""
    key = (scenario, delegate)
    if key not in KNOWN:
        KNOWN[key] = transcript(scenario, delegate, room, bundle)
    return KNOWN[key]


def different(one: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
    """The steps in which two transcripts differ."""
    steps = [*one, *(step for step in other if step not in one)]
    return {step: f"{one.get(step)!r}\n!= {other.get(step)!r}" for step in steps if one.get(step) != other.get(step)}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_delegate_agrees_with_itself(scenario: str, delegate: str, the_room: Room, bundle: Maker) -> None:
    """What two runs of the delegate do not share is no evidence against us."""
    again = transcript(scenario, delegate, the_room, bundle)
    assert not different(of_delegate(scenario, delegate, the_room, bundle), again)


@pytest.mark.parametrize("name", [column.name for column in chosen() if column.name in ("identity", "agent")])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_agentshim(scenario: str, name: str, delegate: str, the_room: Room, bundle: Maker) -> None:
    column = next(one for one in COLUMNS if one.name == name)
    assert not missing(column), missing(column)
    ours = transcript(scenario, path_of(column, the_room), the_room, bundle)
    found = different(of_delegate(scenario, delegate, the_room, bundle), ours)
    allowed = LOWERED[scenario] if column.ceiling else {}
    for step in OWN_WORDS.get(scenario, {}):
        assert ours[step]["code"] == of_delegate(scenario, delegate, the_room, bundle)[step]["code"]
        found.pop(step, None)
    unexpected = {step: text for step, text in found.items() if step not in allowed}
    assert not unexpected, "\n".join(f"{step}: {text}" for step, text in unexpected.items())
    if column.ceiling:
        assert set(allowed) <= set(found), f"no longer different: {set(allowed) - set(found)}; shorten the list"


def test_the_list_names_steps_that_exist(delegate: str, the_room: Room, bundle: Maker) -> None:
    for scenario, steps in [*LOWERED.items(), *OWN_WORDS.items()]:
        assert set(steps) <= set(of_delegate(scenario, delegate, the_room, bundle))
