"""Facts about the host that a decision needs, gathered before it: the only reader of /proc, paths and namespaces.

Belongs here: questions to the kernel. Next door: `hostpaths` says what a path of the host means; `dim` decides and
asks nothing itself.
"""

from __future__ import annotations

import posix

from shim import hostpaths, state
from shim.dim import invocation, mounts, namespaces, network, paths, rlimits
from shim.errors import HostError, is_absence, unanswered
from shim.lattice import at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.lattice import Spec

FILTER = "filter"
NARROW = 8  # bits that a route has in common with an address, if it is to say whose that is
RTF_HERE = 0x80100000  # linux/ipv6_route.h: RTF_LOCAL, RTF_ANYCAST
LOCKER, UNDO = "agentshim-net", "undo"
PROC_NAMES = {
    "mount": "mnt",
    "pid": "pid",
    "network": "net",
    "ipc": "ipc",
    "uts": "uts",
    "cgroup": "cgroup",
    "user": "user",
    "time": "time",
}


class Facts:
    """What a plan knows of the host, each field as one dimension's `from_spec` wants it.

    `launcher`: our own executable; `places`: what classified the sources; `sources`: path in the spec ->
    hostpaths.Source; `namespaces`: (kind, path) -> 'host' or 'at:device:inode'; `programs`: hook path -> the real
    root-owned file, or ''; `nodes`: path of an asked device -> type, major and minor of what the host has there, if
    anything; `group_in_use`: the control group that is asked has processes; `rlimits`: inherited (soft, hard) in the
    order of rlimits.TYPES; `security_modules`: active modules; `default_labels`: module -> label for containers;
    `invocation`: what the call asks outside the spec; `network`: what passes in the network that it would get, unless
    it is filtered; `locker`: the native hook that filters it; `hosts`: the mounts of state.LENT, if there are any.
    """

    __slots__ = (
        "bundle",
        "launcher",
        "sources",
        "namespaces",
        "programs",
        "rlimits",
        "nodes",
        "oom_score_adj",
        "places",
        "security_modules",
        "default_labels",
        "group_in_use",
        "invocation",
        "network",
        "locker",
        "hosts",
    )

    def __init__(self) -> None:
        self.bundle = "/"
        self.launcher = ""
        self.sources: dict[str, hostpaths.Source] = {}
        self.namespaces: dict[tuple[str, str], str] = {}
        self.programs: dict[str, str] = {}
        self.rlimits: tuple[tuple[int | None, int | None], ...] = ((None, None),) * len(rlimits.TYPES)
        self.places: hostpaths.Places | None = None
        self.group_in_use = False
        self.nodes: dict[str, tuple[str, int, int]] = {}
        self.oom_score_adj = 0
        self.security_modules: tuple[str, ...] = ()
        self.default_labels: dict[str, str] = {}
        self.invocation = invocation.BOTTOM
        self.network = network.BOTTOM
        self.locker = ""
        self.hosts: tuple[dict[str, Any], ...] = ()

    def is_our_hook(self, hook: dict[str, Any]) -> bool:
        """Whether `hook` is one of ours to the letter, its environment included: in another one, the dynamic linker
        runs what the hook's writer wants.
        """
        args = hook.get("args") or []
        if args[:1] == [LOCKER]:
            return hook == self.lock_hook(*args[1:2]) or hook == self.unlock_hook(*args[1:2], *args[3:5])
        return len(args) >= 4 and args[4:] in ([], [FILTER]) and hook == self.our_hook(*args[2:])

    def lock_hook(self, plan: str = "") -> dict[str, Any]:
        """The hook that replays the file `plan` in the container's network namespace. It reads no environment."""
        return {"path": self.locker, "args": [LOCKER, plan], "env": []}

    def unlock_hook(self, plan: str = "", address: str = "", *claim: str) -> dict[str, Any]:
        """The hook that takes back what `plan` put into the host's sets, and then the file that holds the address;
        unless somebody else still lives in that network. `claim`: of one that joined it, see `verbs.link.join`.
        """
        return {"path": self.locker, "args": [LOCKER, plan, UNDO, address, *claim], "env": [], "timeout": 10}

    def is_unlock(self, hook: dict[str, Any]) -> bool:
        """Whether a hook of ours is one for the container's end."""
        return bool(hook["args"][2:3] == [UNDO])

    def our_hook(self, root: str, container: str, *what: str) -> dict[str, Any]:
        """The hook that compares what was mounted with what was checked; or with FILTER, the filter that was loaded
        with the proved one. An absent env would inherit the engine's.
        """
        args = ["agentshim", "hook", root, container, *what]
        return {"path": self.launcher, "args": args, "env": ["PATH=/usr/sbin:/usr/bin"]}

    def is_ours(self, mount: dict[str, Any]) -> bool:
        """Whether `mount` is one that we write: a scratch directory, which the paths dimension owns, or a file that we
        lend: /etc/hosts.
        """
        return paths.is_scratch(mount) or self.is_hosts(mount)

    def is_hosts(self, mount: dict[str, Any]) -> bool:
        """Whether `mount` is of the shape of `hosts_mount`, for this container or another: `plan` leaves ours alone."""
        source = str(mount.get("source") or "")
        name = source.rpartition("/")[2]
        lent = "." + name.rpartition(".")[2] in state.LENT
        return lent and source == f"{state.DIRECTORY}/{name}" and mount == hosts_mount(source)


