"""What an outcome is worth: refused in one line, lowered, killed cleanly; everything else is wrong, and why.

Belongs here: the rules of a fault. Next door: `inject` brings what was seen, `scenarios` the calls.
"""

from __future__ import annotations

from conformance import expect
from conformance.faults.inject import KILL, Seen
from conformance.faults.scenarios import Scenario

REFUSED, LOWERED, KILLED, EARLY, MISSED = "refused", "lowered", "killed", "before us", "not reached"
WRONG = "WRONG"
FORBIDDEN = ("permission denied", "operation not permitted", "no such file")


def verdict(seen: Seen, clean: Seen, asked: bytes, scenario: Scenario, fault: str, phase: str) -> str:
    """One of the words above; WRONG with what is wrong. `clean`: the same call without a fault; `asked`: config.json as
    the engine wrote it; `phase`: of the system call that was tampered with.
    """
    if seen.syscall and seen.ran:
        return _ran(seen, clean, scenario)
    if seen.config not in (asked, clean.config):
        return f"{WRONG}: config.json is neither as it came nor the lowered one"
    if not seen.syscall:
        return MISSED
    if fault == KILL:
        return KILLED if seen.result.code in (-9, 137) else f"{WRONG}: exit {seen.result.code} after SIGKILL"
    if seen.result.code == 0:
        return f"{WRONG}: success, and the delegate was not run"
    lines = seen.result.err.splitlines()
    if phase in ("libc", "python") and not (len(lines) == 1 and expect.REFUSAL.fullmatch(lines[0])):
        return EARLY  # libc's or CPython's own end: none of our code has run
    if len(lines) != 1 or not expect.REFUSAL.fullmatch(lines[0]):
        return f"{WRONG}: exit {seen.result.code}, {len(lines)} lines: {seen.result.err[:600]!r}"
    if any(words in lines[0].lower() for words in FORBIDDEN):
        return f"{WRONG}: podman takes these words for the container's exit code: {lines[0]}"
    if seen.result.code != scenario.exit:
        return f"{WRONG}: exit {seen.result.code}, not {scenario.exit}: {lines[0]}"
    if ": report this" in lines[0]:
        return f"{WRONG}: a failure of the host shown as our bug: {lines[0]}"
    return REFUSED


def _ran(seen: Seen, clean: Seen, scenario: Scenario) -> str:
    """The delegate has run: with exactly what it gets without a fault."""
    for name in ("argv", "environ", *filter(None, [scenario.lowers])):
        if _plain(seen.got.get(name, b"")) != _plain(clean.got.get(name, b"")):
            return f"{WRONG}: the delegate got another {name}: {seen.got.get(name, b'')[:3000]!r}"
    return LOWERED


def _plain(data: bytes) -> bytes:
    """Without the number of the process that a scratch file is named by."""
    return b"\n".join(b"process-N" if b"/process-" in line else line for line in data.split(b"\n"))


def leftovers(after: Seen, usual: set[str]) -> list[str]:
    """What the next call has left lying about, beyond what is there `usually`, after calls without a fault."""
    kept = {_named(path) for path in usual}
    return [path for path in after.left if _named(path) not in kept and not _is_cache(path)]


def _is_cache(path: str) -> bool:
    """Whether it is a proof or a compiled form, whole: what is lost is made anew, and may be there twice."""
    name = path.rpartition("/")[2]
    return path.startswith("/var/lib/agentshim/") and name[:1] != "." and not name.endswith(".tmp")


def _named(path: str) -> str:
    head, _, name = path.rpartition("/")
    return f"{head}/process-N" if name.startswith("process-") else path
