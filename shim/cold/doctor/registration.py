"""Whether the engines of this host call agentshim, under names and paths that hold.

Belongs here: what a registration must be. Next door: `engines` read it; `ways` has what goes past us.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from shim import policy
from shim.cold.doctor import versions
from shim.cold.doctor.engines import CONTAINERD, CRIO, DOCKER, Engine, Runtime, engines
from shim.cold.doctor.host import FAIL, OK, WARN, Finding, Host

# What asks a containerd's CRI plugin for runtimes by name; without them, its callers name a runtime in each call.
CRI_CLIENTS = ("kubelet", "crictl", "k3s", "nerdctl")
RESTART = {
    DOCKER: "systemctl restart docker",
    CONTAINERD: "systemctl restart containerd",
    CRIO: "systemctl restart crio",
}
SLACK = 1.0  # seconds; a process's start has ticks of 10 ms, and is told by another clock than a file's time
RELOAD = {DOCKER: "systemctl reload docker", CONTAINERD: "systemctl restart containerd"}


def registration(host: Host) -> Iterator[Finding]:
    """One finding an engine, and one for each runtime of ours that it knows."""
    every = engines(host)
    if not every:
        yield Finding(WARN, "engine.found", "none", "install dockerd, containerd, podman or CRI-O")
    names = _names(host)
    for engine in every:
        for fault in engine.faults:
            yield Finding(
                FAIL, "engine.config", fault, "correct the file: the engine does not start with it", engine.name
            )
        yield from _registered(engine)
        yield from _changed(host, engine)
        for runtime in ours(engine):
            yield from judged(engine, runtime, names)
            yield from _noted(engine, runtime)


def _names(host: Host) -> list[str] | None:
    """The policies that a link may select; None where config.toml does not tell, of which `files` speaks."""
    try:
        return [*versions.config_of(host).names]
    except Exception:
        return None


def ours(engine: Engine) -> list[Runtime]:
    """The runtimes that are meant to be agentshim, by name or by path."""
    return [one for one in engine.runtimes if is_meant(one.name) or is_meant(os.path.basename(one.path))]


def is_meant(name: str) -> bool:
    """Whether a name says agentshim, or agentshim under a policy."""
    return name == "agentshim" or name.startswith(policy.PREFIX)


def is_idle(engine: Engine) -> bool:
    """Whether nothing here asks for a runtime that this engine knows by name."""
    disabled = any("cri" in str(one) for one in engine.settings.get("disabled_plugins") or ())
    asks = any(engine.host.program(one) for one in CRI_CLIENTS)
    return engine.kind == CONTAINERD and (disabled or not asks)


def _registered(engine: Engine) -> Iterator[Finding]:
    found = ours(engine)
    if found:
        names = ", ".join(one.name for one in found)
        yield Finding(OK, "engine.registered", f"{names}; default {engine.default}", subject=engine.name)
    elif is_idle(engine):
        yield Finding(OK, "engine.registered", "no runtime of ours; nothing here asks its CRI", subject=engine.name)
    else:
        todo = f"agentshim install {engine.kind}"
        yield Finding(WARN, "engine.registered", "no runtime of ours", todo, engine.name)


def _changed(host: Host, engine: Engine) -> Iterator[Finding]:
    """A running engine that does not say what it knows goes on with the files that it read when it started."""
    if engine.process is None or engine.live is not None:
        return
    started = host.started(engine.process)
    newer = [one for one in engine.files if started and os.stat(engine.host.at(one)).st_mtime > started + SLACK]
    if newer:
        found = f"{', '.join(newer)}: changed since it started"
        yield Finding(FAIL, "engine.live", found, f"restart it: {RESTART[engine.kind]}", engine.name)


def judged(engine: Engine, runtime: Runtime, names: list[str] | None) -> Iterator[Finding]:
    """Whether a runtime's path leads to our launcher, by a way that only root can change, under a known policy."""
    subject = f"{engine.name} {runtime.name}"
    fault, todo = path_fault(engine.host, runtime.path)
    if fault:
        yield Finding(FAIL, "engine.path", f"{runtime.path or 'no path'}: {fault}", todo, subject)
        return
    program = os.path.basename(runtime.path)
    fixed = program.removeprefix(policy.PREFIX) if program.startswith(policy.PREFIX) else None
    if fixed is not None and names is not None and fixed not in names:
        todo = "list the policy under names in /etc/agentshim/config.toml, or name the link otherwise"
        yield Finding(FAIL, "engine.policy", f"{program}: no policy {fixed} may be chosen by a link", todo, subject)
    if engine.host.is_ours(runtime.path) or engine.host.real(runtime.path) == engine.host.launcher:
        yield Finding(OK, "engine.path", runtime.path, subject=subject)
    else:
        todo = "point it here, or ask the doctor of that one"
        yield Finding(WARN, "engine.path", f"{runtime.path}: another installation of agentshim", todo, subject)


def path_fault(host: Host, path: str) -> tuple[str, str]:
    """(what is wrong with a path to a launcher, what to do); ('', '') where nothing is."""
    again = "agentshim install again, or correct the path"
    if not path.startswith("/"):
        return "not an absolute path: the engine searches its PATH", again
    try:
        there = os.stat(host.at(path))
        if not stat.S_ISREG(there.st_mode) or not there.st_mode & 0o111:
            return "not an executable", again
        loose = host.loose(path)
    except OSError as error:
        return f"not there ({error.strerror})" if error.errno != 2 else "not there", again
    if loose:
        return loose, "chown it to root, and take away the write bits of others"
    if there.st_mode & (stat.S_ISUID | stat.S_ISGID):
        return "set-uid or set-gid", "chmod ug-s: the launcher refuses every call"
    if not host.is_ours(path) and not host.is_a_launcher(path):
        return "not agentshim's launcher: its containers are not confined", again
    return "", ""


def _noted(engine: Engine, runtime: Runtime) -> Iterator[Finding]:
    """What an engine's own habits ask of a registration."""
    subject = f"{engine.name} {runtime.name}"
    if runtime.arguments:
        todo = "remove runtimeArgs: dockerd wraps the runtime in a shell script for them"
        yield Finding(WARN, "engine.arguments", "runtimeArgs", todo, subject)
    if engine.kind == CONTAINERD and not runtime.passes_annotations:
        todo = 'pod_annotations = ["agentshim.*"], if pods shall choose a policy'
        yield Finding(WARN, "engine.annotations", "pods' annotations do not reach agentshim", todo, subject)
    if engine.live is not None and engine.live.get(runtime.name) != runtime.path:
        todo = RELOAD.get(engine.kind, "reload the engine")
        yield Finding(FAIL, "engine.live", "the running engine has not read this", todo, subject)