def hosts_mount(source: str) -> dict[str, Any]:
    """The mount of a file of state.LENT; read-only, since it is the only word on names that the container has."""
    options = ["bind", "ro", "nosuid", "nodev", "noexec"]
    place = state.LENT["." + source.rpartition(".")[2]]
    return {"destination": place, "type": "bind", "source": source, "options": options}


def gather(spec: Spec, bundle: str, asked: invocation.Invocation) -> Facts:
    """All facts that `spec` in the directory `bundle` needs. HostError where the kernel does not answer."""
    facts = process_facts(asked)
    facts.bundle = bundle
    root = at(spec, "root.path", "")
    root_path = hostpaths.join(bundle, root) if root else bundle
    places = facts.places = hostpaths.Places(bundle, root_path)
    if root or "root" in spec:
        facts.sources[mounts.root_key(root)] = places.root(root_path)
    for mount in spec.get("mounts") or ():
        source = mount.get("source") or ""
        if mounts.is_bind(mount) and source not in facts.sources:
            facts.sources[source] = places.classify(hostpaths.join(bundle, source) if source else "")
    facts.group_in_use = _group_in_use(at(spec, "linux.cgroupsPath", ""))
    for entry in at(spec, "linux.namespaces", ()):
        if entry.get("path"):
            facts.namespaces[entry["type"], entry["path"]] = _namespace(entry["type"], entry["path"])
    for device in at(spec, "linux.devices", ()):
        there = hostpaths.device(device.get("path", ""))
        if there is not None:
            facts.nodes[device["path"]] = there
    for kind_hooks in at(spec, "hooks", {}).values():
        for hook in kind_hooks or ():
            real = hostpaths.program(hook["path"])
            facts.programs[hook["path"]] = real
            facts.programs.setdefault(real, real)  # what the hook is written back as
    return facts


def process_facts(asked: invocation.Invocation) -> Facts:
    """The facts that hold without a spec: what the delegate would inherit from us, and the host's modules."""
    facts = Facts()
    facts.invocation = asked
    facts.network = network.TOP
    facts.rlimits = _inherited_limits()
    facts.oom_score_adj = int(_read("/proc/self/oom_score_adj") or b"0")
    facts.security_modules, facts.default_labels = _modules()
    return facts


def _inherited_limits() -> tuple[tuple[int | None, int | None], ...]:
    """This process's limits from /proc/self/limits: the `resource` module would cost a shared object to load."""
    names = (
        b"Max cpu time",
        b"Max file size",
        b"Max data size",
        b"Max stack size",
        b"Max core file size",
        b"Max resident set",
        b"Max processes",
        b"Max open files",
        b"Max locked memory",
        b"Max address space",
        b"Max file locks",
        b"Max pending signals",
        b"Max msgqueue size",
        b"Max nice priority",
        b"Max realtime priority",
        b"Max realtime timeout",
    )
    found = {}
    for line in _read("/proc/self/limits").split(b"\n")[1:]:
        words = line[26:].split()
        if len(words) >= 2:
            found[line[:26].rstrip()] = tuple(None if w == b"unlimited" else int(w) for w in words[:2])
    return tuple(found.get(name, (None, None)) for name in names)  # type: ignore[misc]


def _namespace(kind: str, path: str) -> str:
    """'host' if `path` is the namespace that this process (the engine's) or init lives in, else its identity.

    A path that is not there is an identity of its own: the delegate refuses it.
    """
    found, ours = _identity(path), namespace_of("self", kind)
    for asked, identity in ((path, found), (f"/proc/self/ns/{PROC_NAMES.get(kind, kind)}", ours)):
        if identity == "at:" + asked and hostpaths.exists(asked):
            todo = "give it to a process that may look at it; what is not known to be another's may be the host's"
            raise HostError("namespaces", asked, "not accessible", "a namespace that can be compared", todo)
    if found in (ours, namespace_of(1, kind)):
        return namespaces.HOST
    return found


def namespace_of(pid: int | str, kind: str) -> str:
    """'at:device:inode' of the namespace in which a process is."""
    return _identity(f"/proc/{pid}/ns/{PROC_NAMES.get(kind, kind)}")


