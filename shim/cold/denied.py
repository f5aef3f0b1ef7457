"""`agentshim denied CONTAINER`: what was kept from a container: peers and ports by its network, system calls by its
filter; and for each the policy line that would allow it.

Belongs here: whose a denied call was, and who denied it. Next door: `net` knows the network's rows, `seccomp_records`
reads the kernel's. The kernel names a process, not a container: while that process lives, its control group decides;
afterwards nobody can say, and a row is marked as a guess or left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from shim import bundle, policy, spec, state, wire
from shim.cold import audit
from shim.cold.explain import find
from shim.cold.network import net
from shim.cold.seccomp.seccomp_records import Kernel, Record, Socket, of_auditd, unlogged
from shim.dim import capabilities, seccomp
from shim.errors import HostError, ShimError, printable
from shim.kernel import Facts
from shim.lattice import REASON
from shim.seccomp import cubes
from shim.seccomp.profile import Profile
from shim.seccomp.vocabulary import FLAG_LOG, NATIVE

FOLLOW = 1.0  # seconds between two looks at the network
HOST_PIDS = 0xEFFFFFFC  # linux/proc_ns.h: PROC_PID_INIT_INO, the namespace of the numbers that the kernel logs
SLACK = 0.1  # seconds; start times have ticks of 10 ms, and the kernel's clock of records is coarse
SURE, MAYBE, NO = "yes", "maybe", "no"


def main(words: list[str]) -> int:
    """Runs the command; 0. Raises ShimError."""
    parser = argparse.ArgumentParser(prog="agentshim denied", description="what was rejected, out and in, and by whom")
    parser.add_argument("container", metavar="CONTAINER", help="an id, a unique prefix, or an engine's name")
    parser.add_argument("--json", action="store_true", help="one line of JSON a row, in ECS names")
    parser.add_argument("--follow", action="store_true", help="go on, and show what is new or has grown")
    options = parser.parse_args(words)
    audit.to_any_terminal()
    one = Container(find(options.container))
    live = Socket() if options.follow else None  # before the log is read: nothing is lost between the two
    kernel = Kernel()
    shown: dict[Any, Any] = {}
    serials: set[int] = set()
    _network(one, options.json, shown)
    _calls(one, [*of_auditd(), *kernel.records()], options.json, serials)
    for note in _notes(one, kernel, live):
        sys.stderr.write(f"note: {note}\n")
    try:
        while live is not None:
            if live.missing:
                time.sleep(FOLLOW)
            for record in kernel.records() if live.missing else live.records(FOLLOW):
                _calls(one, [record], options.json, serials)
            if live.lost:
                live.lost = False
                sys.stderr.write("note: the audit socket was too full: some denials, of any process, were not seen\n")
            _network(one, options.json, shown)
    except KeyboardInterrupt:
        pass  # how a person ends it
    return 0


class Container:
    """A container, as far as a record of the kernel can be compared with it."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.init = state.init_of(record)
        self.groups = _groups(self.init) if self.init else set()
        self.created = _epoch(int(record["started"]))
        self.granted = _granted(record)
        self._sides: tuple[Profile, Profile] | None = None

    def has(self, record: Record) -> str:
        """Whether a denial was this container's: SURE, MAYBE, NO."""
        if record.when < self.created - SLACK:
            return NO
        ticks = state._started(str(record.pid)) if _sees_all() else 0
        if ticks and _epoch(ticks) <= record.when + SLACK:
            there = _groups(record.pid)
            if there or not self.groups:
                return self._is_in(record.pid, there)
            # Its end has begun: it has left its groups of version 1.
        return MAYBE if record.exe and self._holds(record.exe) else NO

    def _is_in(self, pid: int, there: set[str]) -> str:
        """Whether a process in the control groups `there` is this container's: SURE, MAYBE, NO. Namespaces that it has
        in common with the container are none of the host's; where there are no groups, its mounts decide.
        """
        mounts, pids = (self._shares(pid, kind) for kind in ("mnt", "pid"))
        if not self.groups:
            return SURE if mounts else NO
        if _within(there, self.groups):
            return SURE
        # An init that is a manager itself (systemd, that of dind) has left the group that create set up for one below.
        created = {_trimmed(one) for one in self.groups}
        if created != self.groups and _within(there, created):
            own = self.record["id"]  # cgroupfs: ID; systemd: ENGINE-ID.scope
            is_named = any(one.endswith((f"/{own}", f"-{own}.scope")) for one in created)
            return SURE if is_named or mounts or pids else MAYBE
        return MAYBE if mounts or pids else NO

    def _shares(self, pid: int, kind: str) -> bool:
        """Whether a process and the container's first have a namespace in common that is not our own."""
        one = _namespace(pid, kind)
        return bool(self.init and one) and one == _namespace(self.init, kind) != _namespace(os.getpid(), kind)

    def _holds(self, exe: str) -> bool:
        """Whether the program is in the container's root; a path that the kernel writes has no links in it."""
        root = f"/proc/{self.init}/root" if self.init else self.record["rootfs"]
        return os.path.lexists(root + exe.removesuffix(" (deleted)"))

    def advice(self, record: Record) -> tuple[str, str]:
        """(who denies the call, the policy line that would allow it): '' where we do not know, or no line does."""
        if record.call.isdigit():
            return "no rule can name it", ""
        native = NATIVE.get(os.uname().machine, "")
        if f"SCMP_ARCH_{record.arch.upper()}" != native:
            return "its ABI is not allowed", f'[seccomp] architectures = ["{record.arch}"]'
        asked, ceiling = self._profiles()
        by = [(name, _left(side, record.call)) for name, side in (("policy", ceiling), ("engine", asked))]
        words = [f"{name}{' for some arguments' if left == 'some' else ''}" for name, left in by if left != "all"]
        line = f'[seccomp] add = [{{ names = ["{record.call}"]{REASON} }}]' if by[0][1] != "all" else ""
        if by[1][1] != "all":
            line += (", and " if line else "") + "the engine's own profile: --security-opt seccomp=FILE"
        return f"denied by the {' and the '.join(words)}" if words else "", line

    def _profiles(self) -> tuple[Profile, Profile]:
        """What was asked, and the ceiling that it was met with."""
        if self._sides is None:
            data = state.asked(self.record["root"], self.record["id"])
            asked_spec, _ = spec.check(wire.loads(data, "denied", "config.json"), "drop")
            chosen = policy.load(self.record["policy"], policy.config())
            held = capabilities.from_spec({"process": self.record["process"]}, Facts())
            ceiling = seccomp.resolve(seccomp.from_policy(chosen.sections.get("seccomp")), held.sets[0] & held.sets[1])
            self._sides = (seccomp.from_spec(asked_spec, Facts()), ceiling)
        return self._sides


