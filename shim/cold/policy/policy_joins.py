"""What policy files mean: bases followed, intents expanded, dated joins kept or left out. TOML -> sections.

Belongs here: the language. Next door: `policy_source` reads and checks a file; `intents` is the vocabulary; `compile`
holds the result to the host limit and writes it down.
A file is joined to what its bases hold: lists of joins and lists that allow add, every other key replaces.
"""

from __future__ import annotations

import os
import time
from typing import Any

from shim import policy
from shim.cold.policy.intents import INTENTS
from shim.cold.policy.policy_source import SECTIONS, Source, content, instant, read
from shim.errors import Invalid, Refused
from shim.lattice import Value

Sections = dict[str, Any]
Reason = dict[str, Any]
UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

# Lists that allow: a file adds to its base's.
ALLOWING = {
    ("mounts", "workspace"),
    ("namespaces", "shared"),
    ("namespaces", "host"),
    ("sysctl", "allow"),
    ("invocation", "verbs"),
    ("network", "outbound"),
    ("network", "inbound"),
    ("network", "publish"),
    ("network", "host_services"),
    ("seccomp", "architectures"),
}
SPOKEN = ("why", "doc", "expires")  # keys that give reasons and grant nothing
DEVICE = ("path", "type", "major", "minor", "access")


class Resolved(Value):
    """A policy after its bases and intents. `why`: dotted join -> reason; `expired`: dotted joins left out, with their
    reason; `expires`: the next unix time at which a join ends; `sources`: the records of the files it was made of;
    `directory`: where a seccomp profile lies that it names as file; `pool`: where containers' addresses are from.
    """

    __slots__ = ("name", "directory", "pool", "about", "sections", "why", "expired", "expires", "sources")

    def __init__(self, name: str, directory: str, pool: str) -> None:
        self.name = name
        self.directory = directory
        self.pool = pool
        self.about = ""
        self.sections: Sections = {}
        self.why: dict[str, Reason] = {}
        self.expired: dict[str, Reason] = {}
        self.expires: int | None = None
        self.sources: dict[str, list[int]] = {}


def resolve(name: str, config: policy.Config, file: str | None = None, now: float | None = None) -> Resolved:
    """The policy `name`, or the one in `file` (looked at, not trusted), at unix time `now`. Raises its first fault."""
    directory = config.etc + "/policies" if file is None else os.path.dirname(os.path.abspath(file))
    out = Resolved(name, directory, config.network_pool)
    for source in reversed(_chain(name, config, file)):
        out.sources[source.path] = source.stat
        out.about = source.data["about"]
        _File(out, source, time.time() if now is None else now).join()
    seccomp = out.sections.get("seccomp")
    if isinstance(seccomp, dict) and "file" in seccomp:
        profile = f"{out.directory}/{seccomp['file']}"
        out.sources[profile] = content(profile, trusted=file is None)[1]
    return out


def path_of(name: str, config: policy.Config) -> str:
    """Where the policy `name` is written."""
    return f"{policy.PACKAGE if name in policy.BUILTIN else config.etc}/policies/{name}.toml"


def is_file(what: str) -> bool:
    """Whether a person who typed `what` for a policy means a file: no name holds a slash or a dot."""
    return "/" in what or what.endswith(".toml")


def draft(path: str, config: policy.Config) -> str:
    """The name of the policy in a file that need not be installed. Refused for a built-in one's: it never could be."""
    name = os.path.basename(path).removesuffix(".toml")
    if name in policy.BUILTIN and os.path.realpath(path) != os.path.realpath(path_of(name, config)):
        todo = 'rename the file and its name (base = "agent" starts from a built-in one)'
        raise Refused("policy", path, f"another policy {name}", "the built-in one", todo)
    return name


def _chain(name: str, config: policy.Config, file: str | None) -> list[Source]:
    """The policy's file and its bases', the policy first."""
    chain: list[Source] = []
    names: list[str] = []
    while True:
        if file is None or names:
            policy.check_name(name, config)
            source = read(path_of(name, config), "policy", trusted=name not in policy.BUILTIN)
        else:
            source = read(file, "policy", trusted=False)
        chain.append(source)
        names.append(name)
        base = source.data.get("base")
        if base is None:
            return chain
        if base in names:
            circle = " -> ".join([*names, base])
            raise Invalid("policy", source.place("base"), circle, "bases without a circle", "break the circle")
        name = base