def resolvers() -> list[str]:
    """The host's name servers that a container can reach: engines give it these, or 127.0.0.11. Not what its own
    resolv.conf says: that file is lent to it writable, and kept over a restart.
    """
    every = (*own_resolvers(), *own_resolvers("/run/systemd/resolve/resolv.conf"))
    return [one for one in every if not one.startswith(("127.", "::1", "fe80:"))]


def own_resolvers(place: str = "/etc/resolv.conf") -> list[str]:
    """The name servers that the host itself asks, as resolv.conf(5) has them; those of one interface left out."""
    lines = _read(place).decode("ascii", "replace").split("\n")
    words = [line.split() for line in lines]
    found = [one[1].partition("%")[0] for one in words if one[:1] == ["nameserver"] and len(one) == 2]
    return [one for one in found if _is_address(one)]


def _is_address(text: str) -> bool:
    try:
        network.block(text)
    except (OSError, ValueError):
        return False
    return "/" not in text


def addresses(six: bool = True) -> list[network.Block]:
    """Each address that is this host, loopback aside, and each block of them (`ip route add local BLOCK`): local routes
    of /proc/net/fib_trie and, with `six`, of ipv6_route. A route that takes nearly all is a transparent proxy's, for
    packets with its mark: it says nothing of what is the host's.
    """
    found: set[network.Block] = set()
    for leaf in _read("/proc/net/fib_trie").decode("ascii", "replace").split("|-- ")[1:]:
        address, *routes = leaf.split("\n")
        for words in map(str.split, routes if not address.startswith("127.") else ()):
            if words[1:3] == ["host", "LOCAL"] and int(words[0][1:]) >= NARROW:
                low = int.from_bytes(map(int, address.split(".")), "big")
                found.add(_block(network.WIDTHS[0], low, int(words[0][1:])))
    if not six:
        return sorted(found)
    for line in _read("/proc/net/ipv6_route").decode("ascii", "replace").split("\n"):
        words = line.split()
        if len(words) == 10 and int(words[8], 16) & RTF_HERE and int(words[1], 16) >= NARROW:
            low = int(words[0], 16)
            if low != 1:  # ::1
                found.add(_block(network.WIDTHS[1], low, int(words[1], 16)))
    return sorted(found)


def _block(width: int, low: int, bits: int) -> network.Block:
    return width, low, low | (1 << width - bits) - 1


def inhabitants(namespace: str, kind: str) -> list[int]:
    """The processes in a namespace, given as `namespace_of` does. One stat a process: for a namespace that is lent."""
    return [int(pid) for pid in posix.listdir("/proc") if pid.isdigit() and namespace_of(pid, kind) == namespace]


def _identity(path: str) -> str:
    try:
        there = posix.stat(path)
    except (ProcessLookupError, PermissionError):  # init has more capabilities than some engines
        return "at:" + path
    except OSError as error:
        if not is_absence(error):
            raise unanswered("namespaces", path, error) from None
        return "at:" + path
    return f"at:{there.st_dev}:{there.st_ino}"


def _group_in_use(path: str, hierarchies: str = "/sys/fs/cgroup") -> bool:
    """Whether the control group that is asked has processes already, in any hierarchy: v1's controllers are directories
    there, v2 is the directory itself or `unified`.
    """
    if not path or ":" in path:
        return False  # none asked, or systemd's form, whose scope is new by its name
    try:
        names = ["", *("/" + name for name in posix.listdir(hierarchies))]
    except FileNotFoundError:
        return False
    return any(_read(f"{hierarchies}{name}/{path}/cgroup.procs") for name in names)


def _modules() -> tuple[tuple[str, ...], dict[str, str]]:
    """Active label modules (/sys/kernel/security/lsm), and for AppArmor a loaded profile made for containers."""
    active = _read("/sys/kernel/security/lsm").decode("ascii", "replace").strip().split(",")
    found = tuple(module for module in ("apparmor", "selinux") if module in active)
    labels = {}
    if "apparmor" in found:
        loaded = _read("/sys/kernel/security/apparmor/profiles").decode("utf-8", "replace").split("\n")
        for name in ("agentshim-default", "docker-default", "cri-containerd.apparmor.d"):
            if name + " (enforce)" in loaded:
                labels["apparmor"] = name
                break
    return found, labels


def _read(path: str) -> bytes:
    """A file of /proc or /sys, b'' where it is not there. HostError where it is, and the kernel does not give it."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError as error:
        if not is_absence(error):
            raise unanswered("host", path, error) from None
        return b""
    try:
        data = b""
        while chunk := posix.read(fd, 65536):
            data += chunk
        return data
    finally:
        posix.close(fd)
