"""One target under atheris, in a process of its own: libFuzzer ends the process that it runs in.

    python -m tests.fuzz.guided TARGET MUTANT FINDINGS [libFuzzer's options] CORPUS
    python -m tests.fuzz.guided --lines TARGET CORPUS

A finding is written to FINDINGS, once for each place and kind, and the run goes on. The second form replays a corpus
and says which share of the target's lines ran. Next door: `__main__` starts both.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

# What a target is meant to reach, for the share of lines.
MODULES = {
    "wire": ("shim.wire",),
    "argv": ("shim.argv",),
    "spec": ("shim.spec", "shim.wire"),
    "plan": ("shim.plan", "shim.product", "shim.coherence", "shim.lattice", "shim.dim"),
    "policy": (
        "shim.cold.policy.policy_source",
        "shim.cold.policy.policy_joins",
        "shim.cold.policy.compile",
        "shim.cold.policy.toml_lines",
    ),
    "hook": ("hooks.plan",),
}


def fuzz(name: str, mutant: str, findings: str, options: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["shim", "hooks"]):
        targets = importlib.import_module("tests.fuzz.targets")
    if mutant:
        importlib.import_module("tests.fuzz.mutants").MUTANTS[name, mutant][0]()
    run, seen = targets.TARGETS[name], set()

    def one(data: bytes) -> None:
        try:
            run(data)
        except Exception as error:
            sign = signature(error)
            if sign not in seen:
                seen.add(sign)
                with open(findings, "a") as file:
                    file.write(json.dumps({"sign": sign, "what": str(error)[:2000], "input": data.hex()}) + "\n")

    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


def signature(error: BaseException) -> str:
    """What makes two findings one: kind, the first words, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} {str(error).partition('|')[0][:60]} {where}"


def lines(name: str, corpus: str) -> None:
    """Prints the share of lines that the inputs in `corpus` run in the target's modules."""
    from tests.fuzz import targets

    wanted = MODULES[name]
    files = {
        module.__file__: module
        for key, module in sorted(sys.modules.items())
        if module and getattr(module, "__file__", None) and key.startswith(wanted)
    }
    every: dict[str, set[int]] = {path: _of(Path(path)) for path in files if path}
    ran: dict[str, set[int]] = {path: set() for path in every}

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            ran[frame.f_code.co_filename].add(frame.f_lineno)
        return local

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        seen = ran.get(frame.f_code.co_filename)
        return local if seen is not None else None

    for one in sorted(Path(corpus).iterdir()):
        data = one.read_bytes()
        sys.settrace(trace)
        try:
            targets.TARGETS[name](data)
        except Exception:
            pass  # told by the run itself
        finally:
            sys.settrace(None)
    total, reached = sum(map(len, every.values())), sum(len(ran[path] & every[path]) for path in every)
    print(f"{reached} {total}")
    for path in every:
        missed = sorted(every[path] - ran[path])
        print(f"{path}: {missed}", file=sys.stderr)


def _of(path: Path) -> set[int]:
    """The lines of functions in a file: those of its body ran at import."""
    found: set[int] = set()

    def walk(code: CodeType, inside: bool) -> None:
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                walk(constant, inside or bool(constant.co_flags & 2))  # CO_NEWLOCALS: a function
        if inside:
            found.update(line for _, _, line in code.co_lines() if line and line != code.co_firstlineno)

    walk(compile(path.read_text(), str(path), "exec"), False)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "--lines":
        lines(*sys.argv[2:])
    else:
        fuzz(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
