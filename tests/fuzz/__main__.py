"""The fuzzers: `python -m tests.fuzz [TARGET…] [--runs N] [--seed S] [--mutant NAME]`, and a table of what they did.

Without a target, all of them: `--runs` inputs in total, shared out by SHARE; then the C programs under libFuzzer and
the sanitizers (--c-seconds), and the delegates (--real documents, run by runc and crun). Exit code 1 where anything was
found. `make fuzz` is the long run. Next door: `targets` holds the properties.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.fuzz import libfuzzer, seeds, targets
from tests.fuzz.guided import MODULES

# Of 100 inputs; a plan and a policy take a millisecond, the others a tenth of that.
SHARE = {"wire": 25, "argv": 22, "spec": 18, "plan": 9, "policy": 4, "launcher": 12, "hook": 10}
HERE = Path(__file__).resolve().parents[2]


class Row(NamedTuple):
    """What one target did. `edges`: libFuzzer's count of them; `lines`: those that ran, and all, of its modules."""

    target: str
    inputs: int
    seconds: float
    edges: str
    lines: str
    findings: list[dict[str, str]]


def guided(name: str, runs: int, seed: int, mutant: str = "", keep: Path | None = None, lines: bool = False) -> Row:
    """`runs` inputs through one target, in a child; `keep`: where the corpus stays; `lines`: count them as well."""
    with tempfile.TemporaryDirectory(prefix="agentshim-fuzz-") as base:
        corpus, findings, words = Path(base, "corpus"), Path(base, "findings"), Path(base, "words")
        corpus.mkdir()
        for number, data in enumerate(seeds.corpus(name, seed)):
            (corpus / f"seed{number:03}").write_bytes(data)
        words.write_text("".join(seeds.escaped(word) + "\n" for word in seeds.dictionary(name)))
        options = [
            f"-runs={runs}",
            f"-seed={seed}",
            "-max_len=600",
            "-timeout=120",
            "-rss_limit_mb=6000",
            "-verbosity=1",
        ]
        options += ["-print_final_stats=1", f"-artifact_prefix={base}/", str(corpus)]
        options += [f"-dict={words}"] if words.stat().st_size else []
        argv = [sys.executable, "-B", "-m", "tests.fuzz.guided", name, mutant, str(findings), *options]
        begin = time.monotonic()
        done = _child(argv, base)
        seconds = time.monotonic() - begin
        found = [json.loads(line) for line in findings.read_text().splitlines()] if findings.exists() else []
        executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        if done.returncode or not executed:
            last = "\n".join(done.stderr.splitlines()[-30:])
            found.append({"sign": f"the fuzzer ended with {done.returncode}", "what": last, "input": ""})
        edges = re.findall(r"cov: (\d+)", done.stderr)
        share = _lines(name, corpus) if lines and name in MODULES else ""
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            for one in corpus.iterdir():
                (keep / one.name).write_bytes(one.read_bytes())
    return Row(name, int(executed[1]) if executed else 0, seconds, edges[-1] if edges else "?", share, found)


def _child(argv: list[str], scratch: str) -> subprocess.CompletedProcess[str]:
    # libFuzzer's exit runs nothing at exit: what the child leaves goes with our own directory.
    path = {"PYTHONPATH": str(HERE), "PYTHONHASHSEED": "0", "TMPDIR": scratch}
    return subprocess.run(
        argv, cwd=HERE, env={**os.environ, **path}, capture_output=True, text=True, errors="replace", check=False
    )


def _lines(name: str, corpus: Path) -> str:
    argv = [sys.executable, "-B", "-m", "tests.fuzz.guided", "--lines", name, str(corpus)]
    done = _child(argv, str(corpus.parent))
    if done.returncode:
        return "?"
    reached, total = map(int, done.stdout.split())
    return f"{100 * reached // total} % of {total}"


def table(rows: list[Row]) -> str:
    out = ["| target | inputs | seconds | edges | lines | findings |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        out.append(
            f"| {row.target} | {row.inputs:,} | {row.seconds:.0f} | {row.edges} | {row.lines} | {len(row.findings)} |"
        )
    total = sum(row.inputs for row in rows)
    out.append(
        f"| all | {total:,} | {sum(row.seconds for row in rows):.0f} | | | {sum(len(r.findings) for r in rows)} |"
    )
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what agentshim reads.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=" ".join((*SHARE, "c", "real")))
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs in total (default: a million)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mutant", default="", help="a planted bug of mutants.py")
    parser.add_argument("--c-seconds", type=int, default=120, help="for each C program under libFuzzer")
    parser.add_argument("--real", type=int, default=300, help="documents that runc and crun run")
    parser.add_argument("--keep", type=Path, help="where the corpora stay")
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.exit("tests.fuzz: atheris is not installed: make build, on a Python that it has a wheel for")
    names = options.targets or [*SHARE, "c", "real"]
    chosen = {name: SHARE[name] for name in names if name in SHARE}
    rows = []
    for name, share in chosen.items():
        runs = options.runs * share // sum(chosen.values())
        rows.append(guided(name, runs, options.seed, options.mutant, options.keep and options.keep / name, True))
        show(rows[-1])
    if "c" in names:
        for program in libfuzzer.PROGRAMS:
            rows.append(Row(*libfuzzer.run(program, options.c_seconds, options.seed)))
            show(rows[-1])
    if "real" in names:
        from tests.fuzz import delegates

        rows.append(Row(*delegates.run(options.real, options.seed)))
        show(rows[-1])
    print(table(rows))
    return any(row.findings for row in rows)


def show(row: Row) -> None:
    """Progress, and every finding in full, on stderr."""
    print(f"{row.target}: {row.inputs:,} inputs in {row.seconds:.0f} s", file=sys.stderr, flush=True)
    for one in row.findings:
        print(f"FINDING {row.target}: {one['sign']}\n    {one['what']}\n    input {one['input']}", file=sys.stderr)


assert set(SHARE) == set(targets.TARGETS)
if __name__ == "__main__":
    sys.exit(main())
