"""Our own profiles: policies/seccomp/*.toml -> the source form of a profile (rules with conditions and capabilities).

`inherits` names other profiles, whose rules come first; the rules of all are joined. `when` holds conditions that must
all be true, one an argument; `unless` holds conditions of which none may be. Constants are taken from all files of a
chain. Belongs here: reading our own files, which are ours to trust: a mistake in one is a Bug.
"""

from __future__ import annotations

import itertools
import os
import tomllib
from typing import Any

from shim.errors import Bug, Invalid
from shim.seccomp import cubes
from shim.seccomp.vocabulary import ENOSYS, EPERM, FALLBACK, FULL64

PROFILES = os.path.abspath(f"{__file__}/../../../policies/seccomp")
_NOT_PROFILES = ("base", "groups", "network")


def names() -> list[str]:
    """The profiles that a policy can name."""
    files = (name[:-5] for name in os.listdir(PROFILES) if name.endswith(".toml"))
    return sorted(name for name in files if name not in _NOT_PROFILES)


def profile(name: str) -> dict[str, Any]:
    """The profile called `name` in source form: EPERM by default, ENOSYS for new calls that it does not allow."""
    if name not in names():
        raise Invalid("seccomp", "profile", name, " or ".join(names()), "name one of them, or a file")
    chain = _chain(name)
    constants: dict[str, int] = {}
    for file in chain:
        constants.update(file.get("constants", {}))
    rules = [rule for file in chain for entry in file.get("allow", ()) for rule in _rules(entry, constants)]
    tree = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": EPERM, "flags": []}
    return {**tree, "syscalls": [*_plain(rules), _fallbacks(rules), *(rule for rule in rules if rule.get("args"))]}


def joined(tree: dict[str, Any], added: list[str]) -> dict[str, Any]:
    """`tree` with names and @groups allowed for all arguments: every other rule for them goes."""
    wanted = names_of(added)
    if not wanted:
        return tree
    rules = []
    for rule in tree["syscalls"]:
        left = [name for name in rule["names"] if name not in wanted]
        if left:
            rules.append({**rule, "names": left})
    return {**tree, "syscalls": [{"names": sorted(wanted), "action": "SCMP_ACT_ALLOW"}, *rules]}


def names_of(added: list[str]) -> set[str]:
    """Names of system calls, where @group stands for all of a group's."""
    groups = _read("groups")
    out: set[str] = set()
    for name in added:
        if not name.startswith("@"):
            out.add(name)
        elif name[1:] in groups:
            out.update(groups[name[1:]]["names"].split())
        else:
            known = ", ".join(f"@{group}" for group in groups)
            raise Invalid("seccomp", "add", name, known, "name one of these groups")
    return out


def _chain(name: str) -> list[dict[str, Any]]:
    """The files of a profile, each once, bases first."""
    seen: dict[str, dict[str, Any]] = {}

    def visit(one: str) -> None:
        if one not in seen:
            file = _read(one)
            for base in file.get("inherits", ()):
                visit(base)
            seen[one] = file

    visit(name)
    return list(seen.values())


def _read(name: str) -> dict[str, Any]:
    with open(os.path.join(PROFILES, f"{name}.toml"), "rb") as file:
        return tomllib.load(file)


def _rules(entry: dict[str, Any], constants: dict[str, int]) -> list[dict[str, Any]]:
    """One [[allow]] as rules, one for each cube."""
    if not {"why", "names"} <= set(entry) <= {"why", "names", "when", "unless", "capability"}:
        raise Bug("seccomp", "policies/seccomp", sorted(entry), "why, names, when, unless, capability", "report this")
    rule: dict[str, Any] = {"names": entry["names"].split(), "action": "SCMP_ACT_ALLOW"}
    if "capability" in entry:
        rule["includes"] = {"caps": [entry["capability"]]}
    where = [_cubes(text, constants) for text in entry.get("when", ())]
    allowed: Any = [tuple(sorted(itertools.chain(*parts))) for parts in itertools.product(*where)]
    cubes.budget()
    for text in entry.get("unless", ()):
        allowed = cubes.minus(tuple(allowed), tuple(_cubes(text, constants)))
    return [{**rule, "args": [_arg(*part) for part in cube]} if cube else rule for cube in cubes.spare(allowed)]


def _cubes(text: str, constants: dict[str, int]) -> list[tuple[tuple[int, int, int], ...]]:
    """ "1 & MASK in A B" -> a cube for each value."""
    left, operator, right = text.partition(" == ") if " == " in text else text.partition(" in ")
    index, _, mask = left.partition(" & ")
    if not operator or not index.isdigit():
        raise Bug("seccomp", "policies/seccomp", text, "N == V, N & MASK == V, N in V V", "report this")
    bits = _number(mask, constants) if mask else FULL64
    return [((int(index), bits, _number(word, constants)),) for word in right.split()]


def _number(word: str, constants: dict[str, int]) -> int:
    return constants[word] % (1 << 64) if word in constants else int(word, 0)


def _arg(index: int, mask: int, value: int) -> dict[str, Any]:
    if mask == FULL64:
        return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _plain(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The unconditional rules, one for each capability that they need, and without names that another has for all."""
    by_capability: dict[str, set[str]] = {}
    for rule in rules:
        if "args" not in rule:
            key = rule.get("includes", {"caps": [""]})["caps"][0]
            by_capability.setdefault(key, set()).update(rule["names"])
    out = []
    for capability, every in sorted(by_capability.items()):
        rule = {"names": sorted(every), "action": "SCMP_ACT_ALLOW"}
        out.append({**rule, "includes": {"caps": [capability]}} if capability else rule)
    free = by_capability.pop("", set())
    rules[:] = [rule for rule in rules if "args" not in rule or not free.issuperset(rule["names"])]
    for rule in rules:
        caps = sorted(cap for cap, every in by_capability.items() if "args" in rule and every.issuperset(rule["names"]))
        if caps:  # an unconditional rule takes its place then; side by side, libseccomp would lose one of them
            rule["excludes"] = {"caps": caps}
    return out


def _fallbacks(rules: list[dict[str, Any]]) -> dict[str, Any]:
    named = {name for rule in rules for name in rule["names"]}
    missing = [name for name in FALLBACK.split() if name not in named]
    return {"names": missing, "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}
