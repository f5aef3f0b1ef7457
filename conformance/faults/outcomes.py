"""What a run of faults comes to: counts by fault and outcome, and a table of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from conformance.faults import judge

ORDER = (judge.REFUSED, judge.LOWERED, judge.KILLED, judge.EARLY, judge.MISSED, judge.WRONG, "left over")


@dataclass
class Outcomes:
    """One scenario: how many system calls it has, (fault, outcome) -> how often, and what went wrong in words."""

    scenario: str
    calls: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def table(every: list[Outcomes]) -> str:
    out = ["| call | system calls | fault | " + " | ".join(ORDER) + " |", "|---|---:|---|" + "---:|" * len(ORDER)]
    for one in every:
        for fault in dict.fromkeys(fault for fault, _ in one.counts):
            cells = " | ".join(str(one.counts[fault, word] or "") for word in ORDER)
            out.append(f"| {one.scenario} | {one.calls} | {fault} | {cells} |")
    return "\n".join(out)