def _calls(one: Container, records: list[Record], as_json: bool, serials: set[int]) -> None:
    """Shows the denials that are this container's, each once: in words by kind, in JSON every one."""
    kinds: dict[Any, list[Record]] = {}
    for record in records:
        certain = one.has(record)
        if record.serial in serials or certain == NO:
            continue
        serials.add(record.serial)
        kinds.setdefault((certain, record.call, record.arch, record.exe, record.comm, record.action), []).append(record)
    for (certain, *_), every in kinds.items():
        try:
            who, allow = one.advice(every[0])
        except ShimError as error:  # the policy or the record has gone since
            who, allow = f"who denied it is not known ({error})", ""
        for record in every if as_json else every[-1:]:
            told = _ecs(one, record, certain, who, allow) if as_json else _line(record, certain, who, allow, len(every))
            print(json.dumps(told) if as_json else told, flush=True)


def _line(record: Record, certain: str, who: str, allow: str, times: int) -> str:
    call = record.call if not record.call.isdigit() else f"system call {record.call}"
    verb = "logged" if record.allowed else "rejected"
    many = f"{times} times, last " if times > 1 else ""
    text = (
        f"{verb}{'' if certain == SURE else ' (maybe here)'} {call} ({record.arch}, {record.action}) by"
        f" {printable(record.exe or '?')} ({printable(record.comm)}), {many}process {record.pid}"
        f" at {_time(record.when)}" + (f": {printable(who)}" if who else "")
    )
    return text + (f"\n    to allow: {allow}" if allow else "")