class _File:
    """One file on its way into `out`."""

    def __init__(self, out: Resolved, source: Source, now: float) -> None:
        self.out = out
        self.source = source
        self.now = now

    def join(self) -> None:
        data = self.source.data
        for section in SECTIONS:
            table = data.get(section)
            if table == "top":
                self.top(section, self.reason(data, section))
            elif table is not None:
                self.table(section, table, self.reason(table, section))
        for index, intent in enumerate(data.get("intents", ())):
            self.intent(index, intent)

    def top(self, section: str, reason: Reason) -> None:
        """A section that is wholly top, until the file's own `expires`; then the bases' holds, as with any join."""
        if self.valid(section, reason):
            self.out.sections[section] = "top"
            self.out.why[section] = reason

    def intent(self, index: int, intent: dict[str, Any]) -> None:
        kind, name = INTENTS[intent["name"]], "intents." + intent["name"]
        reason = {**self.reason(intent, "intents", index), "intent": intent["name"]}
        if not self.valid(name, reason):
            return
        self.out.why[name] = reason
        for section, table in kind.joins.items():
            if self.out.sections.get(section) != "top":
                self.table(section, _filled(table, intent), reason)

    def table(self, section: str, table: dict[str, Any], reason: Reason) -> None:
        here = self.started(section, table)
        for key, value in table.items():
            if key in ("add", "sockets"):
                for index, one in enumerate(value):
                    spoken = reason if "intent" in reason else self.reason(one, section, key, index)
                    self.elements(here, section, one, spoken)
            elif key == "scratch":
                _scratch(here, value, adding="intent" in reason)
            elif key not in SPOKEN:
                self.plain(here, section, key, value, reason)

    def started(self, section: str, table: dict[str, Any]) -> dict[str, Any]:
        """A copy of the section as it is so far, in its place; a table after "top" starts from nothing."""
        before = self.out.sections.get(section)
        here = {} if before is None or before == "top" else {key: _copied(one) for key, one in before.items()}
        if section == "seccomp" and ("profile" in table or "file" in table):
            here.pop("profile", None)
            here.pop("file", None)
        self.out.sections[section] = here
        return here

    def elements(self, here: dict[str, Any], section: str, join: dict[str, Any], reason: Reason) -> None:
        """The joins of one element of a list."""
        for name, keys, value in _single(section, join):
            dotted = f"{section}.{name}"
            if self.valid(dotted, reason):
                self.out.why[dotted] = reason
                for key in keys:
                    if value not in here.setdefault(key, []):
                        here[key] = sorted([*here[key], value], key=str)

    def plain(self, here: dict[str, Any], section: str, key: str, value: Any, reason: Reason) -> None:
        given = [key]
        if (section, key) in ALLOWING:
            given = value
            value = sorted({*here.get(key, ()), *value})
        here[key] = _number(value) if section == "resources" and isinstance(value, str) else value
        if "why" in reason:
            self.out.why.update({f"{section}.{one}": reason for one in given})

    def valid(self, dotted: str, reason: Reason) -> bool:
        """Whether a join has not ended; notes when it will, or that it has."""
        if "expires" not in reason:
            return True
        end = instant(reason["expires"])
        if end <= self.now:
            self.out.expired[dotted] = reason
            return False
        self.out.expires = end if self.out.expires is None else min(self.out.expires, end)
        return True

    def reason(self, spoken: dict[str, Any], *path: str | int) -> Reason:
        """Who says a join and why: `policy`, `at` (file name:line), and what of why, doc, expires is given."""
        at = os.path.basename(self.source.place(*path).partition(" ")[0])
        given = {key: spoken[key] for key in SPOKEN if key in spoken}
        return {"policy": self.source.data["name"], "at": at, **given}


def _single(section: str, join: dict[str, Any]) -> list[tuple[str, tuple[str, ...], Any]]:
    """(name, keys of the section, what is put into each of them) of one element's joins."""
    if section == "capabilities":
        keys = ("grant", "ambient") if join.get("ambient") else ("grant",)
        return [(name, keys, name) for name in join["names"]]
    if section == "devices":
        return [(join["path"], ("add",), {key: join[key] for key in DEVICE})]
    if section == "network":
        return [(join["to"], ("outbound",), join["to"])]
    if section in ("mounts", "hooks"):
        return [(join["path"], ("sockets",) if section == "mounts" else ("allow",), join["path"])]
    return [(name, ("add",), name) for name in join["names"]]


def _scratch(here: dict[str, Any], value: dict[str, Any], adding: bool) -> None:
    """Scratch directories by path; `adding` (an intent) leaves one as it is that a file has set."""
    given = {path: {"size": _number(one["size"]), "exec": one.get("exec", False)} for path, one in value.items()}
    before = here.get("scratch", {})
    here["scratch"] = {**given, **before} if adding else {**before, **given}


def _filled(table: dict[str, Any], intent: dict[str, Any]) -> dict[str, Any]:
    """An intent's table with {path} and {to} replaced by its parameters."""
    given = {"{path}": [intent.get("path")], "{to}": intent.get("to")}
    out = dict(table)
    for key, value in table.items():
        if isinstance(value, list) and value[0] in ("{path}", "{to}"):
            out[key] = given[value[0]]
    return out


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else dict(value) if isinstance(value, dict) else value


def _number(size: str | int) -> int:
    """Bytes of "64m" (binary units), or of a plain number."""
    if isinstance(size, int):
        return size
    unit = UNITS.get(size[-1].lower())
    return int(size[:-1]) * unit if unit else int(size)
