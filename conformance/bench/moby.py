"""Docker's default seccomp profile, as dockerd hands it to a runtime.

Belongs here: choosing the rules that hold for this kernel, this machine and Docker's default capabilities.
Next door: `docker` puts the result into a bundle. The profile itself is read from the shared test inputs.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
# uname -m: (Go's name, as the profile's includes and excludes say it; libseccomp's, as its archMap does)
ARCHES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
}


def profile_file() -> Path:
    """Where moby's profile is: under AGENTSHIM_SHARED, or beside the repository. The file may be absent."""
    shared = Path(os.environ.get("AGENTSHIM_SHARED") or REPOSITORY.parent / "shared")
    return shared / "data" / "seccomp" / "moby-default.json"


def resolved(capabilities: list[str]) -> dict[str, Any]:
    """The profile as `linux.seccomp` of config.json, for a container with `capabilities` (CAP_ names)."""
    source = json.loads(profile_file().read_bytes())
    short, native = ARCHES[platform.machine()]
    sub = next(one["subArchitectures"] for one in source["archMap"] if one["architecture"] == native)
    return {
        "defaultAction": source["defaultAction"],
        "defaultErrnoRet": source["defaultErrnoRet"],
        "architectures": [native, *(sub or [])],
        "syscalls": [_rule(one) for one in source["syscalls"] if _holds(one, short, set(capabilities))],
    }


def _rule(source: dict[str, Any]) -> dict[str, Any]:
    return {key: source[key] for key in ("names", "action", "errnoRet", "args") if source.get(key) is not None}


def _holds(rule: dict[str, Any], arch: str, capabilities: set[str]) -> bool:
    wants, shuns = rule.get("includes") or {}, rule.get("excludes") or {}
    if arch in shuns.get("arches", ()) or capabilities & set(shuns.get("caps", ())):
        return False
    if "arches" in wants and arch not in wants["arches"]:
        return False
    return set(wants.get("caps", ())) <= capabilities and _kernel() >= _version(wants.get("minKernel", "0.0"))


def _kernel() -> tuple[int, int]:
    return _version(".".join(platform.release().split("-")[0].split(".")[:2]))


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
