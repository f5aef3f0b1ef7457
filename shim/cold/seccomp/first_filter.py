"""The first start of a pair of profiles: the proof of their meet once more, on the filter that the delegate loaded.

Next door: `loaded_filter` reads it out of the kernel. A record beside the proved meet says that it was done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shim import policy, spec, state, wire
from shim.cold.seccomp import loaded_filter
from shim.dim import capabilities, seccomp
from shim.errors import HostError, Refused
from shim.kernel import Facts
from shim.seccomp.profile import Profile
from shim.verbs import gate


def compare(record: dict[str, Any], programs: list[bytes] | None = None) -> int:
    """The number of probes made, on the filters of a created container or on those that are given. Bug if the loaded
    filter is looser; Refused if the policy is no longer what create has held it to; HostError if the container is not
    there.
    """
    data = state.asked(record["root"], record["id"])
    asked_spec, _ = spec.check(wire.loads(data, "start", "config.json"), "drop")
    held = capabilities.from_spec({"process": record["process"]}, Facts())
    ceiling = seccomp.resolve(_ceiling(record), held.sets[0] & held.sets[1])
    programs = _programs(record) if programs is None else programs
    probes = loaded_filter.verify(programs, seccomp.from_spec(asked_spec, Facts()), ceiling)
    gate.saw(record["unseen"], probes)
    return probes


def _ceiling(record: dict[str, Any]) -> Profile:
    """What the policy says of system calls, if it says the same as at create: its name may mean another by now."""
    chosen = policy.load(record["policy"], policy.config())
    if chosen.digest != record["digest"]:
        asked, ceiling = f"{chosen.name} as it is now", "as it was at create"
        raise Refused("start", "policy", asked, ceiling, "create the container anew")
    return seccomp.from_policy(chosen.sections.get("seccomp"))


def _programs(record: dict[str, Any]) -> list[bytes]:
    """The filters of a created container: runc's init has them while it waits for `start`; crun's will load what create
    has compiled into a file beside its state.
    """
    compiled = Path(record["root"]) / record["id"] / "seccomp.bpf"
    if compiled.is_file():
        return [data] if (data := compiled.read_bytes()) else []
    pid = state.init_of(record)
    if not pid:
        place = str(compiled.parent)
        raise HostError("start", place, "no process", "a created container", "create the container anew")
    return loaded_filter.filters(pid)
