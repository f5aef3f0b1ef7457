"""The input edge under random input: wire against the json package, spec against its own table, argv against itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shim import argv, spec, wire
from shim.errors import Invalid
from tests.fuzz.on_wire import strict

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
INTEGERS = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
# What the json package, runc and crun disagree about, and the pieces that make it likely.
PIECES = st.sampled_from(
    [
        *("{", "}", "[", "]", ",", ":", '"', "\\", '"a"', '"a":1', '"b":', '"x"', "0", "1.5", "-1", ".", "e", "+", "-"),
        *(
            r'"\u0061"',
            r'"\ud800"',
            r'"\ud83d\ude00"',
            r'"\u0000"',
            r'"\\u0000"',
            r'"\x"',
            "null",
            "true",
            "false",
            "nul",
        ),
        *("-0", "01", "1e3", "1E400", "NaN", "Infinity", "-Infinity", "/**/", "//", "9" * 30),
        *("18446744073709551615", "18446744073709551616", "-9223372036854775809"),
    ]
) | st.sampled_from([" ", "\t", "\n", "\f", "\x00", "\ufeff", "é", "\u2028", "{}", "[[", "]]", '{"":', "}"])


def same(data: bytes) -> None:
    try:
        wanted = strict(data)
    except (ValueError, RecursionError):
        with pytest.raises(Invalid):
            wire.loads(data, "r", "n")
    else:
        got = wire.loads(data, "r", "n")
        assert json.dumps(got) == json.dumps(wanted)


@given(VALUES)
def test_wire_round_trip(value: Any) -> None:
    data = wire.dumps(value)
    assert data.isascii()
    got = wire.loads(data, "r", "n")
    assert got == value
    assert json.dumps(got) == json.dumps(value), "types and order too"
    assert wire.dumps(got) == data


@given(VALUES, st.integers(0, 3), st.booleans())
def test_wire_reads_other_writers(value: Any, indent: int, ascii_only: bool) -> None:
    assert wire.loads(json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode(), "r", "n") == value


@given(st.lists(PIECES, max_size=12).map("".join).map(str.encode))
@example(b'{"a":1,"\\u0061":2}')
@example(b"[" * 200 + b"]" * 200)
def test_wire_is_the_reference_on_pieces(data: bytes) -> None:
    same(data)


@given(st.binary(max_size=40))
def test_wire_is_the_reference_on_bytes(data: bytes) -> None:
    same(data)


@given(VALUES, st.data())
def test_wire_is_the_reference_on_damage(value: Any, data: st.DataObject) -> None:
    whole = wire.dumps(value)
    at = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(at, min(len(whole), at + 3)))
    same(whole[:at] + data.draw(PIECES | st.just("")).encode() + whole[end:])


@given(st.integers(100, 140), st.integers(100, 140), st.booleans())
def test_wire_depth_is_exact(arrays: int, objects: int, outside: bool) -> None:
    for count in (arrays, objects):
        one, two = count // 2, count - count // 2
        inner = b"[" * one + b'{"a":' * two if outside else b'{"a":' * two + b"[" * one
        close = b"}" * two + b"]" * one if outside else b"]" * one + b"}" * two
        same(b'["x","]",' + inner + b'"[[[["' + close + b"]")


def values_of(shape: spec.Shape) -> st.SearchStrategy[Any]:
    """Well-formed values of a shape."""
    if isinstance(shape, spec.Object):
        required = {key: values_of(shape.fields[key]) for key in shape.required}
        optional = {
            key: values_of(inner)
            for key, inner in shape.fields.items()
            if key not in required and not isinstance(inner, spec.Platform)
        }
        return st.fixed_dictionaries(required, optional=optional)
    if isinstance(shape, spec.List):
        return st.lists(st.deferred(lambda: values_of(shape.inner)), max_size=2)
    if isinstance(shape, spec.Map):
        return st.dictionaries(TEXT, values_of(shape.inner), max_size=2)
    if isinstance(shape, tuple):
        return st.integers(*shape)
    assert not isinstance(shape, spec.Platform)
    return st.booleans() if shape is bool else TEXT


PROCESSES = values_of(spec.PROCESS).map(lambda process: {**process, "args": ["sh"]})
SPECS = values_of(spec.SPEC).map(
    lambda whole: {**whole, "ociVersion": "1.0.2", "process": {**whole["process"], "args": ["sh"]}}
)


def places(value: Any, shape: spec.Shape, path: str = "") -> list[tuple[str, Any, spec.Shape, Any]]:
    """(path, the container, its shape, the key or index) of every member of a well-formed value."""
    out: list[tuple[str, Any, spec.Shape, Any]] = []
    if isinstance(shape, spec.Object):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else key
            out += [(here, value, shape, key), *places(inner, shape.fields[key], here)]
    elif isinstance(shape, spec.Map):
        for key, inner in value.items():
            out += [(f"{path}.{key}", value, shape, key), *places(inner, shape.inner, f"{path}.{key}")]
    elif isinstance(shape, spec.List):
        for at, inner in enumerate(value):
            out += [(f"{path}[{at}]", value, shape, at), *places(inner, shape.inner, f"{path}[{at}]")]
    return out


@given(SPECS)
def test_spec_accepts_what_is_well_formed(whole: dict[str, Any]) -> None:
    new, dropped = spec.check(whole)
    assert new is whole
    assert dropped == []
    assert wire.loads(wire.dumps(new), "r", "n") == whole


@given(SPECS, st.data())
def test_spec_names_a_wrong_type(whole: dict[str, Any], data: st.DataObject) -> None:
    path, container, _, key = data.draw(st.sampled_from(places(whole, spec.SPEC)))
    old = container[key]
    wrong = st.sampled_from([1.5, [[]], {"": {"": {}}}, "x", True, 7, -(2**63) - 1]).filter(
        lambda new: type(new) is not type(old) or (type(new) is int and new < -(2**63))
    )
    container[key] = data.draw(wrong)
    with pytest.raises(Invalid) as caught:
        spec.check(whole, data.draw(st.sampled_from(["refuse", "drop"])))
    assert caught.value.key == path or caught.value.key.startswith((path + ".", path + "["))


@given(SPECS, st.data())
def test_spec_refuses_another_case_and_drops_what_it_does_not_know(whole: dict[str, Any], data: st.DataObject) -> None:
    objects = [(c, s) for _, c, s, _ in places(whole, spec.SPEC) if isinstance(s, spec.Object)]
    container, shape = data.draw(st.sampled_from(objects))
    assert isinstance(shape, spec.Object)
    known = data.draw(st.sampled_from(sorted(shape.fields)))
    before = wire.dumps(whole)
    folded = "".join(data.draw(st.sampled_from([c, c.upper(), {"s": "ſ", "k": "\u212a"}.get(c, c)])) for c in known)
    if folded not in shape.fields:
        container[folded] = data.draw(VALUES)
        with pytest.raises(Invalid, match="case"):
            spec.check(whole, "drop")
        del container[folded]
    container["x" + folded] = data.draw(VALUES)
    with pytest.raises(Invalid, match="an unknown key"):
        spec.check(whole)
    new, dropped = spec.check(whole, "drop")
    assert len(dropped) == 1
    assert wire.dumps(new) == before


@given(SPECS, st.data())
def test_spec_null_is_absent_in_objects_alone(whole: dict[str, Any], data: st.DataObject) -> None:
    path, container, shape, key = data.draw(st.sampled_from(places(whole, spec.SPEC)))
    container[key] = None
    if isinstance(shape, spec.Object) and key not in shape.required and path != "process.args":
        new, dropped = spec.check(whole)
        del container[key]
        assert (new, dropped) == (whole, [])
    else:
        with pytest.raises(Invalid):
            spec.check(whole)


@given(VALUES)
def test_spec_raises_nothing_but_invalid(value: Any) -> None:
    for check in (spec.check, spec.check_process, spec.check_resources):
        for unknown in ("refuse", "drop"):
            try:
                new, _ = check(value, unknown)
            except Invalid:
                continue
            assert check(new) == (new, [])


@given(PROCESSES, values_of(spec.RESOURCES))
def test_process_and_resources(process: dict[str, Any], resources: dict[str, Any]) -> None:
    assert spec.check_process(process) == (process, [])
    assert spec.check_resources(resources) == (resources, [])


LETTERS = {name: letter for letter, names in argv.SHORT.items() for name in names}
WORDS = st.sampled_from(["x", "/b", "-", "--", "-d", "--bundle", "", "a=b", "9", "--help", "é"])


@st.composite
def calls(draw: st.DrawFn) -> tuple[list[str], argv.Call]:
    """Words in any spelling, and the Call that they should give."""
    verb = draw(st.sampled_from(sorted(argv.VERBS)))
    names, least, most = argv.VERBS[verb]
    globals_, words = draw(options(("root", "log", "log-format", "debug", "systemd-cgroup", "criu", "rootless"), True))
    given_, inner = draw(options(tuple(names.split()), False))
    args = ["ID"] * least if most is not None else ["ID", *draw(st.lists(WORDS, max_size=3))]
    return [*words, verb, *inner, *draw(st.sampled_from([[], ["--"]])), *args], argv.Call(globals_, verb, given_, args)


@st.composite
def options(draw: st.DrawFn, names: tuple[str, ...], top: bool) -> tuple[dict[str, argv.Option], list[str]]:
    given_: dict[str, argv.Option] = {}
    words: list[str] = []
    for name in draw(st.lists(st.sampled_from(names), unique=True)) if names else []:
        short = draw(st.sampled_from([name, LETTERS.get(name, name)]))
        dash = draw(st.sampled_from(["-", "--"]))
        if name in argv.FLAGS and not (top and name == "rootless"):
            value, text = draw(st.sampled_from([(True, ""), (True, "=true"), (False, "=0"), (False, "=false")]))
            given_[name] = value
            words.append(dash + short + text)
            continue
        if name in argv.INTEGERS:
            given_[name] = draw(st.integers(argv.INTEGERS[name], 10**9 - 1))
        elif name == "log-format":
            given_[name] = draw(st.sampled_from(["text", "json"]))
        else:
            one = draw(WORDS.filter(bool))
            given_[name] = [one] if name in argv.LISTS else one
        shown = given_[name]
        text = str(shown[0] if isinstance(shown, list) else shown)
        words += draw(st.sampled_from([[f"{dash}{short}={text}"], [dash + short, text]]))
    return given_, words


def equal(one: argv.Call, other: argv.Call) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in argv.Call.__slots__)


@given(calls())
def test_argv_reads_every_spelling_alike(words_and_call: tuple[list[str], argv.Call]) -> None:
    words, wanted = words_and_call
    assert equal(argv.parse(words), wanted), words


@given(calls(), st.sampled_from(["runc", "crun"]))
def test_argv_canonical_is_read_back(words_and_call: tuple[list[str], argv.Call], kind: str) -> None:
    call = words_and_call[1]
    again = argv.parse(argv.canonical(call, kind))
    for one in (call, again):  # what is off and says nothing is left out
        one.globals = {k: v for k, v in one.globals.items() if v is not False and (k != "criu" or kind == "runc")}
        one.options = {k: v for k, v in one.options.items() if v is not False or k in ("tty", "no-new-privs")}
    if kind == "crun":
        call.options = {k: v for k, v in call.options.items() if v is not False or k != "no-new-privs"}
    assert equal(again, call)


TOKENS = st.sampled_from(
    [
        *(*argv.VERBS, *argv.OURS, *argv.HELP, "ID", "--", "-", ""),
        *("--root", "/r", "-root=/r", "--log", "--help", "-h", "-v", "--roo", "---x", "-=", "-td", "\udcff"),
        *("--bundle", "-b", "-b=/b", "--detach", "-d=false", "--detach=x", "--preserve-fds", "3", "08", "--cap", "-t"),
        *("-e", "--lsm-mount-context"),
    ]
)


@given(st.lists(TOKENS, max_size=8))
def test_argv_raises_nothing_but_invalid(words: list[str]) -> None:
    try:
        call = argv.parse(words)
    except Invalid:
        return
    if call.verb not in argv.OURS or call.verb == "version":
        words = argv.canonical(call, "runc")
        again = argv.parse(words)
        assert argv.canonical(again, "runc") == words
        if call.args:
            assert again.args == call.args or call.verb in ("help", "version")


@given(st.text(max_size=6) | st.text("aZ09_+,-./", max_size=6))
def test_ids(id_: str) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    allowed = set(letters + letters.upper() + "0123456789_+,-.")
    good = id_ not in ("", ".", "..") and set(id_) <= allowed and not id_.startswith("-")
    try:
        argv.check_id(id_)
    except Invalid:
        assert not good
    else:
        assert good
