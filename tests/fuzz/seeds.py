"""Where the fuzzer begins: a corpus made by code, and the words of a dictionary for it.

Belongs here: inputs, deterministic for a seed. Next door: `on_*` say what the bytes mean. The OCI examples of
../shared/data, where they are, are read in place and copied nowhere but into the run's own corpus.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz import on_argv, on_native, on_plan, on_policy, vocabulary, world

COUNT = 64  # random seeds a target
CALLS = [
    "--root /r --log /l --log-format json create --bundle /b --pid-file /p ID",
    "--root /r --log /l --log-format json --systemd-cgroup create --bundle /b --console-socket /s --no-pivot ID",
    "--log /l --log-format json run --bundle /b --keep ID",
    "exec --process /f --detach --pid-file /p ID",
    "exec -e A=b -u 1:2 --cap CAP_KILL ID sh -c true",
    "--root /r restore --image-path /i --work-path /w --detach -no-subreaper --bundle /b ID",
    "restore --lsm-mount-context",
    "checkpoint --help",
    "update --resources=- ID",
    "update --memory 64m --pids-limit 5 ID",
    "--root /r --root /q state ID",
    "kill --all ID 9",
    "delete --force ID",
    "--rootless true start ID",
    "ps --format json ID",
    "ps -- --no-pivot=0",
    "--version",
    "--log state exec ID",
]


def corpus(name: str, seed: int) -> Iterator[bytes]:
    """Inputs for the target `name`."""
    r = random.Random(f"{name} {seed}")
    for number in range(COUNT):
        yield bytes([number % 4]) + r.randbytes(r.choice((4, 16, 48, 160)))
    if name == "plan":  # each built-in policy, and each section of the table, over each small document
        for document in range(3):
            yield from (bytes([policy, 0, 0, 0, 0, 0, 0, document]) for policy in range(len(on_plan.POLICIES)))
            rows = range(len(on_plan.SOME_SECTIONS))
            yield from (bytes([policy, 1, 0, row, 0, 0, 0, 0, 0, document]) for row in rows for policy in (0, 3, 4))
    elif name == "launcher":
        rows = range(len(on_native.CONF_LINES))
        yield from (bytes([2, 0, one, 0, other]) for one in rows for other in (0, 1, 6, 7))
    if name == "wire":
        for one in world.DOCUMENTS[:3]:
            yield json.dumps(one).encode()
        yield from (f"[{token}]".encode("utf-8", "surrogatepass") for token in vocabulary.TOKENS)
        yield from (path.read_bytes() for path in examples())
    elif name in ("argv", "launcher"):
        yield from (b"\1" + call.replace(" ", "\n").encode() for call in CALLS)
    elif name == "policy":
        for path in sorted((world.REPOSITORY / "shim/policies").glob("*.toml")):
            yield b"\1" + path.read_bytes().replace(f'name = "{path.stem}"'.encode(), b'name = "x"')
        lines = range(len(on_policy.SECTION_LINES))  # each line alone, over each of ours
        yield from (bytes([2, base, 0, line]) for line in lines for base in range(len(on_policy.BASES)))


def examples() -> list[Path]:
    """The OCI specification's examples, where they are."""
    shared = Path(os.environ.get("AGENTSHIM_SHARED") or world.REPOSITORY.parent / "shared")
    return sorted((shared / "data/oci/examples").glob("**/*.json"))


def dictionary(name: str) -> list[str]:
    """Words that a fuzzer should not have to guess letter by letter."""
    if name == "wire":
        return [
            *filter(None, vocabulary.TOKENS),
            '"process":',
            '"PROCESS":',
            "\\u017f",
            "\\u0000",
            "\\ud800",
            "18446744073709551615",
        ]
    if name in ("argv", "launcher"):
        return [word for word in on_argv.WORDS if word]
    return [line for line in on_policy.SECTION_LINES if line] if name == "policy" else []


def escaped(word: str) -> str:
    """A dictionary's line of libFuzzer."""
    data = word.encode("utf-8", "surrogateescape" if "\udcff" in word else "surrogatepass")
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in (34, 92) else f"\\x{b:02x}" for b in data) + '"'
