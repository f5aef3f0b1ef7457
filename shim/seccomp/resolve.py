"""A policy's profile -> the OCI object under given capabilities, on this machine and kernel.

The form is Docker's: a rule may carry `includes` and `excludes` of caps, arches and minKernel. A rule counts where
every included capability is held, the machine is among the included arches, the kernel is at least minKernel, and
nothing excluded is there. Next door: `cold.seccomp.seccomp_source` makes and checks the source.
"""

from __future__ import annotations

import posix

from shim import wire
from shim.seccomp.profile import machine
from shim.seccomp.vocabulary import CAPABILITIES, NATIVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BITS = {f"CAP_{name}": 1 << bit for bit, name in enumerate(CAPABILITIES)}

# uname -m -> Go's name of the architecture, which Docker's profiles use.
ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}


def from_source(source: str, mask: int) -> dict[str, Any]:
    """The OCI object of a source's JSON text under the capabilities of `mask`, for this machine."""
    tree: Any = wire.loads(source.encode(), "seccomp", "policy")
    kind = machine()
    return resolve(tree, mask, kind, _version(posix.uname().release))


def resolve(tree: dict[str, Any], mask: int, kind: str, kernel: tuple[int, int]) -> dict[str, Any]:
    """The OCI object of a checked source; kind: uname -m; kernel: major and minor number."""
    out = {name: value for name, value in tree.items() if name not in ("syscalls", "architectures")}
    out["architectures"] = [NATIVE[kind], *(a for a in tree.get("architectures", ()) if a != NATIVE[kind])]
    rules = [rule for rule in tree.get("syscalls") or () if applies(rule, mask, kind, kernel)]
    out["syscalls"] = [{k: v for k, v in rule.items() if k not in ("includes", "excludes")} for rule in rules]
    return out


def applies(rule: dict[str, Any], mask: int, kind: str, kernel: tuple[int, int]) -> bool:
    """Whether a conditional rule counts."""
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if any(not mask & BITS[cap] for cap in includes.get("caps") or ()):
        return False
    if includes.get("arches") and ARCHES[kind] not in includes["arches"]:
        return False
    if includes.get("minKernel") and kernel < _version(includes["minKernel"]):
        return False
    if excludes.get("minKernel") and kernel >= _version(excludes["minKernel"]):
        return False
    held = any(mask & BITS[cap] for cap in excludes.get("caps") or ())
    return not held and ARCHES[kind] not in (excludes.get("arches") or ())


def _version(release: str) -> tuple[int, int]:
    """The leading two numbers of a kernel's release: 6.1.0-rc2 -> (6, 1)."""
    major, _, rest = release.partition(".")
    digits = ""
    for character in rest:
        if not character.isdigit():
            break
        digits += character
    return int(major) if major.isdigit() else 0, int(digits or "0")
