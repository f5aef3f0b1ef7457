"""The shape of an OCI runtime spec (1.3.0, Linux): which keys there are, of what type, and whose they are.

Why types matter here: crun 1.8.1 takes a value of the wrong type for absent (`"uid": "1000"` is root there), runc 1.1.5
refuses it. runc finds `process` under any case (`"PROCESS"`, `"proceſſ"`), crun does not. Null is absent to both as a
member of an object with a fixed vocabulary, so it is dropped there; in lists and maps they differ, so it is refused.

Belongs here: the vocabulary. Next door: `wire` is the syntax, and the rooms in OWNERS decide what a value may be.
"""

from __future__ import annotations

from shim.errors import Bug, Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = dict[str, Any]


class Object:
    """A fixed vocabulary. `fields`: key -> shape; `required`: keys that the OCI schema requires."""

    __slots__ = ("fields", "required")

    def __init__(self, fields: dict[str, Shape], *required: str) -> None:
        self.fields = fields
        self.required = required


class Map:
    """Free-form keys, each with a value of shape `inner`."""

    __slots__ = ("inner",)

    def __init__(self, inner: Shape) -> None:
        self.inner = inner


class List:
    """Any number of values of shape `inner`."""

    __slots__ = ("inner",)

    def __init__(self, inner: Shape) -> None:
        self.inner = inner


class Platform:
    """The part of another operating system: never accepted."""


if TYPE_CHECKING:
    Shape = type[str | bool] | tuple[int, int] | Object | Map | List | Platform

S, B = str, bool  # a string, a boolean; an integer is its range, the last value included
U16, U32, U64 = (0, (1 << 16) - 1), (0, (1 << 32) - 1), (0, (1 << 64) - 1)
I32, I64 = (-(1 << 31), (1 << 31) - 1), (-(1 << 63), (1 << 63) - 1)
TIMEOUT = (1, (1 << 63) - 1)  # seconds
STRINGS, STRING_MAP = List(S), Map(S)

ID_MAPS = List(Object({"containerID": U32, "hostID": U32, "size": U32}, "containerID", "hostID", "size"))
HOOKS = List(Object({"path": S, "args": STRINGS, "env": STRINGS, "timeout": TIMEOUT}, "path"))
THROTTLES = List(Object({"major": I64, "minor": I64, "rate": U64}, "major", "minor"))
OFFSET = Object({"secs": I64, "nanosecs": U32})

PROCESS = Object(
    {
        "terminal": B,
        "consoleSize": Object({"height": U64, "width": U64}, "height", "width"),
        "user": Object({"uid": U32, "gid": U32, "umask": U32, "additionalGids": List(U32), "username": S}),
        "args": STRINGS,
        "commandLine": S,
        "env": STRINGS,
        "cwd": S,
        "capabilities": Object(
            {
                "bounding": STRINGS,
                "effective": STRINGS,
                "inheritable": STRINGS,
                "permitted": STRINGS,
                "ambient": STRINGS,
            }
        ),
        "rlimits": List(Object({"type": S, "hard": U64, "soft": U64}, "type", "hard", "soft")),
        "noNewPrivileges": B,
        "apparmorProfile": S,
        "oomScoreAdj": I32,
        "selinuxLabel": S,
        "ioPriority": Object({"class": S, "priority": I32}, "class"),
        "scheduler": Object(
            {
                "policy": S,
                "nice": I32,
                "priority": I32,
                "flags": STRINGS,
                "runtime": U64,
                "deadline": U64,
                "period": U64,
            },
            "policy",
        ),
        "execCPUAffinity": Object({"initial": S, "final": S}),
    },
    "cwd",
)

