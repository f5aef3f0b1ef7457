"""A container of which we have no record: made by another runtime, or ours and the record is gone.

It is bounded by the host limit, met with what its bundle's config.json says; the delegate's own state names the bundle.
"""

from __future__ import annotations

from shim import bundle, policy, spec, wire
from shim.errors import HostError, ShimError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.policy import Config

FILES = ("state.json", "status")  # runc's, crun's


def record(root: str, container: str, config: Config) -> dict[str, Any]:
    """What create would have recorded, as far as it can be known. HostError if not even the bundle is known."""
    path = bundle_of(root, container)
    data, _ = bundle.Directory(path).read("config.json")
    whole, _ = spec.check(wire.loads(data, "lost", "config.json"), config.unknown_keys)
    limit = policy.load(config.limit, config)
    return {
        "bundle": path,
        "policy": limit.name,
        "digest": limit.digest,
        "mode": config.mode,
        "lost": True,
        "sections": limit.sections,
        "process": whole["process"],
        "pins": {},
    }


def bundle_of(root: str, container: str) -> str:
    """The bundle's directory as the delegate recorded it. HostError if there is no such container."""
    for name in FILES:
        try:
            data, _ = bundle.Directory(f"{root}/{container}").read(name)
            told = wire.loads(data, "lost", name)
        except ShimError:
            continue
        if isinstance(told, dict):
            labels = (told.get("config") or {}).get("labels") or []
            named = [one[7:] for one in labels if isinstance(one, str) and one.startswith("bundle=")]
            found = told.get("bundle") or (named[0] if named else None)
            if found:
                return str(found)
    todo = "check its id, and --root"
    raise HostError("state", "id", container, "a container that exists", todo)
