"""Ways around us: who may choose another runtime, what does so by itself, and containers that we never saw.

Belongs here: what is no fault of ours, and that the host's owner should know. Next door: `registration`.
"""

from __future__ import annotations

import fnmatch
import json
import os
import stat
from collections.abc import Iterator
from typing import Any

from shim import state
from shim.cold.doctor.advisories import version
from shim.cold.doctor.engines import CONTAINERD, CRIO, DOCKER, Engine, engines, path_of, table
from shim.cold.doctor.host import FAIL, OK, WARN, Finding, Host, Process, group_of
from shim.cold.doctor.registration import is_idle, is_meant, ours, path_fault

# runc, crun: the file, and where it has the first process and when that began
STATES = (("state.json", "init_process_pid", "init_process_start"), ("status", "pid", "process-start-time"))
MOST = 20  # containers that are named
# Where delegates keep containers: runc's and crun's own, and below them those of containerd's and dockerd's namespaces.
ROOTS = ("/run/runc", "/run/crun")
USERS = "/run/user"  # below it, those of rootless engines
NAMESPACED = ("/run/containerd/runc", "/run/docker/runtime-*")
# Where containerd's shims keep their bundles, whatever runtime they call: namespace, id, init.pid.
TASKS = "io.containerd.runtime.v2.task"
PID = "init.pid"
LATER = 60  # seconds between a create of ours and its container's first process: far more than it takes
BUILDER = "DOCKER_BUILDKIT_RUNC_COMMAND"
BUILDER_SINCE = "25.0"  # dockerd


def choices(host: Host) -> Iterator[Finding]:
    """Default runtimes that are not ours, and who may ask for another one."""
    for engine in engines(host):
        here = {one.name for one in ours(engine)}
        name = "around.default-runtime"
        if engine.default in here or is_meant(engine.default):
            yield Finding(OK, name, engine.default, subject=engine.name)
        elif not is_idle(engine):
            todo = f"agentshim install {engine.kind} --set-as-default, or give --runtime agentshim with each container"
            yield Finding(WARN, name, f"{engine.default}, where none is asked", todo, engine.name)
        for address in engine.sockets:
            yield from _socket(host, engine, address)


def _socket(host: Host, engine: Engine, address: str) -> Iterator[Finding]:
    """Whoever speaks to an engine may say --runtime=runc, and is root by other ways too."""
    name, subject = "around.runtime-choice", f"{engine.name} {address}"
    if address.startswith("tcp://"):
        todo = "give the API over a socket, or to holders of a client's certificate alone (tlsverify)"
        level = WARN if _verifies(engine) else FAIL
        yield Finding(level, name, "whoever reaches this address may choose any runtime", todo, subject)
        return
    path = path_of(address)
    try:
        there = os.stat(engine.host.at(path))
    except OSError:
        return  # it does not listen
    level, found, todo = _access(host, engine.host.at(path), path, there)
    yield Finding(level, name, found, todo, subject)


def _verifies(engine: Engine) -> bool:
    """Whether a dockerd asks its callers for a certificate."""
    words = engine.process.words if engine.process else ()
    return engine.settings.get("tlsverify") is True or bool({"--tlsverify", "--tlsverify=true"} & {*words})


def _access(host: Host, place: str, path: str, there: os.stat_result) -> tuple[str, str, str]:
    """(level, who may speak to the socket at `place`, what to do); `path`: as its engine names it."""
    out = "take out whom you would not make root: no engine can forbid --runtime=runc"
    if there.st_uid != 0:
        return FAIL, f"uid {there.st_uid} owns it, may choose any runtime, and is root by it", f"chown root {path}"
    if there.st_mode & stat.S_IWOTH:
        return FAIL, "every user of this host is root by it", f"chmod 660 {path}"
    members = _members(host, there.st_gid)
    if there.st_mode & stat.S_IWGRP and members:
        return WARN, f"may choose any runtime, and is root by it: {', '.join(members)}", out
    if _has_acl(place):
        return WARN, "an access list gives it to others, who are root by it", f"getfacl {path}; setfacl -b {path}"
    if there.st_mode & stat.S_IWGRP and there.st_gid != 0:
        group = group_of(host, there.st_gid)
        return WARN, f"group {group} may choose any runtime; /etc/group and /etc/passwd name no member of it", out
    return OK, "root alone may choose a runtime", ""


def _has_acl(place: str) -> bool:
    """Whether a file has a POSIX access list (acl(5)): its mode does not tell whom it lets in."""
    try:
        return bool(os.getxattr(place, "system.posix_acl_access"))
    except OSError:
        return False


