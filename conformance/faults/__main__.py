"""`make faults`: every system call of ours fails once with each error, and is once the last; a table of the outcomes.

python -m conformance.faults [SCENARIO…] [--every K] [--first N] [--fault ENOSPC]
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence

from conformance.faults import inject, judge
from conformance.faults.hooks import HOOKS
from conformance.faults.inject import FAULTS, Seen, Stage, trace_of
from conformance.faults.networks import CALLS
from conformance.faults.outcomes import Outcomes, table
from conformance.faults.scenarios import SCENARIOS, Scenario
from conformance.room import room


def tried(
    stage: Stage,
    scenario: Scenario,
    faults: Sequence[str],
    every: int,
    first: int = 1,
    in_turn: bool = False,
    only: str = "",
) -> Outcomes:
    """Puts each fault into every `every`th system call from `first` on; the one before is strace's own execve.

    `in_turn`: one fault for each call, the next one for the next. `only`: those of ours whose line in the trace
    matches this expression.
    """
    out = Outcomes(scenario.name)
    usual: set[str] = set()
    for _ in range(2):  # the first makes proofs and compiled forms
        scenario.prepare(stage)
        usual.update(again(stage, scenario).left)  # as after a fault that came early
        scenario.prepare(stage)
        asked = stage.config.read_bytes()
        clean = stage.call(scenario.call(stage), "none", scenario.env, scenario.input)
        assert clean.ran == 1, f"the scenario fails without a fault: {clean.result}"
        calls = inject.calls(trace_of(stage), str(stage.delegate))
        usual.update(clean.left, again(stage, scenario).left)
    out.calls = len(calls)
    some = [call for call in calls[first::every] if call.name not in inject.UNTOUCHED]
    some = [call for call in some if not only or (re.search(only, call.line) and call.phase == "ours")]
    both = [(fault, call) for call in some for fault in faults]
    for fault, call in both[:: len(faults) + 1] if in_turn else both:
        scenario.prepare(stage)
        seen = stage.call(scenario.call(stage), inject.expression(fault, call), scenario.env, scenario.input)
        word = judge.verdict(seen, clean, asked, scenario, fault, call.phase)
        out.counts[fault, word.partition(":")[0]] += 1
        place = f"{scenario.name}: {call.name} {call.number} ({call.phase}) {fault}: {seen.syscall[:160]}"
        if word.startswith(judge.WRONG):
            out.wrong.append(f"{place}\n    {word}")
        for path in left_after(stage, scenario, usual):
            out.counts[fault, "left over"] += 1
            out.wrong.append(f"{place}\n    left after the next call: {path}")
    return out


def again(stage: Stage, scenario: Scenario) -> Seen:
    """The next call of agentshim, on what was left: the same once more, or a create of the same id."""
    stage.forget()
    if scenario.made and scenario.lowers:
        stage.remember()
        return stage.call(scenario.call(stage), env=scenario.env, input=scenario.input)
    return stage.call(["create", "--bundle", str(stage.bundle), "c"])


def left_after(stage: Stage, scenario: Scenario, usual: set[str]) -> Iterator[str]:
    """What lies about once agentshim was called again, cleanly; it is removed, so that it is told once."""
    after = again(stage, scenario)
    if after.ran != 1:
        yield f"a state in which the next call fails: {after.result}"
    for path in judge.leftovers(after, usual):
        stage.room.run(["rm", "-rf", path])
        yield path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance.faults", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=" ".join((*SCENARIOS, *HOOKS, *CALLS)))
    parser.add_argument("--every", type=int, default=1, help="put it into each K-th system call only")
    parser.add_argument("--first", type=int, default=1, help="begin with this one")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only this one")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("conformance.faults: root is needed")
    rows = []
    faults = options.fault or FAULTS
    for name in options.scenarios or (*SCENARIOS, *HOOKS, *CALLS):
        with room("flt-") as here:
            stage = Stage(here)
            if name not in SCENARIOS:
                rows.append({**HOOKS, **CALLS}[name](stage, faults, options.every))
            else:
                rows.append(tried(stage, SCENARIOS[name], faults, options.every, options.first))
        print("\n".join([f"{name}: {dict(rows[-1].counts)}", *rows[-1].wrong]), file=sys.stderr, flush=True)
    print(table(rows))
    return any(row.wrong for row in rows)


if __name__ == "__main__":
    sys.exit(main())
