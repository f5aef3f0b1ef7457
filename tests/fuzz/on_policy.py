"""policy: TOML -> schema -> sections: never above the host limit, by our own order and by oracle.py."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from shim import policy, product, wire
from shim.cold.policy import compile as cold
from shim.cold.policy import policy_joins, policy_source
from shim.cold.seccomp import seccomp_source
from shim.errors import ShimError
from tests.fuzz import grow, oracle, world
from tests.fuzz.properties import Over, demand, only, target

HEAD = 'schema = 1\nname = "x"\nabout = "a fuzzed policy"\n'
_LINES = r"""
base = "agent"
base = "dev"
base = "x"
base = "locked"
why = "because"
doc = "https://x.y/z"
expires = 2030-01-01
expires = 2020-01-01
expires = "2030-02-31"
schema = 2
schema = true
name = "y"
[[intents]]
name = "packages"
name = "outbound"
name = "workspace"
path = "/work"
name = "debug"
to = ["tcp:203.0.113.5:443"]
to = ["any"]
name = "bind-low-port"
name = "user-namespaces"
name = "shell"
add = [{ names = ["CHOWN"], why = "because" }]
add = [{ names = ["SYS_ADMIN"], why = "because" }]
add = [{ names = ["SYS_ADMIN"], why = "because", doc = "https://x.y", ambient = true }]
add = [{ names = ["SETUID"], why = "because", expires = 2020-01-01 }]
new_privileges = true
new_privileges = false
allow = "any"
allow = "non-root"
core = 0
nofile = 5
nofile = 99999999
core = -1
oom_score_adj = -5
oom_score_adj = 5
rootfs = "writable"
rootfs = "readonly"
masked = ["/proc/keys"]
masked = []
readonly = []
[paths.scratch]
"/tmp" = { size = "64m", exec = true }
"/x" = { size = 5 }
volumes = "rw"
volumes = "none"
exec = true
exec = false
workspace = ["/work"]
workspace = ["/"]
shared = ["network", "pid"]
host = ["network"]
host = ["user"]
host = ["pid"]
shared = ["cgroup"]
pids = 5
pids = 99999
memory = "64m"
memory = 1
cpus = 0.5
cpus = nan
cpus = inf
cpus = -1
apparmor = "unconfined"
apparmor = "confined"
allow = ["net.*"]
allow = ["kernel.core_pattern"]
allow = ["kernel.shm*"]
allow = ["*"]
unsafe = true
add = [{ path = "/dev/kvm", type = "c", major = 10, minor = 232, access = "rw", why = "because", doc = "https://x" }]
add = [{ path = "/opt/hook", why = "because", doc = "https://x.y" }]
sockets = [{ path = "/run/app.sock", why = "because", doc = "https://x.y" }]
notify_socket = true
listen_fds = 3
no_pivot = true
verbs = ["restore"]
preserve_fds = 1
profile = "agent"
profile = "dev"
profile = "x"
file = "x.json"
add = ["ptrace"]
add = ["@x"]
architectures = ["x86"]
mode = "confine"
mode = "engine"
mode = "x"
outbound = ["tcp:10.0.0.0/8:1-2"]
inbound = ["tcp:8080"]
inbound = ["any"]
dns = true
icmp = false
[a.b]
x = 1
]
"
a.
[capabilities
capabilities = 1
intents = 1
intents = []
seccomp = {}
add = 1
add = [1]
outbound = ["tcp:example.com:443"]
#
1979-05-27T07:32:00Z
[[capabilities.add]]
names = ["CHOWN"]
names = []
names = ["X"]
names = 5
name = "web-service"
ambient = true
"""
SECTION_LINES = [
    *(f"[{name}]" for name in policy_source.SECTIONS),
    *(f'{name} = "top"' for name in policy_source.SECTIONS),
    *_LINES.strip().split("\n"),
    # Whole ones: alone, each word of them is found too seldom for a short run to get above the host limit.
    '[[intents]]\nname = "debug"\ndoc = "https://x.y/z"',
    '[capabilities]\nadd = [{ names = ["SYS_ADMIN"], why = "because", doc = "https://x.y" }]',
    *("\ufeff", "\r", "\t", 'a="\\u0000"', "'''"),
]


class _Files:
    """policy_source.content without a disk: the fuzzed file at one path, those of the package from memory."""

    def __init__(self) -> None:
        self.data = b""
        self.kept: dict[str, tuple[bytes, list[int]]] = {}

    def content(self, path: str, trusted: bool = True) -> tuple[bytes, list[int]]:
        if path == FILE:
            return self.data, [0, 0, 0, 0]
        if path not in self.kept:
            self.kept[path] = _content(path, trusted)
        return self.kept[path]


FILE = "/fuzz/x.toml"
_FILES = _Files()
_content, _expand = policy_source.content, seccomp_source.expand
_expanded: dict[str, Any] = {}


def _remembered(section: Any, directory: str) -> Any:
    key = json.dumps(section, sort_keys=True, default=str)
    if key not in _expanded:
        _expanded[key] = _expand(section, directory)
    return json.loads(json.dumps(_expanded[key]))


@contextlib.contextmanager
def in_memory() -> Iterator[None]:
    """The language of policies without the disk: 100 times as fast. `content` has tests of its own."""
    with contextlib.ExitStack() as stack:
        for module, name, new in (
            (policy_source, "content", _FILES.content),
            (policy_joins, "content", _FILES.content),
            (seccomp_source, "expand", _remembered),
        ):
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, new)
        yield


CONFIG = policy.Config({}, "/fuzz/etc", "/fuzz/var")
_LIMIT: dict[str, Any] = json.loads((world.COMPILED / "dev.json").read_text())["sections"]


BASES = ("agent", "dev", "locked", "web")


def toml_of(data: bytes) -> bytes:
    """1: the file as it is; 2: lines over one of ours; else lines, most often behind a head."""
    if data[:1] == b"\1":
        return data[1:]
    if data[:1] == b"\2":
        r = grow.Reader(data[1:])
        lines = [f'{HEAD}base = "{r.pick(BASES)}"']
    else:
        r = grow.Reader(data)
        lines = [HEAD.rstrip()] if r.often() else []
    while r.more and len(lines) < 30:
        lines.append(r.pick(SECTION_LINES) if r.often() else r.text())
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@target
def target_policy(data: bytes) -> None:
    _FILES.data = toml_of(data)
    with in_memory():
        source, faults = policy_source.examine(FILE, "policy", False)
        for fault in faults:
            demand(str(fault).isprintable() and FILE in fault.key, "a fault without its place", str(fault))
        try:
            with only(ShimError):
                form = cold.compile("x", CONFIG, FILE)
        except Over:
            return
    demand(source is not None and not faults, "compiled what has faults", [str(one) for one in faults])
    sections = wire.loads(wire.dumps(form), "fuzz", "form")["sections"]  # type: ignore[index]
    mine, limit = product.from_policy(sections), product.from_policy(_LIMIT)
    demand(product.above(mine, limit) == [], "above the host limit", product.above(mine, limit), sections)
    wrong = list(oracle.above(sections, _LIMIT))
    demand(not wrong, "above the host limit, says the oracle", wrong, sections)
