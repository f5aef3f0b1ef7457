"""Random values for every dimension, made as the product makes them: from specs, from policies, and by meets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from shim import product
from shim.dim import annotations as notes
from shim.dim import capabilities, mounts, namespaces, rlimits, scheduling
from shim.hostpaths import Source
from shim.kernel import Facts

LABELS = ("l1", "l2", "unconfined", "")
PATHS = ("/proc/keys", "/proc/kcore", "/sys/firmware", "/proc/sys", "/x")
SOURCES = {
    "/srv/data": Source("volume", "/srv/data"),
    "/srv/loose": Source("volume", "/srv/loose", False),
    "/run/app.sock": Source("socket", "/run/app.sock"),
    "/etc": Source("authority", "/etc"),
    "/usr/bin/docker-init": Source("system", "/usr/bin/docker-init"),
    "/e/hosts": Source("engine", "/e/hosts"),
    "/proc": Source("authority", "/proc"),
    "/dev/shm": Source("authority", "/dev/shm"),
    "/gone": Source("missing", "/gone"),
    "root:rootfs": Source("volume", "/b/rootfs"),
    "root:/": Source("authority", "/"),
}
NAMESPACES = {
    **{(kind, "/ns/host"): "host" for kind in namespaces.KINDS},
    **{(kind, "/ns/a"): "at:1:1" for kind in namespaces.KINDS},
    **{(kind, "/ns/b"): "at:1:2" for kind in namespaces.KINDS},
}


if TYPE_CHECKING:
    from shim.lattice import Spec


def facts() -> Facts:
    """A host that knows SOURCES and NAMESPACES, with no LSM and nothing asked beside the spec."""
    out = Facts()
    out.sources = dict(SOURCES)
    out.namespaces = dict(NAMESPACES)
    out.programs = {"/usr/bin/dockerd": "/usr/bin/dockerd", "/opt/hook": "/opt/hook", "/tmp/evil": ""}
    out.launcher = "/usr/bin/agentshim"
    return out


FACTS = facts()


def _some(items: Any, **kw: Any) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(list(items)), unique=True, max_size=4, **kw)


CAPS = ["CAP_" + name for name in capabilities.CAPABILITIES[:8]]
capability_keys = st.fixed_dictionaries({}, optional={name: _some(CAPS) for name in capabilities.SETS})
access = {"access": st.sampled_from(["r", "rw", "rwm", "m"])}
rule = st.one_of(
    st.fixed_dictionaries({"allow": st.booleans()}, optional={"type": st.just("a"), **access}),
    st.fixed_dictionaries(
        {"allow": st.booleans(), "type": st.sampled_from(["b", "c"])},
        optional={"major": st.sampled_from([-1, 1, 10]), "minor": st.sampled_from([-1, 3, 229]), **access},
    ),
)
node = st.builds(
    lambda path, number: {"path": path, "type": "c", "major": number[0], "minor": number[1]},
    st.sampled_from(["/dev/fuse", "/dev/null", "/dev/x"]),
    st.sampled_from([(10, 229), (1, 3), (1, 1)]),
)
option = st.sampled_from([*mounts.OPTIONS, "rbind", "bind", "size=5"])
mount = st.one_of(
    st.builds(
        lambda place, source, options: {"destination": place, "type": "bind", "source": source, "options": options},
        st.sampled_from(["/work", "/work/sub", "/data", "/dev/shm", "/proc", "/s"]),
        st.sampled_from([source for source in SOURCES if source.startswith("/")]),
        st.lists(option, max_size=4),
    ),
    st.builds(
        lambda pair, options: {"destination": pair[1], "type": pair[0], "source": pair[0], "options": options},
        st.sampled_from([*mounts.SYSTEM, ("tmpfs", "/tmp"), ("overlay", "/o"), ("proc", "/p")]),
        st.lists(option.filter(lambda one: one not in ("bind", "rbind")), max_size=3),
    ),
)
namespace_list = _some(namespaces.KINDS).flatmap(
    lambda kinds: st.tuples(*(st.sampled_from(["", "/ns/host", "/ns/a", "/ns/b"]) for _ in kinds)).map(
        lambda paths: [{"type": k, **({"path": p} if p else {})} for k, p in zip(kinds, paths, strict=True)]
    )
)
resource_keys = st.fixed_dictionaries(
    {},
    optional={
        "pids": st.builds(lambda n: {"limit": n}, st.sampled_from([-1, 0, 5, 100])),
        "memory": st.fixed_dictionaries(
            {}, optional={"limit": st.sampled_from([-1, 0, 4096, 1 << 30]), "disableOOMKiller": st.booleans()}
        ),
        "cpu": st.fixed_dictionaries(
            {},
            optional={"quota": st.sampled_from([-1, 0, 5000, 150000]), "period": st.sampled_from([0, 50000, 100000])},
        ),
        "unified": st.dictionaries(
            st.sampled_from(["pids.max", "memory.max", "cpu.max", "cpu.weight", "memory.low"]),
            st.sampled_from(["max", "5", "100000 50000"]).filter(lambda text: True),
            max_size=2,
        ).map(lambda d: {k: v.split()[0] if k != "cpu.max" else v for k, v in d.items()}),
        "network": st.just({"classID": 7}),
        "devices": st.lists(rule, max_size=4),
    },
)


@st.composite
def specs(draw: Any) -> Spec:
    """A spec of any authority, well formed, over a small world so that values meet."""
    process: Spec = {
        "args": ["x"],
        "cwd": draw(st.sampled_from(["/", "/proc/self/fd/7", "/a/../b"])),
        "user": {"uid": draw(st.sampled_from([0, 1000])), "gid": 0},
    }
    if draw(st.booleans()):
        process["capabilities"] = draw(capability_keys)
    if draw(st.booleans()):
        process["noNewPrivileges"] = draw(st.booleans())
    if draw(st.booleans()):
        kinds = draw(_some(rlimits.TYPES))
        process["rlimits"] = [
            {"type": k, "soft": 5, "hard": draw(st.sampled_from([5, 9, rlimits.INFINITY]))} for k in kinds
        ]
    if draw(st.booleans()):
        process["oomScoreAdj"] = draw(st.integers(scheduling.OOM_MIN, scheduling.OOM_MAX))
    if draw(st.booleans()):
        process["scheduler"] = {"policy": draw(st.sampled_from(["SCHED_FIFO", "SCHED_OTHER"])), "nice": -1}
    root: Spec = {"path": draw(st.sampled_from(["rootfs", "/"]))}
    if draw(st.booleans()):
        root["readonly"] = draw(st.booleans())
    names = ["net.ipv4.ip_forward", "kernel.shmmax", "net/ipv4/ip_forward"]
    linux: Spec = {
        "namespaces": draw(namespace_list),
        "resources": draw(resource_keys),
        "maskedPaths": draw(_some(PATHS)),
        "readonlyPaths": draw(_some(PATHS)),
        "devices": draw(st.lists(node, max_size=3)),
        "sysctl": draw(st.dictionaries(st.sampled_from(names), st.sampled_from(["0", "1"]), max_size=2)),
        "cgroupsPath": draw(st.sampled_from(["", "/a/b", "/", "../x"])),
    }
    if draw(st.booleans()):
        linux["rootfsPropagation"] = draw(st.sampled_from(["shared", "rslave", "private"]))
    if draw(st.booleans()):
        linux["personality"] = {"domain": "LINUX32"}
    for place, key in ((process, "apparmorProfile"), (process, "selinuxLabel"), (linux, "mountLabel")):
        if draw(st.booleans()):
            place[key] = draw(st.sampled_from(LABELS))
    hook = st.sampled_from(
        [{"path": "/usr/bin/dockerd"}, {"path": "/opt/hook", "args": ["h", "x"]}, {"path": "/tmp/evil"}]
    )
    return {
        "ociVersion": "1.0.2",
        "process": process,
        "root": root,
        "mounts": draw(st.lists(mount, max_size=4)),
        "hooks": {"prestart": draw(st.lists(hook, max_size=2))},
        "annotations": draw(
            st.dictionaries(st.sampled_from(["a", "bundle", *notes.UNSAFE[:2], "run.oci.hooks.stderr"]), st.just("v"))
        ),
        "linux": linux,
    }


port = st.sampled_from([0, 52, 53, 54, 65535])
outbound = st.tuples(
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from(["10.0.0.0/31", "10.0.0.0/32", "10.0.0.1", "10.0.0.2", "0.0.0.0/0", "::/0", "2001:db8::/127"]),
    port,
    port,
).map(lambda g: (g[0], g[1], min(g[2:]), max(g[2:])))
inbound = st.tuples(st.sampled_from(["tcp", "udp"]), port, port).map(lambda g: (g[0], min(g[1:]), max(g[1:])))

SECTIONS: dict[str, st.SearchStrategy[Any]] = {
    "capabilities": st.builds(
        lambda g, a, n: {"grant": g, "ambient": a, "new_privileges": n},
        _some([c[4:] for c in CAPS]),
        _some([c[4:] for c in CAPS]),
        st.booleans(),
    ),
    "user": st.sampled_from([{"allow": "any"}, {"allow": "non-root"}]),
    "rlimits": st.dictionaries(st.sampled_from(["core", "nofile", "cpu"]), st.sampled_from([0, 5, 9])),
    "scheduling": st.builds(lambda n: {"oom_score_adj": n}, st.integers(-1000, 1000)),
    "paths": st.builds(
        lambda m, r, w, s: {"masked": m, "readonly": r, "rootfs": w, "scratch": s},
        _some(PATHS),
        _some(PATHS),
        st.sampled_from(["writable", "readonly"]),
        st.dictionaries(
            st.sampled_from(["/tmp", "/run"]),
            st.fixed_dictionaries({}, optional={"size": st.sampled_from(["64m", "1g"]), "exec": st.booleans()}),
        ),
    ),
    "mounts": st.builds(
        lambda v, e, w, s: {"volumes": v, "exec": e, "workspace": w, "sockets": s},
        st.sampled_from(["rw", "ro", "none"]),
        st.booleans(),
        _some(["/work", "/data"]),
        _some(["/run/app.sock"]),
    ),
    "namespaces": st.builds(lambda s, h: {"shared": s, "host": h}, _some(namespaces.KINDS), _some(namespaces.KINDS)),
    "devices": st.builds(
        lambda a: {"add": a},
        st.lists(
            st.builds(
                lambda n, acc: {"path": "/dev/x", "type": "c", "major": n[0], "minor": n[1], "access": acc},
                st.sampled_from([(10, 229), (10, -1), (-1, 3)]),
                st.sampled_from(["rw", "rwm", "r"]),
            ),
            max_size=2,
        ),
    ),
    "resources": st.dictionaries(
        st.sampled_from(["pids", "memory", "memory_swap"]), st.sampled_from([5, 4096, 1 << 20])
    ),
    "lsm": st.dictionaries(st.sampled_from(["apparmor", "selinux"]), st.sampled_from(["confined", "l1", "l2"])),
    "sysctl": st.builds(lambda a: {"allow": a}, _some(["net.*", "net.ipv4.*", "kernel.shmmax", "net.ipv4.ip_forward"])),
    "hooks": st.builds(lambda a: {"allow": a}, _some(["/opt/hook"])),
    "annotations": st.builds(lambda u: {"unsafe": u}, st.booleans()),
    "process": st.just({}),
    "network": st.builds(
        lambda m, o, i, s, d, c: {"mode": m, "outbound": o, "inbound": i, "services": s, "dns": d, "icmp": c},
        st.sampled_from(["engine", "confine", "isolated", "auto"]),
        st.lists(outbound, max_size=4),
        st.one_of(st.just("any"), st.lists(inbound, max_size=3)),
        st.lists(inbound, max_size=2),
        st.booleans(),
        st.booleans(),
    ),
    "invocation": st.builds(
        lambda f, n, v: {**dict.fromkeys(f, True), "listen_fds": n, "verbs": v},
        _some(["notify_socket", "no_pivot"]),
        st.integers(0, 3),
        _some(["checkpoint", "restore"]),
    ),
}


def values(dim: Any) -> st.SearchStrategy[Any]:
    """Values of one dimension: what specs ask, what policies allow, the two ends, and meets of those."""
    asked = specs().map(lambda spec: dim.from_spec(spec, FACTS))
    allowed = st.one_of(st.sampled_from([None, "top"]), SECTIONS[dim.NAME]).map(dim.from_policy)
    base = st.one_of(asked, allowed, st.sampled_from([dim.TOP, dim.BOTTOM]))
    return st.one_of(base, st.builds(dim.meet, base, base))


def ceilings() -> st.SearchStrategy[dict[str, Any]]:
    """Whole policies over all dimensions but seccomp, which has laws of its own."""
    names = [dim.NAME for dim in OTHERS]
    optional = {name: st.one_of(st.just("top"), SECTIONS[name]) for name in names}
    return st.fixed_dictionaries(optional).map(lambda sections: product.from_policy(sections, OTHERS))


OTHERS = tuple(dim for dim in product.DIMENSIONS if dim.NAME != "seccomp")
