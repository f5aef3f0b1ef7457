"""plan: never above asked or ceiling, by our own order and by oracle.py; a second create changes nothing.

Belongs here: plans over the small host of world.py, and over this machine's facts. Next door: tests/laws has the laws.
"""

from __future__ import annotations

import json
from typing import Any

from shim import kernel, plan, product, spec, wire
from shim.dim import invocation, seccomp
from shim.errors import HostError, Invalid, Refused
from tests.fuzz import grow, oracle, world
from tests.fuzz.on_spec import document
from tests.fuzz.properties import SEEN, as_finding, demand, only, target

POLICIES = world.policies()
NAMES = [dim.NAME for dim in product.DIMENSIONS]
WRITTEN = tuple(dim for dim in product.DIMENSIONS if dim.KEYS)  # the others are no part of a spec
# What a policy's section may be replaced by.
SOME_SECTIONS: list[tuple[str, Any]] = [
    ("capabilities", {"grant": ["SYS_ADMIN", "CHOWN", "NET_BIND_SERVICE"], "ambient": ["NET_BIND_SERVICE"]}),
    ("capabilities", {"grant": ["CHOWN"], "new_privileges": True}),
    ("mounts", {"volumes": "ro", "exec": False, "workspace": ["/work"], "sockets": ["/run/app.sock"]}),
    ("mounts", {"volumes": "none"}),
    ("mounts", {"volumes": "rw", "exec": False, "workspace": ["/data"]}),
    ("namespaces", {"host": ["user", "time", "cgroup"], "shared": ["network"]}),
    ("namespaces", {"host": ["user", "time"], "shared": []}),
    ("devices", {"add": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "access": "rw"}]}),
    ("devices", {"add": [{"path": "/dev/x", "type": "c", "major": 10, "minor": -1, "access": "rwm"}]}),
    ("resources", {"pids": 5, "memory": 4096, "memory_swap": 4096, "cpus": 0.5}),
    ("resources", {"memory": 1048576}),
    ("user", {"allow": "non-root"}),
    ("rlimits", {"core": 0, "nofile": 100, "cpu": 5}),
    ("scheduling", {"oom_score_adj": 500}),
    ("paths", {"masked": ["/proc/keys"], "readonly": ["/proc/sys"], "rootfs": "writable"}),
    ("paths", {"masked": [], "readonly": [], "rootfs": "readonly", "scratch": {"/tmp": {"size": "64m", "exec": True}}}),
    ("lsm", {"apparmor": "l1", "selinux": "confined"}),
    ("sysctl", {"allow": ["net.*", "kernel.shmmax"]}),
    ("hooks", {"allow": ["/opt/hook"]}),
    ("annotations", {"unsafe": True}),
]  # fmt: skip


def sections_of(r: grow.Reader) -> dict[str, Any]:
    """A policy's sections: a built-in one's, some of them replaced."""
    out = dict(POLICIES[r.pick(list(POLICIES))])
    small = out.pop("small")
    for _ in range(r.below(4)):
        how = r.below(8)
        if how < 4:
            name, section = r.pick(SOME_SECTIONS)
            out[name] = section
        elif how == 4:
            out["seccomp"] = small
        else:
            name = r.pick(NAMES)
            out[name] = "top" if how == 5 else None if how == 6 else POLICIES[r.pick(list(POLICIES))][name]
    return out


def admit(asked: Any, ceiling: Any, mask: int) -> None:
    """As gate.Admitter, without compiling: the model's meet. The proofs have tests of their own."""
    if seccomp.instant(asked, ceiling) is None:
        seccomp.admit(asked, ceiling, seccomp.meet(asked, ceiling))


@target
def target_plan(data: bytes) -> None:
    r = grow.Reader(data)
    sections, mode = sections_of(r), r.pick(("enforce",) * 6 + ("strict", "audit"))
    real, hooked = r.below(16) == 15, r.below(4) == 3
    tree, which = document(r, False)
    if which != 0:
        return
    seccomp._settled.clear()
    with only(Invalid):
        asked, _ = spec.check(wire.loads(grow.text(tree).encode("utf-8", "surrogatepass"), "fuzz", "input"))
    before = json.dumps(asked)
    with only(HostError):
        facts = kernel.gather(asked, "/tmp", invocation.BOTTOM) if real else world.facts_of(asked)
    facts.launcher, facts.locker = "/usr/bin/agentshim", "/usr/lib/agentshim/agentshim-net"
    hooks = (facts.our_hook("/r", "c"), facts.lock_hook("/run/agentshim/x.net")) if hooked else ()
    ceiling = product.from_policy(sections)
    SEEN[:] = [repr((asked, sections))]
    with only(Invalid, Refused):
        made = plan.make(asked, ceiling, facts, admit, mode, hooks=hooks)
    demand(json.dumps(asked) == before, "what was asked was changed", asked)
    for room, loss in made.losses():
        demand(room in NAMES and loss.key_path and loss.why and loss.allow, "a loss without words", room, loss)
    if mode == "audit":
        demand(made.spec is asked and made.data is None, "audit changed the spec", made.spec)
        return
    _planned(made, asked, ceiling, sections, facts, real, hooks)


def _planned(
    made: plan.Plan, asked: Any, ceiling: Any, sections: Any, facts: kernel.Facts, real: bool, hooks: Any
) -> None:
    out = wire.dumps(made.spec)
    demand(made.data in (None, out), "other bytes than the spec", made.data)
    demand(made.data is not None or made.spec == asked, "a changed spec without bytes", made.spec)
    with as_finding("our own spec is refused", out):
        written, dropped = spec.check(wire.loads(out, "fuzz", "written"))
    demand(written == made.spec and not dropped, "our own spec reads otherwise", made.spec)
    shown = product.from_spec(written, facts, WRITTEN)
    top, _ = plan.granted_of(made.asked, ceiling, admit, product.DIMENSIONS)
    demand(product.above(shown, top) == [], "above the ceiling", product.above(shown, top), written)
    demand(product.above(shown, made.asked) == [], "above what was asked", product.above(shown, made.asked), written)
    place = {**world.WORLD, "hooks": hooks}
    judges = [oracle.excesses(written, asked, sections, place)]
    if real:
        judges = [oracle.capabilities(written, asked, oracle.section(sections, "capabilities"))]
        judges += [oracle.paths(written, asked, oracle.section(sections, "paths")), oracle.carried(written, asked)]
    wrong = [line for judge in judges for line in judge]
    demand(not wrong, "wider, says the oracle", wrong, written)
    again_facts = facts if real else world.facts_of(written)
    if real:
        again_facts = kernel.gather(written, "/tmp", invocation.BOTTOM)
        again_facts.launcher, again_facts.locker = facts.launcher, facts.locker
    with as_finding("a second create is refused", written):
        again = plan.make(written, ceiling, again_facts, admit, hooks=hooks)
    demand(again.spec == written, "a second create changes it again", written, again.spec)
