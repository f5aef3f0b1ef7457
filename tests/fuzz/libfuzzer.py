"""The C programs' parsers under clang's libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer.

Belongs here: building and running. Next door: fuzz_launcher.c and fuzz_nethook.c are the harnesses.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz import native, on_native, seeds

FLAGS = ["-std=gnu11", "-g", "-O1", "-w", "-DLIBFUZZER", "-fsanitize=fuzzer,address,undefined"]
FLAGS += ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
PROGRAMS = ("launcher", "nethook")


def missing() -> str:
    """Why none of this can run here, or ''."""
    if not shutil.which("clang"):
        return "clang is not installed (apt-get install clang)"
    with tempfile.TemporaryDirectory() as base:
        source = Path(base, "x.c")
        source.write_text("int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d[n] * 0; }\n")
        done = subprocess.run(["clang", *FLAGS, "-o", f"{base}/x", str(source)], capture_output=True, check=False)
    return "" if done.returncode == 0 else "clang has no libFuzzer (apt-get install libclang-rt-dev)"


def build(program: str, directory: Path) -> Path:
    """The harness of `program`, compiled in `directory` from sources with native.CHANGES."""
    native.changed(directory)
    out = directory / f"fuzz-{program}"
    source = native.HERE / f"fuzz_{program}.c"
    subprocess.run(["clang", *FLAGS, f"-I{directory}", "-o", str(out), str(source)], check=True)
    return out


def corpus(program: str) -> list[bytes]:
    """Where libFuzzer begins."""
    if program == "nethook":
        out = [b"\1" + on_native.plan_of(bytes(range(at, at + 40))) for at in range(0, 200, 7)]
        return [
            *out,
            *(b"\0" + piece.encode() for piece in (*on_native.STATE_PIECES, '{"id":"a\\"","pid":12,"x":[{}]}')),
        ]
    words = (b"\0" + call.replace(" ", "\n").encode() for call in seeds.CALLS)
    lines = (b"\1" + line.encode() for line in on_native.CONF_LINES)
    launch = (b'\2python = /usr/bin/python3\nlib = "/usr/lib/agentshim"\n', b"\2# c\n\npython=/x\n")
    return [*words, *lines, *launch, b'\3\x1b[1m"\\']


def run(
    program: str, seconds: int, seed: int, runs: int = -1
) -> tuple[str, int, float, str, str, list[dict[str, str]]]:
    """One row of the table: (name, inputs, seconds, edges, '', findings)."""
    name = f"{program}.c"
    if why := missing():
        return name, 0, 0.0, "-", "SKIPPED", [{"sign": "SKIPPED LOUDLY", "what": why, "input": ""}]
    with tempfile.TemporaryDirectory(prefix="agentshim-fuzz-") as base:
        start = Path(base, "corpus")
        start.mkdir()
        for number, data in enumerate(corpus(program)):
            (start / f"seed{number:03}").write_bytes(data)
        argv: list[Any] = [build(program, Path(base)), f"-max_total_time={seconds}", f"-runs={runs}", f"-seed={seed}"]
        argv += ["-max_len=2048", "-timeout=20", "-print_final_stats=1", f"-artifact_prefix={base}/", start]
        begin = time.monotonic()
        done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, errors="replace", check=False)
        found = []
        if done.returncode:
            inputs = [
                path.read_bytes().hex()
                for path in Path(base).glob("*-*")
                if path.name.startswith(("crash", "oom", "timeout"))
            ]
            found = [{"sign": f"libFuzzer: {name}", "what": _report(done.stderr), "input": " ".join(inputs)}]
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    edges = re.findall(r"cov: (\d+)", done.stderr)
    return name, int(executed[1]) if executed else 0, time.monotonic() - begin, edges[-1] if edges else "?", "", found


def _report(text: str) -> str:
    """The sanitizer's words: from its first line on."""
    at = max(text.find("ERROR: "), text.find("runtime error"), 0)
    return text[max(at - 200, 0) : at + 2500]
