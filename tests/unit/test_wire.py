"""wire: what is JSON to us, and where it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shim import wire
from shim.errors import Bug, Invalid

REPO = Path(__file__).parents[2]


def loads(data: bytes) -> object:
    return wire.loads(data, "bundle", "config.json")


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b" \t\r\n{} \n", {}),
        (
            b'{"a":[1,-1,0,1.5,1e3,-0.0,true,false,null,"x"]}',
            {"a": [1, -1, 0, 1.5, 1000.0, -0.0, True, False, None, "x"]},
        ),
        (b"18446744073709551615", 2**64 - 1),
        (b"-9223372036854775808", -(2**63)),
        (rb'"\ud83d\ude00\/\u0041"', "😀/A"),
        (rb'"\\u0000 \\ud800"', r"\u0000 \ud800"),
        ("[\u2028\u20ac]".encode().replace("\u2028\u20ac".encode(), b'"\xe2\x82\xac"'), ["€"]),
        (b"[" * 128 + b"]" * 128, None),
    ],
)
def test_accepted(data: bytes, value: object) -> None:
    got = loads(data)
    assert value is None or got == value
    assert value is None or json.dumps(got) == json.dumps(value), "the same types as well"


REFUSED = {
    "empty": (b"", "no value at byte 0"),
    "only space": (b"  \n", "no value at byte 3"),
    "truncated object": (b'{"a":1', "at byte 6"),
    "truncated string": (b'{"a":"x', "at byte 5"),
    "no value": (b'{"a":}', "at byte 5"),
    "trailing data": (b'{"a":1} x', "more data at byte 8"),
    "a second value": (b"{}{}", "more data at byte 2"),
    "trailing comma": (b"[1,]", "at byte "),
    "comment": (b"/* c */{}", "at byte 0"),
    "comment after": (b"{}// c", "more data at byte 2"),
    "form feed": (b"\f{}", "no value at byte 0"),
    "byte order mark": (b"\xef\xbb\xbf{}", "at byte 0"),
    "UTF-16": ("{}".encode("utf-16"), "not UTF-8 at byte 0"),
    "not UTF-8": (b'{"a":"\xff"}', "not UTF-8 at byte 6"),
    "a surrogate in UTF-8": (b'"\xed\xa0\x80"', "not UTF-8 at byte 1"),
    "overlong": (b'"\xc0\x80"', "not UTF-8 at byte 1"),
    "repeated key": (b'{"a":1,"b":{"a":1},"a":2}', "the key 'a' a second time at byte 19"),
    "repeated key, escaped": (rb'{"a":1,"\u0061":2}', "the key 'a' a second time at byte 7"),
    "repeated key, spaced": (b'{"a":1,"a"' + b" " * 200 + b":2}", "the key 'a' a second time at byte 7"),
    "repeated key after a wide one": ('{"é":{},"é":1}'.encode(), "a second time at byte 9"),
    "NaN": (b'{"a":NaN}', "the number NaN in a at byte 5"),
    "Infinity": (b"[Infinity]", "the number Infinity in [0] at byte 1"),
    "-Infinity": (b"[-Infinity]", "the number -Infinity in [0] at byte 1"),
    "minus nought": (b"[1,-0]", "the number -0 in [1] at byte 3"),
    "beyond uint64": (b"[18446744073709551616]", "at byte 1"),
    "below int64": (b"[-9223372036854775809]", "at byte 1"),
    "a very long integer": (b"[" + b"9" * 10000 + b"]", "at byte 1"),
    "beyond binary64": (b"[1e400]", "the number 1e400 in [0] at byte 1"),
    "leading nought": (b"[01]", "at byte 2"),
    "hexadecimal": (b"[0x1]", "at byte 2"),
    "plus": (b"[+1]", "at byte 1"),
    "bare point": (b"[1.]", "at byte 2"),
    "half a pair": (rb'["\ud800"]', "half a surrogate pair in a string at byte 1"),
    "half a pair, upper case": (rb'["\uDC00x"]', "half a surrogate pair in a string at byte 1"),
    "half a pair in a key": (rb'{"\udfff":1}', "half a surrogate pair in a string at byte 1"),
    "U+0000": (rb'{"a":"x\u0000y"}', "U+0000 in a string at byte 5"),
    "U+0000 in a key": (rb'{"uid\u0000":1}', "U+0000 in a string at byte 1"),
    "a raw U+0000": (b'"\0"', "at byte 1"),
    "a control character": (b'"a\tb"', "at byte 2"),
    "an unknown escape": (rb'"\x41"', "at byte 1"),
    "single quotes": (b"{'a':1}", "at byte 1"),
    "129 arrays": (b"[" * 129 + b"]" * 129, "more than 128 nested values at byte 128"),
    "129 objects": (b'{"a":' * 129 + b"1" + b"}" * 129, "more than 128 nested values at byte 640"),
    "very deep": (b"[" * 1000000, "more than 128 nested values at byte 128"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_its_place(name: str) -> None:
    data, part = REFUSED[name]
    with pytest.raises(Invalid) as caught:
        loads(data)
    message = str(caught.value)
    assert message.startswith("bundle: config.json: asked ")
    assert part in message
    assert "\n" not in message


def test_the_greatest_size() -> None:
    assert loads(b" " * (wire.SIZE_LIMIT - 2) + b"{}") == {}
    with pytest.raises(Invalid, match="16777217 bytes"):
        loads(b" " * (wire.SIZE_LIMIT - 1) + b"{}")


def test_dumps_is_compact_ascii_in_the_given_order() -> None:
    assert wire.dumps({"b": [1, 1.5, None, True], "a": 'é"\n'}) == rb'{"b":[1,1.5,null,true],"a":"\u00e9\"\n"}'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x", object()])
def test_dumps_of_no_json_is_our_bug(value: object) -> None:
    with pytest.raises(Bug):
        wire.dumps([value])


def test_a_cycle_is_our_bug() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    with pytest.raises(Bug):
        wire.dumps(cycle)


def alone(code: str, *words: str) -> str:
    """What `code` prints in an interpreter started as in production, where nobody has imported json."""
    head = "import sys; sys.path.insert(0, sys.argv[1])\nfrom shim import argv, spec, wire\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", head + code, str(REPO), *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_edge_imports_no_slow_module() -> None:
    code = (
        "wire.dumps(wire.loads(b'{\"a\":[1.5]}', 'r', 'n'))\n"
        "print(*sorted(m for m in sys.modules if m in ('json', 're', 'enum', 'typing', 'collections', 'functools')))"
    )
    assert alone(code) == ""


def test_errors_are_the_same_where_nobody_has_imported_json() -> None:
    """CPython 3.11's scanner raises a SystemError there; and each refusal is the first one of its process."""
    code = (
        "from shim.errors import Invalid\n"
        "for data in map(bytes.fromhex, sys.argv[2:]):\n"
        "    for name in [name for name in sys.modules if name.startswith('json')]:\n"
        "        del sys.modules[name]\n"
        "    try:\n"
        "        wire.loads(data, 'bundle', 'config.json')\n"
        "    except Invalid as error:\n"
        "        print(error)\n"
    )
    small = [data for data, _ in REFUSED.values() if len(data) < 1000]
    wanted = []
    for data in small:
        with pytest.raises(Invalid) as caught:
            loads(data)
        wanted.append(str(caught.value))
    assert alone(code, *(data.hex() for data in small)).splitlines() == wanted