def groups(host: Host) -> Iterator[Finding]:
    """Members of the group docker, whose socket may lie elsewhere or be down at the moment."""
    rows = [line.split(":") for line in host.text("/etc/group").splitlines()]
    number = next((int(row[2]) for row in rows if row[0] == "docker" and row[2:3] and row[2].isdigit()), None)
    members = _members(host, number) if number else []
    if members:
        todo = "each of them is root by it: gpasswd -d NAME docker for whom you would not make root"
        yield Finding(WARN, "around.docker-group", ", ".join(members), todo)
    else:
        yield Finding(OK, "around.docker-group", "nobody")


def _members(host: Host, group: int) -> list[str]:
    """Who is in a group, by /etc/group and /etc/passwd. Directory services are not asked."""
    found: list[str] = []
    for line in host.text("/etc/group").splitlines():
        row = line.split(":")
        if len(row) > 3 and row[2] == str(group):
            found += [one for one in row[3].split(",") if one]
    users = [line.split(":") for line in host.text("/etc/passwd").splitlines()]
    found += [row[0] for row in users if len(row) > 3 and row[3] == str(group) and row[2] != "0"]
    return [*dict.fromkeys(found)]


def builders(host: Host) -> Iterator[Finding]:
    """BuildKit runs the steps of a build by a runc of its own choice."""
    for engine in engines(host):
        if engine.kind == DOCKER and engine.process:
            yield _dockers_builder(engine, _environment(host, engine.process).get(BUILDER, ""))
    for process in host.running("buildkitd"):
        yield _buildkitd(host.inside(process), process)


def _dockers_builder(engine: Engine, told: str) -> Finding:
    """`told`: what dockerd's environment names, '' where it names nothing."""
    name, host = "around.buildkit", engine.host
    installed, since = version(engine.version), version(BUILDER_SINCE)
    knows = installed is None or since is None or installed >= since
    if told and knows:
        fault, todo = path_fault(host, told)
        level = WARN if fault else OK
        return Finding(level, name, f"docker build runs {told}{': ' if fault else ''}{fault}", todo, engine.name)
    found = host.program("buildkit-runc") or host.program("runc") or "runc"
    todo = f"systemctl edit docker: [Service] Environment={BUILDER}={host.launcher}"
    if not knows:
        todo = (
            f"point a dockerd from {BUILDER_SINCE} on here; or build with DOCKER_BUILDKIT=0, under the default runtime"
        )
    return Finding(WARN, name, f"docker build runs {found}, whatever the default runtime is", todo, engine.name)


def _environment(host: Host, process: Process) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in host.text(f"/proc/{process.pid}/environ").split("\0"))
    return {key: value for key, _, value in pairs}


def _buildkitd(host: Host, process: Process) -> Finding:
    import tomllib

    path = process.option("--config") or "/etc/buildkit/buildkitd.toml"
    subject = f"buildkitd ({process.pid})"
    told = process.option("--oci-worker-binary") or str(
        table(tomllib.loads(host.text(path)), "worker", "oci").get("binary") or ""
    )
    if told and not path_fault(host, told)[0]:
        return Finding(OK, "around.buildkit", f"runs {told}", subject=subject)
    todo = f'{path}: [worker.oci] binary = "{host.launcher}"'
    return Finding(WARN, "around.buildkit", f"runs {told or 'a runc of its own choice'}", todo, subject)


def uidmaps(host: Host) -> Iterator[Finding]:
    """containerd/containerd#11480: options of a task displace those of its runtime, BinaryName among them."""
    if host.program("containerd"):
        todo = "use no user namespaces there, or a policy of admission; look at around.unseen"
        found = "ctr run --uidmap loses --runc-binary; so do pods with user namespaces, before the mend of issue 11480"
        yield Finding(WARN, "around.uidmap", found, todo, CONTAINERD)


# Containers that we never saw


def unseen(host: Host) -> Iterator[Finding]:
    """Running containers in any delegate's state of which there is no record of ours."""
    known = {(one["root"], one["id"]): one for one in state.records()}
    here = [(root, name, pid) for root, name in containers(host) if (pid := _init(host, f"{root}/{name}"))]
    found = [one for one in here if not _is_ours(known.get((os.path.realpath(host.at(one[0])), one[1])), one[2])]
    bundles = {str(one["bundle"]) for one in known.values() if one.get("bundle")}
    found += _tasks(host, bundles, {pid for *_, pid in here})
    for root, name, pid in found[:MOST]:
        todo = "stop it and start it again under agentshim, if it was to be confined"
        yield Finding(WARN, "around.unseen", f"process {pid}, not created by agentshim", todo, f"{root}/{name}")
    if len(found) > MOST:
        yield Finding(WARN, "around.unseen", f"{len(found) - MOST} more", "see the engines' own lists", "and")
    if not found:
        looked = [*_existing(host, _roots(host)), *_existing(host, _task_roots(host))]
        places = ", ".join(looked) or "no directory of any delegate's"
        yield Finding(OK, "around.unseen", f"none; {len(here)} of ours; looked at {places}")
    for engine in engines(host):
        if engine.host is not host and engine.process:
            todo = f"nsenter -t {engine.process.pid} -m agentshim doctor"
            yield Finding(
                WARN, "around.elsewhere", "has mounts of its own: its containers were not looked at", todo, engine.name
            )


