"""Sections -> compiled forms: the host limit held, digested, written where the next container reads them.

Belongs here: what is kept of a policy. Next door: `policy_joins` says what a policy means; `seccomp_source` expands
profiles; `shim.policy` reads what is made here.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from hooks import lock
from shim import policy, wire
from shim.cold.network import network_source
from shim.cold.policy.policy_joins import Resolved as Resolved
from shim.cold.policy.policy_joins import Sections
from shim.cold.policy.policy_joins import path_of as path_of
from shim.cold.policy.policy_joins import resolve as resolve
from shim.cold.policy.policy_source import SCHEMA, SECTIONS, read
from shim.errors import Refused


def compile(name: str, config: policy.Config, file: str | None = None) -> dict[str, Any]:
    """The compiled form of a policy that is within the host limit; Refused, naming the dimension, if it is above."""
    resolved = resolve(name, config, file)
    form = form_of(resolved)
    limit, within = resolved, form
    if name != config.limit:
        limit = resolve(config.limit, config)
        within = form_of(limit)
        above = excess(form["sections"], limits(config, within))
        if above:
            dimension, asked, ceiling = above[0]
            todo = f"lower the policy, or raise limit in config.toml above {config.limit}"
            raise Refused("policy", f"{name}: {dimension}", asked, ceiling, todo)
    ends = [end for end in (resolved.expires, limit.expires) if end is not None]
    return {
        **form,
        "source": {**limit.sources, **resolved.sources, **_code()},
        "limit": {"name": config.limit, "digest": within["digest"]},
        "expires": min(ends) if ends else None,
    }


def limits(config: policy.Config, form: dict[str, Any] | None = None) -> Sections:
    """What no policy may exceed: the sections of the host limit. The built-in one bounds what containers can do to this
    host, not whom they may reach: with it, that is each policy's own word. `form`: the limit's, if it is at hand.
    """
    sections: Sections = (form or form_of(resolve(config.limit, config)))["sections"]
    return {**sections, "network": "top"} if config.limit == policy.BUILTIN_LIMIT else sections


def excess(sections: Sections, limit: Sections) -> list[tuple[str, str, str]]:
    """The dimensions in which `sections` is not ≤ `limit`: (name, what is asked, the limit), as text."""
    from shim import product
    from shim.dim import seccomp

    mine, ceiling = product.from_policy(sections), product.from_policy(limit)
    above = product.above(mine, ceiling)
    # A profile's rules depend on capabilities: compared without any, and here with all that the policy may grant.
    mask = mine["capabilities"].sets[0]
    if "seccomp" not in above and not seccomp.leq(
        seccomp.resolve(mine["seccomp"], mask), seccomp.resolve(ceiling["seccomp"], mask)
    ):
        above.append("seccomp")
    return [(name, *_beyond(name, sections.get(name), limit.get(name))) for name in above]


def _beyond(name: str, value: Any, limit: Any) -> tuple[str, str]:
    """What `value` has beyond `limit`, and the limit in the same keys, as short text."""
    if not isinstance(value, dict) or not isinstance(limit, dict):
        return "top" if value == "top" else "a grant", "top" if limit == "top" else _shown(limit or {}) or "nothing"
    if name == "seccomp":
        calls = sorted(_calls(value) - _calls(limit))
        return ", ".join(calls) or "arguments of system calls beyond it", "the limit's profile"
    keys = [key for key in {**value, **limit} if _exceeds(name, key, value, limit)]
    asked = {key: value.get(key) for key in keys}
    for key, one in asked.items():
        if isinstance(one, list) and isinstance(limit.get(key), list):
            asked[key] = [x for x in one if x not in limit[key]] or one
    return _shown(asked) or "more", _shown({key: limit.get(key) for key in keys}) or "less"


def _calls(section: Sections) -> set[str]:
    """The system calls that an expanded profile allows in some form."""
    rules = json.loads(section["source"])["syscalls"]
    return {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


def _exceeds(name: str, key: str, value: Sections, limit: Sections) -> bool:
    """Whether the limit with this one key of `value` is above the limit."""
    from shim import product

    dim = next(one for one in product.DIMENSIONS if name == one.NAME)
    mixed = {
        one: value[one] if one == key else limit[one] for one in {**limit, key: None} if one != key or key in value
    }
    return not dim.leq(dim.from_policy(mixed), dim.from_policy(limit))


def _shown(section: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {'nothing' if one is None else json.dumps(one)}" for key, one in section.items())


def form_of(resolved: Resolved) -> dict[str, Any]:
    sections = {name: resolved.sections.get(name) for name in SECTIONS}
    if isinstance(sections["paths"], dict) and sections["paths"].get("rootfs") == "writable":
        sections["paths"] = {**sections["paths"], "scratch": {}}  # the root itself can be written
    sections["seccomp"] = _seccomp(sections["seccomp"], resolved.directory)
    sections["network"] = network_source.expand(sections["network"], _reasoned(resolved), resolved.pool)
    canonical = json.dumps({"schema": SCHEMA, "sections": sections}, sort_keys=True, separators=(",", ":"))
    return {
        "format": policy.FORMAT,
        "name": resolved.name,
        "about": resolved.about,
        "pool": resolved.pool,
        "digest": "sha256:" + hashlib.sha256(canonical.encode()).hexdigest(),
        "sections": sections,
        "why": resolved.why,
        "expires": resolved.expires,
    }


def _reasoned(resolved: Resolved) -> set[str]:
    """The network's peers that somebody gave a reason for."""
    prefix = "network."
    return {name[len(prefix) :] for name, reason in resolved.why.items() if name.startswith(prefix) and "why" in reason}


