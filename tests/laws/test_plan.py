"""The whole way of a request: never wider than asked and ceiling, on the bytes; idempotent; monotone in the ceiling.

System calls are left out here (`admit` settles nothing and both sides are TOP): the meet of profiles has its own tests.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given

from shim import plan, product, wire
from shim.dim import capabilities, mounts, seccomp
from shim.errors import Bug, Refused
from tests.laws.strategies import FACTS, OTHERS, ceilings, specs


def whole(ceiling: dict[str, Any]) -> dict[str, Any]:
    return {**ceiling, "seccomp": seccomp.TOP}


def make(spec: Any, ceiling: dict[str, Any], **more: Any) -> plan.Plan:
    return plan.make(spec, whole(ceiling), FACTS, lambda asked, top, mask: None, **more)


def planned(spec: Any, ceiling: dict[str, Any]) -> plan.Plan:
    try:
        return make(spec, ceiling)
    except Refused:
        assume(False)
        raise


@given(spec=specs(), ceiling=ceilings())
def test_written_bytes_are_below_asked_and_ceiling(spec: Any, ceiling: Any) -> None:
    made = planned(spec, ceiling)
    written = product.from_spec(wire.loads(wire.dumps(made.spec), "test", "spec"), FACTS, OTHERS)  # type: ignore[arg-type]
    assert product.above(written, ceiling) == []
    assert product.above(written, product.from_spec(spec, FACTS, OTHERS)) == []


@given(spec=specs(), ceiling=ceilings())
def test_a_second_create_of_the_same_bundle_changes_nothing(spec: Any, ceiling: Any) -> None:
    once = planned(spec, ceiling)
    twice = make(once.spec, ceiling)
    assert twice.data is None
    assert twice.spec == once.spec


@given(spec=specs(), ceiling=ceilings(), other=ceilings())
def test_a_lower_ceiling_never_grants_more(spec: Any, ceiling: Any, other: Any) -> None:
    high = planned(spec, ceiling)
    try:
        low = make(spec, product.meet(ceiling, other, OTHERS))
    except Refused:
        return
    assert product.above({k: v for k, v in low.granted.items() if k != "seccomp"}, high.granted) == []


@given(spec=specs())
def test_top_changes_nothing(spec: Any) -> None:
    made = make(spec, {dim.NAME: dim.TOP for dim in OTHERS})
    assert made.spec is spec
    assert made.data is None


@given(spec=specs(), ceiling=ceilings())
def test_audit_changes_nothing(spec: Any, ceiling: Any) -> None:
    made = make(spec, ceiling, mode="audit")
    assert made.spec is spec
    assert made.data is None


@given(spec=specs(), ceiling=ceilings())
def test_strict_refuses_exactly_what_enforce_would_lower(spec: Any, ceiling: Any) -> None:
    made = planned(spec, ceiling)
    if made.losses():
        with pytest.raises(Refused):
            make(spec, ceiling, mode="strict")
    else:
        assert make(spec, ceiling, mode="strict").spec == spec


@given(spec=specs(), ceiling=ceilings())
def test_a_volume_is_never_dropped(spec: Any, ceiling: Any) -> None:
    made = planned(spec, ceiling)
    before = [mounts.destination_of(one) for one in spec["mounts"]]
    after = [mounts.destination_of(one) for one in made.spec["mounts"] if not FACTS.is_ours(one)]
    assert before == after


@given(spec=specs())
def test_our_hook_is_last_and_once(spec: Any) -> None:
    hook = FACTS.our_hook("/r", "x")
    ceiling = {dim.NAME: dim.TOP for dim in OTHERS}
    once = make(spec, ceiling, hooks=(hook,))
    twice = make(once.spec, ceiling, hooks=(hook,))
    assert twice.spec["hooks"]["createRuntime"][-1] == hook
    assert sum(one == hook for one in twice.spec["hooks"]["createRuntime"]) == 1


# Mutants of the writers: each forgets to write what it took. The check on the bytes must find every one.
GREEDY = {
    "process": {
        "args": ["x"],
        "capabilities": {"bounding": ["CAP_SYS_ADMIN"]},
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 9, "hard": 9}],
        "oomScoreAdj": -500,
        "apparmorProfile": "unconfined",
    },
    "root": {"path": "rootfs"},
    "mounts": [{"destination": "/s", "type": "bind", "source": "/srv/data", "options": ["rbind", "rshared"]}],
    "annotations": {"run.oci.handler": "krun"},
    "linux": {
        "resources": {"devices": [{"allow": True, "access": "rwm"}], "pids": {"limit": -1}},
        "sysctl": {"kernel.core_pattern": "|/x"},
        "personality": {"domain": "LINUX32"},
    },
}
MODEST = {
    "capabilities": {},
    "paths": {"rootfs": "readonly", "masked": ["/proc/keys"]},
    "mounts": {"volumes": "ro"},
    "namespaces": {"host": ["user", "time"]},
    "devices": {},
    "resources": {"pids": 5},
    "user": {"allow": "any"},
    "rlimits": {"core": 0},
    "scheduling": {},
    "process": {},
}
WRITERS = [dim for dim in OTHERS if dim.KEYS and dim.NAME not in ("user", "hooks", "lsm")]


@pytest.mark.parametrize("dim", WRITERS, ids=lambda dim: dim.NAME)
def test_a_writer_that_forgets_is_a_bug(dim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ceiling = {**product.from_policy(MODEST, OTHERS), "lsm": product.TOP["lsm"]}
    honest = make(GREEDY, ceiling)
    assert honest.granted[dim.NAME] != honest.asked[dim.NAME]
    monkeypatch.setattr(dim, "apply_to_spec", lambda spec, value, facts: dict(spec))
    with pytest.raises(Bug, match=dim.NAME):
        make(GREEDY, ceiling)


def test_the_check_reads_bytes_as_the_delegate_does() -> None:
    ceiling = whole({dim.NAME: dim.BOTTOM if dim is capabilities else dim.TOP for dim in OTHERS})
    spec = {"process": {"capabilities": {"bounding": ["CAP_SYS_ADMIN"]}}, "root": {"path": "rootfs"}}
    with pytest.raises(Bug, match="capabilities"):
        plan.check(wire.dumps(spec), product.TOP, ceiling, FACTS, product.DIMENSIONS)
