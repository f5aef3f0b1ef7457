"""The proof of a meet: the compiled result lets nothing through that either compiled side stops.

Both sides and the result are compiled with the machine's libseccomp as a delegate does, and simulated. Looser anywhere:
Bug, and the container is not started. Next door: `simulate` compares programs, `loaded_filter` does it once more on
what the delegate loaded.

`granted` is what a cache miss pays (100 ms). It also denies calls that a filter has no room for or that cannot be
proved, and its record says which and why.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from shim.cold.seccomp import bpf, libseccomp
from shim.cold.seccomp.libseccomp import TOKENS
from shim.cold.seccomp.simulate import Looser, Undecided, abi_of, compare
from shim.dim import seccomp
from shim.errors import Bug, Refused
from shim.seccomp.profile import Profile, machine
from shim.seccomp.vocabulary import ACTION_NAMES, ACTIONS, ALLOW, KILL_PROCESS, NATIVE

# Room for what a delegate puts in front: runc's ENOSYS stub has about ten instructions an ABI.
MOST_INSTRUCTIONS = bpf.MOST_INSTRUCTIONS - 96

SLOW = 0.5  # seconds after which a human wants to know; a proof takes 0.1
_MOST_LOWERED = 8  # times: beyond, a profile is not worth saving
# Why a call that both sides allow is denied: `explain` and the audit log say it in these words.
TOO_LONG = "the filter would be longer than the kernel takes"
MISREAD = "libseccomp makes a harder filter of a side than its rules say"
LOOSENED = "libseccomp makes a gentler filter of its rules than they say"
UNDECIDED = "its rules have too many branches to be proved"
_HOLDS: dict[str, Callable[[int, int, int], bool]] = {
    "NE": lambda word, value, _: word != value,
    "LT": lambda word, value, _: word < value,
    "LE": lambda word, value, _: word <= value,
    "EQ": lambda word, value, _: word == value,
    "GE": lambda word, value, _: word >= value,
    "GT": lambda word, value, _: word > value,
    "MASKED_EQ": lambda word, mask, value: word & mask == value,
}


def granted(asked: Profile, ceiling: Profile, optimize: tuple[int, ...] = (1, 2)) -> tuple[Profile, dict[str, Any]]:
    """meet(asked, ceiling), proved, and the record of the proof (libseccomp, instructions, probes; dropped: calls that
    are denied though neither side says so -> why), which the profile has too.

    optimize: libseccomp's levels that the delegate may use: crun 1, runc up to 1.1 1, later ones 2 above 32 rules. Bug
    where the proof fails; Refused where no filter small enough is left.
    """
    result = seccomp.meet(asked, ceiling)
    if result.is_top:
        return result, {}
    with _progress():
        result, record = _proved(result, asked, ceiling, optimize)
    result.proof = record
    return result, record


def _proved(
    result: Profile, asked: Profile, ceiling: Profile, optimize: tuple[int, ...]
) -> tuple[Profile, dict[str, Any]]:
    """`result`, or what is left of it once it is short enough and lies below both sides as compiled; and the record."""
    host = machine()
    sides = [side for side in (asked, ceiling) if not side.is_top]
    dropped = dict((result.proof or {}).get("dropped") or {})
    record: dict[str, Any] = {"libseccomp": ".".join(map(str, libseccomp.version())), "dropped": dropped}
    left = _MOST_LOWERED
    while True:
        every = compiled([result, *sides], host, *optimize)
        programs = [every[at : at + 1 + len(sides)] for at in range(0, len(every), 1 + len(sides))]
        record["instructions"] = max(len(program) for program, *_ in programs)
        if record["instructions"] > MOST_INSTRUCTIONS:
            result = narrowed(result, dropped)
            continue
        try:
            loaded = tokens(result, host)
            record["probes"] = sum(compare(program, others, host, loaded) for program, *others in programs)
        except Looser as found:
            result = _lowered(result, sides, found, dropped, left)
            left -= 1
        except Undecided as found:
            result = _undecided(result, found, dropped)
        else:
            return result, record


@contextmanager
def _progress() -> Iterator[None]:
    """Says on a terminal that a proof goes on, from 0.5 s on, and erases it; nothing where stderr is none (an engine).

    By an alarm: libseccomp is waited for as well, and a thread would not go with the fork that it runs in.
    """
    if not os.isatty(2):
        yield
        return
    begin = time.monotonic()

    def show(*_: object) -> None:
        _tell(b"\ragentshim: proving the seccomp profile, %d s" % (time.monotonic() - begin))

    before = signal.signal(signal.SIGALRM, show)
    signal.setitimer(signal.ITIMER_REAL, SLOW, SLOW)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # it would outlive our exec of the delegate
        signal.signal(signal.SIGALRM, before)
        if time.monotonic() - begin >= SLOW:
            _tell(b"\r\x1b[K")


def _tell(text: bytes) -> None:
    with suppress(OSError):  # the terminal is gone: the proof goes on
        os.write(2, text)


def _lowered(result: Profile, sides: list[Profile], found: Looser, dropped: dict[str, str], left: int) -> Profile:
    """`result` with one call denied, where libseccomp gave a side's JSON a harder filter than any reading of it has, or
    that of `result` a gentler one.

    libseccomp 2.5.4 does the first where conditions on one argument have several actions ("TRAP if > 2^63, KILL if <
    181" traps 2^31 + 1), and for some small profiles of several ABIs; the second on x32, where one action looks at an
    argument that another leaves alone. Bug for any other difference: that one is ours. What comes out is below
    `result`, and is proved like it.
    """
    call = libseccomp.name(found.number, abi_of(found.arch, found.number))
    known = call is not None and found.side >= 0 and left > 0
    why = _fault(result, sides[found.side], call, found) if call is not None and known else ""
    if call is None or not why:
        raise Bug("seccomp", "linux.seccomp", str(found), "no looser than either side", "report this") from found
    dropped[call] = why
    return _denied(result, call, bpf.severity(found.bound))


def _undecided(result: Profile, found: Undecided, dropped: dict[str, str]) -> Profile:
    """`result` with one call denied, which would take too long to prove; killed where that does not make it short."""
    call = libseccomp.name(found.number, abi_of(found.arch, found.number))
    if call is None:
        raise Bug("seccomp", "linux.seccomp", str(found), "a filter that can be proved", "report this") from found
    most = KILL_PROCESS if dropped.get(call) == UNDECIDED else ALLOW
    dropped[call] = UNDECIDED
    return _denied(result, call, most)


def _denied(result: Profile, call: str, most: int) -> Profile:
    """`result` with `call` denied for all arguments: as hard as it was for any, and at least as `most` says."""
    assert result.raw is not None
    default = ACTIONS[result.raw["defaultAction"]]
    mine = [ACTIONS[rule["action"]] for rule in result.raw["syscalls"] if call in rule["names"]]
    least = min(*mine, most, default)
    rules = []
    for rule in result.raw["syscalls"]:
        left = [name for name in rule["names"] if name != call]
        if left:
            rules.append({**rule, "names": left})
    if least < default:
        rules.append({"names": [call], "action": ACTION_NAMES[least]})
    return Profile({**result.raw, "syscalls": rules})


def _fault(result: Profile, side: Profile, call: str, found: Looser) -> str:
    """What libseccomp did wrong: MISREAD, if the filter of `side` is harder than any rule that matches the vector says,
    or the default; LOOSENED, if that of `result` is gentler; else "".

    Asked of the JSON as it is written, not of our reading of it: a fault of `reading`, `cubes` or `emit` is never taken
    for one of libseccomp's.
    """
    if bpf.severity(found.bound) < min(_said(side, call, found.seen)):
        return MISREAD
    return LOOSENED if bpf.severity(found.answer) > max(_said(result, call, found.sent)) else ""


def _said(profile: Profile, call: str, words: tuple[int, ...]) -> list[int]:
    """The actions of the rules that match a vector, or the default."""
    assert profile.raw is not None
    rules = [rule for rule in profile.raw.get("syscalls") or () if call in rule["names"]]
    levels = [ACTIONS[rule["action"]] for rule in rules if _matches(rule, words)]
    return levels or [ACTIONS[profile.raw["defaultAction"]]]


def _matches(rule: dict[str, Any], seen: tuple[int, ...]) -> bool:
    """Whether a rule's conditions hold; of several on one argument any one suffices, as delegates take them."""
    args = rule.get("args") or ()
    held = [_HOLDS[arg["op"][9:]](seen[arg["index"]], arg["value"], arg.get("valueTwo", 0)) for arg in args]
    return any(held) if len({arg["index"] for arg in args}) < len(args) else all(held)


def compiled(profiles: list[Profile], host: str, *optimize: int) -> list[bpf.Program]:
    """The programs that a delegate loads for `profiles` (not TOP), of all of them for each level of libseccomp's."""
    jobs = [(profile.raw, level) for level in optimize for profile in profiles if profile.raw is not None]
    return [bpf.decode(data) for data in libseccomp.compiled(jobs, host)]


def narrowed(result: Profile, dropped: dict[str, str]) -> Profile:
    """`result` with the call that has the most conditions denied, as hard as it was for any arguments, and added to
    `dropped`.
    """
    assert result.raw is not None
    widths: dict[str, int] = {}
    for rule in result.raw["syscalls"]:
        if rule.get("args"):
            widths[rule["names"][0]] = widths.get(rule["names"][0], 0) + len(rule["args"])
    if not widths:
        asked = f"more than {MOST_INSTRUCTIONS} instructions"
        raise Refused("seccomp", "linux.seccomp", asked, bpf.MOST_INSTRUCTIONS, "ask for a smaller profile")
    widest = max(sorted(widths), key=lambda name: widths[name])
    dropped[widest] = TOO_LONG
    return _denied(result, widest, ALLOW)


def tokens(profile: Profile, host: str) -> frozenset[int]:
    """The ABIs that a delegate loads `profile` for, as audit tokens."""
    assert profile.raw is not None
    archs = {NATIVE[host], *(profile.raw.get("architectures") or ())}
    return frozenset(token for arch, token in TOKENS.items() if arch in archs)