RESOURCES = Object(
    {
        "unified": STRING_MAP,
        "devices": List(Object({"allow": B, "type": S, "major": I64, "minor": I64, "access": S}, "allow")),
        "pids": Object({"limit": I64}),  # the schema requires it; specs-go 1.3 leaves an unset one out
        "blockIO": Object(
            {
                "weight": U16,
                "leafWeight": U16,
                "weightDevice": List(
                    Object({"major": I64, "minor": I64, "weight": U16, "leafWeight": U16}, "major", "minor")
                ),
                "throttleReadBpsDevice": THROTTLES,
                "throttleWriteBpsDevice": THROTTLES,
                "throttleReadIOPSDevice": THROTTLES,
                "throttleWriteIOPSDevice": THROTTLES,
            }
        ),
        "cpu": Object(
            {
                "cpus": S,
                "mems": S,
                "shares": U64,
                "quota": I64,
                "burst": U64,
                "period": U64,
                "realtimePeriod": U64,
                "realtimeRuntime": I64,
                "idle": I64,
            }
        ),
        "hugepageLimits": List(Object({"pageSize": S, "limit": U64}, "pageSize", "limit")),
        "memory": Object(
            {
                "limit": I64,
                "reservation": I64,
                "swap": I64,
                "kernel": I64,
                "kernelTCP": I64,
                "swappiness": U64,
                "disableOOMKiller": B,
                "useHierarchy": B,
                "checkBeforeUpdate": B,
            }
        ),
        "network": Object(
            {"classID": U32, "priorities": List(Object({"name": S, "priority": U32}, "name", "priority"))}
        ),
        "rdma": Map(Object({"hcaHandles": U32, "hcaObjects": U32})),
    }
)

SECCOMP = Object(
    {
        "defaultAction": S,
        "defaultErrnoRet": U32,
        "flags": STRINGS,
        "listenerPath": S,
        "listenerMetadata": S,
        "architectures": STRINGS,
        "syscalls": List(
            Object(
                {
                    "names": STRINGS,
                    "action": S,
                    "errnoRet": U32,
                    "args": List(
                        Object({"index": U32, "value": U64, "valueTwo": U64, "op": S}, "index", "value", "op")
                    ),
                },
                "names",
                "action",
            )
        ),
    },
    "defaultAction",
)

LINUX = Object(
    {
        "devices": List(
            Object(
                {
                    "type": S,
                    "path": S,
                    "major": I64,
                    "minor": I64,
                    "fileMode": U32,  # the schema says 0o777; Go's os.FileMode, which engines pass on, has higher bits
                    "uid": U32,
                    "gid": U32,
                },
                "type",
                "path",
            )
        ),
        "netDevices": Map(Object({"name": S})),
        "uidMappings": ID_MAPS,
        "gidMappings": ID_MAPS,
        "namespaces": List(Object({"type": S, "path": S}, "type")),
        "resources": RESOURCES,
        "cgroupsPath": S,
        "rootfsPropagation": S,
        "seccomp": SECCOMP,
        "sysctl": STRING_MAP,
        "maskedPaths": STRINGS,
        "readonlyPaths": STRINGS,
        "mountLabel": S,
        "intelRdt": Object(
            {
                "closID": S,
                "schemata": STRINGS,
                "l3CacheSchema": S,
                "memBwSchema": S,
                "enableMonitoring": B,
                "enableCMT": B,  # 1.1 and 1.2 only
                "enableMBM": B,  # 1.1 and 1.2 only
            }
        ),
        "memoryPolicy": Object({"mode": S, "nodes": S, "flags": STRINGS}),
        "personality": Object({"domain": S, "flags": STRINGS}),
        "timeOffsets": Object({"boottime": OFFSET, "monotonic": OFFSET}),
    }
)

