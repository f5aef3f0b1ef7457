"""Which paths are hidden, which are read-only, and where the root file system can be written.

Order: more masked and more read-only paths are lower; a writable root is above any set of scratch directories, which
are tmpfs of a bounded size. A policy that takes the writable root away leaves its scratch directories instead; a spec
that asked a read-only root asked for no scratch, and gets none.
Source: runtime-spec config.md "root", config-linux.md "maskedPaths", "readonlyPaths".
"""

from __future__ import annotations

from shim.errors import Refused
from shim.lattice import EVERYTHING, Decrease, Value, at, least, least_leq, listed, names_join, names_leq, with_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.kernel import Facts
    from shim.lattice import Names, Section, Spec

    Scratch = tuple[tuple[str, int | None, bool], ...]

NAME = "paths"
KEYS = ("root.readonly", "linux.maskedPaths", "linux.readonlyPaths")
SCRATCH_SOURCE = "agentshim-scratch"
UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Paths(Value):
    """`masked`, `readonly`: sets of paths, EVERYTHING for all; `scratch`: (path, bytes or None, exec) of each writable
    tmpfs, sorted by path, or None where the whole root is writable.
    """

    __slots__ = ("masked", "readonly", "scratch")

    def __init__(self, masked: Names, readonly: Names, scratch: Scratch | None) -> None:
        self.masked = masked
        self.readonly = readonly
        self.scratch = scratch


TOP = Paths(frozenset(), frozenset(), None)
BOTTOM = Paths(EVERYTHING, EVERYTHING, ())


def leq(a: Paths, b: Paths) -> bool:
    if not (names_leq(b.masked, a.masked) and names_leq(b.readonly, a.readonly)):
        return False
    if b.scratch is None or a.scratch is None:
        return b.scratch is None
    above = {path: (size, execute) for path, size, execute in b.scratch}
    return all(
        path in above and least_leq(size, above[path][0]) and execute <= above[path][1]
        for path, size, execute in a.scratch
    )


def meet(a: Paths, b: Paths) -> Paths:
    if a.scratch is None or b.scratch is None:
        scratch = b.scratch if a.scratch is None else a.scratch
    else:
        other = {path: (size, execute) for path, size, execute in b.scratch}
        scratch = tuple(
            (path, least(size, other[path][0]), execute and other[path][1])
            for path, size, execute in a.scratch
            if path in other
        )
    return Paths(names_join(a.masked, b.masked), names_join(a.readonly, b.readonly), scratch)


def from_spec(spec: Spec, facts: Facts) -> Paths:
    scratch: Scratch | None = None
    if at(spec, KEYS[0], False):
        scratch = tuple(sorted(_scratch(m) for m in spec.get("mounts") or () if is_scratch(m)))
    return Paths(frozenset(at(spec, KEYS[1], ())), frozenset(at(spec, KEYS[2], ())), scratch)


def from_policy(section: Section) -> Paths:
    if section == "top":
        return TOP
    if section is None:
        return BOTTOM
    scratch = None
    if section.get("rootfs") != "writable":
        entries = section.get("scratch", {}).items()
        scratch = tuple(sorted((path, _bytes(e.get("size")), bool(e.get("exec"))) for path, e in entries))
    return Paths(frozenset(section.get("masked", ())), frozenset(section.get("readonly", ())), scratch)


def apply_to_spec(spec: Spec, value: Paths, facts: Facts) -> Spec:
    out = spec
    asked = from_spec(spec, facts)
    for key, before, after in zip(KEYS[1:], (asked.masked, asked.readonly), (value.masked, value.readonly)):
        if before != after and isinstance(after, frozenset):
            out = with_key(out, key, sorted(after))
    if asked.scratch == value.scratch or value.scratch is None:
        return out
    mounts = [m for m in spec.get("mounts") or () if not is_scratch(m)]
    taken = {"/" + m["destination"].strip("/") for m in mounts}
    # First in the list: a volume may be mounted below a scratch directory.
    added = [_mount(*entry) for entry in value.scratch if entry[0] not in taken]
    return with_key(with_key(out, KEYS[0], True), "mounts", added + mounts)


def explain(asked: Paths, ceiling: Paths, granted: Paths) -> list[Decrease]:
    out = []
    for key, before, after, section in (
        (KEYS[1], asked.masked, granted.masked, "masked"),
        (KEYS[2], asked.readonly, granted.readonly, "readonly"),
    ):
        if before != after:
            lost = listed(after - before) if isinstance(after, frozenset) else "every path"  # type: ignore[operator]
            why = f"{'hidden' if section == 'masked' else 'read-only'} by the policy"
            out.append(Decrease(key, "open", lost, why, f"take them out of [paths] {section}"))
    if asked.scratch != granted.scratch:
        shown = listed(_shown(entry) for entry in granted.scratch or ())
        was = "writable" if asked.scratch is None else listed(_shown(e) for e in asked.scratch)
        why = "the root file system is read-only; only scratch directories are writable"
        out.append(Decrease(KEYS[0], was, f"scratch: {shown}", why, '[paths] rootfs = "writable"'))
    return out


def refusals(asked: Paths, granted: Paths) -> list[Exception]:
    """A policy without the section hides every path, which cannot be written."""
    if isinstance(granted.masked, frozenset) and isinstance(granted.readonly, frozenset):
        return []
    return [Refused(NAME, "paths", "a root file system", "none", "write a section [paths] in the policy")]


def is_scratch(mount: dict[str, Any]) -> bool:
    """Whether a spec's mount is one that `apply_to_spec` wrote; a forged one asks what ours would give, no more."""
    if mount.get("source") != SCRATCH_SOURCE or mount.get("type") != "tmpfs":
        return False
    try:
        return mount == _mount(*_scratch(mount))
    except ValueError:
        return False


def _mount(path: str, size: int | None, execute: bool) -> dict[str, Any]:
    """A scratch directory as runc and crun read it; tmpcopyup shows what the image holds at `path`."""
    options = ["nosuid", "nodev", *([] if execute else ["noexec"]), "mode=1777", "tmpcopyup"]
    if size is not None:
        options.append(f"size={size}")
    return {"destination": path, "type": "tmpfs", "source": SCRATCH_SOURCE, "options": options}


def _scratch(mount: dict[str, Any]) -> tuple[str, int | None, bool]:
    options = mount.get("options") or []
    size = next((int(one[5:]) for one in options if one.startswith("size=")), None)
    return mount["destination"], size, "noexec" not in options


def _bytes(size: str | int | None) -> int | None:
    """A policy's "64m", or a number of bytes; None is unlimited."""
    if size is None or isinstance(size, int):
        return size
    unit = UNITS.get(size[-1:].lower())
    return int(size[:-1]) * unit if unit else int(size)


def _shown(entry: tuple[str, int | None, bool]) -> str:
    path, size, execute = entry
    return f"{path} ({'unlimited' if size is None else f'{size >> 20} MiB'}{'' if execute else ', noexec'})"
