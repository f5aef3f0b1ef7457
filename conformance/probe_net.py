"""The matrix of a container's network: what is tried from inside by `probe_net.c`, and what came of it.

Belongs here: the program, its words, and how a table of expectations is held against it. Next door: `oci/test_matrix`
and `engines/test_network_modes` have the containers; `world` has the peers, each of which answers.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from conformance.room import Result, Room
from conformance.world import ENGINES, GRANTED, HOST, HOST_ON_LAN, METADATA, NEIGHBOUR, OTHER

OPEN, SILENCE, NOTHING = "open", "silence", "nothing"  # an answer; none in time; the peer's end, or no such name
LATE = 100.0  # ms: who is refused is told at once
TRIES = 3  # of what was late: a busy machine is not late each time, a packet that is dropped is
REFUSED, DENIED, AWAY = "ECONNREFUSED", "EPERM", "ENETUNREACH"
RIGHTS = {"raw": DENIED, "packet": DENIED, "unlock": DENIED, "address": DENIED}
WITHIN = {"userns": OPEN, **{f"userns-{word}": DENIED for word in RIGHTS}, f"userns-netns,{GRANTED},8080": AWAY}
RESOLVER = {"dns-udp,127.0.0.11,53": DENIED, "dns-tcp,127.0.0.11,53": REFUSED}
GRANTS_HELD = (f"tcp,{GRANTED},8080", f"udp,{GRANTED},8080")
# No filter of system calls: what is refused is refused by the network, and a user namespace is to be had.
UNFILTERED = """why = "the locks are tried alone"
doc = "https://docs.kernel.org/admin-guide/namespaces/index.html"
seccomp = "top"

"""
NAME = "api.lab.test"  # leads to OTHER, where 8081 is granted by this name alone

Run = Callable[..., Result]
Cells = Mapping[str, str]  # a word of the probe -> what comes of it


def compiled(room: Room) -> Path:
    """The program, static, which any image can run."""
    target = room.base / "probe" / "probe-net"
    compiler = os.environ.get("STATIC_CC") or shutil.which("musl-gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("SKIPPED LOUDLY: no C compiler: THE MATRIX OF NETWORKS IS NOT TRIED")
    if not target.exists():
        target.parent.mkdir(mode=0o755)
        headers = ["-idirafter", "/usr/include", "-idirafter", f"/usr/include/{platform.machine()}-linux-gnu"]
        source = Path(__file__).with_suffix(".c")
        subprocess.run([compiler, "-O1", "-static", "-s", *headers, "-o", str(target), str(source)], check=True)
    return target


def tried(run: Run, words: list[str]) -> dict[str, tuple[str, float]]:
    """Word -> (outcome, milliseconds as measured inside). `run` calls the program where it is, with words."""
    told = run(*words)
    assert told.code == 0, str(told)
    lines = [line.split() for line in told.out.splitlines() if line != "listening"]
    return {word: (_outcome(int(code)), float(ms)) for word, code, ms in lines}


def _outcome(code: int) -> str:
    plain = {0: OPEN, -1: SILENCE, -2: NOTHING}
    return plain[code] if code in plain else errno.errorcode.get(code, str(code))


def holds(run: Run, cells: Cells) -> None:
    """Every cell is as expected, and nobody waits to be refused."""
    found = tried(run, list(cells))
    other = {word: (said, cells[word]) for word, (said, _) in found.items() if said != cells[word]}
    assert not other and found.keys() == cells.keys(), f"word: (what it is, what it should be): {other}"
    for _ in range(TRIES):
        late = {word: ms for word, (said, ms) in found.items() if ms >= LATE and _is_refused(word, said)}
        if not late:
            return
        found = tried(run, list(late))
    raise AssertionError(f"refused later than within {LATE} ms: {late}")


def _is_refused(word: str, said: str) -> bool:
    """By the network, not by who makes namespaces."""
    return said not in (OPEN, SILENCE) and not word.startswith("userns")


def outward(open_: tuple[str, ...] = (), tcp: str = REFUSED, udp: str = DENIED, **more: str) -> dict[str, str]:
    """What is tried of peers outside; `open_` are those that answer, TCP and UDP to the others are refused so."""
    every = {
        f"tcp,{GRANTED},8080": tcp,
        f"udp,{GRANTED},8080": udp,
        f"tcp,{GRANTED},8081": tcp,
        f"udp,{GRANTED},8081": udp,
        f"tcp,{OTHER},8080": tcp,
        f"icmp,{GRANTED},0": udp,
        f"dns-udp,{OTHER},53": udp,
        f"dns-tcp,{OTHER},53": tcp,
        f"tcp,{METADATA},80": tcp,
        f"udp,{METADATA},80": udp,
        f"tcp,{NEIGHBOUR},8080": tcp,
        f"tcp,{ENGINES},9000": tcp,
        f"udp,{ENGINES},9000": udp,
        f"tcp,{HOST},9000": tcp,
        f"tcp,{HOST_ON_LAN},9000": tcp,
    }
    assert set(open_) <= set(every)
    return {**every, **dict.fromkeys(open_, OPEN), **more}
