"""update: only keys that are present are met, none is raised above the ceiling, and none that is absent appears."""

from __future__ import annotations

from typing import Any

from hypothesis import given

from shim.dim import resources
from shim.lattice import at
from tests.laws.strategies import FACTS, SECTIONS, resource_keys

POLICIES = SECTIONS["resources"].map(resources.from_policy)
ASKED = resource_keys.map(lambda asked: {k: v for k, v in asked.items() if k != "devices"})


def keys(value: Any, path: str = "") -> set[str]:
    if not isinstance(value, dict):
        return {path}
    return {key for name, inner in value.items() for key in keys(inner, f"{path}.{name}")} | {path}


@given(asked=ASKED, ceiling=POLICIES)
def test_nothing_above_the_ceiling(asked: Any, ceiling: Any) -> None:
    met = resources.met_update(asked, ceiling, FACTS)
    value = resources.from_spec({"linux": {"resources": met}}, FACTS)
    for (_, key, v2_file), after, top in zip(resources.LIMITS, value.limits, ceiling.limits, strict=True):
        if at(met, key) or v2_file in (met.get("unified") or {}):
            assert top is None or (after is not None and after <= top)
    assert value.claims == frozenset()


@given(asked=ASKED, ceiling=POLICIES)
def test_no_key_that_was_not_asked(asked: Any, ceiling: Any) -> None:
    added = keys(resources.met_update(asked, ceiling, FACTS)) - keys(asked)
    limits = {"." + key for _, key, _ in resources.LIMITS} | {
        "." + key.partition(".")[0] for _, key, _ in resources.LIMITS
    }
    files = {f".unified.{v2_file}" for _, _, v2_file in resources.LIMITS}
    # A v2 file that asks too much becomes the named limit, and a quota is written with its period.
    assert added <= (limits | {".cpu.period"} if keys(asked) & files or at(asked, "cpu") else set())


@given(asked=ASKED, ceiling=POLICIES)
def test_twice_is_once(asked: Any, ceiling: Any) -> None:
    once = resources.met_update(asked, ceiling, FACTS)
    assert resources.met_update(once, ceiling, FACTS) == once


@given(asked=ASKED)
def test_top_changes_nothing(asked: Any) -> None:
    assert resources.met_update(asked, resources.TOP, FACTS) == asked


def test_a_lower_limit_is_kept() -> None:
    ceiling = resources.from_policy({"pids": 100})
    assert resources.met_update({"pids": {"limit": 7}}, ceiling, FACTS) == {"pids": {"limit": 7}}


def test_an_absent_limit_stays_absent() -> None:
    """Writing the ceiling where nothing was asked would raise a container that has less."""
    ceiling = resources.from_policy({"pids": 100, "memory": 4096})
    assert resources.met_update({"cpu": {"shares": 5}}, ceiling, FACTS) == {"cpu": {"shares": 5}}
    assert resources.met_update({"memory": {"limit": 0}}, ceiling, FACTS) == {"memory": {"limit": 0}}


def test_unlimited_becomes_the_ceiling() -> None:
    ceiling = resources.from_policy({"pids": 100})
    assert resources.met_update({"pids": {"limit": -1}}, ceiling, FACTS) == {"pids": {"limit": 100}}


def test_a_v2_file_does_not_override() -> None:
    ceiling = resources.from_policy({"pids": 100})
    met = resources.met_update({"unified": {"pids.max": "max", "memory.low": "5"}}, ceiling, FACTS)
    assert met == {"pids": {"limit": 100}}
