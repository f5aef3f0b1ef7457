"""Claims on the CPU and on surviving out-of-memory. Order: a greater oom_score_adj and a weaker claim are lower.

A claim is a real-time or deadline class, a negative nice value, a real-time I/O class, a CPU affinity or a NUMA
policy: either all of them may be asked or none. Source: sched(7), ioprio_set(2), proc_pid_oom_score_adj(5).
"""

from __future__ import annotations

from shim.lattice import REASON, Decrease, Value, at, with_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.kernel import Facts
    from shim.lattice import Section, Spec

NAME = "scheduling"
KEYS = (
    "process.oomScoreAdj",
    "process.scheduler",
    "process.ioPriority",
    "process.execCPUAffinity",
    "linux.memoryPolicy",
)
OOM_MIN, OOM_MAX = -1000, 1000
WEAK_POLICIES = ("SCHED_OTHER", "SCHED_BATCH", "SCHED_IDLE")


class Scheduling(Value):
    """`oom`: the least oom_score_adj, -1000..1000; `claims`: the OCI keys of claims, or None for any claim."""

    __slots__ = ("oom", "claims")

    def __init__(self, oom: int, claims: frozenset[str] | None) -> None:
        self.oom = oom
        self.claims = claims


TOP = Scheduling(OOM_MIN, None)
BOTTOM = Scheduling(OOM_MAX, frozenset())


def leq(a: Scheduling, b: Scheduling) -> bool:
    return meet(a, b) == a


def meet(a: Scheduling, b: Scheduling) -> Scheduling:
    if a.claims is None or b.claims is None:
        claims = b.claims if a.claims is None else a.claims
    else:
        claims = a.claims & b.claims
    return Scheduling(max(a.oom, b.oom), claims)


def from_spec(spec: Spec, facts: Facts) -> Scheduling:
    oom = at(spec, KEYS[0], facts.oom_score_adj)
    return Scheduling(max(OOM_MIN, min(OOM_MAX, oom)), frozenset(key for key in KEYS[1:] if _claims(spec, key)))


def from_policy(section: Section) -> Scheduling:
    if section == "top":
        return TOP
    return BOTTOM if section is None else Scheduling(section.get("oom_score_adj", 0), frozenset())


def apply_to_spec(spec: Spec, value: Scheduling, facts: Facts) -> Spec:
    asked = from_spec(spec, facts)
    out = spec
    if asked.oom != value.oom:
        out = with_key(out, KEYS[0], value.oom)
    for key in asked.claims or ():
        if value.claims is not None and key not in value.claims:
            out = with_key(out, key, None)
    return out


def explain(asked: Scheduling, ceiling: Scheduling, granted: Scheduling) -> list[Decrease]:
    out = []
    if asked.oom != granted.oom:
        why = "the policy lets the kernel choose this container first when memory runs out"
        allow = f"[scheduling] oom_score_adj = {asked.oom}"
        out.append(Decrease(KEYS[0], str(asked.oom), str(granted.oom), why, allow))
    for key in sorted((asked.claims or frozenset()) - (granted.claims or frozenset())):
        why = "a claim on the host's processors or memory nodes"
        out.append(Decrease(key, "set", "not set", why, 'scheduling = "top"' + REASON))
    return out


def refusals(asked: Scheduling, granted: Scheduling) -> list[Exception]:
    return []


def _claims(spec: Spec, key: str) -> bool:
    """Whether the object at `key` claims more than an ordinary process has."""
    value = at(spec, key)
    if not value:
        return False
    if key == "process.scheduler":
        return bool(value.get("policy") not in WEAK_POLICIES or value.get("nice", 0) < 0 or value.get("flags"))
    if key == "process.ioPriority":
        return bool(value.get("class") != "IOPRIO_CLASS_IDLE")
    return True
