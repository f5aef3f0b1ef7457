"""Our own files: whose they are, who can exchange them, and whether what was compiled is still what it was made of.

Belongs here: what agentshim itself would refuse or make anew, seen before a container asks for it.
"""

from __future__ import annotations

import io
import marshal
import os
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout

from shim import hostpaths, policy, state
from shim.cold import site
from shim.cold.doctor.host import FAIL, OK, WARN, Finding, Host, group_of
from shim.cold.doctor.versions import config_of
from shim.cold.policy import policies
from shim.verbs import gate

LOG = "/var/log/agentshim"
CACHE = "seccomp"  # below policy.VAR: proved meets
MEND = "chown it to root, and take away the write bits of others"
AGAIN = "make build (or install again), as root"


def owned(host: Host) -> Iterator[Finding]:
    """Everything of ours that is executed, read or believed, with every directory above."""
    yield from _launcher(host)
    for part in ("shim", "hooks"):  # the development tree holds more, which nobody executes
        yield _tree(host, "files.code", f"{_libdir(host)}/{part}")
    packages = site.recorded(site.LIBDIR) or site.beside(site.LIBDIR)
    if packages:
        yield _tree(host, "files.packages", packages)
    for name, path in (("files.etc", policy.ETC), ("files.var", policy.VAR)):
        yield _tree(host, name, path) if host.has(path) else Finding(OK, name, f"no {path}")
    yield _log(host) if host.has(LOG) else Finding(OK, "files.log", f"no {LOG}")
    yield _run(host)


def _libdir(host: Host) -> str:
    return gate._home() if not host.root else "/usr/local/lib/agentshim"


def _launcher(host: Host) -> Iterator[Finding]:
    """The executables, without set-id bits: the launcher refuses to run with them."""
    places = [("files.launcher", host.launcher)]
    if not host.root:
        places.append(("files.nethook", gate.program("agentshim-net")))
    for name, path in places:
        there = os.stat(host.at(path))
        fault = host.loose(path) or ("set-uid or set-gid" if there.st_mode & (stat.S_ISUID | stat.S_ISGID) else "")
        yield Finding(FAIL if fault else OK, name, f"{path}: {fault}" if fault else path, MEND if fault else "")


def _tree(host: Host, name: str, path: str) -> Finding:
    """One finding for a directory, what is above it, and all files below."""
    fault, count = _below(host, path, host.loose(path))
    if fault:
        return Finding(FAIL, name, fault, MEND, path)
    return Finding(OK, name, f"{path}: {count} files, root's alone", subject=path)


def _below(host: Host, path: str, fault: str = "") -> tuple[str, int]:
    """(the first file below a directory that is not root's alone, or `fault`; how many there are)."""
    count = 0
    for here, folders, files in os.walk(host.at(path)):
        for one in [*folders, *files]:
            where = f"{here}/{one}"
            there = os.lstat(where)
            count += 1
            loose = there.st_mode & 0o022 and not stat.S_ISLNK(there.st_mode)
            if not fault and (there.st_uid != 0 or loose):
                fault = f"{where[len(host.root) :]}: owner {there.st_uid}, mode {stat.S_IMODE(there.st_mode):04o}"
    return fault, count


def _log(host: Host) -> Finding:
    """The audit log as `shim.audit` judges it before each record: the directory itself, and the files in it. What is
    above it is syslog's on some distributions, and no forged record comes of that: only a stop.
    """
    name, there = "files.log", os.lstat(host.at(LOG))
    if not stat.S_ISDIR(there.st_mode):
        return Finding(FAIL, name, f"{LOG} is a symbolic link, or no directory", "look who has put it there", LOG)
    mine = "" if hostpaths.is_roots(there) else f"{LOG}: owner {there.st_uid}, mode {stat.S_IMODE(there.st_mode):04o}"
    fault, count = _below(host, LOG, mine)
    if fault:
        return Finding(FAIL, name, fault, MEND, LOG)
    for parent in ("/", "/var", os.path.dirname(LOG)):
        there = os.stat(host.at(parent))
        if there.st_uid == 0 and there.st_mode & 0o022 == 0o020 and not there.st_mode & stat.S_ISVTX:
            group = group_of(host, there.st_gid)
            found = f"{parent} is writable by group {group}: whoever is in it can stop creates by replacing {LOG}"
            return Finding(WARN, name, found, f"let nobody into group {group} who may not stop containers", LOG)
    loose = host.loose(LOG)
    if loose:
        return Finding(FAIL, name, loose, MEND, LOG)
    return Finding(OK, name, f"{LOG}: {count} files, root's alone", subject=LOG)


