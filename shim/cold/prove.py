"""The proof of a meet: the compiled result lets nothing through that either compiled side stops.

Both sides and the result are compiled with the machine's libseccomp as a delegate does, and simulated. Looser anywhere:
Bug, and the container is not started. Next door: `simulate` compares programs, `loaded_filter` does it once more on
what the delegate loaded.

`granted` is what a cache miss pays (100 ms); it also lowers a meet that would outgrow a filter, and says so.
"""

from __future__ import annotations

from typing import Any

from shim.cold import bpf, libseccomp
from shim.cold.libseccomp import TOKENS
from shim.cold.simulate import Looser, compare
from shim.dim import seccomp
from shim.errors import Bug, Refused
from shim.seccomp import emit
from shim.seccomp.profile import Profile, machine
from shim.seccomp.vocabulary import ACTION_NAMES, ACTIONS, ALLOW, LOW, NATIVE

# Room for what a delegate puts in front: runc's ENOSYS stub has about ten instructions an ABI.
MOST_INSTRUCTIONS = bpf.MOST_INSTRUCTIONS - 96

_MOST_LOWERED = 8  # calls: beyond, a profile is not worth saving


def granted(asked: Profile, ceiling: Profile, optimize: tuple[int, ...] = (1, 2)) -> tuple[Profile, dict[str, Any]]:
    """meet(asked, ceiling), proved, and the record of the proof (libseccomp, instructions, probes, dropped calls).

    optimize: libseccomp's levels that the delegate may use: crun 1, runc up to 1.1 1, later ones 2 above 32 rules. Bug
    where the proof fails; Refused where no filter small enough is left.
    """
    result = seccomp.meet(asked, ceiling)
    if result.is_top:
        return result, {}
    host = machine()
    sides = [side for side in (asked, ceiling) if not side.is_top]
    record: dict[str, Any] = {"libseccomp": ".".join(map(str, libseccomp.version())), "dropped": []}
    while True:
        programs = [compiled([result, *sides], host, level) for level in optimize]
        record["instructions"] = max(len(program) for program, *_ in programs)
        if record["instructions"] > MOST_INSTRUCTIONS:
            result = narrowed(result, record["dropped"])
            continue
        try:
            loaded = tokens(result, host)
            record["probes"] = sum(compare(program, others, host, loaded) for program, *others in programs)
        except Looser as found:
            result = _lowered(result, sides, found, host, record["dropped"])
            continue
        return result, record


def _lowered(result: Profile, sides: list[Profile], found: Looser, host: str, dropped: list[str]) -> Profile:
    """`result` with one call denied, where libseccomp gave a side's JSON a harder filter than any reading of it has.

    libseccomp 2.5.4 does so where conditions on one argument have several actions ("TRAP if > 2^63, KILL if < 181"
    traps 2^31 + 1), and for some small profiles of several ABIs. Bug for any other difference: that one is ours.
    """
    abi = next((arch for arch, token in TOKENS.items() if token == found.arch), "")
    call = libseccomp.name(found.number, abi)
    if call is None or len(dropped) > _MOST_LOWERED or not any(_misread(side, call, found, host) for side in sides):
        raise Bug("seccomp", "linux.seccomp", str(found), "no looser than either side", "report this") from found
    if call not in dropped:
        dropped.append(call)
    assert result.raw is not None
    default = ACTIONS[result.raw["defaultAction"]]
    mine = [ACTIONS[rule["action"]] for rule in result.raw["syscalls"] if call in rule["names"]]
    least = min(*mine, bpf.severity(found.bound), default)
    rules = []
    for rule in result.raw["syscalls"]:
        left = [name for name in rule["names"] if name != call]
        if left:
            rules.append({**rule, "names": left})
    if least < default:
        rules.append({"names": [call], "action": ACTION_NAMES[least]})
    return Profile({**result.raw, "syscalls": rules})


def _misread(side: Profile, call: str, found: Looser, host: str) -> bool:
    """Whether the filter of `side` answers the vector more harshly than that of its own meaning does.

    The meaning is asked on the native ABI, where libseccomp errs least; others have the low halves of the arguments.
    """
    native = NATIVE[host]
    meaning = Profile({**emit.emit(side.model, host), "architectures": [native]})
    own, theirs = (compiled([profile], host, 1)[0] for profile in (meaning, side))
    number = libseccomp.number(call, native)
    args = found.seen if (found.arch, found.number) == (TOKENS[native], number) else tuple(a & LOW for a in found.seen)
    kind = bpf.run(own, 0, bpf.words_of(TOKENS[native], number, args))
    return bpf.severity(kind) > bpf.severity(bpf.run(theirs, 0, bpf.words_of(found.arch, found.number, found.seen)))


def compiled(profiles: list[Profile], host: str, optimize: int) -> list[bpf.Program]:
    """The programs that a delegate loads for `profiles` (not TOP)."""
    jobs = [(profile.raw, optimize) for profile in profiles if profile.raw is not None]
    return [bpf.decode(data) for data in libseccomp.compiled(jobs, host)]


def narrowed(result: Profile, dropped: list[str]) -> Profile:
    """`result` with the conditions of its widest call gone, which is then denied and added to `dropped`."""
    assert result.raw is not None
    widths: dict[str, int] = {}
    for rule in result.raw["syscalls"]:
        if rule.get("args"):
            widths[rule["names"][0]] = widths.get(rule["names"][0], 0) + len(rule["args"])
    if not widths:
        asked = f"more than {MOST_INSTRUCTIONS} instructions"
        raise Refused("seccomp", "linux.seccomp", asked, bpf.MOST_INSTRUCTIONS, "ask for a smaller profile")
    widest = max(sorted(widths), key=lambda name: widths[name])
    dropped.append(widest)
    return Profile(_without_conditions(result.raw, widest))


def _without_conditions(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """`raw` with one call denied for all arguments, as hard as it was for any."""
    parted = [rule for rule in raw["syscalls"] if rule.get("args") and name in rule["names"]]
    least = min((ACTIONS[rule["action"]] for rule in parted), default=ALLOW)
    rules = [rule for rule in raw["syscalls"] if rule not in parted]
    if least < ACTIONS[raw["defaultAction"]]:
        rules.append({"names": [name], "action": ACTION_NAMES[least]})
    return {**raw, "syscalls": rules}


def tokens(profile: Profile, host: str) -> frozenset[int]:
    """The ABIs that a delegate loads `profile` for, as audit tokens."""
    assert profile.raw is not None
    archs = {NATIVE[host], *(profile.raw.get("architectures") or ())}
    return frozenset(token for arch, token in TOKENS.items() if arch in archs)
