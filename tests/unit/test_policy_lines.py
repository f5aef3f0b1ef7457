"""shim.cold.policy.toml_lines: the same keys as tomllib finds, on the right lines."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shim.cold.policy.toml_lines import Path, line_of, lines

KEYS = st.text("ab-_1", min_size=1, max_size=3) | st.text("a.\"' #=[]{}é", max_size=4)
STRINGS = st.text("ab\"'#[]{},=\\\n\t é", max_size=8)


def _paths(value: Any, path: Path = ()) -> set[Path]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path}.union(*(_paths(one, (*path, key)) for key, one in items))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "a").replace("_", "a").isalnum()
    return key if bare else _quoted(key)


@st.composite
def values(draw: st.DrawFn, depth: int = 2) -> str:
    kinds = ["number", "string", "literal", "long", "long-literal", "date"] + (["array", "inline"] if depth else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "number":
        return draw(st.sampled_from(["1", "-1.5e3", "true", "0xff", "inf"]))
    if kind == "date":
        return draw(st.sampled_from(["2027-01-01", "2027-01-01 12:00:00Z", "12:00:00"]))
    if kind == "string":
        return _quoted(draw(STRINGS))
    if kind == "literal":
        return "'" + draw(STRINGS).replace("'", "").replace("\n", "") + "'"
    if kind == "long":
        return '"""' + draw(STRINGS).replace("\\", "\\\\").replace('"', '\\"') + '\n[x]\n"""'
    if kind == "long-literal":
        return "'''" + draw(STRINGS).replace("'", "") + "\n#x'''"
    parts = draw(st.lists(values(depth - 1), max_size=3))
    if kind == "array":
        gap = draw(st.sampled_from(["", "\n", " # ] comment\n "]))
        return "[" + gap + ("," + gap).join(parts) + (gap if parts else "") + "]"
    return "{" + ", ".join(f"k{i} = {part}" for i, part in enumerate(parts)) + "}"


@st.composite
def documents(draw: st.DrawFn) -> str:
    out: list[str] = []
    for head in ["", *draw(st.lists(st.sampled_from(["[t%d]", "[[arr]]", "[ u%d . v ]", '["q %d"]']), max_size=4))]:
        out.append((head % len(out) if "%d" in head else head) + draw(st.sampled_from(["", " # c"])))
        for key in draw(st.lists(KEYS, max_size=3, unique=True)):
            out.append(f"{_key(key)} = {draw(values())}{draw(st.sampled_from(['', '  # = [']))}")
    return "\n".join(out) + "\n"


@given(documents())
def test_finds_exactly_the_keys_that_tomllib_finds(text: str) -> None:
    assert set(lines(text)) == _paths(tomllib.loads(text))


def test_lines_are_those_a_reader_counts() -> None:
    text = '# one\na = 1\n\n[t]\nb = [ # five\n  "x",\n  { c = 2 },\n]\n"d e".f = """\n\n"""\n[[arr]]\n[[arr]]\ng = 1\n'
    found = lines(text)
    expected: dict[Path, int] = {
        ("a",): 2,
        ("t",): 4,
        ("t", "b"): 5,
        ("t", "b", 0): 6,
        ("t", "b", 1, "c"): 7,
        ("t", "d e", "f"): 9,
        ("arr", 0): 12,
        ("arr", 1): 13,
        ("arr", 1, "g"): 14,
    }
    assert {path: found[path] for path in expected} == expected


def test_carriage_returns_do_not_count_twice() -> None:
    assert lines("a = 1\r\nb = 2\r\n")[("b",)] == 2


def test_a_missing_key_has_its_parents_line() -> None:
    found = lines("a = 1\n[t]\nb = 2\n")
    assert line_of(found, ("t", "nothing", 0)) == 2
    assert line_of(found, ("nothing",)) == 1
