"""The laws of the lattice, one test each, run over every dimension with random values.

Laws that a dimension does not hold are in NOT_HELD with a counter-example; nothing else is exempt. seccomp's own tests
are beside these.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim import coherence, product
from tests.laws.strategies import FACTS, OTHERS, ceilings, specs, values

NOT_HELD = {
    # A denial that cuts a wildcard in part takes the whole wildcard: {c 10:*} ∧ all but {c 10:229} loses c 10:230 too.
    ("devices", "greatest"),
}

each_dimension = pytest.mark.parametrize("dim", OTHERS, ids=lambda dim: dim.NAME)


def held(dim: Any, law: str) -> bool:
    return (dim.NAME, law) not in NOT_HELD


@each_dimension
@given(data=st.data())
def test_order_is_reflexive(dim: Any, data: st.DataObject) -> None:
    a = data.draw(values(dim))
    assert dim.leq(a, a)


@each_dimension
@given(data=st.data())
def test_order_is_antisymmetric(dim: Any, data: st.DataObject) -> None:
    a, b = data.draw(values(dim)), data.draw(values(dim))
    if dim.leq(a, b) and dim.leq(b, a):
        assert dim.meet(a, b) == dim.meet(b, a)


@each_dimension
@given(data=st.data())
def test_order_is_transitive(dim: Any, data: st.DataObject) -> None:
    a, b, c = (data.draw(values(dim)) for _ in range(3))
    ab, abc = dim.meet(a, b), dim.meet(dim.meet(a, b), c)
    assert dim.leq(abc, ab)
    if dim.leq(ab, c):
        assert dim.leq(abc, c)


@each_dimension
@given(data=st.data())
def test_meet_is_commutative(dim: Any, data: st.DataObject) -> None:
    a, b = data.draw(values(dim)), data.draw(values(dim))
    assert dim.meet(a, b) == dim.meet(b, a)


@each_dimension
@given(data=st.data())
def test_meet_is_associative(dim: Any, data: st.DataObject) -> None:
    a, b, c = (data.draw(values(dim)) for _ in range(3))
    assert dim.meet(dim.meet(a, b), c) == dim.meet(a, dim.meet(b, c))


@each_dimension
@given(data=st.data())
def test_meet_is_idempotent(dim: Any, data: st.DataObject) -> None:
    a = data.draw(values(dim))
    assert dim.meet(a, a) == a


@each_dimension
@given(data=st.data())
def test_meet_is_a_lower_bound(dim: Any, data: st.DataObject) -> None:
    a, b = data.draw(values(dim)), data.draw(values(dim))
    met = dim.meet(a, b)
    assert dim.leq(met, a)
    assert dim.leq(met, b)


@each_dimension
@given(data=st.data())
def test_meet_is_the_greatest_lower_bound(dim: Any, data: st.DataObject) -> None:
    a, b, c = (data.draw(values(dim)) for _ in range(3))
    low = dim.meet(c, dim.meet(a, b)) if data.draw(st.booleans()) else c
    if dim.leq(low, a) and dim.leq(low, b) and held(dim, "greatest"):
        assert dim.leq(low, dim.meet(a, b))


@each_dimension
@given(data=st.data())
def test_leq_is_pinned_to_meet(dim: Any, data: st.DataObject) -> None:
    a, b = data.draw(values(dim)), data.draw(values(dim))
    assert dim.leq(a, b) == (dim.meet(a, b) == a)


@each_dimension
@given(data=st.data())
def test_top_is_identity(dim: Any, data: st.DataObject) -> None:
    a = data.draw(values(dim))
    assert dim.leq(a, dim.TOP)
    assert dim.meet(a, dim.TOP) == a


@each_dimension
@given(data=st.data())
def test_bottom_absorbs(dim: Any, data: st.DataObject) -> None:
    a = data.draw(values(dim))
    assert dim.leq(dim.BOTTOM, a)
    assert dim.meet(a, dim.BOTTOM) == dim.BOTTOM


@each_dimension
@given(spec=specs(), data=st.data())
def test_written_value_reads_back(dim: Any, spec: Any, data: st.DataObject) -> None:
    """from_spec ∘ apply is the value that was written, where nothing had to be refused."""
    asked = dim.from_spec(spec, FACTS)
    granted = dim.meet(asked, data.draw(values(dim)))
    if not dim.refusals(asked, granted):
        written = dim.from_spec(dim.apply_to_spec(spec, granted, FACTS), FACTS)
        assert dim.leq(written, granted)


@each_dimension
@given(spec=specs())
def test_applying_what_was_asked_changes_nothing(dim: Any, spec: Any) -> None:
    assert dim.apply_to_spec(spec, dim.from_spec(spec, FACTS), FACTS) is spec


@each_dimension
@given(spec=specs(), data=st.data())
def test_apply_touches_only_its_keys(dim: Any, spec: Any, data: st.DataObject) -> None:
    granted = dim.meet(dim.from_spec(spec, FACTS), data.draw(values(dim)))
    after = dim.apply_to_spec(spec, granted, FACTS)
    # Scratch directories are entries of `mounts` that the paths dimension owns.
    keys = dim.KEYS + (("mounts",) if dim.NAME == "paths" else ())
    assert _without(spec, keys) == _without(after, keys)


@each_dimension
@given(spec=specs(), data=st.data())
def test_explain_names_strict_decreases_and_nothing_else(dim: Any, spec: Any, data: st.DataObject) -> None:
    asked, ceiling = dim.from_spec(spec, FACTS), data.draw(values(dim))
    granted = dim.meet(asked, ceiling)
    assert bool(dim.explain(asked, ceiling, granted)) == (asked != granted)
    assert dim.explain(asked, ceiling, asked) == []


@given(asked=specs(), ceiling=ceilings())
def test_coherence_only_lowers_and_is_idempotent(asked: Any, ceiling: Any) -> None:
    met = product.meet(product.from_spec(asked, FACTS, OTHERS), ceiling, OTHERS)
    once = coherence.lower(met, ceiling, product.TOP)
    assert product.leq(once, met)
    assert coherence.lower(once, ceiling, product.TOP) == once


def _without(spec: Any, keys: tuple[str, ...]) -> Any:
    """`spec` without the dotted keys, and without objects that are then empty: an absent one asks the same."""

    def prune(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            return value
        kept = {k: prune(v, f"{path}{k}.") for k, v in value.items() if path + k not in keys}
        return {k: v for k, v in kept.items() if v != {}}

    return prune(spec, "")
