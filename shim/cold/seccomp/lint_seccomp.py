"""`agentshim policy lint PROFILE`: what a delegate would lose, turn around or fail on in a seccomp profile.

PROFILE is the name of one of ours, or a JSON file of OCI's or Docker's form. Rules on capabilities and kernels are
read as they may be there together on this machine, on some kernel and under some set of capabilities. Each finding
names the rule's index, the call, and what happens; measured with libseccomp 2.5.4,
runc 1.1.5 and crun 1.8.1. Nothing is changed. Next door: `seccomp_source` reads profiles, `seccomp.model` gives them a
meaning, `seccomp_when` tells which rules may meet.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from shim import wire
from shim.cold.seccomp import bpf, libseccomp, prove, seccomp_source, seccomp_toml, seccomp_when
from shim.errors import HostError, Invalid
from shim.lattice import Value, at
from shim.seccomp import cubes, reading, words
from shim.seccomp.profile import machine
from shim.seccomp.vocabulary import ACTIONS, EPERM, ERRNO, FALLBACK, FULL64, LOG, LOW, NATIVE, TRACE, WIDE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.cold.seccomp.seccomp_when import Indexed

_SHOWN = 6


class Finding(Value):
    """rule: index, -1 for the profile as a whole; code: the kind, a word; calls: names; text: what happens."""

    __slots__ = ("rule", "code", "calls", "text")

    def __init__(self, rule: int, code: str, calls: tuple[str, ...], text: str) -> None:
        self.rule = rule
        self.code = code
        self.calls = calls
        self.text = text

    def __str__(self) -> str:
        where = f"rule {self.rule}" if self.rule >= 0 else "profile"
        names = ", ".join(self.calls[:_SHOWN]) + (f" and {len(self.calls) - _SHOWN} more" * (len(self.calls) > _SHOWN))
        return f"{where}: {self.code}: {names}{': ' if names else ''}{self.text}"


def lint(name: str) -> list[Finding]:
    """The findings for one of our profiles by name, or for a file by path. Invalid where it is no profile at all."""
    if name in seccomp_toml.names():
        return findings(seccomp_toml.profile(name), [])
    try:
        with open(name, "rb") as file:
            data = file.read()
    except OSError as error:
        todo = f"name a file, or {' or '.join(seccomp_toml.names())}"
        raise HostError("seccomp", name, error.strerror, "a readable profile", todo) from error
    tree = wire.loads(data, "seccomp", name)
    if isinstance(tree, dict) and "ociVersion" in tree:  # a whole config.json
        tree = at(tree, "linux.seccomp")
    return lint_json(tree, name)


def lint_json(tree: Any, name: str = "profile") -> list[Finding]:
    """The findings for a parsed profile of Docker's or OCI's form."""
    return findings(seccomp_source.normal(tree, name), _abis(tree), bool(tree.get("listenerPath")))


def findings(tree: dict[str, Any], abis: list[str], listener: bool = False) -> list[Finding]:
    """All findings of a source form, once each, in order of the rules."""
    host = machine()
    found: dict[tuple[int, str, tuple[str, ...]], Finding] = {}
    every = [*_frame(tree, abis, listener)]
    places = [seccomp_when.of(rule) for rule in tree["syscalls"]]
    rules = [(i, rule) for i, rule in enumerate(tree["syscalls"]) if places[i].counts(rule, host)]
    every += [*_single(tree, rules, host), *_together(rules, lambda one, other: places[one].meets(places[other]))]
    for some in seccomp_when.largest(rules, places, host):
        every += _compiled(tree, some, abis, host)
    for one in every:
        found.setdefault((one.rule, one.code, one.calls), one)
    return sorted(found.values(), key=lambda one: one.rule)


def main(name: str) -> int:
    """Print the findings, one a line. 0 if there are none, 1 otherwise."""
    every = lint(name)
    for one in every:
        print(f"{name}: {one}")
    return 1 if every else 0


def _abis(tree: dict[str, Any]) -> list[str]:
    """The ABIs beside the native one that a profile asks for on this machine."""
    native = NATIVE[machine()]
    listed = list(tree.get("architectures") or ())
    for entry in tree.get("archMap") or ():
        if entry.get("architecture") == native:
            listed += entry.get("subArchitectures") or ()
    return [abi for abi in listed if abi != native]


def _frame(tree: dict[str, Any], abis: list[str], listener: bool) -> Iterator[Finding]:
    if abis:
        text = "socketcall and x32 pass rules on socket families; conditions see 32 bits only"
        yield Finding(-1, "several-abis", tuple(abis), text)
    if tree["defaultAction"] == "SCMP_ACT_NOTIFY":
        yield Finding(-1, "notify-default", (), "runc refuses NOTIFY as the default action")
    if listener:
        yield Finding(
            -1, "listener", (), "runc dials listenerPath as root of the host; the peer may let calls continue"
        )


def _single(tree: dict[str, Any], rules: Indexed, host: str) -> Iterator[Finding]:
    """What is wrong with a rule by itself."""
    default = _outcome({"action": tree["defaultAction"], "errnoRet": tree.get("defaultErrnoRet")})
    for index, rule in rules:
        names = tuple(rule["names"])
        denies = ACTIONS[rule["action"]] < LOG
        if _outcome(rule) == default:
            yield Finding(
                index, "equals-default", names, "the delegate leaves the rule out, so it limits no other rule"
            )
        unknown = tuple(name for name in names if libseccomp.number(name, NATIVE[host]) == -1)
        if unknown and ACTIONS[rule["action"]] < default[0]:
            yield Finding(index, "unknown-name", unknown, "libseccomp has no such call: the denial is lost")
        elif unknown := tuple(name for name in unknown if name not in FALLBACK.split()):
            yield Finding(index, "unknown-name", unknown, "libseccomp has no such call: the rule is left out for it")
        yield from _arguments(index, rule, denies)


def _arguments(index: int, rule: dict[str, Any], denies: bool) -> Iterator[Finding]:
    args = rule.get("args") or ()
    seen = [arg["index"] for arg in args]
    if len(set(seen)) < len(seen):
        yield Finding(index, "argument-twice", tuple(rule["names"]), "any one of its conditions suffices, not all")
    for arg in args:
        ints = tuple(name for name in rule["names"] if (name, arg["index"]) not in WIDE)
        if ints and (_high_escapes(arg) if denies else _allows_high(arg)):
            text = f"argument {arg['index']} is an int: the kernel cuts it to 32 bits, the comparison sees 64"
            yield Finding(index, "unmasked-int", ints, text)


def _high_escapes(arg: dict[str, Any]) -> bool:
    """Whether a condition holds for an int and not for the same with other high bits: a denial that can be passed."""
    value: int = arg["value"]
    escapes = {
        "EQ": value <= LOW,
        "NE": value > LOW,
        "LT": value > 0,
        "LE": value < FULL64,
        "MASKED_EQ": value > LOW and arg.get("valueTwo", 0) <= LOW,
    }
    return escapes.get(arg["op"][9:], False)  # of GE and GT, high bits only make it more


def _allows_high(arg: dict[str, Any]) -> bool:
    """Whether a condition accepts words for their high half, which the kernel then drops."""
    pairs = words.compare(arg["op"][9:], arg["value"], arg.get("valueTwo", 0))
    return any(mask > LOW and (value > LOW or mask >> 32 != FULL64 >> 32) for mask, value in pairs)


def _together(rules: Indexed, meet: Callable[[int, int], bool]) -> Iterator[Finding]:
    """What several rules for one call do to each other, where both of them count."""
    by_name: dict[str, Indexed] = {}
    for index, rule in rules:
        for name in rule["names"]:
            by_name.setdefault(name, []).append((index, rule))
    for name, own in by_name.items():
        plain = [pair for pair in own if not pair[1].get("args")]
        parted = [pair for pair in own if pair[1].get("args")]
        for index, _ in parted:
            for first in (one for one, _ in plain if meet(one, index)):
                yield Finding(index, "conditional-lost", (name,), f"rule {first}, unconditional, replaces it")
                break
        for count, (index, rule) in enumerate(plain):
            for first in (one for one, two in plain[:count] if _outcome(two) != _outcome(rule) and meet(one, index)):
                yield Finding(index, "second-lost", (name,), f"rule {first} for the same call came first")
                break
        yield from _overlaps(name, parted, meet)


def _overlaps(name: str, parted: Indexed, meet: Callable[[int, int], bool]) -> Iterator[Finding]:
    cubes.budget()
    read = [(index, _outcome(rule), _conditions(rule), reading.condition_cubes(rule)) for index, rule in parted]
    for (first, one, text, where), (second, two, other, there) in itertools.combinations(read, 2):
        if one == two or not meet(first, second):
            continue
        if text == other:
            yield Finding(second, "contradiction", (name,), f"the conditions of rule {first}: the container fails")
        elif _overlap(where, there):
            yield Finding(second, "overlap", (name,), f"overlaps rule {first} of another action; the gentler may win")


def _overlap(where: cubes.Cubes, there: cubes.Cubes) -> bool:
    try:
        return cubes.overlap(where, there)
    except cubes.TooMany:
        return True


def _compiled(tree: dict[str, Any], rules: Indexed, abis: list[str], host: str) -> Iterator[Finding]:
    """What only libseccomp can tell: whether it takes the profile at all, and how long the filter is."""
    plain = [{name: value for name, value in rule.items() if name not in ("includes", "excludes")} for _, rule in rules]
    raw = {**tree, "architectures": [NATIVE[host], *abis], "syscalls": plain}
    try:
        longest = max(len(data) // 8 for data in libseccomp.compiled([(raw, 1), (raw, 2)], host))
    except Invalid as error:
        yield Finding(-1, "not-compiled", (), str(error))
        return
    if longest > prove.MOST_INSTRUCTIONS:
        most = f"the kernel takes {bpf.MOST_INSTRUCTIONS}, of which runc wants some for its own stub"
        yield Finding(-1, "too-long", (), f"{longest} instructions: {most}")


def _outcome(rule: dict[str, Any]) -> tuple[int, int | None]:
    """The action as the kernel knows it (KILL is KILL_THREAD), and its number where it has one."""
    action, code = ACTIONS[rule["action"]], rule.get("errnoRet")
    return action, (EPERM if code is None else code) if action in (ERRNO, TRACE) else None


def _conditions(rule: dict[str, Any]) -> str:
    return json.dumps(sorted((a["index"], a["op"], a["value"], a.get("valueTwo", 0)) for a in rule["args"]))
