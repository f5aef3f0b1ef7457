"""What the built-in policies make of specs that engines really wrote, loss by loss.

`specs/*.json` are config.json files of dockerd 20.10 and podman 4.3, with their paths made typical and system calls
left out (they have tests of their own). A golden file holds every refusal and every Decrease. To renew them after a
decision: AGENTSHIM_RENEW=1 pytest tests/golden/test_specs.py, and read the difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shim import plan, policy, product
from shim.dim import mounts, seccomp
from shim.hostpaths import Source
from shim.kernel import Facts
from shim.lattice import at

HERE = Path(__file__).parent / "specs"
SPECS = sorted(path.stem for path in HERE.glob("*.json"))
POLICIES = ("locked", "agent", "web", "dev", "identity")
FILES = ("resolv.conf", "hostname", "hosts", ".containerenv", "shm")


def source(path: str) -> Source:
    """What hostpaths finds on a host where these containers run."""
    kind = "volume"
    if path.endswith("docker.sock"):
        kind = "socket"
    elif path.rpartition("/")[2] in FILES:
        kind = "engine"
    elif path.startswith("/usr/"):
        kind = "system"
    return Source(kind, path, True, not path.startswith("/usr/") and "." not in path)


def facts(spec: Any) -> Facts:
    out = Facts()
    out.sources = {m["source"]: source(m["source"]) for m in spec["mounts"] if mounts.is_bind(m)}
    out.sources[mounts.root_key(spec["root"]["path"])] = Source("volume", spec["root"]["path"])
    hooks = [hook for kind in at(spec, "hooks", {}).values() for hook in kind]
    out.programs = {hook["path"]: "/usr/sbin/dockerd" for hook in hooks}
    return out


def told(spec: Any, name: str) -> str:
    ceiling = product.from_policy(policy.load(name, policy.Config({"limit": "identity"})).sections)
    ceiling["seccomp"] = seccomp.TOP
    made = plan.make(spec, ceiling, facts(spec), lambda asked, top, mask: None, mode="audit")
    lines = [f"refused: {one}" for one in product.refusals(made.asked, made.granted)]
    for room, loss in made.losses():
        lines += [f"{room}: {loss.key_path}", f"    {loss.asked} -> {loss.granted}", f"    {loss.allow}"]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("stem", SPECS)
def test_spec(stem: str, name: str) -> None:
    spec = json.loads((HERE / f"{stem}.json").read_text())
    golden = HERE / f"{stem}.{name}.txt"
    text = told(spec, name)
    if os.environ.get("AGENTSHIM_RENEW"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("stem", SPECS)
def test_identity_takes_nothing(stem: str) -> None:
    assert (HERE / f"{stem}.identity.txt").read_text() == "\n"