def _is_ours(record: dict[str, Any] | None, pid: int) -> bool:
    """Whether a container is the one of a record: its first process began when we called the delegate, and not when
    somebody deleted that container and made another of its id without us.
    """
    if record is None:
        return False
    later = state._started(str(pid)) - int(record.get("started") or 0)
    return not record.get("started") or later <= LATER * os.sysconf("SC_CLK_TCK")


def containers(host: Host) -> Iterator[tuple[str, str]]:
    """(root, id) of every container that a delegate's state directory holds."""
    for root in _existing(host, _roots(host)):
        for name in host.names(root):
            if any(host.has(f"{root}/{name}/{file}") for file, *_ in STATES):
                yield root, name


def _existing(host: Host, places: Iterator[str]) -> list[str]:
    """Directories that are there, each once, without links."""
    return [one for one in dict.fromkeys(host.real(place) for place in places) if os.path.isdir(host.at(one))]


def _tasks(host: Host, bundles: set[str], seen: set[int]) -> Iterator[tuple[str, str, int]]:
    """(directory, id, first process) of containerd's running tasks that are neither ours by their bundle nor in a
    delegate's state (`seen`): those of other runtimes.
    """
    for top in _existing(host, _task_roots(host)):
        for name in host.names(top):
            try:
                pid = int(host.text(f"{top}/{name}/{PID}") or 0)
            except (OSError, ValueError):
                continue
            is_ours = os.path.realpath(host.at(f"{top}/{name}")) in bundles
            if pid and pid not in seen and not is_ours and state._started(str(pid)):
                yield top, name, pid


def _init(host: Host, place: str) -> int:
    """The first process of a container, as its delegate remembers it; 0 where it does not, or that has ended."""
    for file, key, start in STATES:
        try:
            told = json.loads(host.read(f"{place}/{file}"))
            pid = int(told[key])
            return pid if state._started(str(pid)) == int(told[start]) != 0 else 0
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return 0


def _roots(host: Host) -> Iterator[str]:
    """Where delegates keep their state: the usual places, those of the engines that run, and those of our records."""
    yield from ROOTS
    yield from (f"{USERS}/{user}/{kind}" for user in host.names(USERS) for kind in ("runc", "crun"))
    tops = [*NAMESPACED]
    for engine in _seen_by(host):
        if engine.kind == DOCKER and engine.process:
            tops.append(f"{_exec_root(engine)}/runtime-*")
        if engine.kind == CONTAINERD:
            tops.append(f"{engine.settings.get('state') or '/run/containerd'}/runc")
        if engine.kind == CRIO:
            yield from (one for one in engine.settings.get("roots", ()) if one)
    for top in tops:
        yield from _namespaces(host, top)
    for record in state.records():
        root = str(record["root"])
        yield root.removeprefix(host.root) if root.startswith(host.root + "/") else root


def _task_roots(host: Host) -> Iterator[str]:
    """Where containerd's shims keep tasks: the host's containerd, dockerd's own, and those that run."""
    tops = ["/run/containerd", "/run/docker/containerd/daemon"]
    for engine in _seen_by(host):
        if engine.kind == DOCKER:
            tops.append(f"{_exec_root(engine)}/containerd/daemon")
        if engine.kind == CONTAINERD:
            tops.append(str(engine.settings.get("state") or "/run/containerd"))
    for top in dict.fromkeys(tops):
        yield from _namespaces(host, f"{top}/{TASKS}")


def _seen_by(host: Host) -> list[Engine]:
    """The engines that see the same files as we do."""
    return [one for one in engines(host) if one.host is host]


def _exec_root(engine: Engine) -> str:
    asked = engine.process.option("--exec-root") if engine.process else ""
    return asked or str(engine.settings.get("exec-root") or "/run/docker")


def _namespaces(host: Host, top: str) -> Iterator[str]:
    """The directories below those that are called `top`, whose last part may be a pattern."""
    directory, _, pattern = top.rpartition("/")
    for one in fnmatch.filter(host.names(directory), pattern):
        yield from (f"{directory}/{one}/{namespace}" for namespace in host.names(f"{directory}/{one}"))
