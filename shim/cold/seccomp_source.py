"""A policy's seccomp section -> the form that `dim.seccomp.from_policy` reads: checked, expanded, as one JSON text.

    None, "top"                       as they are
    {"profile": "agent"}              one of shim/policies/seccomp/*.toml
    {"file": "x.json"}                a profile in Docker's form or OCI's, relative to the policy's directory
    "add": ["name", "@group", ...]    raw joins, groups of policies/seccomp/groups.toml; also as tables {names = [...]}
    "architectures": ["x86"]          ABIs beside the native one; a file's own list of them does not count
    "log": true                       the kernel logs what the filter denies; false: not even if a file's flags say so

Belongs here: reading and checking. Next door: `cold.seccomp_toml` reads our own profiles; `seccomp.resolve` resolves
capabilities at each start.
"""

from __future__ import annotations

import json
import os
from typing import Any

from shim import wire
from shim.cold import seccomp_toml
from shim.errors import HostError, Invalid, reason
from shim.seccomp.check import check
from shim.seccomp.profile import digest
from shim.seccomp.resolve import BITS
from shim.seccomp.vocabulary import ARCHITECTURES, FLAG_LOG

_CONDITIONS = {"caps", "arches", "minKernel"}
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
        raise Invalid("seccomp", key, tree, "a JSON object", "correct the profile")
    out = {name: value for name, value in tree.items() if name not in _DOCKER_ONLY}
    rules = out.get("syscalls") or []
    plain = [_plain(rule) for rule in rules] if isinstance(rules, list) else rules
    check({**out, "syscalls": plain}, key)
    out["syscalls"] = [
        {**rule, **_conditions(source, f"{key}.syscalls[{index}]")}
        for index, (rule, source) in enumerate(zip(plain, rules, strict=True))
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


def _plain(rule: Any) -> Any:
    """A rule without what only Docker's form has; `name` of old profiles becomes `names`, null becomes absent."""
    if not isinstance(rule, dict):
        return rule
    out = {name: value for name, value in rule.items() if name not in _RULE_DOCKER_ONLY and value is not None}
    if "names" not in out and "name" in rule:
        out["names"] = [rule["name"]]
    return out


def _conditions(rule: dict[str, Any], key: str) -> dict[str, Any]:
    """The includes and excludes of a rule, checked; empty ones are left out."""
    out = {}
    for side in ("includes", "excludes"):
        given = rule.get(side) or {}
        if not isinstance(given, dict) or not _CONDITIONS.issuperset(given):
            raise Invalid("seccomp", f"{key}.{side}", given, "caps, arches, minKernel", "correct the profile")
        for cap in given.get("caps") or ():
            if cap not in BITS:
                raise Invalid("seccomp", f"{key}.{side}.caps", cap, "a capability CAP_...", "correct the profile")
        kept = {name: value for name, value in given.items() if value}
        if kept:
            out[side] = kept
    return out


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
