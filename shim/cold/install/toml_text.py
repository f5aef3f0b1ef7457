"""Changes to a TOML file that leave every line that they do not mean as it was.

Belongs here: text -> text, held by tomllib to exactly the change that was asked. tomlkit replaces values, and keeps
what stands around them. New tables and keys are placed by line, and taken out by line: tomlkit counts the comments
that follow a table as a part of it, so it would put ours behind the next table's heading, and take those away with it.
Next door: `toml_lines` finds the lines; `engines` knows what to write. Source: toml.io v1.0.0.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

from shim.cold.policy import toml_lines
from shim.errors import HostError, Invalid

Path = tuple[str, ...]
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_NOTHING = re.compile(r"\s*(#.*)?")
# Quotes and # stand nowhere else: what a string holds is no comment, and the other way round.
_STRING_OR_COMMENT = re.compile(rf"(?:{toml_lines._STRING.pattern})|(?P<comment>#[^\n]*)", re.DOTALL)


def parse(text: str, where: str) -> dict[str, Any]:
    """The document; Invalid, with the line, where `text` (of the file `where`) is not TOML."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = re.search(r"\(at (?:line (\d+)|end of document)", str(error))
        line = found[1] if found and found[1] else text.count("\n") + 1
        asked = re.sub(r" \(at .*\)", "", str(error)).lower()
        raise Invalid("install", f"{where}:{line}", asked, "TOML", "correct it: the engine reads none of it") from None


def meaning(text: str, where: str) -> str:
    """All that a reader takes from `text`, comments too, so that what has the same may differ in white space alone.

    Invalid as parse.
    """
    found = [one["comment"] for one in _STRING_OR_COMMENT.finditer(text)]
    return repr((parse(text, where), [one.split() for one in found if one]))


def get(doc: Any, path: Path) -> Any:
    """What is at `path`, None where nothing is."""
    for key in path:
        if not isinstance(doc, dict) or key not in doc:
            return None
        doc = doc[key]
    return doc


def put(text: str, path: Path, value: Any, where: str) -> str:
    """`text` with `value` (of str, int, bool, list, dict) at `path`. Invalid if its layout does not let us."""
    wanted = _with(tomllib.loads(text), path, value)
    for tried in _ways(text, path, value):
        if _is(tried, wanted):
            return tried
    raise _no_way(where, path)


def drop(text: str, path: Path, where: str) -> str:
    """`text` without `path` and all below it; comments that are not inside of it stay. Invalid as put."""
    wanted = _without(tomllib.loads(text), path)
    statements = toml_lines.statements(text)
    kept: list[str] = []
    run: list[str] = []  # lines of what goes; those at its end without a word belong to what follows
    goes = False
    for number, line in enumerate(_lines(text), 1):
        if number in statements:
            kept += _tail(run)
            run = []
            goes = statements[number][0][: len(path)] == path
        (run if goes else kept).append(line)
    kept += _tail(run)
    out = "".join(kept)
    if not _is(out, wanted):
        raise _no_way(where, path)
    return out


def _ways(text: str, path: Path, value: Any) -> Iterator[str]:
    """Texts that may be it, the best first."""
    doc = tomllib.loads(text)
    if isinstance(value, dict) and get(doc, path) is None:
        yield _appended(text, path, value)
        return
    if get(doc, path) is not None or len(path) == 1:
        yield _replaced(text, path, value)
    yield from _inserted(text, path, value, len(path) - 1)
    yield _appended(text, path[:-1], {path[-1]: value})
    for depth in range(len(path) - 2, 0, -1):
        yield from _inserted(text, path, value, depth)


def _replaced(text: str, path: Path, value: Any) -> str:
    try:
        import tomlkit
    except ImportError:
        todo = "run make install again, or pip install tomlkit beside agentshim"
        raise HostError("install", "tomlkit", "not installed", "the package tomlkit", todo) from None
    try:
        document = tomlkit.parse(text)
        at: Any = document
        for key in path[:-1]:
            at = at[key]
        if isinstance(value, list) and path[-1] in at:
            for one in [one for one in value if one not in at[path[-1]]]:
                at[path[-1]].append(one)  # its lines and comments stay
        else:
            at[path[-1]] = value
        return tomlkit.dumps(document)
    except (tomlkit.exceptions.TOMLKitError, LookupError, TypeError, ValueError):
        return ""  # a layout that tomlkit does not know its way in


def _inserted(text: str, path: Path, value: Any, depth: int) -> Iterator[str]:
    """A new key, dotted perhaps, below the last one of the table path[:depth], where that has a heading."""
    lines = _lines(text)
    heads = {number: at for number, (at, is_heading) in toml_lines.statements(text).items() if is_heading}
    for head in [number for number, at in heads.items() if at == path[:depth]]:
        end = min([one for one in heads if one > head], default=len(lines) + 1)
        last = max(n for n in range(head, end) if not _NOTHING.fullmatch(lines[n - 1].rstrip("\n")))
        like = lines[head if last > head else head - 1]
        indent = like[: len(like) - len(like.lstrip())]
        before = "".join(lines[:last])
        key = ".".join(map(_key, path[depth:]))
        yield f"{_ended(before)}{indent}{key} = {_value(value)}\n{''.join(lines[last:])}"


def _appended(text: str, path: Path, value: dict[str, Any]) -> str:
    """A table of its own at the end, with its subtables."""
    gap = "\n" if text.strip() else ""
    return _ended(text) + gap + "".join(_table(path, value))


def _table(path: Path, value: dict[str, Any]) -> Iterator[str]:
    if path:
        yield f"[{'.'.join(map(_key, path))}]\n"
    indent = "  " if path else ""
    for key, one in value.items():
        if not isinstance(one, dict):
            yield f"{indent}{_key(key)} = {_value(one)}\n"
    for key, one in value.items():
        if isinstance(one, dict):
            yield from _table((*path, key), one)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def _value(value: Any) -> str:
    """A value in one line. What JSON escapes in a string, TOML reads alike."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def _lines(text: str) -> list[str]:
    """As TOML counts them: str.splitlines breaks at form feeds and others too."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _tail(run: list[str]) -> list[str]:
    """The lines at the end of `run` that hold nothing but space and comments."""
    last = max((n for n, line in enumerate(run, 1) if not _NOTHING.fullmatch(line.rstrip("\n"))), default=0)
    return run[last:]


def _with(doc: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    inner = doc.get(path[0], {})
    if len(path) > 1:
        value = _with(inner if isinstance(inner, dict) else {}, path[1:], value)
    return {**doc, path[0]: value}


def _without(doc: dict[str, Any], path: Path) -> dict[str, Any]:
    """`doc` without `path`; a table that is empty then may be there or not, so all such are left out."""
    out = {key: one for key, one in doc.items() if key != path[0]}
    if len(path) > 1 and isinstance(doc.get(path[0]), dict):
        out[path[0]] = _without(doc[path[0]], path[1:])
    return out


def _pruned(doc: Any) -> Any:
    if not isinstance(doc, dict):
        return doc
    inner = {key: _pruned(one) for key, one in doc.items()}
    return {key: one for key, one in inner.items() if one != {}}


def _is(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return bool(_pruned(tomllib.loads(text)) == _pruned(wanted))
    except (tomllib.TOMLDecodeError, RecursionError):
        return False


def _no_way(where: str, path: Path) -> Invalid:
    todo = "write the tables above it as [tables] of their own, or change this key by hand"
    return Invalid("install", f"{where}: {'.'.join(map(_key, path))}", "an inline table", "a layout to add to", todo)
