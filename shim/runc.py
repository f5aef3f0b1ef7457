"""The delegate: found, checked, and executed in our place with the descriptors and environment that were granted.

Belongs here: everything that reaches the delegate and is no file. Next door: `argv` knows its grammar.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # `signal` loads enum: 3 ms
import posix

from shim import hostpaths
from shim.argv import Call, canonical
from shim.dim.invocation import COUNTS, Invocation
from shim.errors import HostError, Refused, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from shim.policy import Config

# Where a delegate may be without being named in config.toml; the first that exists is the default.
PLACES = (
    "/usr/sbin/runc",
    "/usr/bin/runc",
    "/usr/local/sbin/runc",
    "/usr/local/bin/runc",
    "/usr/bin/crun",
    "/usr/sbin/crun",
)
NOTIFY = (b"NOTIFY_SOCKET",)
LISTEN = (b"LISTEN_FDS", b"LISTEN_PID", b"LISTEN_FDNAMES")
IGNORED = ((1, signal.SIGPIPE), (2, signal.SIGXFSZ))


class Delegate:
    """`path`: the executable; `kind`: 'runc' or 'crun', whose grammar it speaks; `identity`: what its file is now."""

    __slots__ = ("path", "kind", "identity")

    def __init__(self, path: str) -> None:
        """HostError unless `path` is a program of root's that nobody else can change."""
        todo = "install runc, or name a delegate in /etc/agentshim/config.toml that only root can change"
        try:
            there = posix.stat(path)
        except OSError as error:
            raise HostError("delegate", path, reason(error), "an executable of root's", todo) from None
        if not hostpaths.program(path) or not there.st_mode & 0o111:
            raise HostError("delegate", path, "no program that only root can change", "one", todo)
        self.path = path
        self.kind = "crun" if "crun" in hostpaths.split(path)[1] else "runc"
        self.identity = f"{path}:{there.st_dev}:{there.st_ino}:{there.st_mtime_ns}:{there.st_size}"


def find(config: Config) -> Delegate:
    """The delegate that config.toml names, else the first of PLACES. HostError if there is none that can be trusted."""
    if config.delegate:
        if config.delegates and config.delegate not in config.delegates:
            todo = "add it to delegates in /etc/agentshim/config.toml, or name one that is there"
            raise Refused("delegate", "path", config.delegate, ", ".join(config.delegates), todo)
        return Delegate(config.delegate)
    for path in PLACES:
        if hostpaths.exists(path):
            return Delegate(path)
    todo = "install runc, or name a delegate in /etc/agentshim/config.toml"
    raise HostError("delegate", "path", "none", f"one of {', '.join(PLACES)}", todo)


def environment() -> dict[bytes, bytes]:
    """The environment as execve gave it to us: /proc/self/environ is not changed by Python's own LC_CTYPE."""
    fd = posix.open("/proc/self/environ", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        data = b""
        while chunk := posix.read(fd, 1 << 16):
            data += chunk
    finally:
        posix.close(fd)
    pairs = (entry.partition(b"=") for entry in data.split(b"\0") if b"=" in entry)
    return {name: value for name, _, value in pairs if name}


def asked(env: dict[bytes, bytes], call: Call) -> Invocation:
    """What this call asks outside config.json."""
    options = call.options
    flags = {
        "notify_socket": b"NOTIFY_SOCKET" in env and bool(env[b"NOTIFY_SOCKET"]),
        "no_pivot": bool(options.get("no-pivot")),
        "no_new_keyring": bool(options.get("no-new-keyring")),
        "rootless": call.rootless not in (None, "auto", "false"),
        "subcgroup": call.verb == "exec" and bool(options.get("cgroup")),
        "criu": call.criu is not None,
    }
    preserved = options.get("preserve-fds", 0)
    counts = (_count(env.get(b"LISTEN_FDS", b"")), preserved if isinstance(preserved, int) else 0)
    verbs = frozenset((call.verb,)) if call.verb in ("checkpoint", "restore") else frozenset()
    return Invocation(frozenset(name for name, is_asked in flags.items() if is_asked), counts, verbs)


def lowered(call: Call, granted: Invocation) -> Call:
    """The call without the options that were not granted."""
    options = dict(call.options)
    for option, flag in (("no-pivot", "no_pivot"), ("no-new-keyring", "no_new_keyring"), ("cgroup", "subcgroup")):
        if flag not in granted.flags:
            options.pop(option, None)
    if "preserve-fds" in options:
        options["preserve-fds"] = granted.counts[COUNTS.index("preserve_fds")]
    return Call(call.globals, call.verb, options, call.args, call.probe)


def execute(delegate: Delegate, call: Call, env: dict[bytes, bytes], granted: Invocation, was_ignored: int) -> NoReturn:
    """Becomes the delegate. `was_ignored`: the launcher's mask of signals that were ignored when it began; Python
    ignores SIGPIPE and SIGXFSZ itself, and execve keeps what is ignored. HostError if execve fails.
    """
    env = dict(env)
    fds = granted.counts[COUNTS.index("listen_fds")]
    if env.get(b"LISTEN_FDS") and fds == 0:
        for name in LISTEN:
            env.pop(name, None)
    elif fds < _count(env.get(b"LISTEN_FDS", b"")):
        env[b"LISTEN_FDS"] = str(fds).encode()
    if "notify_socket" not in granted.flags:
        for name in NOTIFY:
            env.pop(name, None)
    for bit, number in IGNORED:
        signal.signal(number, signal.SIG_IGN if was_ignored & bit else signal.SIG_DFL)
    try:
        posix.execve(delegate.path, [delegate.path, *canonical(call, delegate.kind)], env)
    except OSError as error:
        todo = "check the delegate's file"
        raise HostError("delegate", delegate.path, reason(error), "an executable", todo) from None


def _count(text: bytes) -> int:
    return int(text) if text.isdigit() else 0
