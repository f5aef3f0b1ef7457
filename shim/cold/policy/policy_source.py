"""Policy and config files: read safely, parsed, checked against their schema, with the line of every fault.

Belongs here: the bytes of a TOML file up to a checked mapping. Next door: `compile` gives it meaning; `toml_lines`
knows positions; schema/*.json is the grammar.
"""

from __future__ import annotations

import datetime
import os
import time
import tomllib
from typing import Any

from shim import policy
from shim.cold.policy.toml_lines import Path, line_of, lines
from shim.errors import HostError, Invalid, ShimError
from shim.lattice import Value

SCHEMA = 1
SIZE_LIMIT = 1 << 20  # bytes; the built-in policies are below 4 KiB
TICK = 0.02  # seconds; file times move in steps of up to 10 ms, so a younger file may change without a trace
SECTIONS = (
    "capabilities", "user", "rlimits", "scheduling", "paths", "mounts", "namespaces", "devices", "resources", "lsm",
    "sysctl", "hooks", "annotations", "process", "invocation", "seccomp", "network",
)  # fmt: skip


class Source(Value):
    """A checked file: `data` as its schema has it, `lines` of its keys, `stat` as policy.record gives it."""

    __slots__ = ("path", "data", "lines", "stat")

    def __init__(self, path: str, data: dict[str, Any], found: dict[Path, int], stat: list[int]) -> None:
        self.path = path
        self.data = data
        self.lines = found
        self.stat = stat

    def place(self, *path: str | int) -> str:
        """`FILE:LINE dotted.key` for messages."""
        return f"{self.path}:{line_of(self.lines, path)} {dotted(path)}".rstrip()


def read(path: str, kind: str, trusted: bool = True) -> Source:
    """The file at `path` as a `kind` ("policy", "config"). Raises its first fault, and says how many more there are.

    `trusted`: false for a file that is only looked at (`policy check FILE`), whose owner does not matter.
    """
    source, faults = examine(path, kind, trusted)
    if source is None or faults:
        first = faults[0]
        if len(faults) > 1:
            first.todo += f" (and {len(faults) - 1} more: agentshim policy check {path})"
        raise first
    return source


def examine(path: str, kind: str, trusted: bool = True) -> tuple[Source | None, list[ShimError]]:
    """The file and all its faults; the source is None where it could not even be parsed."""
    try:
        data, stat = content(path, trusted)
        document, text = _parsed(path, data)
    except ShimError as error:
        return None, [error]
    found = lines(text)
    source = Source(path, _plain(document), found, stat)
    return source, list(_faults(source, kind))


def dotted(path: Path) -> str:
    """capabilities.add[1].names"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def content(path: str, trusted: bool = True) -> tuple[bytes, list[int]]:
    """Content and record of a regular file, such that a later change cannot have the same record."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        # ELOOP is a link, ENXIO a socket; the other kinds can be opened and are caught by check_file.
        what = {2: "missing", 40: "a symbolic link", 6: "a socket"}.get(error.errno or 0, f"errno {error.errno}")
        raise HostError("policy", path, what, "a regular file", "put the file itself there") from None
    try:
        if trusted:
            policy.check_file(path, os.fstat(fd))
        return _settled(path, fd)
    finally:
        os.close(fd)


def _settled(path: str, fd: int) -> tuple[bytes, list[int]]:
    for _ in range(50):
        before = os.fstat(fd)
        age = time.time() - before.st_ctime
        if 0 <= age < TICK:
            time.sleep(TICK - age)
        data = os.pread(fd, SIZE_LIMIT + 1, 0)
        if len(data) > SIZE_LIMIT:
            raise Invalid("policy", path, "more than 1 MiB", "at most 1 MiB", "a policy is a short text: look at it")
        if policy.record(os.fstat(fd)) == policy.record(before):
            return data, policy.record(before)
    raise HostError("policy", path, "a file that keeps changing", "a settled file", "stop what writes to it")


def _parsed(path: str, data: bytes) -> tuple[dict[str, Any], str]:
    try:
        text = data.decode()
        return tomllib.loads(text), text
    except UnicodeDecodeError as error:
        place = f"{path}:{data[: error.start].count(10) + 1}"
        raise Invalid("policy", place, f"byte 0x{data[error.start]:02x}", "UTF-8", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).partition(" (at ")
        line = where.split()[1].rstrip(",)") if where.startswith("line ") else str(text.count("\n") + 1)
        raise Invalid("policy", f"{path}:{line}", what, "TOML 1.0", "correct the syntax") from None
    except RecursionError:
        raise Invalid("policy", path, "deeply nested", "TOML 1.0", "a policy is flat: look at it") from None


