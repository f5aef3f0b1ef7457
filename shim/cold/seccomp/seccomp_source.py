"""A policy's seccomp section -> the form that `dim.seccomp.from_policy` reads: checked, expanded, as one JSON text.

    None, "top"                       as they are
    {"profile": "agent"}              one of shim/policies/seccomp/*.toml
    {"file": "x.json"}                a profile in Docker's form or OCI's, relative to the policy's directory
    "add": ["name", "@group", ...]    raw joins, groups of policies/seccomp/groups.toml; also as tables {names = [...]}
    "architectures": ["x86"]          ABIs beside the native one; a file's own list of them does not count
    "log": true                       the kernel logs what the filter denies; false: not even if a file's flags say so

Belongs here: reading and checking. Next door: `seccomp_toml` reads our own profiles; `seccomp.resolve` resolves
capabilities at each start.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Container
from typing import Any, NoReturn

from shim import wire
from shim.cold.seccomp import seccomp_toml
from shim.errors import HostError, Invalid, reason
from shim.seccomp.check import check
from shim.seccomp.profile import digest
from shim.seccomp.resolve import BITS
from shim.seccomp.vocabulary import ARCHITECTURES, FLAG_LOG

_CONDITIONS = {"caps", "arches", "minKernel"}
_VERSION = re.compile(r"[0-9]{1,5}\.[0-9]{1,5}")  # what Docker takes for minKernel
_MAP = {"architecture", "subArchitectures"}
_ABI = "a name that libseccomp knows"
_DOCKER_ONLY = ("archMap", "defaultErrno")
_RULE_DOCKER_ONLY = ("includes", "excludes", "comment", "errno", "name")


def expand(section: Any, base_dir: str) -> Any:
    """The section as the hot path reads it. Invalid names the file or profile, and the rule's index."""
    if section is None or section == "top":
        return section
    if set(section) == {"digest", "caps", "source"}:
        return section
    if "file" in section:
        tree = from_file(os.path.join(base_dir, section["file"]))
    else:
        tree = seccomp_toml.profile(section.get("profile", "agent"))
    tree["architectures"] = [_architecture(name) for name in section.get("architectures", ())]
    if "log" in section:
        flags = [flag for flag in tree["flags"] if flag != FLAG_LOG]
        tree["flags"] = [*flags, FLAG_LOG] if section["log"] else flags
    tree = seccomp_toml.joined(tree, _added(section.get("add", ())))
    source = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return {"digest": digest(source.encode()), "caps": capability_mask(tree), "source": source}


def from_file(path: str) -> dict[str, Any]:
    """The profile in the JSON file at `path`, in our source form."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise HostError("seccomp", path, reason(error), "a readable profile", "correct the policy") from error
    return normal(wire.loads(data, "seccomp", path), path)


def normal(tree: Any, key: str) -> dict[str, Any]:
    """A profile of Docker's or OCI's form, checked, as our source form: no architectures, flags present, no
    listener.
    """
    if not isinstance(tree, dict):
        _bad(key, tree, "a JSON object")
    _map(tree.get("archMap"), f"{key}.archMap")
    out = {name: value for name, value in tree.items() if name not in _DOCKER_ONLY}
    _number(out, "defaultErrnoRet", tree.get("defaultErrno"), f"{key}.defaultErrno")
    rules = [] if tree.get("syscalls") is None else tree["syscalls"]
    places = [f"{key}.syscalls[{index}]" for index in range(len(rules))] if isinstance(rules, list) else []
    plain = list(map(_plain, rules, places)) if places else rules
    check({**out, "syscalls": plain}, key)
    out["syscalls"] = [
        {**rule, **_conditions(source, place)} for rule, source, place in zip(plain, rules, places, strict=True)
    ]
    for name in ("architectures", "listenerPath", "listenerMetadata"):
        out.pop(name, None)
    out["flags"] = out.get("flags") or []
    return out


def capability_mask(tree: dict[str, Any]) -> int:
    """The capability bits that some rule depends on."""
    mask = 0
    for rule in tree["syscalls"]:
        for side in ("includes", "excludes"):
            for cap in rule.get(side, {}).get("caps", ()):
                mask |= BITS[cap]
    return mask


def _plain(rule: Any, key: str) -> Any:
    """A rule without what only Docker's form has; `name` of old profiles becomes `names`, null becomes absent."""
    if not isinstance(rule, dict):
        return rule
    out = {name: value for name, value in rule.items() if name not in _RULE_DOCKER_ONLY and value is not None}
    if "names" not in out and "name" in rule:
        out["names"] = [rule["name"]]
    _number(out, "errnoRet", rule.get("errno"), f"{key}.errno")
    return out


