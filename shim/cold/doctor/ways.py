"""Ways around us: who may choose another runtime, what does so by itself, and containers that we never saw.

Belongs here: what is no fault of ours, and that the host's owner should know. Next door: `registration`.
"""

from __future__ import annotations

import fnmatch
import json
import os
import stat
from collections.abc import Iterator

from shim import state
from shim.cold.doctor.advisories import version
from shim.cold.doctor.engines import CONTAINERD, CRIO, DOCKER, Engine, engines, table
from shim.cold.doctor.host import FAIL, OK, WARN, Finding, Host, Process
from shim.cold.doctor.registration import is_idle, is_meant, ours, path_fault

# runc, crun: the file, and where it has the first process and when that began
STATES = (("state.json", "init_process_pid", "init_process_start"), ("status", "pid", "process-start-time"))
MOST = 20  # containers that are named
# Where delegates keep containers: runc's and crun's own, and below them those of containerd's and dockerd's namespaces.
ROOTS = ("/run/runc", "/run/crun")
NAMESPACED = ("/run/containerd/runc", "/run/docker/runtime-*")
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
        level = WARN if engine.settings.get("tlsverify") else FAIL
        yield Finding(level, name, "whoever reaches this address may choose any runtime", todo, subject)
        return
    path = {"fd://": "/run/docker.sock"}.get(address, address.removeprefix("unix://"))
    try:
        there = os.stat(engine.host.at(path))
    except OSError:
        return  # it does not listen
    if there.st_mode & stat.S_IWOTH:
        yield Finding(FAIL, name, "every user of this host is root by it", f"chmod 660 {path}", subject)
    elif there.st_mode & stat.S_IWGRP and (members := _members(host, there.st_gid)):
        todo = "take out whom you would not make root: no engine can forbid --runtime=runc"
        yield Finding(WARN, name, f"may choose any runtime, and is root by it: {', '.join(members)}", todo, subject)
    else:
        yield Finding(OK, name, "root alone may choose a runtime", subject=subject)


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
    known = {(one["root"], one["id"]) for one in state.records()}
    here = [(root, name, pid) for root, name in containers(host) if (pid := _init(host, f"{root}/{name}"))]
    found = [one for one in here if (os.path.realpath(host.at(one[0])), one[1]) not in known]
    for root, name, pid in found[:MOST]:
        todo = "stop it and start it again under agentshim, if it was to be confined"
        yield Finding(WARN, "around.unseen", f"process {pid}, not created by agentshim", todo, f"{root}/{name}")
    if len(found) > MOST:
        yield Finding(WARN, "around.unseen", f"{len(found) - MOST} more", "see the engines' own lists", "and")
    if not found:
        yield Finding(OK, "around.unseen", f"none; {len(here)} of ours")
    for engine in engines(host):
        if engine.host is not host and engine.process:
            todo = f"nsenter -t {engine.process.pid} -m agentshim doctor"
            yield Finding(
                WARN, "around.elsewhere", "has mounts of its own: its containers were not looked at", todo, engine.name
            )


def containers(host: Host) -> Iterator[tuple[str, str]]:
    """(root, id) of every container that a delegate's state directory holds."""
    for root in dict.fromkeys(host.real(one) for one in _roots(host)):
        for name in host.names(root):
            if any(host.has(f"{root}/{name}/{file}") for file, *_ in STATES):
                yield root, name


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
    tops = [*NAMESPACED]
    for engine in engines(host):
        if engine.host is not host:
            continue
        if engine.kind == DOCKER and engine.process:
            place = engine.process.option("--exec-root") or str(engine.settings.get("exec-root") or "/run/docker")
            tops.append(f"{place}/runtime-*")
        if engine.kind == CONTAINERD:
            tops.append(f"{engine.settings.get('state') or '/run/containerd'}/runc")
        if engine.kind == CRIO:
            yield from (one for one in engine.settings.get("roots", ()) if one)
    for top in tops:
        directory, _, pattern = top.rpartition("/")
        for one in fnmatch.filter(host.names(directory), pattern):
            yield from (f"{directory}/{one}/{namespace}" for namespace in host.names(f"{directory}/{one}"))
