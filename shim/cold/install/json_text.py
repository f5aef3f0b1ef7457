"""Changes to a JSON file that leave every character that they do not mean as it was: order, indentation, spacing.

Belongs here: text -> text. Next door: `engines` knows what to write; `toml_text` does the same for TOML. RFC 8259.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from shim.errors import Invalid

Path = tuple[str, ...]
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
UNIT = "    "


@dataclass(frozen=True)
class Member:
    """One member of an object: where its key starts, where its value starts and ends."""

    key: str
    start: int
    value: int
    end: int


def parse(text: str, where: str) -> dict[str, Any]:
    """The document; nothing at all is an empty one. Invalid, with the line, where `text` is not one JSON object, or
    has a key twice: engines take the last of them, and a reader the first.
    """
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice.extend(key for key in keys if keys.count(key) > 1)
        return dict(pairs)

    if not text.strip():
        return {}
    try:
        doc = json.loads(text, object_pairs_hook=once, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise _syntax(text, where, error) from None
    except (ValueError, RecursionError) as error:
        raise Invalid("install", where, str(error), "JSON", "correct it: the engine reads none of it") from None
    if twice:
        raise Invalid("install", f"{where}: {twice[0]}", "a key twice", "once", "take one of them out")
    if not isinstance(doc, dict):
        raise Invalid("install", where, type(doc).__name__, "a JSON object", "begin with { and end with }")
    return doc


def meaning(text: str, where: str) -> str:
    """All that a reader takes from `text`, so that what has the same may differ in white space alone. Invalid."""
    return repr(parse(text, where))


def put(text: str, path: Path, value: Any, where: str) -> str:
    """`text` with `value` at `path`, made where it is not. Every value on the way is an object, or null: dockerd takes
    that for nothing.
    """
    if not text.strip():
        text = "{\n}\n"
    unit, at = _unit(text), _SPACE.match(text).end()  # type: ignore[union-attr]
    for depth, key in enumerate(path):
        members, close = _members(text, at)
        found = next((one for one in members if one.key == key), None)
        if found is None:
            for name in reversed(path[depth + 1 :]):
                value = {name: value}
            return _inserted(text, at, members, close, key, value, unit)
        if depth == len(path) - 1 or text.startswith("null", found.value):
            for name in reversed(path[depth + 1 :]):
                value = {name: value}
            return text[: found.value] + _rendered(value, _indent(text, found.start), unit) + text[found.end :]
        at = found.value
    raise AssertionError("an empty path")


def drop(text: str, path: Path, where: str) -> str:
    """`text` without the member at `path`, which is there."""
    at = _SPACE.match(text).end()  # type: ignore[union-attr]
    for key in path[:-1]:
        at = next(one for one in _members(text, at)[0] if one.key == key).value
    members, close = _members(text, at)
    index = next(number for number, one in enumerate(members) if one.key == path[-1])
    if index > 0:
        return text[: members[index - 1].end] + text[members[index].end :]
    if len(members) > 1:
        return text[: members[0].start] + text[members[1].start :]
    return text[: at + 1] + text[close:]


def _members(text: str, at: int) -> tuple[list[Member], int]:
    """The members of the object whose brace is at `at`, and where its closing brace is."""
    out: list[Member] = []
    at = _skip(text, at + 1)
    while text[at] != "}":
        start = at
        key, at = _DECODER.raw_decode(text, at)
        value = _skip(text, _skip(text, at) + 1)  # the colon
        _, end = _DECODER.raw_decode(text, value)
        out.append(Member(key, start, value, end))
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at
    return out, at


def _inserted(text: str, at: int, members: list[Member], close: int, key: str, value: Any, unit: str) -> str:
    name = json.dumps(key) + ": "
    if not members:
        outer = _indent(text, at)
        inner = outer + unit
        return f"{text[: at + 1]}\n{inner}{name}{_rendered(value, inner, unit)}\n{outer}{text[close:]}"
    gap, last = text[at + 1 : members[0].start], members[-1].end
    if "\n" not in gap:
        return f"{text[:last]}, {name}{json.dumps(value)}{text[last:]}"
    inner = gap.rpartition("\n")[2]
    return f"{text[:last]},\n{inner}{name}{_rendered(value, inner, unit)}{text[last:]}"


def _rendered(value: Any, indent: str, unit: str) -> str:
    return json.dumps(value, indent=unit).replace("\n", "\n" + indent)


def _indent(text: str, at: int) -> str:
    """The white space at the begin of the line of `at`."""
    line = text[text.rfind("\n", 0, at) + 1 :]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _unit(text: str) -> str:
    """What one level is indented by: what the first member is."""
    at = _SPACE.match(text).end()  # type: ignore[union-attr]
    members, _ = _members(text, at)
    gap = text[at + 1 : members[0].start] if members else ""
    return gap.rpartition("\n")[2].removeprefix(_indent(text, at)) or UNIT if "\n" in gap else UNIT


def _skip(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _constant(name: str) -> None:
    raise ValueError(name)


def _syntax(text: str, where: str, error: json.JSONDecodeError) -> Invalid:
    rest = text[error.pos :].lstrip()
    key = f"{where}:{error.lineno}"
    if rest[:1] in ("/", "#"):
        return Invalid(
            "install", key, "a comment", "JSON, which has none", "take it out: dockerd does not start with it"
        )
    todo = "correct it: dockerd does not start with it"
    return Invalid("install", key, error.msg.lower(), "JSON", todo)
