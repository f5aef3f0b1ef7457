"""`python -m conformance.bench`: measure, print the table, put everything back. Run as root; see --help.

Belongs here: options, set-up and clean-up. Next door: `rows` has the comparisons, `place` the namespaces.
The exit code is 0 where everything could be measured, however slow; 1 where a row failed; 2 where nothing can run.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from conformance.bench import imports, network, report, rows, stage
from conformance.bench.life import Failed
from conformance.bench.turns import Bench, Row


def main() -> int:
    """Parse, measure, print."""
    options = _options()
    stage.settle(options)
    if problem := stage.obstacle(options):
        print(f"BENCH NOT RUN: {problem}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        with stage.stage(options) as bench:
            return _measure(bench, options)
    except Failed as failure:  # not even one container: there is nothing to compare
        print(f"BENCH NOT RUN: {failure}", file=sys.stderr)
        return 2


def _measure(bench: Bench, options: argparse.Namespace) -> int:
    print(report.header(bench, options), flush=True)
    found: list[Row] = []
    failures = bench.failures
    for name in options.rows:
        if name == "imports":
            continue
        try:
            for row in rows.GROUPS[name](bench):
                found.append(row)
                print(f"  measured {row.work}: {row.ours} / {row.theirs}", file=sys.stderr, flush=True)
        except Failed as failure:
            failures.append(f"{name}: {failure}")
    report.NAMES.update(network.NAMES)
    print("\n" + report.table(found))
    for line in network.absent() if {"networks", "throughput"} & set(options.rows) else ():
        print(f"| NOT MEASURED {line} |")
    accounts: list[imports.Imports] = []
    if "imports" in options.rows and (options.library / "shim" / "main.py").is_file():
        try:
            accounts = imports.accounts(bench, options.python, options.library)
            print("\n" + imports.table(accounts))
        except Failed as failure:
            failures.append(f"imports: {failure}")
    for line in failures:
        print(f"\nFAILED {line}")
    if options.json:
        _write_json(options.json, found, accounts, failures)
    return 1 if failures else 0


def _write_json(path: Path, found: list[Row], accounts: list[imports.Imports], failures: list[str]) -> None:
    everything = {
        "rows": [{**asdict(row), "held": row.held} for row in found],
        "imports": [{**asdict(one), "ms": one.ms} for one in accounts],
        "failures": failures,
    }
    path.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m conformance.bench", description=__doc__.splitlines()[0])
    stage.add_common(parser)
    parser.add_argument("--quick", action="store_true", help="few rounds: wide intervals, about a minute")
    parser.add_argument("--rounds", type=int, help="samples of a whole life (default 25, quick 7)")
    parser.add_argument("--rows", help=f"of {','.join(rows.GROUPS)},imports (default all)")
    parser.add_argument("--seed", type=int, default=1, help="of the order and of the resampling")
    parser.add_argument("--json", type=Path, help="write everything to this file as well")
    options = parser.parse_args()
    options.rounds = options.rounds or (7 if options.quick else 25)
    options.rows = options.rows.split(",") if options.rows else [*rows.GROUPS, "imports"]
    if unknown := set(options.rows) - {*rows.GROUPS, "imports"}:
        parser.error(f"no such rows: {', '.join(sorted(unknown))}")
    if options.json:
        options.json = options.json.absolute()
    return options


if __name__ == "__main__":
    sys.exit(main())