def _number(out: dict[str, Any], number: str, name: Any, key: str) -> None:
    """Puts the number of an error into `out` that podman's form has by `name`; Docker reads only a number, so if both
    are there they must be one.
    """
    if name is None or name == "":
        return
    code = vars(errno).get(name) if type(name) is str else None
    if type(code) is not int:
        _bad(key, name, "an error's name: EPERM")
    if out.get(number) is None:
        out[number] = code
    elif out[number] != code:
        _bad(key, name, f"the error of {number}, {out[number]}")


def _map(entries: Any, key: str) -> None:
    """Check Docker's list of ABIs: [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}]."""
    if entries is not None and type(entries) is not list:
        _bad(key, entries, "a list of objects")
    for index, entry in enumerate(entries or ()):
        place = f"{key}[{index}]"
        if type(entry) is not dict or not _MAP.issuperset(entry):
            _bad(place, entry, "an object of architecture and subArchitectures")
        if type(entry.get("architecture")) is not str or entry["architecture"] not in ARCHITECTURES:
            _bad(f"{place}.architecture", entry.get("architecture"), _ABI)
        _words(entry.get("subArchitectures"), f"{place}.subArchitectures", _ABI, ARCHITECTURES)


def _conditions(rule: dict[str, Any], key: str) -> dict[str, Any]:
    """The includes and excludes of a rule, checked; empty ones are left out."""
    out = {}
    for side in ("includes", "excludes"):
        given = rule.get(side)
        if given is None:
            continue
        if type(given) is not dict or not _CONDITIONS.issuperset(given):
            _bad(f"{key}.{side}", given, "caps, arches, minKernel")
        _words(given.get("caps"), f"{key}.{side}.caps", "a capability CAP_...", BITS)
        _words(given.get("arches"), f"{key}.{side}.arches", "a name of Go's, like amd64")
        version = given.get("minKernel")
        if version not in (None, "") and not (type(version) is str and _VERSION.fullmatch(version)):
            _bad(f"{key}.{side}.minKernel", version, "a version MAJOR.MINOR")
        kept = {name: value for name, value in given.items() if value}
        if kept:
            out[side] = kept
    return out


def _words(words: Any, key: str, wanted: str, known: Container[str] = ()) -> None:
    """Check a list of strings, each among `known` if that is given; or nothing."""
    if words is not None and type(words) is not list:
        _bad(key, words, "a list of strings")
    for index, word in enumerate(words or ()):
        if type(word) is not str or (known and word not in known):
            _bad(f"{key}[{index}]", word, wanted)


def _bad(key: str, asked: object, wanted: str) -> NoReturn:
    raise Invalid("seccomp", key, asked, wanted, "correct the profile")


def _added(add: Any) -> list[str]:
    names: list[str] = []
    for one in add:
        names += [one] if isinstance(one, str) else one["names"]
    return names


def _architecture(name: str) -> str:
    full = name if name.startswith("SCMP_ARCH_") else f"SCMP_ARCH_{name.upper()}"
    if full not in ARCHITECTURES:
        raise Invalid("seccomp", "architectures", name, "x86, x32, arm", "correct the policy")
    return full
