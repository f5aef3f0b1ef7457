"""What a filter costs: a system call in containers under four filters, the filters' lengths, and what the meet of two
profiles and its proof add to `create`.

Belongs here: the rows of the group `seccomp`. Next door: `syscalls.c` makes the calls, `turns` orders the contenders.
All four containers are plain runc's: ours run the very config.json that agentshim writes. What a meet costs is timed
inside a fresh interpreter, as `create` is one: there it is a millisecond or a hundred, of a whole create with noise.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from conformance.bench import docker, moby
from conformance.bench.life import Failed
from conformance.bench.turns import Bench, Row, Samples, granted
from shim.cold.seccomp import loaded_filter, seccomp_source
from shim.seccomp import resolve
from shim.seccomp.profile import machine

COUNT = 1_000_000
CALLS = {"getppid": "`getppid`", "openat": "`openat`, missing file", "socket": "`socket(AF_UNIX)`, `close`"}
PROVED = Path("/var/lib/agentshim/seccomp")
# title -> the profile asked, the policy's section, and the capabilities that the container is granted
PAIRS: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "moby ∧ agent": ("moby", {"profile": "agent"}, []),
    "containers-common ∧ agent": ("common", {"profile": "agent"}, []),
    "moby ∧ containers-common": ("moby", {"file": "containers-common.json"}, docker.CAPABILITIES),
}
# argv: the library, what to time, the delegate, the capability mask, files of a spec and of a section. Prints ms.
TIMED = """
import sys, time
library, what, delegate, mask, *files = sys.argv[1:]
sys.path.insert(0, library)
from shim import runc, wire
from shim.dim import seccomp
from shim.kernel import Facts
from shim.verbs import gate
spec, section = (wire.loads(open(name, "rb").read(), "bench", name) for name in files)
admit, facts = gate.Admitter(runc.Delegate(delegate)), Facts()
begin = time.perf_counter_ns()
asked, ceiling = seccomp.from_spec(spec, facts), seccomp.resolve(seccomp.from_policy(section), int(mask))
if what != "alone":
    admit(asked, ceiling, int(mask))
seccomp.meet(asked, ceiling)
print((time.perf_counter_ns() - begin) / 1e6)
"""


def seccomp(bench: Bench) -> Iterator[Row]:
    """The group: costs of calls and lengths of filters against Docker's profile; meet, proof, cache hit and miss."""
    _build()
    bare = {**bench.spec, "linux": {k: v for k, v in bench.spec["linux"].items() if k != "seccomp"}}
    process = docker.process("/bin/syscalls", "@CALL@", str(COUNT))
    without, asked = (docker.template({**spec, "process": process}) for spec in (bare, bench.spec))
    templates = {"none": without, "moby": asked, "ours": granted(bench, without), "meet": granted(bench, asked)}
    rounds = max(5, bench.rounds // 2)
    for call, title in CALLS.items():
        tasks = {name: partial(_call, bench, text, call) for name, text in templates.items()}
        samples = bench.interleave(tasks, rounds)
        yield from bench.row("seccomp", title, samples, "ours", "moby", 1.0, "ns")
        yield from bench.row("seccomp", title, samples, "meet", "moby", 1.0, "ns")
        yield from bench.row("seccomp", title, samples, "none", "moby", None, "ns")
    lengths = {name: [_length(bench, text)] for name, text in templates.items() if name != "none"}
    for name in ("ours", "meet"):
        yield from bench.row("seccomp", "instructions, as runc loads them", lengths, name, "moby", None, "count")
    for title, pair in PAIRS.items():
        yield from _meets(bench, title, rounds, _files(bench, *pair))


def _meets(bench: Bench, title: str, rounds: int, args: list[str]) -> Iterator[Row]:
    """What a start pays for one pair: a miss is the meet, its proof and the writing of the cache."""
    samples: Samples = bench.interleave(
        {what: partial(_timed, bench, what, args) for what in ("alone", "miss", "hit")}, rounds
    )
    samples["nothing"] = [0.0] * rounds
    yield from bench.row("seccomp", f"the meet {title}", samples, "alone", "nothing", None, "ms")
    yield from bench.row("seccomp", f"proof of {title}", samples, "miss", "alone", None, "ms")
    yield from bench.row("seccomp", f"cache miss, {title}", samples, "miss", "nothing", 150, "ms")
    yield from bench.row("seccomp", f"cache hit, {title}", samples, "hit", "nothing", 1, "ms")


def _build() -> None:
    """Compile syscalls.c into the root file system. Raises Failed."""
    source = Path(__file__).with_name("syscalls.c")
    done = subprocess.run(["cc", "-static", "-O2", "-o", docker.ROOT / "bin/syscalls", source], capture_output=True)
    if done.returncode:
        raise Failed(f"cc {source}: {done.stderr.decode(errors='replace').strip()}")


def _call(bench: Bench, template: bytes, call: str) -> float:
    """Nanoseconds of one call in a container of its own."""
    container = bench.fresh("runc", template.replace(b"@CALL@", call.encode()))
    try:
        said = container.bundle / "stdout"
        container.call("run", "--bundle", str(container.bundle), container.name, stdout=str(said))
        return float(said.read_text())
    finally:
        container.discard()


def _length(bench: Bench, template: bytes) -> float:
    """Instructions of the filter that runc loaded, which is in the kernel before `start`."""
    container = bench.fresh("runc", template)
    try:
        container.create()
        (program,) = loaded_filter.filters(int((container.bundle / "init.pid").read_text()))
        return len(program) / 8
    finally:
        container.discard()


def _files(bench: Bench, asked: str, section: dict[str, str], capabilities: list[str]) -> list[str]:
    """The arguments of TIMED after the delegate for one of PAIRS."""
    folder = moby.profile_file().parent
    mask = sum(resolve.BITS[name] for name in capabilities)
    spec = bench.spec["linux"]["seccomp"]
    if asked == "common":
        tree = seccomp_source.from_file(str(folder / "containers-common.json"))
        held = sum(resolve.BITS[name] for name in docker.CAPABILITIES)
        spec = {**resolve.resolve(tree, held, machine(), (6, 1)), "architectures": spec["architectures"]}
    written = {"spec": {"linux": {"seccomp": spec}}, "section": seccomp_source.expand(section, str(folder))}
    for name, content in written.items():
        (docker.FILES / name).write_text(json.dumps(content))
    return [str(mask), *(str(docker.FILES / name) for name in written)]


def _timed(bench: Bench, what: str, args: list[str]) -> float:
    """Milliseconds in a fresh interpreter; a miss finds no cache, a hit the one that the run before it left."""
    if what == "miss":
        shutil.rmtree(PROVED, ignore_errors=True)
    python = [bench.python, "-I", "-S", "-B", "-c", TIMED, str(bench.library), what, bench.delegate, *args]
    done = subprocess.run(python, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{what}: {(done.stderr.splitlines() or ['(silent)'])[-1]}")
    return float(done.stdout)
