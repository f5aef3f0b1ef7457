"""Faults in what makes a network of our own: `create` where the policy wants one, and both calls of `agentshim-net`.

Belongs here: a network namespace that plays the host's, calls in it, and what is left of them in the kernel and on
disk, once the container was deleted and `agentshim net gc` has been run. Next door: `hooks` has the lock's plan.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from conformance.columns import CONFIG
from conformance.faults import hooks, inject, judge
from conformance.faults.inject import KILL, STATE, Stage
from conformance.faults.outcomes import Outcomes
from conformance.faults.scenarios import Scenario
from conformance.oci.bundles import spec
from conformance.room import Result, wait_for
from conformance.world import Inside
from hooks import host_state

NETWORKS = f"{STATE}/net"
POLICY = """schema = 1
name = "cell"
about = "a network of agentshim's own"
base = "agent"

[network]
mode = "isolated"
outbound = ["tcp:203.0.113.5:8080"]
publish = ["127.0.0.1:18080:8080/tcp"]
host_services = ["tcp:9000"]
"""
WORDS = ("create", "--bundle", "{bundle}", "c")
SCENARIO = Scenario("create", WORDS, "config.json")
STRIDE = 13  # most system calls of a create are those of `scenarios`; each costs a delete and a collection here
CHANGES = r"(write|pwrite64|rename\w*|link\w*|mkdir\w*|sendto|sendmsg)\("


class Ground:
    """The stage in a network namespace of its own, which is a host's for all that is run there."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.room, self.name = stage, stage.room, stage.room.base.name
        policies = self.room.base / "config/policies"
        policies.mkdir()
        (policies / "cell.toml").write_text(POLICY)
        text = CONFIG.replace('default = "agent"', 'default = "cell"').replace("{delegate}", str(stage.delegate))
        (self.room.base / "config/config.toml").write_text(text)
        self.asked = json.dumps(spec("sh")).encode()

    def ask(self, *argv: str) -> str:
        done = self.room.run(list(argv))
        assert done.code == 0, done
        return done.out

    def create(self, how: str = "") -> inject.Seen:
        """`create`, of a config.json as the engine wrote it, at the first address."""
        self.stage.config.write_bytes(self.asked)
        self.room.run(["sh", "-c", f"[ ! -e {NETWORKS}/cell ] || : > {NETWORKS}/cell/addresses/.lock"])
        return self.stage.call([one.format(bundle=self.stage.bundle) for one in WORDS], how)

    def hook(self) -> list[str]:
        """The words of our poststop hook, which come of a create: its program, the plan, 'undo', the address's file."""
        (found,) = [
            one for one in json.loads(self.stage.config.read_text())["hooks"]["poststop"] if "undo" in one["args"]
        ]
        return [found["path"], *found["args"][1:]]

    def remains(self, usual: Iterable[str] = ()) -> list[str]:
        """What is left of a container for which nobody has called the hooks, once it was deleted and collected."""
        self.stage.remember()
        self.stage.call(["delete", "--force", "c"])
        self.stage.forget()
        self.ask(self.stage.program, "net", "gc")
        return [*self.elements(), *self.links(), *sorted(self.files() - set(usual))]

    def down(self) -> list[str]:
        """What is left where no bridge is wanted any more."""
        self.ask(self.stage.program, "net", "down", "--all")
        tables = self.ask("nft", "list", "tables").splitlines()
        return [*tables, *self.links("as-"), *(one for one in self.files() if "/cell/" in one)]

    def elements(self) -> list[str]:
        """What the host's sets hold for containers."""
        told = json.loads(self.ask("nft", "-j", "list", "ruleset"))["nftables"]
        every = [one.get("set") or one.get("map") for one in told]
        found = [one for one in every if one and not one["name"].startswith(("flows", "hosts_", "nets_"))]
        return [f"{one['name']} {key}" for one in found for key in one.get("elem", ())]

    def links(self, first: str = "av") -> list[str]:
        return [one["ifname"] for one in json.loads(self.ask("ip", "-j", "link")) if one["ifname"].startswith(first)]

    def files(self) -> set[str]:
        return set(self.ask("find", STATE, "-type", "f").splitlines())