def _plain(value: Any) -> Any:
    """TOML as JSON: dates become ISO text, a time without an offset is UTC."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, datetime.datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
        return aware.isoformat()
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


def _faults(source: Source, kind: str) -> list[ShimError]:
    schema = source.data.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:  # before all else: its keys would be unknown to us
        todo = "it was written for a newer agentshim: upgrade agentshim"
        return [Invalid("policy", source.place("schema"), f"schema {schema}", f"schema {SCHEMA}", todo)]
    out: list[ShimError] = [f for error in _validator(kind).iter_errors(source.data) for f in _explained(source, error)]
    # nan is no less than a schema's minimum, and no more than its maximum.
    out += [
        Invalid("policy", source.place(*path), value, "a finite number", "write a number")
        for path, value in _endless(source.data, ())
    ]
    if not out:
        out += [_bad_date(source, path, value) for path, value in _dates(source.data, ()) if _instant(value) is None]
    if kind == "policy" and not out and "expires" in source.data and not _tops(source):
        # Whoever wrote it believes that the policy ends.
        todo = "date each intent, and each element of add and sockets: a file's own date ends its tops alone"
        out.append(Invalid("policy", source.place("expires"), source.data["expires"], 'a section that is "top"', todo))
    stem = os.path.basename(source.path).removesuffix(".toml")
    name = source.data.get("name")
    if kind == "policy" and isinstance(name, str) and name != stem:
        todo = "a policy is found by its file's name: give both the same"
        out.append(Invalid("policy", source.place("name"), name, stem, todo))
    return sorted({str(fault): fault for fault in out}.values(), key=lambda fault: _line(fault.key))


def _tops(source: Source) -> list[str]:
    return [section for section in SECTIONS if source.data.get(section) == "top"]


def _line(place: str) -> int:
    return int(place.partition(" ")[0].rpartition(":")[2])


def _explained(source: Source, error: Any) -> list[ShimError]:
    """One schema error in our words."""
    path: Path = tuple(error.absolute_path)
    if error.validator == "required":
        return [_missing(source, path, error)]
    if error.validator == "additionalProperties" and error.validator_value is False:
        known = sorted(error.schema.get("properties", ()))
        return [
            Invalid("policy", source.place(*path, key), "unknown key", ", ".join(known), _suggested(key, known))
            for key in error.instance
            if key not in known
        ]
    if "propertyNames" in error.absolute_schema_path:
        path = (*path, error.instance)
    asked = error.instance
    if error.validator == "not":
        asked = " and ".join(error.validator_value.get("required", (str(asked),)))
    known = [str(one) for one in error.validator_value] if error.validator == "enum" else []
    todo = _suggested(str(asked), known) if known else "correct the value"
    return [Invalid("policy", source.place(*path), asked, _expected(error), todo)]


def _missing(source: Source, path: Path, error: Any) -> Invalid:
    """A key that must be there; why and doc together are asked of what is dangerous."""
    key = next(k for k in error.validator_value if k not in error.instance and repr(k) in error.message)
    if "then" not in error.absolute_schema_path or "doc" not in error.validator_value:
        return Invalid("policy", source.place(*path, key), "missing", f"the key {key}", f"say {key} = …")
    instance, near = error.instance, path
    if path == ():  # a section that is top
        near = (next(name for name in SECTIONS if instance.get(name) == "top"),)
    named = next((instance[k] for k in ("names", "path", "name") if k in instance), dotted(path))
    asked = "top" if path == () else named
    shown = ", ".join(asked) if isinstance(asked, list) else asked
    todo = f"say {key} = …"
    return Invalid("policy", source.place(*near), f"{shown} without {key}", "why and doc for what is dangerous", todo)


def _expected(error: Any) -> str:
    """What would have been well formed: the schema's own words, if it has some."""
    value = error.validator_value
    if error.validator == "enum":
        return "one of " + ", ".join(str(one) for one in value)
    described = error.schema.get("description")
    return str(described) if described else f"{error.validator} {value}"


def _suggested(key: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(key, known, 1)
    return f"did you mean {near[0]}?" if near else "remove it, or choose another"


def _dates(value: Any, path: Path) -> list[tuple[Path, Any]]:
    """Every `expires` in the document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    out: list[tuple[Path, Any]] = []
    for key, one in items:
        out += [((*path, key), one)] if key == "expires" and isinstance(one, str) else _dates(one, (*path, key))
    return out


def _endless(value: Any, path: Path) -> list[tuple[Path, float]]:
    """Every nan and infinity in the document."""
    if isinstance(value, float) and value - value != 0:
        return [(path, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, one in items for found in _endless(one, (*path, key))]


def _bad_date(source: Source, path: Path, value: str) -> Invalid:
    return Invalid("policy", source.place(*path), value, "a date of the calendar", "write expires = 2027-01-31")


def _instant(text: str) -> int | None:
    """Unix seconds at the start of an ISO date or at a date and time; None if it is neither."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return int(aware.timestamp())


def instant(text: str) -> int:
    """Unix seconds of a checked `expires`: the join is void from then on."""
    found = _instant(text)
    assert found is not None, text  # `_faults` has looked
    return found


def _validator(kind: str) -> Any:
    try:
        import jsonschema
    except ImportError:
        from shim.cold import site  # the interpreter runs with -S

        site.enable()
        try:
            import jsonschema
        except ImportError:
            todo = "install python3-jsonschema (only host policies and config.toml need it)"
            raise HostError("policy", "jsonschema", "not installed", "jsonschema 4 or newer", todo) from None
    import json

    with open(f"{policy.PACKAGE}/schema/{kind}.json", encoding="utf-8") as file:
        return jsonschema.Draft202012Validator(json.load(file))