def _ecs(one: Container, record: Record, certain: str, who: str, allow: str) -> dict[str, Any]:
    """A denial in the names of the Elastic Common Schema 8."""
    return {
        "@timestamp": _time(record.when),
        "event.kind": "event",
        "event.category": ["process"],
        "event.action": "seccomp_logged" if record.allowed else "seccomp_denied",
        "event.outcome": "success" if record.allowed else "failure",
        "event.sequence": record.serial,
        "process.pid": record.pid,
        "process.name": record.comm,
        "process.executable": record.exe,
        "user.id": record.uid,
        "container.id": one.record["id"],
        "rule.ruleset": one.record["policy"],
        "agentshim.digest": one.record["digest"],
        "agentshim.call": record.call,
        "agentshim.arch": record.arch,
        "agentshim.action": record.action,
        "agentshim.certain": certain == SURE,
        "agentshim.by": who,
        "agentshim.allow": allow,
    }


def _network(one: Container, as_json: bool, shown: dict[Any, Any]) -> None:
    """Shows the rows of the network that are new or have grown."""
    if one.record.get("network") is None:
        return
    try:
        rows = list(net.rejected(one.record))
    except HostError:
        return  # `_notes` has said that there is no process
    for key, counts, line, told in rows:
        if counts > shown.get(key, (0, 0)):  # a row of the host's ends after an hour, and may begin anew
            print(json.dumps(told) if as_json else line, flush=True)
        shown[key] = counts


def _notes(one: Container, kernel: Kernel, live: Socket | None) -> Iterator[str]:
    """What a reader must know who takes an empty list for a quiet container."""
    if one.record.get("network") is None:
        yield f"the network is not filtered under policy {one.record['policy']}"
    elif not one.init:
        yield "no process: what the network rejected is gone with it"
    if one.granted is not None and not one.granted:
        yield "no filter of system calls: nothing was asked to deny any"
    elif one.granted and FLAG_LOG not in (one.granted.get("flags") or ()):
        todo = "[seccomp] log = true in the policy (runc 1.2 or newer, or crun)"
        yield f"its filter logs no call that is denied with an errno, only those that kill: {todo}"
    elif why := unlogged("errno"):
        yield f"calls that are denied with an errno are not logged: {why}"
    yield "the kernel logs no arguments of a call, and names a process, not a container"
    if kernel.missing:
        yield f"the kernel's log cannot be read: {kernel.missing}"
    if kernel.overwritten:
        yield "the oldest lines of the kernel's log are overwritten"
    if kernel.lost:
        yield f"the kernel's log has left out {kernel.lost} records, of any process (10 pass in 5 s): --follow sees all"
    if live is not None and live.missing:
        yield f"not every denial will be seen: {live.missing}"


def _left(profile: Profile, call: str) -> str:
    """What a profile lets through of a call: 'all', 'some' or 'none' of its arguments."""
    if profile.is_top:
        return "all"
    grant = profile.model.calls.get(call, profile.model.rest)[1]
    return "none" if not grant else "all" if grant == cubes.EVERY else "some"


def _granted(record: dict[str, Any]) -> dict[str, Any] | None:
    """The filter in the bundle that was handed on: {} without one, None where the bundle has gone."""
    try:
        data, _ = bundle.Directory(record["bundle"]).read("config.json")
        told: Any = wire.loads(data, "denied", "config.json")
        return dict((told.get("linux") or {}).get("seccomp") or {})
    except (ShimError, AttributeError, TypeError, ValueError):
        return None


def _groups(pid: int) -> set[str]:
    """The control groups of a process, each with its hierarchy; not the root groups, where everybody is. None of one
    that has begun to end: what the kernel still tells of it differs between versions of the hierarchy.
    """
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
        with open(f"/proc/{pid}/stat", "rb") as file:
            ended = file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (OSError, IndexError):
        return set()
    return {line for line in lines if not line.endswith(":/") and not ended}


def _within(there: set[str], groups: set[str]) -> bool:
    """Whether `there` are these groups or below them: in all of them, for a host in a container has some in common with
    everybody.
    """
    return all(any(one == own or one.startswith(own + "/") for one in there) for own in groups)


def _trimmed(group: str) -> str:
    """A group without the part that an init makes for itself (systemd: init.scope; dind: init)."""
    head, _, last = group.rpartition("/")
    return head if last in ("init.scope", "init") and not head.endswith(":") else group


def _namespace(pid: int, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def _sees_all() -> bool:
    """Whether the numbers of processes here are those that the kernel logs."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == HOST_PIDS
    except OSError:
        return False


def _epoch(ticks: int) -> float:
    """Unix seconds of a moment in clock ticks since boot."""
    booted = time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def _time(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