@contextmanager
def ground(stage: Stage) -> Iterator[Ground]:
    room, name = stage.room, stage.room.base.name
    for words in (("netns", "add", name), ("-n", name, "link", "set", "lo", "up")):
        assert room.run(["ip", *words]).code == 0
    stage.room = Inside(room, name)
    try:
        yield Ground(stage)
    finally:
        stage.room = room
        room.run(["ip", "netns", "delete", name])


def linked(stage: Stage, faults: Collection[str], every: int) -> Outcomes:
    """`create` of a container on a bridge that is there."""
    with ground(stage) as here:
        here.create()
        here.remains()
        return tried("create, isolated", here, faults, every * STRIDE, lambda: None)


def first(stage: Stage, faults: Collection[str], every: int) -> Outcomes:
    """`create` of the first one: it makes the bridge and loads the rules."""
    with ground(stage) as here:
        return tried("create, first of a bridge", here, faults, every * STRIDE, lambda: none_there(here))


def none_there(here: Ground) -> None:
    if here.room.run(["test", "-e", NETWORKS]).code == 0:
        assert here.down() == []


def tried(name: str, here: Ground, faults: Collection[str], every: int, prepare: Callable[[], None]) -> Outcomes:
    """Each fault in every `every`th system call, and a kill in each of ours that changes something; `prepare`
    comes before each.
    """
    out = Outcomes(name)
    usual: set[str] = set()
    for _ in range(2):
        prepare()
        clean = here.create("none")
        assert clean.ran == 1, clean.result
        calls = inject.calls(inject.trace_of(here.stage), str(here.stage.delegate))
        here.remains()
        usual |= here.files()
    out.calls = len(calls)
    some = [call for call in calls[1::every] if call.name not in inject.UNTOUCHED]
    both = [(fault, call) for call in some for fault in faults]
    if KILL in faults:
        both += [(KILL, call) for call in calls if call.phase == "ours" and re.match(CHANGES, call.line)]
    for fault, call in dict.fromkeys(both):
        prepare()
        seen = here.create(inject.expression(fault, call))
        word = judge.verdict(seen, clean, here.asked, SCENARIO, fault, call.phase)
        out.counts[fault, word.partition(":")[0]] += 1
        place = f"{name}: {call.name} {call.number} ({call.phase}) {fault}: {seen.syscall[:160]}"
        if word.startswith(judge.WRONG):
            out.wrong.append(f"{place}\n    {word}")
        here.stage.forget()
        again = here.create()
        left = [f"a state in which the next call fails: {again.result}"] if again.ran != 1 else []
        for one in (*left, *here.remains(usual)):
            out.counts[fault, "left over"] += 1
            out.wrong.append(f"{place}\n    left after the next call, delete and net gc: {one}")
    return out


def do(stage: Stage, faults: Collection[str], every: int) -> Outcomes:
    """`agentshim-net PLAN`: what ends well has made all; what is refused has left nothing, before anybody collects."""
    with ground(stage) as here:
        whole: list[Any] = []

        def call(how: str) -> tuple[Result, Callable[[], bool]]:
            assert here.create().ran == 1
            with container(here) as (pid, state):
                program, plan, *_ = here.hook()
                result = hooks.strace(here.room, [program, plan], state, how)
                found: list[Any] = [hooks.rules(here.room, pid), here.elements(), here.links(), inside(here, pid)]
            if not whole:
                whole.extend(found)
                assert len(found[0].splitlines()) > 20 and all(found), found
            left.extend(f"do: {how}: {one}" for one in remained(here, result, how, found))
            return result, lambda: found == whole

        left: list[str] = []
        out = hooks.tried("agentshim-net, do", here.room, faults, every, call, CHANGES)
        out.wrong += left
        return out


def undo(stage: Stage, faults: Collection[str], every: int) -> Outcomes:
    """`agentshim-net PLAN undo LEASE`: the address is free only when nothing of it is left in the kernel."""
    with ground(stage) as here:
        left: list[str] = []

        def call(how: str) -> tuple[Result, Callable[[], bool]]:
            assert here.create().ran == 1
            program, plan, word, lease = here.hook()
            with container(here) as (_, state):
                assert here.room.run([program, plan], input=state).code == 0
            result = hooks.strace(here.room, [program, plan, word, lease], state, how)
            elements, taken = here.elements(), lease in here.files()
            if elements and not taken:
                left.append(f"undo: {how}: the address is free, and in the kernel: {elements}")
            left.extend(f"undo: {how}: {one}" for one in here.remains() if not one.startswith(STATE))
            return result, lambda: not elements and not taken

        out = hooks.tried("agentshim-net, undo", here.room, faults, every, call, CHANGES)
        out.wrong += left
        return out


