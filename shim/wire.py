"""Bytes <-> JSON, strictly: what one delegate would read otherwise than another is refused here.

Measured with runc 1.1.5 and crun 1.8.1: of a repeated key runc takes the last value and crun the first; runc reads the
first JSON value of a file and ignores the rest; crun skips comments and form feeds; both replace a lone surrogate, and
runc every byte that is not UTF-8; crun ends keys and strings at U+0000. None of that passes.

Belongs here: the syntax. Next door: `spec` knows what the keys mean. Uses the C scanner and encoder of the json package
without the package, whose import costs 7 ms and happens only to describe a syntax error.
"""

from __future__ import annotations

import _json

from shim.errors import Bug, Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

SIZE_LIMIT = 16 << 20  # bytes; the largest specs of engines are below 100 KiB
DEPTH_LIMIT = 128  # nested arrays and objects; the OCI schema has 7
INT_LEAST, INT_GREATEST = -(1 << 63), (1 << 64) - 1  # all that an int64 or a uint64 holds
INT_DIGITS = 20  # characters of INT_LEAST and INT_GREATEST, sign included; int() of more could be slow
WHITESPACE = " \t\n\r"


class _Fault(Exception):
    """Something the scanner's hooks refuse; `_faults` says what and where."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise _Fault
    return out


def _integer(text: str) -> int:
    if len(text) > INT_DIGITS or text == "-0":  # "-0": runc refuses it in unsigned fields, crun takes it
        raise _Fault
    value = int(text)
    if not INT_LEAST <= value <= INT_GREATEST:
        raise _Fault
    return value


def _float(text: str) -> float:
    value = float(text)
    if value - value != 0.0:  # infinite: an exponent beyond binary64
        raise _Fault
    return value


def _constant(text: str) -> float:
    raise _Fault  # NaN, Infinity, -Infinity: no JSON


class _Context:
    """What the C scanner reads its options from. Used as a class, so that its functions stay unbound."""

    strict = True  # control characters in strings are errors
    object_hook = None
    object_pairs_hook = _object
    array_hook = None  # asked for by newer CPython
    parse_int = _integer
    parse_float = _float
    parse_constant = _constant


_scan: Callable[[str, int], tuple[Any, int]] = _json.make_scanner(_Context)  # type: ignore[arg-type]  # any object with these attributes


def loads(data: bytes, room: str, name: str, ours: bool = False) -> object:
    """The JSON value in `data`: one value, in UTF-8. Invalid, with the byte offset, on anything else.

    `room` and `name` (of a file, mostly) open the message. Integers are int and fit int64 or uint64; numbers
    written with a point or an exponent are float and finite; no key twice in an object; no U+0000 and no lone
    surrogate in strings; at most SIZE_LIMIT bytes and DEPTH_LIMIT levels. `ours`: just written by dumps, from what
    passed here: its levels need not be counted again.
    """
    if len(data) > SIZE_LIMIT:
        raise Invalid(room, name, f"{len(data)} bytes", f"{SIZE_LIMIT} bytes", "write a smaller file")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _invalid(room, name, f"a byte that is not UTF-8 at byte {error.start}", "UTF-8") from None
    try:
        value, end = _scan(text, len(text) - len(text.lstrip(WHITESPACE)))
    except StopIteration as stop:
        raise _invalid(room, name, f"no value at byte {_bytes(text, stop.value)}", "one JSON value") from None
    except (ValueError, SystemError):
        raise _syntax(text, room, name) from None
    except (_Fault, RecursionError):
        raise _told(text, next(_faults(text), _UNKNOWN), room, name) from None
    rest = text[end:].lstrip(WHITESPACE)
    if rest:
        raise _invalid(room, name, f"more data at byte {len(data) - len(rest.encode())}", "one JSON value")
    deep = not ours and data.count(b"[") + data.count(b"{") > DEPTH_LIMIT and _too_deep(value)
    if deep or _suspicious(data):
        fault = next(_faults(text), None)
        if fault is not None:
            raise _told(text, fault, room, name)
    return value


def _suspicious(data: bytes) -> bool:
    """Whether an escape may make U+0000 or a surrogate. Hardly any file has such a one."""
    return b"\\u0000" in data or b"\\ud" in data or b"\\uD" in data


def _too_deep(value: Any) -> bool:
    """Whether arrays and objects nest deeper than DEPTH_LIMIT; level by level, since recursion is what it guards."""
    level = [value] if type(value) is dict or type(value) is list else []
    for _ in range(DEPTH_LIMIT):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return False
    return True


def _invalid(room: str, name: str, asked: str, ceiling: str) -> Invalid:
    return Invalid(room, name, asked, ceiling, "write it as strict JSON (RFC 8259)")


def _bytes(text: str, position: int) -> int:
    """The byte offset of a character position."""
    return len(text[:position].encode())


def _told(text: str, fault: tuple[int, str, str], room: str, name: str) -> Invalid:
    position, asked, ceiling = fault
    return _invalid(room, name, f"{asked} at byte {_bytes(text, position)}", ceiling)


def _syntax(text: str, room: str, name: str) -> Invalid:
    """What the scanner says of text that is no JSON.

    It raises json.decoder.JSONDecodeError; CPython 3.11 looks that up only where somebody else has imported it,
    and answers with a SystemError where not. So import it here, late: 7 ms, and only to describe an error.
    """
    import json.decoder

    try:
        _scan(text, len(text) - len(text.lstrip(WHITESPACE)))
    except json.decoder.JSONDecodeError as error:
        return _invalid(room, name, f"{error.msg} at byte {_bytes(text, error.pos)}", "JSON")
    except (ValueError, _Fault, RecursionError, StopIteration):
        pass
    return _told(text, _UNKNOWN, room, name)


_SPACES = frozenset(WHITESPACE)
_UNKNOWN = (0, "a value that we cannot read", "JSON")


def _faults(text: str) -> Iterator[tuple[int, str, str]]:
    """(character position, what and where, what is allowed) of all that the C scanner lets pass and we do not.

    The slow way, for messages: the hooks that find a fault know no offset. Stops at a syntax error.
    """
    keys: list[set[str] | None] = []  # of the open objects; None for an array
    path: list[str | int] = []  # the present key of each open object, the present index of each open array
    at = 0
    while at < len(text):
        char, start = text[at], at
        at += 1
        if char == '"':
            try:
                string, at = _json.scanstring(text, at, True)
            except (ValueError, SystemError):  # as in _syntax
                return
            yield from _string_faults(string, start)
            while text[at : at + 1] in _SPACES:
                at += 1
            if text[at : at + 1] == ":" and keys and (known := keys[-1]) is not None:
                if string in known:
                    yield start, f"the key {string!r} a second time", "each key once"
                known.add(string)
                path[-1] = string
        elif char in "[{":
            keys.append(set() if char == "{" else None)
            path.append("" if char == "{" else 0)
            if len(keys) == DEPTH_LIMIT + 1:
                yield start, f"more than {DEPTH_LIMIT} nested values", f"{DEPTH_LIMIT} levels"
        elif char in "]}" and keys:
            keys.pop()
            path.pop()
        elif char == "," and path and isinstance(index := path[-1], int):
            path[-1] = index + 1
        elif char in "-0123456789NI":
            while at < len(text) and text[at] not in ",]}:" + WHITESPACE:
                at += 1
            yield from _number_faults(text[start:at], start, _dotted(path))


def _string_faults(string: str, start: int) -> Iterator[tuple[int, str, str]]:
    if "\0" in string:
        yield start, "U+0000 in a string", "strings that a C program can hold"
    if any("\ud800" <= char <= "\udfff" for char in string):
        yield start, "half a surrogate pair in a string", "Unicode characters"


def _dotted(path: list[str | int]) -> str:
    """As "linux.seccomp.syscalls[3].args[0].value"; '' at the top."""
    return "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in path).lstrip(".")


def _number_faults(token: str, start: int, place: str) -> Iterator[tuple[int, str, str]]:
    try:
        if token.endswith(("N", "y")):
            _constant(token)
        elif "." in token or "e" in token or "E" in token:
            _float(token)
        else:
            _integer(token)
    except ValueError:  # not a number at all: the scanner's error to describe
        return
    except _Fault:
        where = f" in {place}" if place else ""
        yield (
            start,
            f"the number {token[:40]}{where}",
            f"{INT_LEAST} to {INT_GREATEST}, or a finite binary64, but not -0",
        )


_encode: Callable[[object, int], tuple[str, ...]] = _json.make_encoder(
    None,
    None,  # type: ignore[arg-type]  # no default: what is not JSON is a TypeError
    _json.encode_basestring_ascii,
    None,
    ":",
    ",",
    False,
    False,
    False,
)


def dumps(value: object) -> bytes:
    """`value` as compact ASCII JSON in insertion order; loads() gives an equal value. Bug if JSON cannot hold it."""
    try:
        return "".join(_encode(value, 0)).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise Bug("wire", "dumps", f"{type(value).__name__}: {error}", "JSON values", "report this") from None
