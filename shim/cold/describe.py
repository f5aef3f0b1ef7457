"""Each dimension's values in words, for `explain`. Cold: a container's start never describes anything."""

from __future__ import annotations

from typing import Any

from shim.dim import annotations as notes
from shim.dim import (
    capabilities,
    devices,
    hooks,
    invocation,
    lsm,
    mounts,
    namespaces,
    network,
    paths,
    process,
    resources,
    rlimits,
    scheduling,
    seccomp,
    sysctl,
    user,
)
from shim.lattice import Everything


def words(name: str, value: Any) -> str:
    """The value of the dimension `name` on one line."""
    return str(_WORDS[name](value))


def _names(names: Any, anything: str = "any") -> str:
    if names is None or isinstance(names, Everything):
        return anything
    return ", ".join(sorted(str(name) for name in names)) or "none"


def _capabilities(value: capabilities.Capabilities) -> str:
    held = 0
    for mask in value.sets:
        held |= mask
    names = capabilities.names_of(held)
    shown = "all" if held == capabilities.ALL else ", ".join(name[4:] for name in names) or "none"
    return shown + ("" if value.gain else "; no new privileges")


def _paths(value: paths.Paths) -> str:
    if value.scratch is None:
        root = "root writable"
    else:
        root = "root read-only, scratch " + _names(
            f"{p} {'' if s is None else f'{s >> 20}m'}" for p, s, _ in value.scratch
        )
    masked = "all" if isinstance(value.masked, Everything) else len(value.masked)
    readonly = "all" if isinstance(value.readonly, Everything) else len(value.readonly)
    return f"{root}; {masked} masked, {readonly} read-only paths"


def _mounts(value: mounts.Mounts) -> str:
    if value.entries is not None:
        binds = [entry for entry in value.entries if entry[3] and entry[0] != mounts.ROOT]
        shown = ", ".join(f"{e[1]} ({e[2]}, {'rw' if e[4] & mounts.WRITE else 'ro'})" for e in binds)
        return f"{len(value.entries)} mounts" + (f", of the host: {shown}" if shown else "")
    if value.rights == mounts.TOP.rights:
        return "any"
    bits = value.rights[mounts.CLASSES.index("volume")]
    volumes = "none" if bits == mounts.REFUSED else "rw" if bits & mounts.WRITE else "ro"
    return f"volumes {volumes}; sockets {_names(value.sockets)}; no host authority"


def _namespaces(value: namespaces.Namespaces) -> str:
    groups: dict[str, list[str]] = {}
    for kind, what in zip(namespaces.KINDS, value.kinds, strict=True):
        groups.setdefault("shared" if what.startswith("at:") else what, []).append(kind)
    return "; ".join(f"{what}: {', '.join(kinds)}" for what, kinds in sorted(groups.items()))


def _devices(value: devices.Devices) -> str:
    if value.all_but:
        return "all" + (f" but {len(value.rules)} rules" if value.rules else "")
    extra = {rule[:3] for rule in value.rules - devices.STANDARD}
    named = ", ".join(f"{kind} {major}:{minor}" for kind, major, minor in sorted(extra)).replace("-1", "*")
    return "standard" + (f", {named}" if named else "")


def _resources(value: resources.Resources) -> str:
    limits = [
        f"{name} {limit / 1e6:g}" if name == "cpus" else f"{name} {limit}"
        for (name, _, _), limit in zip(resources.LIMITS, value.limits, strict=True)
        if limit is not None
    ]
    return ", ".join(limits) or "unlimited"


def _rlimits(value: rlimits.Rlimits) -> str:
    shown = [
        f"{kind[7:].lower()} {hard}"
        for kind, (_, hard) in zip(rlimits.TYPES, value.limits, strict=True)
        if hard is not None
    ]
    return ", ".join(shown) or "unlimited"


def _labels(value: lsm.Labels) -> str:
    rooms = zip(("apparmor", "selinux", "mounts"), value.labels, strict=True)
    return ", ".join(f"{room} {label}" for room, label in rooms if label) or "none"


def _seccomp(value: Any) -> str:
    if value == seccomp.TOP:
        return "no filter"
    return f"filter {value.digest[:12]}"


_WORDS: dict[str, Any] = {
    notes.NAME: lambda value: "any" if value.unsafe is None else _names(key for key, _ in value.unsafe),
    capabilities.NAME: _capabilities,
    devices.NAME: _devices,
    hooks.NAME: lambda value: (
        _names(hook[1] for hook in value.hooks) if value.hooks is not None else _names(value.files)
    ),
    invocation.NAME: lambda value: _names(value.flags | value.verbs),
    lsm.NAME: _labels,
    mounts.NAME: _mounts,
    namespaces.NAME: _namespaces,
    network.NAME: network.words,
    paths.NAME: _paths,
    process.NAME: lambda value: "any" if value.cwd is None else (value.cwd or "clean"),
    resources.NAME: _resources,
    rlimits.NAME: _rlimits,
    scheduling.NAME: lambda value: f"oom_score_adj {value.oom}, claims {_names(value.claims)}",
    seccomp.NAME: _seccomp,
    sysctl.NAME: lambda value: (
        _names(key for key, _ in value.pairs) if value.pairs is not None else _names(value.names)
    ),
    user.NAME: lambda value: value.who if isinstance(value.who, str) else f"uid {value.who[0]} gid {value.who[1]}",
}