def undo_owner(stage: Stage, faults: Collection[str], every: int, struck: int = 0) -> Outcomes:
    """The same where somebody joined: `struck` is the owner's call, or that of who joined, the last one. Nobody who
    lives is cut off, and all goes with them.
    """
    with ground(stage) as here:
        left: list[str] = []

        def call(how: str) -> tuple[Result, Callable[[], bool]]:
            assert here.create().ran == 1
            program, plan, word, lease = here.hook()
            with container(here) as (pid, state):
                assert here.room.run([program, plan], input=state).code == 0
                there = here.elements()
                shared, claim = claimed(here, pid, plan, lease)
                hooked = [_undone(here, [program, plan, word, lease], how if struck == 0 else None)]
                marked = here.ask("cat", lease).startswith("-")
                here.ask(here.stage.program, "net", "gc")
                if here.elements() != there or not here.files() >= {lease, claim, shared}:
                    left.append(f"owner: {how}: it was cut off, and lives: {here.elements()} {here.files()}")
            hooked.append(_undone(here, [program, shared, word, lease, claim], how if struck == 1 else None))
            done = not here.elements() and not here.files() & {lease, claim, shared}
            left.extend(f"last: {how}: not taken back" for _ in range(struck == 0 and not done))
            files = (lease, claim, shared)
            left.extend(f"undo: {how}: {one}" for one in here.remains() if not one.startswith(STATE) or one in files)
            return hooked[struck], lambda: (marked, done)[struck]

        out = hooks.tried(f"agentshim-net, undo, {('owner', 'last')[struck]}", here.room, faults, every, call, CHANGES)
        out.wrong += left
        return out


def _undone(here: Ground, words: list[str], how: str | None) -> Result:
    """The hook under strace with a fault, or as it is."""
    return here.room.run(words, input="") if how is None else hooks.strace(here.room, words, "", how)


def claimed(here: Ground, pid: int, plan: str, lease: str) -> tuple[str, str]:
    """The plan and the claim of a process that joined a network."""
    members = host_state.members_of(lease)
    first = f"{members}/{lease.rpartition('/')[2]}"
    shared, claim = f"{first}.net", f"{first}.{pid}.{host_state.started(str(pid))}.nobody"
    here.ask("sh", "-c", f"mkdir -p -m 700 {members} && ln -f {plan} {shared} && ln {lease} {claim}")
    return shared, claim


def remained(here: Ground, result: Result, how: str, found: list[Any]) -> list[str]:
    """What is left of a hook that failed, by itself; and of any, once it was collected."""
    refused = result.code != 0 and KILL not in how and result.code != hooks.SIGSYS
    return [str(one) for one in (found[1:3] if refused else ()) if one] + [
        one for one in here.remains() if not one.startswith(STATE)
    ]


@contextmanager
def container(here: Ground) -> Iterator[tuple[int, str]]:
    """A process in a network namespace of its own, and what the delegate tells a hook of it; both are gone then."""
    null = subprocess.DEVNULL
    init = here.room.popen(["unshare", "--net", "sleep", "1000"], stdin=null, stdout=null, stderr=null)
    ours = here.ask("readlink", "/proc/self/ns/net").strip()
    others = (str(Path("/proc/self/ns/net").readlink()), ours)
    wait_for(lambda: str(Path(f"/proc/{init.pid}/ns/net").readlink()) not in others, 5, "a network namespace")
    try:
        yield init.pid, json.dumps({"ociVersion": "1.0.2", "id": "c", "pid": init.pid})
    finally:
        init.kill()
        init.wait()
        wait_for(lambda: not here.links(), 5, "the link to go with its namespace")


def inside(here: Ground, pid: int) -> list[str]:
    """What of a link is up in a container."""
    told = here.ask("nsenter", "--net", "--target", str(pid), "ip", "-o", "-4", "address")
    return [line.partition(" brd")[0] for line in told.splitlines()]


CALLS: dict[str, Callable[[Stage, Collection[str], int], Outcomes]] = {
    "isolated": linked,
    "first": first,
    "net-do": do,
    "net-undo": undo,
    "net-undo-owner": undo_owner,
    "net-undo-last": partial(undo_owner, struck=1),
}
