"""What else of a process carries authority: where it starts, and its execution domain.

A working directory below /proc or with `..` can lead out through a descriptor that a delegate left open
(CVE-2024-21626), on create and on exec; a personality can turn mmap's protections off. Order: none < both.
"""

from __future__ import annotations

from shim.errors import Refused
from shim.lattice import REASON, Decrease, Value, at, with_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.kernel import Facts
    from shim.lattice import Section, Spec

NAME = "process"
KEYS = ("process.cwd", "linux.personality")


class Process(Value):
    """`cwd`: an unclean working directory, "" for a clean one; `personality`: its domain with flags, "" for none.
    None in either is any.
    """

    __slots__ = ("cwd", "personality")

    def __init__(self, cwd: str | None, personality: str | None) -> None:
        self.cwd = cwd
        self.personality = personality


TOP = Process(None, None)
BOTTOM = Process("", "")


def leq(a: Process, b: Process) -> bool:
    return meet(a, b) == a


def meet(a: Process, b: Process) -> Process:
    return Process(_meet(a.cwd, b.cwd), _meet(a.personality, b.personality))


def from_spec(spec: Spec, facts: Facts) -> Process:
    cwd = at(spec, KEYS[0], "/")
    domain = at(spec, KEYS[1], {})
    shown = " ".join([domain.get("domain", ""), *(domain.get("flags") or ())])
    return Process("" if is_clean(cwd) else cwd, shown)


def from_policy(section: Section) -> Process:
    return TOP if section == "top" else BOTTOM


def apply_to_spec(spec: Spec, value: Process, facts: Facts) -> Spec:
    return with_key(spec, KEYS[1], None) if value.personality == "" and at(spec, KEYS[1]) else spec


def explain(asked: Process, ceiling: Process, granted: Process) -> list[Decrease]:
    out = []
    if asked.cwd != granted.cwd:
        out.append(
            Decrease(KEYS[0], asked.cwd or "", "refused", "it can lead out of the root", 'process = "top"' + REASON)
        )
    if asked.personality != granted.personality:
        why = "an execution domain weakens memory protection"
        out.append(Decrease(KEYS[1], asked.personality or "", "not set", why, 'process = "top"' + REASON))
    return out


def refusals(asked: Process, granted: Process) -> list[Exception]:
    if asked.cwd == granted.cwd:
        return []
    todo = "start in a directory of the image and change it from there"
    return [Refused(NAME, KEYS[0], asked.cwd, "an absolute path, no .., not in /proc or /sys", todo)]


def is_clean(path: str) -> bool:
    """An absolute path without `.`, `..` or a way into /proc or /sys."""
    parts = path.split("/")
    if parts[0] != "" or "." in parts or ".." in parts:
        return False
    named = [part for part in parts if part]
    return named[:1] not in (["proc"], ["sys"]) and named[:2] != ["dev", "fd"]


def _meet(a: str | None, b: str | None) -> str | None:
    if a is None or a == b:
        return b
    return a if b is None else ""