SPEC = Object(
    {
        "ociVersion": S,
        "process": PROCESS,
        "root": Object({"path": S, "readonly": B}, "path"),
        "hostname": S,
        "domainname": S,
        "mounts": List(
            Object(
                {
                    "destination": S,
                    "type": S,
                    "source": S,
                    "options": STRINGS,
                    "uidMappings": ID_MAPS,
                    "gidMappings": ID_MAPS,
                },
                "destination",
            )
        ),
        "hooks": Object(
            {
                "prestart": HOOKS,
                "createRuntime": HOOKS,
                "createContainer": HOOKS,
                "startContainer": HOOKS,
                "poststart": HOOKS,
                "poststop": HOOKS,
            }
        ),
        "annotations": STRING_MAP,
        "linux": LINUX,
        "solaris": Platform(),
        "windows": Platform(),
        "vm": Platform(),
        "zos": Platform(),
        "freebsd": Platform(),
    },
    "ociVersion",  # absent, runc 1.1.5 takes it for any version
    "process",  # optional in the schema; create and run refuse a spec without
    "root",
)

# Each key of the schema has one owner: a room of dim/, "carried" (passed on as it is), or "refused".
OWNERS = {
    "ociVersion": "carried",
    "process.terminal": "carried",
    "process.consoleSize": "carried",
    "process.user": "user",
    "process.args": "carried",
    "process.commandLine": "carried",
    "process.env": "carried",
    "process.cwd": "process",
    "process.capabilities": "capabilities",
    "process.rlimits": "rlimits",
    "process.noNewPrivileges": "capabilities",
    "process.apparmorProfile": "lsm",
    "process.oomScoreAdj": "scheduling",
    "process.selinuxLabel": "lsm",
    "process.ioPriority": "scheduling",
    "process.scheduler": "scheduling",
    "process.execCPUAffinity": "scheduling",
    "root.path": "mounts",
    "root.readonly": "paths",
    "hostname": "carried",
    "domainname": "carried",
    "mounts": "mounts",
    "hooks": "hooks",
    "annotations": "annotations",
    "linux.devices": "devices",
    "linux.netDevices": "devices",
    "linux.uidMappings": "namespaces",
    "linux.gidMappings": "namespaces",
    "linux.namespaces": "namespaces",
    "linux.resources.unified": "resources",
    "linux.resources.devices": "devices",
    "linux.resources.pids": "resources",
    "linux.resources.blockIO": "resources",
    "linux.resources.cpu": "resources",
    "linux.resources.hugepageLimits": "resources",
    "linux.resources.memory": "resources",
    "linux.resources.network": "resources",
    "linux.resources.rdma": "resources",
    "linux.cgroupsPath": "resources",
    "linux.rootfsPropagation": "mounts",
    "linux.seccomp": "seccomp",
    "linux.sysctl": "sysctl",
    "linux.maskedPaths": "paths",
    "linux.readonlyPaths": "paths",
    "linux.mountLabel": "lsm",
    "linux.intelRdt": "resources",
    "linux.memoryPolicy": "scheduling",
    "linux.personality": "process",
    "linux.timeOffsets": "namespaces",
    "solaris": "refused",
    "windows": "refused",
    "vm": "refused",
    "zos": "refused",
    "freebsd": "refused",
}


def check(spec: object, unknown: str = "refuse") -> tuple[Spec, list[str]]:
    """`spec` with nulls and unknown keys left out, and the dotted paths of the unknown ones; shares the rest.

    `unknown`: "refuse" (Invalid on the first unknown key) or "drop". Invalid, naming the key, on a wrong type, an
    integer out of range, a key that is a known one but for case, a missing required key, another platform's part, or
    an ociVersion other than 1.x. Values beyond that are for the rooms in OWNERS.
    """
    new, dropped = _checked(spec, SPEC, "", unknown)
    version = new["ociVersion"]
    if not version.startswith("1."):
        raise Invalid("spec", "ociVersion", version, "1.x", "write a spec of version 1")
    _runnable(new["process"], "process")
    return new, dropped


def check_process(process: object, unknown: str = "refuse") -> tuple[Spec, list[str]]:
    """check() for the process.json of `exec`, an object as under `process`."""
    new, dropped = _checked(process, PROCESS, "process", unknown)
    _runnable(new, "process")
    return new, dropped


def check_resources(resources: object, unknown: str = "refuse") -> tuple[Spec, list[str]]:
    """check() for the file of `update --resources`, an object as under `linux.resources`."""
    return _checked(resources, RESOURCES, "linux.resources", unknown)


