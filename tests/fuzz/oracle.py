"""What a written spec gives away, judged from its JSON by rules of our own: never through a dimension's order.

Belongs here: a second opinion, cheap and blunt, on capabilities, namespaces, mounts, devices, paths, limits, hooks and
annotations; and the same for a policy's sections against its host limit. Each function yields one line an excess.
Next door: `targets` asks both this and the project's own `leq`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
KINDS = ("mount", "pid", "network", "ipc", "uts", "user", "cgroup", "time")
STANDARD = {("c", 1, 3), ("c", 1, 5), ("c", 1, 7), ("c", 1, 8), ("c", 1, 9), ("c", 5, 0), ("c", 5, 2)}
PROBES = [(kind, major, minor) for kind in "bc" for major in (1, 5, 8, 10, 136, 254) for minor in (0, 1, 3, 5, 229)]
SCRATCH = "agentshim-scratch"
ORDERS = ("org.criu.", "org.systemd.property.", "run.oci.", "krun.", "module.wasm.", "io.katacontainers.")


def section(sections: dict[str, Any], name: str) -> Any:
    """A section as a mapping; {} for none; None for "top"."""
    found = sections.get(name)
    return None if found == "top" else found or {}


def excesses(out: Any, asked: Any, sections: dict[str, Any], world: dict[str, Any]) -> Iterator[str]:
    """What `out` has beyond `sections`, or beyond `asked`. `world`: {"host": paths of host namespaces,
    "engines": sources that are an engine's own, "hooks": ours}.
    """
    yield from capabilities(out, asked, section(sections, "capabilities"))
    yield from namespaces(out, section(sections, "namespaces"), world)
    yield from mounts(out, asked, section(sections, "mounts"), world)
    yield from devices(out, asked, section(sections, "devices"))
    yield from paths(out, asked, section(sections, "paths"))
    yield from limits(out, asked, sections)
    yield from orders(out, asked, sections, world)
    yield from carried(out, asked)


def capabilities(out: Any, asked: Any, policy: Any) -> Iterator[str]:
    before, after = asked["process"].get("capabilities") or {}, out["process"].get("capabilities") or {}
    for name in SETS:
        given = {cap.upper().removeprefix("CAP_") for cap in after.get(name) or ()}
        if policy is not None:
            allowed = set(policy.get("grant", ()))
            if name in ("inheritable", "ambient"):
                allowed &= set(policy.get("ambient", ()))
            yield from (f"{name}: {cap} is not the policy's" for cap in given - allowed)
        had = {cap.upper().removeprefix("CAP_") for cap in before.get(name) or ()}
        yield from (f"{name}: {cap} was not asked" for cap in given - had)
    gains = not out["process"].get("noNewPrivileges", False)
    if gains and policy is not None and not policy.get("new_privileges"):
        yield "noNewPrivileges is not set"
    if gains and asked["process"].get("noNewPrivileges"):
        yield "noNewPrivileges was taken away"


def namespaces(out: Any, policy: Any, world: dict[str, Any]) -> Iterator[str]:
    named = {one["type"]: one.get("path") or "" for one in (out.get("linux") or {}).get("namespaces") or ()}
    for kind in KINDS if policy is not None else ():
        host = kind not in named or named[kind] in world["host"]
        if host and kind not in policy.get("host", ()):
            yield f"namespace {kind} is the host's"
        if not host and named[kind] and kind not in (*policy.get("host", ()), *policy.get("shared", ())):
            yield f"namespace {kind} is shared"


def mounts(out: Any, asked: Any, policy: Any, world: dict[str, Any]) -> Iterator[str]:
    ours = [one for one in out.get("mounts") or () if one.get("source") != SCRATCH]
    theirs = [one for one in asked.get("mounts") or () if one.get("source") != SCRATCH]
    if [_place(one) for one in ours] != [_place(one) for one in theirs]:
        yield f"mounts: {[_place(one) for one in theirs]} became {[_place(one) for one in ours]}"
    for mount in ours if policy is not None else ():
        options = mount.get("options") or []
        bind = mount.get("type") == "bind" or "bind" in options or "rbind" in options
        source, place = mount.get("source") or "", _place(mount)
        last = [one[-2:] for one in options if one in ("ro", "rw", "rro", "rrw")][-1:]
        run = [one for one in options if one in ("exec", "noexec", "rexec", "rnoexec")][-1:]
        inside = any(place == one or place.startswith(one + "/") for one in policy.get("workspace", ()))
        if bind and source in world["volumes"]:
            volumes = "rw" if inside else policy.get("volumes", "none")
            if volumes == "none" or (volumes == "ro" and last != ["ro"]):
                yield f"mount {place}: a volume, {last}, where the policy says {volumes}"
            if not inside and not policy.get("exec") and run not in (["noexec"], ["rnoexec"]):
                yield f"mount {place}: programs on a volume"
        elif bind and source not in world["engines"]:
            socket = source in world["sockets"] and source in policy.get("sockets", ())
            if not socket and not (source in world["system"] and last == ["ro"]):
                yield f"mount {place}: {source} of the host"
        spread = [one for one in options if one.removeprefix("r") in ("shared", "slave", "private", "unbindable")][-1:]
        if spread in (["shared"], ["rshared"]) or "remount" in options or "copy-symlink" in options:
            yield f"mount {place}: {options}"


def _place(mount: Any) -> str:
    return "/" + "/".join(part for part in mount.get("destination", "").split("/") if part not in ("", "."))


def devices(out: Any, asked: Any, policy: Any) -> Iterator[str]:
    linux, before = out.get("linux") or {}, asked.get("linux") or {}
    rules = (linux.get("resources") or {}).get("devices") or []
    granted = [
        (one["type"], one["major"], one["minor"], one.get("access", "rw")) for one in (policy or {}).get("add", ())
    ]
    for probe in PROBES if policy is not None else ():
        for letter in "rwm":
            if probe in STANDARD or probe[:2] == ("c", 136):
                continue  # delegates allow these whatever a spec says
            if _allowed(rules, probe, letter) and not any(_matches(one, probe, letter) for one in granted):
                yield f"device {probe} may be {letter}"
    for node in linux.get("devices") or ():
        if node not in (before.get("devices") or ()):
            yield f"device node {node['path']} was not asked"
        if policy is not None and not str(node["path"]).startswith("/dev/"):
            yield f"device node {node['path']} is elsewhere"
    if policy is not None and linux.get("netDevices"):
        yield "a network device of the host"


def _allowed(rules: list[Any], probe: tuple[str, int, int], letter: str) -> bool:
    """As cgroup v2's program decides: of the rules that match, the last one; everything is denied before the first."""
    allowed = False
    for rule in rules:
        kind, access = rule.get("type") or "a", rule.get("access") or "rwm"
        numbers = tuple(-1 if rule.get(n) is None or rule[n] < 0 else rule[n] for n in ("major", "minor"))
        if _matches(({"u": "c"}.get(kind, kind), *numbers, access), probe, letter):
            allowed = bool(rule.get("allow"))
    return allowed


def _matches(rule: tuple[Any, ...], probe: tuple[str, int, int], letter: str) -> bool:
    same = (rule[0] in ("a", probe[0]), rule[1] in (-1, probe[1]), rule[2] in (-1, probe[2]))
    return all(same) and letter in rule[3]


def paths(out: Any, asked: Any, policy: Any) -> Iterator[str]:
    linux, before = out.get("linux") or {}, asked.get("linux") or {}
    for key, name in (("maskedPaths", "masked"), ("readonlyPaths", "readonly")):
        wanted = set((policy or {}).get(name, ())) | set(before.get(key) or ())
        yield from (f"{key}: {one} is missing" for one in wanted - set(linux.get(key) or ()))
    if policy is not None and policy.get("rootfs") != "writable" and not out["root"].get("readonly"):
        yield "the root is writable"
    if asked["root"].get("readonly") and not out["root"].get("readonly"):
        yield "the root became writable"


def limits(out: Any, asked: Any, sections: dict[str, Any]) -> Iterator[str]:
    policy = section(sections, "rlimits")
    named = {one["type"]: one["hard"] for one in out["process"].get("rlimits") or ()}
    for name, most in (policy or {}).items():
        if named.get("RLIMIT_" + name.upper(), 2**64) > most:
            yield f"rlimit {name} above {most}"
    policy = section(sections, "resources")
    resources = (out.get("linux") or {}).get("resources") or {}
    for name, group in (("pids", "pids"), ("memory", "memory")):
        most = (policy or {}).get(name)
        limit = (resources.get(group) or {}).get("limit") or 0
        if most is not None and not 0 < limit <= most:
            unified = (resources.get("unified") or {}).get(f"{name}.max", "max")
            if limit > 0 or unified == "max" or int(unified) > most:
                yield f"{name} limit {limit} above {most}"
    policy = section(sections, "scheduling")
    if policy is not None and sections.get("scheduling") is not None:
        if out["process"].get("oomScoreAdj", 0) < policy.get("oom_score_adj", 0):
            yield "oomScoreAdj is lower than allowed"
        if (out["process"].get("scheduler") or {}).get("policy") in ("SCHED_FIFO", "SCHED_RR", "SCHED_DEADLINE"):
            yield "a real-time scheduler"


def orders(out: Any, asked: Any, sections: dict[str, Any], world: dict[str, Any]) -> Iterator[str]:
    """What makes the delegate, or the host's root, do something."""
    policy = section(sections, "annotations")
    for name in out.get("annotations") or {}:
        if policy is not None and not policy.get("unsafe") and (name == "bundle" or name.startswith(ORDERS)):
            yield f"annotation {name}"
    policy = section(sections, "hooks")
    for hook in [one for hooks in (out.get("hooks") or {}).values() for one in hooks or ()]:
        if hook in world["hooks"]:
            continue
        setkey = str(hook["path"]).endswith("/dockerd") and (hook.get("args") or [""])[0] == "libnetwork-setkey"
        if policy is not None and not setkey and world["programs"].get(hook["path"], "") not in policy.get("allow", ()):
            yield f"hook {hook['path']}"
    policy = section(sections, "sysctl")
    for name in (out.get("linux") or {}).get("sysctl") or {} if policy is not None else ():
        dotted = name.replace("/", ".")
        if not any(
            dotted == one or (one[-1:] == "*" and dotted.startswith(one[:-1])) for one in policy.get("allow", ())
        ):
            yield f"sysctl {name}"
    if section(sections, "process") is not None:
        if (out.get("linux") or {}).get("personality", {}).get("domain"):
            yield "a personality"
        if out["process"]["cwd"].startswith(("/proc", "/sys/")) or ".." in out["process"]["cwd"].split("/"):
            yield f"cwd {out['process']['cwd']}"
    policy = section(sections, "user")
    if policy is not None and policy.get("allow") != "any" and (out["process"].get("user") or {}).get("uid", 0) == 0:
        yield "root"


def carried(out: Any, asked: Any) -> Iterator[str]:
    """What no dimension owns stays as it was asked."""
    for key in ("args", "env", "terminal", "user", "cwd"):
        if out["process"].get(key) != asked["process"].get(key):
            yield f"process.{key} changed"
    if out.get("root", {}).get("path") != asked.get("root", {}).get("path"):
        yield "root.path changed"


def above(sections: dict[str, Any], limit: dict[str, Any]) -> Iterator[str]:
    """What a policy's sections have beyond the sections of its host limit (which has no top)."""
    for name in (one for one, value in sections.items() if value == "top" and limit.get(one) != "top"):
        yield f"{name} is top"
    mine = {name: value for name, value in sections.items() if isinstance(value, dict)}

    def has(name: str, key: str) -> list[Any]:
        return list(mine.get(name, {}).get(key, ()))

    def may(name: str, *keys: str) -> list[Any]:
        return [one for key in keys for one in limit[name].get(key, ())]

    for name, key, keys in (
        ("capabilities", "grant", ("grant",)),
        ("capabilities", "ambient", ("ambient",)),
        ("namespaces", "host", ("host",)),
        ("namespaces", "shared", ("host", "shared")),
        ("devices", "add", ("add",)),
        ("hooks", "allow", ("allow",)),
        ("mounts", "sockets", ("sockets",)),
        ("invocation", "verbs", ("verbs",)),
    ):
        yield from (f"{name}.{key}: {one}" for one in has(name, key) if one not in may(name, *keys))
    for name, key in (("capabilities", "new_privileges"), ("annotations", "unsafe"), ("invocation", "no_pivot")):
        if mine.get(name, {}).get(key) and not limit[name].get(key):
            yield f"{name}.{key}"
    for name in ("rlimits", "resources"):
        for key, most in limit[name].items():
            if name in mine and (mine[name].get(key) is None or mine[name][key] > most):
                yield f"{name}.{key} above {most}"
    for key in ("masked", "readonly"):
        if "paths" in mine:
            yield from (f"paths.{key} lacks {one}" for one in may("paths", key) if one not in has("paths", key))
    for one in has("sysctl", "allow"):
        allowed = may("sysctl", "allow")
        if one not in allowed and not any(a[-1:] == "*" and one.startswith(a[:-1]) for a in allowed):
            yield f"sysctl {one}"