def _seccomp(section: Any, directory: str) -> Any:
    """The seccomp section as its dimension reads it; `directory` holds the profile that it may name as file."""
    if section is None or section == "top":
        return section
    from shim.cold.seccomp import seccomp_source

    return seccomp_source.expand(section, directory)


def _code() -> dict[str, list[int]]:
    """Files of ours among the sources: an upgrade of agentshim may give the same text another meaning."""
    directory = policy.PACKAGE + "/policies/seccomp"
    profiles = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    files = [__file__, network_source.__file__, *(f"{directory}/{name}" for name in profiles if name.endswith(".toml"))]
    hooks = os.path.dirname(lock.__file__)
    files += [f"{hooks}/{name}" for name in sorted(os.listdir(hooks)) if name.endswith(".py")]
    return {path: policy.record(os.lstat(path)) for path in files}


def compile_stored(name: str, config: policy.Config) -> dict[str, Any]:
    """compile(), kept for the next container if /var can be written. policy.load has checked the directories."""
    form = compile(name, config)
    store(f"{config.var}/policies/{name}.json", form)
    return form


def compile_config(etc: str, var: str) -> dict[str, Any]:
    """The compiled form of config.toml, kept for the next container if /var can be written."""
    path = etc + "/config.toml"
    policy.check_chain(etc)
    source = read(path, "config")
    form = {
        "format": policy.FORMAT,
        "config": {**policy.DEFAULTS, **{key: source.data[key] for key in policy.DEFAULTS if key in source.data}},
        "source": {path: source.stat, __file__: policy.record(os.lstat(__file__))},
    }
    store(var + "/config.json", form)
    return form


def compile_builtin(name: str) -> dict[str, Any]:
    """A built-in policy's form for the package: within the built-in limit, without the files of this machine."""
    config = policy.Config({"limit": name if name == policy.TOP_POLICY else policy.BUILTIN_LIMIT})
    return {**compile(name, config), "source": {}}


def store(path: str, form: dict[str, Any], mode: int = 0o600) -> bool:
    """Writes a form by rename; false, and nothing changed, where that is not possible. Costs a reader nothing."""
    directory = os.path.dirname(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        for one in (os.path.dirname(directory), directory):
            if not os.path.isdir(one):
                os.mkdir(one, 0o700)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            data = wire.dumps(form)
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except OSError:
        _removed(temporary)
        return False
    return True


def _removed(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