def _run(host: Host) -> Finding:
    """The state directory: 0700, or what was decided can be read, or forged, by others."""
    path = state.DIRECTORY
    try:
        there = os.lstat(host.at(path))
    except FileNotFoundError:
        return Finding(OK, "files.run", f"no {path} yet")
    mode = stat.S_IMODE(there.st_mode)
    fault = host.loose(path) or (f"mode {mode:04o}, where 0700 is meant" if mode & 0o077 else "")
    return Finding(FAIL if fault else OK, "files.run", fault or path, f"chmod 700 {path}" if fault else "", path)


def configuration(host: Host) -> Iterator[Finding]:
    """config.toml and the host's policies, as `policy check` has them."""
    told, noise = io.StringIO(), io.StringIO()
    with redirect_stdout(told), redirect_stderr(noise):
        code = policies.main(["check"], host.at(policy.ETC), host.at(policy.VAR))
    lines = told.getvalue().splitlines()
    if not code:
        yield Finding(OK, "files.policies", f"{policy.ETC} and its policies are well formed, and within the limit")
    for line in lines if code else []:
        yield Finding(FAIL, "files.policies", line, "agentshim policy check")


def compiled(host: Host) -> Iterator[Finding]:
    """Compiled policies that no longer are what their sources say, or whose source is gone: the next start pays."""
    config = config_of(host)
    known = policies.names(config)
    folder = f"{policy.VAR}/policies"
    stale = []
    for file in host.names(folder):
        name = file.removesuffix(".json")
        form = policy._read(host.at(f"{folder}/{file}"))
        if name not in known or form is None or not policy._fresh(form):
            stale.append(name)
    todo = "agentshim policy compile; remove what has no source" if stale else ""
    shown = ", ".join(stale) if stale else "none is stale"
    yield Finding(WARN if stale else OK, "files.compiled", shown, todo, folder)
    proved = len([one for one in host.names(f"{policy.VAR}/{CACHE}") if not one.endswith(gate.SEEN)])
    yield Finding(OK, "files.proved", f"{proved} proved meets of filters", subject=f"{policy.VAR}/{CACHE}")


def builtin(host: Host) -> Iterator[Finding]:
    """The built-in policies, against the sources that came with them."""
    from shim.cold.policy import compile as cold  # jsonschema

    stale = []
    for name in policy.BUILTIN:
        form = policy._read(f"{policy.COMPILED}/{name}.json")
        if form is None or form["digest"] != cold.compile_builtin(name)["digest"]:
            stale.append(name)
    todo = "agentshim policy compile --builtin, or install again" if stale else ""
    yield Finding(FAIL if stale else OK, "files.builtin", ", ".join(stale or policy.BUILTIN), todo)


def bytecode(host: Host) -> Iterator[Finding]:
    """main.pyc and hot: of this interpreter, and of these sources. Otherwise every start is slower, no more."""
    home = gate._home()
    faults = []
    try:
        if not _is_mains(f"{home}/shim/main.pyc", f"{home}/shim/main.py"):
            faults.append("main.pyc is of another main.py or interpreter")
        faults += _hot(home)
    except (OSError, ValueError, EOFError, TypeError, struct.error) as error:
        faults.append(str(error))
    shown = "; ".join(faults) if faults else "made of these sources, by this interpreter"
    yield Finding(WARN if faults else OK, "files.bytecode", shown, AGAIN if faults else "")


def _is_mains(code: str, source: str) -> bool:
    """As the launcher compares (native/launcher.c, made_of)."""
    with open(code, "rb") as file:
        _, *words = struct.unpack("=IIII", file.read(16))
    python = os.stat(sys.executable)
    expected = (int(os.stat(source).st_mtime), int(python.st_mtime), python.st_size)
    return words == [word & 0xFFFFFFFF for word in expected]


def _hot(home: str) -> Iterator[str]:
    """As shim/main.py compares."""
    with open(f"{home}/shim/hot", "rb") as file:
        version, verbs = marshal.loads(file.read(int(file.read(8))))
        if version != sys.version:
            yield "hot is of another interpreter"
            return
        sources = set()
        for place, size in set(verbs.values()):
            file.seek(place)
            sources.update(marshal.loads(file.read(size))[0])
    changed = sorted({path for path, size, mtime in sources if not _is_same(f"{home}/{path}", size, mtime)})
    if changed:
        yield f"hot is older than {', '.join(changed[:3])}" + (f" and {len(changed) - 3} more" if changed[3:] else "")


def _is_same(path: str, size: int, mtime: int) -> bool:
    there = os.stat(path)
    return (there.st_size, there.st_mtime_ns) == (size, mtime)