def _checked(value: object, shape: Object, path: str, unknown: str) -> tuple[Spec, list[str]]:
    if unknown not in ("refuse", "drop"):
        raise Bug("spec", "unknown", unknown, "refuse or drop", "report this")
    dropped: list[str] = []
    return _object(value, shape, path, dropped if unknown == "drop" else None), dropped


def _runnable(process: Spec, path: str) -> None:
    """Without args there is nothing to run; no room owns them. runc says so too, but after the hooks' preparation."""
    if not process.get("args"):
        raise Invalid("spec", f"{path}.args", "no arguments", "one or more", "name the program to run")


def _object(value: object, shape: Object, path: str, dropped: list[str] | None) -> Spec:
    if type(value) is not dict:
        raise _wrong(path, value, "an object")
    fields, out = shape.fields, value
    for key, item in value.items():
        want = fields.get(key)
        if type(item) is want:  # a string or a boolean, as most are
            continue
        here = f"{path}.{key}" if path else key
        if want is None:
            _unknown(key, here, fields, dropped)
        elif item is not None:
            new = _value(item, want, here, dropped)
            if new is not item:
                out = dict(out) if out is value else out
                out[key] = new
            continue
        out = dict(out) if out is value else out
        del out[key]
    for key in shape.required:
        if key not in out:
            raise Invalid("spec", f"{path}.{key}" if path else key, "nothing", "a value", "add this key")
    return out


def _unknown(key: str, here: str, fields: dict[str, Shape], dropped: list[str] | None) -> None:
    """Record an unknown key, or refuse it. Never record one that runc would take for a known one."""
    folded = key.casefold()
    for known in fields:
        if known.casefold() == folded:
            raise Invalid("spec", here, key, known, f"write this key as {known}: runtimes differ on its case")
    if dropped is None:
        raise Invalid("spec", here, "an unknown key", "OCI runtime spec 1.3.0 for Linux", "remove this key")
    dropped.append(here)


def _value(value: object, shape: Shape, path: str, dropped: list[str] | None) -> object:
    if isinstance(shape, List):
        return _list(value, shape.inner, path, dropped)
    if isinstance(shape, Object):
        return _object(value, shape, path, dropped)
    if isinstance(shape, tuple):
        least, greatest = shape
        if type(value) is not int or not least <= value <= greatest:
            raise _wrong(path, value, f"an integer from {least} to {greatest}")
    elif isinstance(shape, Map):
        return _map(value, shape.inner, path, dropped)
    elif isinstance(shape, Platform):
        raise Invalid("spec", path, "another platform", "linux", "remove this key: only Linux containers run here")
    elif type(value) is not shape:
        raise _wrong(path, value, "a string" if shape is str else "true or false")
    return value


def _list(value: object, inner: Shape, path: str, dropped: list[str] | None) -> object:
    if type(value) is not list:
        raise _wrong(path, value, "an array")
    if inner is str:
        for item in value:
            if type(item) is not str:
                raise _wrong(f"{path}[{value.index(item)}]", item, "a string")
        return value
    new = [_value(item, inner, f"{path}[{at}]", dropped) for at, item in enumerate(value)]
    return value if all(map(_is, new, value)) else new


def _map(value: object, inner: Shape, path: str, dropped: list[str] | None) -> object:
    if type(value) is not dict:
        raise _wrong(path, value, "an object")
    new = {key: _value(item, inner, f"{path}.{key}", dropped) for key, item in value.items()}
    return value if all(map(_is, new.values(), value.values())) else new


def _is(a: object, b: object) -> bool:
    return a is b


def _wrong(path: str, value: object, ceiling: str) -> Invalid:
    if isinstance(value, str):
        asked: object = f"the string {value!r}"
    else:
        asked = "an object" if isinstance(value, dict) else "an array" if isinstance(value, list) else value
    return Invalid("spec", path or "the whole", asked, ceiling, "write a value of this type")
